//! Durable delivery end to end over the store in memory: post, claim, act, acknowledge, fail, restart, replay.

#![expect(clippy::unwrap_used, reason = "a test whose setup fails has failed")]

use std::{sync::Arc, time::Duration};

use proptest::prelude::*;
use serde_json::{Value, json};
use volary_kernel::{
    clock::{Clock, ManualClock},
    id::{Name, Tenant, TraceId, Uid},
    metric::Metrics,
    retry::Backoff,
    secret::{Redactor, Secret},
};
use volary_messaging::{
    Admission, AgentId, Delivery, DeliveryKind, Direction, InboxError, InboxSpec, Inboxes, Mailbox,
    Message, MessageBuilder, Origin, Outcome, Parcel, Payload, Post, PostConfig, PutOptions,
    Refusal, ReplayQuery, ReplayRunner, SeenConfig, Sender, Topic,
    hook::{HookContext, MessageHook, Step},
    inbox::Claimed,
};
use volary_store::{
    Batch, Cause, Filter, MemoryConfig, MemoryStore, QueueError, Queues, Seq, SharedStore,
    queue::Nacked,
};

const NOW: Duration = Duration::ZERO;
const VISIBILITY: Duration = Duration::from_secs(30);

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn topic(text: &str) -> Topic {
    text.parse().unwrap()
}

/// One life of a node.
struct Node {
    inboxes: Inboxes,
    post: Post,
}

/// What outlives a node.
struct World {
    store: SharedStore,
    clock: ManualClock,
    secrets: Redactor,
    metrics: Metrics,
    max_seen: usize,
}

impl World {
    fn new() -> Self {
        let clock = ManualClock::default();
        let config = MemoryConfig {
            node: name("node"),
            max_record_bytes: 1 << 26,
            max_journal_bytes: 1 << 26,
        };
        let store: SharedStore = Arc::new(MemoryStore::new(config, clock.shared()));
        Self {
            store,
            clock,
            secrets: Redactor::default(),
            metrics: Metrics::default(),
            max_seen: 100,
        }
    }

    async fn start(&self) -> Node {
        self.start_with(Vec::new()).await
    }

    async fn start_with(&self, hooks: Vec<Arc<dyn MessageHook>>) -> Node {
        let queues = Queues::open(self.store.clone()).await.unwrap();
        let inboxes = Inboxes::new(
            queues,
            self.store.clone(),
            self.secrets.clone(),
            &self.metrics,
        );
        let seen = SeenConfig {
            max: self.max_seen,
            ttl: Duration::from_secs(3600),
            ..SeenConfig::default()
        };
        let config = PostConfig {
            hooks,
            secrets: self.secrets.clone(),
            seen,
            ..PostConfig::default()
        };
        let post = Post::open(
            inboxes.clone(),
            self.store.clone(),
            config,
            self.clock.shared(),
            &self.metrics,
        );
        Node {
            post: post.await.unwrap(),
            inboxes,
        }
    }

    fn draft(&self, from: &str) -> MessageBuilder {
        Message::builder(Sender::new(
            AgentId::from_bytes([9; 32]),
            name(from),
            Tenant::default(),
        ))
    }

    fn about(&self, text: &str, body: &str) -> Message {
        self.draft("source")
            .topic(topic(text))
            .json(body)
            .unwrap()
            .build(self.clock.wall())
            .unwrap()
    }

    async fn commit(&self, tx: Batch) {
        self.store.commit(tx).await.unwrap();
    }

    async fn kinds(&self) -> Vec<String> {
        let page = self
            .store
            .read(Seq::FIRST, &Filter::all(), 1000)
            .await
            .unwrap();
        page.rows.into_iter().map(|row| row.kind).collect()
    }

    async fn bodies(&self, kind: &str) -> Vec<Value> {
        let page = self
            .store
            .read(Seq::FIRST, &Filter::kind(kind), 1000)
            .await
            .unwrap();
        page.rows
            .iter()
            .map(|row| serde_json::from_slice(&row.body).unwrap())
            .collect()
    }
}

impl Node {
    fn open(&self, agent: &str, topics: &[&str]) -> Mailbox {
        self.open_with(agent, topics, |_| {})
    }

    fn open_with(
        &self,
        agent: &str,
        topics: &[&str],
        edit: impl FnOnce(&mut InboxSpec),
    ) -> Mailbox {
        let topics = topics.iter().map(|text| topic(text)).collect();
        let mut spec = InboxSpec::new(Tenant::default(), name(agent), topics);
        spec.backoff = Backoff {
            base: Duration::from_secs(1),
            factor: 1.0,
            max: Duration::from_secs(1),
            jitter: 0.0,
        };
        (spec.visibility, spec.max_attempts) = (VISIBILITY, 3);
        edit(&mut spec);
        self.inboxes.open(spec).unwrap()
    }

    async fn send(&self, message: Message) -> Admission {
        self.post
            .send(message, Origin::Minted)
            .await
            .unwrap()
            .0
            .admission
    }
}

async fn claim(mailbox: &Mailbox) -> Option<Claimed> {
    mailbox.claim("replica-0", 1, NOW).await.unwrap().pop()
}

fn text(delivery: &Delivery) -> String {
    delivery.payload.parse_json().unwrap()
}

#[tokio::test]
async fn a_message_is_handled_and_what_follows_is_one_commit_and_one_chain_of_causes() {
    let world = World::new();
    let node = world.start().await;
    let (indexer, digest) = (
        node.open("indexer", &["notes"]),
        node.open("digest", &["notes/indexed"]),
    );
    let first = world.about("notes", "a");
    let trace = first.trace();
    assert_eq!(node.send(first.clone()).await, Admission::Queued);
    assert!(claim(&digest).await.is_none());

    let claimed = claim(&indexer).await.unwrap();
    assert_eq!(
        (text(&claimed.delivery), claimed.delivery.attempt),
        ("a".into(), 1)
    );
    assert_eq!(
        claimed.delivery.idempotency_key,
        format!("{}/indexer", first.id())
    );
    let mut tx = Batch::new();
    let acked = indexer.ack(&mut tx, &claimed, 1).unwrap();
    let result = world
        .draft("indexer")
        .topic(topic("notes/indexed"))
        .trace(trace)
        .json("b")
        .unwrap();
    let result = result.build(world.clock.wall()).unwrap();
    let posted = node
        .post
        .post(&mut tx, result, Origin::Minted, acked)
        .await
        .unwrap();
    assert_eq!(posted.admission, Admission::Queued);
    assert!(
        claim(&digest).await.is_none(),
        "nothing is there before the commit"
    );
    world.commit(tx).await;
    let got = claim(&digest).await.unwrap();
    assert_eq!(
        (text(&got.delivery), got.delivery.trace),
        ("b".into(), trace)
    );

    let page = world
        .store
        .read(Seq::FIRST, &Filter::trace(trace), 100)
        .await
        .unwrap();
    let chain: Vec<_> = page
        .rows
        .iter()
        .map(|row| (row.kind.as_str(), row.cause.map(|seq| seq.0)))
        .collect();
    let expected = [
        ("message.accepted", None),
        ("delivery.claimed", Some(1)),
        ("delivery.acked", Some(1)),
        ("message.accepted", Some(3)),
        ("delivery.claimed", Some(4)),
    ];
    assert_eq!(chain, expected);
}

#[tokio::test]
async fn actions_of_an_attempt_that_does_not_end_are_not_sent() {
    let world = World::new();
    let node = world.start().await;
    let (a, b) = (node.open("a", &["t"]), node.open("b", &["out"]));
    node.send(world.about("t", "x")).await;
    let claimed = claim(&a).await.unwrap();
    let mut tx = Batch::new();
    a.ack(&mut tx, &claimed, 1).unwrap();
    node.post
        .post(
            &mut tx,
            world.about("out", "y"),
            Origin::Minted,
            Cause::None,
        )
        .await
        .unwrap();
    drop(tx);
    assert!(claim(&b).await.is_none());
    world.clock.advance(VISIBILITY);
    assert_eq!(
        claim(&a).await.unwrap().delivery.attempt,
        2,
        "it lapsed and is handed out again"
    );
}

#[tokio::test]
async fn a_late_ack_is_fenced_together_with_what_it_sends() {
    let world = World::new();
    let node = world.start().await;
    let (a, b) = (node.open("a", &["t"]), node.open("b", &["out"]));
    node.send(world.about("t", "x")).await;
    let slow = claim(&a).await.unwrap();
    let mut late = Batch::new();
    a.ack(&mut late, &slow, 1).unwrap();
    node.post
        .post(
            &mut late,
            world.about("out", "y"),
            Origin::Minted,
            Cause::None,
        )
        .await
        .unwrap();
    world.clock.advance(VISIBILITY);
    let second = claim(&a).await.unwrap();
    assert!(
        world.store.commit(late).await.is_err(),
        "the batch conflicts as a whole"
    );
    assert!(claim(&b).await.is_none());
    assert!(matches!(
        a.ack(&mut Batch::new(), &slow, 0),
        Err(InboxError::Queue(QueueError::Lapsed(_)))
    ));
    let mut tx = Batch::new();
    a.ack(&mut tx, &second, 0).unwrap();
    world.commit(tx).await;
    assert_eq!(a.stats().claimed, 0);
}

#[tokio::test]
async fn failures_back_off_and_end_parked_where_a_person_can_let_them_go_on() {
    let world = World::new();
    let node = world.start().await;
    let a = node.open("a", &["t"]);
    let (posted, _) = node
        .post
        .send(world.about("t", "x"), Origin::Minted)
        .await
        .unwrap();
    for attempt in 1..=3 {
        let claimed = claim(&a).await.unwrap();
        assert_eq!(claimed.delivery.attempt, attempt);
        let mut tx = Batch::new();
        let nacked = a.nack(&mut tx, &claimed, None, "exit status 1").unwrap();
        world.commit(tx).await;
        let expected = if attempt < 3 {
            Nacked::Retry(Duration::from_secs(1))
        } else {
            Nacked::Parked
        };
        assert_eq!(nacked, expected);
        assert!(claim(&a).await.is_none(), "it waits");
        world.clock.advance(Duration::from_secs(1));
    }
    let parked = Outcome::Parked {
        reason: "exit status 1".into(),
    };
    assert_eq!(node.inboxes.outcome(&posted.items()).await.unwrap(), parked);
    let (one, failed) = ("delivery.claimed", "delivery.failed");
    assert_eq!(
        world.kinds().await,
        [
            "message.accepted",
            one,
            failed,
            one,
            failed,
            one,
            "delivery.parked",
            failed
        ]
    );
    let queues = Queues::open(world.store.clone()).await.unwrap();
    assert_eq!(queues.parked(None, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_topic_reaches_every_subscriber_and_its_outcome_is_the_worst() {
    let world = World::new();
    let node = world.start().await;
    let (a, b) = (node.open("a", &["t"]), node.open("b", &["t"]));
    let (posted, _) = node
        .post
        .send(world.about("t", "x"), Origin::Minted)
        .await
        .unwrap();
    assert_eq!(posted.deliveries.len(), 2);
    let (first, second) = (claim(&a).await.unwrap(), claim(&b).await.unwrap());
    assert_ne!(
        first.delivery.idempotency_key,
        second.delivery.idempotency_key
    );
    let mut tx = Batch::new();
    a.ack(&mut tx, &first, 0).unwrap();
    b.park(&mut tx, &second, "look at this").unwrap();
    world.commit(tx).await;
    let outcome = node.inboxes.outcome(&posted.items()).await.unwrap();
    assert_eq!(
        outcome,
        Outcome::Parked {
            reason: "look at this".into()
        }
    );
}

#[tokio::test]
async fn nobody_to_deliver_to_is_said_and_journaled() {
    let world = World::new();
    let node = world.start().await;
    node.open("source", &["t"]);
    assert_eq!(
        node.send(world.about("t", "x")).await,
        Admission::NoRoute,
        "only the sender subscribes"
    );
    let to = world
        .draft("source")
        .to(name("ghost"))
        .build(world.clock.wall())
        .unwrap();
    assert_eq!(node.send(to).await, Admission::NoRoute);
    assert_eq!(world.kinds().await, ["message.refused", "message.refused"]);
    assert_eq!(world.bodies("message.refused").await[1]["to"], "ghost");
}

#[tokio::test]
async fn one_full_inbox_refuses_the_message_for_all_and_leaves_nothing() {
    let world = World::new();
    let node = world.start().await;
    let large = node.open("large", &["t"]);
    let small = node.open_with("small", &["t"], |spec| spec.max_items = 1);
    assert_eq!(node.send(world.about("t", "1")).await, Admission::Queued);
    match node.send(world.about("t", "2")).await {
        Admission::Refused(Refusal::Full { what, retry_after }) => {
            assert!(
                what.contains("small") && retry_after > Duration::ZERO,
                "{what}"
            );
        }
        other => panic!("{other:?}"),
    }
    assert_eq!((large.stats().ready, small.stats().ready), (1, 1));
    assert_eq!(
        world.kinds().await,
        ["message.accepted"],
        "a refusal that passes is not journaled"
    );
}

#[tokio::test]
async fn a_secret_in_a_message_is_refused_and_appears_nowhere() {
    let world = World::new();
    world.secrets.add(&Secret::new("canary-4711")).unwrap();
    let node = world.start().await;
    let a = node.open("a", &["t"]);
    let refused = Admission::Refused(Refusal::Secret);
    assert_eq!(node.send(world.about("t", "my canary-4711")).await, refused);
    assert_eq!(node.send(world.about("t/canary-4711", "x")).await, refused);
    node.send(world.about("t", "x")).await;
    let claimed = claim(&a).await.unwrap();
    let mut tx = Batch::new();
    a.nack(&mut tx, &claimed, None, "said canary-4711 and died")
        .unwrap();
    world.commit(tx).await;
    let page = world
        .store
        .read(Seq::FIRST, &Filter::all(), 100)
        .await
        .unwrap();
    for row in page.rows {
        let body = String::from_utf8_lossy(&row.body).into_owned();
        assert!(!body.contains("canary-4711"), "{}: {body}", row.kind);
    }
    assert_eq!(
        world.bodies("delivery.failed").await[0]["reason"],
        "said [redacted] and died"
    );
}

#[tokio::test]
async fn the_same_foreign_message_again_gets_the_first_result_also_after_a_restart() {
    let world = World::new();
    let node = world.start().await;
    let a = node.open("a", &["t"]);
    let id = Uid::generate();
    let build = |body: &str| {
        let draft = world
            .draft("client")
            .id(id)
            .topic(topic("t"))
            .json(body)
            .unwrap();
        draft.build(world.clock.wall()).unwrap()
    };
    let (first, _) = node.post.send(build("x"), Origin::Foreign).await.unwrap();
    world.clock.advance(Duration::from_secs(1));
    let (again, committed) = node.post.send(build("x"), Origin::Foreign).await.unwrap();
    assert_eq!(
        (&again.admission, &again.deliveries),
        (&first.admission, &first.deliveries)
    );
    assert!(committed.is_none());
    let (other, _) = node.post.send(build("y"), Origin::Foreign).await.unwrap();
    assert_eq!(other.admission, Admission::Refused(Refusal::Replay));
    assert_eq!(a.stats().ready, 1);
    drop((node, a));
    let node = world.start().await;
    let a = node.open("a", &["t"]);
    let (again, _) = node.post.send(build("x"), Origin::Foreign).await.unwrap();
    assert_eq!(again.deliveries, first.deliveries);
    assert_eq!(a.stats().ready, 1);
}

#[tokio::test]
async fn one_message_posted_twice_at_once_is_taken_in_once() {
    let world = World::new();
    let node = world.start().await;
    let a = node.open("a", &["t"]);
    let message = world.about("t", "x");
    let one = async {
        node.post
            .send(message.clone(), Origin::Foreign)
            .await
            .unwrap()
            .0
            .deliveries
    };
    let two = async {
        node.post
            .send(message.clone(), Origin::Foreign)
            .await
            .unwrap()
            .0
            .deliveries
    };
    let (one, two) = tokio::join!(one, two);
    assert_eq!(one, two);
    assert_eq!(a.stats().ready, 1);
}

#[tokio::test]
async fn remembered_ids_are_bounded_and_what_is_forgotten_is_counted() {
    let world = World {
        max_seen: 3,
        ..World::new()
    };
    let node = world.start().await;
    node.open("a", &["t"]);
    for _ in 0..5 {
        node.post
            .send(world.about("t", "x"), Origin::Foreign)
            .await
            .unwrap();
    }
    assert_eq!(
        world
            .store
            .scan("message.seen/", None, 100)
            .await
            .unwrap()
            .len(),
        3
    );
    let text = world.metrics.encode_text();
    assert!(
        text.contains("volary_message_ids_forgotten_total 2"),
        "{text}"
    );
}

#[tokio::test]
async fn a_message_past_its_deadline_is_not_handed_out_and_its_sender_learns_it() {
    let world = World::new();
    let node = world.start().await;
    let a = node.open("a", &["t"]);
    let deadline = world.clock.wall() + Duration::from_secs(5);
    let message = world
        .draft("s")
        .topic(topic("t"))
        .deadline(deadline)
        .build(world.clock.wall())
        .unwrap();
    let (posted, _) = node.post.send(message, Origin::Minted).await.unwrap();
    world.clock.advance(Duration::from_secs(6));
    assert!(claim(&a).await.is_none());
    assert_eq!(
        node.inboxes.outcome(&posted.items()).await.unwrap(),
        Outcome::DeadlineExceeded
    );
    assert_eq!(
        world.kinds().await,
        ["message.accepted", "delivery.expired"]
    );
}

#[tokio::test]
async fn a_parcel_is_delivered_and_a_newer_one_takes_the_place_of_one_that_waits() {
    let world = World::new();
    let node = world.start().await;
    let a = node.open("a", &[]);
    let parcel = |version: u32| Parcel {
        kind: DeliveryKind::Dispatch,
        topic: Some(topic("notes")),
        sender: "source:notes".into(),
        trace: TraceId::generate(),
        idempotency_key: format!("change-{version}"),
        payload: Payload::json(&json!({"version": version})).unwrap(),
    };
    for version in 1..=2 {
        let mut tx = Batch::new();
        let options = PutOptions {
            coalesce: Some("page-a".into()),
            ..PutOptions::default()
        };
        node.inboxes
            .put(
                &mut tx,
                (&Tenant::default(), &name("a")),
                &parcel(version),
                options,
            )
            .unwrap();
        world.commit(tx).await;
    }
    let claimed = claim(&a).await.unwrap();
    assert_eq!(
        (claimed.delivery.kind, &*claimed.delivery.idempotency_key),
        (DeliveryKind::Dispatch, "change-2")
    );
    assert!(claim(&a).await.is_none());
    let ghost = node.inboxes.put(
        &mut Batch::new(),
        (&Tenant::default(), &name("ghost")),
        &parcel(1),
        PutOptions::default(),
    );
    assert!(matches!(ghost, Err(InboxError::Unknown { .. })));
}

#[tokio::test]
async fn an_unreadable_delivery_is_parked_and_does_not_stop_the_others() {
    let world = World::new();
    let node = world.start().await;
    let a = node.open("a", &["t"]);
    let queues = Queues::open(world.store.clone()).await.unwrap();
    let raw = queues
        .queue(volary_store::QueueConfig::new("inbox/default/a"))
        .unwrap();
    let mut tx = Batch::new();
    raw.enqueue(
        &mut tx,
        volary_store::NewItem::new(Tenant::default(), &b"junk"[..]),
    )
    .unwrap();
    world.commit(tx).await;
    drop((node, a, raw, queues));
    let node = world.start().await;
    let a = node.open("a", &["t"]);
    node.send(world.about("t", "good")).await;
    let claimed = a.claim("replica-0", 10, NOW).await.unwrap();
    assert_eq!(
        claimed
            .iter()
            .map(|claimed| text(&claimed.delivery))
            .collect::<Vec<_>>(),
        ["good"]
    );
    assert_eq!(a.stats().parked, 1);
}

#[tokio::test]
async fn urgent_messages_are_claimed_first() {
    let world = World::new();
    let node = world.start().await;
    let a = node.open("a", &["t"]);
    for (body, priority) in [("low", 1), ("normal", 128), ("high", 250)] {
        let message = world
            .about("t", body)
            .edit()
            .priority(volary_messaging::Priority(priority));
        node.send(message.build(world.clock.wall()).unwrap()).await;
    }
    let order: Vec<_> = a
        .claim("r", 3, NOW)
        .await
        .unwrap()
        .iter()
        .map(|claimed| text(&claimed.delivery))
        .collect();
    assert_eq!(order, ["high", "normal", "low"]);
}

/// Marks what it sees, at both stages; takes out what says so.
struct Mark;

impl MessageHook for Mark {
    fn name(&self) -> &'static str {
        "mark"
    }
    fn pre_send<'a>(&'a self, message: Message, _: HookContext<'a>) -> Step<'a> {
        if message.headers().get("drop").is_some() {
            return Step::drop("it says so");
        }
        Step::pass(
            message
                .edit()
                .header("pre", "1")
                .unwrap()
                .build(message.sent_at())
                .unwrap(),
        )
    }
    fn post_receive<'a>(&'a self, message: Message, _: HookContext<'a>) -> Step<'a> {
        assert_eq!(message.headers().get("pre"), Some("1"));
        Step::pass(
            message
                .edit()
                .header("post", "1")
                .unwrap()
                .build(message.sent_at())
                .unwrap(),
        )
    }
}

#[tokio::test]
async fn hooks_change_and_drop_durable_messages_and_the_sender_is_told() {
    let world = World::new();
    let node = world.start_with(vec![Arc::new(Mark)]).await;
    let a = node.open("a", &["t"]);
    node.send(world.about("t", "x")).await;
    let claimed = claim(&a).await.unwrap();
    assert_eq!(
        claimed.delivery.headers.iter().collect::<Vec<_>>(),
        [("post", "1"), ("pre", "1")]
    );
    let dropped = world
        .about("t", "x")
        .edit()
        .header("drop", "1")
        .unwrap()
        .build(world.clock.wall())
        .unwrap();
    let told = Admission::Dropped {
        hook: "mark".into(),
        reason: "it says so".into(),
    };
    assert_eq!(node.send(dropped).await, told);
    assert_eq!(world.bodies("message.dropped").await.len(), 1);
}

#[tokio::test]
async fn a_replay_plan_holds_the_messages_as_they_were_in_order() {
    let world = World::new();
    let node = world.start().await;
    node.open("a", &["t"]);
    node.open("b", &["t", "u"]);
    let start = world.clock.wall();
    let messages = [
        world.about("t", "1"),
        world.about("u", "2"),
        world.about("t", "3"),
    ];
    for message in &messages {
        node.send(message.clone()).await;
        world.clock.advance(Duration::from_secs(1));
    }
    node.send(world.about("nobody", "4")).await;
    let runner = ReplayRunner::new(world.store.clone());
    let plan = |query: ReplayQuery| {
        let runner = runner.clone();
        async move {
            let plan = runner.plan(&query).await.unwrap();
            assert!(plan.unreadable.is_empty() && plan.next.is_none());
            plan.messages
                .into_iter()
                .map(|planned| (planned.agent.to_string(), planned.message))
                .collect::<Vec<_>>()
        }
    };
    let [one, two, three] = messages.clone();
    let inbound = ReplayQuery {
        direction: Some(Direction::Inbound),
        ..ReplayQuery::default()
    };
    let to_b = plan(ReplayQuery {
        agent: Some(name("b")),
        ..inbound.clone()
    })
    .await;
    assert_eq!(
        to_b,
        [one.clone(), two.clone(), three.clone()].map(|message| ("b".to_owned(), message))
    );
    let to_a = plan(ReplayQuery {
        agent: Some(name("a")),
        ..inbound.clone()
    })
    .await;
    assert_eq!(to_a, [one, three].map(|message| ("a".to_owned(), message)));
    let of_trace = plan(ReplayQuery {
        trace: Some(two.trace()),
        ..ReplayQuery::default()
    })
    .await;
    assert_eq!(
        of_trace,
        [
            ("source".to_owned(), two.clone()),
            ("b".to_owned(), two.clone())
        ]
    );
    let late = ReplayQuery {
        from: Some(start + Duration::from_secs(1)),
        ..inbound.clone()
    };
    assert_eq!(plan(late.clone()).await.len(), 3);
    assert_eq!(
        plan(ReplayQuery {
            // Both bounds belong to the range.
            to: Some(start + Duration::from_millis(1999)),
            ..late
        })
        .await
        .len(),
        1
    );
    let other = ReplayQuery {
        tenant: Some("other".parse().unwrap()),
        ..inbound
    };
    assert!(plan(other).await.is_empty());
}

/// What a worker does with the delivery it claims next, or what happens to the node.
#[derive(Debug, Clone, Copy)]
enum Event {
    Send,
    Finish,
    Fail,
    Lapse,
    Crash,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        3 => Just(Event::Send),
        4 => Just(Event::Finish),
        1 => Just(Event::Fail),
        1 => Just(Event::Lapse),
        1 => Just(Event::Crash),
    ];
    proptest::collection::vec(event, 1..60)
}

async fn run(events: Vec<Event>) -> Result<(), TestCaseError> {
    let world = World::new();
    let open = |node: &Node| {
        let worker = node.open_with("worker", &["work"], |spec| spec.max_attempts = 1000);
        (worker, node.open("sink", &["done"]))
    };
    let mut node = world.start().await;
    let (mut worker, mut sink) = open(&node);
    let (mut sent, mut finished) = (0u32, 0u32);
    for event in events {
        if let Event::Send = event {
            node.send(world.about("work", &sent.to_string())).await;
            sent += 1;
            continue;
        }
        if let Some(claimed) = claim(&worker).await {
            let mut tx = Batch::new();
            let acked = worker.ack(&mut tx, &claimed, 1).unwrap();
            let result = world.about("done", &claimed.delivery.idempotency_key);
            node.post
                .post(&mut tx, result, Origin::Minted, acked)
                .await
                .unwrap();
            match event {
                Event::Finish => {
                    world.commit(tx).await;
                    finished += 1;
                }
                Event::Fail => {
                    drop(tx);
                    let mut tx = Batch::new();
                    worker.nack(&mut tx, &claimed, Some(NOW), "failed").unwrap();
                    world.commit(tx).await;
                }
                _ => drop(tx),
            }
        }
        if let Event::Lapse = event {
            world.clock.advance(VISIBILITY);
        }
        if let Event::Crash = event {
            drop((node, worker, sink));
            node = world.start().await;
            (worker, sink) = open(&node);
        }
    }
    world.clock.advance(VISIBILITY);
    while let Some(claimed) = claim(&worker).await {
        let mut tx = Batch::new();
        worker.ack(&mut tx, &claimed, 1).unwrap();
        let result = world.about("done", &claimed.delivery.idempotency_key);
        node.post
            .post(&mut tx, result, Origin::Minted, Cause::None)
            .await
            .unwrap();
        world.commit(tx).await;
        finished += 1;
    }
    prop_assert_eq!(finished, sent, "each is finished once");
    let mut results: Vec<_> = sink
        .claim("r", 1000, NOW)
        .await
        .unwrap()
        .iter()
        .map(|claimed| text(&claimed.delivery))
        .collect();
    results.sort();
    results.dedup();
    prop_assert_eq!(results.len(), sent as usize, "each result is there once");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_happens_each_message_is_finished_once_and_its_result_sent_once(events in events()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(events))?;
    }
}
