//! Who is there: descriptors under lease, and an index to find them by.
//!
//! ```text
//! register ─▶ discovery/<tenant>/<name>, with a time to live ◀─ renew, while the agent lives
//!                    │ put, deleted, over                         unregister: gone at once
//!                    ▼
//!               index by topic, capability, pool ─▶ query
//! ```
//! Nothing is left behind by who is killed: the record's time is over soon. What a query returns holds at that moment.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;
use volary_kernel::{
    clock::Timestamp,
    id::{Name, Tenant},
};
use volary_store::{Batch, ChangeKind, Expect, Key, Record, SharedStore, StoreError, WatchEvent};

use super::{Capability, Descriptor, DescriptorError, SignedDescriptor};
use crate::topic::Topic;

const PREFIX: &str = "discovery/";
/// How long a registration holds without renewal.
pub const LEASE: Duration = Duration::from_secs(60);
/// Most registrations.
pub const REGISTRATIONS_MAX: usize = 100_000;

/// Why a registration is refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DiscoveryError {
    /// The descriptor is not believed.
    #[error(transparent)]
    Descriptor(#[from] DescriptorError),
    /// The name is registered with another key that is no predecessor of this one.
    #[error("agent `{0}` is registered with another key")]
    Taken(Name),
    /// No room.
    #[error("{REGISTRATIONS_MAX} agents are registered, which is the limit")]
    Full,
    /// The store refused or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Whom to find. What is empty or `None` does not matter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DescriptorQuery {
    /// Gets any of these.
    pub topics: Vec<Topic>,
    /// Can do all of these.
    pub capabilities: Vec<Capability>,
    /// Works in this pool.
    pub pool: Option<Name>,
}

type Place = (Tenant, Name);

#[derive(Default)]
struct Index {
    known: BTreeMap<Place, (Descriptor, Timestamp)>,
    topics: HashMap<(Tenant, Topic), BTreeSet<Name>>,
    capabilities: HashMap<(Tenant, Capability), BTreeSet<Name>>,
    pools: HashMap<(Tenant, Name), BTreeSet<Name>>,
}

fn unlist<K: std::hash::Hash + Eq>(map: &mut HashMap<K, BTreeSet<Name>>, key: K, name: &Name) {
    if let Some(names) = map.get_mut(&key) {
        names.remove(name);
        if names.is_empty() {
            map.remove(&key);
        }
    }
}

impl Index {
    fn remove(&mut self, place: &Place) {
        let Some((known, _)) = self.known.remove(place) else {
            return;
        };
        let (tenant, name) = place;
        for topic in known.topics {
            unlist(&mut self.topics, (tenant.clone(), topic), name);
        }
        for capability in known.capabilities {
            unlist(&mut self.capabilities, (tenant.clone(), capability), name);
        }
        for pool in known.pools {
            unlist(&mut self.pools, (tenant.clone(), pool), name);
        }
    }

    fn insert(&mut self, descriptor: Descriptor, until: Timestamp) {
        let place = (descriptor.tenant.clone(), descriptor.name.clone());
        self.remove(&place);
        let (tenant, name) = place.clone();
        for topic in &descriptor.topics {
            self.topics
                .entry((tenant.clone(), topic.clone()))
                .or_default()
                .insert(name.clone());
        }
        for capability in &descriptor.capabilities {
            let key = (tenant.clone(), capability.clone());
            self.capabilities
                .entry(key)
                .or_default()
                .insert(name.clone());
        }
        for pool in &descriptor.pools {
            self.pools
                .entry((tenant.clone(), pool.clone()))
                .or_default()
                .insert(name.clone());
        }
        self.known.insert(place, (descriptor, until));
    }

    /// The fewest names among which all that are meant are.
    fn candidates(&self, tenant: &Tenant, query: &DescriptorQuery) -> Vec<Name> {
        let mut sets: Vec<BTreeSet<Name>> = Vec::new();
        if !query.topics.is_empty() {
            let of = |topic: &Topic| self.topics.get(&(tenant.clone(), topic.clone()));
            sets.push(
                query
                    .topics
                    .iter()
                    .filter_map(of)
                    .flatten()
                    .cloned()
                    .collect(),
            );
        }
        for capability in &query.capabilities {
            let found = self.capabilities.get(&(tenant.clone(), capability.clone()));
            sets.push(found.cloned().unwrap_or_default());
        }
        if let Some(pool) = &query.pool {
            let found = self.pools.get(&(tenant.clone(), pool.clone()));
            sets.push(found.cloned().unwrap_or_default());
        }
        match sets.into_iter().min_by_key(BTreeSet::len) {
            Some(fewest) => fewest.into_iter().collect(),
            None => {
                let all = self.known.keys().filter(|(of, _)| of == tenant);
                all.map(|(_, name)| name.clone()).collect()
            }
        }
    }
}

fn fits(descriptor: &Descriptor, query: &DescriptorQuery) -> bool {
    (query.topics.is_empty()
        || query
            .topics
            .iter()
            .any(|topic| descriptor.topics.contains(topic)))
        && query
            .capabilities
            .iter()
            .all(|can| descriptor.capabilities.contains(can))
        && query
            .pool
            .as_ref()
            .is_none_or(|pool| descriptor.pools.contains(pool))
}

/// The agents that are there. Clones share it.
#[derive(Clone)]
pub struct Discovery(Arc<Inner>);

struct Inner {
    store: SharedStore,
    index: RwLock<Index>,
}

fn key(tenant: &Tenant, name: &Name) -> Result<Key, StoreError> {
    Key::new(format!("{PREFIX}{tenant}/{name}"))
}

impl Discovery {
    /// Who is registered in `store`. What others register in it is known while [`Discovery::run`] runs.
    ///
    /// # Errors
    /// Errors of reading.
    pub async fn open(store: SharedStore) -> Result<Self, DiscoveryError> {
        let discovery = Self(Arc::new(Inner {
            store,
            index: RwLock::default(),
        }));
        discovery.rescan().await?;
        Ok(discovery)
    }

    async fn rescan(&self) -> Result<(), DiscoveryError> {
        let (mut index, mut after) = (Index::default(), None::<Key>);
        loop {
            let page = self.0.store.scan(PREFIX, after.as_ref(), 512).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.key.clone());
            for record in &page {
                if let Some((descriptor, until)) = self.read(record) {
                    index.insert(descriptor, until);
                }
            }
        }
        *self.0.index.write() = index;
        Ok(())
    }

    /// What a record says, if that is to be believed.
    fn read(&self, record: &Record) -> Option<(Descriptor, Timestamp)> {
        let opened = SignedDescriptor::decode(&record.value).map_err(DescriptorError::from);
        let opened = opened.and_then(|signed| signed.open(self.0.store.clock().wall()));
        let opened = opened.inspect_err(|error| tracing::warn!(key = %record.key, %error, "a registered descriptor is not believed"));
        let descriptor = opened.ok()?;
        let until = record
            .expires
            .unwrap_or(descriptor.expires_at)
            .min(descriptor.expires_at);
        Some((descriptor, until))
    }

    /// Registers agents, or renews their registrations: all in one commit, for [`LEASE`] from now.
    ///
    /// # Errors
    /// [`DiscoveryError`]; then none is registered.
    pub async fn register(&self, all: &[SignedDescriptor]) -> Result<(), DiscoveryError> {
        let now = self.0.store.clock().wall();
        let mut tx = Batch::new();
        let mut opened = Vec::with_capacity(all.len());
        for signed in all {
            let descriptor = signed.open(now)?;
            let until = (now + LEASE).min(descriptor.expires_at);
            self.may(&descriptor, now)?;
            let ttl = until.since(now);
            let key = key(&descriptor.tenant, &descriptor.name)?;
            tx.put_ttl(key, signed.encode(), Expect::Any, ttl);
            opened.push((descriptor, until));
        }
        let inner = self.0.clone();
        tx.on_commit(move |_| {
            let mut index = inner.index.write();
            for (descriptor, until) in opened {
                index.insert(descriptor, until);
            }
        });
        self.0.store.commit(tx).await?;
        Ok(())
    }

    fn may(&self, descriptor: &Descriptor, now: Timestamp) -> Result<(), DiscoveryError> {
        let index = self.0.index.read();
        let place = (descriptor.tenant.clone(), descriptor.name.clone());
        let had = index.known.get(&place).filter(|(_, until)| *until > now);
        match had {
            None if index.known.len() >= REGISTRATIONS_MAX => Err(DiscoveryError::Full),
            None => Ok(()),
            Some((had, _)) if had.key == descriptor.key => Ok(()),
            Some((had, _)) => {
                let follows = descriptor.succession.as_ref().map(|follows| follows.old());
                if follows == Some(&had.key) {
                    Ok(())
                } else {
                    Err(DiscoveryError::Taken(descriptor.name.clone()))
                }
            }
        }
    }

    /// Takes an agent out; one that is not there is no error.
    ///
    /// # Errors
    /// Errors of the store.
    pub async fn unregister(&self, tenant: &Tenant, name: &Name) -> Result<(), DiscoveryError> {
        let mut tx = Batch::new();
        tx.delete(key(tenant, name)?, Expect::Any);
        let (inner, place) = (self.0.clone(), (tenant.clone(), name.clone()));
        tx.on_commit(move |_| inner.index.write().remove(&place));
        self.0.store.commit(tx).await?;
        Ok(())
    }

    /// The agents of a tenant that `query` means and that are there now, by name.
    pub fn query(&self, tenant: &Tenant, query: &DescriptorQuery) -> Vec<Descriptor> {
        let now = self.0.store.clock().wall();
        let index = self.0.index.read();
        let names = index.candidates(tenant, query).into_iter();
        let found = names.filter_map(|name| index.known.get(&(tenant.clone(), name)));
        let there = found.filter(|(descriptor, until)| *until > now && fits(descriptor, query));
        there.map(|(descriptor, _)| descriptor.clone()).collect()
    }

    /// Follows what others register in the same store, and forgets what is over, until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let mut watch = self.0.store.watch(PREFIX);
        loop {
            let next = stop.run_until_cancelled(watch.next()).await;
            let followed = match next {
                None | Some(None) => return,
                Some(Some(WatchEvent::Lagged)) => self.rescan().await,
                Some(Some(WatchEvent::Changed(change))) => {
                    let gone = change.kind != ChangeKind::Put;
                    self.follow(&change.key, gone).await
                }
            };
            if let Err(error) = followed {
                tracing::warn!(%error, "a registration could not be read");
            }
        }
    }

    async fn follow(&self, key: &Key, gone: bool) -> Result<(), DiscoveryError> {
        let place = key
            .strip_prefix(PREFIX)
            .and_then(|place| place.split_once('/'));
        let read =
            |(tenant, name): (&str, &str)| Some((tenant.parse().ok()?, Name::new(name).ok()?));
        let Some(place) = place.and_then(read) else {
            return Ok(());
        };
        let record = if gone {
            None
        } else {
            self.0.store.get(key).await?
        };
        match record.as_ref().and_then(|record| self.read(record)) {
            Some((descriptor, until)) => self.0.index.write().insert(descriptor, until),
            None => self.0.index.write().remove(&place),
        }
        Ok(())
    }
}
