//! Whether a failed attempt is followed by another, and when. Pure.

use std::{fmt, time::Duration};

use super::{NodePolicy, budget::BudgetState};
use crate::error::{FlowErrorCode, NodeError};

/// How an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// An error that another attempt may mend.
    Error,
    /// An error that none will mend.
    Permanent,
    /// It took longer than the node's timeout.
    Timeout,
    /// It panicked: a fault of the code, which would do it again.
    Panic,
}

impl Failure {
    /// Of an error that a node returned.
    pub(crate) const fn of(error: &NodeError) -> Self {
        if error.retryable {
            Self::Error
        } else {
            Self::Permanent
        }
    }

    /// As what the trace ends when no attempt is left.
    pub(crate) const fn code(self) -> FlowErrorCode {
        match self {
            Self::Error | Self::Permanent => FlowErrorCode::NodeError,
            Self::Timeout => FlowErrorCode::NodeTimeout,
            Self::Panic => FlowErrorCode::NodePanic,
        }
    }

    /// Whether another attempt could do better.
    pub(crate) const fn may_be_mended(self) -> bool {
        matches!(self, Self::Error | Self::Timeout)
    }

    /// Whether it tells the breaker that what the node needs is ill. A permanent error is an answer.
    pub(crate) const fn counts_for_the_breaker(self) -> bool {
        !matches!(self, Self::Permanent)
    }
}

/// A failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attempt {
    /// Which, from 1.
    pub number: u32,
    /// How it failed.
    pub failure: Failure,
    /// How long the other side asked to be left alone.
    pub retry_after: Option<Duration>,
    /// What is left of the trace's deadline.
    pub remaining: Option<Duration>,
}

/// What follows a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Another attempt.
    Retry {
        /// After this wait.
        delay: Duration,
    },
    /// The end of the trace.
    GiveUp {
        /// As what it ends.
        code: FlowErrorCode,
        /// Why no attempt follows.
        why: GaveUp,
    },
}

/// Why no attempt follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GaveUp {
    /// Another would fail as well.
    NotMendable,
    /// The policy allows no more.
    NoAttemptLeft,
    /// The retry budget is spent.
    BudgetSpent,
    /// It would begin when the deadline has passed.
    TooLate,
}

impl fmt::Display for GaveUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotMendable => "it is not one that another attempt mends",
            Self::NoAttemptLeft => "no attempt is left",
            Self::BudgetSpent => "the retry budget of the node is spent",
            Self::TooLate => "the next attempt would begin after the deadline",
        })
    }
}

/// Decides what follows a failed attempt; a retry is paid from the budget, only if it is made. `random` is in `0.0..=1.0`.
pub(crate) fn decide(
    policy: &NodePolicy,
    attempt: Attempt,
    budget: &mut BudgetState,
    random: f64,
) -> Decision {
    let code = attempt.failure.code();
    let give_up = |why| Decision::GiveUp { code, why };
    if !attempt.failure.may_be_mended() {
        return give_up(GaveUp::NotMendable);
    }
    if attempt.number > policy.max_retries {
        return give_up(GaveUp::NoAttemptLeft);
    }
    let asked = attempt.retry_after.unwrap_or_default();
    let delay = policy.backoff.delay(attempt.number, random).max(asked);
    if attempt
        .remaining
        .is_some_and(|remaining| delay >= remaining)
    {
        return give_up(GaveUp::TooLate);
    }
    if !budget.try_retry() {
        return give_up(GaveUp::BudgetSpent);
    }
    Decision::Retry { delay }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use volary_kernel::retry::Backoff;

    use super::{super::RetryBudget, *};

    const MS: Duration = Duration::from_millis(1);

    fn policy(max_retries: u32) -> NodePolicy {
        NodePolicy {
            max_retries,
            backoff: Backoff {
                jitter: 0.0,
                ..Backoff::default()
            },
            ..NodePolicy::default()
        }
    }

    fn budget() -> BudgetState {
        BudgetState::new(&RetryBudget::default())
    }

    fn failed(number: u32, failure: Failure) -> Attempt {
        Attempt {
            number,
            failure,
            retry_after: None,
            remaining: None,
        }
    }

    fn gave_up(decision: Decision) -> (FlowErrorCode, GaveUp) {
        match decision {
            Decision::GiveUp { code, why } => (code, why),
            Decision::Retry { delay } => panic!("it is tried again after {delay:?}"),
        }
    }

    #[test]
    fn so_many_retries_as_allowed_each_later_than_the_one_before() {
        let (policy, mut budget) = (policy(3), budget());
        let decisions: Vec<_> = (1..=4)
            .map(|number| decide(&policy, failed(number, Failure::Error), &mut budget, 0.5))
            .collect();
        let after = |ms| Decision::Retry { delay: ms * MS };
        assert_eq!(decisions[..3], [after(200), after(400), after(800)]);
        let end = (FlowErrorCode::NodeError, GaveUp::NoAttemptLeft);
        assert_eq!(gave_up(decisions[3]), end);
    }

    #[test]
    fn permanent_errors_and_panics_are_not_tried_again_and_cost_no_budget() {
        let policy = policy(9);
        let mut one = BudgetState::new(&RetryBudget {
            ratio: 0.0,
            reserve: 1,
        });
        for (failure, code) in [
            (Failure::Permanent, FlowErrorCode::NodeError),
            (Failure::Panic, FlowErrorCode::NodePanic),
        ] {
            let decision = decide(&policy, failed(1, failure), &mut one, 0.5);
            assert_eq!(gave_up(decision), (code, GaveUp::NotMendable));
        }
        let decision = decide(&policy, failed(1, Failure::Timeout), &mut one, 0.5);
        assert!(matches!(decision, Decision::Retry { .. }));
        let decision = decide(&policy, failed(2, Failure::Timeout), &mut one, 0.5);
        let end = (FlowErrorCode::NodeTimeout, GaveUp::BudgetSpent);
        assert_eq!(gave_up(decision), end);
    }

    #[test]
    fn a_wait_that_passes_the_deadline_is_not_waited_for_and_costs_no_budget() {
        let policy = policy(9);
        let mut one = BudgetState::new(&RetryBudget {
            ratio: 0.0,
            reserve: 1,
        });
        let with = |remaining: Duration| Attempt {
            remaining: Some(remaining),
            ..failed(1, Failure::Error)
        };
        let decision = decide(&policy, with(200 * MS), &mut one, 0.0);
        assert_eq!(gave_up(decision).1, GaveUp::TooLate);
        let decision = decide(&policy, with(201 * MS), &mut one, 0.0);
        assert_eq!(decision, Decision::Retry { delay: 200 * MS });
    }

    #[test]
    fn who_asks_to_be_left_alone_is_left_alone_for_at_least_so_long() {
        let (policy, mut budget) = (policy(9), budget());
        let asked = |wait: Duration| Attempt {
            retry_after: Some(wait),
            ..failed(1, Failure::Error)
        };
        let decision = decide(&policy, asked(60_000 * MS), &mut budget, 0.5);
        assert_eq!(
            decision,
            Decision::Retry { delay: 60_000 * MS },
            "longer than the longest back-off"
        );
        let decision = decide(&policy, asked(MS), &mut budget, 0.5);
        assert_eq!(decision, Decision::Retry { delay: 200 * MS });
        let late = Attempt {
            remaining: Some(59_000 * MS),
            ..asked(60_000 * MS)
        };
        let decision = decide(&policy, late, &mut budget, 0.5);
        assert_eq!(gave_up(decision).1, GaveUp::TooLate);
    }

    #[test]
    fn what_a_node_returns_is_classified_by_what_it_says_of_itself() {
        let io = std::io::Error::other("down");
        assert_eq!(Failure::of(&NodeError::from(io)), Failure::Error);
        let bad = NodeError::permanent("bad input");
        assert_eq!(Failure::of(&bad), Failure::Permanent);
        assert!(!Failure::of(&bad).counts_for_the_breaker());
        assert!(Failure::Timeout.counts_for_the_breaker());
        assert!(Failure::Panic.counts_for_the_breaker());
    }

    fn failure() -> impl Strategy<Value = Failure> {
        prop_oneof![
            Just(Failure::Error),
            Just(Failure::Permanent),
            Just(Failure::Timeout),
            Just(Failure::Panic),
        ]
    }

    proptest! {
        /// One message that fails for ever is given up, after no more attempts than allowed, and no wait passes its deadline.
        #[test]
        fn every_message_that_keeps_failing_is_given_up(
            max_retries in 0..50u32,
            reserve in 0..20u32,
            deadline in prop::option::of(0..100_000u32),
            jitter in 0.0..=1.0f64,
            random in 0.0..=1.0f64,
            failures in prop::collection::vec((failure(), prop::option::of(0..10_000u32)), 60),
        ) {
            let mut policy = policy(max_retries);
            policy.backoff.jitter = jitter;
            policy.retry_budget = RetryBudget { ratio: 0.2, reserve };
            let mut budget = BudgetState::new(&policy.retry_budget);
            budget.first_attempt();
            let mut remaining = deadline.map(|ms| ms * MS);
            let mut ended = None;
            for (number, (failure, asked)) in (1u32..).zip(failures) {
                let retry_after = asked.map(|ms| ms * MS);
                let attempt = Attempt { number, failure, retry_after, remaining };
                match decide(&policy, attempt, &mut budget, random) {
                    Decision::GiveUp { code, .. } => {
                        prop_assert_eq!(code, failure.code());
                        ended = Some(number);
                        break;
                    }
                    Decision::Retry { delay } => {
                        prop_assert!(failure.may_be_mended());
                        prop_assert!(delay >= retry_after.unwrap_or_default());
                        prop_assert!(remaining.is_none_or(|left| delay < left));
                        remaining = remaining.map(|left| left - delay);
                    }
                }
            }
            prop_assert!(ended.is_some_and(|attempts| attempts <= max_retries + 1));
            prop_assert!(ended.is_some_and(|attempts| attempts <= reserve + 1));
        }
    }
}
