//! The Store seam: keyed records, leases, queues and the hash-chained journal, in memory and on SQLite.
//!
//! ```text
//!   queue, lease ──▶ Batch ──commit──▶ Store ──▶ records + journal rows, one transaction
//!                                        │
//!                      watch / tail ◀────┘──▶ signed head beside the database (SQLite)
//! ```
//!
//! Everything durable in Volary goes through [`Store::commit`]: domain functions add to a [`Batch`], one task commits
//! it. See [`Store`] for the contract.

#![cfg_attr(
    not(feature = "sqlite"),
    expect(
        dead_code,
        unused_imports,
        reason = "the chain and its head serve the database, which is left out"
    )
)]

mod batch;
#[cfg(any(test, feature = "test-util"))]
pub mod conformance;
mod entry;
mod error;
pub mod journal;
mod key;
mod lease;
mod memory;
mod pin;
pub mod queue;
#[cfg(feature = "sqlite")]
mod sqlite;
mod store;
mod tail;
mod watch;

pub use batch::{BATCH_BYTES_MAX, Batch, Committed, Expect, Savepoint, VALUE_MAX};
pub use entry::{Cause, Entry, EntryRef, Filter, JournalPage, JournalRow, KIND_MAX, Seq};
pub use error::{Found, FullWhat, StoreError};
pub use key::{KEY_MAX, Key, Record};
pub use lease::{Lease, LeaseError};
pub use memory::{MemoryConfig, MemoryStore};
pub use queue::{Claim, ItemId, NewItem, Outcome, Queue, QueueConfig, QueueError, Queues};
#[cfg(feature = "sqlite")]
pub use sqlite::{
    DEFAULT_BUSY, DEFAULT_MAX_AGE, DEFAULT_MAX_BYTES, DEFAULT_MIN_FREE_DISK, DEFAULT_READERS,
    DEFAULT_RESERVE, OnDamage, Retention, SHARED_POLL, Sharing, SqliteConfig, SqliteStore,
};
pub use store::{PAGE_MAX, SharedStore, Store};
pub use tail::Tail;
pub use watch::{Change, ChangeKind, WATCH_CAPACITY, Watch, WatchEvent};
