//! How replicas run: the [`Backend`] seam, its inputs ([`spec`]) and its answers ([`report`]).

#[cfg(feature = "test-util")]
pub mod conformance;
pub mod process;
pub mod report;
pub mod spec;

use std::time::Duration;

use async_trait::async_trait;

pub use report::{
    BackendError, Capabilities, ExecOutcome, Exit, HandlerExit, HandlerOutcome, Observed,
    Recovered, Started, Stats, Support,
};
pub use spec::{
    Bind, BindTarget, CapabilityChange, DirAccess, EnvValue, ExecRequest, HandlerRun, Isolation,
    Limits, PrivateFile, ProgramSpec, ReplicaId, ReplicaSpec, RootAccess, User,
};

use crate::log::{LogQuery, LogReader};

/// A way to run replicas.
///
/// Contract, which [`conformance`](self) checks for every implementation:
/// - **One per name.** At most one replica of a name runs; a second [`start`](Self::start) is
///   [`BackendError::AlreadyRunning`]. Calls for different names do not wait for each other.
/// - **Started means running.** `start` returns after the program replaced the init's child, or with the step
///   that failed; then nothing of the attempt is left.
/// - **Ended means all ended.** A replica is `Exited` only when every process it ever started is gone. It is
///   reported once and stays until the next start of the name.
/// - **Stop** asks, waits for `grace`, then kills; it returns when all is gone, and is `Ok` again (with the same
///   exit) for a replica that has ended.
/// - **No orphans.** Whatever happens to the calling process, replicas end within 2 s or are adopted by
///   [`recover`](Self::recover) of the next one.
/// - **Cancel.** Dropping a `start`, `run_handler` or `exec` future kills what it started; dropping `stop`,
///   `observe` or `wait` changes nothing.
/// - **Secrets** of the request reach neither errors, logs, argv nor the disk beyond what the caller asked for.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Short name for `ps`: `process`, `docker`.
    fn name(&self) -> &'static str;

    /// What can be had on this machine. Cheap: found out once.
    fn capabilities(&self) -> Capabilities;

    /// Removes or adopts what a dead predecessor left. Called once, before any start.
    async fn recover(&self) -> Result<Recovered, BackendError>;

    /// Starts a replica.
    async fn start(&self, spec: &ReplicaSpec) -> Result<Started, BackendError>;

    /// Asks a replica to end (SIGTERM), kills it after `grace`, and says how its main process ended.
    async fn stop(&self, id: &ReplicaId, grace: Duration) -> Result<Exit, BackendError>;

    /// Where a replica is now.
    async fn observe(&self, id: &ReplicaId) -> Result<Observed, BackendError>;

    /// Waits until a replica has ended.
    async fn wait(&self, id: &ReplicaId) -> Result<Exit, BackendError>;

    /// What a replica wrote, also after it ended and after a restart of the node.
    async fn logs(&self, id: &ReplicaId, query: LogQuery) -> Result<LogReader, BackendError>;

    /// Runs a further command inside a running replica, with the same walls and user.
    async fn exec(&self, id: &ReplicaId, request: ExecRequest)
    -> Result<ExecOutcome, BackendError>;

    /// What a running replica uses.
    async fn stats(&self, id: &ReplicaId) -> Result<Stats, BackendError>;

    /// Ends what still runs, at once, and removes what the backend made on the machine. Called once, last.
    async fn close(&self);

    /// Runs a handler once. Every failure is an outcome; when it returns, nothing of the run is left.
    async fn run_handler(&self, run: HandlerRun) -> HandlerOutcome;
}
