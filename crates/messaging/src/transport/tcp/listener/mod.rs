//! The accepting side of links.
//!
//! ```text
//! accept ─▶ place in the handshake ─▶ TLS ─▶ Hello ─▶ known? room? introduced ─▶ HelloAck ─▶ frames … ─▶ Bye
//!              │ none: closed, counted       each within the handshake time; else closed, counted by reason
//! ```
//! One task per connection. A connection that is slow, silent or stuck holds up nobody but itself.

mod lanes;
mod receive;
mod serve;
mod table;

use std::{fmt, io, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use volary_kernel::{
    clock::{self, SharedClock, Timestamp},
    id::Name,
    metric::Metrics,
    task::{Supervisor, TaskKind},
};

pub use self::receive::{OpaqueArrival, OpaqueArrived};
use self::table::{Knock, Table};
use super::{
    Answer, Durable, Incoming, LimitError, ListenConfig, Net, PeerBook, PeerSpec, Security,
    metrics::ListenerMetrics, tls,
};
use crate::{
    frame::OpenFrame,
    identity::{Identity, IdentityRegistry},
};

/// A verified frame.
#[derive(Debug)]
pub struct Arrival {
    /// Who brought it.
    pub peer: PeerSpec,
    /// Its messages, of one sender whom the peer's registry trusts.
    pub frame: OpenFrame,
    /// What a durable sender said beside them; one order per message.
    pub durable: Option<Durable>,
}

/// Whom the agents behind a peer are.
pub type TrustOf = Arc<dyn Fn(&PeerSpec) -> IdentityRegistry + Send + Sync>;
/// Takes an introduction; an error refuses it, with words for the peer.
pub type Introduced =
    Arc<dyn Fn(PeerSpec, Bytes) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;
/// Takes a verified frame and answers each of its messages.
pub type Arrived = Arc<dyn Fn(Arrival) -> BoxFuture<'static, Vec<Answer>> + Send + Sync>;

/// A frame that was refused before anybody saw it: its bytes are no frame, or its seal is not good.
#[derive(Debug, Clone)]
pub struct Rejected {
    /// Who brought it.
    pub peer: PeerSpec,
    /// Messages in it, as the peer says.
    pub count: usize,
    /// A word for what is wrong, as in the metric.
    pub reason: &'static str,
    /// What is wrong.
    pub problem: String,
}

/// Is told of a refused frame.
pub type OnRejected = Arc<dyn Fn(Rejected) -> BoxFuture<'static, ()> + Send + Sync>;

/// What is done with what arrives.
///
/// - `introduced` is awaited before a connection counts as made, and whenever the peer says something new; no frame is
///   looked at meanwhile, so that a frame is judged by the introduction that was sent before it.
/// - `arrived` gets the frames of one sender one after the other, each after the answers to the one before; frames of
///   different senders may be in it at the same time, up to the window. It must return one answer per message.
/// - `rejected` is told of each frame that was refused before `arrived`; the answer waits for it.
/// - A panic in any of them is contained: it is answered as a refusal.
#[derive(Clone)]
pub struct Reception {
    /// Whose seals are accepted from a peer.
    pub trust: TrustOf,
    /// Takes introductions.
    pub introduced: Introduced,
    /// Takes frames.
    pub arrived: Arrived,
    /// Is told of refused frames.
    pub rejected: OnRejected,
    /// Who our agents are: told at each connect, and again when it changes.
    pub introduction: watch::Receiver<Bytes>,
}

/// What a listener is made of.
#[derive(Clone)]
pub struct ListenerConfig {
    /// Where and how.
    pub listen: ListenConfig,
    /// Whose key is shown.
    pub me: Identity,
    /// What we call ourselves.
    pub name: Name,
    /// Larger after each start of this node.
    pub incarnation: u64,
    /// Who may connect.
    pub peers: PeerBook,
    /// What is done with what arrives.
    pub reception: Reception,
    /// Where sockets come from.
    pub net: Net,
    /// What [`ConnectionStatus::since`] is read from.
    pub clock: SharedClock,
    /// Runs the listener's tasks.
    pub tasks: Supervisor,
    /// Counts.
    pub metrics: Metrics,
}

/// Why there is no listener.
#[derive(Debug, thiserror::Error)]
pub enum TcpError {
    /// The address can not be had.
    #[error("can not listen on {address}: {source}")]
    Bind {
        /// The address.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// Plaintext on an address that others reach.
    #[error(
        "{address} is not a loopback address: without TLS, only 127.0.0.1, [::1] and localhost are allowed"
    )]
    Exposed {
        /// The address.
        address: String,
    },
    /// The limits make no sense.
    #[error(transparent)]
    Limits(#[from] LimitError),
    /// The identity key can not be used for TLS.
    #[error("the identity key can not be used for TLS: {0}")]
    Key(String),
}

/// One live connection from a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionStatus {
    /// The peer, as configured.
    pub peer: Name,
    /// Where it comes from; absent for pipes in memory.
    pub remote: Option<SocketAddr>,
    /// Since when.
    pub since: Timestamp,
}

/// Connections that were turned away in or before the handshake, since the listener began. A flood of them is one change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TurnedAway {
    /// How many.
    pub count: u64,
    /// Where the last one came from; absent for pipes in memory.
    pub remote: Option<SocketAddr>,
    /// The word that it is counted under.
    pub reason: &'static str,
    /// Why, in words.
    pub words: String,
}

/// The accepting side. Clones share it; when the last is dropped, it stops.
#[derive(Clone)]
pub struct Listener {
    address: SocketAddr,
    turned_away: watch::Sender<TurnedAway>,
    table: Arc<Table>,
    closing: CancellationToken,
    running: TaskTracker,
    _last: Arc<DropGuard>,
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Listener({})", self.address)
    }
}

/// What the connections of a listener share.
struct Inner {
    config: ListenerConfig,
    /// Absent without protection.
    tls: Option<Arc<rustls::ServerConfig>>,
    opaque: Option<OpaqueArrived>,
    table: Arc<Table>,
    metrics: ListenerMetrics,
    turned_away: watch::Sender<TurnedAway>,
    closing: CancellationToken,
    running: TaskTracker,
}

/// How long accepting rests after the system refused to give a connection (no more file descriptors, mostly).
const ACCEPT_REST: std::time::Duration = std::time::Duration::from_millis(50);

impl Listener {
    /// Binds and begins to accept.
    ///
    /// # Errors
    /// [`TcpError`].
    pub async fn bind(config: ListenerConfig) -> Result<Self, TcpError> {
        Self::start(config, None).await
    }

    /// The same for frames of an own format: they are not opened here, and nothing is known of their senders but the
    /// peer. All frames of a connection are one sender's. [`Reception::trust`] and [`Reception::arrived`] are not used.
    ///
    /// # Errors
    /// [`TcpError`].
    pub async fn bind_opaque(
        config: ListenerConfig,
        arrived: OpaqueArrived,
    ) -> Result<Self, TcpError> {
        Self::start(config, Some(arrived)).await
    }

    async fn start(
        config: ListenerConfig,
        opaque: Option<OpaqueArrived>,
    ) -> Result<Self, TcpError> {
        config.listen.limits.check()?;
        let address = config.listen.address.clone();
        let tls = match config.listen.security {
            Security::Tls => {
                let server = tls::server(&config.me, &config.peers);
                Some(server.map_err(|error| TcpError::Key(error.to_string()))?)
            }
            Security::Insecure => None,
        };
        let bound = config.net.listen(&address).await;
        let bound = bound.map_err(|source| TcpError::Bind {
            address: address.clone(),
            source,
        })?;
        if tls.is_none() && !bound.address().ip().is_loopback() {
            return Err(TcpError::Exposed { address });
        }
        let metrics = ListenerMetrics::new(&config.metrics);
        let table = Table::new(config.listen.limits, metrics.connections.clone());
        let closing = config.tasks.token().child_token();
        let running = TaskTracker::new();
        let tasks = config.tasks.clone();
        let turned_away = watch::Sender::new(TurnedAway::default());
        let inner = Arc::new(Inner {
            turned_away: turned_away.clone(),
            config,
            tls,
            opaque,
            table: table.clone(),
            metrics,
            closing: closing.clone(),
            running: running.clone(),
        });
        let listener = Self {
            address: bound.address(),
            turned_away,
            table,
            _last: Arc::new(closing.clone().drop_guard()),
            closing,
            running,
        };
        let token = inner.running.token();
        tasks.spawn(TaskKind::new("tcp-accept").vital(), async move {
            inner.accept(bound).await;
            drop(token);
            Ok(())
        });
        Ok(listener)
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The connections that are there now, by peer.
    pub fn connections(&self) -> Vec<ConnectionStatus> {
        self.table.status()
    }

    /// Whom it turned away: seen as changed when somebody is.
    pub fn turned_away(&self) -> watch::Receiver<TurnedAway> {
        self.turned_away.subscribe()
    }

    /// Stops accepting, lets what arrived be answered (at most the drain time), and closes all connections.
    /// Cancel-safe: it closes all the same.
    pub async fn close(&self) {
        self.closing.cancel();
        self.running.close();
        self.running.wait().await;
    }
}

impl Inner {
    /// Accepts until the listener closes.
    async fn accept(self: Arc<Self>, incoming: Incoming) {
        let mut changes = self.config.peers.changes();
        loop {
            tokio::select! {
                biased;
                () = self.closing.cancelled() => return,
                _changed = changes.changed() => self.table.sweep(&self.config.peers),
                accepted = incoming.accept() => match accepted {
                    Ok(stream) => self.clone().welcome(stream),
                    Err(error) => {
                        self.metrics.refused.with(&["accept"]).inc();
                        tracing::warn!(%error, "can not accept a connection");
                        let rest = clock::sleep(ACCEPT_REST);
                        let _closed = self.closing.run_until_cancelled(rest).await;
                    }
                },
            }
        }
    }

    /// Counts a connection that did not come about.
    fn turn_away(&self, remote: Option<SocketAddr>, reason: &'static str, words: String) {
        self.metrics.refused.with(&[reason]).inc();
        self.turned_away.send_modify(|last| {
            *last = TurnedAway {
                count: last.count + 1,
                remote,
                reason,
                words,
            };
        });
    }

    fn welcome(self: Arc<Self>, stream: super::Stream) {
        match self.table.knock(stream.remote(), &self.closing) {
            Knock::Out(reason) => {
                let words = "more connections than are taken at once".to_owned();
                self.turn_away(stream.remote(), reason, words);
            }
            Knock::In(place) => {
                let token = self.running.token();
                let tasks = self.config.tasks.clone();
                tasks.spawn(TaskKind::new("tcp-connection"), async move {
                    serve::serve(self, stream, place).await;
                    drop(token);
                    Ok(())
                });
            }
        }
    }
}
