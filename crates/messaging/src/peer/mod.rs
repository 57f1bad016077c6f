//! Messages between nodes, durable: outboxes, couriers, what is taken from a peer, and who is reachable where.
//!
//! ```text
//! Post ──one batch──▶ outbox/<peer> ─▶ courier: seal, send ─▶ Wire ═══▶ peer's receiver ─▶ Post there: one commit
//!                         ▲                                                   │
//!                         └── taken: done │ for now: again │ for good: parked ◀┘ an answer for each message
//! ```
//!
//! Parts are made in this order: [`Peers::open`], then [`crate::Post`] with [`Peers::routes`], then
//! [`Peers::reception`] and [`Peers::connect`] for each peer with an address.

mod commits;
mod courier;
mod holds;
mod introduce;
mod once;
mod outbox;
mod receive;
mod routes;
mod told;
mod wire;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;
use volary_kernel::{
    clock::{self, Mono, SharedClock, Timestamp},
    id::{Name, Tenant},
    metric::Metrics,
    queue::{self, WhenFull},
    ready::{Heartbeat, Readiness},
    retry::Backoff,
    task::{Supervisor, TaskKind},
};
use volary_store::{QueueError, Queues, SharedStore, StoreError, queue::QueueStats};

pub(crate) use self::routes::{RemoteTarget, RemoteTargets};
use self::{courier::Courier, once::Once, outbox::Outbox, receive::Grounds};
pub use self::{outbox::queue_name, routes::RemoteRoutes, wire::Wire};
use crate::{
    admission::{Admission, Refusal},
    identity::{AgentId, IdentityRegistry, Keyring},
    message::Message,
    post::Post,
    topic::Topic,
    transport::tcp::{LinkState, PeerSpec, Reception},
};

/// Most messages that wait for one peer. Default: 100,000.
pub const DEFAULT_OUTBOX_ITEMS: usize = 100_000;
/// Most bytes that wait for one peer. Default: 256 MiB.
pub const DEFAULT_OUTBOX_BYTES: u64 = 256 << 20;
/// Bounds of the queue for at-most-once messages to one peer. Default: 1024 messages or 16 MiB; the newest is dropped.
pub const DEFAULT_ONCE: queue::QueueConfig = queue::QueueConfig {
    max_items: 1024,
    max_bytes: 16 << 20,
    when_full: WhenFull::DropNewest,
};

/// One peer, and the bounds of what waits for it.
#[derive(Debug, Clone)]
pub struct PeerConfig {
    /// Who it is, and the tenants that messages may be of, to it and from it.
    pub spec: PeerSpec,
    /// Most messages that wait for it.
    pub max_items: usize,
    /// Most bytes that wait for it.
    pub max_bytes: u64,
    /// After how long a message that could not be delivered is parked. Default: never.
    pub give_up: Option<Duration>,
    /// Bounds of the queue for at-most-once messages, and what happens when it is full.
    pub once: queue::QueueConfig,
}

impl PeerConfig {
    /// A peer with the default bounds.
    pub const fn new(spec: PeerSpec) -> Self {
        Self {
            spec,
            max_items: DEFAULT_OUTBOX_ITEMS,
            max_bytes: DEFAULT_OUTBOX_BYTES,
            give_up: None,
            once: DEFAULT_ONCE,
        }
    }
}

/// All peers of a node.
#[derive(Debug, Clone, Default)]
pub struct PeersConfig {
    /// The peers; of two that have an agent of one name, the first has it.
    pub peers: Vec<PeerConfig>,
    /// Topics whose messages are sent to peers once and never stored for them. A message is such a one if it has topics
    /// and all of them are in here.
    pub at_most_once: HashSet<Topic>,
}

/// What peers stand on.
#[derive(Clone)]
pub struct PeerParts {
    /// Where outboxes and what was learned of peers are kept.
    pub store: SharedStore,
    /// The queues of that store.
    pub queues: Queues,
    /// Known identities: what a peer introduces is entered here.
    pub identities: IdentityRegistry,
    /// The keys of this node's agents.
    pub keys: Keyring,
    /// The time.
    pub clock: SharedClock,
    /// Counters.
    pub metrics: Metrics,
}

/// How a peer is, for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// What it is called here.
    pub name: Name,
    /// Its id.
    pub id: AgentId,
    /// Where it listens, if we dial it.
    pub address: Option<String>,
    /// The link to it.
    pub state: PeerState,
    /// Since when that is so.
    pub since: Timestamp,
    /// Why the link was last lost or not had.
    pub last_error: Option<String>,
    /// What waits for it, and what is parked.
    pub outbox: QueueStats,
    /// Its agents that can be reached: tenant, name, topics.
    pub routes: Vec<(Tenant, Name, Vec<Topic>)>,
    /// At-most-once messages to it.
    pub once: OnceCounts,
    /// Messages of it that were taken in and that it has not confirmed yet.
    pub unconfirmed: usize,
}

/// The link to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerState {
    /// It dials us; nothing is sent to it.
    ReceiveOnly,
    /// The link is not up.
    Down,
    /// It is.
    Up,
    /// It was given up.
    Failed,
}

/// What became of at-most-once messages to a peer. Each is counted once: `offered` is the sum of the others and of those
/// on their way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OnceCounts {
    /// Messages that were to be sent.
    pub offered: u64,
    /// The peer has them.
    pub delivered: u64,
    /// The peer turned them back.
    pub refused: u64,
    /// Dropped here, or never answered.
    pub dropped: u64,
}

/// Why peers can not be had.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A queue failed.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// There is no such peer.
    #[error("peer `{0}` is not configured")]
    Unknown(Name),
    /// There is a courier to it already.
    #[error("peer `{0}` is connected already")]
    Connected(Name),
    /// What a peer says of its agents can not be read or stored.
    #[error("what peer `{peer}` says of its agents was not taken: {problem}")]
    Introduction {
        /// The peer.
        peer: Name,
        /// What is wrong.
        problem: String,
    },
}

/// One peer's parts.
struct Peer {
    config: PeerConfig,
    outbox: Outbox,
    once: Once,
    /// Taken by whoever sends from it.
    once_queue: Mutex<Option<queue::Receiver<Message>>>,
    wire: Mutex<Option<Wire>>,
    /// When it was made known.
    opened_at: Timestamp,
    /// One introduction at a time, and none before then.
    introducing: tokio::sync::Mutex<Mono>,
}

/// All peers of a node. Clones share them.
#[derive(Clone)]
pub struct Peers(Arc<Inner>);

struct Inner {
    peers: Vec<Arc<Peer>>,
    routes: RemoteRoutes,
    parts: PeerParts,
    /// Where messages of peers are taken in, once they are.
    post: OnceLock<Post>,
    /// Where couriers and receivers show that they turn, if somewhere.
    readiness: OnceLock<Readiness>,
}

/// Longest a courier or receiver that is well does not turn.
const SILENCE: Duration = Duration::from_secs(3);
/// How often one turns that has nothing to do.
const TURN: Duration = Duration::from_millis(750);

/// A loop's sign of life, if somebody looks at it.
struct Beat(Option<Heartbeat>);

impl Beat {
    fn beat(&self) {
        if let Some(beat) = &self.0 {
            beat.beat();
        }
    }

    /// Waits until it is time to beat again.
    async fn turn(&self) {
        match self.0 {
            Some(_) => clock::sleep(TURN).await,
            None => std::future::pending().await,
        }
    }

    fn retire(self) {
        if let Some(beat) = self.0 {
            beat.retire();
        }
    }
}

/// A courier or receiver that failed is made again.
const COURIER: TaskKind = TaskKind::new("peer-courier").restart(AGAIN);
const RECEIVER: TaskKind = TaskKind::new("peer-receiver").restart(AGAIN);
const ONCE: TaskKind = TaskKind::new("peer-once");
const AGAIN: Backoff = Backoff {
    base: Duration::from_millis(100),
    factor: 2.0,
    max: Duration::from_secs(10),
    jitter: 0.2,
};

impl Peers {
    /// Opens the outboxes and reads what was learned of peers before.
    ///
    /// # Errors
    /// [`PeerError::Store`], [`PeerError::Queue`].
    pub async fn open(config: PeersConfig, parts: PeerParts) -> Result<Self, PeerError> {
        let mut peers = Vec::with_capacity(config.peers.len());
        for config in config.peers {
            let name = &config.spec.name;
            let (once, receiver) = Once::new(config.once, &parts.metrics, name);
            peers.push(Arc::new(Peer {
                outbox: Outbox::open(&parts.queues, &config).await?,
                once,
                once_queue: Mutex::new(Some(receiver)),
                wire: Mutex::new(None),
                opened_at: parts.clock.wall(),
                introducing: tokio::sync::Mutex::new(parts.clock.mono()),
                config,
            }));
        }
        let routes =
            RemoteRoutes::new(peers.clone(), config.at_most_once, parts.identities.clone());
        for (place, peer) in peers.iter().enumerate() {
            let mut known = introduce::stored(&parts.store, &peer.config.spec.name).await?;
            // What was agreed when it was learned may not be any more.
            known.retain(|route| peer.config.spec.tenants.contains(&route.tenant));
            routes.learn(place, known);
        }
        for gone in parts.identities.vouching() {
            if !peers.iter().any(|peer| peer.config.spec.name == gone) {
                // Nobody speaks for its agents now; their names are free.
                let forgotten =
                    parts
                        .identities
                        .introduce(&gone, (&[], &[]), parts.clock.wall(), |_, _, _| {});
                forgotten.await.map_err(|error| PeerError::Introduction {
                    peer: gone.clone(),
                    problem: error.to_string(),
                })?;
            }
        }
        Ok(Self(Arc::new(Inner {
            peers,
            routes,
            parts,
            post: OnceLock::new(),
            readiness: OnceLock::new(),
        })))
    }

    /// Shows in `readiness` whether couriers and receivers turn: a peer that is down is no reason for them not to. For
    /// those begun after this call.
    pub fn watched_by(&self, readiness: &Readiness) {
        // The first stays: there is one register in a node.
        let _first = self.0.readiness.set(readiness.clone());
    }

    fn beat(&self, what: &str, peer: &Name) -> Beat {
        let readiness = self.0.readiness.get();
        Beat(readiness.map(|readiness| readiness.heartbeat(format!("{what} {peer}"), SILENCE)))
    }

    /// What [`crate::PostConfig::remote`] takes.
    pub fn routes(&self) -> RemoteRoutes {
        self.0.routes.clone()
    }

    fn find(&self, name: &Name) -> Result<(usize, &Arc<Peer>), PeerError> {
        let mut peers = self.0.peers.iter().enumerate();
        let found = peers.find(|(_, peer)| peer.config.spec.name == *name);
        found.ok_or_else(|| PeerError::Unknown(name.clone()))
    }

    /// The name of one of this node's agents, by its id.
    fn sender_name(&self, id: &AgentId) -> Option<Name> {
        self.0.parts.identities.get(id).map(|known| known.name)
    }

    /// Begins to send to `peer` over `wire`: one supervised courier, and one task for at-most-once messages. Once per peer
    /// in a life of the process.
    ///
    /// # Errors
    /// [`PeerError::Unknown`], [`PeerError::Connected`].
    pub fn connect(&self, peer: &Name, wire: Wire, tasks: &Supervisor) -> Result<(), PeerError> {
        let (_, peer) = self.find(peer)?;
        let name = &peer.config.spec.name;
        let Some(once_queue) = peer.once_queue.lock().take() else {
            return Err(PeerError::Connected(name.clone()));
        };
        *peer.wire.lock() = Some(wire.clone());
        let PeerParts {
            store,
            keys,
            clock,
            metrics,
            ..
        } = &self.0.parts;
        let (tally, stop) = (peer.once.tally.clone(), tasks.token());
        let once = once::run(once_queue, tally, wire.clone(), keys.clone(), stop.clone());
        tasks.spawn(ONCE, once);
        let counters = courier::Counters::new(metrics, name);
        let (peers, peer) = (self.clone(), peer.clone());
        let (store, keys, clock) = (store.clone(), keys.clone(), clock.clone());
        tasks.spawn_restarting(COURIER, move || {
            let courier = Courier {
                peers: peers.clone(),
                peer: peer.clone(),
                wire: wire.clone(),
                keys: keys.clone(),
                store: store.clone(),
                clock: clock.clone(),
                counters: counters.clone(),
            };
            courier.run(stop.clone())
        });
        Ok(())
    }

    /// Begins to take messages of peers into `post`, one supervised task for each peer: what a
    /// [`crate::transport::tcp::Listener`] is given. `introduction` is what we say of our agents.
    pub fn reception(
        &self,
        post: &Post,
        introduction: watch::Receiver<Bytes>,
        tasks: &Supervisor,
    ) -> Reception {
        let PeerParts {
            store,
            identities,
            clock,
            metrics,
            ..
        } = &self.0.parts;
        // The first stays: there is one post in a node.
        let _first = self.0.post.set(post.clone());
        let (mut desks, mut rejecting) = (HashMap::new(), HashMap::new());
        for peer in &self.0.peers {
            let grounds = Grounds {
                post: post.clone(),
                store: store.clone(),
                identities: identities.clone(),
                clock: clock.clone(),
                metrics: metrics.clone(),
            };
            let spec = &peer.config.spec;
            let (desk, receiver) = receive::desk(spec.name.clone(), spec.tenants.clone(), grounds);
            rejecting.insert(spec.name.clone(), desk.clone());
            let (receiver, stop) = (Arc::new(receiver), tasks.token());
            let (peers, name) = (self.clone(), spec.name.clone());
            tasks.spawn_restarting(RECEIVER, move || {
                let beat = peers.beat("peer-receiver", &name);
                receiver.clone().run(beat, stop.clone())
            });
            desks.insert(spec.name.clone(), desk);
        }
        let (identities, peers) = (identities.clone(), self.clone());
        Reception {
            trust: Arc::new(move |_| identities.clone()),
            introduced: Arc::new(move |peer, said| {
                let peers = peers.clone();
                Box::pin(async move {
                    let taken = peers.introduced(&peer.name, said).await;
                    taken.map_err(|error| error.to_string())
                })
            }),
            arrived: Arc::new(move |arrival| match desks.get(&arrival.peer.name) {
                Some(desk) => desk.arrived(arrival),
                // It was taken out of the configuration.
                None => {
                    let answer = Admission::Refused(Refusal::Closed);
                    let answers = vec![answer; arrival.frame.messages().len()];
                    Box::pin(std::future::ready(answers))
                }
            }),
            rejected: Arc::new(move |rejected| match rejecting.get(&rejected.peer.name) {
                Some(desk) => desk.rejected(rejected),
                None => Box::pin(std::future::ready(())),
            }),
            introduction,
        }
    }

    /// Every peer, as configured.
    pub fn status(&self) -> Vec<PeerStatus> {
        let peers = self.0.peers.iter().enumerate();
        peers
            .map(|(place, peer)| self.status_of(place, peer))
            .collect()
    }

    fn status_of(&self, place: usize, peer: &Peer) -> PeerStatus {
        let wire = peer
            .wire
            .lock()
            .as_ref()
            .map(|wire| wire.state().borrow().clone());
        let (state, since, last_error) = match wire {
            None => (PeerState::ReceiveOnly, peer.opened_at, None),
            Some(LinkState::Connected { since, .. }) => (PeerState::Up, since, None),
            Some(LinkState::Connecting { last_error, .. }) => {
                (PeerState::Down, peer.opened_at, last_error)
            }
            Some(LinkState::Failed { reason }) => (PeerState::Failed, peer.opened_at, Some(reason)),
        };
        let routes = self.0.routes.of(place).into_iter();
        PeerStatus {
            name: peer.config.spec.name.clone(),
            id: AgentId::of(&peer.config.spec.key),
            address: peer.config.spec.address.clone(),
            state,
            since,
            last_error,
            outbox: peer.outbox.queue.stats(),
            routes: routes
                .map(|route| (route.tenant, route.name, route.topics))
                .collect(),
            once: peer.once.tally.counts(),
            unconfirmed: self
                .0
                .post
                .get()
                .map_or(0, |post| post.unconfirmed(&peer.config.spec.name)),
        }
    }
}
