//! The queue against a model that does everything the slow and obvious way.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use proptest::prelude::*;
use volary_kernel::{ManualClock, Name, Tenant, retry::Backoff};
use volary_store::{
    Batch, Claim, ItemId, MemoryConfig, MemoryStore, NewItem, Queue, Queues, SharedStore,
    queue::{Nacked, QueueConfig},
};

const VISIBILITY: u64 = 30;
const ATTEMPTS: u32 = 3;
const DELAY: u64 = 7;

#[derive(Debug, Clone)]
enum Step {
    Enqueue {
        tenant: u8,
        priority: i16,
        key: Option<u8>,
        committed: bool,
        deadline: Option<u8>,
    },
    Claim(usize),
    Ack(usize),
    Nack(usize),
    Park(usize),
    Release(usize),
    Renew(usize),
    Pass(u8),
    Restart,
    Retry(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let enqueue = (
        0..3u8,
        -1..2i16,
        proptest::option::weighted(0.4, 0..2u8),
        proptest::bool::weighted(0.9),
        proptest::option::weighted(0.2, 1..60u8),
    );
    let enqueue = enqueue.prop_map(
        |(tenant, priority, key, committed, deadline)| Step::Enqueue {
            tenant,
            priority,
            key,
            committed,
            deadline,
        },
    );
    let step = prop_oneof![
        5 => enqueue,
        5 => (1..4usize).prop_map(Step::Claim),
        3 => (0..8usize).prop_map(Step::Ack),
        3 => (0..8usize).prop_map(Step::Nack),
        1 => (0..8usize).prop_map(Step::Park),
        1 => (0..8usize).prop_map(Step::Release),
        1 => (0..8usize).prop_map(Step::Renew),
        3 => (1..40u8).prop_map(Step::Pass),
        1 => Just(Step::Restart),
        1 => (0..4usize).prop_map(Step::Retry),
    ];
    proptest::collection::vec(step, 1..80)
}

#[derive(Debug, Clone, PartialEq)]
enum At {
    Waiting(u64),
    Claimed { until: u64, epoch: u64 },
    Parked,
}

#[derive(Debug, Clone)]
struct Modelled {
    tenant: Tenant,
    priority: i16,
    key: Option<u8>,
    deadline: Option<u64>,
    attempts: u32,
    payload: String,
    at: At,
}

/// What should be there, and the real thing beside it.
struct World {
    items: BTreeMap<ItemId, Modelled>,
    now: u64,
    clock: ManualClock,
    store: SharedStore,
    queues: Queues,
    queue: Queue,
    /// Every claim ever handed out, good or lapsed.
    claims: Vec<Claim>,
    made: u64,
}

fn config() -> QueueConfig {
    let backoff = Backoff {
        base: Duration::from_secs(DELAY),
        factor: 1.0,
        max: Duration::from_secs(DELAY),
        jitter: 0.0,
    };
    QueueConfig {
        visibility: Duration::from_secs(VISIBILITY),
        max_attempts: ATTEMPTS,
        backoff,
        ..QueueConfig::new("model")
    }
}

impl World {
    async fn new() -> Self {
        let clock = ManualClock::default();
        let store: SharedStore = Arc::new(MemoryStore::new(
            MemoryConfig::new(Name::new("node").unwrap()),
            clock.shared(),
        ));
        let queues = Queues::open(store.clone()).await.unwrap();
        let queue = queues.queue(config()).unwrap();
        Self {
            items: BTreeMap::new(),
            now: 0,
            clock,
            store,
            queues,
            queue,
            claims: Vec::new(),
            made: 0,
        }
    }

    async fn run(&mut self, step: Step) {
        match step {
            Step::Enqueue {
                tenant,
                priority,
                key,
                committed,
                deadline,
            } => {
                self.enqueue(tenant, priority, key, committed, deadline)
                    .await;
            }
            Step::Claim(max) => self.claim(max).await,
            Step::Ack(which) => {
                self.settle(which, |queue, tx, claim| {
                    queue.ack(tx, claim).map(|()| None)
                })
                .await
            }
            Step::Park(which) => {
                self.settle(which, |queue, tx, claim| {
                    queue.park(tx, claim, "p").map(|()| Some(At::Parked))
                })
                .await;
            }
            Step::Release(which) => {
                let now = self.now;
                self.settle(which, move |queue, tx, claim| {
                    queue.release(tx, claim).map(|()| Some(At::Waiting(now)))
                })
                .await;
            }
            Step::Nack(which) => {
                let again = At::Waiting(self.now + DELAY);
                self.settle(which, move |queue, tx, claim| {
                    let nacked = queue.nack(tx, claim, None, "n")?;
                    Ok(Some(if nacked == Nacked::Parked {
                        At::Parked
                    } else {
                        again
                    }))
                })
                .await;
            }
            Step::Renew(which) => {
                let Some(claim) = self.claims.get(which).cloned() else {
                    return;
                };
                let holds = self.holds(&claim);
                assert_eq!(self.queue.renew(&claim).is_ok(), holds, "{claim:?}");
                if let Some(item) = self.items.get_mut(&claim.id).filter(|_| holds) {
                    item.at = At::Claimed {
                        until: self.now + VISIBILITY,
                        epoch: claim.epoch,
                    };
                }
            }
            Step::Pass(seconds) => {
                self.now += u64::from(seconds);
                self.clock.advance(Duration::from_secs(seconds.into()));
            }
            Step::Restart => {
                self.queues = Queues::open(self.store.clone()).await.unwrap();
                self.queue = self.queues.queue(config()).unwrap();
                let now = self.now;
                for item in self
                    .items
                    .values_mut()
                    .filter(|item| matches!(item.at, At::Claimed { .. }))
                {
                    item.at = At::Claimed {
                        until: now,
                        epoch: 0,
                    };
                }
            }
            Step::Retry(which) => {
                let parked: Vec<_> = self
                    .items
                    .iter()
                    .filter(|(_, item)| item.at == At::Parked)
                    .map(|(id, _)| *id)
                    .collect();
                let Some(id) = parked.get(which) else { return };
                self.queues.retry_parked(*id).await.unwrap();
                let now = self.now;
                let item = self.items.get_mut(id).unwrap();
                (item.at, item.attempts, item.deadline) = (At::Waiting(now), 0, None);
                item.key = None;
            }
        }
        self.settle_time();
        self.queues.sweep().await.unwrap();
        self.compare().await;
    }

    async fn enqueue(
        &mut self,
        tenant: u8,
        priority: i16,
        key: Option<u8>,
        committed: bool,
        deadline: Option<u8>,
    ) {
        self.made += 1;
        let payload = self.made.to_string();
        let tenant: Tenant = format!("t{tenant}").parse().unwrap();
        let deadline = deadline.map(|seconds| self.now + u64::from(seconds));
        let wall = volary_kernel::Clock::wall(&self.clock);
        let item = NewItem {
            priority,
            coalesce: key.map(|key| key.to_string()),
            deadline: deadline.map(|at| wall + Duration::from_secs(at - self.now)),
            ..NewItem::new(tenant.clone(), payload.clone())
        };
        let mut tx = Batch::new();
        let enqueued = self.queue.enqueue(&mut tx, item).unwrap();
        if !committed {
            return;
        }
        self.store.commit(tx).await.unwrap();
        if enqueued.coalesced {
            let old = &self.items[&enqueued.id];
            assert!(
                matches!(old.at, At::Waiting(_)) && old.key == key && old.tenant == tenant,
                "{old:?}"
            );
        }
        let at = At::Waiting(self.now);
        self.items.insert(
            enqueued.id,
            Modelled {
                tenant,
                priority,
                key,
                deadline,
                attempts: 0,
                payload,
                at,
            },
        );
    }

    async fn claim(&mut self, max: usize) {
        let claims = self.queue.claim("me", max, Duration::ZERO).await.unwrap();
        let ready: Vec<_> = self
            .items
            .iter()
            .filter(|(id, item)| self.may_be_claimed(**id, item))
            .map(|(id, _)| *id)
            .collect();
        assert_eq!(claims.len(), ready.len().min(max), "as many as wait");
        for claim in claims {
            let item = self.items[&claim.id].clone();
            assert!(
                matches!(item.at, At::Waiting(from) if from <= self.now),
                "{item:?}"
            );
            assert!(
                ready.contains(&claim.id),
                "its elders of the same key have left"
            );
            let before = self.items.iter().filter(|(id, other)| {
                let waits = matches!(other.at, At::Waiting(from) if from <= self.now)
                    && ready.contains(id)
                    && other.tenant == item.tenant;
                waits && (-other.priority, **id) < (-item.priority, claim.id)
            });
            assert_eq!(before.count(), 0, "the first of its tenant");
            assert_eq!(
                (claim.attempt, claim.payload.as_ref()),
                (item.attempts + 1, item.payload.as_bytes())
            );
            let at = At::Claimed {
                until: self.now + VISIBILITY,
                epoch: claim.epoch,
            };
            self.items.insert(
                claim.id,
                Modelled {
                    at,
                    attempts: claim.attempt,
                    ..item
                },
            );
            self.claims.push(claim);
        }
    }

    /// Whether it waits, and behind no other of its key.
    fn may_be_claimed(&self, id: ItemId, item: &Modelled) -> bool {
        let elder = self.items.range(..id).any(|(_, elder)| {
            let same = elder.key.is_some() && elder.key == item.key;
            same && elder.tenant == item.tenant && elder.at != At::Parked
        });
        !elder && matches!(item.at, At::Waiting(from) if from <= self.now)
    }

    fn holds(&self, claim: &Claim) -> bool {
        let item = self.items.get(&claim.id);
        item.is_some_and(|item| matches!(item.at, At::Claimed { until, epoch } if epoch == claim.epoch && until > self.now))
    }

    async fn settle(
        &mut self,
        which: usize,
        settle: impl FnOnce(&Queue, &mut Batch, &Claim) -> Result<Option<At>, volary_store::QueueError>,
    ) {
        let Some(claim) = self.claims.get(which).cloned() else {
            return;
        };
        let holds = self.holds(&claim);
        let mut tx = Batch::new();
        let end = settle(&self.queue, &mut tx, &claim);
        assert_eq!(
            end.is_ok(),
            holds,
            "{end:?} {claim:?} {:?}",
            self.items.get(&claim.id)
        );
        let Ok(next) = end else { return };
        self.store.commit(tx).await.unwrap();
        match next {
            Some(at) => {
                let released = at == At::Waiting(self.now);
                let item = self.items.get_mut(&claim.id).unwrap();
                assert!(at != At::Parked || item.attempts <= ATTEMPTS);
                item.attempts -= u32::from(released);
                item.at = at;
            }
            None => drop(self.items.remove(&claim.id)),
        }
    }

    /// What time alone does.
    fn settle_time(&mut self) {
        let now = self.now;
        self.items.retain(|_, item| {
            let over = match item.at {
                At::Waiting(_) => true,
                At::Claimed { until, .. } => until <= now,
                At::Parked => false,
            };
            !(over && item.deadline.is_some_and(|deadline| deadline <= now))
        });
        for item in self.items.values_mut() {
            if matches!(item.at, At::Claimed { until, .. } if until <= now) {
                item.at = if item.attempts >= ATTEMPTS {
                    At::Parked
                } else {
                    At::Waiting(now)
                };
            }
        }
    }

    async fn compare(&self) {
        let count = |wanted: fn(&At, u64) -> bool| {
            self.items
                .values()
                .filter(|item| wanted(&item.at, self.now))
                .count()
        };
        let stats = self.queue.stats();
        assert_eq!(
            stats.ready,
            count(|at, now| matches!(at, At::Waiting(from) if *from <= now)),
            "ready"
        );
        assert_eq!(
            stats.delayed,
            count(|at, now| matches!(at, At::Waiting(from) if *from > now)),
            "delayed"
        );
        assert_eq!(
            stats.claimed,
            count(|at, _| matches!(at, At::Claimed { .. })),
            "claimed"
        );
        assert_eq!(
            (stats.parked, stats.pending),
            (count(|at, _| *at == At::Parked), 0),
            "parked, pending"
        );
        let live = self.items.values().filter(|item| item.at != At::Parked);
        assert_eq!(
            stats.bytes,
            live.map(|item| item.payload.len() as u64).sum::<u64>(),
            "bytes"
        );
        let stored = self
            .store
            .scan("queue.item/", None, 1000)
            .await
            .unwrap()
            .len();
        assert_eq!(stored, self.queue.len(), "the store agrees");
        assert_eq!(
            self.store
                .scan("queue.parked/", None, 1000)
                .await
                .unwrap()
                .len(),
            stats.parked
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if crate::common::thorough() { 5000 } else { 300 }, ..ProptestConfig::default() })]

    #[test]
    fn the_queue_does_what_the_model_does(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new().await;
            for step in steps {
                world.run(step).await;
            }
        });
    }
}
