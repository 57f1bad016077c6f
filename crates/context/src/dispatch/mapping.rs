//! One mapped source: its task, its watcher, its state.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, future::join};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use volary_kernel::{
    Name, clock,
    ready::{Heartbeat, Latch},
    task::{TaskKind, TaskResult, panic_text},
};
use volary_store::{Batch, StoreError};

use super::{Place, Shared, apply::Applier, record, waiting::Waiting};
use crate::{
    event::Event,
    metric::SourceMetrics,
    page::{Cursor, KindName, Scope},
    source::{ChangeStream, PageSource, channel},
};

/// A source or its applying loop that is silent this long is taken for wedged. Less than the 5 s in which health must
/// tell, more than the second between beats.
const MAX_SILENCE: Duration = Duration::from_secs(4);

/// How a mapped source is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceState {
    /// It has not caught up yet.
    Starting,
    /// It tells what changes.
    Live,
    /// It cannot be reached, for this reason.
    Away(String),
    /// Its watcher failed for this reason and is started again soon.
    Failed(String),
    /// It is unmapped.
    Stopped,
}

/// What there is to know of a mapped source.
#[derive(Debug, Clone, PartialEq, Eq)]
#[doc(alias = "ConvergenceStatus")]
pub struct SourceStatus {
    /// Its name.
    pub source: Name,
    /// What it is mapped into.
    pub scope: Scope,
    /// How it is.
    pub state: SourceState,
    /// Pages that exist.
    pub pages: i64,
    /// Changes that wait for a full inbox.
    pub waiting: i64,
    /// Watchers that failed.
    pub restarts: u64,
    /// The greatest cursor that was told.
    pub cursor: Cursor,
}

struct Live {
    state: SourceState,
    announced: bool,
    blocked: bool,
    cursor: Cursor,
    applying: Option<Arc<Heartbeat>>,
}

/// One mapped source.
pub(super) struct Mapping {
    pub source: Arc<dyn PageSource>,
    pub place: Place,
    pub metrics: SourceMetrics,
    latch: Mutex<Option<Latch>>,
    cancel: CancellationToken,
    ended: watch::Sender<bool>,
    live: Mutex<Live>,
}

/// Tells that a mapping's task is gone, however that came about.
struct Ended(Arc<Mapping>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.ended.send_replace(true);
    }
}

impl Mapping {
    pub(super) fn new(source: Arc<dyn PageSource>, place: Place, shared: &Shared) -> Arc<Self> {
        let name = source.name();
        let live = Live {
            state: SourceState::Starting,
            announced: false,
            blocked: false,
            cursor: Cursor::default(),
            applying: None,
        };
        Arc::new(Self {
            metrics: SourceMetrics::new(&shared.parts.metrics, name),
            latch: Mutex::new(Some(shared.parts.readiness.latch(format!("source {name}")))),
            cancel: shared.parts.tasks.token().child_token(),
            ended: watch::channel(false).0,
            live: Mutex::new(live),
            source,
            place,
        })
    }

    pub(super) fn name(&self) -> &Name {
        self.source.name()
    }

    /// Starts the task; it runs until the mapping or the supervisor is stopped.
    pub(super) fn spawn(self: Arc<Self>, shared: &Arc<Shared>) {
        let kind = TaskKind::new("context-source").restart(shared.config.restart);
        let (shared, ended) = (shared.clone(), Ended(self));
        shared.parts.tasks.clone().spawn_restarting(kind, move || {
            let (mapping, shared) = (ended.0.clone(), shared.clone());
            async move { mapping.run(&shared).await }
        });
    }

    pub(super) async fn stop(&self) {
        self.cancel.cancel();
        let mut ended = self.ended.subscribe();
        // An error would mean that the sender, which is in `self`, is gone.
        let _ended = ended.wait_for(|ended| *ended).await;
        self.live.lock().state = SourceState::Stopped;
        if let Some(latch) = self.latch.lock().take() {
            latch.remove();
        }
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    fn set_ready(&self) {
        if let Some(latch) = &*self.latch.lock() {
            latch.set_ready();
        }
    }

    fn set_not_ready(&self, reason: impl Into<String>) {
        if let Some(latch) = &*self.latch.lock() {
            latch.set_not_ready(reason);
        }
    }

    // --- state -------------------------------------------------------------------------------------

    pub(super) fn status(&self) -> SourceStatus {
        let live = self.live.lock();
        SourceStatus {
            source: self.name().clone(),
            scope: self.place.scope.clone(),
            state: live.state.clone(),
            pages: self.metrics.pages.get(),
            waiting: self.metrics.waiting.get(),
            restarts: self.metrics.restarts.get(),
            cursor: live.cursor,
        }
    }

    pub(super) fn caught_up(&self, pages: usize) {
        self.metrics
            .pages
            .set(i64::try_from(pages).unwrap_or(i64::MAX));
        self.back();
    }

    pub(super) fn away(&self, reason: &str) {
        self.live.lock().state = SourceState::Away(reason.to_owned());
        self.set_not_ready(format!("cannot be reached: {reason}"));
    }

    pub(super) fn back(&self) {
        self.live.lock().state = SourceState::Live;
        self.set_ready();
    }

    /// A change was committed.
    pub(super) fn changed(&self, kind: KindName, settled_for: Duration) {
        self.metrics.changed(kind, settled_for);
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.live.lock().blocked
    }

    /// Changes wait; `deaf` if so many that the source is no longer listened to.
    pub(super) fn blocked(&self, deaf: bool, agent: &Name, reason: &str) {
        self.live.lock().blocked = true;
        if deaf {
            self.set_not_ready(format!("changes wait for the inbox of `{agent}`: {reason}"));
        }
    }

    pub(super) fn unblocked(&self) {
        let mut live = self.live.lock();
        live.blocked = false;
        if live.state == SourceState::Live {
            drop(live);
            self.set_ready();
        }
    }

    /// The store took a commit again.
    pub(super) fn store_has_room(&self) {
        if self.live.lock().state == SourceState::Live {
            self.set_ready();
        }
    }

    pub(super) fn store_full(&self) {
        self.set_not_ready("changes wait: the store is full");
    }

    pub(super) fn beat_applying(&self) {
        if let Some(heartbeat) = &self.live.lock().applying {
            heartbeat.beat();
        }
    }

    // --- running -----------------------------------------------------------------------------------

    async fn run(self: Arc<Self>, shared: &Shared) -> TaskResult {
        if self.cancel.is_cancelled() {
            return Ok(());
        }
        self.announce(shared).await;
        self.live.lock().state = SourceState::Starting;
        match self.run_once(shared).await {
            Ok(()) => {
                self.set_not_ready("stopped");
                Ok(())
            }
            Err(reason) => {
                self.failed(&reason, shared).await;
                Err(reason.into())
            }
        }
    }

    async fn failed(&self, reason: &str, shared: &Shared) {
        self.metrics.restarts.inc();
        self.live.lock().state = SourceState::Failed(reason.to_owned());
        self.set_not_ready(reason);
        let event = Event::SourceFailed {
            source: self.name().clone(),
            reason: reason.to_owned(),
        };
        self.journal(&event, shared).await;
    }

    /// Tells once that the source is mapped.
    async fn announce(&self, shared: &Shared) {
        if std::mem::replace(&mut self.live.lock().announced, true) {
            return;
        }
        let scope = self.place.scope.to_string();
        self.journal(
            &Event::SourceMapped {
                source: self.name().clone(),
                scope,
            },
            shared,
        )
        .await;
    }

    pub(super) async fn journal(&self, event: &Event, shared: &Shared) {
        let mut batch = Batch::new();
        batch.append(event.record(&self.place.tenant));
        if let Err(error) = shared.parts.store.commit(batch).await {
            tracing::error!(source = %self.name(), event = event.kind(), %error, "an event could not be journaled");
        }
    }

    async fn run_once(&self, shared: &Shared) -> Result<(), String> {
        let start = record::load(&*shared.parts.store, self.name())
            .await
            .map_err(|error| error.to_string())?;
        self.metrics
            .pages
            .set(i64::try_from(start.known.len()).unwrap_or(i64::MAX));
        let readiness = &shared.parts.readiness;
        let watching =
            Arc::new(readiness.heartbeat(format!("source {}", self.name()), MAX_SILENCE));
        let applying =
            Arc::new(readiness.heartbeat(format!("dispatch {}", self.name()), MAX_SILENCE));
        self.live.lock().applying = Some(applying.clone());
        let applier = Applier {
            mapping: self,
            shared,
            cursor: start.cursor,
            caught_up: start.caught_up,
            waiting: Waiting::default(),
            tries: 0,
            retry_at: None,
        };
        let beating = watching.clone();
        let (sink, stream) = channel(move || beating.beat());
        // A run of its own: an applying loop that fails ends the watcher, whose restart begins at what was committed.
        let cancel = self.cancel.child_token();
        let watched = self.source.watch(start, sink, cancel.clone());
        let applied = async {
            let result = self.apply(applier, stream, &applying).await;
            if result.is_err() {
                cancel.cancel();
            }
            result
        };
        // A panic ends the run as an error does: told, not ready, and without a heartbeat that calls the process sick.
        let ran = AssertUnwindSafe(join(watched, applied))
            .catch_unwind()
            .await;
        self.live.lock().applying = None;
        watching.retire();
        applying.retire();
        let (watched, applied) =
            ran.map_err(|panic| format!("panicked: {}", panic_text(&*panic)))?;
        if self.cancel.is_cancelled() {
            return Ok(());
        }
        applied.map_err(|error| error.to_string())?;
        Err(watched.map_or_else(
            |error| error.to_string(),
            |()| "the watcher ended by itself".to_owned(),
        ))
    }

    async fn apply(
        &self,
        mut applier: Applier<'_>,
        mut stream: ChangeStream,
        heartbeat: &Heartbeat,
    ) -> Result<(), StoreError> {
        let config = &applier.shared.config;
        loop {
            let listening = applier.waiting.len() < config.max_waiting;
            let retry_in = applier.retry_in();
            let item = heartbeat
                .while_waiting(async {
                    tokio::select! {
                        item = stream.next(), if listening => Some(item),
                        () = clock::sleep(retry_in.unwrap_or_default()), if retry_in.is_some() => None,
                        () = self.cancel.cancelled(), if !listening => Some(None),
                    }
                })
                .await;
            match item {
                Some(Some(item)) => applier.take(item).await?,
                // The watcher has ended. What waits is found again at the next start.
                Some(None) => return Ok(()),
                None => applier.retry().await?,
            }
            self.live.lock().cursor = applier.cursor;
        }
    }
}
