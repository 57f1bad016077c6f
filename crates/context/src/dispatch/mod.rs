//! The dispatcher: maps sources, and carries each change of theirs into journal, page records and inboxes at once.
//!
//! ```text
//!  source ─► changes ─► match subscriptions ─► ONE commit { page records, cursor, `page.changed`,
//!                │                                          inbox items, `dispatch.enqueued` }
//!                └─ an inbox is full ─► waiting (merged by page, page record not moved on) ─► tried again
//! ```
//!
//! Each mapped source has one task, which owns the source's watcher and is the only writer of its records. It is
//! started again with a back-off when it fails, from what was committed. A change whose inbox is full waits without
//! holding up the others; when [`DispatcherConfig::max_waiting`] changes wait, the source is no longer listened to,
//! which makes it not ready. Nothing is lost by that, not even by a crash: what was not committed is found again.
//!
//! Subscribe before mapping: what a source tells while nobody subscribes is told to nobody.

mod apply;
mod delivery;
mod mapping;
mod record;
mod waiting;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::{Mutex, RwLock};
use volary_kernel::{
    Name, Tenant,
    metric::{Gauge, Metrics},
    ready::Readiness,
    retry::Backoff,
    task::Supervisor,
};
use volary_store::SharedStore;

use self::mapping::Mapping;
pub use self::{
    delivery::{Deliver, DeliverError, Dispatch, DispatchPayload},
    mapping::{SourceState, SourceStatus},
};
use crate::{
    event::Event,
    page::Scope,
    source::PageSource,
    subscription::{IndexConfig, Subscription, SubscriptionError, SubscriptionIndex},
};

/// Settings of a dispatcher.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DispatcherConfig {
    /// Bounds of the subscriptions.
    pub index: IndexConfig,
    /// Changes of one source that may wait for full inboxes. Default: 4,096, a few megabytes.
    pub max_waiting: usize,
    /// Wait before a full inbox, or a full store, is tried again. Default: 20 ms, doubling to 1 s.
    pub retry: Backoff,
    /// Wait before a failed watcher is started again. Default: that of [`Backoff`].
    pub restart: Backoff,
}

impl Default for DispatcherConfig {
    fn default() -> Self {
        let retry = Backoff {
            base: Duration::from_millis(20),
            factor: 2.0,
            max: Duration::from_secs(1),
            jitter: 0.2,
        };
        Self {
            index: IndexConfig::default(),
            max_waiting: 4096,
            retry,
            restart: Backoff::default(),
        }
    }
}

/// What a dispatcher works with.
pub struct Parts {
    /// Where everything is committed to.
    pub store: SharedStore,
    /// How a change gets into an inbox.
    pub deliver: Deliver,
    /// Who runs and drains its tasks.
    pub tasks: Supervisor,
    /// Where its state shows.
    pub readiness: Readiness,
    /// Where it counts.
    pub metrics: Metrics,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}

/// Where a source is mapped to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// The scope of its pages.
    pub scope: Scope,
    /// The tenant of its pages.
    pub tenant: Tenant,
}

/// A source that is not mapped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// It never changes by itself.
    #[error("source `{0}` is static: it cannot be live input")]
    Static(Name),
    /// Another one of this name is mapped.
    #[error("source `{0}` is mapped already")]
    Exists(Name),
}

struct Shared {
    config: DispatcherConfig,
    parts: Parts,
    index: RwLock<SubscriptionIndex>,
    subscriptions: Gauge,
    mappings: Mutex<BTreeMap<Name, Arc<Mapping>>>,
}

/// Carries changes to those who want them. Clones share it; it runs as long as its supervisor does.
#[derive(Clone)]
#[doc(alias = "ConvergenceRuntime")]
pub struct Dispatcher(Arc<Shared>);

impl std::fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dispatcher")
            .field("sources", &self.status())
            .finish_non_exhaustive()
    }
}

impl Dispatcher {
    /// A dispatcher without sources and subscriptions.
    pub fn new(config: DispatcherConfig, parts: Parts) -> Self {
        let subscriptions = parts
            .metrics
            .gauge("context_subscriptions", "Subscriptions to changes of pages");
        let index = RwLock::new(SubscriptionIndex::new(config.index));
        Self(Arc::new(Shared {
            config,
            parts,
            index,
            subscriptions,
            mappings: Mutex::default(),
        }))
    }

    // --- subscriptions -----------------------------------------------------------------------------

    /// Adds a subscription; it is matched with every change committed from now on. Subscriptions are not stored: whoever
    /// owns them adds them again after a restart, under the same ids, before the sources are mapped.
    ///
    /// # Errors
    /// [`SubscriptionError`]; nothing was added.
    #[doc(alias = "subscribe_pattern")]
    pub fn subscribe(&self, subscription: Subscription) -> Result<(), SubscriptionError> {
        let mut index = self.0.index.write();
        index.add(subscription)?;
        self.count(&index);
        Ok(())
    }

    /// Takes a subscription out; `false` if there is none of this id.
    pub fn unsubscribe(&self, id: &str) -> bool {
        let mut index = self.0.index.write();
        let removed = index.remove(id).is_some();
        self.count(&index);
        removed
    }

    /// Takes out all subscriptions of an agent; says how many.
    pub fn unsubscribe_agent(&self, agent: &Name) -> usize {
        let mut index = self.0.index.write();
        let removed = index.remove_agent(agent);
        self.count(&index);
        removed
    }

    fn count(&self, index: &SubscriptionIndex) {
        self.0
            .subscriptions
            .set(i64::try_from(index.len()).unwrap_or(i64::MAX));
    }

    /// All subscriptions, ordered by id.
    pub fn subscriptions(&self) -> Vec<Arc<Subscription>> {
        self.0.index.read().all()
    }

    // --- sources -----------------------------------------------------------------------------------

    /// Watches a source from now on. Its latch `source <name>` becomes ready when it has caught up.
    ///
    /// # Errors
    /// [`MapError`]; nothing was started. What goes wrong later shows in readiness, journal and [`Dispatcher::status`].
    pub fn map(&self, source: Arc<dyn PageSource>, place: Place) -> Result<(), MapError> {
        let name = source.name().clone();
        if source.is_static() {
            return Err(MapError::Static(name));
        }
        let mut mappings = self.0.mappings.lock();
        if mappings.contains_key(&name) {
            return Err(MapError::Exists(name));
        }
        let mapping = Mapping::new(source, place, &self.0);
        mapping.clone().spawn(&self.0);
        mappings.insert(name, mapping);
        Ok(())
    }

    /// Stops watching a source and waits until its watcher has ended. Its records stay, so that mapping it again goes on
    /// from there. `false` if it was not mapped.
    pub async fn unmap(&self, source: &Name) -> bool {
        let mapping = self.0.mappings.lock().get(source).cloned();
        let Some(mapping) = mapping else { return false };
        mapping.stop().await;
        if self.0.mappings.lock().remove(source).is_some() {
            mapping
                .journal(
                    &Event::SourceUnmapped {
                        source: source.clone(),
                    },
                    &self.0,
                )
                .await;
        }
        true
    }

    /// How the mapped sources are.
    pub fn status(&self) -> Vec<SourceStatus> {
        self.0
            .mappings
            .lock()
            .values()
            .map(|mapping| mapping.status())
            .collect()
    }
}
