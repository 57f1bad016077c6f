//! A database in a directory of its own, and what is needed to look into it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tempfile::TempDir;
use volary_kernel::{ManualClock, Name, Tenant, sign::SigningKey};
use volary_store::{
    Batch, Committed, Entry, Expect, Key, SqliteConfig, SqliteStore, Store as _, StoreError,
    journal::{VerifyReport, verify},
};

pub struct Bench {
    pub dir: TempDir,
    pub key: Arc<SigningKey>,
    pub clock: ManualClock,
}

impl Bench {
    pub fn new() -> Self {
        let key = Arc::new(SigningKey::generate().unwrap());
        Self {
            dir: tempfile::tempdir().unwrap(),
            key,
            clock: ManualClock::default(),
        }
    }

    pub fn database(&self) -> PathBuf {
        self.dir.path().join("volary.db")
    }

    pub fn config(&self) -> SqliteConfig {
        SqliteConfig {
            min_free_disk: 0,
            reserve: 0,
            ..config_at(&self.database(), self.key.clone())
        }
    }

    pub async fn open(&self) -> SqliteStore {
        self.open_with(self.config()).await.unwrap()
    }

    pub async fn open_with(&self, config: SqliteConfig) -> Result<SqliteStore, StoreError> {
        SqliteStore::open(config, self.clock.shared()).await
    }

    pub fn verify(&self) -> VerifyReport {
        verify(&self.database(), &self.key.public()).unwrap()
    }

    /// The files as a killed process would leave them, in a directory of their own.
    pub fn snapshot(&self) -> Self {
        let copy = Self {
            dir: tempfile::tempdir().unwrap(),
            key: self.key.clone(),
            clock: self.clock.clone(),
        };
        copy.take_from(
            self.dir.path(),
            &["volary.db", "volary.db-wal", "volary.db.head"],
        );
        copy
    }

    /// Puts files of `from` in place of those here; what is not there is removed here.
    pub fn take_from(&self, from: &Path, files: &[&str]) {
        for file in files {
            let (old, new) = (from.join(file), self.dir.path().join(file));
            if old.exists() {
                std::fs::copy(&old, &new).unwrap();
            } else if new.exists() {
                std::fs::remove_file(&new).unwrap();
            }
        }
        let _ = std::fs::remove_file(self.dir.path().join("volary.db-shm"));
    }

    pub fn sql(&self, sql: &str) {
        let conn = rusqlite::Connection::open(self.database()).unwrap();
        conn.execute_batch(sql).unwrap();
    }
}

pub fn config_at(path: &Path, key: Arc<SigningKey>) -> SqliteConfig {
    SqliteConfig::new(path, Name::new("node").unwrap(), key)
}

pub fn entry(body: impl Into<String>) -> Entry {
    Entry::new("test.entry", Tenant::default(), body.into())
}

/// One put and one entry.
pub async fn write(store: &SqliteStore, key: &str, value: &str) -> Result<Committed, StoreError> {
    store.commit(batch(key, value)).await
}

pub fn batch(key: &str, value: &str) -> Batch {
    let mut tx = Batch::new();
    tx.put(Key::new(key).unwrap(), value.to_owned(), Expect::Any);
    tx.append(entry(format!("{{\"v\":1,\"value\":\"{value}\"}}")));
    tx
}

/// Everything that was stored, as text; an error if it cannot be read.
pub fn content(database: &Path) -> rusqlite::Result<Vec<String>> {
    let conn = rusqlite::Connection::open_with_flags(
        database,
        rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY,
    )?;
    let mut all = Vec::new();
    for table in ["record", "journal", "chunk"] {
        let mut statement = conn.prepare(&format!("SELECT * FROM {table} ORDER BY 1"))?;
        let columns = statement.column_count();
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let values: Result<Vec<_>, _> = (0..columns)
                .map(|column| row.get::<_, rusqlite::types::Value>(column))
                .collect();
            all.push(format!("{table} {:?}", values?));
        }
    }
    Ok(all)
}

/// Whether the long form of a test was asked for.
#[expect(
    clippy::disallowed_methods,
    reason = "tests are told by the environment how much to do"
)]
pub fn thorough() -> bool {
    std::env::var_os("VOLARY_TEST_FULL").is_some()
}

/// Numbers that look random and are the same in every run.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}
