//! The limit: group commit on SQLite written by hand for exactly the records that are to be written.
//!
//! It promises durability and order, and nothing else: no versions expected, no bounds in bytes, no time to live, no hash
//! chain, no watchers. Schema, keys, page settings and the size of a group are those of the store it is compared with.

use std::path::Path;

use rusqlite::{CachedStatement, Connection};
use tokio::sync::{mpsc, oneshot};
use volary_kernel::id::TraceId;

use super::{Record, WAITING};
use crate::Failure;

/// Most batches of one transaction.
const GROUP: usize = 1024;

const SCHEMA: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    PRAGMA wal_autocheckpoint = 4000;
    PRAGMA cache_size = -16384;
    CREATE TABLE record (
        key TEXT PRIMARY KEY, version INTEGER NOT NULL, expires INTEGER, value BLOB NOT NULL
    ) WITHOUT ROWID, STRICT;
    CREATE TABLE journal (
        seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, kind TEXT NOT NULL, tenant TEXT NOT NULL, agent TEXT,
        trace BLOB, cause INTEGER, body BLOB NOT NULL
    ) STRICT;";

const PUT: &str = "INSERT INTO record (key, version, value) VALUES (?1, ?2, ?3)
    ON CONFLICT (key) DO UPDATE SET version = excluded.version, value = excluded.value";

const REMOVE: &str = "DELETE FROM record WHERE key = ?1";

const APPEND: &str = "INSERT INTO journal (seq, at, kind, tenant, agent, trace, body)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";

/// What one committer writes together.
pub trait Rows: Send + 'static {
    fn write(&self, to: &mut Rewrite<'_>) -> rusqlite::Result<()>;
}

/// A row of the journal.
pub struct JournalRow<'a> {
    pub at: i64,
    pub kind: &'a str,
    pub tenant: &'a str,
    pub agent: Option<&'a str>,
    pub trace: TraceId,
    pub body: &'a [u8],
}

/// The transaction under way.
pub struct Rewrite<'conn> {
    put: CachedStatement<'conn>,
    remove: CachedStatement<'conn>,
    append: CachedStatement<'conn>,
    seq: i64,
}

impl<'conn> Rewrite<'conn> {
    fn new(database: &'conn Connection, seq: i64) -> rusqlite::Result<Self> {
        Ok(Self {
            put: database.prepare_cached(PUT)?,
            remove: database.prepare_cached(REMOVE)?,
            append: database.prepare_cached(APPEND)?,
            seq,
        })
    }

    pub fn put(&mut self, key: &str, value: &[u8]) -> rusqlite::Result<()> {
        self.put.execute((key, self.seq, value)).map(drop)
    }

    pub fn remove(&mut self, key: &str) -> rusqlite::Result<()> {
        self.remove.execute((key,)).map(drop)
    }

    pub fn append(&mut self, row: &JournalRow<'_>) -> rusqlite::Result<()> {
        let JournalRow {
            at,
            kind,
            tenant,
            agent,
            trace,
            body,
        } = row;
        let trace = trace.to_bytes();
        let row = (self.seq, at, kind, tenant, agent, trace, body);
        self.append.execute(row).map(drop)
    }
}

/// A record, and records beside it that have no journal row.
pub struct Batch(pub Record, pub Vec<Record>);

impl Rows for Batch {
    fn write(&self, to: &mut Rewrite<'_>) -> rusqlite::Result<()> {
        let Self(record, more) = self;
        for other in more {
            to.put(&other.key, &other.value)?;
        }
        to.put(&record.key, &record.value)?;
        to.append(&JournalRow {
            at: record.at,
            kind: record.kind,
            tenant: record.tenant,
            agent: Some(record.agent),
            trace: record.trace,
            body: &record.body,
        })
    }
}

struct Request<R> {
    rows: R,
    done: oneshot::Sender<()>,
}

/// A handle to the writer thread; clones share it.
pub struct Raw<R>(mpsc::Sender<Request<R>>);

impl<R> Clone for Raw<R> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<R: Rows> Raw<R> {
    /// Opens a new database and starts its writer.
    pub fn open(path: &Path) -> Result<(Self, std::thread::JoinHandle<()>), Failure> {
        let database = Connection::open(path)?;
        database.execute_batch(SCHEMA)?;
        let (requests, waiting) = mpsc::channel(WAITING);
        let writer = std::thread::Builder::new()
            .name("raw-writer".to_owned())
            .spawn(move || write(&database, waiting).expect("the disk takes what is written"))?;
        Ok((Self(requests), writer))
    }

    /// Returns when the rows are durable.
    pub async fn commit(&self, rows: R) {
        let durable = self.send(rows).await;
        durable.await.expect("the writer answers what it took");
    }

    /// Returns when the writer has the rows.
    pub async fn send(&self, rows: R) -> oneshot::Receiver<()> {
        let (done, durable) = oneshot::channel();
        let sent = self.0.send(Request { rows, done }).await;
        assert!(sent.is_ok(), "the writer lives as long as its handles");
        durable
    }
}

/// Takes what waits, writes it in one transaction, answers, until every handle is gone.
fn write<R: Rows>(
    database: &Connection,
    mut waiting: mpsc::Receiver<Request<R>>,
) -> rusqlite::Result<()> {
    let mut group = Vec::with_capacity(GROUP);
    let mut seq = 0;
    while waiting.blocking_recv_many(&mut group, GROUP) > 0 {
        // Latecomers: those who were woken by the last commit and are on their way.
        while group.len() < GROUP {
            let Ok(request) = waiting.try_recv() else {
                break;
            };
            group.push(request);
        }
        database.execute_batch("BEGIN IMMEDIATE")?;
        {
            let mut to = Rewrite::new(database, seq)?;
            for Request { rows, .. } in &group {
                to.seq += 1;
                rows.write(&mut to)?;
            }
            seq = to.seq;
        }
        database.execute_batch("COMMIT")?;
        for request in group.drain(..) {
            // A committer that was cancelled does not want to know.
            let _ = request.done.send(());
        }
    }
    Ok(())
}
