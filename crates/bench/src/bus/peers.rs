//! What the local bus is compared with. Each peer gets the same body and the same addressing fields, made anew for every
//! message, and counts what arrived.
//!
//! What each promises, so that the comparison is read rightly:
//!
//! - kameo `tell`: one bounded mailbox of 1,024; the sender waits when it is full; a panic of the handler is contained.
//!   No hooks, no admission, no identity, no deadline.
//! - ractor `cast`: a mailbox without bound (the library has no bounded one); the sender never waits. The same otherwise.
//! - tokio: one bounded channel of 1,024 between two tasks; nothing but delivery.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{BODY, CAPACITY};

/// What a hand-made message between agents carries at least.
pub struct Item {
    pub sender: Arc<str>,
    pub topic: Arc<str>,
    pub number: u64,
    pub body: Bytes,
}

/// Makes items the way a sender would: shared parts are cloned, the rest is new.
pub struct Items {
    sender: Arc<str>,
    topic: Arc<str>,
    body: Bytes,
}

impl Items {
    pub fn new() -> Self {
        Self {
            sender: "sender".into(),
            topic: "work".into(),
            body: Bytes::from_static(&BODY),
        }
    }

    pub fn make(&self, number: u64) -> Item {
        Item {
            sender: self.sender.clone(),
            topic: self.topic.clone(),
            number,
            body: self.body.clone(),
        }
    }
}

/// Counts what arrives, and says when it was enough.
pub struct Count {
    missing: u64,
    bytes: usize,
    done: Option<oneshot::Sender<usize>>,
}

impl Count {
    pub fn new(expected: u64) -> (Self, oneshot::Receiver<usize>) {
        let (done, answer) = oneshot::channel();
        let count = Self {
            missing: expected,
            bytes: 0,
            done: Some(done),
        };
        (count, answer)
    }

    /// Takes one item; whether more are expected.
    pub fn take(&mut self, sender: &str, topic: &str, body: &[u8]) -> bool {
        self.bytes += sender.len() + topic.len() + body.len();
        self.missing -= 1;
        if self.missing == 0
            && let Some(done) = self.done.take()
        {
            // Whoever measures has given up: nothing to tell.
            let _ = done.send(self.bytes);
        }
        self.missing > 0
    }
}

/// A bare bounded channel between two tasks.
pub async fn tokio_channel(messages: u64) {
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<Item>(CAPACITY);
    let (mut count, answer) = Count::new(messages);
    let receiving = super::background(async move {
        while let Some(item) = receiver.recv().await {
            std::hint::black_box(item.number);
            if !count.take(&item.sender, &item.topic, &item.body) {
                break;
            }
        }
    });
    let items = Items::new();
    for number in 0..messages {
        let sent = sender.send(items.make(number)).await;
        assert!(sent.is_ok(), "the receiver lives until it has all");
    }
    answer.await.expect("the receiver answers");
    receiving.await.expect("the receiver does not panic");
}

struct KameoCounter(Count);

impl kameo::Actor for KameoCounter {
    type Args = Count;
    type Error = std::convert::Infallible;

    async fn on_start(
        count: Count,
        _: kameo::actor::ActorRef<Self>,
    ) -> Result<Self, std::convert::Infallible> {
        Ok(Self(count))
    }
}

impl kameo::message::Message<Item> for KameoCounter {
    type Reply = ();

    async fn handle(&mut self, item: Item, _: &mut kameo::message::Context<Self, ()>) {
        std::hint::black_box(item.number);
        self.0.take(&item.sender, &item.topic, &item.body);
    }
}

/// kameo's `tell` into a bounded mailbox.
pub async fn kameo_tell(messages: u64) {
    use kameo::actor::Spawn as _;
    let (count, answer) = Count::new(messages);
    let mailbox = kameo::mailbox::bounded(CAPACITY);
    let actor = KameoCounter::spawn_with_mailbox(count, mailbox);
    let items = Items::new();
    for number in 0..messages {
        let told = actor.tell(items.make(number)).await;
        assert!(told.is_ok(), "the actor lives until it is stopped");
    }
    answer.await.expect("the actor answers");
    actor.kill();
    actor.wait_for_shutdown().await;
}

struct RactorCounter;

impl ractor::Actor for RactorCounter {
    type Msg = Item;
    type State = Count;
    type Arguments = Count;

    async fn pre_start(
        &self,
        _: ractor::ActorRef<Item>,
        count: Count,
    ) -> Result<Count, ractor::ActorProcessingErr> {
        Ok(count)
    }

    async fn handle(
        &self,
        _: ractor::ActorRef<Item>,
        item: Item,
        count: &mut Count,
    ) -> Result<(), ractor::ActorProcessingErr> {
        std::hint::black_box(item.number);
        count.take(&item.sender, &item.topic, &item.body);
        Ok(())
    }
}

/// ractor's `cast` into its unbounded mailbox.
pub async fn ractor_cast(messages: u64) {
    let (count, answer) = Count::new(messages);
    let spawned = ractor::Actor::spawn(None, RactorCounter, count).await;
    let (actor, handle) = spawned.expect("the actor starts");
    let items = Items::new();
    for number in 0..messages {
        let cast = actor.cast(items.make(number));
        assert!(cast.is_ok(), "the actor lives until it is stopped");
    }
    answer.await.expect("the actor answers");
    actor.stop(None);
    handle.await.expect("the actor does not panic");
}
