//! What happens at the edges of a peer's life: restored from an older copy, begun anew, silent for long, only ever sending
//! at most once; and whether a courier that hangs is seen.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::sync::watch;
use volary_kernel::{
    clock::{self, Clock, Mono, SharedClock, Timestamp},
    ready::Readiness,
    testing::eventually,
};
use volary_messaging::{
    Admission, SeenConfig,
    event::message_in,
    frame::{self, Trust},
    peer::Wire,
    transport::tcp::{Answer, Arrival, LinkError, LinkState, Outgoing},
};
use volary_store::{Batch, Committed, SharedStore, StoreError};

use crate::{
    node::{Node, Setup, Who, memory, text_of},
    sim::SimClock,
    store::{Detour, over},
};

fn sides() -> (Who, Who) {
    let a = Who::new("a", &[("s1", &[])]);
    (a, Who::new("b", &[("r1", &["work", "tick"])]))
}

/// A wire that works at once, to `far` as it is now.
async fn wire(near: &Who, far: &Node) -> (Wire, watch::Sender<LinkState>) {
    narrow_wire(near, far, usize::MAX).await
}

/// A wire that takes frames up to `limit` bytes.
async fn narrow_wire(near: &Who, far: &Node, limit: usize) -> (Wire, watch::Sender<LinkState>) {
    let reception = far.reception();
    let (peer, said) = (near.spec(), near.introduction(&far.clock));
    (reception.introduced)(peer.clone(), said).await.unwrap();
    let state = watch::Sender::new(LinkState::Connected {
        connection: 1,
        since: far.clock.wall(),
        name: far.who.name.clone(),
        incarnation: 1,
        introduction: far.who.introduction(&far.clock),
    });
    let refused = AtomicUsize::new(0);
    let send = move |outgoing: Outgoing| -> BoxFuture<'static, _> {
        let found = outgoing.frame.len();
        if found > limit {
            let before = refused.fetch_add(1, Ordering::Relaxed);
            assert!(before < 100, "the same is tried again and again");
            return Box::pin(std::future::ready(Err(LinkError::TooLarge {
                found,
                limit,
            })));
        }
        let registry = (reception.trust)(&peer);
        let frame = frame::open(&outgoing.frame, Trust::Registry(&registry)).unwrap();
        let answers: BoxFuture<'static, Vec<Answer>> = (reception.arrived)(Arrival {
            peer: peer.clone(),
            frame,
            durable: outgoing.durable,
        });
        Box::pin(answers.map(Ok))
    };
    (Wire::new(send, state.subscribe()), state)
}

async fn accepted(node: &Node) -> Vec<String> {
    let rows = node.journal("message.accepted").await;
    let text = |row: &volary_store::JournalRow| text_of(&message_in(&row.body).unwrap());
    rows.iter().map(text).collect()
}

/// Begins to send, and waits until the routes are there.
async fn connect(near: &Node, far: &Node) -> watch::Sender<LinkState> {
    let (wire, state) = wire(&near.who, far).await;
    near.peers
        .connect(&far.who.name, wire, &near.tasks)
        .unwrap();
    while near.peers.status()[0].routes.is_empty() {
        clock::sleep(Duration::from_millis(1)).await;
    }
    state
}

async fn send(node: &Node, topic: &str, texts: &[&str]) {
    for text in texts {
        let posted = node.send(node.message("s1", topic, text)).await;
        assert!(
            matches!(posted.admission, Admission::Queued | Admission::Sent),
            "{posted:?}"
        );
    }
}

async fn settled(node: &Node) {
    let empty = || {
        let status = node.peers.status().remove(0);
        assert_eq!(status.outbox.parked, 0, "{status:?}");
        status.outbox.ready + status.outbox.delayed + status.outbox.claimed == 0
    };
    assert!(eventually(Duration::from_secs(60), empty).await);
}

/// A node that is restored from a copy, or begun anew under its old name, counts its messages from before what its peer has
/// been told is settled: they must not be taken for old ones.
#[tokio::test(start_paused = true)]
async fn a_node_that_begins_again_with_an_empty_or_older_store_is_still_heard() {
    let clock = SimClock::shared();
    let (a, b) = sides();
    let far = Node::start(&b, &a, memory("b", clock.clone()), &Setup::default()).await;
    for (life, key) in ["same", "same", "other"].into_iter().enumerate() {
        clock::sleep(Duration::from_secs(5)).await;
        let mut who = a.clone();
        if key == "other" {
            let anew = Who::new("a", &[("s1", &[])]);
            (who.key, who.agents) = (anew.key, anew.agents);
        }
        // Nothing is left of the lives before.
        let near = Node::start(&who, &b, memory("a", clock.clone()), &Setup::default()).await;
        let _state = connect(&near, &far).await;
        let texts = [format!("one {life}"), format!("two {life}")];
        send(&near, "work", &[&texts[0], &texts[1]]).await;
        settled(&near).await;
        assert_eq!(accepted(&far).await[life * 2..], texts);
        near.crash().await;
    }
    far.crash().await;
}

/// A clock that is set: behind the time by so many seconds.
struct SetBack(SharedClock, Arc<AtomicU64>);

impl Clock for SetBack {
    fn wall(&self) -> Timestamp {
        self.0.wall() - Duration::from_secs(self.1.load(Ordering::Relaxed))
    }

    fn mono(&self) -> Mono {
        self.0.mono()
    }
}

fn set_back(clock: &SharedClock, seconds: u64) -> (SharedClock, Arc<AtomicU64>) {
    let behind = Arc::new(AtomicU64::new(seconds));
    (Arc::new(SetBack(clock.clone(), behind.clone())), behind)
}

/// As above, and its clock has not the time of then yet. New messages are no old ones; nothing is parked for a person.
#[tokio::test(start_paused = true)]
async fn a_node_that_begins_again_with_a_clock_that_is_behind_is_still_heard_and_says_so() {
    let clock = SimClock::shared();
    let (a, b) = sides();
    let far = Node::start(&b, &a, memory("b", clock.clone()), &Setup::default()).await;
    let near = Node::start(&a, &b, memory("a", clock.clone()), &Setup::default()).await;
    let _state = connect(&near, &far).await;
    send(&near, "work", &["before"]).await;
    settled(&near).await;
    near.crash().await;

    let (late, _) = set_back(&clock, 200);
    let near = Node::start(&a, &b, memory("a", late), &Setup::default()).await;
    let _state = connect(&near, &far).await;
    let many: Vec<String> = (0..300).map(|number| format!("{number:03}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    send(&near, "work", &many).await;
    settled(&near).await;
    send(&near, "work", &["last"]).await;
    settled(&near).await;
    let mut all = vec!["before"];
    all.extend(many);
    all.push("last");
    assert_eq!(accepted(&far).await, all);
    let told = near.journal("peer.behind").await;
    let body: serde_json::Value = serde_json::from_slice(&told[0].body).unwrap();
    assert_eq!((told.len(), body["peer"].as_str()), (1, Some("b")));
    assert!(body["reason"].as_str().unwrap().contains("clock"), "{body}");

    // Its next life counts on from there.
    let (store, _) = near.crash().await;
    let near = Node::start(&a, &b, store, &Setup::default()).await;
    let _state = connect(&near, &far).await;
    send(&near, "work", &["next"]).await;
    settled(&near).await;
    assert_eq!(accepted(&far).await.last().unwrap(), "next");
    assert_eq!(near.journal("peer.behind").await.len(), 1);
    near.crash().await;
    far.crash().await;
}

/// What waited in a life before, while another one has told the peer later numbers, may have been settled in that one: it is
/// set aside with a reason that says what happened.
#[tokio::test(start_paused = true)]
async fn what_an_older_copy_of_the_state_holds_is_set_aside_with_the_reason() {
    let clock = SimClock::shared();
    let (a, b) = sides();
    let far = Node::start(&b, &a, memory("b", clock.clone()), &Setup::default()).await;
    let near = Node::start(&a, &b, memory("a", clock.clone()), &Setup::default()).await;
    let state = connect(&near, &far).await;
    drop(state);
    send(&near, "work", &["copied"]).await;
    let (copy, _) = near.crash().await;
    clock::sleep(Duration::from_secs(5)).await;
    let near = Node::start(&a, &b, memory("a", clock.clone()), &Setup::default()).await;
    let _state = connect(&near, &far).await;
    send(&near, "work", &["one"]).await;
    settled(&near).await;
    near.crash().await;

    clock::sleep(Duration::from_secs(5)).await;
    let near = Node::start(&a, &b, copy, &Setup::default()).await;
    let _state = connect(&near, &far).await;
    let parked = || near.peers.status()[0].outbox.parked == 1;
    assert!(eventually(Duration::from_secs(60), parked).await);
    let told = near.journal("message.returned").await;
    let body = String::from_utf8_lossy(&told[0].body).into_owned();
    assert!(body.contains("settled"), "{body}");
    let reason = near.queues.parked(None, 10).await.unwrap()[0]
        .reason
        .clone();
    assert!(reason.contains("was set back"), "{reason}");
    near.crash().await;
    far.crash().await;
}

/// While the clock is wrong, what a peer says of its agents holds for another time, and nobody there can be reached. Once
/// it is right, they can, on the same connection.
#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_right_lets_peers_be_reached_again() {
    let clock = SimClock::shared();
    let (a, b) = sides();
    let far = Node::start(&b, &a, memory("b", clock.clone()), &Setup::default()).await;
    let (late, behind) = set_back(&clock, 86_400);
    let near = Node::start(&a, &b, memory("a", late.clone()), &Setup::default()).await;
    near.peers.watched_by(&Readiness::new(late));
    let (wire, _state) = wire(&a, &far).await;
    near.peers.connect(&b.name, wire, &near.tasks).unwrap();
    while near.journal("peer.objected").await.is_empty() {
        clock::sleep(Duration::from_millis(1)).await;
    }
    let told = near.journal("peer.objected").await;
    let body = String::from_utf8_lossy(&told[0].body).into_owned();
    assert!(body.contains("now is"), "{body}");
    let posted = near.send(near.message("s1", "work", "x")).await;
    assert_eq!(posted.admission, Admission::NoRoute);
    behind.store(0, Ordering::Relaxed);
    let reachable = || !near.peers.status()[0].routes.is_empty();
    assert!(eventually(Duration::from_secs(60), reachable).await);
    send(&near, "work", &["now"]).await;
    settled(&near).await;
    assert_eq!(accepted(&far).await, ["now"]);
    near.crash().await;
    far.crash().await;
}

/// Nobody confirms what is sent once: it is forgotten by number, in memory and in the store.
#[tokio::test(start_paused = true)]
async fn a_peer_that_only_sends_at_most_once_is_remembered_within_the_bound() {
    let clock = SimClock::shared();
    let (a, b) = sides();
    let mut setup = Setup::default();
    setup.post.seen = SeenConfig {
        max_confirmed: 10,
        ..SeenConfig::default()
    };
    let far = Node::start(&b, &a, memory("b", clock.clone()), &setup).await;
    let near = Node::start(&a, &b, memory("a", clock.clone()), &Setup::default()).await;
    let _state = connect(&near, &far).await;
    for number in 0..50 {
        send(&near, "tick", &[&format!("{number}")]).await;
        let arrived = || near.peers.status()[0].once.delivered == number + 1;
        assert!(eventually(Duration::from_secs(5), arrived).await);
    }
    let records = far.store.scan("message.seen/", None, 1000).await.unwrap();
    assert_eq!(records.len(), 10);
    near.crash().await;
    far.crash().await;
}

/// A link that is down changes its word with each attempt; giving up must not begin anew each time.
#[tokio::test(start_paused = true)]
async fn what_waits_too_long_is_parked_however_often_the_link_is_tried() {
    let clock = SimClock::shared();
    let (a, b) = sides();
    let setup = Setup {
        give_up: Some(Duration::from_secs(600)),
        ..Setup::default()
    };
    let far = Node::start(&b, &a, memory("b", clock.clone()), &Setup::default()).await;
    let near = Node::start(&a, &b, memory("a", clock.clone()), &setup).await;
    let state = connect(&near, &far).await;
    let down = |attempt| LinkState::Connecting {
        attempt,
        last_error: Some("nobody there".to_owned()),
    };
    state.send_replace(down(0));
    clock::sleep(Duration::from_millis(10)).await;
    send(&near, "work", &["late"]).await;
    for attempt in 1..30 {
        clock::sleep(Duration::from_secs(30)).await;
        state.send_replace(down(attempt));
    }
    assert_eq!(near.peers.status()[0].outbox.parked, 1);
    near.crash().await;
    far.crash().await;
}

/// A peer may take less in one frame than what is put into one here.
#[tokio::test(start_paused = true)]
async fn what_is_too_much_for_one_frame_goes_in_several() {
    let clock = SimClock::shared();
    let (a, b) = sides();
    let far = Node::start(&b, &a, memory("b", clock.clone()), &Setup::default()).await;
    let near = Node::start(&a, &b, memory("a", clock.clone()), &Setup::default()).await;
    let (wire, _state) = narrow_wire(&a, &far, 1500).await;
    let said = b.introduction(&clock);
    near.peers.introduced(&b.name, said).await.unwrap();
    let texts: Vec<String> = (0..100).map(|number| format!("{number:03}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    send(&near, "work", &texts).await;
    near.peers.connect(&b.name, wire, &near.tasks).unwrap();
    settled(&near).await;
    assert_eq!(accepted(&far).await, texts);
    near.crash().await;
    far.crash().await;
}

/// A store whose commits end never, from some moment on.
struct Stuck(Arc<AtomicBool>);

#[async_trait]
impl Detour for Stuck {
    async fn commit(&self, inner: &SharedStore, batch: Batch) -> Result<Committed, StoreError> {
        if self.0.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        inner.commit(batch).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_courier_that_hangs_is_seen_in_health_and_a_peer_that_is_down_is_not() {
    let clock = SimClock::shared();
    let (a, b) = sides();
    let stuck = Arc::new(AtomicBool::new(false));
    let store = over(memory("a", clock.clone()), Stuck(stuck.clone()));
    let readiness = Readiness::new(clock.clone());
    let far = Node::start(&b, &a, memory("b", clock.clone()), &Setup::default()).await;
    far.peers.watched_by(&readiness);
    let near = Node::start(&a, &b, store, &Setup::default()).await;
    near.peers.watched_by(&readiness);
    let state = connect(&near, &far).await;
    state.send_replace(LinkState::Connecting {
        attempt: 1,
        last_error: None,
    });
    clock::sleep(Duration::from_secs(600)).await;
    let report = readiness.health();
    assert!(report.ok && report.checks.len() == 2, "{report:?}");
    // It hangs in what its peer says of its agents.
    stuck.store(true, Ordering::Relaxed);
    let other = Who::new("b", &[("r2", &["work"])]);
    state.send_replace(LinkState::Connected {
        connection: 2,
        since: clock.wall(),
        name: b.name.clone(),
        incarnation: 2,
        introduction: other.introduction(&clock),
    });
    clock::sleep(Duration::from_secs(5)).await;
    let report = readiness.health();
    let bad: Vec<_> = report.checks.iter().filter(|check| !check.ok).collect();
    assert!(
        bad.len() == 1 && bad[0].name == "peer-courier b",
        "{report:?}"
    );
    near.crash().await;
    far.crash().await;
}

/// Each of them fits a frame, and not all of them fit one.
#[tokio::test(start_paused = true)]
async fn large_messages_at_most_once_go_in_several_frames() {
    let clock = SimClock::shared();
    let (a, b) = sides();
    let far = Node::start(&b, &a, memory("b", clock.clone()), &Setup::default()).await;
    let near = Node::start(&a, &b, memory("a", clock.clone()), &Setup::default()).await;
    let (wire, _state) = narrow_wire(&a, &far, 4 << 20).await;
    let said = b.introduction(&clock);
    near.peers.introduced(&b.name, said).await.unwrap();
    let large = "x".repeat(1_000_000);
    send(&near, "tick", &[large.as_str(); 6]).await;
    near.peers.connect(&b.name, wire, &near.tasks).unwrap();
    let ended = || {
        let once = near.peers.status()[0].once;
        once.offered == once.delivered + once.dropped + once.refused
    };
    assert!(eventually(Duration::from_secs(60), ended).await);
    assert_eq!(
        near.peers.status()[0].once.delivered,
        6,
        "{:?}",
        near.peers.status()[0].once
    );
}
