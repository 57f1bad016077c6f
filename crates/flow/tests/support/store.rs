//! A store whose commits can be made to fail.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::watch;
use volary_kernel::{Name, SharedClock};
use volary_store::{
    Batch, Committed, Filter, JournalPage, Key, MemoryConfig, MemoryStore, Record, Seq,
    SharedStore, Store, StoreError, Watch,
};

/// A store in memory.
pub fn memory(clock: SharedClock) -> SharedStore {
    let config = MemoryConfig::new(Name::new("node").unwrap());
    Arc::new(MemoryStore::new(config, clock))
}

/// A store that refuses commits when it is told to.
pub struct Faulty {
    inner: SharedStore,
    /// Commits that still pass; negative passes all.
    passes: AtomicI64,
    error: Mutex<StoreError>,
    refused: watch::Sender<u64>,
    /// Done once, after the next commit.
    pub after: Mutex<Option<After>>,
}

/// Something to do right after a commit, before its caller learns of it.
pub type After = Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>;

impl Faulty {
    pub fn over(inner: SharedStore) -> Arc<Self> {
        Arc::new(Self {
            inner,
            passes: AtomicI64::new(-1),
            error: Mutex::new(StoreError::Closed),
            refused: watch::channel(0).0,
            after: Mutex::default(),
        })
    }

    /// After `passes` more commits every one fails like this.
    pub fn fail_after(&self, passes: i64, error: StoreError) {
        *self.error.lock() = error;
        self.passes.store(passes, Ordering::SeqCst);
    }

    /// Waits until so many commits were refused.
    pub async fn refused(&self, count: u64) {
        let mut refused = self.refused.subscribe();
        // The sender is here.
        let _reached = refused.wait_for(|refused| *refused >= count).await;
    }

    pub fn heal(&self) {
        self.passes.store(-1, Ordering::SeqCst);
    }
}

/// What a broken disk says.
pub fn broken() -> StoreError {
    StoreError::Io {
        what: "writing",
        cause: "the disk is gone".into(),
    }
}

#[async_trait]
impl Store for Faulty {
    async fn commit(&self, batch: Batch) -> Result<Committed, StoreError> {
        let passes = self
            .passes
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |passes| {
                (passes > 0).then(|| passes - 1)
            });
        match passes {
            Ok(_) => {}
            Err(left) if left < 0 => {}
            Err(_) => {
                self.refused.send_modify(|refused| *refused += 1);
                return Err(self.error.lock().clone());
            }
        }
        let after = self.after.lock().take();
        let committed = self.inner.commit(batch).await;
        if let Some(after) = after {
            after().await;
        }
        committed
    }

    async fn get_many(&self, keys: &[Key]) -> Result<Vec<Option<Record>>, StoreError> {
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
