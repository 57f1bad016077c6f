//! How the server listens and where its bounds are.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

/// Settings of an [`super::OpsServer`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpsConfig {
    /// The operators' TCP listener; none for a node that is only reached through its agents' socket.
    pub tcp: Option<TcpConfig>,
    /// The agents' Unix socket; none for a node without process agents.
    pub socket: Option<SocketConfig>,
    /// Where the operator token is kept (0600); made if it is not there. Its folder must exist.
    pub operator_token_file: PathBuf,
    /// Who may read `/metrics`.
    pub metrics: MetricsAccess,
    /// Bounds of connections, requests and streams.
    pub limits: Limits,
    /// How long open requests may take to finish when the server stops; default 5 s.
    pub drain: Duration,
}

/// Default of [`OpsConfig::drain`]: well inside the 30 s that Kubernetes gives a whole pod.
pub const DEFAULT_DRAIN: Duration = Duration::from_secs(5);

impl OpsConfig {
    /// Loopback TCP on a free port, no agents' socket, default bounds.
    pub fn new(operator_token_file: impl Into<PathBuf>) -> Self {
        Self {
            tcp: Some(TcpConfig::default()),
            socket: None,
            operator_token_file: operator_token_file.into(),
            metrics: MetricsAccess::default(),
            limits: Limits::default(),
            drain: DEFAULT_DRAIN,
        }
    }
}

/// The operators' TCP listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpConfig {
    /// Address and port; default `127.0.0.1:0`, which takes a free port.
    pub address: SocketAddr,
    /// Whether plain HTTP may be reachable from other machines.
    pub exposure: Exposure,
    /// Names that a `Host` header may carry beside `localhost` and the addresses of this machine that were dialled.
    pub allowed_hosts: Vec<String>,
}

impl Default for TcpConfig {
    fn default() -> Self {
        Self {
            address: (Ipv4Addr::LOCALHOST, 0).into(),
            exposure: Exposure::default(),
            allowed_hosts: Vec::new(),
        }
    }
}

/// Whether plain HTTP may be reachable from other machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Exposure {
    /// Only loopback addresses are bound.
    #[default]
    LoopbackOnly,
    /// Any address is bound: tokens and content travel in the clear, which someone explicitly asked for.
    Insecure,
}

/// The agents' Unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketConfig {
    /// Path of the socket, at most 107 bytes.
    pub path: PathBuf,
    /// Permission bits; default 0600. 0660 lets agents that run as another user of the node's group in.
    pub mode: u32,
}

impl SocketConfig {
    /// A socket for the node's own user.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            mode: 0o600,
        }
    }
}

/// Who may read `/metrics`. Metrics hold no content (no payload, no id), but they name agents, tenants and topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MetricsAccess {
    /// Anybody on this machine, as scrapers expect; with the operator token where other machines can connect.
    #[default]
    OpenOnLoopback,
    /// Anybody who can connect.
    Open,
    /// Only with the operator token.
    Token,
}

/// Bounds. Each default is far above what a node's own tools need and far below what would hurt it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections per listener; default 1,024.
    pub connections: usize,
    /// Further connections that are only answered `/health` and `/ready`; default 32.
    pub spare_connections: usize,
    /// Time for the head of a request, from its first byte; default 10 s.
    pub head: Duration,
    /// Time a connection may be idle; default 60 s.
    pub idle: Duration,
    /// Time a client may refuse to read what we write; default 30 s.
    pub write_stall: Duration,
    /// Bytes of one request body; default 1 MiB.
    pub body_bytes: usize,
    /// Time for a request body; default 30 s.
    pub body: Duration,
    /// Bytes of all request bodies held at a time; default 64 MiB.
    pub all_bodies_bytes: usize,
    /// Requests that wait for the main runtime; default 1,024. Further ones get 503.
    pub waiting_requests: usize,
    /// Time within which the main runtime must take up a request, or it gets 503; default 3 s.
    pub take_up: Duration,
    /// Time for a handler to begin its answer; default 90 s, above the longest long poll (60 s).
    pub request: Duration,
    /// Requests of one replica at a time; default 64. Further ones get 429, so that one agent cannot crowd out others.
    pub replica_requests: usize,
    /// Event streams at a time; default 64.
    pub event_streams: usize,
    /// Time between two signs of life on a silent event stream; default 15 s, below the patience of usual proxies.
    pub keep_alive: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            spare_connections: 32,
            head: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            write_stall: Duration::from_secs(30),
            body_bytes: 1 << 20,
            body: Duration::from_secs(30),
            all_bodies_bytes: 64 << 20,
            waiting_requests: 1024,
            take_up: Duration::from_secs(3),
            request: Duration::from_secs(90),
            replica_requests: 64,
            event_streams: 64,
            keep_alive: Duration::from_secs(15),
        }
    }
}

/// Time that a spare connection gets for each of its steps: enough for a probe, no place to linger.
const SPARE_PATIENCE: Duration = Duration::from_secs(2);

impl Limits {
    /// The limits of a connection past the bound.
    pub(super) fn spare(self) -> Self {
        let short = |limit: Duration| limit.min(SPARE_PATIENCE);
        Self {
            head: short(self.head),
            idle: short(self.idle),
            write_stall: short(self.write_stall),
            ..self
        }
    }
}
