//! The runtime: starts and stops an agent's loop, and tells how it is.
//!
//! ```text
//! start: ops server bound ─▶ on_start ─▶ endpoint open ─▶ loop          a step that fails undoes those before it
//! stop:  not ready ─▶ intake closed ─▶ inbox drained ─▶ on_stop ─▶ what is left is told ─▶ ops server
//! ```

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex as SyncMutex;
use tokio::sync::{Mutex, OwnedMutexGuard, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};
use volary_kernel::{
    clock::{self, SharedClock},
    collector::CollectError,
    id::IdError,
    ready::{Check, Latch, Readiness, Report},
    task::{Supervisor, TaskKind},
};

use super::{
    Agent, AgentError, AgentRuntimeBuilder, Companion, Cx, RestartPolicy, RuntimeLimits,
    check::UserCheck,
    counts::Counts,
    decision::Custom,
    event::Listener,
    executor::{Contained, Executor, contained},
    policy::{ActionPolicy, ResourceLimits},
    tool::{ToolSet, ToolSetError},
    turn::{Ended, Inbox, Turns},
    verify::Verifier,
    work::Work,
};
use crate::{
    identity::IdentityRegistry,
    message::{Message, Sender},
    task::TaskError,
    topic::Topic,
    transport::{Closer, EndpointError, EndpointSpec, HookedTransport, Transport},
};

/// Longest silence of the loop before it is unhealthy; below the 5 s that health promises, with room for a look.
const SILENCE: Duration = Duration::from_secs(4);
/// Time for a loop that was told to end at once.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Why a runtime can not be built or started.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// A metric's name is in use otherwise.
    #[error(transparent)]
    Metrics(#[from] CollectError),
    /// A tool can not be registered.
    #[error(transparent)]
    Tools(#[from] ToolSetError),
    /// Two handlers are for the same kind of own decision.
    #[error("two handlers are registered for own decisions of kind `{0}`")]
    Custom(String),
    /// The default name does not keep the rules of names.
    #[error(transparent)]
    Name(IdError),
    /// The task manager takes no more tenants.
    #[error(transparent)]
    Tasks(#[from] TaskError),
    /// It is running already, and this can only be said before it starts.
    #[error("the runtime is running; {0} is given before it starts")]
    Running(&'static str),
    /// The companion did not start; nothing else was started.
    #[error("{name} did not start")]
    Companion {
        /// The companion.
        name: &'static str,
        /// Why.
        source: AgentError,
    },
    /// `on_start` failed; nothing is left running.
    #[error("on_start failed: {0}")]
    OnStart(String),
    /// The transport has no endpoint for it; nothing is left running.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The agent still blocks its thread since before the last stop; nothing is left running.
    #[error("the agent blocks its thread since before it was stopped")]
    Blocked,
}

/// What a stop found.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StopReport {
    /// Messages handled since the start.
    pub handled: u64,
    /// Messages that were received and not handled; each was told as [`super::RuntimeEvent::Unhandled`].
    pub unhandled: Vec<Message>,
    /// Decisions that were not carried out any more.
    pub undone: usize,
    /// What went wrong on the way, in order.
    pub problems: Vec<String>,
}

impl StopReport {
    /// Whether everything received was handled and every step ended well.
    pub fn is_clean(&self) -> bool {
        self.unhandled.is_empty() && self.undone == 0 && self.problems.is_empty()
    }
}

/// Everything a runtime is made of.
pub(super) struct Parts<A, T> {
    pub(super) agent: A,
    pub(super) sender: Sender,
    pub(super) transport: HookedTransport<T>,
    pub(super) topics: Vec<Topic>,
    pub(super) readiness: Readiness,
    pub(super) clock: SharedClock,
    pub(super) registry: Option<IdentityRegistry>,
    pub(super) policy: ActionPolicy,
    pub(super) resources: ResourceLimits,
    pub(super) tools: ToolSet,
    pub(super) custom: BTreeMap<String, Custom>,
    pub(super) limits: RuntimeLimits,
    pub(super) restart: RestartPolicy,
    pub(super) health: Option<UserCheck>,
    pub(super) ready: Option<UserCheck>,
    pub(super) companion: Option<Companion>,
    pub(super) listener: Listener,
    pub(super) work: Work,
    pub(super) counts: Counts,
}

/// Runs one agent: receives, decides, carries out, and says how it is.
///
/// ```
/// # use volary_kernel::{clock::SystemClock, metric::Metrics};
/// # use volary_messaging::{Identity, Local, Message, agent::*, task::Task};
/// struct Quiet(Identity);
/// impl Agent for Quiet {
///     fn identity(&self) -> &Identity { &self.0 }
///     async fn decide(&mut self, _: &[Message], _: &[Task], _: &Cx<'_>) -> Result<Vec<Decision>, AgentError> {
///         Ok(vec![])
///     }
/// }
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let transport = Local::new(SystemClock::shared(), &Metrics::default());
/// let runtime = AgentRuntime::builder(Quiet(Identity::generate()?), transport).build()?;
/// runtime.start().await?;
/// assert!(runtime.is_healthy());
/// assert!(runtime.stop().await.is_clean());
/// # Ok(()) }
/// ```
pub struct AgentRuntime<A: Agent, T: Transport> {
    agent: Arc<Mutex<A>>,
    sender: Sender,
    topics: Vec<Topic>,
    registry: Option<IdentityRegistry>,
    executor: Arc<Executor<HookedTransport<T>>>,
    clock: SharedClock,
    limits: RuntimeLimits,
    restart: RestartPolicy,
    companion: SyncMutex<Option<Companion>>,
    /// The companion of a start that did not come to its end.
    begun: SyncMutex<Option<Companion>>,
    probe: RuntimeProbe,
    running: Mutex<Option<Running>>,
}

/// What a start made and a stop ends.
struct Running {
    closer: Closer,
    stop: CancellationToken,
    abort: DropGuard,
    ended: oneshot::Receiver<Ended>,
    tasks: Supervisor,
    companion: Option<Companion>,
}

impl<A: Agent, T: Transport> fmt::Debug for AgentRuntime<A, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AgentRuntime({:?})", self.sender)
    }
}

impl<A: Agent, T: Transport> AgentRuntime<A, T> {
    /// Begins a runtime for `agent` on `transport`.
    pub fn builder(agent: A, transport: T) -> AgentRuntimeBuilder<A, T> {
        AgentRuntimeBuilder::new(agent, transport)
    }

    pub(super) fn new(parts: Parts<A, T>) -> Self {
        let latch = Arc::new(parts.readiness.latch("agent"));
        latch.set_not_ready("not started");
        Self {
            agent: Arc::new(Mutex::new(parts.agent)),
            topics: parts.topics,
            registry: parts.registry,
            executor: Arc::new(Executor {
                me: parts.sender.clone(),
                transport: parts.transport,
                policy: parts.policy,
                resources: parts.resources,
                tools: parts.tools,
                custom: parts.custom,
                work: parts.work,
                tool_time: parts.limits.tool,
                tool_output: parts.limits.tool_output,
                counts: parts.counts,
                listener: parts.listener,
            }),
            sender: parts.sender,
            clock: parts.clock,
            limits: parts.limits,
            restart: parts.restart,
            companion: SyncMutex::new(parts.companion),
            begun: SyncMutex::default(),
            probe: RuntimeProbe {
                readiness: parts.readiness,
                health: parts.health,
                ready: parts.ready,
                state: Arc::new(State {
                    failures: AtomicU32::new(0),
                    crash_loop: parts.restart.crash_loop,
                    last: SyncMutex::default(),
                    latch,
                }),
            },
            running: Mutex::default(),
        }
    }

    /// The agent as a sender: fingerprint, name, tenant.
    pub const fn sender(&self) -> &Sender {
        &self.sender
    }

    /// Gives it the companion that starts before it and stops after it.
    ///
    /// # Errors
    /// [`RuntimeError::Running`].
    pub fn set_ops_server(&self, companion: impl Into<Companion>) -> Result<(), RuntimeError> {
        let Ok(running) = self.running.try_lock() else {
            return Err(RuntimeError::Running("its ops server"));
        };
        if running.is_some() {
            return Err(RuntimeError::Running("its ops server"));
        }
        *self.companion.lock() = Some(companion.into());
        Ok(())
    }

    /// What tells how it is, from any thread and after it was stopped, too.
    pub fn probe(&self) -> RuntimeProbe {
        self.probe.clone()
    }

    /// Whether its loop turns and its health check agrees.
    pub fn is_healthy(&self) -> bool {
        self.probe.health().ok
    }

    /// Whether it takes messages and its readiness check agrees.
    pub fn is_ready(&self) -> bool {
        self.probe.ready().ok
    }

    /// Starts it; nothing happens if it runs. Not cancel-safe: a start that is dropped half way leaves its companion
    /// running until the next stop.
    ///
    /// # Errors
    /// [`RuntimeError`]; what was started before the error is stopped again.
    pub async fn start(&self) -> Result<(), RuntimeError> {
        let mut running = self.running.lock().await;
        if running.is_some() {
            return Ok(());
        }
        let companion = self.companion.lock().clone();
        self.begun.lock().clone_from(&companion);
        if let Some(companion) = &companion {
            companion
                .start()
                .await
                .map_err(|source| RuntimeError::Companion {
                    name: companion.name(),
                    source,
                })?;
        }
        let started = self.start_loop(companion.clone()).await;
        *self.begun.lock() = None;
        match started {
            Ok(started) => *running = Some(started),
            Err(error) => {
                if let Some(companion) = companion
                    && let Err(problem) = companion.stop().await
                {
                    tracing::warn!(name = companion.name(), %problem, "a companion did not stop");
                }
                return Err(error);
            }
        }
        Ok(())
    }

    async fn start_loop(&self, companion: Option<Companion>) -> Result<Running, RuntimeError> {
        let agent = clock::timeout(AT_ONCE, self.agent.clone().lock_owned()).await;
        let mut agent = agent.map_err(|_| RuntimeError::Blocked)?;
        self.on_start(&mut agent).await?;
        let mut endpoint = self.executor.transport.open(EndpointSpec {
            inbox: self.limits.inbox,
            ..EndpointSpec::new(
                self.sender.tenant().clone(),
                self.sender.name().clone(),
                self.topics.clone(),
            )
        })?;
        if let Some(registry) = &self.registry {
            let (counts, listener) = (self.executor.counts.clone(), self.executor.listener.clone());
            let verifier = Verifier::new(registry.clone(), counts, listener);
            endpoint = endpoint.with_guard(Arc::new(move |message| verifier.passes(message)));
        }
        let closer = endpoint.closer();
        let (stop, abort) = (CancellationToken::new(), CancellationToken::new());
        let turns = Turns {
            agent,
            sender: self.sender.clone(),
            executor: self.executor.clone(),
            clock: self.clock.clone(),
            limits: self.limits,
            restart: self.restart,
            state: self.probe.state.clone(),
            inbox: Inbox::new(endpoint, self.limits.batch),
            stop: stop.clone(),
            waiting: std::collections::VecDeque::new(),
            in_flight: Vec::new(),
            observations: Vec::new(),
            passes: 0,
            shown: Vec::new(),
            ended: Ended::default(),
        };
        let heartbeat = self.probe.readiness.heartbeat("agent loop", SILENCE);
        let (tell, ended) = oneshot::channel();
        let tasks = Supervisor::new();
        self.probe.state.well();
        let (executor, stopping) = (self.executor.clone(), tasks.token());
        tasks.spawn(TaskKind::new("agent-tasks"), async move {
            executor.work.run(stopping).await;
            Ok(())
        });
        let aborted = abort.clone();
        tasks.spawn(TaskKind::new("agent-loop"), async move {
            let (report, result) = Box::pin(turns.run(heartbeat, aborted)).await;
            let _nobody_waits = tell.send(report);
            result.map_err(Into::into)
        });
        Ok(Running {
            closer,
            stop,
            abort: abort.drop_guard(),
            ended,
            tasks,
            companion,
        })
    }

    async fn on_start(&self, agent: &mut OwnedMutexGuard<A>) -> Result<(), RuntimeError> {
        let cx = Cx::new(self.clock.wall(), &self.sender, &[]);
        // The error's words are its own code, too: they are asked for where a panic is contained.
        let starting = async { agent.on_start(&cx).await.map_err(|error| error.to_string()) };
        let problem = match contained(self.limits.decide, starting).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(problem)) => problem,
            Err(cut) => cut.words(self.limits.decide),
        };
        Err(RuntimeError::OnStart(problem))
    }

    /// Stops it: takes nothing more, handles what it has within [`RuntimeLimits::drain`], and tells what is left. A
    /// runtime that does not run reports nothing. Not cancel-safe.
    pub async fn stop(&self) -> StopReport {
        let mut running = self.running.lock().await;
        let Some(running) = running.take() else {
            return self.stop_begun().await;
        };
        let Running {
            closer,
            stop,
            abort,
            mut ended,
            tasks,
            companion,
        } = running;
        self.probe.state.latch.set_not_ready("stopping");
        closer.close();
        stop.cancel();
        let limit = self.limits.drain;
        let mut problems = Vec::new();
        let mut done = clock::timeout(limit, &mut ended).await;
        if done.is_err() {
            problems.push(format!(
                "the agent did not handle what it had within {}",
                volary_kernel::text::brief_duration(limit)
            ));
            drop(abort);
            // Its last words: on_stop has as long as the drain had.
            done = clock::timeout(limit + AT_ONCE, &mut ended).await;
        }
        let drained = tasks.drain(AT_ONCE).await;
        if !drained.aborted.is_empty() {
            problems.push("the agent blocks its thread; its loop could not be ended".to_owned());
        }
        let mut report = match done {
            Ok(Ok(ended)) => StopReport::from(ended),
            // It never comes to nothing unseen: what it held is not known any more.
            Ok(Err(_)) => {
                let gone = "the loop died; what it had received is lost";
                problems.push(gone.to_owned());
                StopReport::default()
            }
            // Stuck, and told above.
            Err(_) => StopReport::default(),
        };
        problems.append(&mut report.problems);
        if let Some(companion) = companion
            && let Err(error) = companion.stop().await
        {
            problems.push(format!("{}: {error}", companion.name()));
        }
        self.probe.state.latch.set_not_ready("stopped");
        self.probe.state.forget();
        report.problems = problems;
        report
    }
}

impl<A: Agent, T: Transport> AgentRuntime<A, T> {
    /// Stops what a start that was dropped half way has left.
    async fn stop_begun(&self) -> StopReport {
        let begun = self.begun.lock().take();
        let mut report = StopReport::default();
        if let Some(companion) = begun
            && let Err(error) = companion.stop().await
        {
            let problem = format!("{}: {error}", companion.name());
            report.problems.push(problem);
        }
        report
    }
}

impl From<Ended> for StopReport {
    fn from(ended: Ended) -> Self {
        Self {
            handled: ended.handled,
            unhandled: ended.unhandled,
            undone: ended.undone,
            problems: ended.problems,
        }
    }
}

impl Contained {
    /// What happened, for a person.
    pub(super) fn words(&self, limit: Duration) -> String {
        match self {
            Self::Panicked(words) => format!("panicked: {words}"),
            Self::TimedOut => format!(
                "did not finish within {}",
                volary_kernel::text::brief_duration(limit)
            ),
        }
    }
}

/// How the agent does, told by its loop.
pub(super) struct State {
    failures: AtomicU32,
    crash_loop: u32,
    last: SyncMutex<String>,
    latch: Arc<Latch>,
}

impl State {
    /// It works.
    pub(super) fn well(&self) {
        self.failures.store(0, Ordering::Relaxed);
        self.latch.set_ready();
    }

    /// It failed once more.
    pub(super) fn failed(&self, failures: u32, problem: &str) {
        problem.clone_into(&mut self.last.lock());
        self.failures.store(failures, Ordering::Relaxed);
        self.latch.set_not_ready(problem);
    }

    fn forget(&self) {
        self.failures.store(0, Ordering::Relaxed);
    }

    fn crash_loop(&self) -> Check {
        let failures = self.failures.load(Ordering::Relaxed);
        let looping = self.crash_loop > 0 && failures >= self.crash_loop;
        let reason = || format!("crash loop, {failures} failures: {}", self.last.lock());
        Check {
            name: "agent".to_owned(),
            ok: !looping,
            reason: looping.then(reason),
            last_beat_seconds: None,
        }
    }
}

/// Tells how a runtime is; cheap to clone, and never waits for the runtime. A user's own checks run on the caller's
/// thread.
#[derive(Clone)]
pub struct RuntimeProbe {
    readiness: Readiness,
    health: Option<UserCheck>,
    ready: Option<UserCheck>,
    state: Arc<State>,
}

impl fmt::Debug for RuntimeProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RuntimeProbe")
            .field("ready", &self.readiness.ready().ok)
            .finish_non_exhaustive()
    }
}

impl RuntimeProbe {
    /// Whether the loop turns, is no crash loop, and the user's check agrees. A runtime that does not run is healthy.
    pub fn health(&self) -> Report {
        let own = [self.state.crash_loop()];
        with(
            self.readiness.health(),
            own.into_iter()
                .chain(self.health.as_ref().map(UserCheck::answer)),
        )
    }

    /// Whether the agent takes messages and the user's check agrees. Not before the start, while the agent has failed, or
    /// from the stop on.
    pub fn ready(&self) -> Report {
        with(
            self.readiness.ready(),
            self.ready.as_ref().map(UserCheck::answer),
        )
    }
}

fn with(mut report: Report, more: impl IntoIterator<Item = Check>) -> Report {
    report.checks.extend(more);
    report.ok = report.checks.iter().all(|check| check.ok);
    report
}
