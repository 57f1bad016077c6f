//! `store.append`: durable batches of one put (256 B) and one journal row (300 B), from 64 and 512 committers at once.
//!
//! Both sides run on the same disk, a new database for every round, keys ordered by time, one writer thread that commits
//! what waits as one group, `synchronous = FULL`. Ours also checks expectations, bounds its queue in bytes, chains the hashes
//! of the journal and writes its signed head before it answers.

mod ours;
pub mod raw;

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use volary_kernel::clock::{Clock as _, SystemClock};
use volary_kernel::id::{TraceId, Uid};

use crate::figure::Figure;
use crate::rounds::interleaved;
use crate::{Failure, Plan};

/// Committers at once.
const COMMITTERS: [usize; 2] = [64, 512];

/// Places in the queue of a writer.
pub const WAITING: usize = 4096;

/// The value of every put.
static VALUE: [u8; 256] = [7; 256];

/// What one batch writes.
pub struct Record {
    pub key: String,
    pub value: Bytes,
    pub kind: &'static str,
    pub tenant: &'static str,
    pub agent: &'static str,
    pub trace: TraceId,
    pub at: i64,
    pub body: Bytes,
}

impl Record {
    /// A new record, its key ordered by time.
    fn new(body: &Bytes) -> Self {
        Self {
            key: format!("bench/{}", Uid::generate()),
            value: Bytes::from_static(&VALUE),
            kind: "bench.put",
            tenant: "default",
            agent: "bench",
            trace: TraceId::generate(),
            at: SystemClock.wall().as_micros(),
            body: body.clone(),
        }
    }
}

/// A body of 300 bytes of JSON.
fn body() -> Bytes {
    let frame = r#"{"v":1,"text":""}"#.len();
    format!(r#"{{"v":1,"text":"{}"}}"#, "x".repeat(300 - frame)).into()
}

pub fn measure(plan: &Plan) -> Result<Vec<Figure>, Failure> {
    let time = Duration::from_millis(if plan.quick { 1_500 } else { 6_000 });
    let disk = crate::scratch()?;
    COMMITTERS
        .iter()
        .map(|committers| {
            let [ours, limit] = interleaved([
                &mut || our_rate(disk.path(), *committers, time),
                &mut || raw_rate(disk.path(), *committers, time),
            ])?;
            let figure = Figure::rate(format!("store.append{committers}"), "batch/s", 0.9, &ours);
            Ok(figure.against_limit(&limit))
        })
        .collect()
}

/// Batches per second of the store.
fn our_rate(disk: &Path, committers: usize, time: Duration) -> Result<f64, Failure> {
    let folder = tempfile::tempdir_in(disk)?;
    runtime()?.block_on(async {
        let store = ours::Ours::open(&folder.path().join("ours.db")).await?;
        let commit = {
            let store = store.clone();
            move |record| {
                let store = store.clone();
                async move { store.commit(record).await }
            }
        };
        let rate = committing(committers, time, commit).await;
        store.close().await;
        rate
    })
}

/// Batches per second of the hand-written writer.
fn raw_rate(disk: &Path, committers: usize, time: Duration) -> Result<f64, Failure> {
    let folder = tempfile::tempdir_in(disk)?;
    let (raw, writer) = raw::Raw::open(&folder.path().join("raw.db"))?;
    let commit = move |record| {
        let raw = raw.clone();
        async move { raw.commit(raw::Batch(record, Vec::new())).await }
    };
    let rate = runtime()?.block_on(committing(committers, time, commit))?;
    writer.join().map_err(|_| "the writer panicked")?;
    Ok(rate)
}

/// Pairs of commits per second of the hand-written writer: the records of a task's claim, then those of its report.
pub fn raw_pairs(disk: &Path, workers: usize, count: usize) -> Result<f64, Failure> {
    let folder = tempfile::tempdir_in(disk)?;
    let (raw, writer) = raw::Raw::open(&folder.path().join("raw.db"))?;
    let rate = runtime()?.block_on(async {
        let (body, start) = (body(), SystemClock.mono());
        let each = count / workers;
        let tasks: Vec<_> = (0..workers)
            .map(|_| {
                let (raw, body) = (raw.clone(), body.clone());
                crate::bus::background(async move {
                    for _ in 0..each {
                        let claim = raw::Batch(Record::new(&body), Vec::new());
                        raw.commit(claim).await;
                        let more = vec![Record::new(&body), Record::new(&body)];
                        raw.commit(raw::Batch(Record::new(&body), more)).await;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await?;
        }
        let passed = (SystemClock.mono() - start).as_secs_f64();
        Ok::<f64, Failure>((each * workers) as f64 / passed)
    })?;
    drop(raw);
    writer.join().map_err(|_| "the writer panicked")?;
    Ok(rate)
}

/// A runtime of two workers.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
}

/// Batches per second while that many committers each wait for their last batch before the next.
async fn committing<F, C>(committers: usize, time: Duration, commit: C) -> Result<f64, Failure>
where
    F: Future<Output = ()> + Send + 'static,
    C: Fn(Record) -> F + Clone + Send + 'static,
{
    let body = body();
    let start = SystemClock.mono();
    let tasks: Vec<_> = (0..committers)
        .map(|_| {
            let (commit, body) = (commit.clone(), body.clone());
            crate::bus::background(async move {
                let mut batches = 0u64;
                while SystemClock.mono() - start < time {
                    commit(Record::new(&body)).await;
                    batches += 1;
                }
                batches
            })
        })
        .collect();
    let mut batches = 0;
    for task in tasks {
        batches += task.await?;
    }
    let passed = SystemClock.mono() - start;
    Ok(batches as f64 / passed.as_secs_f64())
}
