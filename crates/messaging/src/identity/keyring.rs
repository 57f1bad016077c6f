//! The keys that this node holds for its agents: whoever sends from here is sealed with the sender's own key.

use std::{collections::HashMap, sync::Arc};

use parking_lot::RwLock;

use super::{AgentId, Identity};

/// Identities of this node's agents by id. Clones share them; bounded by the number of agents of the fleet.
#[derive(Clone, Default)]
pub struct Keyring(Arc<RwLock<HashMap<AgentId, Identity>>>);

impl Keyring {
    /// Adds a key; the same one again is harmless.
    pub fn insert(&self, identity: Identity) {
        self.0.write().insert(identity.id(), identity);
    }

    /// Takes a key out: what is still in an outbox under it can not be sealed any more and is parked.
    pub fn remove(&self, id: &AgentId) -> Option<Identity> {
        self.0.write().remove(id)
    }

    /// The identity of this id.
    pub fn get(&self, id: &AgentId) -> Option<Identity> {
        self.0.read().get(id).cloned()
    }
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keyring({} keys)", self.0.read().len())
    }
}
