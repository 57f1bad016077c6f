//! The limit: group commit on SQLite written by hand for exactly these records.
//!
//! It promises durability and order, and nothing else: no versions expected, no bounds in bytes, no time to live, no hash
//! chain, no watchers. Schema, keys, page settings and the size of a group are those of the store it is compared with.

use std::path::Path;

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

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

const APPEND: &str = "INSERT INTO journal (seq, at, kind, tenant, agent, trace, body)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";

struct Request {
    record: Record,
    /// Puts beside it, without journal rows.
    more: Vec<Record>,
    done: oneshot::Sender<()>,
}

/// A handle to the writer thread; clones share it.
#[derive(Clone)]
pub struct Raw(mpsc::Sender<Request>);

impl Raw {
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

    /// Returns when the records are durable.
    pub async fn commit(&self, record: Record) {
        self.commit_all(record, Vec::new()).await;
    }

    /// The same, with more puts that have no journal row.
    pub async fn commit_all(&self, record: Record, more: Vec<Record>) {
        let (done, durable) = oneshot::channel();
        let sent = self.0.send(Request { record, more, done }).await;
        assert!(sent.is_ok(), "the writer lives as long as its handles");
        durable.await.expect("the writer answers what it took");
    }
}

/// Takes what waits, writes it in one transaction, answers, until every handle is gone.
fn write(database: &Connection, mut waiting: mpsc::Receiver<Request>) -> rusqlite::Result<()> {
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
            let mut put = database.prepare_cached(PUT)?;
            let mut append = database.prepare_cached(APPEND)?;
            for Request { record, more, .. } in &group {
                seq += 1;
                for other in more {
                    put.execute((&other.key, seq, &other.value[..]))?;
                }
                put.execute((&record.key, seq, &record.value[..]))?;
                append.execute((
                    seq,
                    record.at,
                    record.kind,
                    record.tenant,
                    record.agent,
                    record.trace.to_bytes(),
                    &record.body[..],
                ))?;
            }
        }
        database.execute_batch("COMMIT")?;
        for request in group.drain(..) {
            // A committer that was cancelled does not want to know.
            let _ = request.done.send(());
        }
    }
    Ok(())
}
