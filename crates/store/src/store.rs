//! The Store seam.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;
use volary_kernel::{clock::SharedClock, id::Name};

use crate::{
    batch::{Batch, Committed},
    entry::{Filter, JournalPage, Seq},
    error::StoreError,
    key::{Key, Record},
    watch::Watch,
};

/// Most records one `scan` and most entries one `read` return.
pub const PAGE_MAX: usize = 4096;

/// A store that many parts share.
pub type SharedStore = Arc<dyn Store>;

/// Keyed records and a journal, changed together by atomic commits.
///
/// Contract, held to by the conformance suite (feature `test-util`):
/// - **Atomic, durable, ordered.** A commit that returned `Ok` is there after any crash, whole; a reader never sees
///   half of one. Commits have one order; versions and sequence numbers grow along it. A commit that was begun and
///   whose future is then dropped is either applied whole or not at all.
/// - **Conflicts are typed.** Of two commits that expect the same version, one gets [`StoreError::Conflict`]; nobody
///   else's commit is disturbed by it.
/// - **Read your writes.** What a commit wrote is seen by every read that begins after it returned.
/// - **Time to live is by the wall clock.** A record past its time is invisible at once to reads and expectations;
///   it is removed a little later.
/// - **A failed read never leads to a write,** and what fails its checksum is an error, never a value.
/// - **Bounded.** Commits wait for room in a queue bounded in count and bytes; pages are at most [`PAGE_MAX`].
/// - No method blocks its thread.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Applies `batch` and returns when it is durable. Hooks of the batch have run by then.
    ///
    /// # Errors
    /// See [`StoreError`]; nothing was applied, but for [`StoreError::Io`], where that is known only after the next
    /// open.
    async fn commit(&self, batch: Batch) -> Result<Committed, StoreError>;

    /// The record of this key.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`], [`StoreError::Io`], [`StoreError::Closed`].
    async fn get(&self, key: &Key) -> Result<Option<Record>, StoreError> {
        Ok(self
            .get_many(std::slice::from_ref(key))
            .await?
            .pop()
            .flatten())
    }

    /// The records of these keys, of one moment, in the same order.
    ///
    /// # Errors
    /// As [`Store::get`].
    async fn get_many(&self, keys: &[Key]) -> Result<Vec<Option<Record>>, StoreError>;

    /// Up to `limit` records whose keys begin with `prefix`, in key order, after `after` if given. Fewer than `limit`
    /// (and than [`PAGE_MAX`]) means the end. Each page is of one moment; a record that is there during the whole
    /// walk is seen exactly once.
    ///
    /// # Errors
    /// As [`Store::get`].
    async fn scan(
        &self,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<Record>, StoreError>;

    /// Up to `limit` journal entries at or after `from`.
    ///
    /// # Errors
    /// As [`Store::get`].
    async fn read(
        &self,
        from: Seq,
        filter: &Filter,
        limit: usize,
    ) -> Result<JournalPage, StoreError>;

    /// Changes of records whose keys begin with `prefix`, from now on.
    fn watch(&self, prefix: &str) -> Watch;

    /// Makes sure that this process is the one that runs queues on this store. Only a store that several processes share
    /// can refuse.
    ///
    /// # Errors
    /// [`StoreError::QueuesInUse`].
    async fn own_queues(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// The last committed entry, and news of it.
    fn head(&self) -> watch::Receiver<Seq>;

    /// The node whose journal this is.
    fn node(&self) -> &Name;

    /// The clock this store lives by.
    fn clock(&self) -> &SharedClock;
}
