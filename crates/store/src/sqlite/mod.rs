//! The durable store: SQLite in one file, one writing thread with group commit, a few reading connections.
//!
//! ```text
//!   commit ─▶ hash bodies ─▶ inbox (bounded) ─▶ writer thread ─▶ database (WAL, synchronous=FULL)
//!                                                     └────────▶ signed head, before the acknowledgement
//!   get, scan, read ─▶ reading connections, on threads that may block
//! ```

pub(crate) mod apply;
mod config;
mod housekeep;
mod job;
mod lock;
pub(crate) mod open;
pub(crate) mod reader;
mod retention;
pub(crate) mod rows;
pub(crate) mod schema;
mod shared;
mod sign;
mod space;
mod writer;

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{oneshot, watch as latest};
use volary_kernel::{Name, Tenant, clock::SharedClock};

pub use self::config::{
    DEFAULT_BUSY, DEFAULT_MAX_AGE, DEFAULT_MAX_BYTES, DEFAULT_MIN_FREE_DISK, DEFAULT_READERS,
    DEFAULT_RESERVE, OnDamage, Retention, Sharing, SqliteConfig,
};
pub use self::shared::SHARED_POLL;
use self::{
    job::{Inbox, Job, units},
    lock::QueuesLock,
    reader::Readers,
    writer::{Shared, Writer},
};
use crate::{
    batch::{Batch, Committed},
    entry::{Entry, Filter, JournalPage, Seq},
    error::StoreError,
    key::{Key, Record},
    store::Store,
    watch::{Watch, Watchers},
};

/// A durable store. Clones share it; the last one dropped, or [`SqliteStore::close`], ends its writer.
#[derive(Clone)]
pub struct SqliteStore {
    inner: Arc<Inner>,
}

struct Inner {
    config: Arc<SqliteConfig>,
    clock: SharedClock,
    shared: Arc<Shared>,
    readers: Arc<Readers>,
    head: latest::Receiver<Seq>,
    ended: tokio::sync::Mutex<Option<oneshot::Receiver<()>>>,
    /// Shared: held by the process that runs the queues.
    queues: parking_lot::Mutex<Option<QueuesLock>>,
}

impl SqliteStore {
    /// Opens the database, making it if it is not there, after comparing it with its signed head.
    ///
    /// # Errors
    /// [`StoreError::InUse`] if another node has it open; [`StoreError::Mixed`] if another opener says otherwise about
    /// [`Sharing`]; [`StoreError::Busy`]; [`StoreError::Corrupt`], with the first missing entry, if it
    /// is not what the signed head says (and [`OnDamage::Refuse`]); [`StoreError::Invalid`] if it belongs to another
    /// node; [`StoreError::Io`].
    pub async fn open(config: SqliteConfig, clock: SharedClock) -> Result<Self, StoreError> {
        let opening = tokio::task::spawn_blocking(move || Self::open_here(config, clock));
        let (this, accepted) = opening
            .await
            .map_err(|error| StoreError::io("opening the database", error))??;
        if let Some(StoreError::Corrupt { what, seq }) = accepted {
            let body = serde_json::json!({"v": 1, "problem": what, "first_lost": seq});
            let mut tx = Batch::new();
            tx.append(Entry::json(
                "store.accepted_loss",
                Tenant::default(),
                &body,
            )?);
            this.commit(tx).await?;
        }
        Ok(this)
    }

    fn open_here(
        config: SqliteConfig,
        clock: SharedClock,
    ) -> Result<(Self, Option<StoreError>), StoreError> {
        let config = Arc::new(config);
        let mut opened = open::open(&config, clock.wall())?;
        let accepted = opened.accepted.take();
        let readers = Arc::new(Readers::open(&config.path, config.readers)?);
        let (head, seen) = latest::channel(opened.progress.seq);
        let shared = Arc::new(Shared {
            inbox: Inbox::new(),
            watchers: Watchers::default(),
        });
        let (writer, conn) =
            Writer::new(config.clone(), clock.clone(), shared.clone(), head, opened)?;
        let (end, ended) = oneshot::channel();
        let thread = std::thread::Builder::new().name("volary-store".into());
        let run = move || {
            writer.run(conn);
            // Dropping it is the message.
            drop(end);
        };
        thread
            .spawn(run)
            .map_err(|error| StoreError::io("starting the writer", error))?;
        let ended = tokio::sync::Mutex::new(Some(ended));
        let inner = Inner {
            config,
            clock,
            shared,
            readers,
            head: seen,
            ended,
            queues: parking_lot::Mutex::default(),
        };
        Ok((
            Self {
                inner: Arc::new(inner),
            },
            accepted,
        ))
    }

    /// Removes now what is due: records past their time, old journal entries. The writer does so by itself every few
    /// seconds.
    ///
    /// # Errors
    /// [`StoreError::Closed`]; errors of the database.
    pub async fn housekeep(&self) -> Result<(), StoreError> {
        let (reply, end) = oneshot::channel();
        self.inner.shared.inbox.keep(reply);
        end.await.map_err(|_| StoreError::Closed)?
    }

    /// Finishes what was begun, moves the log into the database, and lets go of it. Further calls get
    /// [`StoreError::Closed`]. Closing twice is no error.
    pub async fn close(&self) {
        self.inner.readers.close();
        self.inner.shared.inbox.close();
        if let Some(ended) = self.inner.ended.lock().await.take() {
            // The writer's end is what is waited for; it sends nothing.
            let _ = ended.await;
        }
        drop(self.inner.queues.lock().take());
    }

    /// How it was opened.
    pub fn config(&self) -> &SqliteConfig {
        &self.inner.config
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn commit(&self, batch: Batch) -> Result<Committed, StoreError> {
        let weight = batch.validate()?;
        let Inner {
            config,
            clock,
            shared,
            ..
        } = &*self.inner;
        shared.inbox.room(weight).await?;
        let (reply, end) = oneshot::channel();
        let job = Job::prepare((batch, weight), config.node.as_str(), clock.wall(), reply);
        if let Err(error) = shared.inbox.send(job) {
            shared.inbox.freed(units(weight));
            return Err(error);
        }
        end.await.map_err(|_| StoreError::Closed)?.end
    }

    async fn get_many(&self, keys: &[Key]) -> Result<Vec<Option<Record>>, StoreError> {
        let (keys, now) = (keys.to_vec(), self.inner.clock.wall());
        self.inner
            .readers
            .run(move |conn| reader::get_many(conn, &keys, now))
            .await
    }

    async fn scan(
        &self,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<Record>, StoreError> {
        let (prefix, after, now) = (prefix.to_owned(), after.cloned(), self.inner.clock.wall());
        self.inner
            .readers
            .run(move |conn| reader::scan(conn, &prefix, after.as_ref(), limit, now))
            .await
    }

    async fn read(
        &self,
        from: Seq,
        filter: &Filter,
        limit: usize,
    ) -> Result<JournalPage, StoreError> {
        let (filter, node) = (filter.clone(), self.inner.config.node.clone());
        self.inner
            .readers
            .run(move |conn| reader::journal(conn, &node, from, &filter, limit))
            .await
    }

    fn watch(&self, prefix: &str) -> Watch {
        self.inner.shared.watchers.watch(prefix)
    }

    async fn own_queues(&self) -> Result<(), StoreError> {
        let mut queues = self.inner.queues.lock();
        if self.inner.config.sharing == Sharing::Shared && queues.is_none() {
            *queues = Some(QueuesLock::take(&self.inner.config.path)?);
        }
        Ok(())
    }

    fn head(&self) -> latest::Receiver<Seq> {
        self.inner.head.clone()
    }

    fn node(&self) -> &Name {
        &self.inner.config.node
    }

    fn clock(&self) -> &SharedClock {
        &self.inner.clock
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.readers.close();
        self.shared.inbox.close();
    }
}
