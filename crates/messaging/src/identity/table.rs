//! Which keys are believed and what a change of that may be (pure): nothing is stored or locked here.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};
use volary_kernel::{
    clock::Timestamp,
    id::{Name, Tenant},
    sign::PublicKey,
};

use super::AgentId;
use crate::event::IdentityChange;

/// Most identities of one registry, revoked ones included.
pub const REGISTRY_MAX: usize = 100_000;
/// Most identities that one peer vouches for, revoked ones included: the agents of its largest introduction, and as many
/// keys that are no longer believed.
pub const REGISTRY_PEER_MAX: usize = 20_000;
/// How many of [`REGISTRY_MAX`] are for this node's own agents: peers together can not take them.
pub const REGISTRY_OURS: usize = 10_000;

/// Whether a key is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It is.
    Active,
    /// It is not, since this time.
    Revoked(Timestamp),
}

/// Who vouched for an identity.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Voucher {
    /// This node or its operator.
    Here,
    /// The peer of this name: it is one of the peer's agents.
    Peer(Name),
}

/// One known identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its public key.
    pub key: PublicKey,
    /// The agent it speaks for.
    pub name: Name,
    /// The tenant it belongs to.
    pub tenant: Tenant,
    /// Whether it is believed.
    pub status: Status,
    /// Who vouched for it.
    pub voucher: Voucher,
}

/// An agent that a peer vouches for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduced {
    /// The id that is claimed for the key.
    pub id: AgentId,
    /// The agent's key.
    pub key: PublicKey,
    /// Its name.
    pub name: Name,
    /// Its tenant.
    pub tenant: Tenant,
}

/// Why the registry refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// The id is not the fingerprint of the key.
    #[error("agent id {claimed} is not the fingerprint of its key, which is {actual}")]
    Mismatch {
        /// The id that was claimed.
        claimed: AgentId,
        /// The id of the key.
        actual: AgentId,
    },
    /// The id was never registered.
    #[error("agent id {0} is not known here")]
    Unknown(AgentId),
    /// The key was revoked.
    #[error("the key of agent id {id} was revoked at {at}")]
    Revoked {
        /// The id.
        id: AgentId,
        /// When.
        at: Timestamp,
    },
    /// The id is registered for another agent.
    #[error("agent id {id} already speaks for `{name}`")]
    Taken {
        /// The id.
        id: AgentId,
        /// The agent it speaks for.
        name: Name,
    },
    /// Somebody else's agent of the same tenant has this name.
    #[error("`{name}` of tenant `{tenant}` is an agent of {holder}")]
    NameTaken {
        /// The name.
        name: Name,
        /// The tenant.
        tenant: Tenant,
        /// Whose agent has the name: `this node` or `peer NAME`.
        holder: String,
    },
    /// The statement that one key follows another is not signed by the old key.
    #[error("the statement that a key follows {0} is not signed by that key")]
    Forged(AgentId),
    /// No room.
    #[error("{REGISTRY_MAX} identities are known, which is the limit")]
    Full,
    /// No room for more of one peer.
    #[error("{REGISTRY_PEER_MAX} identities of this peer are known, which is the limit")]
    PeerFull,
    /// The change could not be stored, and was not made.
    #[error("the change could not be stored: {0}")]
    Store(String),
}

/// The table that is read. Names point at the active identity that was entered last.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) known: HashMap<AgentId, Known>,
    names: HashMap<(Tenant, Name), AgentId>,
}

/// One step of a change.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Enter(AgentId, Box<Known>),
    Forget(AgentId),
}

impl Table {
    pub(super) fn apply(&mut self, step: Step) {
        match step {
            Step::Enter(id, known) => {
                let name = (known.tenant.clone(), known.name.clone());
                if let Some(former) = self.known.get(&id) {
                    let former = (former.tenant.clone(), former.name.clone());
                    if former != name {
                        self.unname(&former, id);
                    }
                }
                match known.status {
                    Status::Active => drop(self.names.insert(name, id)),
                    Status::Revoked(_) => self.unname(&name, id),
                }
                self.known.insert(id, *known);
            }
            Step::Forget(id) => {
                if let Some(known) = self.known.remove(&id) {
                    self.unname(&(known.tenant, known.name), id);
                }
            }
        }
    }

    fn unname(&mut self, name: &(Tenant, Name), id: AgentId) {
        if self.names.get(name) == Some(&id) {
            self.names.remove(name);
        }
    }

    pub(super) fn room(&self, more: usize) -> Result<(), RegistryError> {
        if self.known.len() + more > REGISTRY_MAX {
            Err(RegistryError::Full)
        } else {
            Ok(())
        }
    }

    /// Whether peers may have `more`, of which one already has `own`.
    fn peer_room(&self, own: usize, more: usize) -> Result<(), RegistryError> {
        if own + more > REGISTRY_PEER_MAX {
            return Err(RegistryError::PeerFull);
        }
        self.room(more + REGISTRY_OURS)
    }

    /// Whether `key` may be entered for this agent; `None` if it is there already just so.
    pub(super) fn enter(
        &self,
        agent: &Introduced,
        voucher: &Voucher,
    ) -> Result<Option<Known>, RegistryError> {
        let Introduced {
            id,
            key,
            name,
            tenant,
        } = agent;
        let actual = AgentId::of(key);
        if actual != *id {
            return Err(RegistryError::Mismatch {
                claimed: *id,
                actual,
            });
        }
        match self.known.get(id) {
            Some(Known {
                status: Status::Revoked(at),
                ..
            }) => Err(RegistryError::Revoked { id: *id, at: *at }),
            Some(found)
                if found.name == *name && found.tenant == *tenant && found.voucher == *voucher =>
            {
                Ok(None)
            }
            Some(found) => Err(RegistryError::Taken {
                id: *id,
                name: found.name.clone(),
            }),
            None => Ok(Some(Known {
                key: *key,
                name: name.clone(),
                tenant: tenant.clone(),
                status: Status::Active,
                voucher: voucher.clone(),
            })),
        }
    }

    /// The active identity that has this name.
    pub(super) fn named(&self, tenant: &Tenant, name: &Name) -> Option<(AgentId, &Known)> {
        let id = *self.names.get(&(tenant.clone(), name.clone()))?;
        Some((id, self.known.get(&id)?))
    }
}

/// For each agent of an introduction, why it was turned away if it was.
pub(crate) type Verdicts = Vec<Result<(), RegistryError>>;

/// A change that was decided and is not stored yet.
#[derive(Debug, Default)]
pub(super) struct Change {
    pub(super) steps: Vec<Step>,
    pub(super) events: Vec<IdentityChange>,
}

impl Change {
    pub(super) fn enter(&mut self, id: AgentId, known: Known, event: IdentityChange) {
        self.steps.push(Step::Enter(id, Box::new(known)));
        self.events.push(event);
    }
}

impl Change {
    /// One key takes the place of another.
    pub(super) fn follow(
        &mut self,
        (old, followed): (AgentId, &Known),
        (new, key): (AgentId, PublicKey),
        at: Timestamp,
    ) {
        let mut revoked = followed.clone();
        revoked.status = Status::Revoked(at);
        self.steps.push(Step::Enter(old, Box::new(revoked)));
        let known = Known {
            key,
            ..followed.clone()
        };
        self.enter(
            new,
            known.clone(),
            IdentityChange::Succeeded(old, new, known),
        );
    }
}

/// Decides on all agents of a peer.
pub(super) fn plan_introduction(
    table: &Table,
    voucher: &Voucher,
    outranked: &[Name],
    agents: &[Introduced],
    at: Timestamp,
) -> (Change, Verdicts) {
    let mut change = Change::default();
    let (mut ids, mut names) = (HashSet::new(), HashSet::new());
    let of_peer = |known: &&Known| known.voucher == *voucher;
    let own = table.known.values().filter(of_peer).count();
    let mut share = Share { own, more: 0 };
    let mut results = Vec::with_capacity(agents.len());
    for agent in agents {
        let fresh = ids.insert(agent.id) && names.insert((&agent.tenant, &agent.name));
        let result = if fresh {
            plan_one(
                table,
                (voucher, outranked),
                agent,
                at,
                &mut change,
                &mut share,
            )
        } else {
            Err(RegistryError::Taken {
                id: agent.id,
                name: agent.name.clone(),
            })
        };
        results.push(result);
    }
    let gone = |(id, known): &(&AgentId, &Known)| {
        known.voucher == *voucher && known.status == Status::Active && !ids.contains(id)
    };
    let followed: HashSet<_> = change
        .steps
        .iter()
        .filter_map(|step| match step {
            Step::Enter(id, known) if known.status != Status::Active => Some(*id),
            _ => None,
        })
        .collect();
    for (id, known) in table.known.iter().filter(gone) {
        if !followed.contains(id) {
            change.steps.push(Step::Forget(*id));
            change
                .events
                .push(IdentityChange::Withdrawn(*id, known.clone()));
        }
    }
    (change, results)
}

/// How many identities a peer has, and how many it is to have more.
struct Share {
    own: usize,
    more: usize,
}

fn plan_one(
    table: &Table,
    (voucher, outranked): (&Voucher, &[Name]),
    agent: &Introduced,
    at: Timestamp,
    change: &mut Change,
    share: &mut Share,
) -> Result<(), RegistryError> {
    let weaker = |known: &Known| known.status == Status::Active && is_of(&known.voucher, outranked);
    let held = table.named(&agent.tenant, &agent.name);
    let outdone = held.filter(|(_, other)| weaker(other));
    let held = held.filter(|(_, other)| !weaker(other));
    if let Some((_, held)) = held
        && held.voucher != *voucher
    {
        return Err(RegistryError::NameTaken {
            name: agent.name.clone(),
            tenant: agent.tenant.clone(),
            holder: match &held.voucher {
                Voucher::Here => "this node".to_owned(),
                Voucher::Peer(peer) => format!("peer {peer}"),
            },
        });
    }
    // Another peer may have shown this agent's words about itself as its own.
    let shown = table.known.get(&agent.id).filter(|known| weaker(known));
    let known = match shown {
        Some(_) => Known {
            key: agent.key,
            name: agent.name.clone(),
            tenant: agent.tenant.clone(),
            status: Status::Active,
            voucher: voucher.clone(),
        },
        None => match table.enter(agent, voucher)? {
            Some(known) => known,
            None => return Ok(()),
        },
    };
    table.peer_room(share.own, share.more + 1)?;
    share.more += 1;
    if let Some(shown) = shown {
        let event = IdentityChange::Withdrawn(agent.id, shown.clone());
        change.events.push(event);
    }
    if let Some((theirs, other)) = outdone
        && theirs != agent.id
    {
        change.steps.push(Step::Forget(theirs));
        let event = IdentityChange::Withdrawn(theirs, other.clone());
        change.events.push(event);
    }
    match held {
        Some((old, held)) => change.follow((old, held), (agent.id, agent.key), at),
        None => change.enter(
            agent.id,
            known.clone(),
            IdentityChange::Registered(agent.id, known),
        ),
    }
    Ok(())
}

fn is_of(voucher: &Voucher, peers: &[Name]) -> bool {
    matches!(voucher, Voucher::Peer(peer) if peers.contains(peer))
}
