//! Durable queues over a [`crate::Store`]: the one mechanism behind inboxes, tasks, mailboxes and outboxes.
//!
//! [`Queues`] owns all queues of a store and the parked items; a [`Queue`] is one of them. The truth is in the store;
//! whose turn it is is kept in memory (`index`), rebuilt by one scan at open. `enqueue`, `ack`, `nack`, `park` add to
//! the caller's [`Batch`], so that "ack this and send that" is one commit; the index follows when the batch commits
//! and is as if nothing had happened when it does not.
//!
//! Exclusive: one `Queues` per store at a time, also where several processes share a store: the second that opens them is
//! refused ([`crate::StoreError::QueuesInUse`]). Claims of an earlier life of the process are free again at open.
//! Time runs by the monotonic clock while the process lives, and by the wall clock across restarts.

mod claim;
mod enqueue;
mod follow;
mod format;
mod index;
mod list;
mod load;
mod loan;
mod number;
mod outcome;
mod parked;
mod settle;
mod sweep;
mod types;

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use volary_kernel::{
    Mono, Uid,
    clock::{SharedClock, Timestamp},
};

pub use self::{
    follow::{Deed, Follow, Happening},
    list::{ItemView, Place, Standing},
    loan::Loan,
    outcome::MAX_WAITERS,
    parked::ParkedItem,
    types::{
        Claim, DEFAULT_MAX_ATTEMPTS, DEFAULT_MAX_BYTES, DEFAULT_MAX_ITEMS, DEFAULT_MAX_PARKED,
        DEFAULT_SUBJECT, DEFAULT_VISIBILITY, Enqueued, ItemId, LANE_MAX, Nacked, NewItem, Outcome,
        QUEUE_NAME_MAX, QueueConfig, QueueError, QueueFull, QueueStats, REASON_MAX,
    },
};
use self::{
    index::{Bounds, Index},
    load::Loaded,
    number::Numbers,
    outcome::Outcomes,
};
use crate::{
    batch::{Batch, Expect},
    entry::Seq,
    error::StoreError,
    store::SharedStore,
};
#[cfg(feature = "sqlite")]
pub(crate) use format::{ITEMS, decode};

/// What all queues of a store share.
struct Shared {
    store: SharedStore,
    clock: SharedClock,
    head: watch::Receiver<Seq>,
    /// This life of the process; claims carry it.
    incarnation: Uid,
    outcomes: Outcomes,
    parked: Mutex<HashMap<Arc<str>, usize>>,
    /// When the sweeper will wake, and what wakes it earlier.
    alarm: Mutex<Option<Mono>>,
    alarm_news: Notify,
}

impl Shared {
    /// The monotonic time at which the wall clock will (have) read `at`, as far as can be told now.
    fn mono_of(&self, at: Timestamp) -> Mono {
        self.clock.mono() + at.since(self.clock.wall())
    }

    /// Makes sure the sweeper is awake at `at`.
    fn wake_at(&self, at: Mono) {
        if self.alarm.lock().is_none_or(|alarm| at < alarm) {
            self.alarm_news.notify_one();
        }
    }

    fn parked_in(&self, queue: &str) -> usize {
        self.parked.lock().get(queue).copied().unwrap_or(0)
    }

    fn count_parked(&self, queue: &Arc<str>, up: bool) {
        let mut parked = self.parked.lock();
        let count = parked.entry(queue.clone()).or_default();
        *count = if up {
            *count + 1
        } else {
            count.saturating_sub(1)
        };
    }
}

#[derive(Default)]
struct Shelf {
    open: HashMap<Arc<str>, Queue>,
    /// Items of queues that nobody has opened yet.
    waiting: HashMap<Arc<str>, Vec<Loaded>>,
}

/// All queues of a store. Clones share them.
#[derive(Clone)]
pub struct Queues {
    shared: Arc<Shared>,
    shelf: Arc<Mutex<Shelf>>,
}

/// One queue. Clones share it.
#[derive(Clone)]
pub struct Queue {
    inner: Arc<Inner>,
}

struct Inner {
    name: Arc<str>,
    config: QueueConfig,
    shared: Arc<Shared>,
    index: Mutex<Index>,
    /// Told when something may be claimed.
    news: News,
    /// Whether its items have numbers.
    numbered: bool,
    /// Held by whoever sweeps.
    sweeping: tokio::sync::Mutex<()>,
}

/// Who is told that something may be claimed.
struct News {
    /// One of those who take whatever comes next.
    one: Notify,
    /// All of those who choose: it may be for any of them, or for none.
    all: watch::Sender<u64>,
}

impl Default for News {
    fn default() -> Self {
        Self {
            one: Notify::new(),
            all: watch::Sender::new(0),
        }
    }
}

impl News {
    /// Something that could not be claimed before can be.
    fn fresh(&self) {
        self.one.notify_one();
        self.all.send_modify(|news| *news = news.wrapping_add(1));
    }

    /// Something more is there, for the next of those who take whatever comes.
    fn more(&self) {
        self.one.notify_one();
    }
}

impl Inner {
    /// Takes a settled item out and tells those who wait for it. In this order, so that one who asks in between
    /// finds either the item or its outcome.
    fn finish(&self, id: ItemId, outcome: Outcome) {
        self.shared.outcomes.settle(id, outcome);
        let freed = self.index.lock().remove(id);
        if freed {
            self.news.fresh();
        }
    }

    /// An item of the index is not in the store. As a rule somebody has settled it just now and the index is about to be
    /// told: so this queues up behind that commit, and only what is in the index even then has vanished.
    async fn vanished(self: &Arc<Self>, id: ItemId) -> Result<(), QueueError> {
        let mut tx = Batch::new();
        tx.check(format::item_key(id), Expect::Absent);
        let inner = self.clone();
        tx.on_commit(move |_| {
            let known = inner.index.lock().get(id).is_some();
            if known {
                tracing::warn!(queue = %inner.name, item = %id, "queue item vanished from the store");
                inner.finish(id, Outcome::Dropped("it vanished from the store".into()));
            }
        });
        match self.shared.store.commit(tx).await {
            // In a conflict it is there again.
            Ok(_) | Err(StoreError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Queues {
    /// Reads all queues of `store`.
    ///
    /// # Errors
    /// [`crate::StoreError::QueuesInUse`] if another process that shares the store runs its queues; errors of reading;
    /// [`crate::StoreError::Corrupt`] for a queue record that this version cannot read.
    pub async fn open(store: SharedStore) -> Result<Self, QueueError> {
        store.own_queues().await?;
        let (waiting, parked) = load::scan(&store).await?;
        let shared = Shared {
            clock: store.clock().clone(),
            head: store.head(),
            store,
            incarnation: Uid::generate(),
            outcomes: Outcomes::default(),
            parked: Mutex::new(parked),
            alarm: Mutex::new(None),
            alarm_news: Notify::new(),
        };
        let shelf = Shelf {
            open: HashMap::new(),
            waiting,
        };
        Ok(Self {
            shared: Arc::new(shared),
            shelf: Arc::new(Mutex::new(shelf)),
        })
    }

    /// The queue that `config` names, with what waits in it. A queue that is open already keeps its configuration.
    ///
    /// # Errors
    /// [`QueueError::Invalid`] for a name that is empty or too long and for zero attempts.
    pub fn queue(&self, config: QueueConfig) -> Result<Queue, QueueError> {
        self.shelve(config, None)
    }

    /// Opens a queue; with numbers if they are given.
    fn shelve(&self, config: QueueConfig, numbers: Option<Numbers>) -> Result<Queue, QueueError> {
        if config.name.is_empty() || config.name.len() > QUEUE_NAME_MAX {
            let found = config.name.len();
            return Err(QueueError::Invalid(format!(
                "queue name must have 1 to {QUEUE_NAME_MAX} bytes, found {found}"
            )));
        }
        if config.max_attempts == 0 {
            return Err(QueueError::Invalid(format!(
                "queue `{}` allows no attempts, at least 1 is needed",
                config.name
            )));
        }
        let mut shelf = self.shelf.lock();
        if let Some(queue) = shelf.open.get(config.name.as_str()) {
            return Ok(queue.clone());
        }
        let name: Arc<str> = config.name.as_str().into();
        let bounds = Bounds {
            items: config.max_items,
            bytes: config.max_bytes,
            attempts: config.max_attempts,
        };
        let mut index = Index::new(bounds);
        let numbered = numbers.is_some();
        index.number_by(numbers.unwrap_or_default());
        for mut loaded in shelf.waiting.remove(&name).unwrap_or_default() {
            if numbered && loaded.header.number.is_none() {
                loaded.header.number = Some(index.number());
            }
            loaded.enter(&mut index, &self.shared);
        }
        let next = index.next_timer();
        let inner = Inner {
            name: name.clone(),
            config,
            shared: self.shared.clone(),
            index: Mutex::new(index),
            news: News::default(),
            numbered,
            sweeping: tokio::sync::Mutex::new(()),
        };
        let queue = Queue {
            inner: Arc::new(inner),
        };
        shelf.open.insert(name, queue.clone());
        if let Some(next) = next {
            self.shared.wake_at(next);
        }
        Ok(queue)
    }

    /// The store they are in.
    pub fn store(&self) -> &SharedStore {
        &self.shared.store
    }

    /// This opening of the queues: no other has the same.
    pub fn incarnation(&self) -> Uid {
        self.shared.incarnation
    }

    /// Every open queue, by name.
    pub fn stats(&self) -> Vec<QueueStats> {
        let mut stats: Vec<_> = self.shelf.lock().open.values().map(Queue::stats).collect();
        stats.sort_by(|a, b| a.name.cmp(&b.name));
        stats
    }

    /// Queues that hold items but were not opened: how many items each.
    pub fn unopened(&self) -> Vec<(Arc<str>, usize)> {
        let shelf = self.shelf.lock();
        let mut names: Vec<_> = shelf
            .waiting
            .iter()
            .map(|(name, items)| (name.clone(), items.len()))
            .collect();
        names.sort();
        names
    }
}

impl Queue {
    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.inner.name
    }

    /// How it behaves.
    pub fn config(&self) -> &QueueConfig {
        &self.inner.config
    }

    /// Its state.
    pub fn stats(&self) -> QueueStats {
        let index = self.inner.index.lock();
        let counts = index.counts();
        QueueStats {
            name: self.inner.name.clone(),
            ready: counts.ready,
            delayed: counts.delayed,
            claimed: counts.claimed,
            pending: counts.pending,
            parked: self.inner.shared.parked_in(&self.inner.name),
            bytes: index.bytes(),
        }
    }

    /// How many items wait or are claimed.
    pub fn len(&self) -> usize {
        self.inner.index.lock().len()
    }

    /// The items that are handed out.
    pub fn claimed_ids(&self) -> Vec<ItemId> {
        self.inner.index.lock().claimed_ids()
    }

    /// Whether nothing waits and nothing is claimed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
