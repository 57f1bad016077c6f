//! What every transport must do: tests that each implementation runs.
//!
//! An implementation calls [`run`] with a function that makes a fresh, empty transport.

use std::time::Duration;

use volary_kernel::{
    clock::{Clock, SystemClock, timeout},
    id::{Name, Tenant},
    queue::WhenFull,
};

use super::{DEFAULT_INBOX, Endpoint, EndpointError, EndpointSpec, Transport};
use crate::{
    admission::{Admission, Refusal},
    identity::AgentId,
    message::{Message, MessageBuilder, Sender},
    topic::Topic,
};

/// Longest wait for something that must happen.
const SOON: Duration = Duration::from_secs(10);

fn name(text: &str) -> Name {
    text.parse().expect("a constant that is a name")
}

fn topic(text: &str) -> Topic {
    text.parse().expect("a constant that is a topic")
}

fn tenant(text: &str) -> Tenant {
    Tenant::new(name(text))
}

fn draft(from: &str) -> MessageBuilder {
    Message::builder(Sender::new(
        AgentId::from_bytes([1; 32]),
        name(from),
        tenant("one"),
    ))
}

fn build(draft: MessageBuilder, number: u32) -> Message {
    let draft = draft.json(&number).expect("a number has a JSON form");
    draft
        .build(SystemClock.wall())
        .expect("the suite's messages have an address")
}

fn about(text: &str, number: u32) -> Message {
    build(draft("sender").topic(topic(text)), number)
}

fn number(message: &Message) -> u32 {
    message
        .payload()
        .parse_json()
        .expect("the suite's messages hold a number")
}

fn spec(agent: &str, topics: &[&str]) -> EndpointSpec {
    EndpointSpec::new(
        tenant("one"),
        name(agent),
        topics.iter().map(|text| topic(text)).collect(),
    )
}

fn open(transport: &impl Transport, agent: &str, topics: &[&str]) -> Endpoint {
    transport
        .open(spec(agent, topics))
        .expect("the name is free")
}

async fn next(endpoint: &mut Endpoint) -> u32 {
    let message = timeout(SOON, endpoint.recv())
        .await
        .expect("a message comes soon");
    number(&message.expect("the transport is open"))
}

/// Nothing waits in `endpoint`: a message to it alone is the next it gets.
async fn check_empty(transport: &impl Transport, endpoint: &mut Endpoint) {
    let probe = build(draft("probe").to(endpoint.name().clone()), 999);
    assert_eq!(transport.send(probe).await, Admission::Delivered);
    assert_eq!(next(endpoint).await, 999);
}

/// Runs every check, each on a fresh transport.
pub async fn run<T: Transport>(make: impl Fn() -> T) {
    routes_by_recipient_and_to_nobody_else(make()).await;
    routes_by_topic_once_and_not_to_the_sender(make()).await;
    answers_no_route_and_never_broadcasts_unasked(make()).await;
    broadcasts_to_all_others_of_the_tenant(make()).await;
    keeps_tenants_apart(make()).await;
    keeps_the_order_of_a_sender(make()).await;
    refuses_a_taken_name_and_frees_a_dropped_one(make()).await;
    refuses_when_full_and_spares_the_others(make()).await;
    makes_senders_wait_if_asked_to(make()).await;
    drops_by_policy_and_says_so(make()).await;
    refuses_what_is_too_large_or_expired(make()).await;
    loses_nothing_between_many_senders(make()).await;
    receives_many_at_once(make()).await;
}

async fn routes_by_recipient_and_to_nobody_else(transport: impl Transport) {
    let (mut a, mut b) = (open(&transport, "a", &["t"]), open(&transport, "b", &["t"]));
    let message = build(draft("sender").to(name("a")).topic(topic("t")), 1);
    assert_eq!(transport.send(message.clone()).await, Admission::Delivered);
    let got = a.recv().await.expect("it was delivered");
    assert_eq!(got, message, "the message arrives as it was sent");
    check_empty(&transport, &mut b).await;
    let own = build(draft("a").to(name("a")), 2);
    assert_eq!(
        transport.send(own).await,
        Admission::Delivered,
        "a message to oneself arrives"
    );
    assert_eq!(next(&mut a).await, 2);
}

async fn routes_by_topic_once_and_not_to_the_sender(transport: impl Transport) {
    let (mut a, mut b) = (
        open(&transport, "a", &["t", "u"]),
        open(&transport, "b", &["t"]),
    );
    let mut other = open(&transport, "c", &["t/u", "T"]);
    let both = build(draft("b").topic(topic("t")).topic(topic("u")), 1);
    assert_eq!(transport.send(both).await, Admission::Delivered);
    assert_eq!(next(&mut a).await, 1);
    for endpoint in [&mut a, &mut b, &mut other] {
        check_empty(&transport, endpoint).await;
    }
}

async fn answers_no_route_and_never_broadcasts_unasked(transport: impl Transport) {
    let mut a = open(&transport, "a", &["t"]);
    assert_eq!(transport.send(about("nobody", 1)).await, Admission::NoRoute);
    assert_eq!(
        transport
            .send(build(draft("sender").to(name("nobody")), 1))
            .await,
        Admission::NoRoute
    );
    let own_topic = build(draft("a").topic(topic("t")), 1);
    assert_eq!(
        transport.send(own_topic).await,
        Admission::NoRoute,
        "only the sender subscribes"
    );
    check_empty(&transport, &mut a).await;
}

async fn broadcasts_to_all_others_of_the_tenant(transport: impl Transport) {
    let mut all = [open(&transport, "a", &[]), open(&transport, "b", &["t"])];
    let mut sender = open(&transport, "sender", &["t"]);
    assert_eq!(
        transport.send(build(draft("sender").broadcast(), 7)).await,
        Admission::Delivered
    );
    for endpoint in &mut all {
        assert_eq!(next(endpoint).await, 7);
    }
    check_empty(&transport, &mut sender).await;
}

async fn keeps_tenants_apart(transport: impl Transport) {
    let foreign = EndpointSpec {
        tenant: tenant("two"),
        ..spec("a", &["t"])
    };
    let mut foreign = transport
        .open(foreign)
        .expect("the name is free in its tenant");
    assert_eq!(transport.send(about("t", 1)).await, Admission::NoRoute);
    assert_eq!(
        transport
            .send(build(draft("sender").to(name("a")), 1))
            .await,
        Admission::NoRoute
    );
    assert_eq!(
        transport.send(build(draft("sender").broadcast(), 1)).await,
        Admission::NoRoute
    );
    let _same_name = open(&transport, "a", &["t"]);
    assert_eq!(transport.send(about("t", 1)).await, Admission::Delivered);
    assert!(
        timeout(Duration::from_millis(20), foreign.recv())
            .await
            .is_err(),
        "another tenant's message arrived"
    );
}

async fn keeps_the_order_of_a_sender(transport: impl Transport) {
    let mut a = open(&transport, "a", &["t"]);
    for number in 0..500 {
        assert_eq!(
            transport.send(about("t", number)).await,
            Admission::Delivered
        );
    }
    for number in 0..500 {
        assert_eq!(next(&mut a).await, number);
    }
}

async fn refuses_a_taken_name_and_frees_a_dropped_one(transport: impl Transport) {
    let mut first = open(&transport, "a", &["t"]);
    let taken = EndpointError::Taken {
        tenant: tenant("one"),
        name: name("a"),
    };
    assert_eq!(transport.open(spec("a", &["u"])).map(drop), Err(taken));
    assert_eq!(transport.send(about("t", 1)).await, Admission::Delivered);
    assert_eq!(next(&mut first).await, 1, "the first owner keeps its inbox");
    drop(first);
    assert_eq!(transport.send(about("t", 2)).await, Admission::NoRoute);
    let mut second = open(&transport, "a", &["t"]);
    check_empty(&transport, &mut second).await;
}

async fn refuses_when_full_and_spares_the_others(transport: impl Transport) {
    let mut small = spec("small", &["t"]);
    small.inbox.max_items = 2;
    let mut small = transport.open(small).expect("the name is free");
    let mut large = open(&transport, "large", &["t"]);
    for number in 0..2 {
        assert_eq!(
            transport.send(about("t", number)).await,
            Admission::Delivered
        );
    }
    match transport.send(about("t", 2)).await {
        Admission::Partial {
            reached: 1,
            refused: 1,
            why: Refusal::Full { .. },
        } => {}
        other => panic!("one inbox is full, but the answer is {other:?}"),
    }
    match transport
        .send(build(draft("sender").to(name("small")), 3))
        .await
    {
        Admission::Refused(Refusal::Full { retry_after, .. }) => {
            assert!(retry_after > Duration::ZERO)
        }
        other => panic!("the only inbox is full, but the answer is {other:?}"),
    }
    for number in 0..3 {
        assert_eq!(next(&mut large).await, number);
    }
    assert_eq!((next(&mut small).await, next(&mut small).await), (0, 1));
    check_empty(&transport, &mut small).await;
}

async fn makes_senders_wait_if_asked_to(transport: impl Transport) {
    let mut waiting = spec("a", &["t"]);
    (waiting.inbox.max_items, waiting.inbox.when_full) = (1, WhenFull::Block);
    let mut a = transport.open(waiting).expect("the name is free");
    assert_eq!(transport.send(about("t", 1)).await, Admission::Delivered);
    let (second, first) = tokio::join!(transport.send(about("t", 2)), next(&mut a));
    assert_eq!((second, first), (Admission::Delivered, 1));
    assert_eq!(next(&mut a).await, 2);
}

async fn drops_by_policy_and_says_so(transport: impl Transport) {
    let mut newest = spec("newest", &["n"]);
    (newest.inbox.max_items, newest.inbox.when_full) = (1, WhenFull::DropNewest);
    let mut newest = transport.open(newest).expect("the name is free");
    assert_eq!(transport.send(about("n", 1)).await, Admission::Delivered);
    match transport.send(about("n", 2)).await {
        Admission::Dropped { hook, .. } => assert_eq!(hook, "inbox"),
        other => panic!("it was dropped, but the answer is {other:?}"),
    }
    assert_eq!(next(&mut newest).await, 1);
    let mut oldest = spec("oldest", &["o"]);
    (oldest.inbox.max_items, oldest.inbox.when_full) = (1, WhenFull::DropOldest);
    let mut oldest = transport.open(oldest).expect("the name is free");
    for number in 1..=3 {
        assert_eq!(
            transport.send(about("o", number)).await,
            Admission::Delivered
        );
    }
    assert_eq!(next(&mut oldest).await, 3);
    assert_eq!(oldest.stats().dropped, 2, "drops are counted");
}

async fn refuses_what_is_too_large_or_expired(transport: impl Transport) {
    let mut tight = spec("a", &["t"]);
    tight.inbox.max_bytes = DEFAULT_INBOX.max_bytes.min(4096);
    let _a = transport.open(tight).expect("the name is free");
    let large = draft("sender")
        .topic(topic("t"))
        .json(&"x".repeat(5000))
        .expect("a text has a JSON form");
    match transport
        .send(large.build(SystemClock.wall()).expect("it has an address"))
        .await
    {
        Admission::Refused(Refusal::TooLarge { found, limit }) => assert!(found > limit),
        other => panic!("it is too large, but the answer is {other:?}"),
    }
    let now = SystemClock.wall();
    let late = draft("sender")
        .topic(topic("t"))
        .deadline(now - Duration::from_secs(1));
    let late = late
        .build(now - Duration::from_secs(2))
        .expect("the deadline is after sending");
    assert_eq!(
        transport.send(late).await,
        Admission::Refused(Refusal::Expired)
    );
}

async fn loses_nothing_between_many_senders(transport: impl Transport) {
    let mut waiting = spec("a", &["t"]);
    (waiting.inbox.max_items, waiting.inbox.when_full) = (8, WhenFull::Block);
    let mut a = transport.open(waiting).expect("the name is free");
    let transport = &transport;
    let senders = (0..8u32).map(|sender| async move {
        for index in 0..100 {
            assert_eq!(
                transport.send(about("t", sender * 100 + index)).await,
                Admission::Delivered
            );
        }
    });
    let receive = async {
        let mut got = Vec::new();
        while got.len() < 800 {
            got.push(next(&mut a).await);
        }
        got
    };
    let (_, mut got) = tokio::join!(futures_util::future::join_all(senders), receive);
    for sender in 0..8 {
        let own: Vec<u32> = got
            .iter()
            .copied()
            .filter(|number| number / 100 == sender)
            .collect();
        assert!(own.is_sorted(), "one sender's messages keep their order");
    }
    got.sort_unstable();
    assert_eq!(got, (0..800).collect::<Vec<_>>(), "each arrives once");
}

async fn receives_many_at_once(transport: impl Transport) {
    let mut a = open(&transport, "a", &["t"]);
    for number in 0..10 {
        transport.send(about("t", number)).await;
    }
    let mut got = Vec::new();
    while got.len() < 10 {
        let more = timeout(SOON, a.recv_many(&mut got, 4))
            .await
            .expect("messages come soon");
        assert!((1..=4).contains(&more));
    }
    assert_eq!(
        got.iter().map(number).collect::<Vec<_>>(),
        (0..10).collect::<Vec<_>>()
    );
}
