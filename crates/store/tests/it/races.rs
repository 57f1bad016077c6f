//! What happens to a queue between two steps of somebody else: each item has one end, and the index stays with the store.

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::join;
use parking_lot::Mutex;
use tokio::sync::watch as latest;
use volary_kernel::{ManualClock, Name, SharedClock, Tenant};
use volary_store::{
    Batch, Claim, Committed, Filter, ItemId, JournalPage, Key, MemoryConfig, MemoryStore, NewItem,
    Queue, Queues, Record, Seq, SharedStore, Store, StoreError, Watch,
    queue::{Outcome, QueueConfig},
};

use crate::common::Bench;

const VISIBILITY: Duration = Duration::from_secs(30);

/// Does something at a chosen moment of what somebody else does.
struct Meddler {
    inner: SharedStore,
    /// Committed before the next read.
    before_read: Mutex<Option<Batch>>,
    /// Committed after the next read.
    after_read: Mutex<Option<Batch>>,
    /// Told of the next commit.
    at_commit: Mutex<Option<mpsc::Sender<()>>>,
    /// Commits under way, and the most there were.
    commits: Mutex<(usize, usize)>,
}

impl Meddler {
    async fn meddle(&self, slot: &Mutex<Option<Batch>>) {
        let batch = slot.lock().take();
        if let Some(batch) = batch {
            self.inner.commit(batch).await.unwrap();
        }
    }
}

#[async_trait]
impl Store for Meddler {
    async fn commit(&self, batch: Batch) -> Result<Committed, StoreError> {
        if let Some(tell) = self.at_commit.lock().take() {
            tell.send(()).unwrap();
        }
        {
            let (now, most) = &mut *self.commits.lock();
            *now += 1;
            *most = (*most).max(*now);
        }
        let end = self.inner.commit(batch).await;
        self.commits.lock().0 -= 1;
        end
    }

    async fn get_many(&self, keys: &[Key]) -> Result<Vec<Option<Record>>, StoreError> {
        self.meddle(&self.before_read).await;
        let records = self.inner.get_many(keys).await;
        self.meddle(&self.after_read).await;
        records
    }

    async fn scan(
        &self,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<Record>, StoreError> {
        self.inner.scan(prefix, after, limit).await
    }

    async fn read(
        &self,
        from: Seq,
        filter: &Filter,
        limit: usize,
    ) -> Result<JournalPage, StoreError> {
        self.inner.read(from, filter, limit).await
    }

    fn watch(&self, prefix: &str) -> Watch {
        self.inner.watch(prefix)
    }

    fn head(&self) -> latest::Receiver<Seq> {
        self.inner.head()
    }

    fn node(&self) -> &Name {
        self.inner.node()
    }

    fn clock(&self) -> &SharedClock {
        self.inner.clock()
    }
}

struct World {
    clock: ManualClock,
    store: Arc<Meddler>,
    queues: Queues,
    queue: Queue,
}

impl World {
    async fn over(inner: SharedStore, clock: ManualClock) -> Self {
        let store = Arc::new(Meddler {
            inner,
            before_read: Mutex::default(),
            after_read: Mutex::default(),
            at_commit: Mutex::default(),
            commits: Mutex::default(),
        });
        let queues = Queues::open(store.clone()).await.unwrap();
        let config = QueueConfig {
            visibility: VISIBILITY,
            max_attempts: 2,
            ..QueueConfig::new("races")
        };
        let queue = queues.queue(config).unwrap();
        Self {
            clock,
            store,
            queues,
            queue,
        }
    }

    async fn in_memory() -> Self {
        let clock = ManualClock::default();
        let config = MemoryConfig::new(Name::new("node").unwrap());
        let store = Arc::new(MemoryStore::new(config, clock.shared()));
        Self::over(store, clock).await
    }

    async fn send(&self, payload: &'static str) -> ItemId {
        let mut tx = Batch::new();
        let id = self.queue.enqueue(&mut tx, page(payload)).unwrap().id;
        self.store.commit(tx).await.unwrap();
        id
    }

    async fn claim(&self) -> Option<Claim> {
        let claims = self.queue.claim("me", 1, Duration::ZERO).await;
        claims.unwrap().pop()
    }

    /// The acknowledgement of a claim that lapses before it is committed.
    async fn late_ack(&self, claim: &Claim) -> Batch {
        let mut tx = Batch::new();
        self.queue.ack(&mut tx, claim).unwrap();
        self.clock.advance(VISIBILITY);
        tx
    }

    async fn assert_done(&self, id: ItemId) {
        assert_eq!(self.queues.outcome(id).await.unwrap(), Outcome::Done);
        let left = self.store.scan("queue.item/", None, 9).await.unwrap();
        assert_eq!((self.queue.len(), left.len()), (0, 0));
    }
}

fn page(payload: &'static str) -> NewItem {
    NewItem {
        coalesce: Some("page".into()),
        base: Some(format!("before {payload}")),
        ..NewItem::new(Tenant::default(), payload)
    }
}

#[tokio::test]
async fn an_item_settled_while_it_is_claimed_again_stays_done() {
    let world = World::in_memory().await;
    let id = world.send("a").await;
    let claim = world.claim().await.unwrap();
    let ack = world.late_ack(&claim).await;
    *world.store.after_read.lock() = Some(ack);
    assert!(world.claim().await.is_none());
    world.assert_done(id).await;
}

#[tokio::test]
async fn an_item_settled_while_it_is_swept_stays_done() {
    let world = World::in_memory().await;
    let id = world.send("a").await;
    world.claim().await.unwrap();
    world.clock.advance(VISIBILITY);
    let last = world.claim().await.unwrap();
    let ack = world.late_ack(&last).await;
    *world.store.before_read.lock() = Some(ack);
    world.queues.sweep().await.unwrap();
    world.assert_done(id).await;
}

#[tokio::test]
async fn an_item_that_is_settled_and_not_told_of_yet_has_not_vanished() {
    let bench = Bench::new();
    let store = Arc::new(bench.open().await);
    let world = World::over(store, bench.clock.clone()).await;
    let id = world.send("a").await;
    let claim = world.claim().await.unwrap();
    let (tell, told) = mpsc::channel();
    let mut ack = Batch::new();
    ack.on_commit(move |_| told.recv().unwrap());
    world.queue.ack(&mut ack, &claim).unwrap();
    let meddling = async {
        let item = Key::new(format!("queue.item/{id}")).unwrap();
        while world.store.get(&item).await.unwrap().is_some() {}
        world.clock.advance(VISIBILITY);
        *world.store.at_commit.lock() = Some(tell);
        world.claim().await
    };
    let waiting = world.queues.outcome(id);
    let ((acked, claimed), outcome) =
        join(join(world.store.inner.commit(ack), meddling), waiting).await;
    assert!(acked.is_ok() && claimed.is_none());
    assert_eq!(outcome.unwrap(), Outcome::Done);
    world.assert_done(id).await;
}

#[tokio::test]
async fn an_item_settled_while_it_is_replaced_is_not_lost() {
    let world = World::in_memory().await;
    let id = world.send("a").await;
    let claim = world.claim().await.unwrap();
    let ack = world.late_ack(&claim).await;
    world.queues.sweep().await.unwrap();
    let mut newer = Batch::new();
    assert!(
        world
            .queue
            .enqueue(&mut newer, page("b"))
            .unwrap()
            .coalesced
    );
    world.store.commit(ack).await.unwrap();
    let end = world.store.commit(newer).await;
    assert!(matches!(end, Err(StoreError::Conflict { .. })), "{end:?}");
    world.assert_done(id).await;
    world.send("b").await;
    let claim = world.claim().await.unwrap();
    let base = claim.base.as_deref();
    assert_eq!(
        (claim.payload.as_ref(), base),
        (&b"b"[..], Some("before b"))
    );
}

#[tokio::test]
async fn a_claim_waits_for_an_item_that_is_being_replaced_without_turning() {
    let world = World::in_memory().await;
    world.send("a").await;
    let mut newer = Batch::new();
    world.queue.enqueue(&mut newer, page("b")).unwrap();
    let (claims, committed) = join(
        world.queue.claim("me", 1, Duration::from_secs(60)),
        world.store.commit(newer),
    )
    .await;
    committed.unwrap();
    assert_eq!(claims.unwrap()[0].payload.as_ref(), b"b");
}

#[tokio::test]
async fn items_that_are_over_at_the_same_time_are_settled_together() {
    let bench = Bench::new();
    let store = Arc::new(bench.open().await);
    let world = World::over(store, bench.clock.clone()).await;
    let deadline = Some(world.store.clock().wall() + VISIBILITY);
    let mut tx = Batch::new();
    for _ in 0..1_000 {
        let item = NewItem {
            deadline,
            ..NewItem::new(Tenant::default(), "late")
        };
        world.queue.enqueue(&mut tx, item).unwrap();
    }
    world.store.commit(tx).await.unwrap();
    world.clock.advance(VISIBILITY);
    assert!(world.claim().await.is_none());
    assert!(world.queue.is_empty());
    let most = world.store.commits.lock().1;
    assert!((2..=64).contains(&most), "{most} commits at a time");
}
