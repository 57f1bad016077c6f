//! Borrowing from a bucket that several processes share: a purse that messages are paid from, and a task that fills it.
//!
//! The purse is asked under the limiter's lock, like any bucket: nothing waits for the store there. When it runs low the task
//! borrows a chunk by compare-and-set, as large as what is spent in [`TARGET`]; what is not spent goes back after
//! [`IDLE`], or is void with its loan. While the store cannot be asked, [`StoreTrouble`] decides.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use volary_kernel::{
    MachineTime, Mono, Uid, clock,
    clock::SharedClock,
    metric::Counter,
    random::random_unit,
    rate::{Cell, Quota, Wait},
};
use volary_store::{Batch, Expect, Key, SharedStore, StoreError};

use super::{
    Bucket, Shared, Way,
    pot::{Ask, Grant, LOAN_LIFE, Pot},
};

/// A chunk lasts about this long.
const TARGET: Duration = Duration::from_millis(100);
/// What nobody asked for in this time goes back.
const IDLE: Duration = Duration::from_millis(200);
/// Shortest and longest time between two loans of one process.
const PACE: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(200)];
/// Pause after the store failed.
const TROUBLE_PAUSE: Duration = Duration::from_millis(250);
/// Tries at one loan, when others borrow at the same time.
const TRIES: u32 = 12;
/// The bucket is shared by so many chunks at least.
const CHUNKS: f64 = 4.0;
/// What somebody is told who asks while a loan is on its way.
const SOON: Duration = Duration::from_millis(5);

/// What a shared limiter does while its store cannot be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum StoreTrouble {
    /// Nothing passes: the shared limit holds.
    #[default]
    Refuse,
    /// Each process limits alone, with a whole bucket of its own: messages pass, together perhaps too many.
    LimitAlone,
}

/// What a process has borrowed in one direction.
pub(super) struct Purse {
    pub lender: Arc<Lender>,
    tokens: u32,
    /// When they are void.
    until: Mono,
    loan: Option<Uid>,
    /// When the last of them was spent.
    spent: Option<Mono>,
    /// At so many tokens more are asked for.
    low: u32,
    /// The task knows that it should borrow.
    asked: bool,
    /// Messages since the last loan.
    demand: u64,
    /// Messages per second, as far as known.
    speed: f64,
    planned: Mono,
    /// No loan before this time; nothing is there before it.
    not_before: Mono,
    /// The bucket that this process uses alone while the store is in trouble.
    alone: Option<Cell>,
    trouble: bool,
}

/// Why a purse did not pay.
pub(super) struct Broke {
    pub bucket: Bucket,
    pub wait: Wait,
    /// A loan is on its way.
    pub pending: bool,
}

impl Purse {
    pub(super) fn new(lender: Arc<Lender>) -> Self {
        Self {
            lender,
            tokens: 0,
            until: Mono::default(),
            loan: None,
            spent: None,
            low: 0,
            asked: false,
            demand: 0,
            speed: 0.0,
            planned: Mono::default(),
            not_before: Mono::default(),
            alone: None,
            trouble: false,
        }
    }

    #[inline]
    pub(super) fn check(&mut self, now: Mono) -> Result<(), Broke> {
        self.demand += 1;
        if self.tokens > 0 && now < self.until {
            return Ok(());
        }
        self.broke(now)
    }

    #[cold]
    fn broke(&mut self, now: Mono) -> Result<(), Broke> {
        self.ask();
        let left = self.not_before - now;
        let broke = |bucket, wait, pending| Broke {
            bucket,
            wait,
            pending,
        };
        match &mut self.alone {
            Some(alone) if self.trouble => alone
                .check(&self.lender.quota, now, 1)
                .map_err(|wait| broke(Bucket::Global, wait, false)),
            None if self.trouble => Err(broke(Bucket::Store, Wait::For(left.max(SOON)), false)),
            _ if self.lender.quota.capacity() < 1.0 => {
                Err(broke(Bucket::Global, Wait::Forever, false))
            }
            _ => {
                let pending = left.is_zero();
                Err(broke(Bucket::Global, Wait::For(left.max(SOON)), pending))
            }
        }
    }

    /// After [`Purse::check`] said yes.
    #[inline]
    pub(super) fn take(&mut self, now: Mono) {
        if self.tokens > 0 && now < self.until {
            self.tokens -= 1;
            if self.tokens == 0 {
                self.spent = Some(now);
            }
            if self.tokens <= self.low {
                self.ask();
            }
        } else if let Some(alone) = &mut self.alone {
            alone.take(&self.lender.quota, now, 1);
        }
    }

    fn ask(&mut self) {
        if !std::mem::replace(&mut self.asked, true) {
            self.lender.news.notify_one();
        }
    }

    /// What to ask the pot for, if anything.
    fn plan(&mut self, now: Mono) -> Option<Ask> {
        if now >= self.until && self.tokens > 0 {
            (self.tokens, self.spent) = (0, None);
        }
        let passed = (now - self.planned).as_secs_f64();
        let demand = std::mem::take(&mut self.demand);
        if demand == 0 {
            let idle = passed >= IDLE.as_secs_f64();
            return (idle && self.tokens > 0).then(|| self.give_back());
        }
        self.planned = now;
        let most = self.lender.chunk_max();
        let first = self.speed == 0.0;
        self.speed = (self.speed / 2.0).max(demand as f64 / passed.max(0.001));
        let chunk = if first {
            most / 2.0
        } else {
            (self.speed * TARGET.as_secs_f64()).ceil()
        };
        let chunk = chunk.clamp(1.0, most) as u32;
        Some(Ask {
            loan: self.loan,
            keep: self.tokens,
            give_back: 0,
            spent: self.spent.filter(|_| self.tokens == 0),
            wanted: chunk.saturating_sub(self.tokens),
            new: Uid::generate(),
        })
    }

    /// Takes out what is left, to be given back.
    fn give_back(&mut self) -> Ask {
        self.speed = 0.0;
        Ask {
            loan: self.loan.take(),
            keep: 0,
            give_back: std::mem::take(&mut self.tokens),
            spent: None,
            wanted: 0,
            new: Uid::generate(),
        }
    }

    /// Takes in what the pot gave. `now` is a time before it was asked.
    fn got(&mut self, ask: Ask, grant: Grant, now: Mono) {
        if !grant.kept || now >= self.until {
            // What was void meanwhile stays so.
            self.tokens = 0;
        }
        self.tokens = self.tokens.saturating_add(grant.tokens);
        self.spent = None;
        self.low = self.tokens / 2;
        if grant.changed {
            (self.loan, self.until) = (Some(ask.new), now + LOAN_LIFE);
        }
        (self.trouble, self.alone) = (false, None);
    }

    fn in_trouble(&mut self, now: Mono) {
        self.trouble = true;
        self.not_before = now + TROUBLE_PAUSE;
        if self.lender.trouble == StoreTrouble::LimitAlone && self.alone.is_none() {
            self.alone = Some(Cell::default());
        }
    }
}

/// The way to the shared bucket of one direction.
pub(super) struct Lender {
    pub store: SharedStore,
    pub key: Key,
    pub quota: Quota,
    pub trouble: StoreTrouble,
    pub errors: Counter,
    pub news: Notify,
    /// Moves with every answer of the pot.
    pub rounds: watch::Sender<u64>,
}

impl Lender {
    fn clock(&self) -> &SharedClock {
        self.store.clock()
    }

    /// Most tokens of one chunk.
    fn chunk_max(&self) -> f64 {
        (self.quota.capacity() / CHUNKS)
            .floor()
            .clamp(1.0, f64::from(u32::MAX / 2))
    }

    /// Time between two loans: short while they are granted in full, longer while there is not enough for all, but never so
    /// long that the bucket overflows meanwhile.
    fn pace(&self, last: Duration, in_full: bool) -> Duration {
        let [least, most] = PACE;
        let refill = self.quota.refill_per_sec().max(1e-9);
        let half = |tokens: f64| Duration::try_from_secs_f64(tokens / refill / 2.0).unwrap_or(most);
        let start = half(self.chunk_max()).clamp(least, most / 10);
        if in_full {
            return start;
        }
        let limit = half(self.quota.capacity()).clamp(start, most);
        (last * 2).clamp(start, limit)
    }

    fn now(&self, seen: &Seen) -> MachineTime {
        self.clock().machine().unwrap_or_else(|| MachineTime {
            boot: seen.own,
            at: self.clock().mono(),
        })
    }

    /// Asks the pot, again if others did at the same time. With a time before the loan began.
    async fn settle(&self, ask: Ask, seen: &mut Seen) -> Result<(Grant, Mono), StoreError> {
        let mut tries = 0;
        loop {
            let record = self.store.get(&self.key).await?;
            let before = self.clock().mono();
            let version = record.as_ref().map_or(0, |record| record.version);
            let waited = seen.waited(version, before);
            let pot = match &record {
                None => None,
                Some(record) => Some(Pot::decode(&record.value).ok_or_else(|| {
                    let what = format!("record `{}` is no rate limit", record.key);
                    StoreError::Corrupt { what, seq: None }
                })?),
            };
            let now = self.now(seen);
            // By the machine's clock, at the latest: `before` was read before `now`.
            let ask = Ask {
                spent: ask.spent.map(|spent| {
                    Mono::default() + ((now.at - Mono::default()).saturating_sub(before - spent))
                }),
                ..ask
            };
            let (pot, grant) = Pot::lend(pot, &self.quota, now, waited, ask);
            if !grant.changed {
                return Ok((grant, before));
            }
            let expect = record.map_or(Expect::Absent, |record| Expect::Version(record.version));
            let mut tx = Batch::new();
            tx.put(self.key.clone(), pot.encode(), expect);
            match self.store.commit(tx).await {
                Ok(committed) => {
                    seen.waited(committed.version, self.clock().mono());
                    return Ok((grant, before));
                }
                Err(StoreError::Conflict { .. }) if tries < TRIES => {
                    tries += 1;
                    let pause = Duration::from_micros(500) * tries;
                    clock::sleep(pause.mul_f64(random_unit())).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Since when this process has seen the pot as it is.
struct Seen {
    version: u64,
    since: Mono,
    /// Stands for the machine where it has no clock.
    own: [u8; 16],
}

impl Seen {
    fn waited(&mut self, version: u64, now: Mono) -> Duration {
        if self.version != version {
            (self.version, self.since) = (version, now);
        }
        now - self.since
    }
}

/// Fills a purse until the limiter is gone or `stop` says so; then gives back what is left.
pub(super) async fn serve(
    limiter: Weak<Shared>,
    lender: Arc<Lender>,
    way: Way,
    stop: CancellationToken,
) {
    let mut seen = Seen {
        version: u64::MAX,
        since: Mono::default(),
        own: *Uid::generate().as_bytes(),
    };
    let mut pace = lender.pace(Duration::ZERO, true);
    while let Some(holds) = with_purse(&limiter, way, |purse| purse.tokens > 0) {
        let idle = async {
            if holds {
                clock::sleep(IDLE).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = lender.news.notified() => {}
            () = idle => {}
            () = stop.cancelled() => break,
        }
        let now = lender.clock().mono();
        let Some(Some(ask)) = with_purse(&limiter, way, |purse| purse.plan(now)) else {
            with_purse(&limiter, way, |purse| purse.asked = false);
            continue;
        };
        let end = lender.settle(ask, &mut seen).await;
        let now = lender.clock().mono();
        let pause = match &end {
            Ok((grant, before)) => {
                pace = lender.pace(pace, grant.tokens >= ask.wanted);
                // Processes that wait for the same bucket do not come all at once.
                let pause = pace.mul_f64(0.75 + random_unit() / 2.0);
                let wait = grant.wait.map_or(Duration::ZERO, Wait::duration);
                let wait = pause.max(wait.min(super::LONGEST_WAIT));
                with_purse(&limiter, way, |purse| {
                    purse.got(ask, *grant, *before);
                    purse.not_before = if grant.tokens > 0 { now } else { now + wait };
                });
                // What others give back may come earlier.
                wait.min(LOAN_LIFE)
            }
            Err(error) => {
                lender.errors.inc();
                tracing::warn!(limit = %lender.key, %error, "borrowing from a shared rate limit");
                with_purse(&limiter, way, |purse| purse.in_trouble(now));
                TROUBLE_PAUSE
            }
        };
        lender.rounds.send_modify(|round| *round += 1);
        tokio::select! {
            () = clock::sleep(pause) => {}
            () = stop.cancelled() => break,
        }
        with_purse(&limiter, way, |purse| {
            purse.asked = false;
            if purse.demand > 0 && purse.tokens <= purse.low {
                purse.ask();
            }
        });
    }
    if let Some(ask) = with_purse(&limiter, way, Purse::give_back)
        && ask.give_back > 0
        && let Err(error) = lender.settle(ask, &mut seen).await
    {
        tracing::debug!(limit = %lender.key, %error, "what was borrowed is void in a second");
    }
}

fn with_purse<T>(
    limiter: &Weak<Shared>,
    way: Way,
    work: impl FnOnce(&mut Purse) -> T,
) -> Option<T> {
    let limiter = limiter.upgrade()?;
    let mut buckets = limiter.of(way).lock();
    buckets.purse().map(work)
}
