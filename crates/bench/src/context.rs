//! The live context on a real disk: from the write of a file until the subscribed agent holds the dispatch.
//!
//! - `context.fs0`, `context.fs20`: one file written again and again, settling for 0 and 20 ms, median latency. Both the
//!   change with its dispatch and the claim of it are durable by then.
//! - `context.checkout10k`: `git checkout` of 10,000 files into an empty tree, until all have been dispatched; a page too few
//!   or too many is an error. The time of git itself is in it.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use volary_context::dispatch::{Parts, Place};
use volary_context::files::SettleConfig;
use volary_context::{
    Criteria, Deliver, DeliverError, Dispatch, Dispatcher, DispatcherConfig, FilesConfig,
    FilesSource, Subscription,
};
use volary_kernel::clock::{Clock as _, SystemClock};
use volary_kernel::metric::Metrics;
use volary_kernel::ready::Readiness;
use volary_kernel::sign::SigningKey;
use volary_kernel::task::Supervisor;
use volary_kernel::testing::eventually;
use volary_kernel::{Name, Tenant};
use volary_store::{
    Batch, Claim, NewItem, Queue, QueueConfig, Queues, SharedStore, SqliteConfig, SqliteStore,
};
use volary_testkit::git::git_repo;

use crate::figure::{Figure, rounded};
use crate::rounds::{ROUNDS, Samples};
use crate::{Failure, Plan};

/// How long anything may take before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(30);
/// Files of the large checkout.
const FILES: usize = 10_000;

pub fn measure(plan: &Plan) -> Result<Vec<Figure>, Failure> {
    let writes = if plan.quick { 60 } else { 300 };
    Ok(vec![
        latency("context.fs0", Duration::ZERO, 1.0, writes)?,
        latency("context.fs20", Duration::from_millis(20), 22.0, writes)?,
        checkout(plan)?,
    ])
}

/// Median time from writing a file until its dispatch is held, in milliseconds.
fn latency(bench: &str, rest: Duration, allowance: f64, writes: usize) -> Result<Figure, Failure> {
    let disk = crate::scratch()?;
    let (mut medians, mut slowest) = (Vec::new(), 0.0f64);
    crate::store::runtime()?.block_on(async {
        let fleet = Fleet::start(disk.path(), rest).await?;
        let page = fleet.notes.join("note.md");
        for round in 0..=ROUNDS {
            let mut times = Vec::with_capacity(writes);
            for write in 0..writes {
                let start = SystemClock.mono();
                std::fs::write(&page, format!("round {round} write {write}"))?;
                let claims = fleet.claim().await?;
                let passed = SystemClock.mono() - start;
                fleet.acknowledge(&claims).await?;
                times.push(passed.as_secs_f64() * 1000.0);
            }
            // The first round only warms up.
            if round > 0 {
                times.sort_by(f64::total_cmp);
                medians.push(times[writes / 2]);
                slowest = slowest.max(times[writes * 99 / 100]);
            }
        }
        fleet.stop().await;
        Ok::<(), Failure>(())
    })?;
    let medians: Samples = medians.into_iter().collect();
    Ok(Figure::cost(bench, "ms", allowance, &medians).with("p99", rounded(slowest)))
}

fn checkout(plan: &Plan) -> Result<Figure, Failure> {
    let mut seconds = Vec::new();
    let disk = crate::scratch()?;
    let notes = disk.path().join("notes");
    std::fs::create_dir(&notes)?;
    let repo = Arc::new(git_repo(&notes, FILES, 1));
    for _ in 0..if plan.quick { 3 } else { ROUNDS } {
        repo.empty();
        let repo = repo.clone();
        let passed = crate::store::runtime()?.block_on(async {
            let fleet = Fleet::start(disk.path(), Duration::from_millis(20)).await?;
            let start = SystemClock.mono();
            let git = tokio::task::spawn_blocking(move || repo.checkout(0));
            let mut seen = HashSet::new();
            while seen.len() < FILES {
                let claims = fleet.claim().await?;
                for claim in &claims {
                    let told: serde_json::Value = serde_json::from_slice(&claim.payload)?;
                    let page = told["page_event"]["page"]["id"].to_string();
                    if !seen.insert(page.clone()) {
                        return Err(format!("{page} was dispatched twice").into());
                    }
                }
                fleet.acknowledge(&claims).await?;
            }
            let passed = SystemClock.mono() - start;
            git.await?;
            fleet.stop().await;
            Ok::<f64, Failure>(passed.as_secs_f64())
        })?;
        seconds.push(passed);
    }
    let seconds: Samples = seconds.into_iter().collect();
    Ok(Figure::cost("context.checkout10k", "s", 3.0, &seconds))
}

/// A folder, its source, one subscribed agent and its inbox, on a store on disk.
struct Fleet {
    notes: PathBuf,
    store: SharedStore,
    sqlite: SqliteStore,
    inbox: Queue,
    tasks: Supervisor,
    _dispatcher: Dispatcher,
    _state: tempfile::TempDir,
}

impl Fleet {
    /// Watches the folder of notes on that disk, with a new database.
    async fn start(disk: &Path, rest: Duration) -> Result<Self, Failure> {
        let notes = disk.join("notes");
        std::fs::create_dir_all(&notes)?;
        let state = tempfile::tempdir_in(disk)?;
        let key = Arc::new(SigningKey::generate()?);
        let config = SqliteConfig::new(state.path().join("fleet.db"), "bench".parse()?, key);
        let sqlite = SqliteStore::open(config, SystemClock::shared()).await?;
        let store: SharedStore = Arc::new(sqlite.clone());
        let queues = Queues::open(store.clone()).await?;
        let inbox = queues.queue(QueueConfig {
            max_items: 2 * FILES,
            ..QueueConfig::new("agent")
        })?;
        let (tasks, readiness) = (Supervisor::new(), Readiness::new(SystemClock::shared()));
        let parts = Parts {
            store: store.clone(),
            deliver: deliver_to(inbox.clone()),
            tasks: tasks.clone(),
            readiness: readiness.clone(),
            metrics: Metrics::default(),
        };
        let dispatcher = Dispatcher::new(DispatcherConfig::default(), parts);
        let criteria: Criteria = serde_json::from_value(serde_json::json!({"source": "notes"}))?;
        let agent: Name = "agent".parse()?;
        dispatcher.subscribe(Subscription::new(
            "all",
            agent,
            Tenant::default(),
            &criteria,
        )?)?;
        let mut files = FilesConfig::new("notes".parse()?, &notes);
        files.settle = SettleConfig {
            rest,
            ..SettleConfig::default()
        };
        let source = FilesSource::new(files, SystemClock::shared())?;
        dispatcher.map(Arc::new(source), Place::default())?;
        if !eventually(PATIENCE, || readiness.ready().ok).await {
            return Err(format!("the source is not ready: {:?}", readiness.ready()).into());
        }
        Ok(Self {
            notes,
            store,
            sqlite,
            inbox,
            tasks,
            _dispatcher: dispatcher,
            _state: state,
        })
    }

    async fn claim(&self) -> Result<Vec<Claim>, Failure> {
        let claims = self.inbox.claim("bench", 512, PATIENCE).await?;
        if claims.is_empty() {
            return Err(format!("nothing was dispatched within {PATIENCE:?}").into());
        }
        Ok(claims)
    }

    async fn acknowledge(&self, claims: &[Claim]) -> Result<(), Failure> {
        let mut batch = Batch::new();
        for claim in claims {
            self.inbox.ack(&mut batch, claim)?;
        }
        self.store.commit(batch).await?;
        Ok(())
    }

    async fn stop(self) {
        let _ = self.tasks.drain(Duration::from_secs(5)).await;
        self.sqlite.close().await;
    }
}

/// Delivers everything into one inbox, as the node's bridge does.
fn deliver_to(inbox: Queue) -> Deliver {
    Arc::new(move |batch, dispatch: &Dispatch| {
        let refused = |error: &dyn std::fmt::Display| DeliverError::Refused(error.to_string());
        let payload = serde_json::to_vec(&dispatch.payload()).map_err(|error| refused(&error))?;
        let mut item = NewItem::new(dispatch.change.page.tenant.clone(), payload);
        item.trace = Some(dispatch.change.trace);
        item.cause = dispatch.cause.into();
        item.coalesce = Some(dispatch.coalesce_key());
        item.base = Some(dispatch.base());
        let enqueued = inbox.enqueue(batch, item);
        enqueued
            .map(|enqueued| enqueued.id.to_string())
            .map_err(|error| DeliverError::Full(error.to_string()))
    })
}
