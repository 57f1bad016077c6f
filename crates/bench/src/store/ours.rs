//! The store as a node opens it, but for retention: within a round nothing is to be removed.

use std::path::Path;
use std::sync::Arc;

use volary_kernel::clock::SystemClock;
use volary_kernel::id::{Name, Tenant};
use volary_kernel::sign::SigningKey;
use volary_store::{Batch, Entry, Expect, Key, SqliteConfig, SqliteStore, Store as _};

use super::Record;
use crate::Failure;

/// More than a round can write.
const ROOM: u64 = 64 << 30;

/// A handle to the store; clones share it.
#[derive(Clone)]
pub struct Ours {
    store: Arc<SqliteStore>,
    tenant: Tenant,
    agent: Name,
}

impl Ours {
    pub async fn open(path: &Path) -> Result<Self, Failure> {
        let key = Arc::new(SigningKey::generate()?);
        let mut config = SqliteConfig::new(path, "bench".parse()?, key);
        config.retention.max_bytes = ROOM;
        let store = SqliteStore::open(config, SystemClock::shared()).await?;
        Ok(Self {
            store: Arc::new(store),
            tenant: Tenant::default(),
            agent: "bench".parse()?,
        })
    }

    /// Returns when the records are durable and the head that covers them is signed.
    pub async fn commit(&self, record: Record) {
        let key = Key::new(&record.key).expect("it is a good key");
        let entry = Entry::new(record.kind, self.tenant.clone(), record.body);
        let mut batch = Batch::new();
        batch.put(key, record.value, Expect::Any);
        batch.append(entry.agent(self.agent.clone()).trace(record.trace));
        let committed = self.store.commit(batch).await;
        committed.expect("the disk takes what is written");
    }

    pub async fn close(&self) {
        self.store.close().await;
    }
}
