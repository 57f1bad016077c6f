//! [`OpsServer`]: binds, serves on a thread of its own, drains.
//!
//! ```text
//!   bind ──▶ bound (addresses known, nothing answered) ──run──▶ serving
//!                                                                  │ the supervisor's token is cancelled
//!                                                                  ▼
//!            stopped, socket removed ◀──all done or deadline── draining: /ready says 503, streams end,
//!                                                               idle connections close, open requests finish
//! ```

mod activity;
mod body;
mod config;
mod conn;
mod envelope;
mod forward;
mod front;
mod io;
mod listen;
mod own;
mod peers;
mod probes;
mod routes;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use volary_kernel::{
    SharedClock,
    metric::Metrics,
    ready::Readiness,
    secret::{Redactor, Secret},
    task::{DrainReport, Supervisor, TaskKind, TaskResult},
};
use volary_store::SharedStore;

pub use self::{
    config::{DEFAULT_DRAIN, Exposure, Limits, MetricsAccess, OpsConfig, SocketConfig, TcpConfig},
    listen::SOCKET_PATH_MAX,
    probes::{DEFAULT_CHECK, ProbeFn, ProbeParts, ProbeServer, RunningProbes},
};
use self::{
    conn::{Answering, Listener},
    forward::{Backstage, Job},
    front::Front,
    listen::SocketFile,
    own::OwnSection,
    peers::Peers,
};
use crate::{
    OpsError, TokenTable, auth,
    events::{EventsSection, Signals},
    metrics::OpsMetrics,
    section::Section,
};

/// Longest silence of the main runtime before `/health` says so. It beats four times as often.
const RUNTIME_SILENCE: Duration = Duration::from_secs(4);

/// What the node hands to its server.
pub struct OpsParts {
    /// Version of the node, for `volary_build_info` and the API document.
    pub version: String,
    /// The clock of the node.
    pub clock: SharedClock,
    /// What `/health` and `/ready` tell.
    pub readiness: Readiness,
    /// What `/metrics` tells.
    pub metrics: Metrics,
    /// The declared secrets, which no answer shows.
    pub redactor: Redactor,
    /// Whose journal `/events` tells.
    pub store: SharedStore,
    /// The live feed of what is in no journal.
    pub signals: Signals,
    /// The link tokens in force.
    pub links: TokenTable,
    /// What the parts of the node add.
    pub sections: Vec<Arc<dyn Section>>,
}

/// The HTTP server of a node, bound and ready to [`OpsServer::run`].
pub struct OpsServer {
    front: Arc<Front>,
    backstage: Backstage,
    jobs: mpsc::Receiver<Job>,
    listeners: Vec<StdListener>,
    socket: Option<SocketFile>,
    handle: OpsHandle,
    readiness: Readiness,
    drain: Duration,
    stopping: CancellationToken,
}

enum StdListener {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

/// Where a server is found; cheap to clone.
#[derive(Debug, Clone)]
pub struct OpsHandle {
    tcp: Option<SocketAddr>,
    socket: Option<PathBuf>,
    operator: Secret,
    links: TokenTable,
}

impl OpsHandle {
    /// The operators' address.
    pub const fn address(&self) -> Option<SocketAddr> {
        self.tcp
    }

    /// The agents' socket.
    pub fn socket(&self) -> Option<&std::path::Path> {
        self.socket.as_deref()
    }

    /// The operator token, for a ready-made URL on the operator's own terminal and nowhere else.
    pub const fn operator_token(&self) -> &Secret {
        &self.operator
    }

    /// The link tokens in force.
    pub const fn links(&self) -> &TokenTable {
        &self.links
    }
}

impl OpsServer {
    /// Makes or reads the operator token, checks all routes and binds the listeners. Nothing is answered before
    /// [`OpsServer::run`].
    ///
    /// # Errors
    /// [`OpsError`], each with a code and a hint.
    pub fn bind(config: OpsConfig, parts: OpsParts) -> Result<Self, OpsError> {
        let stopping = CancellationToken::new();
        let metrics = OpsMetrics::new(&parts.metrics, &parts.version);
        let (own, sections) = all_sections(&config, &parts, &metrics, &stopping);
        let mounted = routes::collect(
            sections
                .iter()
                .map(|section| section.as_ref() as &dyn Section),
        )?;
        own.complete(routes::document(&parts.version, &mounted), sections);
        let operator = auth::load_or_create(&config.operator_token_file)?;
        if let Err(error) = parts.redactor.add(&operator) {
            tracing::warn!(%error, "the operator token is not watched for in texts");
        }
        let tcp = config.tcp.as_ref().map(listen::tcp).transpose()?;
        let socket = config.socket.as_ref().map(listen::unix).transpose()?;
        let handle = OpsHandle {
            tcp: tcp.as_ref().map(|(_, address)| *address),
            socket: config.socket.as_ref().map(|socket| socket.path.clone()),
            operator: operator.clone(),
            links: parts.links.clone(),
        };
        let (forward, jobs) = forward::bridge(&config.limits);
        let backstage = Backstage {
            routers: Arc::new(routes::routers(&mounted)),
            limits: config.limits,
            metrics: metrics.clone(),
            redactor: parts.redactor.clone(),
        };
        let front = Arc::new(Front {
            readiness: parts.readiness.clone(),
            metrics,
            metrics_access: config.metrics,
            redactor: parts.redactor,
            operator,
            links: parts.links,
            allowed_hosts: config.tcp.map(|tcp| tcp.allowed_hosts).unwrap_or_default(),
            limits: config.limits,
            bodies: Arc::new(Semaphore::new(config.limits.all_bodies_bytes)),
            peers: Peers::new(&config.limits),
            forward,
            clock: parts.clock,
            stopping: stopping.clone(),
            open: routes::open(&mounted),
        });
        let (unix, socket) = socket.unzip();
        let tcp = tcp.map(|(listener, _)| StdListener::Tcp(listener));
        let listeners = tcp.into_iter().chain(unix.map(StdListener::Unix)).collect();
        let (readiness, drain) = (parts.readiness, config.drain);
        Ok(Self {
            front,
            backstage,
            jobs,
            listeners,
            socket,
            handle,
            readiness,
            drain,
            stopping,
        })
    }

    /// Where the server is found.
    pub fn handle(&self) -> OpsHandle {
        self.handle.clone()
    }

    /// Serves until the token of `tasks` is cancelled, then drains within [`OpsConfig::drain`] and returns what had to
    /// be cut. Runs on the node's main runtime; the listening thread and all requests belong to `tasks`.
    ///
    /// Give the server a supervisor of its own and drain it last, with a deadline above [`OpsConfig::drain`]: health
    /// is then told to the end. That the rest of the node is stopping before that is told by a latch of the node.
    /// Dropped early, it stops at once.
    ///
    /// # Errors
    /// [`OpsError::Resources`] if the system has no thread or runtime to give.
    pub async fn run(self, tasks: Supervisor) -> Result<DrainReport, OpsError> {
        let Self {
            front,
            backstage,
            jobs,
            listeners,
            socket: _removed_at_the_end,
            readiness,
            drain,
            stopping,
            ..
        } = self;
        let heartbeat = readiness.heartbeat("runtime", RUNTIME_SILENCE);
        let dispatched = CancellationToken::new();
        let _ends_dispatch = dispatched.clone().drop_guard();
        let dispatch = forward::dispatch(jobs, backstage, tasks.clone(), heartbeat, dispatched);
        tasks.spawn(TaskKind::new("ops-dispatch"), async move {
            dispatch.await;
            Ok(())
        });
        let _stops_thread = stopping.clone().drop_guard();
        let (done, drained) = oneshot::channel();
        let stop = stopping.clone();
        let thread = move || serve(front, listeners, stop, drain, done);
        tasks
            .spawn_thread(TaskKind::new("ops").vital(), thread)
            .map_err(OpsError::Resources)?;
        let mut drained = std::pin::pin!(drained);
        tokio::select! {
            () = cancelled(&tasks) => stopping.cancel(),
            early = &mut drained => return finished(early),
        }
        finished(drained.await)
    }
}

async fn cancelled(tasks: &Supervisor) {
    tasks.token().cancelled().await;
}

fn finished(
    report: Result<DrainReport, oneshot::error::RecvError>,
) -> Result<DrainReport, OpsError> {
    report.map_err(|_| OpsError::Resources(std::io::Error::other("the ops thread ended early")))
}

fn all_sections(
    config: &OpsConfig,
    parts: &OpsParts,
    metrics: &OpsMetrics,
    stopping: &CancellationToken,
) -> (OwnSection, Vec<Arc<dyn Section>>) {
    let own = OwnSection::default();
    let events = EventsSection::new(parts, config.limits, metrics.clone(), stopping.clone());
    let mut sections: Vec<Arc<dyn Section>> = vec![Arc::new(own.clone()), Arc::new(events)];
    sections.extend(parts.sections.iter().cloned());
    (own, sections)
}

/// The ops thread.
fn serve<A: Answering>(
    front: Arc<A>,
    listeners: Vec<StdListener>,
    stop: CancellationToken,
    drain: Duration,
    done: oneshot::Sender<DrainReport>,
) -> TaskResult {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let report = runtime.block_on(async {
        let connections = Supervisor::new();
        for listener in listeners {
            let listener = match listener {
                StdListener::Tcp(listener) => {
                    Listener::Tcp(tokio::net::TcpListener::from_std(listener)?)
                }
                StdListener::Unix(listener) => {
                    Listener::Unix(tokio::net::UnixListener::from_std(listener)?)
                }
            };
            let accept = conn::accept(listener, front.clone(), connections.clone());
            connections.spawn(TaskKind::new("ops-accept").vital(), async move {
                accept.await;
                Ok(())
            });
        }
        let broken = tokio::select! {
            () = stop.cancelled() => None,
            // Without somebody who accepts, the server is deaf: better to stop than to look alive.
            reason = connections.shutdown_requested() => Some(reason),
        };
        let report = connections.drain(drain).await;
        broken.map_or(Ok(report), |reason| Err(std::io::Error::other(reason)))
    });
    // A check that hangs does not hold the thread.
    runtime.shutdown_background();
    let report = report?;
    let _nobody_waits = done.send(report);
    Ok(())
}
