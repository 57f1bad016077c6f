//! Rate limiting of messages: token buckets for everything, for each sender and for each topic, asked together and taken
//! together.
//!
//! ```text
//! message ─▶ global ok? ─▶ sender ok? ─▶ each topic ok? ─▶ take one of each      a refusal costs nobody a token
//!             bucket        bucket         buckets
//! ```
//! Both directions have buckets of their own. The sender is the one that the node stamped or the signature proved; topics
//! are the sender's topics, each counted once, and never a transport's routing data. Buckets of senders and topics stand
//! in tables bounded in keys, from which those that have refilled are forgotten first; see [`WhenBusy`].
//!
//! One process keeps its buckets in memory ([`RateLimiter::new`]). Several processes share the global bucket through a store
//! ([`RateLimiter::shared`]); buckets of senders and topics are each process's own then.

mod hook;
mod pot;
mod shared;
mod table;

use std::{hash::BuildHasher as _, sync::Arc, time::Duration};

use hashbrown::DefaultHashBuilder;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::{Notify, watch};
use volary_kernel::{
    Mono, Name, Tenant, clock,
    clock::SharedClock,
    metric::Metrics,
    rate::{Cell, Quota, QuotaError, Wait},
    task::{Supervisor, TaskKind},
};
use volary_store::{Key, SharedStore, StoreError};

pub use self::{hook::RateLimitHook, shared::StoreTrouble, table::WhenBusy};
use self::{
    shared::{Broke, Lender, Purse},
    table::Table,
};
use crate::{identity::AgentId, message::Message, topic::Topic};

/// Senders, and topics, that a limiter remembers in each direction. Default: 10,000, about 1.5 MB.
pub const DEFAULT_MAX_KEYS: usize = 10_000;
/// The longest wait that a sender is told; one that may never send again is told this too. A day: by then somebody may have
/// changed the limits.
pub const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

/// How long [`RateLimiter::admit`] waits for tokens of a shared bucket that are on their way.
pub const LOAN_WAIT: Duration = Duration::from_millis(400);

/// A token bucket: how many messages may go at once, and how many per second in the long run.
///
/// ```
/// use volary_messaging::TokenBucketConfig;
/// let bucket = TokenBucketConfig::new(200.0, 100.0)?;
/// assert_eq!(bucket.capacity(), 200.0);
/// assert!(TokenBucketConfig::new(f64::NAN, 1.0).is_err());
/// # Ok::<(), volary_kernel::rate::QuotaError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenBucketConfig(Quota);

impl TokenBucketConfig {
    /// A bucket of `capacity` tokens, full at the start. Below 1: nothing ever passes. Refill 0: what it holds, and never
    /// again.
    ///
    /// # Errors
    /// [`QuotaError`] for what is negative, infinite, not a number, or a capacity too large to count.
    pub fn new(capacity: f64, refill_tokens_per_sec: f64) -> Result<Self, QuotaError> {
        Quota::new(capacity, refill_tokens_per_sec).map(Self)
    }

    /// Tokens of a full bucket.
    pub const fn capacity(&self) -> f64 {
        self.0.capacity()
    }

    /// Tokens that come back in a second.
    pub const fn refill_tokens_per_sec(&self) -> f64 {
        self.0.refill_per_sec()
    }

    /// The same as arithmetic wants it.
    pub const fn quota(&self) -> Quota {
        self.0
    }
}

/// Which buckets there are; what is not configured does not limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateLimiterConfig {
    /// One bucket for all messages.
    pub global: Option<TokenBucketConfig>,
    /// A bucket for each sender.
    pub sender: Option<TokenBucketConfig>,
    /// A bucket for each topic of a tenant.
    pub topic: Option<TokenBucketConfig>,
    /// Senders, and topics, remembered in each direction; at least 16, the topics of one message.
    pub max_keys: usize,
    /// What happens to a new sender or topic when all that are remembered are in use.
    pub when_busy: WhenBusy,
    /// What a shared limiter does while its store cannot be asked.
    pub when_store_fails: StoreTrouble,
}

impl Default for RateLimiterConfig {
    fn default() -> Self {
        Self {
            global: None,
            sender: None,
            topic: None,
            max_keys: DEFAULT_MAX_KEYS,
            when_busy: WhenBusy::Refuse,
            when_store_fails: StoreTrouble::Refuse,
        }
    }
}

/// A direction. Each has buckets of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    /// Towards this place: received.
    Ingress,
    /// Away from it: sent.
    Egress,
}

impl Way {
    /// The word for names and labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// Which bucket had no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bucket {
    /// The one for all messages.
    Global,
    /// The sender's.
    Sender,
    /// A topic's.
    Topic,
    /// The shared one, because the store that it lies in could not be asked.
    Store,
}

impl Bucket {
    /// All buckets.
    pub const ALL: [Self; 4] = [Self::Global, Self::Sender, Self::Topic, Self::Store];

    /// The word for labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Global => "global",
            Self::Sender => "sender",
            Self::Topic => "topic",
            Self::Store => "store",
        }
    }
}

/// A message may not pass now. Nobody lost a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the {} bucket is empty for another {}", bucket.as_str(), volary_kernel::text::brief_duration(*retry_after))]
pub struct Limited {
    /// The first bucket without a token: global, then sender, then topics.
    pub bucket: Bucket,
    /// When every bucket has a token, if nobody else takes it; at most [`LONGEST_WAIT`].
    pub retry_after: Duration,
}

impl Limited {
    fn new(bucket: Bucket, wait: Wait) -> Self {
        Self {
            bucket,
            retry_after: wait.duration().min(LONGEST_WAIT),
        }
    }
}

/// A topic of a tenant: tenants do not use up each other's buckets.
struct TopicKey {
    tenant: Tenant,
    topic: Topic,
}

/// The bucket for all messages.
enum Global {
    Unlimited,
    Own(Quota, Cell),
    Shared(Box<Purse>),
}

impl Global {
    #[inline]
    fn check(&mut self, now: Mono) -> Result<(), Broke> {
        match self {
            Self::Unlimited => Ok(()),
            Self::Own(quota, cell) => cell.check(quota, now, 1).map_err(|wait| Broke {
                bucket: Bucket::Global,
                wait,
                pending: false,
            }),
            Self::Shared(purse) => purse.check(now),
        }
    }

    #[inline]
    fn take(&mut self, now: Mono) {
        match self {
            Self::Unlimited => {}
            Self::Own(quota, cell) => cell.take(quota, now, 1),
            Self::Shared(purse) => purse.take(now),
        }
    }
}

/// A refusal, and whether tokens are on their way.
struct Stop {
    limited: Limited,
    pending: bool,
}

impl From<Limited> for Stop {
    fn from(limited: Limited) -> Self {
        Self {
            limited,
            pending: false,
        }
    }
}

/// The buckets of one direction.
struct Buckets {
    global: Global,
    senders: Option<Table<AgentId>>,
    topics: Option<Table<TopicKey>>,
    /// Number of this call.
    call: u64,
}

impl Buckets {
    fn new(config: &RateLimiterConfig) -> Self {
        let max = config.max_keys.max(crate::message::TOPICS_MAX);
        Self {
            global: config.global.map_or(Global::Unlimited, |bucket| {
                Global::Own(bucket.quota(), Cell::default())
            }),
            senders: config
                .sender
                .map(|bucket| Table::new(bucket.quota(), max, config.when_busy)),
            topics: config
                .topic
                .map(|bucket| Table::new(bucket.quota(), max, config.when_busy)),
            call: 0,
        }
    }

    #[inline]
    fn check_take(
        &mut self,
        message: &Message,
        hasher: &DefaultHashBuilder,
        now: Mono,
    ) -> Result<(), Stop> {
        self.call += 1;
        let call = self.call;
        if let Err(broke) = self.global.check(now) {
            let limited = self.longest(broke.bucket, broke.wait, message, hasher, now);
            return Err(Stop {
                limited,
                pending: broke.pending,
            });
        }
        let mut sender = None;
        if let Some((table, id)) = self.senders.as_mut().zip(sender_of(message)) {
            let hash = hasher.hash_one(id.as_bytes());
            match table.check((hash, call), |known| *known == id, || id, now) {
                Ok(place) => sender = Some(place),
                Err(wait) => {
                    let limited = self.longest(Bucket::Sender, wait, message, hasher, now);
                    return Err(limited.into());
                }
            }
        }
        let mut places = SmallVec::<[u32; 4]>::new();
        if let Some(table) = &mut self.topics {
            for (topic, hash) in topics_of(message, hasher) {
                let same = is_topic(message, topic);
                let key = || TopicKey {
                    tenant: message.tenant().clone(),
                    topic: topic.clone(),
                };
                match table.check((hash, call), same, key, now) {
                    Ok(place) => places.push(place),
                    Err(wait) => {
                        let limited = self.longest(Bucket::Topic, wait, message, hasher, now);
                        return Err(limited.into());
                    }
                }
            }
        }
        self.global.take(now);
        if let Some((table, place)) = self.senders.as_mut().zip(sender) {
            table.take(place, now);
        }
        if let Some(table) = &mut self.topics {
            for place in places {
                table.take(place, now);
            }
        }
        Ok(())
    }

    fn purse(&mut self) -> Option<&mut Purse> {
        match &mut self.global {
            Global::Shared(purse) => Some(purse),
            _ => None,
        }
    }

    /// The refusal by `bucket`, with the longest wait of all buckets.
    #[cold]
    fn longest(
        &mut self,
        bucket: Bucket,
        wait: Wait,
        message: &Message,
        hasher: &DefaultHashBuilder,
        now: Mono,
    ) -> Limited {
        let mut limited = Limited::new(bucket, wait);
        let mut also = |wait: Option<Wait>| {
            if let Some(wait) = wait {
                let wait = Limited::new(bucket, wait).retry_after;
                limited.retry_after = limited.retry_after.max(wait);
            }
        };
        if let Some((table, id)) = self.senders.as_ref().zip(sender_of(message)) {
            let hash = hasher.hash_one(id.as_bytes());
            also(table.wait(hash, |known| *known == id, now));
        }
        if let Some(table) = &self.topics {
            for (topic, hash) in topics_of(message, hasher) {
                also(table.wait(hash, is_topic(message, topic), now));
            }
        }
        limited
    }
}

/// The sender that pays. An id of zeros is no key's and stands for nobody.
#[inline]
fn sender_of(message: &Message) -> Option<AgentId> {
    let id = message.sender().id();
    (*id.as_bytes() != [0; 32]).then_some(id)
}

/// The topics that pay, each once, with their hashes.
#[inline]
fn topics_of<'a>(
    message: &'a Message,
    hasher: &'a DefaultHashBuilder,
) -> impl Iterator<Item = (&'a Topic, u64)> {
    let topics = message.topics();
    let first = |(index, topic): &(usize, &'a Topic)| !topics[..*index].contains(topic);
    let tenant = message.tenant().as_str();
    topics
        .iter()
        .enumerate()
        .filter(first)
        .map(move |(_, topic)| (topic, hasher.hash_one((tenant, topic.as_str()))))
}

#[inline]
fn is_topic<'a>(message: &'a Message, topic: &'a Topic) -> impl Fn(&TopicKey) -> bool + 'a {
    move |known| known.topic == *topic && known.tenant == *message.tenant()
}

struct Shared {
    ingress: Mutex<Buckets>,
    egress: Mutex<Buckets>,
    hasher: DefaultHashBuilder,
}

impl Shared {
    fn of(&self, way: Way) -> &Mutex<Buckets> {
        match way {
            Way::Ingress => &self.ingress,
            Way::Egress => &self.egress,
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for way in [&mut self.ingress, &mut self.egress] {
            if let Some(purse) = way.get_mut().purse() {
                // Its task finds that there is nothing to fill any more.
                purse.lender.news.notify_one();
            }
        }
    }
}

/// Limits how many messages pass. Clones share the buckets.
#[derive(Clone)]
pub struct RateLimiter(Arc<Shared>);

impl std::fmt::Debug for RateLimiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (ingress, egress) = (self.keys(Way::Ingress), self.keys(Way::Egress));
        write!(f, "RateLimiter({ingress} keys in, {egress} out)")
    }
}

impl RateLimiter {
    /// A limiter of this process, its buckets full.
    pub fn new(config: RateLimiterConfig) -> Self {
        Self(Arc::new(Shared {
            ingress: Mutex::new(Buckets::new(&config)),
            egress: Mutex::new(Buckets::new(&config)),
            hasher: DefaultHashBuilder::default(),
        }))
    }

    /// A limiter whose global bucket is shared by all processes that open `store` and give the same `name`; together they
    /// never let more pass than `config.global` says, over any span of time. They should all say the same. One task of
    /// `tasks` for each direction borrows tokens ahead of demand; what it holds when it is drained goes back. A store that
    /// fails is counted in `volary_rate_limit_store_errors_total`.
    ///
    /// Buckets of senders and topics are each process's own: N processes let a sender pass N times its bucket at most.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] for a name that no key can hold.
    pub fn shared(
        store: &SharedStore,
        name: &Name,
        config: RateLimiterConfig,
        tasks: &Supervisor,
        metrics: &Metrics,
    ) -> Result<Self, StoreError> {
        let this = Self::new(config);
        let Some(global) = config.global else {
            return Ok(this);
        };
        for way in [Way::Ingress, Way::Egress] {
            let lender = Arc::new(Lender {
                store: store.clone(),
                key: Key::new(format!("rate/{name}/{}", way.as_str()))?,
                quota: global.quota(),
                trouble: config.when_store_fails,
                errors: crate::metrics::rate_limit_store_errors(metrics),
                news: Notify::new(),
                rounds: watch::Sender::new(0),
            });
            this.0.of(way).lock().global = Global::Shared(Box::new(Purse::new(lender.clone())));
            let (limiter, stop) = (Arc::downgrade(&this.0), tasks.token());
            tasks.spawn(TaskKind::new("rate-limit-lease"), async move {
                shared::serve(limiter, lender, way, stop).await;
                Ok(())
            });
        }
        Ok(this)
    }

    /// Lets one message pass and takes a token of every bucket that it concerns, or takes none. Never blocks for long: a
    /// lock is held for the few steps of this.
    ///
    /// # Errors
    /// [`Limited`]: which bucket is empty, and when to try again.
    #[inline]
    pub fn check_take(&self, message: &Message, way: Way, now: Mono) -> Result<(), Limited> {
        self.try_take(message, way, now)
            .map_err(|stop| stop.limited)
    }

    #[inline]
    fn try_take(&self, message: &Message, way: Way, now: Mono) -> Result<(), Stop> {
        self.0
            .of(way)
            .lock()
            .check_take(message, &self.0.hasher, now)
    }

    /// As [`RateLimiter::check_take`]; but where tokens of a shared bucket are on their way, waits for them, at most for
    /// [`LOAN_WAIT`]. Cancel-safe: no token is lost.
    ///
    /// # Errors
    /// [`Limited`].
    pub async fn admit(
        &self,
        message: &Message,
        way: Way,
        clock: &SharedClock,
    ) -> Result<(), Limited> {
        let rounds = {
            let mut buckets = self.0.of(way).lock();
            buckets.purse().map(|purse| purse.lender.rounds.subscribe())
        };
        match (self.try_take(message, way, clock.mono()), rounds) {
            (Ok(()), _) => return Ok(()),
            (Err(stop), Some(mut rounds)) if stop.pending => {
                // Whether in time or not, the answer is what it is then.
                let _ = clock::timeout(LOAN_WAIT, rounds.changed()).await;
            }
            (Err(stop), _) => return Err(stop.limited),
        }
        self.check_take(message, way, clock.mono())
    }

    /// Senders and topics remembered in a direction.
    pub fn keys(&self, way: Way) -> usize {
        let buckets = self.0.of(way).lock();
        buckets.senders.as_ref().map_or(0, Table::len)
            + buckets.topics.as_ref().map_or(0, Table::len)
    }
}
