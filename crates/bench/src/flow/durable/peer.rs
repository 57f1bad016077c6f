//! The same batches by hand.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use volary_kernel::clock::{Clock as _, SystemClock};
use volary_kernel::id::{TraceId, Uid};

use super::seen::Written;
use crate::Failure;
use crate::bus::background;
use crate::store::raw::{JournalRow, Raw, Rewrite, Rows};

/// One batch of one trace.
struct Filled {
    all: Arc<[Written]>,
    index: usize,
    keys: Vec<String>,
    trace: TraceId,
    at: i64,
}

impl Filled {
    fn new(all: &Arc<[Written]>, index: usize, uid: Uid, trace: TraceId) -> Self {
        Self {
            all: all.clone(),
            index,
            keys: all[index].keys(uid),
            trace,
            at: SystemClock.wall().as_micros(),
        }
    }
}

impl Rows for Filled {
    fn write(&self, to: &mut Rewrite<'_>) -> rusqlite::Result<()> {
        let written = &self.all[self.index];
        let (puts, removes) = self.keys.split_at(written.puts.len());
        for (key, (_, value)) in puts.iter().zip(&written.puts) {
            to.put(key, value)?;
        }
        for key in removes {
            to.remove(key)?;
        }
        for row in &written.rows {
            to.append(&JournalRow {
                at: self.at,
                kind: &row.kind,
                tenant: &row.tenant,
                agent: None,
                trace: self.trace,
                body: &row.body,
            })?;
        }
        Ok(())
    }
}

/// Traces per second while that many are under way.
pub fn rate(
    disk: &Path,
    batches: &Arc<[Written]>,
    traces: usize,
    time: Duration,
) -> Result<f64, Failure> {
    let folder = tempfile::tempdir_in(disk)?;
    let (raw, writer) = Raw::open(&folder.path().join("raw.db"))?;
    let rate = crate::store::runtime()?.block_on(async {
        let start = SystemClock.mono();
        let tasks: Vec<_> = (0..traces)
            .map(|_| {
                let (raw, batches) = (raw.clone(), batches.clone());
                background(async move {
                    let mut count = 0_u64;
                    while SystemClock.mono() - start < time {
                        trace(&raw, &batches).await;
                        count += 1;
                    }
                    count
                })
            })
            .collect();
        let mut count = 0;
        for task in tasks {
            count += task.await?;
        }
        let passed = SystemClock.mono() - start;
        Ok::<f64, Failure>(count as f64 / passed.as_secs_f64())
    });
    drop(raw);
    writer.join().map_err(|_| "the writer panicked")?;
    rate
}

/// All batches of one trace; waits for each but the last.
async fn trace(raw: &Raw<Filled>, batches: &Arc<[Written]>) {
    let (uid, trace) = (Uid::generate(), TraceId::generate());
    let last = batches.len().saturating_sub(1);
    for index in 0..last {
        raw.commit(Filled::new(batches, index, uid, trace)).await;
    }
    let _nobody_waits = raw.send(Filled::new(batches, last, uid, trace)).await;
}
