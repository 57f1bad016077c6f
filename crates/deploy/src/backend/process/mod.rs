//! Replicas as processes of this machine, each in namespaces of its own.
//!
//! | file | what it owns |
//! |---|---|
//! | [`plan`], [`wire`], [`alias`] | pure: what an init is told, in bytes |
//! | [`launcher`] | the permanent thread and the starter process |
//! | [`namespace`] | one running namespace: life line, reports, certain end |
//! | [`replica`], [`run`], [`exec`] | long-lived replicas, handler runs, further commands |
//! | [`cgroup`], [`stats`], [`probe`] | limits, usage, what the machine gives |
//! | [`init`] | the other side: what runs in the starter and in each init |
//! | [`sys`] | every `unsafe` system call |
//!
//! A replica sees the machine's files as its user does, but not the node's state nor other replicas' own
//! directories; it sees only its own processes; its own directory is in memory and holds its secrets and tokens.
//! What it cannot be kept from: the network, and files that its user may read or write.

mod alias;
mod cgroup;
mod exec;
mod init;
mod launcher;
mod namespace;
mod plan;
mod probe;
mod replica;
mod run;
mod stats;
mod sys;
mod wire;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use volary_kernel::clock::SharedClock;
use volary_kernel::id::Uid;
use volary_kernel::metric::Metrics;
use volary_kernel::secret::Redactor;
use volary_kernel::task::Supervisor;

pub use init::init_main;
pub use launcher::InitCommand;

use super::Backend;
use super::report::{
    BackendError, Capabilities, ExecOutcome, Exit, HandlerOutcome, Observed, Recovered, Started,
    Stats,
};
use super::spec::{ExecRequest, HandlerRun, Isolation, Limits, ReplicaId, ReplicaSpec};
use crate::log::{LogQuery, LogReader, LogSet};
use cgroup::{Cgroups, Group};
use launcher::Launcher;
use plan::Ground;
use probe::Found;
use replica::Replica;
use sys::Namespaces;
use wire::View;

/// Settings of the backend.
#[derive(Debug, Clone)]
pub struct ProcessConfig {
    /// How to become an init.
    pub init: InitCommand,
    /// The node's state directory: hidden from every replica.
    pub state_dir: PathBuf,
    /// Parent of the replicas' own directories, as they see them; usually in the state directory.
    pub private_root: PathBuf,
    /// Where logs are kept.
    pub log_dir: PathBuf,
    /// `PATH`, `HOME`, `LANG`, `TZ` of the node, as the base of every environment.
    pub base_env: BTreeMap<String, String>,
}

impl ProcessConfig {
    /// The usual places below a state directory.
    pub fn new(init: InitCommand, state_dir: impl Into<PathBuf>) -> Self {
        let state_dir = state_dir.into();
        Self {
            init,
            private_root: state_dir.join("replicas"),
            log_dir: state_dir.join("logs"),
            base_env: BTreeMap::new(),
            state_dir,
        }
    }
}

/// What the backend shares with its node.
#[derive(Clone)]
pub struct Shared {
    /// Time.
    pub clock: SharedClock,
    /// What must not be written.
    pub redactor: Redactor,
    /// Where figures go.
    pub metrics: Metrics,
    /// Where its tasks live.
    pub tasks: Supervisor,
}

/// The process backend. Clones share it; everything it runs ends with the last of them.
#[derive(Clone)]
pub struct ProcessBackend(Arc<Inner>);

struct Inner {
    shared: Shared,
    launcher: Launcher,
    ground: Ground,
    namespaces: Namespaces,
    capabilities: Capabilities,
    refused: Option<String>,
    cgroups: Cgroups,
    groups: Mutex<BTreeMap<String, Group>>,
    logs: LogSet,
    replicas: Mutex<BTreeMap<ReplicaId, Slot>>,
}

/// What the table holds for a name.
#[derive(Clone)]
enum Slot {
    /// Reserved while it starts.
    Starting,
    Known(Arc<Replica>),
}

/// Longest the kernel takes to end a killed namespace before that is reported as an error.
const KILL_LIMIT: Duration = Duration::from_secs(10);

impl ProcessBackend {
    /// Starts the starter and finds out what this machine gives.
    ///
    /// # Errors
    /// When directories cannot be made or the init program cannot be run.
    pub async fn new(config: ProcessConfig, shared: Shared) -> Result<Self, BackendError> {
        let unavailable = |why: String| BackendError::Unavailable {
            backend: "process",
            why,
        };
        let real = |dir: &PathBuf| {
            probe::real_dir(dir).map_err(|error| unavailable(format!("{}: {error}", dir.display())))
        };
        let (state_dir, private_root) = (real(&config.state_dir)?, real(&config.private_root)?);
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut hidden = alias::all_paths(&state_dir, &mountinfo);
        if !private_root.starts_with(&state_dir) {
            hidden.extend(alias::all_paths(&private_root, &mountinfo));
        }
        let mut ground = Ground {
            view: View::Host,
            landlock: false,
            root: plan::own_ids().0 == 0,
            hidden,
            private_root,
            base_env: config.base_env,
            open_files: plan::open_files(),
        };
        let launcher =
            Launcher::start(config.init).map_err(|error| unavailable(error.to_string()))?;
        let cgroups =
            Cgroups::detect(&tag(&state_dir).map_err(|error| unavailable(error.to_string()))?);
        let found = probe::probe(&launcher, &ground, &cgroups).await;
        let Found {
            view,
            namespaces,
            capabilities,
            refused,
        } = found;
        ground.view = view;
        ground.landlock = capabilities.landlock.is_some();
        let logs = LogSet::new(
            config.log_dir,
            shared.clock.clone(),
            shared.redactor.clone(),
            &shared.metrics,
        );
        Ok(Self(Arc::new(Inner {
            shared,
            launcher,
            ground,
            namespaces,
            capabilities,
            refused,
            cgroups,
            groups: Mutex::default(),
            logs,
            replicas: Mutex::default(),
        })))
    }

    /// The replica's own directory, as the replica sees it.
    pub fn private_dir(&self, id: &ReplicaId) -> PathBuf {
        self.0.ground.private_dir(id)
    }
}

/// Names this state directory in places shared by the machine; kept in it, so that a successor finds the same.
fn tag(state_dir: &std::path::Path) -> std::io::Result<String> {
    let path = state_dir.join("machine-tag");
    match std::fs::read_to_string(&path) {
        Ok(tag) if tag.parse::<Uid>().is_ok() => Ok(tag),
        _ => {
            let tag = Uid::generate().to_string();
            volary_kernel::file::write_atomic(&path, tag.as_bytes(), 0o600)?;
            Ok(tag)
        }
    }
}

impl Inner {
    /// Namespaces for a program, or why there are none.
    fn namespaces(&self, id: &ReplicaId, isolation: Isolation) -> Result<Namespaces, BackendError> {
        match (isolation, &self.refused) {
            (Isolation::None, _) => Ok(Namespaces::NONE),
            (Isolation::Namespace, None) => Ok(self.namespaces),
            (Isolation::Namespace, Some(why)) => Err(BackendError::NoIsolation {
                replica: id.clone(),
                why: why.clone(),
            }),
        }
    }

    /// The group of a name, made on first use and kept until the backend closes.
    fn group(&self, id: &ReplicaId, limits: &Limits) -> Result<Group, BackendError> {
        let name = id.to_string();
        let mut groups = self.groups.lock();
        if let Some(group) = groups.get(&name) {
            return Ok(group.clone());
        }
        let made = self.cgroups.create(&name, limits);
        let group =
            made.map_err(|error| BackendError::io(format!("cgroup of `{name}`"), &error))?;
        groups.insert(name, group.clone());
        Ok(group)
    }

    fn known(&self, id: &ReplicaId) -> Result<Arc<Replica>, BackendError> {
        match self.replicas.lock().get(id) {
            Some(Slot::Known(replica)) => Ok(replica.clone()),
            Some(Slot::Starting) => Err(BackendError::NotRunning {
                replica: id.clone(),
            }),
            None => Err(BackendError::Unknown {
                replica: id.clone(),
            }),
        }
    }
}

// ---- the seam -------------------------------------------------------------------------------------------

#[async_trait]
impl Backend for ProcessBackend {
    fn name(&self) -> &'static str {
        "process"
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities.clone()
    }

    async fn recover(&self) -> Result<Recovered, BackendError> {
        let mut removed = self.0.cgroups.sweep().await;
        let root = &self.0.ground.private_root;
        for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
            if std::fs::remove_dir_all(entry.path()).is_ok() {
                removed.push(entry.path().display().to_string());
            }
        }
        Ok(Recovered {
            adopted: Vec::new(),
            removed,
        })
    }

    async fn start(&self, spec: &ReplicaSpec) -> Result<Started, BackendError> {
        let reservation = replica::Reservation::take(&self.0, &spec.id)?;
        let (replica, started) = Replica::start(&self.0, spec).await?;
        reservation.fill(replica);
        Ok(started)
    }

    async fn stop(&self, id: &ReplicaId, grace: Duration) -> Result<Exit, BackendError> {
        let replica = self.0.known(id)?;
        replica.terminate();
        if let Ok(exit) = volary_kernel::clock::timeout(grace, replica.exited()).await {
            return Ok(exit);
        }
        replica.kill();
        let gone = volary_kernel::clock::timeout(KILL_LIMIT, replica.exited()).await;
        gone.map_err(|_| BackendError::Io {
            what: format!("end of `{id}`"),
            why: "the kernel did not end it".to_owned(),
        })
    }

    async fn observe(&self, id: &ReplicaId) -> Result<Observed, BackendError> {
        Ok(self.0.known(id)?.observed())
    }

    async fn wait(&self, id: &ReplicaId) -> Result<Exit, BackendError> {
        Ok(self.0.known(id)?.exited().await)
    }

    async fn logs(&self, id: &ReplicaId, query: LogQuery) -> Result<LogReader, BackendError> {
        let log = self.0.logs.existing(&id.to_string());
        let log = log.ok_or_else(|| BackendError::Unknown {
            replica: id.clone(),
        })?;
        LogReader::open(log, query).map_err(|error| BackendError::io("open the log", &error))
    }

    async fn exec(
        &self,
        id: &ReplicaId,
        request: ExecRequest,
    ) -> Result<ExecOutcome, BackendError> {
        let replica = self.0.known(id)?;
        exec::exec(&self.0, &replica, request).await
    }

    async fn stats(&self, id: &ReplicaId) -> Result<Stats, BackendError> {
        let replica = self.0.known(id)?;
        match replica.observed() {
            Observed::Running { .. } => Ok(stats::of_tree(replica.init())),
            Observed::Exited { .. } => Err(BackendError::NotRunning {
                replica: id.clone(),
            }),
        }
    }

    async fn run_handler(&self, run: HandlerRun) -> HandlerOutcome {
        run::run(&self.0, run).await
    }

    async fn close(&self) {
        let known: Vec<_> = self.0.replicas.lock().values().cloned().collect();
        for slot in &known {
            if let Slot::Known(replica) = slot {
                replica.kill();
            }
        }
        for slot in known {
            if let Slot::Known(replica) = slot {
                let _named_by_stop =
                    volary_kernel::clock::timeout(KILL_LIMIT, replica.exited()).await;
            }
        }
        let groups = std::mem::take(&mut *self.0.groups.lock());
        for group in groups.values() {
            group.remove().await;
        }
        self.0.cgroups.close().await;
        for entry in std::fs::read_dir(&self.0.ground.private_root)
            .into_iter()
            .flatten()
            .flatten()
        {
            let _swept_at_next_start = std::fs::remove_dir_all(entry.path());
        }
    }
}
