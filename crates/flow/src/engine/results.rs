//! Ended traces that are kept for fetching: until they expire, and where they are too many, fair between tenants. Pure.
//!
//! ```text
//!   tenant a   [oldest .. newest]     next: the oldest of each tenant, the first to expire first
//!   tenant b   [oldest .. newest]     most: the tenant with the most, of several the one with the oldest
//! ```

use std::{cmp::Reverse, collections::BTreeSet};

use hashbrown::HashMap;
use volary_kernel::{Mono, TraceId};

/// When a result expires, and whose it is.
pub(crate) type Kept = (Mono, TraceId);

/// Results that are kept. Each act takes time that grows with the logarithm of how many there are.
#[derive(Debug, Default)]
pub(crate) struct Results {
    /// Of each tenant that has any, by its serial.
    of: HashMap<u32, BTreeSet<Kept>>,
    next: BTreeSet<(Kept, u32)>,
    most: BTreeSet<(usize, Reverse<Kept>, u32)>,
    len: usize,
}

impl Results {
    /// Keeps one more. Returns what goes if there are more than `bound` now: the oldest of the tenant with the most.
    pub(crate) fn keep(&mut self, tenant: u32, kept: Kept, bound: usize) -> Option<Kept> {
        self.change(tenant, |all| all.insert(kept));
        if self.len <= bound {
            return None;
        }
        let (_, Reverse(oldest), tenant) = *self.most.last()?;
        self.remove(tenant, oldest);
        Some(oldest)
    }

    /// Keeps one no more.
    pub(crate) fn remove(&mut self, tenant: u32, kept: Kept) {
        self.change(tenant, |all| all.remove(&kept));
    }

    /// Takes one out that has expired.
    pub(crate) fn take_due(&mut self, now: Mono) -> Option<Kept> {
        let (kept, tenant) = *self.next.first()?;
        if kept.0 > now {
            return None;
        }
        self.remove(tenant, kept);
        Some(kept)
    }

    /// When the next expires.
    pub(crate) fn next(&self) -> Option<Mono> {
        self.next.first().map(|((expires, _), _)| *expires)
    }

    /// Changes what is kept of a tenant; `act` tells whether it did.
    fn change(&mut self, tenant: u32, act: impl FnOnce(&mut BTreeSet<Kept>) -> bool) {
        let all = self.of.entry(tenant).or_default();
        let before = (all.len(), all.first().copied());
        act(all);
        let after = (all.len(), all.first().copied());
        if after.0 == 0 {
            self.of.remove(&tenant);
        }
        self.len = self.len + after.0 - before.0;
        if before.1 != after.1 {
            before.1.map(|oldest| self.next.remove(&(oldest, tenant)));
            after.1.map(|oldest| self.next.insert((oldest, tenant)));
        }
        if before != after {
            let rank = |(count, oldest): (usize, Option<Kept>)| {
                oldest.map(|oldest| (count, Reverse(oldest), tenant))
            };
            rank(before).map(|rank| self.most.remove(&rank));
            rank(after).map(|rank| self.most.insert(rank));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kept(at: u64) -> Kept {
        let id = u128::from(at) + 1;
        (
            Mono::from_nanos(at),
            TraceId::from_bytes(id.to_be_bytes()).unwrap(),
        )
    }

    #[test]
    fn the_oldest_of_the_tenant_with_the_most_goes() {
        let mut results = Results::default();
        for (tenant, at) in [(1, 0), (1, 1), (2, 2), (2, 3), (2, 4)] {
            assert_eq!(results.keep(tenant, kept(at), 5), None);
        }
        assert_eq!(results.keep(3, kept(5), 5), Some(kept(2)), "of 2");
        assert_eq!(
            results.keep(3, kept(6), 5),
            Some(kept(0)),
            "the oldest of three"
        );
        assert_eq!(results.next(), Some(Mono::from_nanos(1)));
        assert_eq!(results.keep(4, kept(7), 0), Some(kept(3)));
    }

    #[test]
    fn what_expires_is_taken_in_order_and_once() {
        let mut results = Results::default();
        for (tenant, at) in [(1, 30), (2, 10), (1, 20), (1, 10)] {
            assert_eq!(results.keep(tenant, kept(at), 10), None);
        }
        results.remove(1, kept(20));
        results.remove(1, kept(20));
        let now = Mono::from_nanos(20);
        assert_eq!(results.take_due(now), Some(kept(10)));
        assert_eq!(results.take_due(now), Some(kept(10)));
        assert_eq!(results.take_due(now), None);
        assert_eq!(results.next(), Some(Mono::from_nanos(30)));
        assert_eq!(results.take_due(Mono::from_nanos(30)), Some(kept(30)));
        assert!(results.of.is_empty() && results.most.is_empty() && results.next.is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// The bound holds, and no tenant loses one while another has more.
        #[test]
        fn who_has_fewer_keeps_all(acts in prop::collection::vec((0..4_u32, 0..60_u64, any::<bool>()), 0..200)) {
            const BOUND: usize = 12;
            let mut results = Results::default();
            let mut model: Vec<(u32, Kept)> = Vec::new();
            for (tenant, at, adds) in acts {
                let one = kept(at * 4 + u64::from(tenant));
                model.retain(|other| other.1 != one);
                if !adds {
                    results.remove(tenant, one);
                    continue;
                }
                let evicted = results.keep(tenant, one, BOUND);
                model.push((tenant, one));
                prop_assert_eq!(evicted.is_some(), model.len() > BOUND);
                if let Some(evicted) = evicted {
                    let count = |tenant: u32| model.iter().filter(|one| one.0 == tenant).count();
                    let most = (0..4).map(count).max().unwrap_or_default();
                    let oldest = |tenant: u32| {
                        let own = model.iter().filter(move |one| one.0 == tenant);
                        own.map(|one| one.1).min()
                    };
                    let of = (0..4).filter(|t| count(*t) == most).min_by_key(|t| oldest(*t));
                    let of = of.unwrap_or_default();
                    prop_assert_eq!(Some(evicted), oldest(of));
                    model.retain(|one| one.1 != evicted);
                }
                prop_assert_eq!(results.len, model.len());
            }
            while let Some(one) = results.take_due(Mono::from_nanos(u64::MAX)) {
                prop_assert_eq!(Some(one), model.iter().map(|one| one.1).min());
                model.retain(|other| other.1 != one);
            }
            prop_assert!(model.is_empty());
        }
    }
}
