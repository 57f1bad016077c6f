//! Other nodes: who they are, who our agents are to them, and the links in both directions.
//!
//! ```text
//! open   identities (store) ─▶ outboxes and routes ─▶ [post] ─▶ our agents registered and introduced
//! start  courier ─▶ link (dials) for each peer with an address, then the listener
//! stop   listener ─▶ [handlers finish] ─▶ couriers ─▶ links
//! ```
//! A peer that is down costs nothing but the room in its outbox, so it is shown and never makes this node unhealthy.

mod loops;
mod successions;
mod switch;
mod told;

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use volary_deploy::spec::model::{AgentSpec, FleetSpec, LinkLimits};
use volary_kernel::{
    Name, SharedClock,
    clock::{self, WallSteps},
    metric::Metrics,
    ready::Readiness,
    task::{Supervisor, TaskKind, TaskResult},
};
use volary_messaging::{
    AgentId, Identity, IdentityRegistry, Post, Sender, Topic,
    discovery::{Descriptor, Introduction, SignedDescriptor},
    identity::{Keyring, Known, RegistryError, Status, Succession, Voucher},
    peer::{PeerConfig, PeerParts, PeerState, PeerStatus, Peers, PeersConfig},
    transport::tcp::{
        Link, LinkConfig, ListenConfig, Listener, ListenerConfig, Net, PeerBook, PeerSpec,
        Security, TcpLimits,
    },
};
use volary_store::{Queues, SharedStore};

pub(crate) use self::loops::Loops;
use self::{switch::Switch, told::Teller};
use crate::{core::Voice, error::NodeError};

/// How long an agent's description of itself holds at a peer that hears nothing more of us.
const DESCRIBED_FOR: Duration = Duration::from_secs(24 * 3600);
/// How often it is said anew.
const DESCRIBED_EVERY: Duration = Duration::from_secs(6 * 3600);
/// How often it is looked whether the clock was set: by this much or more, what was said holds for another time.
const CLOCK_LOOK: Duration = Duration::from_secs(10);

const TELL: TaskKind = TaskKind::new("link-journal");

/// What neighbours stand on.
pub(crate) struct Ground<'a> {
    pub store: &'a SharedStore,
    pub queues: &'a Queues,
    pub clock: &'a SharedClock,
    pub metrics: &'a Metrics,
    pub me: &'a Identity,
}

/// This node among others.
pub(crate) struct Neighbours {
    pub peers: Peers,
    pub identities: IdentityRegistry,
    pub keys: Keyring,
    book: PeerBook,
    order: Vec<Name>,
    me: Identity,
    name: Name,
    incarnation: u64,
    limits: TcpLimits,
    security: Security,
    listen: Option<SocketAddr>,
    store: SharedStore,
    clock: SharedClock,
    metrics: Metrics,
    teller: Teller,
    /// What our agents say of themselves, and the statements of those whose key was changed since the start.
    introduced: watch::Sender<Bytes>,
    successions: Mutex<HashMap<AgentId, Succession>>,
    running: Mutex<Running>,
}

/// What runs: filled at the start.
#[derive(Default)]
struct Running {
    listener: Option<Listener>,
    links: BTreeMap<Name, Arc<Switch>>,
    tasks: Option<Supervisor>,
}

/// What one agent says of itself.
pub(crate) struct Said<'a> {
    pub spec: &'a AgentSpec,
    pub voice: &'a Voice,
}

impl Neighbours {
    /// Opens what is known of other nodes. Nothing runs.
    pub(crate) async fn open(fleet: &FleetSpec, ground: &Ground<'_>) -> Result<Self, NodeError> {
        let spec = &fleet.messaging;
        let limits = limits(&spec.limits);
        limits
            .check()
            .map_err(|error| NodeError::Fleet(format!("messaging.limits: {error}")))?;
        let identities = IdentityRegistry::open(ground.store.clone()).await?;
        let mut peers = Vec::new();
        for peer in &spec.peers {
            let key = successions::followed(ground.store, &peer.name, peer.key).await?;
            if key == ground.me.public() {
                let text = format!("peer `{}` has this node's own key", peer.name);
                return Err(NodeError::Fleet(text));
            }
            peers.push(PeerConfig {
                give_up: peer.give_up_after,
                ..PeerConfig::new(PeerSpec {
                    name: peer.name.clone(),
                    key,
                    address: peer.address.clone(),
                    tenants: peer.tenants.clone(),
                })
            });
        }
        let book = PeerBook::new(peers.iter().map(|peer| peer.spec.clone()))
            .map_err(|error| NodeError::Fleet(format!("messaging.peers: {error}")))?;
        let topic = |topic: &String| {
            Topic::new(topic)
                .map_err(|error| NodeError::Fleet(format!("messaging.atMostOnce: {error}")))
        };
        let config = PeersConfig {
            peers,
            at_most_once: spec
                .at_most_once
                .iter()
                .map(topic)
                .collect::<Result<_, _>>()?,
        };
        let keys = Keyring::default();
        let parts = PeerParts {
            store: ground.store.clone(),
            queues: ground.queues.clone(),
            identities: identities.clone(),
            keys: keys.clone(),
            clock: ground.clock.clone(),
            metrics: ground.metrics.clone(),
        };
        Ok(Self {
            peers: Peers::open(config, parts).await?,
            identities,
            keys,
            book,
            order: spec.peers.iter().map(|peer| peer.name.clone()).collect(),
            me: ground.me.clone(),
            name: fleet.name.clone(),
            incarnation: u64::try_from(ground.clock.wall().as_micros()).unwrap_or_default(),
            limits,
            security: if spec.insecure {
                Security::Insecure
            } else {
                Security::Tls
            },
            listen: spec.listen,
            store: ground.store.clone(),
            clock: ground.clock.clone(),
            metrics: ground.metrics.clone(),
            teller: Teller {
                store: ground.store.clone(),
                tenant: fleet.tenant.clone(),
            },
            introduced: watch::channel(Bytes::new()).0,
            successions: Mutex::default(),
            running: Mutex::default(),
        })
    }

    /// Whether there are other nodes at all.
    pub(crate) fn any(&self) -> bool {
        self.listen.is_some() || !self.order.is_empty()
    }

    /// Registers whom this node holds the key of, and lets it be used. A key that is revoked is not: what it signs would
    /// be believed nowhere.
    pub(crate) async fn enter(&self, voice: &Voice) -> Result<(), NodeError> {
        let (identity, sender) = (voice.identity(), voice.sender());
        let (tenant, name) = (sender.tenant(), sender.name());
        // The key file is what counts: the key before it was replaced while no node ran.
        if let Some((id, known)) = self.identities.named(tenant, name)
            && known.voucher == Voucher::Here
            && id != identity.id()
        {
            self.identities.revoke(id, self.clock.wall()).await?;
        }
        let entered = self.identities.register(
            identity.id(),
            identity.public(),
            name.clone(),
            tenant.clone(),
        );
        match entered.await {
            Ok(()) => {
                self.keys.insert(identity);
                Ok(())
            }
            Err(RegistryError::Revoked { id, .. }) => {
                tracing::warn!(%name, %id, "the key of this agent is revoked: it is sealed for no peer; `volary identity rotate` gives it another");
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Says anew who our agents are; peers that are connected hear it at once.
    pub(crate) fn introduce<'a>(
        &self,
        said: impl Iterator<Item = Said<'a>>,
        operator: &Voice,
    ) -> Result<(), NodeError> {
        let bad = |error: &dyn std::fmt::Display| {
            NodeError::Fleet(format!("our agents can not be described to peers: {error}"))
        };
        let topic = |topic: &String| Topic::new(topic).map_err(|error| bad(&error));
        let mut all = vec![(operator, Vec::new(), Vec::new())];
        for Said { spec, voice } in said {
            let topics = spec.topics.iter().map(topic).collect::<Result<_, _>>()?;
            let pools = spec.pools.iter().filter_map(|pool| Name::new(pool).ok());
            all.push((voice, topics, pools.collect()));
        }
        let mut descriptors = Vec::with_capacity(all.len());
        for (voice, topics, pools) in all {
            let (identity, sender) = (voice.identity(), voice.sender());
            if self.keys.get(&identity.id()).is_none() {
                continue;
            }
            let descriptor = self.descriptor(&identity, &sender, topics, pools);
            let signed = SignedDescriptor::sign(descriptor, &identity);
            descriptors.push(signed.map_err(|error| bad(&error))?);
        }
        let introduction = Introduction::new(descriptors).map_err(|error| bad(&error))?;
        self.introduced.send_replace(introduction.encode());
        Ok(())
    }

    fn descriptor(
        &self,
        identity: &Identity,
        sender: &Sender,
        topics: Vec<Topic>,
        pools: Vec<Name>,
    ) -> Descriptor {
        let now = self.clock.wall();
        Descriptor {
            tenant: sender.tenant().clone(),
            name: sender.name().clone(),
            key: identity.public(),
            topics,
            capabilities: Vec::new(),
            pools,
            issued_at: now,
            expires_at: now + DESCRIBED_FOR,
            succession: self.successions.lock().get(&identity.id()).cloned(),
        }
    }

    /// Begins to talk: calls every peer with an address, then lets peers call.
    pub(crate) async fn start(
        &self,
        post: &Post,
        readiness: &Readiness,
        (couriers, links): (&Supervisor, &Supervisor),
    ) -> Result<(), NodeError> {
        if !self.any() {
            return Ok(());
        }
        self.peers.watched_by(readiness);
        for peer in self.book.all() {
            if peer.address.is_none() {
                continue;
            }
            let name = peer.name.clone();
            let switch = Arc::new(Switch::new(self.link(peer, links)));
            self.peers.connect(&name, switch.wire(), couriers)?;
            let (forward, stop) = (switch.clone(), links.token());
            links.spawn(TaskKind::new("link-state"), forward.forward(stop));
            let tell = self
                .teller
                .clone()
                .link(name.clone(), switch.state(), links.token());
            links.spawn(TELL, tell);
            self.running.lock().links.insert(name, switch);
        }
        let reception = self
            .peers
            .reception(post, self.introduced.subscribe(), couriers);
        if let Some(address) = self.listen {
            let listener = Listener::bind(ListenerConfig {
                listen: ListenConfig {
                    address: address.to_string(),
                    limits: self.limits,
                    security: self.security,
                },
                me: self.me.clone(),
                name: self.name.clone(),
                incarnation: self.incarnation,
                peers: self.book.clone(),
                reception,
                net: Net::tokio(),
                clock: self.clock.clone(),
                tasks: links.clone(),
                metrics: self.metrics.clone(),
            });
            let listener = listener.await?;
            let away = listener.turned_away();
            links.spawn(TELL, self.teller.clone().turned_away(away, links.token()));
            self.running.lock().listener = Some(listener);
        }
        self.running.lock().tasks = Some(links.clone());
        Ok(())
    }

    fn link(&self, peer: PeerSpec, tasks: &Supervisor) -> Link {
        Link::new(LinkConfig {
            incarnation: self.incarnation,
            introduction: self.introduced.subscribe(),
            limits: self.limits,
            security: self.security,
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
            ..LinkConfig::new(self.me.clone(), self.name.clone(), peer, tasks.clone())
        })
    }

    /// Where peers may connect, once it runs.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.running.lock().listener.as_ref().map(Listener::address)
    }

    /// Takes nothing more from peers; what arrived is answered.
    pub(crate) async fn close_listener(&self) {
        let listener = self.running.lock().listener.clone();
        if let Some(listener) = listener {
            listener.close().await;
        }
    }

    /// Hangs up.
    pub(crate) async fn close_links(&self) {
        let links: Vec<_> = self.running.lock().links.values().cloned().collect();
        futures_util::future::join_all(links.iter().map(|link| link.close())).await;
    }

    /// The peers in the order of the manifest: as configured now, and as they are.
    pub(crate) fn status(&self) -> Vec<(PeerSpec, PeerStatus)> {
        let mut status: HashMap<Name, PeerStatus> = self
            .peers
            .status()
            .into_iter()
            .map(|status| (status.name.clone(), status))
            .collect();
        let one = |name: &Name| Some((self.book.by_name(name)?, status.remove(name)?));
        self.order.iter().filter_map(one).collect()
    }

    /// The peers among those who got something, in words.
    pub(crate) fn among<T>(&self, got: &[(Name, T)]) -> impl Iterator<Item = String> {
        let peers = got.iter().filter(|(name, _)| self.order.contains(name));
        peers.map(|(name, _)| format!("peer `{name}`"))
    }

    /// Whether a connection from this peer is there, for one that is not called.
    pub(crate) fn calls_here(&self, peer: &Name) -> Option<volary_kernel::Timestamp> {
        let running = self.running.lock();
        let connections = running.listener.as_ref()?.connections();
        let own = connections
            .iter()
            .filter(|connection| connection.peer == *peer);
        own.map(|connection| connection.since).max()
    }

    /// Gives a new key to an agent of ours: the old one is no longer believed, and peers hear of it with the next
    /// introduction.
    pub(crate) async fn succeed(&self, statement: &Succession) -> Result<AgentId, RegistryError> {
        let id = self.identities.succeed(statement).await?;
        self.successions.lock().insert(id, statement.clone());
        Ok(id)
    }

    /// Believes a key no longer, ours or a peer's agent's.
    pub(crate) async fn revoke(&self, id: AgentId) -> Result<Known, RegistryError> {
        self.identities.revoke(id, self.clock.wall()).await?;
        self.keys.remove(&id);
        self.identities.get(&id).ok_or(RegistryError::Unknown(id))
    }

    /// Believes a peer's statement that its key has changed, for good; live connections of the old key end.
    pub(crate) async fn accept(&self, statement: &Succession) -> Result<PeerSpec, AcceptError> {
        let old = AgentId::of(statement.old());
        statement.verify().map_err(|_| AcceptError::Forged(old))?;
        let peer = self.book.by_key(statement.old());
        let mut peer = peer.ok_or(AcceptError::Unknown(old))?;
        if *statement.new_key() == self.me.public() {
            return Err(AcceptError::Own);
        }
        // Before it is remembered: with two peers of one key, the next start would fail.
        if let Some(other) = self.book.by_key(statement.new_key()) {
            let words = format!("the new key is that of peer `{}`", other.name);
            return Err(AcceptError::Taken(words));
        }
        let told = (&self.teller.tenant, &peer.name);
        successions::remember(&self.store, told, statement).await?;
        peer.key = *statement.new_key();
        let taken = |error| AcceptError::Taken(format!("{error}"));
        self.book.insert(peer.clone()).map_err(taken)?;
        let (switch, tasks) = {
            let running = self.running.lock();
            (
                running.links.get(&peer.name).cloned(),
                running.tasks.clone(),
            )
        };
        if let (Some(switch), Some(tasks)) = (switch, tasks) {
            switch.replace(self.link(peer.clone(), &tasks)).await;
        }
        Ok(peer)
    }

    /// Keeps what our agents say of themselves from running out, and says it anew when the clock was set.
    pub(crate) async fn renew(
        clock: SharedClock,
        again: impl Fn() -> Result<(), NodeError> + Send,
        stop: CancellationToken,
    ) -> TaskResult {
        let mut steps = WallSteps::new(&*clock, CLOCK_LOOK);
        let mut said_at = clock.mono();
        while stop
            .run_until_cancelled(clock::sleep(CLOCK_LOOK))
            .await
            .is_some()
        {
            let now = clock.mono();
            if steps.stepped(&*clock) || now - said_at >= DESCRIBED_EVERY {
                said_at = now;
                again()?;
            }
        }
        Ok(())
    }
}

/// Why a peer's new key is not believed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AcceptError {
    #[error("no peer here has the key {0} that the statement is of")]
    Unknown(AgentId),
    #[error("the statement is not signed by the key {0} that it is of")]
    Forged(AgentId),
    #[error("the statement names this node's own key")]
    Own,
    #[error("{0}")]
    Taken(String),
    #[error(transparent)]
    Store(#[from] volary_store::StoreError),
}

/// Whether an identity is believed, and since when it is not.
pub(crate) const fn revoked_at(known: &Known) -> Option<volary_kernel::Timestamp> {
    match known.status {
        Status::Active => None,
        Status::Revoked(at) => Some(at),
    }
}

/// The word for the link to a peer.
pub(crate) const fn state_word(state: PeerState) -> &'static str {
    match state {
        PeerState::ReceiveOnly => "waits",
        PeerState::Down => "connecting",
        PeerState::Up => "connected",
        PeerState::Failed => "failed",
    }
}

fn limits(spec: &LinkLimits) -> TcpLimits {
    let default = TcpLimits::default();
    let count = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
    let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    TcpLimits {
        connections: count(spec.connections),
        per_peer: count(spec.per_peer),
        handshaking: count(spec.handshaking),
        handshake_time: spec.handshake_time,
        idle: spec.idle,
        ping: spec.idle / 4,
        frame_bytes: bytes(spec.frame_bytes),
        window_frames: count(spec.window_frames),
        window_bytes: bytes(spec.window_bytes),
        stall: spec.stall,
        ..default
    }
}
