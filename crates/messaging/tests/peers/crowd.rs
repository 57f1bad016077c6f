//! What a peer sends while more waits than is taken in: it is turned back, and nothing of its sender overtakes it.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{
    FutureExt as _,
    future::{BoxFuture, join_all},
};
use parking_lot::Mutex;
use volary_kernel::clock;
use volary_messaging::{
    Admission, Message, Refusal,
    event::message_in,
    frame::{self, Trust},
    transport::tcp::{Answer, Arrival, Durable, Reception},
};

use volary_store::{Batch, Committed, SharedStore, StoreError};

use crate::{
    node::{Node, Setup, Who, memory, text_of, topic},
    sim::SimClock,
    store::{Detour, over},
};

/// What a peer's queue takes.
const FRAMES: u64 = 256;
/// How many messages one commit takes.
const COMMIT: u64 = 1024;

struct Side {
    near: Who,
    far: Node,
    reception: Reception,
    /// What came comes again as the same.
    messages: Mutex<HashMap<(String, u64), Message>>,
}

impl Side {
    async fn begin(store: SharedStore) -> Self {
        let near = Who::new("a", &[("s1", &[]), ("s2", &[])]);
        let far = Who::new("b", &[("sink", &["work"])]);
        let far = Node::start(&far, &near, store, &Setup::default()).await;
        let reception = far.reception();
        let said = near.introduction(&far.clock);
        (reception.introduced)(near.spec(), said).await.unwrap();
        Self {
            near,
            far,
            reception,
            messages: Mutex::default(),
        }
    }

    /// A frame comes: a message for each number, which it tells.
    fn arrives(&self, sender: &str, low: u64, orders: &[u64]) -> BoxFuture<'static, Vec<Answer>> {
        let message = |order: &u64| {
            let draft = Message::builder(self.near.sender(sender)).topic(topic("work"));
            let now = self.far.clock.wall();
            let drafted = draft.json(&order.to_string()).unwrap().build(now);
            let mut messages = self.messages.lock();
            let first = messages.entry((sender.to_owned(), *order));
            first.or_insert_with(|| drafted.unwrap()).clone()
        };
        let messages: Vec<_> = orders.iter().map(message).collect();
        let mut keys = self.near.agents.iter();
        let (_, key, _) = keys.find(|(name, ..)| name.as_str() == sender).unwrap();
        let bytes = frame::seal(key, &messages).unwrap();
        let peer = self.near.spec();
        let registry = (self.reception.trust)(&peer);
        let frame = frame::open(&bytes, Trust::Registry(&registry)).unwrap();
        (self.reception.arrived)(Arrival {
            peer,
            frame,
            durable: Some(Durable {
                low,
                orders: orders.to_vec(),
            }),
        })
    }

    /// So many frames of the other sender come that no further one finds room, as nobody takes any before this test waits.
    fn crowd(&self, from: u64) -> Vec<BoxFuture<'static, Vec<Answer>>> {
        let orders = from..from + FRAMES;
        orders
            .map(|order| self.arrives("s2", 1, &[order]))
            .collect()
    }

    /// What the journal has of a sender.
    async fn accepted(&self, sender: &str) -> Vec<String> {
        let rows = self.far.journal("message.accepted").await;
        let messages = rows.iter().map(|row| message_in(&row.body).unwrap());
        messages
            .filter(|message| message.sender().name().as_str() == sender)
            .map(|message| text_of(&message))
            .collect()
    }
}

/// Why a frame was turned back, which is known without waiting.
fn turned_away(answers: BoxFuture<'static, Vec<Answer>>) {
    let answers = answers.now_or_never().unwrap();
    assert!(
        answers
            .iter()
            .all(|answer| why(answer).contains("waits to be taken in from peer")),
        "{answers:?}"
    );
}

fn why(answer: &Answer) -> String {
    match answer {
        Admission::Refused(Refusal::Full { what, .. }) => what.to_string(),
        other => panic!("{other:?}"),
    }
}

fn all_taken(answers: &[Answer]) -> bool {
    answers.iter().all(|answer| *answer == Admission::Queued)
}

#[tokio::test(start_paused = true)]
async fn what_finds_the_queue_full_is_not_overtaken_by_what_finds_room() {
    let side = Side::begin(memory("b", SimClock::shared())).await;
    let crowd = side.crowd(1000);
    turned_away(side.arrives("s1", 1, &[3, 4]));
    let taken = join_all(crowd).await;
    assert!(taken.iter().all(|answers| all_taken(answers)), "{taken:?}");

    let late = side.arrives("s1", 1, &[5, 6]).await;
    assert!(
        late.iter()
            .all(|answer| why(answer).contains("an earlier message"))
    );
    let other = side.arrives("s2", 1, &[2000]).await;
    assert!(all_taken(&other), "it is not for another sender to wait");
    for frame in [[3, 4], [5, 6]] {
        let again = side.arrives("s1", 1, &frame).await;
        assert!(all_taken(&again), "{again:?}");
    }
    assert_eq!(side.accepted("s1").await, ["3", "4", "5", "6"]);

    // Right behind each other: nothing was judged in between.
    let crowd = side.crowd(3000);
    turned_away(side.arrives("s1", 1, &[7]));
    turned_away(side.arrives("s1", 1, &[8]));
    join_all(crowd).await;
    let [late, earlier, again] = [9, 7, 8].map(|order| side.arrives("s1", 1, &[order]));
    assert!(why(&late.await[0]).contains("an earlier message"));
    assert!(all_taken(&earlier.await) && all_taken(&again.await));
    assert!(all_taken(&side.arrives("s1", 1, &[9]).await));
    assert_eq!(side.accepted("s1").await[4..], ["7", "8", "9"]);
    side.far.crash().await;
}

#[tokio::test(start_paused = true)]
async fn what_finds_the_queue_full_and_never_comes_again_holds_nothing_back_for_ever() {
    let side = Side::begin(memory("b", SimClock::shared())).await;
    // It was settled otherwise.
    let crowd = side.crowd(1000);
    turned_away(side.arrives("s1", 1, &[3]));
    join_all(crowd).await;
    assert!(all_taken(&side.arrives("s1", 4, &[4]).await));

    // Its sender does not say.
    let crowd = side.crowd(2000);
    turned_away(side.arrives("s1", 4, &[5]));
    join_all(crowd).await;
    let late = side.arrives("s1", 4, &[6]).await;
    assert!(why(&late[0]).contains("an earlier message"));
    clock::sleep(Duration::from_secs(60)).await;
    assert!(all_taken(&side.arrives("s1", 4, &[6]).await));
    assert_eq!(side.accepted("s1").await, ["4", "6"]);
    side.far.crash().await;
}

/// The link hands in a sender's next frame once the one before is answered, whatever the answer is.
#[tokio::test(start_paused = true)]
async fn what_could_not_be_stored_is_not_overtaken() {
    let (store, fails) = Fickle::shared(memory("b", SimClock::shared()));
    let side = Side::begin(store).await;
    fails.store(usize::MAX, Ordering::Relaxed);
    let failed = side.arrives("s1", 1, &[3, 4]).await;
    assert!(failed.iter().all(|answer| why(answer) == "the store"));
    fails.store(0, Ordering::Relaxed);
    let late = side.arrives("s1", 1, &[5]).await;
    assert!(why(&late[0]).contains("an earlier message"));
    assert!(all_taken(&side.arrives("s2", 1, &[9]).await));
    for order in 3..=5 {
        assert!(all_taken(&side.arrives("s1", 1, &[order]).await));
    }
    assert_eq!(side.accepted("s1").await, ["3", "4", "5"]);
    side.far.crash().await;
}

/// A frame that fills one commit goes on in the next one, which is on its way before it is known what became of the first.
#[tokio::test(start_paused = true)]
async fn what_could_not_be_stored_is_not_overtaken_by_the_rest_of_its_frame() {
    let (store, fails) = Fickle::shared(memory("b", SimClock::shared()));
    let side = Side::begin(store).await;
    fails.store(1, Ordering::Relaxed);
    let almost: Vec<u64> = (1000..1000 + COMMIT - 2).collect();
    let others = side.arrives("s2", 1, &almost);
    let (_, answers) = tokio::join!(others, side.arrives("s1", 1, &[3, 4, 5, 6]));
    let [first, second, third, fourth] = &answers[..] else {
        panic!("{answers:?}");
    };
    assert!(
        [first, second]
            .map(why)
            .iter()
            .all(|why| why == "the store")
    );
    for late in [third, fourth] {
        assert!(why(late).contains("an earlier message"), "{late:?}");
    }
    assert!(all_taken(&side.arrives("s1", 1, &[3, 4, 5, 6]).await));
    assert_eq!(side.accepted("s1").await, ["3", "4", "5", "6"]);
    side.far.crash().await;
}

/// The same over two connections: the later frame waits to be taken in already when the earlier one is not stored.
#[tokio::test(start_paused = true)]
async fn what_could_not_be_stored_is_not_overtaken_over_another_connection() {
    let (store, fails) = Fickle::shared(memory("b", SimClock::shared()));
    let side = Side::begin(store).await;
    fails.store(1, Ordering::Relaxed);
    let first = side.arrives("s1", 1, &[3]);
    let full: Vec<u64> = (1000..1000 + COMMIT - 1).collect();
    let others = side.arrives("s2", 1, &full);
    let later = side.arrives("s1", 1, &[4]);
    let (first, _, later) = tokio::join!(first, others, later);
    assert_eq!(why(&first[0]), "the store");
    assert!(why(&later[0]).contains("an earlier message"), "{later:?}");
    for order in [3, 4] {
        assert!(all_taken(&side.arrives("s1", 1, &[order]).await));
    }
    assert_eq!(side.accepted("s1").await, ["3", "4"]);
    side.far.crash().await;
}

/// It came twice, close behind each other: the first was not stored, the second was. Nothing has to wait for either.
#[tokio::test(start_paused = true)]
async fn what_was_stored_the_second_time_holds_nothing_back() {
    let (store, fails) = Fickle::shared(memory("b", SimClock::shared()));
    let side = Side::begin(store).await;
    fails.store(1, Ordering::Relaxed);
    let [first, again] = [(); 2].map(|()| side.arrives("s1", 1, &[3]));
    let (first, again) = tokio::join!(first, again);
    assert_eq!(why(&first[0]), "the store");
    assert!(all_taken(&again));
    let next = side.arrives("s1", 1, &[4]).await;
    assert!(all_taken(&next), "{next:?}");
    side.far.crash().await;
}

/// A receiver whose store fails begins again, and remembers who waits.
#[tokio::test(start_paused = true)]
async fn what_a_receiver_that_failed_had_in_hand_is_not_overtaken() {
    let (store, fails) = Fickle::shared(memory("b", SimClock::shared()));
    let side = Side::begin(store).await;
    for (sender, order) in [("s1", 3), ("s2", 1000)] {
        assert!(all_taken(&side.arrives(sender, 1, &[order]).await));
    }
    let closed = |answers: &[Answer]| {
        let closed = Admission::Refused(Refusal::Closed);
        answers.iter().all(|answer| *answer == closed)
    };
    // What came before is looked up.
    fails.store(usize::MAX, Ordering::Relaxed);
    assert!(closed(&side.arrives("s1", 1, &[3, 4]).await));
    fails.store(0, Ordering::Relaxed);
    let late = side.arrives("s1", 1, &[5]).await;
    assert!(why(&late[0]).contains("an earlier message"));
    assert!(all_taken(&side.arrives("s1", 1, &[3, 4]).await));
    assert!(all_taken(&side.arrives("s1", 1, &[5]).await));

    // What was held back before it failed is so afterwards.
    let crowd = side.crowd(2000);
    turned_away(side.arrives("s1", 1, &[6]));
    join_all(crowd).await;
    fails.store(usize::MAX, Ordering::Relaxed);
    assert!(closed(&side.arrives("s2", 1, &[1000]).await));
    fails.store(0, Ordering::Relaxed);
    let late = side.arrives("s1", 1, &[7]).await;
    assert!(why(&late[0]).contains("an earlier message"));
    for order in [6, 7] {
        assert!(all_taken(&side.arrives("s1", 1, &[order]).await));
    }
    assert_eq!(side.accepted("s1").await, ["3", "4", "5", "6", "7"]);
    side.far.crash().await;
}

/// A store that fails for now, as often as it is said.
struct Fickle(Arc<AtomicUsize>);

impl Fickle {
    fn shared(inner: SharedStore) -> (SharedStore, Arc<AtomicUsize>) {
        let fails = Arc::new(AtomicUsize::new(0));
        (over(inner, Self(fails.clone())), fails)
    }

    fn now(&self) -> Result<(), StoreError> {
        let once_less = |left: usize| left.checked_sub(1);
        let fails = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, once_less);
        if fails.is_ok() {
            return Err(StoreError::Busy {
                path: "b.db".into(),
                pid: None,
                waited: Duration::ZERO,
            });
        }
        Ok(())
    }
}

#[async_trait]
impl Detour for Fickle {
    async fn commit(&self, inner: &SharedStore, batch: Batch) -> Result<Committed, StoreError> {
        let now = self.now();
        // It takes its time: what else there is goes on meanwhile.
        clock::sleep(Duration::from_millis(1)).await;
        now?;
        inner.commit(batch).await
    }

    fn get(&self) -> Result<(), StoreError> {
        self.now()
    }
}
