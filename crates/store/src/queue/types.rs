//! What goes into a queue, what comes out, and what can go wrong.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use volary_kernel::{
    clock::Timestamp,
    id::{IdError, Name, Tenant, TraceId, Uid},
    retry::Backoff,
};

use super::Follow;
use crate::{
    entry::{Cause, Seq},
    error::StoreError,
};

/// Most items that wait or are claimed. Default: 100,000, about 30 MB of index.
pub const DEFAULT_MAX_ITEMS: usize = 100_000;
/// Most bytes of payload that wait or are claimed. Default: 256 MiB on disk.
pub const DEFAULT_MAX_BYTES: u64 = 256 << 20;
/// Most parked items; more intake is refused until a person has looked. Default: 10,000.
pub const DEFAULT_MAX_PARKED: usize = 10_000;
/// How long a claim holds without renewal. Default: 30 s, several times a usual handler's run.
pub const DEFAULT_VISIBILITY: Duration = Duration::from_secs(30);
/// Attempts before an item is parked. Default: 5.
pub const DEFAULT_MAX_ATTEMPTS: u32 = 5;
/// What the journal entries of a queue are about if it does not say.
pub const DEFAULT_SUBJECT: &str = "queue";
/// Longest reason kept with an item, in bytes; the rest is cut.
pub const REASON_MAX: usize = 1024;
/// Longest queue name and longest coalescing key, in bytes.
pub const QUEUE_NAME_MAX: usize = 256;
/// Longest lane, in bytes.
pub const LANE_MAX: usize = 4096;

/// How a queue behaves.
#[derive(Debug, Clone)]
pub struct QueueConfig {
    /// Its name, unique in the store: 1 to [`QUEUE_NAME_MAX`] bytes.
    pub name: String,
    /// What the queue's own journal entries are about: their kinds are `<subject>.parked`, `.expired`, `.retried`,
    /// `.dropped` and `.claimed`. Default: `queue`.
    pub subject: &'static str,
    /// Whether each claim is a journal entry too, committed with it. Default: no.
    pub journal_claims: bool,
    /// The agent that the queue's own journal entries name.
    pub agent: Option<Name>,
    /// Most items, parked ones not counted.
    pub max_items: usize,
    /// Most bytes of payload, parked ones not counted.
    pub max_bytes: u64,
    /// Most parked items.
    pub max_parked: usize,
    /// How long a claim holds without renewal.
    pub visibility: Duration,
    /// Attempts before an item is parked; at least 1.
    pub max_attempts: u32,
    /// Wait before the next attempt, when the one who failed names none.
    pub backoff: Backoff,
    /// Is told of everything that the queue does with an item by itself, and says so in place of the queue's own journal
    /// entries. Default: none.
    pub follow: Option<Follow>,
}

impl QueueConfig {
    /// A queue with the default bounds.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            subject: DEFAULT_SUBJECT,
            journal_claims: false,
            agent: None,
            max_items: DEFAULT_MAX_ITEMS,
            max_bytes: DEFAULT_MAX_BYTES,
            max_parked: DEFAULT_MAX_PARKED,
            visibility: DEFAULT_VISIBILITY,
            max_attempts: DEFAULT_MAX_ATTEMPTS,
            backoff: Backoff::default(),
            follow: None,
        }
    }
}

/// An item of a queue. Sorts by the time it was enqueued; stays the same through retries and parking, so it is the
/// idempotency key of everything done for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ItemId(pub Uid);

impl fmt::Display for ItemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ItemId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        text.parse().map(Self)
    }
}

/// Something to be done once.
#[derive(Debug, Clone)]
pub struct NewItem {
    /// What it is; the queue does not look inside.
    pub payload: Bytes,
    /// Whose it is. Tenants take turns.
    pub tenant: Tenant,
    /// The request it belongs to.
    pub trace: Option<TraceId>,
    /// The journal entry that brought it about. One of the same batch is remembered until the next restart only,
    /// unless the item has been claimed by then.
    pub cause: Cause,
    /// Higher goes first within a tenant. Default 0.
    pub priority: i16,
    /// A newer item of the same tenant and key takes the place of one that waits.
    pub coalesce: Option<String>,
    /// With a coalescing key: what held before this item. Of items that are coalesced the first one's is kept, so that
    /// a receiver can tell what changed since it last knew. At most [`QUEUE_NAME_MAX`] bytes.
    pub base: Option<String>,
    /// When it is no longer wanted: a waiting item ends as [`Outcome::DeadlineExceeded`].
    pub deadline: Option<Timestamp>,
    /// Not to be claimed earlier.
    pub not_before: Option<Timestamp>,
    /// What [`crate::Queue::claim_where`] and [`crate::Queue::list_ready`] choose by. At most [`LANE_MAX`] bytes; few
    /// different ones, because each is looked at.
    pub lane: Option<String>,
    /// Attempts before it is parked, in place of the queue's; at least 1.
    pub max_attempts: Option<u32>,
    /// How long a claim holds without renewal, in place of the queue's.
    pub visibility: Option<Duration>,
}

impl NewItem {
    /// An item with nothing special about it.
    pub fn new(tenant: Tenant, payload: impl Into<Bytes>) -> Self {
        Self {
            payload: payload.into(),
            tenant,
            trace: None,
            cause: Cause::None,
            priority: 0,
            coalesce: None,
            base: None,
            deadline: None,
            not_before: None,
            lane: None,
            max_attempts: None,
            visibility: None,
        }
    }
}

/// What became of an enqueue, once its batch is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enqueued {
    /// The item.
    pub id: ItemId,
    /// Whether it took the place of one that waited (and has that one's id and position).
    pub coalesced: bool,
}

/// An item that was handed out. Settle it with `ack`, `nack`, `fail` or `park` before it lapses.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The item.
    pub id: ItemId,
    /// The queue it came from.
    pub queue: Arc<str>,
    /// What it is.
    pub payload: Bytes,
    /// Which attempt this is, from 1. It is on disk.
    pub attempt: u32,
    /// Fencing token: grows with every claim of any item.
    pub epoch: u64,
    /// Whose it is.
    pub tenant: Tenant,
    /// The request it belongs to.
    pub trace: Option<TraceId>,
    /// The journal entry that brought it about.
    pub cause: Option<Seq>,
    /// When it was enqueued, or last replaced.
    pub enqueued_at: Timestamp,
    /// When it is no longer wanted.
    pub deadline: Option<Timestamp>,
    /// Its priority.
    pub priority: i16,
    /// Its coalescing key.
    pub coalesce: Option<Arc<str>>,
    /// What held before the first of the items that were coalesced into this one.
    pub base: Option<Arc<str>>,
    /// Why the last attempt failed, if somebody said.
    pub last_reason: Option<String>,
    /// Attempts before it is parked.
    pub max_attempts: u32,
    pub(super) lane: Option<Arc<str>>,
    pub(super) own_attempts: Option<u32>,
    pub(super) visibility_ms: Option<u64>,
}

/// What became of a nack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nacked {
    /// It will be handed out again after this time.
    Retry(Duration),
    /// Its attempts are used up: it is parked.
    Parked,
}

/// How an item ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was done and acknowledged.
    Done,
    /// It was given up, for this reason.
    Failed(String),
    /// It waits for a person, for this reason. A retry gives it a new outcome.
    Parked(String),
    /// Its deadline passed before it was done.
    DeadlineExceeded,
    /// It was removed, for this reason.
    Dropped(String),
}

/// What is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueFull {
    /// The number of items.
    Items,
    /// The bytes of payload.
    Bytes,
    /// The number of parked items.
    Parked,
}

impl fmt::Display for QueueFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Items => "items",
            Self::Bytes => "bytes",
            Self::Parked => "parked items",
        })
    }
}

/// A queue refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QueueError {
    /// A bound of the queue would be passed.
    #[error("queue `{queue}` is full: limit {limit} {what}")]
    Full {
        /// The queue.
        queue: Arc<str>,
        /// Which bound.
        what: QueueFull,
        /// The bound.
        limit: u64,
    },
    /// The claim no longer holds: its time was over, or it was settled already. Somebody else may be at it.
    #[error("claim of item {0} has lapsed")]
    Lapsed(ItemId),
    /// No such item waits, is claimed or is parked, and it did not end lately.
    #[error("item {0} is not known")]
    UnknownItem(ItemId),
    /// More tasks wait for outcomes than may.
    #[error("{0} callers wait for outcomes already")]
    TooManyWaiters(usize),
    /// The caller handed over something that no queue takes.
    #[error("{0}")]
    Invalid(String),
    /// The store refused or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A queue at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueStats {
    /// Its name.
    pub name: Arc<str>,
    /// Items that may be claimed.
    pub ready: usize,
    /// Items that wait for their time.
    pub delayed: usize,
    /// Items that are handed out.
    pub claimed: usize,
    /// Items of batches that are not committed yet.
    pub pending: usize,
    /// Items that wait for a person.
    pub parked: usize,
    /// Bytes of payload, parked ones not counted.
    pub bytes: u64,
}
