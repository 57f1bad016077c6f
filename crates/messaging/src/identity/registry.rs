//! The register of known identities: whose key is whose, who vouched for it, and which keys are no longer believed.
//!
//! ```text
//! (unknown) ──register──▶ Active ──revoke──▶ Revoked (kept, so that the key can not come back)
//!     │                     └──succeed──▶ Revoked, and the new key Active under the same name
//!     └──introduce (a peer)──▶ Active, by that peer ──introduce again without it──▶ (unknown)
//!                                              └────── with another key for its name──▶ Revoked
//! ```
//!
//! Reading looks at a table in memory. A change is one commit: a record `identity/<id>` for each identity and a journal
//! entry `identity.*`; the table follows when the commit is durable, before the one who asked is told.

use std::{collections::HashSet, sync::Arc};

use parking_lot::RwLock;
use volary_kernel::{
    clock::Timestamp,
    id::{Name, Tenant},
    sign::PublicKey,
};
use volary_store::{Batch, Expect, Key, PAGE_MAX, SharedStore, StoreError};

use super::{
    AgentId, Succession, stored,
    table::{
        Change, Introduced, Known, RegistryError, Status, Step, Table, Verdicts, Voucher,
        plan_introduction,
    },
};
use crate::event::{Event, IdentityChange};

impl From<StoreError> for RegistryError {
    fn from(error: StoreError) -> Self {
        Self::Store(error.to_string())
    }
}

#[derive(Debug, Default)]
struct Shelf {
    table: RwLock<Table>,
    /// One change at a time: what it was decided on must hold when it is stored.
    changing: tokio::sync::Mutex<()>,
}

/// Known identities; clones share them. Bounded by [`super::REGISTRY_MAX`], refusing when full.
#[derive(Clone, Default)]
pub struct IdentityRegistry {
    shelf: Arc<Shelf>,
    store: Option<SharedStore>,
}

impl std::fmt::Debug for IdentityRegistry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IdentityRegistry({} identities)", self.len())
    }
}

impl IdentityRegistry {
    /// A registry that forgets everything with the process: for tests and for who embeds.
    pub fn in_memory() -> Self {
        Self::default()
    }

    /// The registry that is kept in `store`, with what it holds. One at a time: it believes its table.
    ///
    /// # Errors
    /// Errors of reading; [`StoreError::Corrupt`] for a record that this version can not read.
    pub async fn open(store: SharedStore) -> Result<Self, StoreError> {
        let mut table = Table::default();
        let mut after: Option<Key> = None;
        loop {
            let page = store.scan(stored::PREFIX, after.as_ref(), PAGE_MAX).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.key.clone());
            for record in &page {
                let (id, known) = stored::read(record)?;
                table.apply(Step::Enter(id, Box::new(known)));
            }
        }
        let shelf = Shelf {
            table: RwLock::new(table),
            ..Shelf::default()
        };
        Ok(Self {
            shelf: Arc::new(shelf),
            store: Some(store),
        })
    }

    /// Registers a key of this node under the id that is claimed for it. Doing it twice is harmless.
    ///
    /// # Errors
    /// [`RegistryError`]: a wrong id, a revoked key, an id of another agent, a name of a peer's agent, or no room.
    pub async fn register(
        &self,
        id: AgentId,
        key: PublicKey,
        name: Name,
        tenant: Tenant,
    ) -> Result<(), RegistryError> {
        let agent = Introduced {
            id,
            key,
            name,
            tenant,
        };
        self.change(|table| {
            let mut change = Change::default();
            let Some(known) = table.enter(&agent, &Voucher::Here)? else {
                return Ok((change, ()));
            };
            table.room(1)?;
            // Ours wins: a peer's agent of this name is not believed any more.
            if let Some((theirs, held)) = table.named(&agent.tenant, &agent.name)
                && held.voucher != Voucher::Here
            {
                change.steps.push(Step::Forget(theirs));
                change
                    .events
                    .push(IdentityChange::Withdrawn(theirs, held.clone()));
            }
            change.enter(id, known.clone(), IdentityChange::Registered(id, known));
            Ok((change, ()))
        })
        .await
    }

    /// No longer believes the key of `id`, from now on and for good.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`], [`RegistryError::Store`].
    pub async fn revoke(&self, id: AgentId, at: Timestamp) -> Result<(), RegistryError> {
        self.change(|table| {
            let mut change = Change::default();
            let found = table.known.get(&id).ok_or(RegistryError::Unknown(id))?;
            if found.status == Status::Active {
                let mut known = found.clone();
                known.status = Status::Revoked(at);
                change.enter(id, known.clone(), IdentityChange::Revoked(id, known));
            }
            Ok((change, ()))
        })
        .await
    }

    /// Believes the new key of `statement` in the old one's place, and revokes the old one.
    ///
    /// # Errors
    /// [`RegistryError`]: the old key is unknown or revoked, the statement is forged, the new key is known already.
    pub async fn succeed(&self, statement: &Succession) -> Result<AgentId, RegistryError> {
        let (old, new) = (
            AgentId::of(statement.old()),
            AgentId::of(statement.new_key()),
        );
        statement.verify().map_err(|_| RegistryError::Forged(old))?;
        self.change(|table| {
            let mut change = Change::default();
            let followed = table.known.get(&old).ok_or(RegistryError::Unknown(old))?;
            if let Status::Revoked(at) = followed.status {
                return Err(RegistryError::Revoked { id: old, at });
            }
            if let Some(found) = table.known.get(&new) {
                return Err(RegistryError::Taken {
                    id: new,
                    name: found.name.clone(),
                });
            }
            table.room(1)?;
            change.follow((old, followed), (new, *statement.new_key()), statement.at());
            Ok((change, new))
        })
        .await
    }

    /// Takes `agents` as all agents of `peer`: those that were not there are entered, those that are not there any more
    /// are forgotten, and a new key for a name takes the place of the old one, which is revoked. A name that an agent of
    /// one of the `outranked` peers has goes to this peer. Returns, for each agent, why it was turned away if it was; the
    /// others are taken all the same. `finish` adds what else belongs into the commit; it is told the verdicts, and
    /// whether anything changes.
    ///
    /// # Errors
    /// [`RegistryError::Store`]; nothing was changed.
    pub(crate) async fn introduce(
        &self,
        peer: &Name,
        (agents, outranked): (&[Introduced], &[Name]),
        at: Timestamp,
        finish: impl FnOnce(&mut Batch, &Verdicts, bool) + Send,
    ) -> Result<Verdicts, RegistryError> {
        let voucher = Voucher::Peer(peer.clone());
        self.change_with(finish, |table| {
            Ok(plan_introduction(table, &voucher, outranked, agents, at))
        })
        .await
    }

    async fn change<T>(
        &self,
        plan: impl FnOnce(&Table) -> Result<(Change, T), RegistryError>,
    ) -> Result<T, RegistryError> {
        self.change_with(|_, _, _| {}, plan).await
    }

    /// Decides on a change, stores it with what `finish` adds, and then makes it.
    async fn change_with<T>(
        &self,
        finish: impl FnOnce(&mut Batch, &T, bool) + Send,
        plan: impl FnOnce(&Table) -> Result<(Change, T), RegistryError>,
    ) -> Result<T, RegistryError> {
        let _one_at_a_time = self.shelf.changing.lock().await;
        let (change, result) = plan(&self.shelf.table.read())?;
        let (mut tx, changed) = (Batch::new(), !change.steps.is_empty());
        finish(&mut tx, &result, changed);
        let Some(store) = &self.store else {
            let mut table = self.shelf.table.write();
            change.steps.into_iter().for_each(|step| table.apply(step));
            return Ok(result);
        };
        for event in &change.events {
            tx.append(Event::Identity(event).record());
        }
        for step in &change.steps {
            match step {
                Step::Enter(id, known) => {
                    tx.put(stored::key(id), stored::write(known), Expect::Any)
                }
                Step::Forget(id) => tx.delete(stored::key(id), Expect::Any),
            };
        }
        if tx.is_empty() {
            return Ok(result);
        }
        let shelf = self.shelf.clone();
        tx.on_commit(move |_| {
            let mut table = shelf.table.write();
            change.steps.into_iter().for_each(|step| table.apply(step));
        });
        store.commit(tx).await?;
        Ok(result)
    }

    /// The identity of `id`, if it is believed.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`], [`RegistryError::Revoked`].
    pub fn trusted(&self, id: &AgentId) -> Result<Known, RegistryError> {
        let table = self.shelf.table.read();
        let found = table.known.get(id).ok_or(RegistryError::Unknown(*id))?;
        match found.status {
            Status::Active => Ok(found.clone()),
            Status::Revoked(at) => Err(RegistryError::Revoked { id: *id, at }),
        }
    }

    /// What is known of `id`, revoked or not.
    pub fn get(&self, id: &AgentId) -> Option<Known> {
        self.shelf.table.read().known.get(id).cloned()
    }

    /// The believed identity of the agent of this name.
    pub fn named(&self, tenant: &Tenant, name: &Name) -> Option<(AgentId, Known)> {
        let table = self.shelf.table.read();
        table
            .named(tenant, name)
            .map(|(id, known)| (id, known.clone()))
    }

    /// Every identity, sorted by tenant, name and id: for operators.
    pub fn all(&self) -> Vec<(AgentId, Known)> {
        let table = self.shelf.table.read();
        let mut all: Vec<_> = table
            .known
            .iter()
            .map(|(id, known)| (*id, known.clone()))
            .collect();
        drop(table);
        all.sort_by(|(a, x), (b, y)| (&x.tenant, &x.name, a).cmp(&(&y.tenant, &y.name, b)));
        all
    }

    /// The peers that vouch for somebody who is believed.
    pub(crate) fn vouching(&self) -> HashSet<Name> {
        let table = self.shelf.table.read();
        let peer = |known: &Known| match &known.voucher {
            Voucher::Peer(peer) if known.status == Status::Active => Some(peer.clone()),
            _ => None,
        };
        table.known.values().filter_map(peer).collect()
    }

    /// Number of identities, revoked ones included.
    pub fn len(&self) -> usize {
        self.shelf.table.read().known.len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
