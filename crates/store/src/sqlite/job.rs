//! Batches on their way to the writer: hashed by whoever commits, waiting in a queue bounded in bytes.

use parking_lot::{Condvar, Mutex};
use tokio::sync::{Semaphore, oneshot};
use volary_kernel::{Name, clock::Timestamp, id::Tenant};

use crate::{
    batch::{Batch, Committed, Expect, Hook, Op},
    entry::{Cause, Entry},
    error::StoreError,
    journal::chain::{self, Hash},
    key::Key,
};

/// Bytes that may wait for the writer, in units of [`UNIT`]; beyond, committers wait. 64 MiB.
const UNITS: u32 = 65_536;
const UNIT: usize = 1024;

/// A change of a record, ready to be written.
pub(super) enum Write {
    Put {
        key: Key,
        value: bytes::Bytes,
        expires: Option<i64>,
        sum: u64,
    },
    Delete {
        key: Key,
    },
}

/// A journal entry, ready to be linked.
pub(super) struct Row {
    pub kind: std::borrow::Cow<'static, str>,
    pub tenant: Tenant,
    pub agent: Option<Name>,
    pub trace: Option<[u8; 16]>,
    pub cause: Cause,
    pub body: bytes::Bytes,
    pub digest: Hash,
}

/// What the committer is told. It also gets back what was written, to free it on its own thread: the writer has more
/// to do.
pub(super) struct Answer {
    pub end: Result<Committed, StoreError>,
    _spent: (Vec<Write>, Vec<Row>),
}

impl Answer {
    pub(super) const fn new(
        end: Result<Committed, StoreError>,
        writes: Vec<Write>,
        rows: Vec<Row>,
    ) -> Self {
        Self {
            end,
            _spent: (writes, rows),
        }
    }
}

/// A batch on its way.
pub(super) struct Job {
    pub checks: Vec<(Key, Expect)>,
    pub writes: Vec<Write>,
    pub rows: Vec<Row>,
    pub hooks: Vec<Hook>,
    pub intake: bool,
    pub weight: usize,
    pub reply: oneshot::Sender<Answer>,
}

impl Job {
    /// Does all the work that needs no writer.
    pub(super) fn prepare(
        (batch, weight): (Batch, usize),
        node: &str,
        now: Timestamp,
        reply: oneshot::Sender<Answer>,
    ) -> Self {
        let Batch {
            ops,
            entries,
            hooks,
            intake,
            ..
        } = batch;
        let mut checks = Vec::new();
        let mut writes = Vec::with_capacity(ops.len());
        for op in ops {
            if op.expect() != Expect::Any {
                checks.push((op.key().clone(), op.expect()));
            }
            match op {
                Op::Put {
                    key, value, ttl, ..
                } => {
                    let expires = ttl.map(|ttl| (now + ttl).as_micros());
                    let sum = chain::record_sum(&key, &value, expires);
                    writes.push(Write::Put {
                        key,
                        value,
                        expires,
                        sum,
                    });
                }
                Op::Delete { key, .. } => writes.push(Write::Delete { key }),
                Op::Check { .. } => {}
            }
        }
        let rows = entries
            .into_iter()
            .map(|entry| Row::new(entry, node))
            .collect();
        Self {
            checks,
            writes,
            rows,
            hooks,
            intake,
            weight,
            reply,
        }
    }
}

impl Row {
    fn new(entry: Entry, node: &str) -> Self {
        let Entry {
            kind,
            tenant,
            agent,
            trace,
            cause,
            body,
        } = entry;
        let trace = trace.map(volary_kernel::TraceId::to_bytes);
        let digest = chain::digest(&chain::Row {
            node,
            kind: &kind,
            tenant: tenant.as_str(),
            agent: agent.as_ref().map(Name::as_str),
            trace,
            body: &body,
        });
        Self {
            kind,
            tenant,
            agent,
            trace,
            cause,
            body,
            digest,
        }
    }
}

/// What the writer is asked to do.
#[derive(Default)]
struct Waiting {
    jobs: Vec<Job>,
    /// Those who wait for a round of housekeeping.
    keep: Vec<oneshot::Sender<Result<(), StoreError>>>,
    idle: bool,
    closed: bool,
}

/// What the writer wakes up to.
pub(super) enum Call {
    Jobs,
    Keep(Vec<oneshot::Sender<Result<(), StoreError>>>),
    /// Nothing came for a while.
    Quiet,
    Closed,
}

/// The way to the writer.
pub(super) struct Inbox {
    waiting: Mutex<Waiting>,
    news: Condvar,
    room: Semaphore,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self {
            waiting: Mutex::default(),
            news: Condvar::new(),
            room: Semaphore::new(UNITS as usize),
        }
    }

    /// Waits for room for `weight` bytes. What is got must be sent, or given back with [`Inbox::freed`].
    pub(super) async fn room(&self, weight: usize) -> Result<(), StoreError> {
        let permit = self
            .room
            .acquire_many(units(weight))
            .await
            .map_err(|_| StoreError::Closed)?;
        permit.forget();
        Ok(())
    }

    /// Gives room back.
    pub(super) fn freed(&self, units: u32) {
        self.room.add_permits(units as usize);
    }

    pub(super) fn send(&self, job: Job) -> Result<(), StoreError> {
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return Err(StoreError::Closed);
        }
        waiting.jobs.push(job);
        if std::mem::take(&mut waiting.idle) {
            self.news.notify_one();
        }
        Ok(())
    }

    /// Asks for a round of housekeeping.
    pub(super) fn keep(&self, reply: oneshot::Sender<Result<(), StoreError>>) {
        let mut waiting = self.waiting.lock();
        if !waiting.closed {
            waiting.keep.push(reply);
            waiting.idle = false;
            self.news.notify_one();
        }
    }

    /// Lets the writer finish what waits, and end.
    pub(super) fn close(&self) {
        self.waiting.lock().closed = true;
        self.room.close();
        self.news.notify_one();
    }

    /// Waits for something to do, at most for `patience`; `jobs` must be empty and is filled.
    pub(super) fn wait(&self, jobs: &mut Vec<Job>, patience: std::time::Duration) -> Call {
        let mut waiting = self.waiting.lock();
        if waiting.jobs.is_empty() && waiting.keep.is_empty() && !waiting.closed {
            waiting.idle = true;
            self.news.wait_for(&mut waiting, patience);
            waiting.idle = false;
        }
        if !waiting.jobs.is_empty() {
            std::mem::swap(&mut waiting.jobs, jobs);
            return Call::Jobs;
        }
        if !waiting.keep.is_empty() {
            return Call::Keep(std::mem::take(&mut waiting.keep));
        }
        if waiting.closed {
            Call::Closed
        } else {
            Call::Quiet
        }
    }

    /// Takes what came in the meantime; `jobs` must be empty.
    pub(super) fn more(&self, jobs: &mut Vec<Job>) -> bool {
        std::mem::swap(&mut self.waiting.lock().jobs, jobs);
        !jobs.is_empty()
    }
}

/// Room that a batch of `weight` bytes takes.
pub(super) fn units(weight: usize) -> u32 {
    u32::try_from(weight / UNIT + 1).unwrap_or(UNITS).min(UNITS)
}
