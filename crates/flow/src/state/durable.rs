//! How durable traces are kept.

use std::{fmt, time::Duration};

use volary_store::Queues;

/// How long what nobody has fetched of a durable trace is kept after its end. Default: a day, so that a caller that comes
/// back after a night's outage still finds it.
pub const DEFAULT_DURABLE_RESULT_TTL: Duration = Duration::from_secs(24 * 3600);
/// Most ended durable traces that are kept for fetching. Default: 10,000.
pub const DEFAULT_DURABLE_RESULTS: usize = 10_000;

/// Where and how the traces of a durable flow are kept.
///
/// Whoever has the queues of a store runs its durable flows: of several processes that share a store, one may
/// ([`volary_store::StoreError::QueuesInUse`]), and it runs each flow once.
#[derive(Clone)]
pub struct DurableConfig {
    /// The queues of the store. What is in doubt is parked there.
    pub queues: Queues,
    /// How long what nobody has fetched is kept after a trace ended, by the wall clock.
    pub result_ttl: Duration,
    /// Most ended traces that are kept for fetching; beyond it the oldest of the tenant with the most goes.
    pub results: usize,
}

impl DurableConfig {
    /// On the store of these queues, with the default bounds.
    pub const fn new(queues: Queues) -> Self {
        Self {
            queues,
            result_ttl: DEFAULT_DURABLE_RESULT_TTL,
            results: DEFAULT_DURABLE_RESULTS,
        }
    }
}

impl fmt::Debug for DurableConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DurableConfig")
            .field("result_ttl", &self.result_ttl)
            .field("results", &self.results)
            .finish_non_exhaustive()
    }
}
