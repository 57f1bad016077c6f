//! [`RuntimeOpsServer`]: the ops server of a Rust user's own [`AgentRuntime`].

use std::{fmt, net::SocketAddr, sync::Arc};

use parking_lot::Mutex as SyncMutex;
use tokio::sync::Mutex;
use volary_kernel::{
    clock::{SharedClock, SystemClock},
    collector::MetricsCollector,
};
use volary_messaging::{
    Transport,
    agent::{Agent, AgentRuntime, Companion, RuntimeProbe},
};
use volary_ops::{
    DEFAULT_CHECK, DEFAULT_DRAIN, Exposure, Limits, OpsError, ProbeParts, ProbeServer,
    RunningProbes, TcpConfig,
};

use crate::VERSION;

/// Why a [`RuntimeOpsServer`] does not start or stop.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeOpsError {
    /// The host has no address.
    #[error("ops server: `{host}` has no address")]
    Host {
        /// The host.
        host: String,
        /// What the system said.
        source: Option<std::io::Error>,
    },
    /// The server can not listen or run. The text says where.
    #[error("ops server: {0}")]
    Ops(#[from] OpsError),
}

/// `GET /health`, `/ready` and `/metrics` of a runtime, from a thread of its own. Cheap to clone; clones are one server.
///
/// ```text
/// /health   200 {"status":"ok","checks":[…]}       503 {"status":"unhealthy","checks":[{…,"reason":"…"}]}
/// /ready    200 {"status":"ready","checks":[…]}    503 {"status":"not_ready","checks":[…]}
/// /metrics  200 Prometheus 0.0.4, or OpenMetrics if Accept asks for it; empty without a collector
/// other     404 {"error":"not found"}
/// ```
///
/// It holds no secret and changes nothing, so it asks for no token; it is bound to loopback unless
/// [`RuntimeOpsServer::exposed`] says that something in front protects it: see `docs/recipes/reverse-proxy.md`.
///
/// A user's health and readiness checks run beside its thread for at most [`DEFAULT_CHECK`]; a panic or a delay is 503.
#[derive(Clone)]
pub struct RuntimeOpsServer(Arc<Inner>);

struct Inner {
    probe: RuntimeProbe,
    metrics: Option<MetricsCollector>,
    host: String,
    port: u16,
    exposure: Exposure,
    allowed_hosts: Vec<String>,
    limits: Limits,
    clock: SharedClock,
    running: Mutex<Option<RunningProbes>>,
    address: SyncMutex<Option<SocketAddr>>,
}

impl fmt::Debug for RuntimeOpsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RuntimeOpsServer({:?})", self.address())
    }
}

impl RuntimeOpsServer {
    /// A server of `runtime` on `host` and `port`; port 0 takes a free one. Nothing is bound before
    /// [`RuntimeOpsServer::start`], which the runtime calls before it starts anything else.
    pub fn new<A: Agent, T: Transport>(
        runtime: &AgentRuntime<A, T>,
        metrics: impl Into<Option<MetricsCollector>>,
        host: impl Into<String>,
        port: u16,
    ) -> Self {
        Self::of_probe(runtime.probe(), metrics.into(), host.into(), port)
    }

    /// The same for what tells about a runtime, so that the server can be given to the runtime's builder.
    pub fn of_probe(
        probe: RuntimeProbe,
        metrics: Option<MetricsCollector>,
        host: String,
        port: u16,
    ) -> Self {
        Self(Arc::new(Inner {
            probe,
            metrics,
            host,
            port,
            exposure: Exposure::LoopbackOnly,
            allowed_hosts: Vec::new(),
            limits: Limits::default(),
            clock: SystemClock::shared(),
            running: Mutex::default(),
            address: SyncMutex::default(),
        }))
    }

    /// Lets it be bound to an address that other machines reach: what is in front of it, or the network, protects it.
    /// `names` are those that a `Host` header may carry beside the address itself.
    #[must_use]
    pub fn exposed(self, names: Vec<String>) -> Self {
        self.change(|inner| {
            inner.exposure = Exposure::Insecure;
            inner.allowed_hosts = names;
        })
    }

    /// Other bounds than [`Limits::default`].
    #[must_use]
    pub fn limits(self, limits: Limits) -> Self {
        self.change(|inner| inner.limits = limits)
    }

    /// Changes settings before the first start; a server that is shared already is copied.
    fn change(self, change: impl FnOnce(&mut Inner)) -> Self {
        let old = &self.0;
        let mut inner = Inner {
            probe: old.probe.clone(),
            metrics: old.metrics.clone(),
            host: old.host.clone(),
            port: old.port,
            exposure: old.exposure,
            allowed_hosts: old.allowed_hosts.clone(),
            limits: old.limits,
            clock: old.clock.clone(),
            running: Mutex::default(),
            address: SyncMutex::default(),
        };
        change(&mut inner);
        Self(Arc::new(inner))
    }

    /// Binds and answers; nothing happens if it does already.
    ///
    /// # Errors
    /// [`RuntimeOpsError`]; nothing was started.
    pub async fn start(&self) -> Result<(), RuntimeOpsError> {
        let mut running = self.0.running.lock().await;
        if running.is_some() {
            return Ok(());
        }
        let address = self.resolve().await?;
        let (health, ready) = (self.0.probe.clone(), self.0.probe.clone());
        let server = ProbeServer::bind(ProbeParts {
            version: VERSION.to_owned(),
            clock: self.0.clock.clone(),
            health: Arc::new(move || health.health()),
            ready: Arc::new(move || ready.ready()),
            metrics: self.0.metrics.clone(),
            tcp: TcpConfig {
                address,
                exposure: self.0.exposure,
                allowed_hosts: self.0.allowed_hosts.clone(),
            },
            limits: self.0.limits,
            check: DEFAULT_CHECK,
            drain: DEFAULT_DRAIN,
        })?;
        let started = server.spawn()?;
        *self.0.address.lock() = Some(started.address());
        *running = Some(started);
        Ok(())
    }

    async fn resolve(&self) -> Result<SocketAddr, RuntimeOpsError> {
        let host = self.0.host.trim_start_matches('[').trim_end_matches(']');
        let unknown = |source| RuntimeOpsError::Host {
            host: self.0.host.clone(),
            source,
        };
        let mut found = tokio::net::lookup_host((host, self.0.port))
            .await
            .map_err(|error| unknown(Some(error)))?;
        found.next().ok_or_else(|| unknown(None))
    }

    /// Ends it; nothing happens if it does not run. Idle connections close at once, open requests have
    /// [`DEFAULT_DRAIN`].
    ///
    /// # Errors
    /// [`RuntimeOpsError`] if its thread had ended before.
    pub async fn stop(&self) -> Result<(), RuntimeOpsError> {
        let Some(running) = self.0.running.lock().await.take() else {
            return Ok(());
        };
        *self.0.address.lock() = None;
        running.stop().await?;
        Ok(())
    }

    /// The address it answers on; none while it does not.
    pub fn address(&self) -> Option<SocketAddr> {
        *self.0.address.lock()
    }
}

impl From<RuntimeOpsServer> for Companion {
    fn from(server: RuntimeOpsServer) -> Self {
        let (start, stop) = (server.clone(), server);
        Self::new(
            "the ops server",
            move || {
                let server = start.clone();
                async move { server.start().await.map_err(Into::into) }
            },
            move || {
                let server = stop.clone();
                async move { server.stop().await.map_err(Into::into) }
            },
        )
    }
}
