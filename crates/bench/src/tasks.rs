//! `tasks.claim_report`: tasks claimed and reported per second on SQLite, 64 workers that each take one at a time.
//!
//! Beside it, the raw group commit of the same records by hand, two commits for each task: the claim (one put, one journal
//! row) and the report (three puts for the two removals, the record of the task and its result; one journal row). Ours also
//! keeps an index, fences each report by its claim, chains the journal and signs its head.

use std::{path::Path, sync::Arc, time::Duration};

use serde_json::json;
use volary_kernel::{
    Name, Tenant,
    clock::{Clock as _, SharedClock, SystemClock},
    metric::Metrics,
    secret::Redactor,
    sign::SigningKey,
};
use volary_messaging::task::{NewTask, TaskConfig, TaskFilter, TaskManager, Worker};
use volary_store::{Batch, Queues, SharedStore, SqliteConfig, SqliteStore};

use crate::{Failure, Plan, figure::Figure, rounds::interleaved, store};

/// Workers at once.
const WORKERS: usize = 64;
/// Tasks of one batch while the tasks are submitted, which is not measured.
const BATCH: usize = 500;
/// The ratio to reach: a claim and a report write twice the records of the hand-written commit, and check them.
const BAR: f64 = 0.3;

pub fn measure(plan: &Plan) -> Result<Vec<Figure>, Failure> {
    let count = if plan.quick { 4_000 } else { 20_000 };
    let disk = crate::scratch()?;
    let [ours, limit] = interleaved([&mut || our_rate(disk.path(), count), &mut || {
        store::raw_pairs(disk.path(), WORKERS, count)
    }])?;
    let figure = Figure::rate("tasks.claim_report".to_owned(), "task/s", BAR, &ours);
    Ok(vec![figure.against_limit(&limit)])
}

fn our_rate(disk: &Path, count: usize) -> Result<f64, Failure> {
    let folder = tempfile::tempdir_in(disk)?;
    store::runtime()?.block_on(async {
        let key = Arc::new(SigningKey::generate()?);
        let config = SqliteConfig::new(folder.path().join("ours.db"), Name::new("bench")?, key);
        let clock: SharedClock = Arc::new(SystemClock);
        let sqlite = SqliteStore::open(config, clock).await?;
        let store: SharedStore = Arc::new(sqlite.clone());
        let queues = Queues::open(store.clone()).await?;
        let (config, metrics) = (TaskConfig::default(), Metrics::default());
        let tasks =
            TaskManager::open(queues, store.clone(), config, Redactor::default(), &metrics).await?;
        submit(&tasks, &store, count).await?;
        let rate = work(&tasks, count).await;
        sqlite.close().await;
        rate
    })
}

async fn submit(tasks: &TaskManager, store: &SharedStore, count: usize) -> Result<(), Failure> {
    let (tenant, by) = (Tenant::default(), Name::new("boss")?);
    for _ in 0..count / BATCH {
        let mut tx = Batch::new();
        for _ in 0..BATCH {
            let new = NewTask {
                objective: json!({"text": "x".repeat(200)}),
                ..NewTask::default()
            };
            tasks.submit_in(&mut tx, &tenant, &by, new)?;
        }
        store.commit(tx).await?;
    }
    Ok(())
}

/// Tasks per second until all are done.
async fn work(tasks: &TaskManager, count: usize) -> Result<f64, Failure> {
    let begun = SystemClock.mono();
    let workers: Vec<_> = (0..WORKERS)
        .map(|index| {
            let tasks = tasks.clone();
            crate::bus::background(async move {
                let worker = Worker::new(Tenant::default(), Name::new(format!("w{index}"))?);
                let mut done = 0_usize;
                loop {
                    let claims = tasks
                        .claim(&worker, &TaskFilter::all(), 1, Duration::ZERO)
                        .await?;
                    let Some(claim) = claims.into_iter().next() else {
                        return Ok::<usize, Failure>(done);
                    };
                    tasks
                        .report(&worker, claim.token, json!({"ok": true}))
                        .await?;
                    done += 1;
                }
            })
        })
        .collect();
    let mut done = 0;
    for worker in workers {
        done += worker.await??;
    }
    if done < count / BATCH * BATCH {
        return Err(format!("{done} of {count} tasks were done").into());
    }
    Ok(done as f64 / (SystemClock.mono() - begun).as_secs_f64())
}
