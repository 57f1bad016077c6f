//! Creating, joining, leaving: each a compare-and-set of one record.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use parking_lot::RwLock;
use serde_json::json;
use volary_kernel::{
    clock::SharedClock,
    id::{Name, Tenant},
    metric::{CounterFamily, GaugeFamily, Metrics},
};
use volary_store::{Batch, Entry, Expect, Key, MemoryConfig, MemoryStore, SharedStore, StoreError};

use super::{
    Admit, MEMBERS_MAX, POOLS_MAX, Pool, PoolAdmission, PoolError, TOKEN_MIN, TokenHash, Via,
};
use crate::inbox::Inboxes;

const PREFIX: &str = "pool/";
/// How often a change that others came before is begun anew.
const TRIES: usize = 64;

/// What happened to a pool. The entry's kind is `pool.` and the word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolEvent<'a> {
    /// It was created.
    Created,
    /// An agent joined.
    Joined(&'a Name),
    /// An agent left.
    Left(&'a Name),
    /// An agent was not let in.
    Refused(&'a Name),
    /// It was deleted.
    Deleted,
}

impl PoolEvent<'_> {
    const fn word(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Joined(_) => "joined",
            Self::Left(_) => "left",
            Self::Refused(_) => "refused",
            Self::Deleted => "deleted",
        }
    }

    fn record(&self, pool: &Pool, by: &Name) -> Entry {
        let (Self::Joined(agent) | Self::Left(agent) | Self::Refused(agent)) = self else {
            return entry(self.word(), pool, by, None);
        };
        entry(self.word(), pool, by, Some(agent))
    }
}

fn entry(word: &str, pool: &Pool, by: &Name, agent: Option<&Name>) -> Entry {
    let admission = pool.admission.as_str();
    let body = json!({"v": 1, "pool": pool.name, "admission": admission, "by": by, "agent": agent});
    Entry::new(
        format!("pool.{word}"),
        pool.tenant.clone(),
        body.to_string(),
    )
    .agent(agent.cloned())
}

/// What became of a create.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// It is there now.
    Now,
    /// It was there, and lets the same in.
    Before,
}

/// The pools of all tenants of a store. Clones share them.
#[derive(Clone)]
pub struct PoolManager(Arc<Inner>);

struct Inner {
    store: SharedStore,
    inboxes: Option<Inboxes>,
    pools: RwLock<HashMap<(Tenant, Name), Pool>>,
    events: CounterFamily,
    members: GaugeFamily,
}

/// A change of a pool: what it is afterwards (`None`: deleted) and what happened, or nothing to do.
type Change<'a> = Option<(Option<Pool>, PoolEvent<'a>)>;

impl PoolManager {
    /// The pools in `store`; messages to a pool reach its members' inboxes in `inboxes`, if given.
    ///
    /// # Errors
    /// Errors of reading.
    pub async fn open(
        store: SharedStore,
        inboxes: Option<Inboxes>,
        metrics: &Metrics,
    ) -> Result<Self, PoolError> {
        let manager = Self(Arc::new(Inner {
            inboxes,
            pools: RwLock::default(),
            events: metrics.counter_family("pool_events", "What happened to pools", &["event"]),
            members: metrics.gauge_family("pool_members", "Members of pools", &["tenant", "pool"]),
            store,
        }));
        let mut after: Option<Key> = None;
        loop {
            let page = manager.0.store.scan(PREFIX, after.as_ref(), 512).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.key.clone());
            for record in &page {
                let pool = read(record)?;
                manager
                    .0
                    .know(&pool.tenant.clone(), &pool.name.clone(), Some(pool));
            }
        }
        Ok(manager)
    }

    /// Pools that live as long as the process, for tests and for who embeds Volary without a store.
    ///
    /// # Errors
    /// None in practice: the store is in memory.
    pub async fn in_memory(clock: SharedClock) -> Result<Self, PoolError> {
        let node = Name::new("memory").expect("the constant keeps the rules of names");
        let store = Arc::new(MemoryStore::new(MemoryConfig::new(node), clock));
        Self::open(store, None, &Metrics::default()).await
    }

    /// Creates a pool. The same again is harmless and keeps its members.
    ///
    /// # Errors
    /// [`PoolError::Conflict`], [`PoolError::ShortToken`], [`PoolError::Full`]; errors of the store.
    pub async fn create(
        &self,
        tenant: &Tenant,
        name: &Name,
        admit: Admit,
        by: &Name,
    ) -> Result<Created, PoolError> {
        let admission = match &admit {
            Admit::Open => PoolAdmission::Open,
            Admit::AllowList(list) => PoolAdmission::AllowList(list.clone()),
            Admit::Token(token) if token.expose().len() < TOKEN_MIN => {
                return Err(PoolError::ShortToken(token.expose().len()));
            }
            Admit::Token(token) => PoolAdmission::Token(TokenHash::of(token)),
        };
        if self.list(tenant).len() >= POOLS_MAX && self.get(tenant, name).is_none() {
            return Err(PoolError::Full {
                what: "pools of a tenant",
                limit: POOLS_MAX,
            });
        }
        let new = Pool {
            tenant: tenant.clone(),
            name: name.clone(),
            admission,
            members: BTreeMap::new(),
            created_by: by.clone(),
            created_at: self.0.store.clock().wall(),
        };
        let change = |had: Option<Pool>| match had {
            None => Ok(Some((Some(new.clone()), PoolEvent::Created))),
            Some(pool) if pool.is_like(&admit) => Ok(None),
            Some(_) => Err(PoolError::Conflict(name.clone())),
        };
        let changed = self.change(tenant, name, by, change).await?;
        Ok(if changed {
            Created::Now
        } else {
            Created::Before
        })
    }

    /// Lets `agent` join, if the pool lets it in; `false` if it is a member already. Who the agent is, the caller has made
    /// sure of.
    ///
    /// # Errors
    /// [`PoolError::Unknown`], [`PoolError::NotAdmitted`], [`PoolError::Full`]; errors of the store.
    pub async fn join(
        &self,
        tenant: &Tenant,
        name: &Name,
        agent: &Name,
        token: Option<&str>,
    ) -> Result<bool, PoolError> {
        let change = |had: Option<Pool>| {
            let pool = had.ok_or_else(|| PoolError::Unknown(name.clone()))?;
            if !pool.admits(agent, token) {
                let why = match (&pool.admission, token) {
                    (PoolAdmission::Token(_), None) => "it asks for a token",
                    (PoolAdmission::Token(_), Some(_)) => "the token is not the right one",
                    _ => "it is not on the list",
                };
                let (pool, agent) = (name.clone(), agent.clone());
                return Err(PoolError::NotAdmitted { pool, agent, why });
            }
            enter(pool, agent, Via::Joined)
        };
        let joined = self.change(tenant, name, agent, change).await;
        if let (Err(PoolError::NotAdmitted { .. }), Some(pool)) = (&joined, self.get(tenant, name))
        {
            let mut tx = Batch::new();
            tx.append(PoolEvent::Refused(agent).record(&pool, agent));
            self.0.store.commit(tx).await?;
            self.0.events.with(&["refused"]).inc();
        }
        joined
    }

    /// Lets `agent` in whatever the admission says: for operators and manifests, which decide.
    ///
    /// # Errors
    /// [`PoolError::Unknown`], [`PoolError::Full`]; errors of the store.
    pub async fn admit(
        &self,
        tenant: &Tenant,
        name: &Name,
        (agent, via): (&Name, Via),
        by: &Name,
    ) -> Result<bool, PoolError> {
        let change = |had: Option<Pool>| {
            let pool = had.ok_or_else(|| PoolError::Unknown(name.clone()))?;
            enter(pool, agent, via)
        };
        self.change(tenant, name, by, change).await
    }

    /// Takes `agent` out; `false` if it was no member.
    ///
    /// # Errors
    /// [`PoolError::Unknown`]; errors of the store.
    pub async fn leave(
        &self,
        tenant: &Tenant,
        name: &Name,
        agent: &Name,
        by: &Name,
    ) -> Result<bool, PoolError> {
        let change = |had: Option<Pool>| {
            let mut pool = had.ok_or_else(|| PoolError::Unknown(name.clone()))?;
            let was = pool.members.remove(agent).is_some();
            Ok(was.then_some((Some(pool), PoolEvent::Left(agent))))
        };
        self.change(tenant, name, by, change).await
    }

    /// Deletes a pool; `false` if there was none. Its tasks stay until they are cancelled or it is created again.
    ///
    /// # Errors
    /// Errors of the store.
    pub async fn delete(&self, tenant: &Tenant, name: &Name, by: &Name) -> Result<bool, PoolError> {
        let change = |had: Option<Pool>| Ok(had.map(|_| (None, PoolEvent::Deleted)));
        self.change(tenant, name, by, change).await
    }

    /// Makes the membership by manifest what `wanted` says, of all pools of all tenants: pools that are not there are
    /// created open.
    ///
    /// # Errors
    /// [`PoolError::Full`]; errors of the store.
    pub async fn follow_manifests(
        &self,
        wanted: &BTreeMap<(Tenant, Name), BTreeSet<Name>>,
        by: &Name,
    ) -> Result<(), PoolError> {
        for ((tenant, name), agents) in wanted {
            if self.get(tenant, name).is_none() {
                self.create(tenant, name, Admit::Open, by).await?;
            }
            for agent in agents {
                self.admit(tenant, name, (agent, Via::Manifest), by).await?;
            }
        }
        let all: Vec<Pool> = self.0.pools.read().values().cloned().collect();
        for pool in all {
            let place = (pool.tenant, pool.name);
            let stays = |agent: &Name| wanted.get(&place).is_some_and(|all| all.contains(agent));
            for (agent, via) in &pool.members {
                if *via == Via::Manifest && !stays(agent) {
                    self.leave(&place.0, &place.1, agent, by).await?;
                }
            }
        }
        Ok(())
    }

    /// A pool.
    pub fn get(&self, tenant: &Tenant, name: &Name) -> Option<Pool> {
        self.0
            .pools
            .read()
            .get(&(tenant.clone(), name.clone()))
            .cloned()
    }

    /// The pools of a tenant, by name.
    pub fn list(&self, tenant: &Tenant) -> Vec<Pool> {
        let pools = self.0.pools.read();
        let mut list: Vec<_> = pools
            .values()
            .filter(|pool| pool.tenant == *tenant)
            .cloned()
            .collect();
        list.sort_by(|one, other| one.name.cmp(&other.name));
        list
    }

    /// The pools that an agent is a member of.
    pub fn of_agent(&self, tenant: &Tenant, agent: &Name) -> Vec<Name> {
        let pools = self.list(tenant);
        let mine = pools
            .into_iter()
            .filter(|pool| pool.members.contains_key(agent));
        mine.map(|pool| pool.name).collect()
    }

    /// Reads, decides, writes; anew if others came before. Whether there was anything to do.
    async fn change<'a>(
        &self,
        tenant: &Tenant,
        name: &Name,
        by: &Name,
        decide: impl Fn(Option<Pool>) -> Result<Change<'a>, PoolError>,
    ) -> Result<bool, PoolError> {
        let key = Key::new(format!("{PREFIX}{tenant}/{name}"))?;
        let mut last = None;
        for _ in 0..TRIES {
            let found = self.0.store.get(&key).await?;
            let expect = found
                .as_ref()
                .map_or(Expect::Absent, |found| Expect::Version(found.version));
            let had = found.as_ref().map(read).transpose()?;
            let Some((now, event)) = decide(had.clone())? else {
                return Ok(false);
            };
            let Some(about) = now.as_ref().or(had.as_ref()) else {
                return Ok(false);
            };
            let mut tx = Batch::new();
            tx.append(event.record(about, by));
            match &now {
                Some(pool) => {
                    let value = serde_json::to_vec(pool).expect("a pool has text keys");
                    tx.put(key.clone(), value, expect);
                }
                None => drop(tx.delete(key.clone(), expect)),
            }
            let (inner, place) = (self.0.clone(), (tenant.clone(), name.clone()));
            let counter = self.0.events.with(&[event.word()]);
            tx.on_commit(move |_| {
                counter.inc();
                inner.know(&place.0, &place.1, now);
            });
            match self.0.store.commit(tx).await {
                Ok(_) => return Ok(true),
                Err(error @ StoreError::Conflict { .. }) => last = Some(error),
                Err(error) => return Err(error.into()),
            }
        }
        Err(last.map_or_else(|| PoolError::Unknown(name.clone()), PoolError::from))
    }
}

fn enter<'a>(mut pool: Pool, agent: &'a Name, via: Via) -> Result<Change<'a>, PoolError> {
    if pool
        .members
        .get(agent)
        .is_some_and(|had| *had == via || via == Via::Joined)
    {
        return Ok(None);
    }
    if pool.members.len() >= MEMBERS_MAX {
        return Err(PoolError::Full {
            what: "members of a pool",
            limit: MEMBERS_MAX,
        });
    }
    pool.members.insert(agent.clone(), via);
    Ok(Some((Some(pool), PoolEvent::Joined(agent))))
}

fn read(record: &volary_store::Record) -> Result<Pool, StoreError> {
    serde_json::from_slice(&record.value).map_err(|error| StoreError::Corrupt {
        what: format!("record `{}` is no pool: {error}", record.key.as_str()),
        seq: None,
    })
}

impl Inner {
    /// Takes over what was committed.
    fn know(&self, tenant: &Tenant, name: &Name, pool: Option<Pool>) {
        let names = |pool: &Pool| pool.members.keys().cloned().collect::<Vec<_>>();
        let members = pool.as_ref().map(names).unwrap_or_default();
        let count = i64::try_from(members.len()).unwrap_or(i64::MAX);
        self.members
            .with(&[tenant.as_str(), name.as_str()])
            .set(count);
        if let Some(inboxes) = &self.inboxes {
            inboxes.route_pool(tenant, name, members);
        }
        let place = (tenant.clone(), name.clone());
        let mut pools = self.pools.write();
        match pool {
            Some(pool) => drop(pools.insert(place, pool)),
            None => drop(pools.remove(&place)),
        }
    }
}
