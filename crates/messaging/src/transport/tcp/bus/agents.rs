//! The agents of one instance: their keys, the topics of their endpoints, and what peers are told of them.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::{Notify, watch};
use volary_kernel::{
    clock::Timestamp,
    id::{Name, Tenant},
};

use crate::{
    discovery::{Descriptor, DescriptorError, Introduction, SignedDescriptor},
    identity::{AgentId, Identity},
    topic::Topic,
};

/// How long what is said of an agent holds; it is said anew at a quarter of that.
pub(super) const HOLDS: Duration = Duration::from_secs(24 * 3600);

struct Agent {
    identity: Identity,
    topics: Vec<Topic>,
    /// What was last signed, until something changes.
    signed: Option<SignedDescriptor>,
}

/// Shared by an instance and its tasks.
pub(super) struct Agents {
    by_place: RwLock<HashMap<(Tenant, Name), Agent>>,
    by_id: RwLock<HashMap<AgentId, Identity>>,
    introduction: watch::Sender<Bytes>,
    /// Somebody came, changed or went.
    pub(super) changed: Notify,
}

impl Agents {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            by_place: RwLock::default(),
            by_id: RwLock::default(),
            introduction: watch::channel(Bytes::new()).0,
            changed: Notify::new(),
        })
    }

    /// Enters an agent, or gives it another key.
    pub(super) fn enter(&self, tenant: Tenant, name: Name, identity: Identity) {
        let agent = Agent {
            identity: identity.clone(),
            topics: Vec::new(),
            signed: None,
        };
        self.by_id.write().insert(identity.id(), identity);
        let former = self.by_place.write().insert((tenant, name), agent);
        if let Some(former) = former {
            self.by_id.write().remove(&former.identity.id());
        }
        self.changed.notify_one();
    }

    pub(super) fn knows(&self, tenant: &Tenant, name: &Name) -> bool {
        let place = (tenant.clone(), name.clone());
        self.by_place.read().contains_key(&place)
    }

    /// The key of a sender.
    pub(super) fn key(&self, id: &AgentId) -> Option<Identity> {
        self.by_id.read().get(id).cloned()
    }

    /// Its endpoint has these topics now; none when it was closed.
    pub(super) fn hears(&self, tenant: &Tenant, name: &Name, topics: Vec<Topic>) {
        let place = (tenant.clone(), name.clone());
        if let Some(agent) = self.by_place.write().get_mut(&place) {
            (agent.topics, agent.signed) = (topics, None);
        }
        self.changed.notify_one();
    }

    /// What peers are told, now and later.
    pub(super) fn introduction(&self) -> watch::Receiver<Bytes> {
        self.introduction.subscribe()
    }

    /// Signs what changed, and says everything again. `fresh` signs all of it.
    pub(super) fn introduce(&self, now: Timestamp, fresh: bool) -> Result<(), DescriptorError> {
        let mut agents = self.by_place.write();
        let mut all = Vec::with_capacity(agents.len());
        for ((tenant, name), agent) in agents.iter_mut() {
            let signed = match agent.signed.take().filter(|_| !fresh) {
                Some(signed) => signed,
                None => agent.sign(tenant, name, now)?,
            };
            agent.signed = Some(signed.clone());
            all.push(signed);
        }
        drop(agents);
        let bytes = Introduction::new(all)?.encode();
        self.introduction.send_if_modified(|said| {
            let changed = *said != bytes;
            *said = bytes;
            changed
        });
        Ok(())
    }
}

impl Agent {
    fn sign(
        &self,
        tenant: &Tenant,
        name: &Name,
        now: Timestamp,
    ) -> Result<SignedDescriptor, DescriptorError> {
        let descriptor = Descriptor {
            tenant: tenant.clone(),
            name: name.clone(),
            key: self.identity.public(),
            topics: self.topics.clone(),
            capabilities: Vec::new(),
            pools: Vec::new(),
            issued_at: now,
            expires_at: now + HOLDS,
            succession: None,
        };
        SignedDescriptor::sign(descriptor, &self.identity)
    }
}
