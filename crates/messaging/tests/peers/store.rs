//! Stores on top of others whose commits go otherwise.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;
use volary_kernel::{Name, clock::SharedClock};
use volary_store::{
    Batch, Committed, Filter, JournalPage, Key, Record, Seq, SharedStore, Store, StoreError, Watch,
};

/// What becomes of commits and reads on their way to a store.
#[async_trait]
pub trait Detour: Send + Sync + 'static {
    async fn commit(&self, inner: &SharedStore, batch: Batch) -> Result<Committed, StoreError>;

    /// Before records are read.
    fn get(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// A store behind a detour; all but commits and reads by key goes straight through.
struct Over<D> {
    inner: SharedStore,
    detour: D,
}

pub fn over(inner: SharedStore, detour: impl Detour) -> SharedStore {
    Arc::new(Over { inner, detour })
}

#[async_trait]
impl<D: Detour> Store for Over<D> {
    async fn commit(&self, batch: Batch) -> Result<Committed, StoreError> {
        self.detour.commit(&self.inner, batch).await
    }

    async fn get_many(&self, keys: &[Key]) -> Result<Vec<Option<Record>>, StoreError> {
        self.detour.get()?;
        self.inner.get_many(keys).await
    }

    async fn scan(
        &self,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<Record>, StoreError> {
        self.inner.scan(prefix, after, limit).await
    }

    async fn read(
        &self,
        from: Seq,
        filter: &Filter,
        limit: usize,
    ) -> Result<JournalPage, StoreError> {
        self.inner.read(from, filter, limit).await
    }

    fn watch(&self, prefix: &str) -> Watch {
        self.inner.watch(prefix)
    }

    fn head(&self) -> watch::Receiver<Seq> {
        self.inner.head()
    }

    fn node(&self) -> &Name {
        self.inner.node()
    }

    fn clock(&self) -> &SharedClock {
        self.inner.clock()
    }
}
