//! One long-lived replica: started, watched by a task until it has ended, then remembered.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use volary_kernel::task::TaskKind;

use super::super::report::{BackendError, Exit, Observed, Started};
use super::super::spec::{ReplicaId, ReplicaSpec};
use super::cgroup::Group;
use super::namespace::{self, Input, LaunchError, Namespace, Streams};
use super::probe;
use super::wire::{Order, Report};
use super::{Inner, Slot};
use crate::log::{self, LogSink, Stream};

/// The task that watches one replica; it holds nothing that a drain would have to wait for.
const WATCH: TaskKind = TaskKind::new("replica-watch").abort();

/// A replica that runs or has ended.
pub(super) struct Replica {
    pub(super) spec: ReplicaSpec,
    pub(super) namespace: Namespace,
    observed: watch::Sender<Observed>,
    /// Who waits for the end of a further command, by its number.
    pub(super) commands: Mutex<Commands>,
}

#[derive(Default)]
pub(super) struct Commands {
    next: u32,
    waiting: BTreeMap<u32, oneshot::Sender<Result<Exit, i32>>>,
}

impl Commands {
    /// A number for a new command and its end.
    pub(super) fn add(&mut self) -> (u32, oneshot::Receiver<Result<Exit, i32>>) {
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        let (tell, told) = oneshot::channel();
        self.waiting.insert(id, tell);
        (id, told)
    }

    /// Nobody waits any more; says whether it was still running.
    pub(super) fn forget(&mut self, id: u32) -> bool {
        self.waiting.remove(&id).is_some()
    }

    fn end(&mut self, id: u32, how: Result<Exit, i32>) {
        if let Some(tell) = self.waiting.remove(&id) {
            let _nobody_waits = tell.send(how);
        }
    }
}

/// A name that is being started; given back when the start fails or is dropped.
pub(super) struct Reservation<'a> {
    inner: &'a Inner,
    id: &'a ReplicaId,
    before: Option<Slot>,
    filled: bool,
}

impl<'a> Reservation<'a> {
    pub(super) fn take(inner: &'a Inner, id: &'a ReplicaId) -> Result<Self, BackendError> {
        let mut replicas = inner.replicas.lock();
        let before = replicas.get(id).cloned();
        let free = match &before {
            None => true,
            Some(Slot::Starting) => false,
            Some(Slot::Known(replica)) => matches!(replica.observed(), Observed::Exited { .. }),
        };
        if !free {
            return Err(BackendError::AlreadyRunning {
                replica: id.clone(),
            });
        }
        replicas.insert(id.clone(), Slot::Starting);
        Ok(Self {
            inner,
            id,
            before,
            filled: false,
        })
    }

    pub(super) fn fill(mut self, replica: Arc<Replica>) {
        self.inner
            .replicas
            .lock()
            .insert(self.id.clone(), Slot::Known(replica));
        self.filled = true;
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if self.filled {
            return;
        }
        let mut replicas = self.inner.replicas.lock();
        match self.before.take() {
            Some(slot) => replicas.insert(self.id.clone(), slot),
            None => replicas.remove(self.id),
        };
    }
}

/// Turns a failed launch into the backend's words.
pub(super) fn launch_error(id: &ReplicaId, error: &LaunchError) -> BackendError {
    match error {
        LaunchError::NoNamespace(_) => BackendError::NoIsolation {
            replica: id.clone(),
            why: probe::text(error),
        },
        LaunchError::Step { step, error } => BackendError::Start {
            replica: id.clone(),
            step: step.clone(),
            why: error.to_string(),
        },
    }
}

impl Replica {
    /// Starts a replica and the task that watches it.
    pub(super) async fn start(
        inner: &Arc<Inner>,
        spec: &ReplicaSpec,
    ) -> Result<(Arc<Self>, Started), BackendError> {
        let (id, program) = (&spec.id, &spec.program);
        let namespaces = inner.namespaces(id, program.isolation)?;
        let group = inner.group(id, &program.limits)?;
        let controls = inner.cgroups.controls();
        let planned = inner
            .ground
            .plan(id, program, &controls, group.entrances())?;
        let kills = group.oom_kills();
        let launched =
            namespace::launch(&inner.launcher, namespaces, &planned.plan, Input::Null).await;
        let (namespace, streams) = launched.map_err(|error| launch_error(id, &error))?;
        let pid = namespace.main.unwrap_or(namespace.init);
        let at = inner.shared.clock.wall();
        let replica = Arc::new(Self {
            spec: spec.clone(),
            namespace,
            observed: watch::channel(Observed::Running { pid, since: at }).0,
            commands: Mutex::default(),
        });
        let watcher = replica.clone();
        let (shared, end) = (inner.clone(), End { group, kills });
        inner.shared.tasks.spawn(WATCH, async move {
            watcher.watch(&shared, streams, end).await;
            Ok(())
        });
        Ok((
            replica,
            Started {
                pid: Some(pid),
                at,
                warnings: planned.warnings,
            },
        ))
    }

    async fn watch(&self, inner: &Inner, streams: Streams, end: End) {
        let name = self.spec.id.to_string();
        let log = inner.logs.writer(&name, self.spec.program.log);
        let stdout = log::pump(streams.stdout, LogSink::new(log.clone(), Stream::Stdout));
        let stderr = log::pump(streams.stderr, LogSink::new(log, Stream::Stderr));
        let (status, _out, _err) = tokio::join!(self.until_gone(), stdout, stderr);
        let exit = end.exit(status);
        *self.commands.lock() = Commands::default();
        let at = inner.shared.clock.wall();
        self.observed.send_replace(Observed::Exited { exit, at });
    }

    /// Serves reports until nothing of the namespace is left; the wait status of the main process, if told.
    async fn until_gone(&self) -> Option<i32> {
        let mut ended = None;
        while let Some((report, _sender)) = self.namespace.next_report().await {
            match report {
                Report::Exited(status) => ended = Some(status),
                Report::ExecExited { id, status } => {
                    self.commands
                        .lock()
                        .end(id, Ok(Exit::from_wait_status(status)));
                }
                Report::ExecFailed { id, errno } => self.commands.lock().end(id, Err(errno)),
                Report::Starting | Report::Running | Report::Failed { .. } => {}
            }
        }
        self.namespace.gone().await;
        ended
    }

    pub(super) fn observed(&self) -> Observed {
        self.observed.borrow().clone()
    }

    /// Waits until it has ended. Cancel-safe.
    pub(super) async fn exited(&self) -> Exit {
        let mut watch = self.observed.subscribe();
        match watch
            .wait_for(|now| matches!(now, Observed::Exited { .. }))
            .await
            .as_deref()
        {
            Ok(Observed::Exited { exit, .. }) => exit.clone(),
            _ => Exit::Lost,
        }
    }

    /// Asks the main process to end.
    pub(super) fn terminate(&self) {
        let _may_have_ended = self.namespace.order(Order::Signal(libc::SIGTERM), &[]);
    }

    /// Ends everything, now.
    pub(super) fn kill(&self) {
        self.namespace.kill();
    }

    /// Process id of the init on the machine.
    pub(super) fn init(&self) -> u32 {
        self.namespace.init
    }
}

/// What is needed to tell how it ended.
pub(super) struct End {
    pub(super) group: Group,
    /// Kills for memory in the group before the start.
    pub(super) kills: u64,
}

impl End {
    /// The exit by the wait status of the main process, if it was told, and what the group says.
    pub(super) fn exit(&self, status: Option<i32>) -> Exit {
        let exit = status.map_or(Exit::Lost, Exit::from_wait_status);
        let killed = matches!(exit, Exit::Lost | Exit::Signal(libc::SIGKILL));
        match self.group.memory {
            Some(limit) if killed && self.group.oom_kills() > self.kills => {
                Exit::OutOfMemory { limit }
            }
            _ => exit,
        }
    }
}
