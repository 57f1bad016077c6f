//! What the parts of a running node share: made once by [`crate::build`], handed to bridges and sections.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::{Mutex, RwLock};
use tokio_util::sync::CancellationToken;
use volary_context::{Dispatcher, dispatch::SourceStatus};
use volary_deploy::{
    backend::{Backend, ReplicaId},
    spec::model::{AgentSpec, FleetSpec},
    supervise::{Handle, ReplicaStatus},
};
use volary_kernel::{Name, SharedClock, Tenant, Timestamp, ready::Readiness, task::Supervisor};
use volary_messaging::{
    Identity, Sender,
    discovery::Discovery,
    inbox::{Inboxes, Mailbox},
    pool::PoolManager,
    replay::Imports,
    task::TaskManager,
};
use volary_ops::{ApiError, LinkPeer, Signals, api::ReplicaView};
use volary_store::{SharedStore, queue::Queues};

use crate::{
    bridge::{handler::HandlerAgent, settle::Settler},
    claims::Claims,
    error::NodeError,
    flows::Flows,
    neighbours::{Neighbours, Said},
    section::replica_view,
    state::StateDir,
    webhook::Webhooks,
};

/// The shared parts. Everything in it is a cheap handle.
pub(crate) struct Core {
    pub fleet: FleetSpec,
    pub state: StateDir,
    pub started_at: Timestamp,
    pub clock: SharedClock,
    pub readiness: Readiness,
    pub store: SharedStore,
    pub queues: Queues,
    pub inboxes: Inboxes,
    pub settler: Settler,
    /// The operator as a sender of messages.
    pub operator: Voice,
    /// Other nodes.
    pub neighbours: Neighbours,
    /// Other systems.
    pub webhooks: Webhooks,
    pub agents: BTreeMap<Name, Speaker>,
    pub tasks: TaskManager,
    pub pools: PoolManager,
    pub discovery: Discovery,
    pub backend: Arc<dyn Backend>,
    pub replicas: Handle,
    pub context: Dispatcher,
    pub claims: Mutex<Claims>,
    /// Flows that agents run.
    pub flows: Arc<Flows>,
    /// The live feed of what is in no journal.
    pub signals: Signals,
    /// Handler agents, for replays that verify.
    pub handlers: BTreeMap<Name, Arc<HandlerAgent>>,
    /// Archives of other journals.
    pub imports: Imports,
    /// How long whoever asked for the stop lets it take.
    pub stop_within: Mutex<Option<Duration>>,
    /// Asks the whole node to stop.
    pub shutdown: Supervisor,
    /// Cancelled when the node begins to stop: long polls end.
    pub stopping: CancellationToken,
}

/// An agent as messaging knows it.
pub(crate) struct Speaker {
    pub mailbox: Mailbox,
    pub voice: Voice,
}

/// As whom somebody speaks. Clones share it, and follow at once when the key is replaced.
#[derive(Clone)]
pub(crate) struct Voice(Arc<RwLock<(Identity, Sender)>>);

impl Voice {
    pub(crate) fn new(identity: Identity, name: Name, tenant: Tenant) -> Self {
        let sender = Sender::new(identity.id(), name, tenant);
        Self(Arc::new(RwLock::new((identity, sender))))
    }

    pub(crate) fn sender(&self) -> Sender {
        self.0.read().1.clone()
    }

    pub(crate) fn identity(&self) -> Identity {
        self.0.read().0.clone()
    }

    /// Goes on with another key.
    pub(crate) fn replace(&self, identity: Identity) {
        let mut voice = self.0.write();
        let (name, tenant) = (voice.1.name().clone(), voice.1.tenant().clone());
        let sender = Sender::new(identity.id(), name, tenant);
        *voice = (identity, sender);
    }
}

impl Core {
    /// The agent that a link token speaks for.
    ///
    /// # Errors
    /// When the fleet has no such agent (any more).
    pub(crate) fn speaker(&self, peer: &LinkPeer) -> Result<&Speaker, ApiError> {
        let unknown =
            || ApiError::not_found(format!("agent `{}` is not in this fleet", peer.agent));
        self.agents.get(&peer.agent).ok_or_else(unknown)
    }

    /// Says to peers anew who our agents are.
    ///
    /// # Errors
    /// When there are more agents or topics than can be said.
    pub(crate) fn introduce(&self) -> Result<(), NodeError> {
        let said = self.fleet.agents.iter().filter_map(|spec| {
            let voice = &self.agents.get(&spec.name)?.voice;
            Some(Said { spec, voice })
        });
        self.neighbours.introduce(said, &self.operator)
    }

    /// Forgets lapsed claims when it is getting tight; says how many more can be held.
    pub(crate) fn sweep_claims(&self) -> usize {
        self.claims.lock().sweep(self.clock.mono())
    }

    /// Messages that wait for peers that are not in the manifest any more, by peer.
    pub fn stranded(&self) -> impl Iterator<Item = (String, usize)> {
        let waiting = self.queues.unopened().into_iter();
        waiting.filter_map(|(queue, items)| {
            let peer = queue.strip_prefix("outbox/")?;
            Some((peer.to_owned(), items))
        })
    }

    /// The replicas as operators see them.
    pub(crate) fn replica_views(&self) -> Vec<ReplicaView> {
        let view =
            |status: &ReplicaStatus| replica_view(status, self.fleet.agent(status.agent.as_str())?);
        self.replicas.replicas().iter().filter_map(view).collect()
    }

    /// How a source is.
    pub(crate) fn source(&self, name: &Name) -> Option<SourceStatus> {
        self.context
            .status()
            .into_iter()
            .find(|status| status.source == *name)
    }

    /// Every replica there may be a log of.
    pub(crate) fn replica_ids(&self) -> Vec<ReplicaId> {
        let of = |agent: &AgentSpec| {
            let name = agent.name.clone();
            (0..agent.scaling.replicas.max(1))
                .map(move |ordinal| ReplicaId::new(name.clone(), ordinal))
        };
        self.fleet.agents.iter().flat_map(of).collect()
    }
}
