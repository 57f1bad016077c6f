//! Tokens that pay for retries. Pure.

use super::RetryBudget;

/// One retry, in the unit of the account: whole numbers, so that earning a tenth ten times is one.
const RETRY: u64 = 1_000_000;

/// The account of one node and tenant.
#[derive(Debug, Clone)]
pub(crate) struct BudgetState {
    earned: u64,
    most: u64,
    saved: u64,
}

impl BudgetState {
    /// A full account.
    pub(crate) fn new(budget: &RetryBudget) -> Self {
        let most = u64::from(budget.reserve) * RETRY;
        Self {
            // A checked ratio is finite and small; anything else saturates here.
            earned: (budget.ratio * RETRY as f64).round() as u64,
            most,
            saved: most,
        }
    }

    /// Takes in the first attempt of a message, which earns a part of a retry.
    pub(crate) fn first_attempt(&mut self) {
        self.saved = self.saved.saturating_add(self.earned).min(self.most);
    }

    /// Pays for a retry, if there is enough.
    pub(crate) fn try_retry(&mut self) -> bool {
        let rest = self.saved.checked_sub(RETRY);
        if let Some(rest) = rest {
            self.saved = rest;
        }
        rest.is_some()
    }

    /// Whether it is as full as a new one.
    pub(crate) const fn is_full(&self) -> bool {
        self.saved == self.most
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn state(ratio: f64, reserve: u32) -> BudgetState {
        BudgetState::new(&RetryBudget { ratio, reserve })
    }

    #[test]
    fn the_reserve_is_there_at_once_and_then_attempts_earn_retries() {
        let mut budget = state(0.2, 3);
        let at_once = (0..10).filter(|_| budget.try_retry()).count();
        assert_eq!(at_once, 3);
        for _ in 0..4 {
            budget.first_attempt();
            assert!(!budget.try_retry(), "four fifths of one are none");
        }
        budget.first_attempt();
        assert!(budget.try_retry());
        assert!(!budget.try_retry());
    }

    #[test]
    fn a_tenth_earned_ten_times_is_one() {
        let mut budget = state(0.1, 1);
        assert!(budget.try_retry());
        for _ in 0..10 {
            budget.first_attempt();
        }
        assert!(budget.try_retry());
    }

    #[test]
    fn no_more_is_saved_than_the_reserve() {
        let mut budget = state(1.0, 2);
        for _ in 0..1_000 {
            budget.first_attempt();
        }
        assert!(budget.is_full());
        assert_eq!((0..10).filter(|_| budget.try_retry()).count(), 2);
        assert!(!budget.is_full());
    }

    #[test]
    fn a_ratio_that_no_check_let_through_neither_panics_nor_pays() {
        for ratio in [f64::NAN, -1.0, f64::NEG_INFINITY] {
            let mut budget = state(ratio, 1);
            assert!(budget.try_retry());
            budget.first_attempt();
            assert!(!budget.try_retry(), "{ratio}");
        }
    }

    proptest! {
        /// Over any history there are no more retries than the reserve and what was earned.
        #[test]
        fn retries_never_exceed_reserve_and_earnings(
            ratio in 0.0..3.0f64,
            reserve in 0..20u32,
            steps in prop::collection::vec(any::<bool>(), 0..400),
        ) {
            let mut budget = state(ratio, reserve);
            let (mut firsts, mut retries) = (0u32, 0u32);
            for first in steps {
                if first {
                    firsts += 1;
                    budget.first_attempt();
                } else {
                    retries += u32::from(budget.try_retry());
                }
                let most = f64::from(reserve) + f64::from(firsts) * ratio;
                prop_assert!(f64::from(retries) <= most + 1e-3, "{retries} of {most}");
            }
        }
    }
}
