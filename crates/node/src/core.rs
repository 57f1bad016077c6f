//! What the parts of a running node share: made once by [`crate::build`], handed to bridges and sections.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use volary_context::{Dispatcher, dispatch::SourceStatus};
use volary_deploy::{
    backend::{Backend, ReplicaId},
    spec::model::{AgentSpec, FleetSpec},
    supervise::{Handle, ReplicaStatus},
};
use volary_kernel::{Name, SharedClock, Timestamp, ready::Readiness, task::Supervisor};
use volary_messaging::{
    Identity, Sender,
    inbox::{Inboxes, Mailbox},
};
use volary_ops::{ApiError, LinkPeer, api::ReplicaView};
use volary_store::{SharedStore, queue::Queues};

use crate::{bridge::settle::Settler, claims::Claims, section::replica_view};

/// The shared parts. Everything in it is a cheap handle.
pub(crate) struct Core {
    pub fleet: FleetSpec,
    pub started_at: Timestamp,
    pub clock: SharedClock,
    pub readiness: Readiness,
    pub store: SharedStore,
    pub queues: Queues,
    pub inboxes: Inboxes,
    pub settler: Settler,
    /// The operator as a sender of messages.
    pub operator: Sender,
    pub agents: BTreeMap<Name, Speaker>,
    pub backend: Arc<dyn Backend>,
    pub replicas: Handle,
    pub context: Dispatcher,
    pub claims: Mutex<Claims>,
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
    pub sender: Sender,
    #[expect(dead_code, reason = "held for sealing at export and on the wire")]
    pub identity: Identity,
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

    /// Forgets lapsed claims when it is getting tight; says how many more can be held.
    pub(crate) fn sweep_claims(&self) -> usize {
        self.claims.lock().sweep(self.clock.mono())
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
