//! Who is reachable at which peer: what [`crate::Post`] asks when it routes.

use std::{collections::HashSet, sync::Arc};

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use volary_kernel::id::{Name, Tenant};
use volary_store::{Batch, Cause, ItemId, QueueError};

use super::Peer;
use crate::{
    identity::IdentityRegistry,
    message::{Message, Sender},
    route::RoutingTable,
    topic::Topic,
};

/// An agent of a peer that can be reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Route {
    pub(super) tenant: Tenant,
    pub(super) name: Name,
    pub(super) topics: Vec<Topic>,
}

/// An entry of the table: the agent, and the place of its peer in the configuration.
#[derive(Debug, Clone)]
struct Target {
    tenant: Tenant,
    name: Name,
    peer: usize,
}

/// Who is reachable where, and the outboxes to them. Clones share it.
#[derive(Clone)]
pub struct RemoteRoutes(Arc<Shared>);

struct Shared {
    peers: Vec<Arc<Peer>>,
    at_most_once: HashSet<Topic>,
    identities: IdentityRegistry,
    table: RwLock<Learned>,
}

#[derive(Default)]
struct Learned {
    of_peers: Vec<Vec<Route>>,
    table: RoutingTable<Target>,
}

/// Peers of one message, each once.
pub(crate) type RemoteTargets = SmallVec<[RemoteTarget; 1]>;

/// A peer that a message is for.
#[derive(Clone)]
pub(crate) struct RemoteTarget {
    peer: Arc<Peer>,
    once: bool,
}

impl RemoteTarget {
    pub(crate) fn name(&self) -> &Name {
        &self.peer.config.spec.name
    }

    /// Whether the message is sent once and not stored for the peer.
    pub(crate) const fn is_once(&self) -> bool {
        self.once
    }

    /// Adds the message to `tx`, for as long as it takes.
    pub(crate) fn enqueue(
        &self,
        tx: &mut Batch,
        message: &Message,
        encoded: &[u8],
        cause: Cause,
    ) -> Result<ItemId, QueueError> {
        self.peer.outbox.enqueue(tx, message, encoded, cause)
    }

    /// Sends the message once `tx` is committed, once.
    pub(crate) fn offer(&self, tx: &mut Batch, message: &Message) {
        let (once, message) = (self.peer.once.clone(), message.clone());
        tx.on_commit(move |_| once.offer(message));
    }
}

impl std::fmt::Debug for RemoteRoutes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RemoteRoutes({} peers)", self.0.peers.len())
    }
}

impl RemoteRoutes {
    pub(super) fn new(
        peers: Vec<Arc<Peer>>,
        at_most_once: HashSet<Topic>,
        identities: IdentityRegistry,
    ) -> Self {
        let learned = Learned {
            of_peers: vec![Vec::new(); peers.len()],
            table: RoutingTable::default(),
        };
        Self(Arc::new(Shared {
            peers,
            at_most_once,
            identities,
            table: RwLock::new(learned),
        }))
    }

    /// Takes these as all agents of a peer. Of two peers that have one name, the first configured has it.
    pub(super) fn learn(&self, peer: usize, routes: Vec<Route>) {
        let mut learned = self.0.table.write();
        learned.of_peers[peer] = routes;
        let mut table = RoutingTable::default();
        for (peer, routes) in learned.of_peers.iter().enumerate() {
            for route in routes {
                let target = Target {
                    tenant: route.tenant.clone(),
                    name: route.name.clone(),
                    peer,
                };
                table.insert(&route.tenant, &route.name, &route.topics, target);
            }
        }
        learned.table = table;
    }

    /// What a peer has.
    pub(super) fn of(&self, peer: usize) -> Vec<Route> {
        self.0.table.read().of_peers[peer].clone()
    }

    /// The peers that `message` is for. An agent that is here too hides the one at a peer.
    pub(crate) fn targets(
        &self,
        message: &Message,
        is_here: impl Fn(&Tenant, &Name) -> bool,
    ) -> RemoteTargets {
        let learned = self.0.table.read();
        let mut peers: SmallVec<[usize; 4]> = SmallVec::new();
        for target in learned.table.targets(message) {
            if !peers.contains(&target.peer) && !is_here(&target.tenant, &target.name) {
                peers.push(target.peer);
            }
        }
        drop(learned);
        if peers.is_empty() || !self.is_known(message.sender()) {
            return RemoteTargets::new();
        }
        peers.sort_unstable();
        let once = self.is_once(message);
        let target = |peer: usize| RemoteTarget {
            peer: self.0.peers[peer].clone(),
            once,
        };
        peers.into_iter().map(target).collect()
    }

    /// Whether peers would believe `sender`: a name that its key does not speak for (a webhook's, sent with the node's key)
    /// costs the whole frame there.
    fn is_known(&self, sender: &Sender) -> bool {
        let known = self.0.identities.get(&sender.id());
        known.is_none_or(|known| known.name == *sender.name() && known.tenant == *sender.tenant())
    }

    fn is_once(&self, message: &Message) -> bool {
        let topics = message.topics();
        !topics.is_empty()
            && topics
                .iter()
                .all(|topic| self.0.at_most_once.contains(topic))
    }
}
