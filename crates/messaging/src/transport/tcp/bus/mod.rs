//! A transport between instances: local endpoints, and links to the peers that have others.
//!
//! ```text
//! send ─┬▶ local endpoints
//!       └▶ peers where somebody is meant ─▶ batch of one sender ─▶ seal ─▶ Link ═▶ Listener there ─▶ local endpoints there
//! ```
//!
//! At most once: a message is handed to a link one time. What has no answer when the connection ends is
//! [`Admission::Dropped`], although it may have arrived. A local name is never a peer's; of two peers that have a name,
//! the first configured has it.

mod agents;
mod recent;
mod remote;

use std::{collections::HashMap, fmt, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use futures_util::{FutureExt, future::join_all};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use volary_kernel::{
    clock::{self, SharedClock, SystemClock},
    id::{Name, Tenant},
    metric::Metrics,
    queue::{self, QueueConfig, WhenFull},
    retry::Backoff,
    task::{Supervisor, TaskKind},
};

use self::{
    agents::{Agents, HOLDS},
    recent::{Before, Recent},
    remote::{Carrier, Remote},
};
use super::{
    Arrival, Link, LinkConfig, ListenConfig, Listener, ListenerConfig, Net, PeerBook,
    PeerBookError, PeerSpec, Reception, Security, TcpError, TcpLimits,
};
use crate::{
    admission::{Admission, Refusal},
    identity::{Identity, IdentityRegistry},
    message::{Audience, Message},
    metrics::AdmissionCounters,
    transport::{Endpoint, EndpointError, EndpointSpec, Local, Transport, together},
};

/// Messages that are remembered, to do nothing when they come again.
const RECENT: usize = 100_000;
/// Messages that may wait for one peer's link; more wait in their `send`.
const QUEUE: QueueConfig = QueueConfig {
    max_items: 1024,
    max_bytes: 16 * 1024 * 1024,
    when_full: WhenFull::Block,
};

/// What an instance is made of. Made by [`TcpConfig::new`] and refined.
#[derive(Clone)]
pub struct TcpConfig {
    identity: Identity,
    name: Name,
    tenant: Tenant,
    agents: Vec<(Tenant, Name, Identity)>,
    listen: Option<String>,
    peers: Vec<PeerSpec>,
    incarnation: u64,
    /// Bounds of links and listener.
    pub limits: TcpLimits,
    /// Protection of links and listener.
    pub security: Security,
    /// Waits between attempts to connect.
    pub reconnect: Backoff,
    /// Where sockets come from.
    pub net: Net,
    /// The time.
    pub clock: SharedClock,
    /// Runs the tasks.
    pub tasks: Supervisor,
    /// Counts.
    pub metrics: Metrics,
    /// For jitter.
    pub random: super::Random,
}

impl TcpConfig {
    /// An instance that neither listens nor dials yet. Its connections, and the messages of the agent it is named for,
    /// are signed by `identity`.
    pub fn new(identity: Identity, name: Name) -> Self {
        let clock = SystemClock::shared();
        let incarnation = u64::try_from(clock.wall().as_micros()).unwrap_or(0);
        Self {
            identity,
            name,
            tenant: Tenant::default(),
            agents: Vec::new(),
            listen: None,
            peers: Vec::new(),
            incarnation,
            limits: TcpLimits::default(),
            security: Security::default(),
            reconnect: super::RECONNECT,
            net: Net::tokio(),
            clock,
            tasks: Supervisor::new(),
            metrics: Metrics::default(),
            random: Arc::new(volary_kernel::retry::random_unit),
        }
    }

    /// The tenant of its own agent. Default: the default tenant.
    #[must_use]
    pub fn tenant(mut self, tenant: Tenant) -> Self {
        self.tenant = tenant;
        self
    }

    /// Listens at `host:port`.
    #[must_use]
    pub fn listen(mut self, address: impl Into<String>) -> Self {
        self.listen = Some(address.into());
        self
    }

    /// Believes a peer, and dials it if it has an address.
    #[must_use]
    pub fn peer(mut self, peer: PeerSpec) -> Self {
        self.peers.push(peer);
        self
    }

    /// Speaks for one more agent: its messages are sealed by `identity`.
    #[must_use]
    pub fn agent(mut self, tenant: Tenant, name: Name, identity: Identity) -> Self {
        self.agents.push((tenant, name, identity));
        self
    }
}

/// What is shared with tasks and with the listener.
struct Core {
    local: Local,
    agents: Arc<Agents>,
    clock: SharedClock,
    recent: Mutex<Recent>,
    /// Whose seals are accepted from each peer.
    trust: RwLock<HashMap<Name, IdentityRegistry>>,
    /// Counts the times that something was learned of who is where.
    learned: watch::Sender<u64>,
}

/// The transport between instances. Clones share it; when the last is dropped, its links and its listener close.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// use volary_kernel::clock::{Clock, SystemClock};
/// use volary_messaging::{Admission, EndpointSpec, Identity, Message, Sender, Transport};
/// use volary_messaging::transport::tcp::{PeerSpec, Tcp, TcpConfig};
/// let (billing, audit) = (Identity::generate()?, Identity::generate()?);
/// let to_billing = PeerSpec::new("billing".parse()?, billing.public());
/// let far = TcpConfig::new(audit.clone(), "audit".parse()?).listen("127.0.0.1:0").peer(to_billing);
/// let far = Tcp::bind(far).await?;
/// let mut inbox = far.open(EndpointSpec::new(Default::default(), "audit".parse()?, vec!["paid".parse()?]))?;
///
/// let address = far.address().ok_or("it listens")?.to_string();
/// let to_audit = PeerSpec::new("audit".parse()?, audit.public()).at(address);
/// let near = Tcp::bind(TcpConfig::new(billing.clone(), "billing".parse()?).peer(to_audit)).await?;
/// near.reachable(&Default::default(), &"audit".parse()?).await;
///
/// let sender = Sender::new(billing.id(), "billing".parse()?, Default::default());
/// let message = Message::builder(sender).topic("paid".parse()?).json(&42)?.build(SystemClock.wall())?;
/// assert_eq!(near.send(message.clone()).await, Admission::Delivered);
/// assert_eq!(inbox.recv().await, Some(message));
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?; Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "TcpTransport")]
#[derive(Clone)]
pub struct Tcp(Arc<Inner>);

struct Inner {
    core: Arc<Core>,
    remotes: Vec<Remote>,
    book: PeerBook,
    listener: Option<Listener>,
    admissions: AdmissionCounters,
    closing: CancellationToken,
    _last: DropGuard,
}

impl fmt::Debug for Tcp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tcp")
            .field("address", &self.address())
            .field("peers", &self.0.remotes.len())
            .finish_non_exhaustive()
    }
}

/// Why there is no instance.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// There is no listener.
    #[error(transparent)]
    Listen(#[from] TcpError),
    /// The peers contradict each other.
    #[error(transparent)]
    Peers(#[from] PeerBookError),
    /// The agents can not be introduced.
    #[error("the agents can not be introduced to peers: {0}")]
    Introduce(String),
}

impl Tcp {
    /// Binds the address, if there is one, and begins to dial the peers that have one.
    ///
    /// # Errors
    /// [`BindError`].
    pub async fn bind(config: TcpConfig) -> Result<Self, BindError> {
        let book = PeerBook::new(config.peers.iter().cloned())?;
        let agents = Agents::new();
        let own = (
            config.tenant.clone(),
            config.name.clone(),
            config.identity.clone(),
        );
        for (tenant, name, identity) in config.agents.iter().cloned().chain([own]) {
            agents.enter(tenant, name, identity);
        }
        let introduced = agents.introduce(config.clock.wall(), true);
        introduced.map_err(|error| BindError::Introduce(error.to_string()))?;
        let core = Arc::new(Core {
            local: Local::new(config.clock.clone(), &config.metrics),
            agents: agents.clone(),
            clock: config.clock.clone(),
            recent: Mutex::new(Recent::new(RECENT)),
            trust: RwLock::default(),
            learned: watch::channel(0).0,
        });
        let listener = match &config.listen {
            None => None,
            Some(address) => Some(bind(&config, address, &book, &core).await?),
        };
        let closing = CancellationToken::new();
        let guard = closing.clone().drop_guard();
        keep_introduced(&config, &agents, closing.clone());
        let dialed = config.peers.iter().filter(|peer| peer.address.is_some());
        let remotes = dialed.map(|peer| dial(&config, peer, &core)).collect();
        Ok(Self(Arc::new(Inner {
            core,
            remotes,
            book,
            listener,
            admissions: AdmissionCounters::new(&config.metrics, "tcp"),
            closing,
            _last: guard,
        })))
    }

    /// Where it listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.0.listener.as_ref().map(Listener::address)
    }

    /// Who may connect; a change takes effect at once.
    pub fn peers(&self) -> &PeerBook {
        &self.0.book
    }

    /// The link to a peer that is dialed.
    pub fn link(&self, peer: &Name) -> Option<&Link> {
        let mut remotes = self.0.remotes.iter();
        let found = remotes.find(|remote| remote.spec.name == *peer);
        found.map(|remote| &remote.link)
    }

    /// Speaks for one more agent from now on.
    pub fn add_agent(&self, tenant: Tenant, name: Name, identity: Identity) {
        self.0.core.agents.enter(tenant, name, identity);
    }

    /// Waits until an agent of this name is known, here or at a peer. Waits for ever if none comes: bound it by a
    /// time-out. Cancel-safe.
    pub async fn reachable(&self, tenant: &Tenant, name: &Name) {
        let core = &self.0.core;
        let mut learned = core.learned.subscribe();
        let known = |_: &u64| {
            let there = self.0.remotes.iter().any(|remote| remote.has(tenant, name));
            there || core.local.has(tenant, name)
        };
        if learned.wait_for(known).await.is_err() {
            std::future::pending().await
        }
    }

    /// Waits until the peer has introduced itself and its agents may send. Waits for ever if it never does. Cancel-safe.
    pub async fn believes(&self, peer: &Name) {
        let mut learned = self.0.core.learned.subscribe();
        let known = |_: &u64| self.0.core.trust.read().contains_key(peer);
        if learned.wait_for(known).await.is_err() {
            std::future::pending().await
        }
    }

    /// Refuses what is sent from now on, waits for answers on their way (at most the drain time), and closes links and
    /// listener. Endpoints end when their inboxes are empty.
    pub async fn close(&self) {
        self.0.closing.cancel();
        join_all(self.0.remotes.iter().map(|remote| remote.link.close())).await;
        if let Some(listener) = &self.0.listener {
            listener.close().await;
        }
        self.0.core.local.close();
    }

    async fn deliver(&self, message: Message) -> Admission {
        let core = &self.0.core;
        if self.0.closing.is_cancelled() {
            return Admission::Refused(Refusal::Closed);
        }
        let late = |deadline| deadline <= core.clock.wall();
        if message.deadline().is_some_and(late) {
            return Admission::Refused(Refusal::Expired);
        }
        if let Audience::Agent(name) = message.audience() {
            if core.local.has(message.tenant(), name) {
                return core.local.deliver(message).await;
            }
            return match self.0.remotes.iter().find(|remote| remote.is_for(&message)) {
                Some(remote) => self.carry(remote, message).await,
                None => Admission::NoRoute,
            };
        }
        let remotes = self.0.remotes.iter();
        let meant: Vec<&Remote> = remotes.filter(|remote| remote.is_for(&message)).collect();
        if meant.is_empty() {
            return core.local.deliver(message).await;
        }
        let here = core.local.deliver(message.clone());
        let there = join_all(
            meant
                .iter()
                .map(|remote| self.carry(remote, message.clone())),
        );
        let (here, there) = tokio::join!(here, there);
        together(there.into_iter().chain([here]))
    }

    async fn carry(&self, remote: &Remote, message: Message) -> Admission {
        let sender = message.sender().id();
        if self.0.core.agents.key(&sender).is_none() {
            return Admission::Refused(remote::no_key(sender));
        }
        remote.send(message).await
    }
}

impl Transport for Tcp {
    async fn send(&self, message: Message) -> Admission {
        let admission = self.deliver(message).await;
        self.0.admissions.count(&admission);
        admission
    }

    /// An endpoint whose name no identity was given for gets one of its own, so that peers learn of it.
    fn open(&self, spec: EndpointSpec) -> Result<Endpoint, EndpointError> {
        let (tenant, name) = (spec.tenant.clone(), spec.name.clone());
        let topics = spec.topics.clone();
        let agents = &self.0.core.agents;
        let endpoint = self.0.core.local.open(spec)?;
        if !agents.knows(&tenant, &name) {
            match Identity::generate() {
                Ok(identity) => agents.enter(tenant.clone(), name.clone(), identity),
                Err(error) => {
                    tracing::error!(%error, endpoint = %name, "peers can not learn of it")
                }
            }
        }
        agents.hears(&tenant, &name, topics);
        self.0.core.learned.send_modify(|times| *times += 1);
        let agents = Arc::downgrade(agents);
        Ok(endpoint.when_closed(move || {
            if let Some(agents) = agents.upgrade() {
                agents.hears(&tenant, &name, Vec::new());
            }
        }))
    }
}

async fn bind(
    config: &TcpConfig,
    address: &str,
    book: &PeerBook,
    core: &Arc<Core>,
) -> Result<Listener, TcpError> {
    let (trust, introduced, arrived) = (core.clone(), core.clone(), core.clone());
    let reception = Reception {
        trust: Arc::new(move |peer| {
            let registry = trust.trust.read().get(&peer.name).cloned();
            registry.unwrap_or_else(IdentityRegistry::in_memory)
        }),
        introduced: Arc::new(move |peer, introduction| {
            let core = introduced.clone();
            async move { core.introduced(&peer, &introduction).await }.boxed()
        }),
        arrived: Arc::new(move |arrival| {
            let core = arrived.clone();
            async move { core.arrived(arrival).await }.boxed()
        }),
        // Counted and logged by the listener; there is no journal here.
        rejected: Arc::new(|_| std::future::ready(()).boxed()),
        introduction: core.agents.introduction(),
    };
    let listener = ListenerConfig {
        listen: ListenConfig {
            address: address.to_owned(),
            limits: config.limits,
            security: config.security,
        },
        me: config.identity.clone(),
        name: config.name.clone(),
        incarnation: config.incarnation,
        peers: book.clone(),
        reception,
        net: config.net.clone(),
        clock: config.clock.clone(),
        tasks: config.tasks.clone(),
        metrics: config.metrics.clone(),
    };
    Listener::bind(listener).await
}

fn dial(config: &TcpConfig, peer: &PeerSpec, core: &Arc<Core>) -> Remote {
    let link = Link::new(LinkConfig {
        me: config.identity.clone(),
        name: config.name.clone(),
        incarnation: config.incarnation,
        peer: peer.clone(),
        introduction: core.agents.introduction(),
        limits: config.limits,
        security: config.security,
        reconnect: config.reconnect,
        give_up: None,
        net: config.net.clone(),
        clock: config.clock.clone(),
        tasks: config.tasks.clone(),
        metrics: config.metrics.clone(),
        random: config.random.clone(),
    });
    let routes = Arc::default();
    let (sender, receiver) = queue::bounded(QUEUE);
    let carrier = Carrier {
        spec: peer.clone(),
        link: link.clone(),
        agents: core.agents.clone(),
        routes: Arc::clone(&routes),
        learned: core.learned.clone(),
        clock: config.clock.clone(),
        queue: receiver,
    };
    config
        .tasks
        .spawn(TaskKind::new("tcp-carrier").abort(), async move {
            carrier.run().await;
            Ok(())
        });
    Remote {
        spec: peer.clone(),
        link,
        routes,
        queue: sender,
    }
}

/// Says who is here again whenever that changes, and before it lapses.
fn keep_introduced(config: &TcpConfig, agents: &Arc<Agents>, closing: CancellationToken) {
    let (agents, clock) = (agents.clone(), config.clock.clone());
    let kind = TaskKind::new("tcp-introduce").abort();
    config.tasks.spawn(kind, async move {
        let keep = async {
            let mut again = Box::pin(clock::sleep(HOLDS / 4));
            loop {
                let fresh = tokio::select! {
                    () = agents.changed.notified() => false,
                    () = &mut again => {
                        again = Box::pin(clock::sleep(HOLDS / 4));
                        true
                    }
                };
                if let Err(error) = agents.introduce(clock.wall(), fresh) {
                    tracing::error!(%error, "peers can not be told who is here");
                }
            }
        };
        let _closed: Option<()> = closing.run_until_cancelled(keep).await;
        Ok(())
    });
}

impl Core {
    /// Believes the agents that a peer introduces, and no others of it.
    async fn introduced(&self, peer: &PeerSpec, introduction: &Bytes) -> Result<(), String> {
        let registry = IdentityRegistry::in_memory();
        for descriptor in remote::proven(peer, introduction, self.clock.wall())? {
            let (id, key) = (descriptor.id(), descriptor.key);
            let entered = registry.register(id, key, descriptor.name, descriptor.tenant);
            entered.await.map_err(|error| error.to_string())?;
        }
        self.trust.write().insert(peer.name.clone(), registry);
        self.learned.send_modify(|times| *times += 1);
        Ok(())
    }

    /// Delivers to the endpoints here, each message once.
    async fn arrived(&self, arrival: Arrival) -> Vec<Admission> {
        let frame = arrival.frame;
        let mut answers = Vec::with_capacity(frame.messages().len());
        for (index, message) in frame.messages().iter().enumerate() {
            let (sender, id) = (message.sender().id(), message.id());
            let digest = frame.digest(index).unwrap_or_default();
            let before = self.recent.lock().begin(sender, id, digest);
            answers.push(match before {
                Before::Never => {
                    let answer = self.local.deliver(message.clone()).await;
                    self.recent.lock().end(sender, id, &answer);
                    answer
                }
                Before::Same(answer) => answer,
                Before::Replay => Admission::Refused(Refusal::Replay),
            });
        }
        answers
    }
}
