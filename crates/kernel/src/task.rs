//! Supervised tasks: each has a kind that says what cancel and failure mean for it; stopping drains with a deadline.
//!
//! ```text
//! spawn ──▶ running ──ok──▶ ended
//!             │  panic or error: OnFailure::Log       counted, logged, ended
//!             │                  OnFailure::Restart   made again after back-off (spawn_restarting only)
//!             │                  OnFailure::Shutdown  shutdown_requested() resolves with the reason
//!             └ drain: OnCancel::Abort is dropped at once, OnCancel::Drain sees the token and ends by itself,
//!                      or is dropped at the deadline and named in the report
//! ```

use std::{
    collections::BTreeMap,
    error::Error,
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    clock,
    retry::{self, Backoff},
};

/// How a task ends.
pub type TaskResult = Result<(), Box<dyn Error + Send + Sync>>;

/// What a drain does to a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnCancel {
    /// It watches the token and ends by itself, within the deadline.
    Drain,
    /// It holds nothing: it is dropped at its next await.
    Abort,
}

/// What a task's panic or error means.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum OnFailure {
    /// It is counted and logged.
    Log,
    /// It is made again after a back-off, by [`Supervisor::spawn_restarting`]; [`Supervisor::spawn`] treats it as `Log`.
    Restart(Backoff),
    /// The whole process should stop: see [`Supervisor::shutdown_requested`].
    Shutdown,
}

/// The name and the rules of a task.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TaskKind {
    /// A short name for logs and reports, like `journal-retention`.
    pub name: &'static str,
    /// What a drain does to it.
    pub on_cancel: OnCancel,
    /// What its failure means.
    pub on_failure: OnFailure,
}

impl TaskKind {
    /// A task that drains and whose failure is logged.
    pub const fn new(name: &'static str) -> Self {
        Self {
            name,
            on_cancel: OnCancel::Drain,
            on_failure: OnFailure::Log,
        }
    }

    /// The same, dropped at once on a drain.
    pub const fn abort(self) -> Self {
        Self {
            on_cancel: OnCancel::Abort,
            ..self
        }
    }

    /// The same, whose failure stops the process.
    pub const fn vital(self) -> Self {
        Self {
            on_failure: OnFailure::Shutdown,
            ..self
        }
    }

    /// The same, made again after a failure.
    pub const fn restart(self, backoff: Backoff) -> Self {
        Self {
            on_failure: OnFailure::Restart(backoff),
            ..self
        }
    }
}

/// What a drain found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DrainReport {
    /// Kinds, with counts, that had to be dropped at the deadline. Empty is a clean stop.
    pub aborted: BTreeMap<&'static str, usize>,
    /// Failures (panics and errors) since the supervisor was made.
    pub failures: u64,
}

#[derive(Debug)]
struct Shared {
    token: CancellationToken,
    abort: CancellationToken,
    tracker: TaskTracker,
    running: Mutex<BTreeMap<&'static str, usize>>,
    failures: AtomicU64,
    shutdown: watch::Sender<Option<String>>,
}

/// Spawns, watches and drains tasks; clones share them.
#[derive(Debug, Clone)]
pub struct Supervisor(Arc<Shared>);

impl Default for Supervisor {
    fn default() -> Self {
        Self::new()
    }
}

impl Supervisor {
    /// A supervisor without tasks.
    pub fn new() -> Self {
        Self::with_token(CancellationToken::new())
    }

    fn with_token(token: CancellationToken) -> Self {
        Self(Arc::new(Shared {
            token,
            abort: CancellationToken::new(),
            tracker: TaskTracker::new(),
            running: Mutex::default(),
            failures: AtomicU64::new(0),
            shutdown: watch::channel(None).0,
        }))
    }

    /// The token that tasks of kind [`OnCancel::Drain`] watch.
    pub fn token(&self) -> CancellationToken {
        self.0.token.clone()
    }

    /// Spawns `future`. It is contained: a panic is a failure of this task and nothing more.
    pub fn spawn(&self, kind: TaskKind, future: impl Future<Output = TaskResult> + Send + 'static) {
        let supervisor = self.clone();
        self.start(kind, async move {
            if let Err(failure) = Contained::new(future).await {
                supervisor.failed(kind, &failure);
            }
        });
    }

    /// Spawns what `make` makes, again after each failure by the kind's back-off, which resets after a minute of health.
    pub fn spawn_restarting<F>(&self, kind: TaskKind, mut make: impl FnMut() -> F + Send + 'static)
    where
        F: Future<Output = TaskResult> + Send + 'static,
    {
        let OnFailure::Restart(backoff) = kind.on_failure else {
            return self.spawn(kind, make());
        };
        let supervisor = self.clone();
        self.start(kind, async move {
            let mut failures = 0;
            while !supervisor.0.token.is_cancelled() {
                let started = clock::Clock::mono(&clock::SystemClock);
                let Err(failure) = Contained::new(make()).await else {
                    return;
                };
                supervisor.failed(kind, &failure);
                let healthy = clock::Clock::mono(&clock::SystemClock) - started >= RESET_AFTER;
                failures = if healthy { 1 } else { failures + 1 };
                let wait = backoff.delay(failures, retry::random_unit());
                let _cancelled = supervisor
                    .0
                    .token
                    .run_until_cancelled(clock::sleep(wait))
                    .await;
            }
        });
    }

    /// Runs `body` on a thread of its own, which must watch the token and end; a drain waits for it.
    ///
    /// # Errors
    /// When the operating system has no thread to give.
    pub fn spawn_thread(
        &self,
        kind: TaskKind,
        body: impl FnOnce() -> TaskResult + Send + 'static,
    ) -> std::io::Result<()> {
        let supervisor = self.clone();
        let entered = Running::enter(&self.0, kind.name);
        let tracked = self.0.tracker.token();
        std::thread::Builder::new()
            .name(kind.name.to_owned())
            .spawn(move || {
                let outcome = std::panic::catch_unwind(AssertUnwindSafe(body));
                if let Err(failure) = flatten(outcome) {
                    supervisor.failed(kind, &failure);
                }
                drop(entered);
                drop(tracked);
            })?;
        Ok(())
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the one place where tasks are spawned"
    )]
    fn start(&self, kind: TaskKind, future: impl Future<Output = ()> + Send + 'static) {
        let entered = Running::enter(&self.0, kind.name);
        let stop = match kind.on_cancel {
            OnCancel::Abort => self.0.token.clone(),
            OnCancel::Drain => self.0.abort.clone(),
        };
        let tracked = self.0.tracker.token();
        tokio::spawn(async move {
            let _ended = stop.run_until_cancelled(future).await;
            drop(entered);
            drop(tracked);
        });
    }

    fn failed(&self, kind: TaskKind, failure: &str) {
        self.0.failures.fetch_add(1, Ordering::Relaxed);
        tracing::error!(task = kind.name, failure, "task failed");
        if kind.on_failure == OnFailure::Shutdown {
            self.request_shutdown(format!("{}: {failure}", kind.name));
        }
    }

    /// Asks the process to stop, with a reason; the first reason stays.
    pub fn request_shutdown(&self, reason: impl Into<String>) {
        self.0.shutdown.send_if_modified(|slot| {
            let first = slot.is_none();
            if first {
                *slot = Some(reason.into());
            }
            first
        });
    }

    /// Resolves with the reason once a vital task failed or someone asked. Cancel-safe.
    pub async fn shutdown_requested(&self) -> String {
        let mut watch = self.0.shutdown.subscribe();
        match watch.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }

    /// Names and counts of the tasks that run now.
    pub fn running(&self) -> BTreeMap<&'static str, usize> {
        self.0.running.lock().clone()
    }

    /// Cancels all tasks, waits up to `deadline` for those that drain, drops the rest and names them.
    /// No task may be spawned afterwards. Threads that ignore the token are named but cannot be stopped.
    pub async fn drain(&self, deadline: Duration) -> DrainReport {
        self.0.token.cancel();
        self.0.tracker.close();
        let mut report = DrainReport::default();
        if clock::timeout(deadline, self.0.tracker.wait())
            .await
            .is_err()
        {
            report.aborted = self.running();
            self.0.abort.cancel();
            let _threads_may_stay =
                clock::timeout(Duration::from_secs(1), self.0.tracker.wait()).await;
        }
        report.failures = self.0.failures.load(Ordering::Relaxed);
        report
    }
}

/// A task that ran this long before it failed starts its back-off anew.
const RESET_AFTER: Duration = Duration::from_secs(60);

struct Running(Arc<Shared>, &'static str);

impl Running {
    fn enter(shared: &Arc<Shared>, name: &'static str) -> Self {
        *shared.running.lock().entry(name).or_insert(0) += 1;
        Self(shared.clone(), name)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut running = self.0.running.lock();
        if let Some(count) = running.get_mut(self.1) {
            *count -= 1;
            if *count == 0 {
                running.remove(self.1);
            }
        }
    }
}

// --- panic containment -----------------------------------------------------------------------

/// The text of a caught panic.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("panic without a message")
}

fn flatten(outcome: std::thread::Result<TaskResult>) -> Result<(), String> {
    match outcome {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(panic) => Err(format!("panicked: {}", panic_text(&*panic))),
    }
}

/// Runs a future and turns its panic or error into text. Boxing keeps the projection free of `unsafe`.
struct Contained<F>(Pin<Box<F>>);

impl<F: Future<Output = TaskResult>> Contained<F> {
    fn new(future: F) -> Self {
        Self(Box::pin(future))
    }
}

impl<F: Future<Output = TaskResult>> Future for Contained<F> {
    type Output = Result<(), String>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match std::panic::catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(result)) => Poll::Ready(flatten(Ok(result))),
            Err(panic) => Poll::Ready(flatten(Err(panic))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::eventually;

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_contained_and_counted() {
        let tasks = Supervisor::new();
        tasks.spawn(TaskKind::new("bad"), async { panic!("boom") });
        tasks.spawn(TaskKind::new("good"), async { Ok(()) });
        assert_eq!(
            tasks.drain(LONG).await,
            DrainReport {
                aborted: BTreeMap::new(),
                failures: 1
            }
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_vital_failure_asks_for_shutdown_with_its_reason() {
        let tasks = Supervisor::new();
        tasks.spawn(TaskKind::new("writer").vital(), async {
            Err("disk gone".into())
        });
        assert_eq!(tasks.shutdown_requested().await, "writer: disk gone");
    }

    #[tokio::test(start_paused = true)]
    async fn a_restarting_task_is_made_again_with_growing_waits() {
        let tasks = Supervisor::new();
        let made = Arc::new(AtomicU64::new(0));
        let backoff = Backoff {
            base: Duration::from_secs(1),
            factor: 2.0,
            max: LONG,
            jitter: 0.0,
        };
        let counter = made.clone();
        tasks.spawn_restarting(TaskKind::new("flaky").restart(backoff), move || {
            counter.fetch_add(1, Ordering::Relaxed);
            async { Err("again".into()) }
        });
        clock::sleep(Duration::from_millis(3500)).await;
        assert_eq!(made.load(Ordering::Relaxed), 3, "at 0 s, 1 s and 3 s");
        assert_eq!(tasks.drain(LONG).await.aborted, BTreeMap::new());
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_waits_for_those_that_drain_and_names_those_that_do_not() {
        let tasks = Supervisor::new();
        let token = tasks.token();
        tasks.spawn(TaskKind::new("polite"), async move {
            token.cancelled().await;
            Ok(())
        });
        tasks.spawn(TaskKind::new("idle").abort(), std::future::pending());
        tasks.spawn(TaskKind::new("stuck"), std::future::pending());
        let report = tasks.drain(Duration::from_secs(5)).await;
        assert_eq!(report.aborted, BTreeMap::from([("stuck", 1)]));
        assert_eq!(tasks.running(), BTreeMap::new());
    }

    #[tokio::test]
    async fn a_drain_waits_for_threads() {
        let tasks = Supervisor::new();
        let token = tasks.token();
        tasks
            .spawn_thread(TaskKind::new("os-thread"), move || {
                while !token.is_cancelled() {
                    std::thread::yield_now();
                }
                Err("ended badly".into())
            })
            .unwrap();
        assert!(eventually(LONG, || tasks.running().contains_key("os-thread")).await);
        assert_eq!(tasks.drain(LONG).await.failures, 1);
    }
}
