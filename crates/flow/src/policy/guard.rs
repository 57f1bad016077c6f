//! What a node keeps of each tenant: retry budget and breaker. Pure, and bounded.
//!
//! Both are kept per tenant so that one tenant's failures neither spend the retries of another nor shut the node to it.

use hashbrown::HashMap;

use super::{NodePolicy, breaker::BreakerState, budget::BudgetState};

/// Most tenants of one node that are kept apart.
const TENANTS: usize = 4_096;

/// The account and the breaker of one tenant at one node.
#[derive(Debug, Clone)]
pub(crate) struct Guard {
    pub(crate) budget: BudgetState,
    pub(crate) breaker: Option<BreakerState>,
    touched: u64,
}

impl Guard {
    fn is_at_rest(&self) -> bool {
        let rests = self.breaker.as_ref().is_none_or(BreakerState::is_at_rest);
        rests && self.budget.is_full()
    }
}

/// The guards of one node. When too many tenants are kept, those at rest are forgotten, which changes nothing; if none rests,
/// the one touched longest ago begins anew.
#[derive(Debug)]
pub(crate) struct Guards {
    fresh: Guard,
    kept: HashMap<u32, Guard>,
    most: usize,
    touches: u64,
}

impl Guards {
    /// For a node with this policy.
    pub(crate) fn new(policy: &NodePolicy) -> Self {
        Self::bounded(policy, TENANTS)
    }

    fn bounded(policy: &NodePolicy, most: usize) -> Self {
        Self {
            fresh: Guard {
                budget: BudgetState::new(&policy.retry_budget),
                breaker: policy.breaker.map(BreakerState::new),
                touched: 0,
            },
            kept: HashMap::new(),
            most,
            touches: 0,
        }
    }

    /// The guard of a tenant, by the number of it that is never given on: nobody finds what another left.
    pub(crate) fn of(&mut self, tenant: u32) -> &mut Guard {
        self.touches += 1;
        if self.kept.len() >= self.most && !self.kept.contains_key(&tenant) {
            self.make_room();
        }
        let guard = self.kept.entry(tenant);
        let guard = guard.or_insert_with(|| self.fresh.clone());
        guard.touched = self.touches;
        guard
    }

    fn make_room(&mut self) {
        self.kept.retain(|_, guard| !guard.is_at_rest());
        if self.kept.len() < self.most {
            return;
        }
        let oldest = self.kept.iter().min_by_key(|(_, guard)| guard.touched);
        if let Some(tenant) = oldest.map(|(tenant, _)| *tenant) {
            self.kept.remove(&tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use volary_kernel::Mono;

    use super::{
        super::{
            Breaker, RetryBudget,
            breaker::{Admit, Pass},
        },
        *,
    };

    fn policy() -> NodePolicy {
        NodePolicy {
            retry_budget: RetryBudget {
                ratio: 1.0,
                reserve: 2,
            },
            breaker: Some(Breaker {
                failures: 1,
                open_for: Duration::from_secs(1),
            }),
            ..NodePolicy::default()
        }
    }

    #[test]
    fn one_tenants_failures_leave_the_budget_and_the_breaker_of_another_alone() {
        let mut guards = Guards::new(&policy());
        while guards.of(1).budget.try_retry() {}
        let breaker = guards.of(1).breaker.as_mut().expect("one is set");
        breaker.failure(Pass::Run, Mono::default());
        let other = guards.of(2);
        assert!(other.budget.try_retry());
        let breaker = other.breaker.as_mut().expect("one is set");
        assert_eq!(breaker.admit(Mono::default()), Admit::Run);
        assert!(!guards.of(1).budget.try_retry());
    }

    #[test]
    fn beyond_its_bound_the_longest_untouched_begins_anew() {
        let mut guards = Guards::bounded(&policy(), 3);
        for tenant in 0..3 {
            assert!(guards.of(tenant).budget.try_retry());
        }
        guards.of(0);
        guards.of(9);
        assert_eq!(guards.kept.len(), 3);
        assert!(!guards.of(0).budget.is_full(), "it was touched");
        assert!(!guards.kept.contains_key(&1));
    }

    proptest! {
        /// As long as no more tenants are in trouble than are kept, forgetting is not noticed; and the bound holds.
        #[test]
        fn forgetting_is_not_noticed_while_few_are_in_trouble(
            steps in prop::collection::vec((0..40u32, any::<bool>()), 0..300),
        ) {
            let mut guards = Guards::bounded(&policy(), 8);
            let mut model: HashMap<u32, u32> = HashMap::new();
            for (tenant, first) in steps {
                let troubled = model.values().filter(|spent| **spent > 0).count();
                let spent = model.entry(tenant).or_default();
                if first || (*spent == 0 && troubled >= 7) {
                    guards.of(tenant).budget.first_attempt();
                    *spent = spent.saturating_sub(1);
                } else {
                    let paid = guards.of(tenant).budget.try_retry();
                    prop_assert_eq!(paid, *spent < 2);
                    *spent += u32::from(paid);
                }
                prop_assert!(guards.kept.len() <= 8);
            }
        }
    }
}
