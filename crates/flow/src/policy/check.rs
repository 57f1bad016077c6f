//! Whether a policy can mean anything. Pure.

use std::time::Duration;

use super::NodePolicy;

/// Most attempts of one node at once.
const CONCURRENCY: usize = 65_536;
/// Most attempts after the first.
const RETRIES: u32 = 1_000;
/// Most retries that one first attempt may earn.
const RATIO: f64 = 1_000.0;

/// Something in a policy that is refused when the flow is built: `message` is what the field, as it is set, would mean.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}; {hint}")]
pub struct PolicyProblem {
    /// The field, as in `backoff.jitter`.
    pub field: &'static str,
    /// What is wrong with it.
    pub message: String,
    /// What to write instead.
    pub hint: &'static str,
}

impl NodePolicy {
    /// All that is wrong with it; empty if it can be run.
    pub fn problems(&self) -> Vec<PolicyProblem> {
        let mut problems = Problems(Vec::new());
        self.check_attempts(&mut problems);
        self.check_backoff(&mut problems);
        self.check_budget(&mut problems);
        self.check_breaker(&mut problems);
        problems.0
    }

    fn check_attempts(&self, problems: &mut Problems) {
        problems.unless(
            (1..=CONCURRENCY).contains(&self.concurrency),
            "concurrency",
            || format!("{} attempts at once", self.concurrency),
            "give 1 to 65,536; 1 keeps the order",
        );
        problems.unless(
            self.timeout != Some(Duration::ZERO),
            "timeout",
            || "no time at all".to_owned(),
            "give the longest time of one attempt, or none",
        );
        problems.unless(
            self.max_retries <= RETRIES,
            "max_retries",
            || format!("{} retries", self.max_retries),
            "give at most 1,000; what must be tried for ever belongs into a durable queue",
        );
    }

    fn check_backoff(&self, problems: &mut Problems) {
        let backoff = &self.backoff;
        problems.unless(
            backoff.factor.is_finite() && backoff.factor >= 1.0,
            "backoff.factor",
            || format!("a growth of {}", backoff.factor),
            "give 1 for equal waits, 2 for waits that double",
        );
        problems.unless(
            (0.0..=1.0).contains(&backoff.jitter),
            "backoff.jitter",
            || format!("a share of {}", backoff.jitter),
            "give 0 (none) to 1 (all of the wait is random)",
        );
        problems.unless(
            backoff.base <= backoff.max,
            "backoff.max",
            || {
                format!(
                    "{:?}, and the first wait is {:?}",
                    backoff.max, backoff.base
                )
            },
            "give at least the first wait",
        );
    }

    fn check_budget(&self, problems: &mut Problems) {
        let budget = &self.retry_budget;
        problems.unless(
            (0.0..=RATIO).contains(&budget.ratio),
            "retry_budget.ratio",
            || format!("{} retries per first attempt", budget.ratio),
            "give 0 to 1,000; 0.2 is usual",
        );
        problems.unless(
            self.max_retries == 0 || budget.reserve > 0,
            "retry_budget.reserve",
            || "nothing can be saved up, so that there is never a retry".to_owned(),
            "give at least 1, or set max_retries to 0",
        );
    }

    fn check_breaker(&self, problems: &mut Problems) {
        let Some(breaker) = &self.breaker else {
            return;
        };
        problems.unless(
            breaker.failures > 0,
            "breaker.failures",
            || "it would open without a failure".to_owned(),
            "give at least 1, or no breaker",
        );
        problems.unless(
            breaker.open_for > Duration::ZERO,
            "breaker.open_for",
            || "it would never refuse anything".to_owned(),
            "give the time for which the node is left alone, or no breaker",
        );
    }
}

struct Problems(Vec<PolicyProblem>);

impl Problems {
    fn unless(
        &mut self,
        good: bool,
        field: &'static str,
        message: impl FnOnce() -> String,
        hint: &'static str,
    ) {
        if !good {
            let message = message();
            self.0.push(PolicyProblem {
                field,
                message,
                hint,
            });
        }
    }
}

/// A policy in which everything is wrong.
#[cfg(test)]
pub(crate) fn wrong_everywhere() -> NodePolicy {
    use super::{Breaker, RetryBudget};
    use volary_kernel::retry::Backoff;

    NodePolicy {
        concurrency: 0,
        timeout: Some(Duration::ZERO),
        max_retries: 1_001,
        backoff: Backoff {
            base: Duration::from_secs(2),
            max: Duration::from_secs(1),
            factor: f64::NAN,
            jitter: 1.5,
        },
        retry_budget: RetryBudget {
            ratio: -0.1,
            reserve: 0,
        },
        breaker: Some(Breaker {
            failures: 0,
            open_for: Duration::ZERO,
        }),
    }
}

#[cfg(test)]
mod tests {
    use volary_kernel::retry::Backoff;

    use super::{super::Breaker, *};

    fn fields(policy: &NodePolicy) -> Vec<&'static str> {
        let problems = policy.problems();
        problems.iter().map(|problem| problem.field).collect()
    }

    #[test]
    fn the_default_and_the_usual_are_good() {
        assert_eq!(fields(&NodePolicy::default()), [""; 0]);
        let usual = NodePolicy {
            concurrency: 64,
            timeout: Some(Duration::from_secs(10)),
            max_retries: 2,
            backoff: Backoff {
                base: Duration::ZERO,
                max: Duration::ZERO,
                factor: 1.0,
                jitter: 1.0,
            },
            breaker: Some(Breaker {
                failures: 5,
                open_for: Duration::from_secs(30),
            }),
            ..NodePolicy::default()
        };
        assert_eq!(fields(&usual), [""; 0]);
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let bad = wrong_everywhere();
        let all = [
            "concurrency",
            "timeout",
            "max_retries",
            "backoff.factor",
            "backoff.jitter",
            "backoff.max",
            "retry_budget.ratio",
            "retry_budget.reserve",
            "breaker.failures",
            "breaker.open_for",
        ];
        assert_eq!(fields(&bad), all);
        let text = bad.problems()[0].to_string();
        assert_eq!(
            text,
            "concurrency: 0 attempts at once; give 1 to 65,536; 1 keeps the order"
        );
    }

    #[test]
    fn numbers_that_are_none_are_refused_everywhere() {
        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0] {
            let mut policy = NodePolicy::default();
            policy.backoff.factor = number;
            policy.backoff.jitter = number;
            policy.retry_budget.ratio = number;
            assert_eq!(fields(&policy).len(), 3, "{number}");
        }
    }

    #[test]
    fn without_retries_no_reserve_is_needed() {
        let mut policy = NodePolicy::default();
        policy.retry_budget.reserve = 0;
        assert_eq!(fields(&policy), [""; 0]);
        policy.max_retries = 1;
        assert_eq!(fields(&policy), ["retry_budget.reserve"]);
    }
}
