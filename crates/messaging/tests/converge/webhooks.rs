//! Webhooks, in and out, without HTTP: what is believed, what it becomes, what is tried again and what is parked.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use aws_lc_rs::hmac;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use futures_util::{FutureExt as _, future};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use volary_kernel::{
    clock::{Clock as _, ManualClock, SystemClock},
    id::{Name, Tenant},
    metric::Metrics,
    retry::Backoff,
    secret::{Redactor, Secret},
};
use volary_messaging::{
    AgentId, InboxSpec, Inboxes, Mailbox, Message, Origin, Post, PostConfig, Sender, Topic,
    webhook::{
        Arrived, BreakerConfig, Duplicates, Emit, Inbound, Outgoing, ProviderProfile, Received,
        Rejection, SendProblem, Sink, Target,
    },
};
use volary_store::{MemoryConfig, MemoryStore, Queues, SharedStore};

const SECRET: &str = "correct horse battery staple";

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn topic() -> Topic {
    "hooks/in".parse().unwrap()
}

struct World {
    clock: ManualClock,
    store: SharedStore,
    inboxes: Inboxes,
    post: Post,
    metrics: Metrics,
}

impl World {
    async fn new() -> Self {
        let clock = ManualClock::default();
        clock.advance(Duration::from_secs(1_000_000));
        let config = MemoryConfig {
            node: name("node"),
            max_record_bytes: 1 << 26,
            max_journal_bytes: 1 << 26,
        };
        let store: SharedStore = Arc::new(MemoryStore::new(config, clock.shared()));
        let metrics = Metrics::default();
        let queues = Queues::open(store.clone()).await.unwrap();
        let inboxes = Inboxes::new(queues, store.clone(), Redactor::default(), &metrics);
        let post = Post::open(
            inboxes.clone(),
            store.clone(),
            PostConfig::default(),
            clock.shared(),
            &metrics,
        );
        Self {
            post: post.await.unwrap(),
            inboxes,
            clock,
            store,
            metrics,
        }
    }

    fn agent(&self, spec: InboxSpec) -> Mailbox {
        self.inboxes.open(spec).unwrap()
    }

    fn reader(&self) -> Mailbox {
        self.agent(InboxSpec::new(
            Tenant::default(),
            name("reader"),
            vec![topic()],
        ))
    }

    fn sender(&self) -> Sender {
        Sender::new(
            AgentId::from_bytes([9; 32]),
            name("webhook"),
            Tenant::default(),
        )
    }

    fn inbound(&self, profile: ProviderProfile, emit: Emit) -> Inbound {
        Inbound::new(
            [(profile, emit)],
            self.sender(),
            self.post.clone(),
            self.store.clone(),
            self.clock.shared(),
            &self.metrics,
        )
    }

    fn signed(&self) -> Inbound {
        let profile = ProviderProfile {
            required: vec!["kind".into()],
            ..ProviderProfile::signed(name("shop"), Secret::new(SECRET))
        };
        self.inbound(profile, Emit::Message(topic()))
    }

    fn now(&self) -> i64 {
        self.clock.wall().as_micros() / 1_000_000
    }
}

fn mac(parts: &[&[u8]]) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    hmac::sign(&key, &parts.concat()).as_ref().to_vec()
}

fn event(id: &str) -> String {
    json!({"id": id, "kind": "paid", "amount": 3}).to_string()
}

/// A request whose signature covers `stamp` and `body`.
async fn send(inbound: &Inbound, provider: &str, stamp: i64, body: &str) -> Received {
    let tag = hex::encode(mac(&[stamp.to_string().as_bytes(), b".", body.as_bytes()]));
    deliver(
        inbound,
        provider,
        body,
        &[
            ("x-webhook-timestamp", &stamp.to_string()),
            ("x-webhook-signature", &tag),
        ],
    )
    .await
}

async fn deliver(
    inbound: &Inbound,
    provider: &str,
    body: &str,
    headers: &[(&str, &str)],
) -> Received {
    let mut headers = headers.to_vec();
    headers.push(("content-type", "application/json; charset=utf-8"));
    let body = Bytes::copy_from_slice(body.as_bytes());
    inbound
        .receive(provider, Arrived { headers, body })
        .await
        .unwrap()
}

async fn claimed(mailbox: &Mailbox) -> Vec<Value> {
    let claims = mailbox.claim("test", 100, Duration::ZERO).await.unwrap();
    claims
        .iter()
        .map(|claimed| claimed.delivery.payload.parse_json().unwrap())
        .collect()
}

/// T (webhooks): a valid signature gives 202 and a message.
#[tokio::test]
async fn a_valid_signature_is_accepted_and_becomes_a_message() {
    let world = World::new().await;
    let (reader, inbound) = (world.reader(), world.signed());
    let received = send(&inbound, "shop", world.now(), &event("e1")).await;
    assert_eq!((received.status(), received), (202, Received::Accepted));
    let claims = reader.claim("test", 10, Duration::ZERO).await.unwrap();
    let delivery = &claims[0].delivery;
    assert_eq!(delivery.payload.bytes(), event("e1").as_bytes());
    assert_eq!(delivery.sender, "webhook");
    let header = |name| delivery.headers.get(name);
    assert_eq!(
        (header("webhook-provider"), header("webhook-id")),
        (Some("shop"), Some("e1"))
    );
}

/// T (webhooks): `emit_as` task.
#[tokio::test]
async fn an_event_can_become_a_task_in_the_same_commit() {
    let world = World::new().await;
    let tasks = Arc::new(Mutex::new(Vec::new()));
    let seen = tasks.clone();
    let emit = Emit::Task(Arc::new(move |tx, event| {
        let key = volary_store::Key::new(format!("task/{}", event.id.clone().unwrap())).unwrap();
        tx.put(key, event.body.clone(), volary_store::Expect::Absent);
        seen.lock().push(event.id);
        future::ready(Ok(())).boxed()
    }));
    let inbound = world.inbound(
        ProviderProfile::signed(name("shop"), Secret::new(SECRET)),
        emit,
    );
    assert_eq!(
        send(&inbound, "shop", world.now(), &event("e1")).await,
        Received::Accepted
    );
    assert_eq!(*tasks.lock(), [Some("e1".to_owned())]);
    let key = volary_store::Key::new("task/e1").unwrap();
    assert_eq!(
        world.store.get(&key).await.unwrap().unwrap().value,
        event("e1").as_bytes()
    );
}

/// T (webhooks): unknown provider → 401.
#[tokio::test]
async fn an_unknown_provider_is_unauthorized() {
    let world = World::new().await;
    let received = send(&world.signed(), "nobody", world.now(), &event("e1")).await;
    assert_eq!(
        (received.status(), received),
        (401, Received::Rejected(Rejection::Provider))
    );
}

/// T (webhooks): stale timestamp → 401. Improve: the timestamp is signed, so it can not be freshened.
#[tokio::test]
async fn a_stale_timestamp_is_unauthorized_and_can_not_be_made_fresh() {
    let world = World::new().await;
    let (reader, inbound) = (world.reader(), world.signed());
    for off in [-301, 301] {
        let received = send(&inbound, "shop", world.now() + off, &event("e1")).await;
        assert_eq!(
            (received.status(), received),
            (401, Received::Rejected(Rejection::Stale))
        );
    }
    let old = hex::encode(mac(&[b"5.", event("e1").as_bytes()]));
    let fresh = world.now().to_string();
    let headers = [
        ("x-webhook-timestamp", fresh.as_str()),
        ("x-webhook-signature", &old),
    ];
    let received = deliver(&inbound, "shop", &event("e1"), &headers).await;
    assert_eq!(received, Received::Rejected(Rejection::Signature));
    assert!(claimed(&reader).await.is_empty());
}

/// T (webhooks): duplicate id → 401.
#[tokio::test]
async fn a_duplicate_id_is_unauthorized_whatever_else_is_new() {
    let world = World::new().await;
    let (reader, inbound) = (world.reader(), world.signed());
    assert_eq!(
        send(&inbound, "shop", world.now(), &event("e1")).await,
        Received::Accepted
    );
    world.clock.advance(Duration::from_secs(2));
    let other = json!({"id": "e1", "kind": "paid", "amount": 4}).to_string();
    for body in [event("e1"), other] {
        let received = send(&inbound, "shop", world.now(), &body).await;
        assert_eq!(
            (received.status(), received),
            (401, Received::Rejected(Rejection::Duplicate))
        );
    }
    assert_eq!(claimed(&reader).await.len(), 1);
    // Longer than it is remembered: by then the old request is stale by its signed time.
    world.clock.advance(Duration::from_secs(3601));
    let received = send(&inbound, "shop", world.now() - 3603, &event("e1")).await;
    assert_eq!(received, Received::Rejected(Rejection::Stale));
}

/// T (webhooks): missing field → 401.
#[tokio::test]
async fn a_missing_field_is_unauthorized() {
    let world = World::new().await;
    let inbound = world.signed();
    for (body, field) in [(json!({"id": "a"}), "kind"), (json!({"kind": "a"}), "id")] {
        let received = send(&inbound, "shop", world.now(), &body.to_string()).await;
        assert_eq!(
            (received.status(), received),
            (
                401,
                Received::Rejected(Rejection::MissingField(field.into()))
            )
        );
    }
}

/// Improve: the signature is checked before anything in the body is read, and over its raw bytes.
#[tokio::test]
async fn nothing_is_parsed_before_the_signature_is_found_good() {
    let world = World::new().await;
    let inbound = world.signed();
    let stamp = world.now().to_string();
    let wrong = [
        ("x-webhook-timestamp", stamp.as_str()),
        ("x-webhook-signature", "00"),
    ];
    assert_eq!(
        deliver(&inbound, "shop", "not json", &wrong).await,
        Received::Rejected(Rejection::Signature)
    );
    assert_eq!(
        send(&inbound, "shop", world.now(), "not json").await,
        Received::Rejected(Rejection::NotAnObject)
    );
    // The same JSON, spelled otherwise, under the signature of the first spelling.
    let tag = hex::encode(mac(&[stamp.as_bytes(), b".", event("e1").as_bytes()]));
    let headers = [
        ("x-webhook-timestamp", stamp.as_str()),
        ("x-webhook-signature", &tag),
    ];
    let spaced = event("e1").replace(',', ", ");
    assert_eq!(
        deliver(&inbound, "shop", &spaced, &headers).await,
        Received::Rejected(Rejection::Signature)
    );
    let twice = [headers[0], headers[1], headers[1]];
    assert!(matches!(
        deliver(&inbound, "shop", &event("e1"), &twice).await,
        Received::Rejected(Rejection::Header(_))
    ));
}

/// Improve: remembering and taking in are one commit, so of equal requests at the same time one is accepted.
#[tokio::test]
async fn of_many_equal_requests_at_once_one_is_accepted() {
    let world = World::new().await;
    let (reader, inbound) = (world.reader(), world.signed());
    let body = event("e1");
    let all = (0..20).map(|_| send(&inbound, "shop", world.now(), &body));
    let all = future::join_all(all).await;
    assert_eq!(
        all.iter()
            .filter(|received| **received == Received::Accepted)
            .count(),
        1
    );
    assert_eq!(claimed(&reader).await.len(), 1);
}

/// Improve: what nobody can take is not remembered as done.
#[tokio::test]
async fn an_event_that_nobody_takes_may_come_again() {
    let world = World::new().await;
    let inbound = world.signed();
    let received = send(&inbound, "shop", world.now(), &event("e1")).await;
    assert_eq!(received.status(), 503, "{received:?}");
    let reader = world.reader();
    assert_eq!(
        send(&inbound, "shop", world.now(), &event("e1")).await,
        Received::Accepted
    );
    assert_eq!(claimed(&reader).await.len(), 1);
}

/// T (webhooks): gateway payloads — the forges' own headers, and Standard Webhooks.
#[tokio::test]
async fn the_headers_of_known_senders_are_understood() {
    let world = World::new().await;
    let reader = world.reader();
    let body = json!({"ref": "refs/heads/main"}).to_string();
    let tag = hex::encode(mac(&[body.as_bytes()]));
    let secret = || Secret::new(SECRET);

    let github = world.inbound(
        ProviderProfile::github(name("gh"), secret()),
        Emit::Message(topic()),
    );
    let prefixed = format!("sha256={tag}");
    let headers = [
        ("x-hub-signature-256", prefixed.as_str()),
        ("x-github-delivery", "d1"),
        ("x-github-event", "push"),
    ];
    assert_eq!(
        deliver(&github, "gh", &body, &headers).await,
        Received::Accepted
    );
    // The delivery's id is not signed: a recorded body under a new id is the same event.
    let again = [headers[0], ("x-github-delivery", "d2"), headers[2]];
    assert_eq!(
        deliver(&github, "gh", &body, &again).await,
        Received::Repeated
    );
    let claims = reader.claim("test", 10, Duration::ZERO).await.unwrap();
    assert_eq!(claims.len(), 1);
    assert_eq!(
        claims[0].delivery.headers.get("webhook-event"),
        Some("push")
    );

    let gitea = world.inbound(
        ProviderProfile::gitea(name("tea"), secret()),
        Emit::Message(topic()),
    );
    assert_eq!(
        deliver(&gitea, "tea", &body, &[("x-gitea-signature", &tag)]).await,
        Received::Accepted
    );

    let gitlab = world.inbound(
        ProviderProfile::gitlab(name("lab"), secret()),
        Emit::Message(topic()),
    );
    let wrong = [("x-gitlab-token", "guess"), ("x-gitlab-event-uuid", "u1")];
    assert_eq!(
        deliver(&gitlab, "lab", &body, &wrong).await,
        Received::Rejected(Rejection::Signature)
    );
    let right = [("x-gitlab-token", SECRET), ("x-gitlab-event-uuid", "u1")];
    assert_eq!(
        deliver(&gitlab, "lab", &body, &right).await,
        Received::Accepted
    );
    assert_eq!(
        deliver(&gitlab, "lab", &body, &right).await,
        Received::Repeated
    );

    let standard = world.inbound(
        ProviderProfile::standard(name("std"), secret()),
        Emit::Message(topic()),
    );
    let stamp = world.now().to_string();
    let tag = BASE64_STANDARD.encode(mac(&[b"m1.", stamp.as_bytes(), b".", body.as_bytes()]));
    let tags = format!("v1,AAAA v1,{tag}");
    let headers = [
        ("webhook-id", "m1"),
        ("webhook-timestamp", stamp.as_str()),
        ("webhook-signature", &tags),
    ];
    assert_eq!(
        deliver(&standard, "std", &body, &headers).await,
        Received::Accepted
    );
    let renamed = [("webhook-id", "m2"), headers[1], headers[2]];
    assert_eq!(
        deliver(&standard, "std", &body, &renamed).await,
        Received::Rejected(Rejection::Signature)
    );
}

/// Improve: who has proven nothing has the body hashed once, however many signatures are tried.
#[tokio::test]
async fn a_hundred_thousand_signatures_cost_one_look_at_the_body() {
    let world = World::new().await;
    let _reader = world.reader();
    let standard = world.inbound(
        ProviderProfile::standard(name("std"), Secret::new(SECRET)),
        Emit::Message(topic()),
    );
    let body = json!({"text": "x".repeat(200_000)}).to_string();
    let stamp = world.now().to_string();
    let tag = BASE64_STANDARD.encode(mac(&[b"m1.", stamp.as_bytes(), b".", body.as_bytes()]));
    let wrong = "v1,AAAA ".repeat(100_000);
    let begun = SystemClock.mono();
    for (tags, answer) in [
        (wrong.clone(), Received::Rejected(Rejection::Signature)),
        (format!("{wrong}v1,{tag}"), Received::Accepted),
    ] {
        let headers = [
            ("webhook-id", "m1"),
            ("webhook-timestamp", stamp.as_str()),
            ("webhook-signature", &tags),
        ];
        assert_eq!(deliver(&standard, "std", &body, &headers).await, answer);
    }
    // One hash for each signature is 40 GB.
    let took = SystemClock.mono() - begun;
    assert!(took < Duration::from_secs(8), "{took:?}");
}

/// Improve: the size is bounded before anything else is looked at, for each provider.
#[tokio::test]
async fn a_body_over_the_limit_is_refused_unread() {
    let world = World::new().await;
    let profile = ProviderProfile {
        max_bytes: 30,
        duplicates: Duplicates::Accept,
        ..ProviderProfile::signed(name("shop"), Secret::new(SECRET))
    };
    let inbound = world.inbound(profile, Emit::Message(topic()));
    let received = send(
        &inbound,
        "shop",
        world.now(),
        &event("a long name of an event"),
    )
    .await;
    assert_eq!(
        received,
        Received::Rejected(Rejection::TooLarge { limit: 30 })
    );
}

// --- out -------------------------------------------------------------------------------------

type Answers = Box<dyn FnMut(usize) -> Result<(u16, Option<String>), SendProblem> + Send>;

/// A sink whose target answers as told; what it was sent, and its inbox.
struct Target_ {
    sink: Sink,
    mailbox: Mailbox,
    sent: Arc<Mutex<Vec<Outgoing>>>,
}

fn target(world: &World, attempts: u32, breaker: BreakerConfig, answers: Answers) -> Target_ {
    let mailbox = world.agent(InboxSpec {
        max_attempts: attempts,
        backoff: Backoff {
            base: Duration::from_millis(250),
            max: Duration::from_secs(10),
            jitter: 0.0,
            ..Backoff::default()
        },
        ..InboxSpec::new(
            Tenant::default(),
            name("partner"),
            vec!["hooks/out".parse().unwrap()],
        )
    });
    let sent = Arc::new(Mutex::new(Vec::new()));
    let (log, answers, count) = (sent.clone(), Mutex::new(answers), AtomicUsize::new(0));
    let sink = Sink::new(
        (
            mailbox.clone(),
            Target {
                url: "https://partner.example/hook".into(),
                secret: Some(Secret::new(SECRET)),
                headers: vec![("authorization".into(), Secret::new("Bearer t0ken"))],
            },
            Duration::from_secs(5),
        ),
        breaker,
        Arc::new(move |request| {
            log.lock().push(request);
            let answer = (answers.lock())(count.fetch_add(1, Ordering::Relaxed));
            future::ready(answer).boxed()
        }),
        (world.store.clone(), world.clock.shared()),
        &world.metrics,
    );
    Target_ {
        sink,
        mailbox,
        sent,
    }
}

impl World {
    async fn say(&self, text: &str) {
        let message = Message::builder(self.sender())
            .topic("hooks/out".parse().unwrap())
            .json(text)
            .unwrap();
        let message = message.build(self.clock.wall()).unwrap();
        let (posted, _) = self.post.send(message, Origin::Minted).await.unwrap();
        assert!(posted.admission.is_taken(), "{posted:?}");
    }

    /// Lets the sink work until nothing is left to be tried.
    async fn settle(&self, target: &Target_) {
        for _ in 0..100 {
            while target
                .sink
                .step("test", Duration::ZERO, &CancellationToken::new())
                .await
                .unwrap()
                > 0
            {}
            let stats = target.mailbox.stats();
            if stats.ready + stats.delayed + stats.claimed == 0 {
                return;
            }
            self.clock.advance(Duration::from_secs(11));
        }
        panic!("never settled: {:?}", target.mailbox.stats());
    }
}

/// T (webhooks): retry to third success; every attempt carries the same idempotency key.
#[tokio::test]
async fn a_target_that_fails_twice_gets_it_the_third_time_under_one_key() {
    let world = World::new().await;
    let answers = |count| Ok((if count < 2 { 503 } else { 200 }, None));
    let target = target(&world, 6, BreakerConfig::default(), Box::new(answers));
    world.say("hello").await;
    world.settle(&target).await;
    let sent = target.sent.lock();
    assert_eq!((sent.len(), target.mailbox.stats().parked), (3, 0));
    let header = |request: &Outgoing, name: &str| {
        let found = request.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.clone()).unwrap()
    };
    for request in sent.iter() {
        assert_eq!(
            header(request, "idempotency-key"),
            header(&sent[0], "idempotency-key")
        );
        assert_eq!(header(request, "authorization"), "Bearer t0ken");
        assert_eq!(request.body, "\"hello\"");
    }
}

/// T (webhooks): outbound topic → action. What goes out is what our own receiver believes.
#[tokio::test]
async fn a_message_on_the_topic_is_posted_signed_so_that_standard_webhooks_verifies_it() {
    let world = World::new().await;
    let target = target(
        &world,
        3,
        BreakerConfig::default(),
        Box::new(|_| Ok((204, None))),
    );
    world.say("hello").await;
    world.settle(&target).await;
    let sent = target.sent.lock().clone();
    let [request] = sent.as_slice() else {
        panic!("{sent:?}")
    };
    let headers = request
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    let arrived = Arrived {
        headers: headers.collect(),
        body: request.body.clone(),
    };
    let profile = ProviderProfile::standard(name("us"), Secret::new(SECRET));
    // The payload is a JSON text, no object: everything before that was found good.
    assert_eq!(
        profile.check(&arrived, world.clock.wall()),
        Err(Rejection::NotAnObject)
    );
}

/// T (webhooks): open breaker → dead letter, without another request to the target.
#[tokio::test]
async fn behind_an_open_breaker_nothing_is_sent_and_what_waits_too_long_is_parked() {
    let world = World::new().await;
    let breaker = BreakerConfig {
        failures: 2,
        open_for: Duration::from_secs(3600),
    };
    let refuse = |_| Err(SendProblem::Passing("connection refused".into()));
    let target = target(&world, 4, breaker, Box::new(refuse));
    world.say("a").await;
    world.settle_hours(&target).await;
    assert_eq!(target.mailbox.stats().parked, 1);
    let sent = target.sent.lock().len();
    assert!(sent < 4, "{sent} requests although the breaker was open");
    let text = world.metrics.encode_text();
    assert!(text.contains("circuit_open"), "{text}");
}

/// Improve: what the target will never take is parked at once, not asked again.
#[tokio::test]
async fn a_clear_no_is_parked_at_once() {
    let world = World::new().await;
    let answers = |count| match count {
        0 => Ok((404, None)),
        1 => Ok((302, None)),
        _ => Err(SendProblem::Refused(
            "10.0.0.7 is not on the public internet".into(),
        )),
    };
    let target = target(&world, 9, BreakerConfig::default(), Box::new(answers));
    for text in ["a", "b", "c"] {
        world.say(text).await;
    }
    world.settle(&target).await;
    assert_eq!(
        (target.sent.lock().len(), target.mailbox.stats().parked),
        (3, 3)
    );
}

/// Improve: when the target says when to come again, that counts.
#[tokio::test]
async fn a_retry_after_is_waited_for() {
    let world = World::new().await;
    let answers = |count| {
        Ok(if count == 0 {
            (429, Some("60".into()))
        } else {
            (200, None)
        })
    };
    let target = target(&world, 3, BreakerConfig::default(), Box::new(answers));
    world.say("a").await;
    assert_eq!(
        target
            .sink
            .step("test", Duration::ZERO, &CancellationToken::new())
            .await
            .unwrap(),
        1
    );
    world.clock.advance(Duration::from_secs(59));
    assert_eq!(
        target
            .sink
            .step("test", Duration::ZERO, &CancellationToken::new())
            .await
            .unwrap(),
        0
    );
    world.clock.advance(Duration::from_secs(2));
    assert_eq!(
        target
            .sink
            .step("test", Duration::ZERO, &CancellationToken::new())
            .await
            .unwrap(),
        1
    );
    assert_eq!(target.sent.lock().len(), 2);
}

impl World {
    /// As [`World::settle`], in steps longer than any breaker stays open.
    async fn settle_hours(&self, target: &Target_) {
        for _ in 0..20 {
            while target
                .sink
                .step("test", Duration::ZERO, &CancellationToken::new())
                .await
                .unwrap()
                > 0
            {}
            if target.mailbox.stats().parked > 0 {
                return;
            }
            self.clock.advance(Duration::from_secs(15));
        }
        // The breaker asks for its whole open time.
        for _ in 0..20 {
            self.clock.advance(Duration::from_secs(1800));
            while target
                .sink
                .step("test", Duration::ZERO, &CancellationToken::new())
                .await
                .unwrap()
                > 0
            {}
        }
    }
}
