//! Durable inboxes: one queue of deliveries for each agent, at least once, until each is acknowledged or parked.
//!
//! ```text
//! put / post ─▶ waiting ─▶ claimed ──ack──▶ done, with what the agent sent, in one commit
//!                 ▲          │ nack, lapsed (attempts left): delivery.failed, again after a back-off
//!                 └──────────┤ nack or lapsed at the last attempt, park: delivery.parked, for a person
//!                            │ unreadable: delivery.parked at once
//!    waiting ──deadline──▶ delivery.expired
//! ```
//! Everything adds to the caller's batch. Claims are journaled as `delivery.claimed` in the commit that makes them.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::RwLock;
use volary_kernel::{
    clock::Timestamp,
    id::{Name, Tenant, Uid},
    metric::{Counter, Metrics},
    retry::Backoff,
    secret::Redactor,
};
use volary_store::{
    Batch, Cause, Claim, EntryRef, ItemId, NewItem, Queue, QueueConfig, QueueError, Queues,
    SharedStore, StoreError,
    queue::{DEFAULT_MAX_ATTEMPTS, DEFAULT_VISIBILITY, Enqueued, Nacked, QueueStats},
};

use crate::{
    admission::{FULL_RETRY, Refusal},
    delivery::{Delivery, DeliveryKind, Parcel, ParcelError},
    event::{DeliveryRef, Event, Outcome},
    message::{Audience, Message, Priority},
    metrics,
    route::{RoutingTable, Targets},
    topic::Topic,
};

/// Most deliveries that wait in one inbox. Default 10,000: minutes of work for a busy agent.
pub const DEFAULT_INBOX_ITEMS: usize = 10_000;
/// Most bytes that wait in one inbox. Default 64 MiB.
pub const DEFAULT_INBOX_BYTES: u64 = 64 << 20;

/// An agent's inbox and what is routed to it.
#[derive(Debug, Clone)]
pub struct InboxSpec {
    /// Whose it is. Messages of other tenants never reach it.
    pub tenant: Tenant,
    /// The agent: what a message's recipient is compared with.
    pub name: Name,
    /// The topics it gets, matched exactly.
    pub topics: Vec<Topic>,
    /// Most deliveries that wait or are claimed.
    pub max_items: usize,
    /// Most bytes of them.
    pub max_bytes: u64,
    /// How long a claim holds without renewal.
    pub visibility: Duration,
    /// Attempts before a delivery is parked.
    pub max_attempts: u32,
    /// Wait before the next attempt.
    pub backoff: Backoff,
}

impl InboxSpec {
    /// An inbox with the default bounds.
    pub fn new(tenant: Tenant, name: Name, topics: Vec<Topic>) -> Self {
        Self {
            tenant,
            name,
            topics,
            max_items: DEFAULT_INBOX_ITEMS,
            max_bytes: DEFAULT_INBOX_BYTES,
            visibility: DEFAULT_VISIBILITY,
            max_attempts: DEFAULT_MAX_ATTEMPTS,
            backoff: Backoff::default(),
        }
    }
}

/// Name of an agent's queue.
pub fn queue_name(tenant: &Tenant, agent: &Name) -> String {
    format!("inbox/{tenant}/{agent}")
}

/// What an inbox refuses or fails with.
#[derive(Debug, Clone, thiserror::Error)]
pub enum InboxError {
    /// There is an inbox of this name already.
    #[error("agent `{name}` of tenant `{tenant}` has an inbox already")]
    Taken {
        /// The tenant.
        tenant: Tenant,
        /// The agent.
        name: Name,
    },
    /// There is no such agent.
    #[error("agent `{name}` of tenant `{tenant}` has no inbox")]
    Unknown {
        /// The tenant.
        tenant: Tenant,
        /// The agent.
        name: Name,
    },
    /// The parcel can not be stored.
    #[error(transparent)]
    Parcel(#[from] ParcelError),
    /// The queue refused or failed: full, lapsed, the store.
    #[error(transparent)]
    Queue(#[from] QueueError),
}

impl From<StoreError> for InboxError {
    fn from(error: StoreError) -> Self {
        Self::Queue(error.into())
    }
}

impl InboxError {
    /// What a sender is told of it, if it is a refusal.
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Queue(QueueError::Full { queue, .. }) => Some(Refusal::Full {
                what: queue.to_string().into(),
                retry_after: FULL_RETRY,
            }),
            Self::Queue(QueueError::Store(error)) => Refusal::of_store(error),
            _ => None,
        }
    }
}

/// How a parcel is put into an inbox.
#[derive(Debug, Clone, Default)]
pub struct PutOptions {
    /// The journal entry that brought it about.
    pub cause: Cause,
    /// A newer parcel of the same key takes the place of one that waits.
    pub coalesce: Option<String>,
    /// With `coalesce`: what held before this parcel. Of parcels that meet, the first one's is kept.
    pub base: Option<String>,
    /// How urgent.
    pub priority: Priority,
    /// From when on nobody wants it.
    pub deadline: Option<Timestamp>,
    /// Not to be claimed earlier.
    pub not_before: Option<Timestamp>,
}

/// The queue's priority of a message's: normal is the queue's default.
pub(crate) fn queue_priority(priority: Priority) -> i16 {
    i16::from(priority.0) - i16::from(Priority::NORMAL.0)
}

// --- all inboxes -----------------------------------------------------------------------------

/// The inboxes of a node's agents. Clones share them.
#[derive(Clone)]
pub struct Inboxes(Arc<Shelf>);

struct Shelf {
    queues: Queues,
    store: SharedStore,
    routes: RwLock<RoutingTable<Mailbox>>,
    pools: RwLock<HashMap<(Tenant, Name), PoolRoute>>,
    redactor: Redactor,
    counters: Counters,
}

#[derive(Clone)]
struct Counters {
    acked: Counter,
    failed: Counter,
    parked: Counter,
    unreadable: Counter,
}

impl Inboxes {
    /// Inboxes on these queues of `store`. Reasons that agents give are cleaned of declared secrets.
    pub fn new(queues: Queues, store: SharedStore, redactor: Redactor, metrics: &Metrics) -> Self {
        let settled = metrics::deliveries_settled(metrics);
        let counters = Counters {
            acked: settled.with(&["acked"]),
            failed: settled.with(&["failed"]),
            parked: settled.with(&["parked"]),
            unreadable: settled.with(&["unreadable"]),
        };
        Self(Arc::new(Shelf {
            queues,
            store,
            routes: RwLock::default(),
            pools: RwLock::default(),
            redactor,
            counters,
        }))
    }

    /// Opens an agent's inbox, with what waits in it, and routes its topics to it.
    ///
    /// # Errors
    /// [`InboxError::Taken`]; [`InboxError::Queue`] for a configuration no queue takes.
    pub fn open(&self, spec: InboxSpec) -> Result<Mailbox, InboxError> {
        let InboxSpec {
            tenant,
            name,
            topics,
            ..
        } = &spec;
        if self.0.routes.read().get(tenant, name).is_some() {
            return Err(InboxError::Taken {
                tenant: tenant.clone(),
                name: name.clone(),
            });
        }
        let queue = self.0.queues.queue(QueueConfig {
            subject: "delivery",
            journal_claims: true,
            agent: Some(name.clone()),
            max_items: spec.max_items,
            max_bytes: spec.max_bytes,
            visibility: spec.visibility,
            max_attempts: spec.max_attempts,
            backoff: spec.backoff,
            ..QueueConfig::new(queue_name(tenant, name))
        })?;
        let parts = Parts {
            tenant: tenant.clone(),
            name: name.clone(),
            queue,
            store: self.0.store.clone(),
            redactor: self.0.redactor.clone(),
            counters: self.0.counters.clone(),
        };
        let mailbox = Mailbox(Arc::new(parts));
        if !self
            .0
            .routes
            .write()
            .insert(tenant, name, topics, mailbox.clone())
        {
            return Err(InboxError::Taken {
                tenant: tenant.clone(),
                name: name.clone(),
            });
        }
        Ok(mailbox)
    }

    /// Routes nothing more to an agent. What waits in its inbox stays, for when it is opened again.
    pub fn close(&self, tenant: &Tenant, name: &Name) -> Option<Mailbox> {
        self.0.routes.write().remove(tenant, name)
    }

    /// An agent's inbox.
    pub fn mailbox(&self, tenant: &Tenant, name: &Name) -> Option<Mailbox> {
        self.0.routes.read().get(tenant, name).cloned()
    }

    /// Every open inbox.
    pub fn mailboxes(&self) -> Vec<Mailbox> {
        self.0.routes.read().all().cloned().collect()
    }

    /// Says who the members of a pool are: none, and there is no such pool.
    pub(crate) fn route_pool(&self, tenant: &Tenant, pool: &Name, members: Vec<Name>) {
        let place = (tenant.clone(), pool.clone());
        let mut pools = self.0.pools.write();
        if members.is_empty() {
            pools.remove(&place);
        } else {
            pools.entry(place).or_default().members = members;
        }
    }

    /// The declared secrets.
    pub(crate) fn redactor(&self) -> &Redactor {
        &self.0.redactor
    }

    /// The inboxes that `message` is for.
    pub(crate) fn targets(&self, message: &Message) -> Targets<Mailbox> {
        match message.audience() {
            Audience::Pool(pool) => self.member(message, pool).into_iter().collect(),
            _ => self.0.routes.read().targets(message),
        }
    }

    /// The member of a pool with the least to do; among equals the next in turn. One whose inbox is full is taken only if
    /// all are, so that the sender is told so.
    fn member(&self, message: &Message, pool: &Name) -> Option<Mailbox> {
        let pools = self.0.pools.read();
        let route = pools.get(&(message.tenant().clone(), pool.clone()))?;
        let routes = self.0.routes.read();
        let (sender, count) = (message.sender().name(), route.members.len());
        let first = route.next.fetch_add(1, Ordering::Relaxed);
        let in_turn = (0..count).map(|step| &route.members[first.wrapping_add(step) % count]);
        in_turn
            .filter(|name| *name != sender)
            .filter_map(|name| routes.get(message.tenant(), name))
            .min_by_key(|mailbox| mailbox.load())
            .cloned()
    }

    /// Adds a parcel for an agent to `tx`: what other domains deliver. It waits from the moment the batch commits.
    ///
    /// # Errors
    /// [`InboxError::Unknown`], [`InboxError::Parcel`], [`InboxError::Queue`] when the inbox is full.
    pub fn put(
        &self,
        tx: &mut Batch,
        (tenant, to): (&Tenant, &Name),
        parcel: &Parcel,
        options: PutOptions,
    ) -> Result<Enqueued, InboxError> {
        let unknown = || InboxError::Unknown {
            tenant: tenant.clone(),
            name: to.clone(),
        };
        let mailbox = self.mailbox(tenant, to).ok_or_else(unknown)?;
        let item = NewItem {
            trace: Some(parcel.trace),
            cause: options.cause,
            priority: queue_priority(options.priority),
            coalesce: options.coalesce,
            base: options.base,
            deadline: options.deadline,
            not_before: options.not_before,
            ..NewItem::new(tenant.clone(), parcel.encode()?)
        };
        Ok(mailbox.0.queue.enqueue(tx, item)?)
    }

    /// What these deliveries come to: waits until each has ended or was parked. Cancel-safe.
    ///
    /// The worst decides: parked, then dropped, then too late; [`Outcome::Done`] only if all were handled.
    ///
    /// # Errors
    /// As [`Queues::outcome`].
    pub async fn outcome(&self, deliveries: &[ItemId]) -> Result<Outcome, InboxError> {
        let mut worst = Outcome::Done;
        for id in deliveries {
            worst = worst.or_worse(self.0.queues.outcome(*id).await?.into());
        }
        Ok(worst)
    }
}

/// Who is in a pool, and whose turn it is.
#[derive(Default)]
struct PoolRoute {
    members: Vec<Name>,
    next: AtomicUsize,
}

// --- one inbox -------------------------------------------------------------------------------

/// One agent's inbox. Clones share it; all replicas of the agent claim from it.
#[derive(Clone)]
pub struct Mailbox(Arc<Parts>);

struct Parts {
    tenant: Tenant,
    name: Name,
    queue: Queue,
    store: SharedStore,
    redactor: Redactor,
    counters: Counters,
}

/// A delivery that was handed out. Settle it before its claim lapses, or renew the claim.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// What the agent is shown.
    pub delivery: Delivery,
    claim: Claim,
    began: Timestamp,
}

impl Claimed {
    /// The journal entry that brought the delivery about.
    pub fn cause(&self) -> Cause {
        self.claim.cause.into()
    }

    /// The queue item: what outcomes are asked by.
    pub fn item(&self) -> ItemId {
        self.claim.id
    }

    /// When it was handed out (wall clock): the time that the attempt is told, and that is recorded with its ack.
    pub fn began(&self) -> Timestamp {
        self.began
    }

    /// Fencing token of the claim: grows with every claim.
    pub fn epoch(&self) -> u64 {
        self.claim.epoch
    }

    /// How urgent it is.
    pub fn priority(&self) -> Priority {
        let above = self
            .claim
            .priority
            .saturating_add(i16::from(Priority::NORMAL.0));
        Priority(u8::try_from(above.clamp(0, 255)).unwrap_or(u8::MAX))
    }

    /// What held before the first of the parcels that met in this delivery.
    pub fn base(&self) -> Option<&str> {
        self.claim.base.as_deref()
    }

    /// Why the last attempt failed, if somebody said.
    pub fn last_reason(&self) -> Option<&str> {
        self.claim.last_reason.as_deref()
    }
}

impl Mailbox {
    /// The agent's name.
    pub fn name(&self) -> &Name {
        &self.0.name
    }

    /// Whose it is.
    pub fn tenant(&self) -> &Tenant {
        &self.0.tenant
    }

    /// Whether there is no room, and how much there is to do.
    fn load(&self) -> (bool, usize) {
        let stats = self.0.queue.stats();
        let config = self.0.queue.config();
        let items = stats.ready + stats.delayed + stats.claimed + stats.pending;
        let full = items >= config.max_items
            || stats.bytes >= config.max_bytes
            || stats.parked >= config.max_parked;
        (full, items)
    }

    /// What waits, is claimed and is parked.
    pub fn stats(&self) -> QueueStats {
        self.0.queue.stats()
    }

    /// News of what may be claimed: whoever waits for this and something else looks again.
    pub fn news(&self) -> tokio::sync::watch::Receiver<u64> {
        self.0.queue.news()
    }

    /// How long a claim holds.
    pub fn visibility(&self) -> Duration {
        self.0.queue.config().visibility
    }

    /// Claims up to `max` deliveries for `owner` (a replica); waits up to `wait` for the first.
    ///
    /// The attempt and its `delivery.claimed` entry are durable before this returns. A delivery that can not be read is
    /// parked and not returned. Cancel-safe: what was claimed and not returned is free again.
    ///
    /// # Errors
    /// [`InboxError::Queue`] when the store fails.
    pub async fn claim(
        &self,
        owner: &str,
        max: usize,
        wait: Duration,
    ) -> Result<Vec<Claimed>, InboxError> {
        let mut claimed = Vec::new();
        let claims = self.0.queue.claim(owner, max, wait).await?;
        let began = self.0.store.clock().wall();
        for claim in claims {
            let Claim {
                id: ItemId(id),
                attempt,
                tenant,
                payload,
                ..
            } = &claim;
            match Delivery::decode(payload, *id, *attempt, tenant) {
                Ok(delivery) => {
                    let delivery = Delivery {
                        deadline: claim.deadline,
                        ..delivery
                    };
                    claimed.push(Claimed {
                        delivery,
                        claim,
                        began,
                    });
                }
                Err(error) => self.park_unreadable(&claim, &error.to_string()).await?,
            }
        }
        Ok(claimed)
    }

    async fn park_unreadable(&self, claim: &Claim, problem: &str) -> Result<(), InboxError> {
        self.0.counters.unreadable.inc();
        tracing::error!(agent = %self.0.name, delivery = %claim.id, problem, "a delivery can not be read");
        let mut tx = Batch::new();
        self.0
            .queue
            .park(&mut tx, claim, &format!("it can not be read: {problem}"))?;
        self.0.store.commit(tx).await?;
        Ok(())
    }

    /// Adds to `tx` that the delivery was handled, with `actions` actions in the same batch. Returns the entry, which is
    /// the cause of those actions.
    ///
    /// # Errors
    /// [`QueueError::Lapsed`] if the claim no longer holds; the commit may still conflict for the same reason.
    pub fn ack(
        &self,
        tx: &mut Batch,
        claimed: &Claimed,
        actions: usize,
    ) -> Result<EntryRef, InboxError> {
        self.0.queue.ack(tx, &claimed.claim)?;
        count_on_commit(tx, &self.0.counters.acked);
        let delivery = self.about(claimed);
        Ok(tx.append(
            Event::Acked {
                delivery: &delivery,
                actions,
                began: claimed.began,
                // A message's document can be made again from its own entry.
                input: (claimed.delivery.kind != DeliveryKind::Message)
                    .then_some(&claimed.delivery),
            }
            .record()
            .cause(claimed.cause()),
        ))
    }

    /// Adds to `tx` that the attempt failed: again after `delay` or the back-off, or parked if it was the last.
    ///
    /// # Errors
    /// As [`Mailbox::ack`].
    pub fn nack(
        &self,
        tx: &mut Batch,
        claimed: &Claimed,
        delay: Option<Duration>,
        reason: &str,
    ) -> Result<Nacked, InboxError> {
        let reason = self.0.redactor.redact(reason);
        let nacked = self.0.queue.nack(tx, &claimed.claim, delay, &reason)?;
        let retry_in = match nacked {
            Nacked::Retry(delay) => {
                count_on_commit(tx, &self.0.counters.failed);
                Some(delay)
            }
            Nacked::Parked => {
                count_on_commit(tx, &self.0.counters.parked);
                None
            }
        };
        let delivery = self.about(claimed);
        let event = Event::Failed {
            delivery: &delivery,
            reason: &reason,
            retry_in,
        };
        tx.append(event.record().cause(claimed.cause()));
        Ok(nacked)
    }

    /// Adds to `tx` that a person should look at the delivery.
    ///
    /// # Errors
    /// As [`Mailbox::ack`].
    pub fn park(&self, tx: &mut Batch, claimed: &Claimed, reason: &str) -> Result<(), InboxError> {
        self.0
            .queue
            .park(tx, &claimed.claim, &self.0.redactor.redact(reason))?;
        count_on_commit(tx, &self.0.counters.parked);
        Ok(())
    }

    /// Adds to `tx` that the delivery goes back unused: the attempt does not count.
    ///
    /// # Errors
    /// As [`Mailbox::ack`].
    pub fn release(&self, tx: &mut Batch, claimed: &Claimed) -> Result<(), InboxError> {
        Ok(self.0.queue.release(tx, &claimed.claim)?)
    }

    /// Holds the claim for another visibility time from now.
    ///
    /// # Errors
    /// [`QueueError::Lapsed`].
    pub fn renew(&self, claimed: &Claimed) -> Result<(), InboxError> {
        Ok(self.0.queue.renew(&claimed.claim)?)
    }

    /// Adds a stored message to `tx`.
    pub(crate) fn enqueue(
        &self,
        tx: &mut Batch,
        message: &Message,
        stored: bytes::Bytes,
        cause: Cause,
    ) -> Result<ItemId, InboxError> {
        let item = NewItem {
            trace: Some(message.trace()),
            cause,
            priority: queue_priority(message.priority()),
            deadline: message.deadline(),
            ..NewItem::new(message.tenant().clone(), stored)
        };
        Ok(self.0.queue.enqueue(tx, item)?.id)
    }

    /// Adds an item that is made elsewhere in this crate to `tx`.
    pub(crate) fn enqueue_item(&self, tx: &mut Batch, item: NewItem) -> Result<ItemId, InboxError> {
        Ok(self.0.queue.enqueue(tx, item)?.id)
    }

    fn about(&self, claimed: &Claimed) -> DeliveryRef {
        DeliveryRef::of(&claimed.delivery, self.0.name.clone())
    }
}

fn count_on_commit(tx: &mut Batch, counter: &Counter) {
    let counter = counter.clone();
    tx.on_commit(move |_| {
        counter.inc();
    });
}

/// The delivery that a text names, as the link API's clients send it back.
///
/// # Errors
/// [`volary_kernel::id::IdError`].
pub fn parse_item(text: &str) -> Result<ItemId, volary_kernel::id::IdError> {
    text.parse::<Uid>().map(ItemId)
}
