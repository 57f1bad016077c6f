//! What every transport must do: tests that each implementation runs.
//!
//! An implementation calls [`run`] with a function that makes a fresh, empty transport; one between instances calls
//! [`run_pair`] with a function that makes two fresh ones, of which one sends and the other receives.

use std::time::Duration;

use futures_util::future::BoxFuture;
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

/// Two sides of a transport, which may be the same one.
pub struct Pair<S, R> {
    /// Where messages are sent.
    pub sending: S,
    /// Where endpoints are opened.
    pub receiving: R,
    /// A sender of tenant `one` at the sending side. Asked for `sender`, `probe`, `a` and `b`.
    pub sender: Box<dyn Fn(&str) -> Sender + Send + Sync>,
    /// Waits until the sending side knows of an endpoint of the receiving side.
    pub known: Box<dyn Fn(Tenant, Name) -> BoxFuture<'static, ()> + Send + Sync>,
}

/// The names that [`Pair::sender`] is asked for.
pub const SENDERS: [&str; 4] = ["sender", "probe", "a", "b"];
/// The tenants of the suite's endpoints; its senders belong to the first.
pub const TENANTS: [&str; 2] = ["one", "two"];

impl<T: Transport + Clone> Pair<T, T> {
    /// Both sides are the same.
    pub fn same(transport: T) -> Self {
        let made_up = AgentId::from_bytes([1; 32]);
        Self {
            sending: transport.clone(),
            receiving: transport,
            sender: Box::new(move |from| Sender::new(made_up, name(from), tenant("one"))),
            known: Box::new(|_, _| Box::pin(async {})),
        }
    }
}

impl<S: Transport, R: Transport> Pair<S, R> {
    fn draft(&self, from: &str) -> MessageBuilder {
        Message::builder((self.sender)(from))
    }

    fn about(&self, text: &str, number: u32) -> Message {
        build(self.draft("sender").topic(topic(text)), number)
    }

    async fn send(&self, message: Message) -> Admission {
        timeout(SOON, self.sending.send(message))
            .await
            .expect("every send is answered")
    }

    async fn open(&self, agent: &str, topics: &[&str]) -> Endpoint {
        self.open_spec(spec(agent, topics)).await
    }

    async fn open_spec(&self, spec: EndpointSpec) -> Endpoint {
        let (tenant, name) = (spec.tenant.clone(), spec.name.clone());
        let endpoint = self.receiving.open(spec).expect("the name is free");
        timeout(SOON, (self.known)(tenant, name))
            .await
            .expect("the other side hears of it soon");
        endpoint
    }

    /// Nothing waits in `endpoint`: a message to it alone is the next it gets.
    async fn check_empty(&self, endpoint: &mut Endpoint) {
        let probe = build(self.draft("probe").to(endpoint.name().clone()), 999);
        assert_eq!(self.send(probe).await, Admission::Delivered);
        assert_eq!(next(endpoint).await, 999);
    }
}

fn build(draft: MessageBuilder, number: u32) -> Message {
    let draft = draft.json(&number).expect("a number has a JSON form");
    draft
        .build(SystemClock.wall())
        .expect("the suite's messages have an address")
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

async fn next(endpoint: &mut Endpoint) -> u32 {
    let message = timeout(SOON, endpoint.recv())
        .await
        .expect("a message comes soon");
    number(&message.expect("the transport is open"))
}

/// Runs every check, each on a fresh transport.
pub async fn run<T: Transport + Clone>(make: impl Fn() -> T) {
    run_pair(async || Pair::same(make())).await;
}

/// Runs every check, each on a fresh pair.
pub async fn run_pair<S: Transport, R: Transport>(make: impl AsyncFn() -> Pair<S, R>) {
    routes_by_recipient_and_to_nobody_else(make().await).await;
    routes_by_topic_once_and_not_to_the_sender(make().await).await;
    answers_no_route_and_never_broadcasts_unasked(make().await).await;
    broadcasts_to_all_others_of_the_tenant(make().await).await;
    keeps_tenants_apart(make().await).await;
    keeps_the_order_of_a_sender(make().await).await;
    refuses_a_taken_name_and_frees_a_dropped_one(make().await).await;
    refuses_when_full_and_spares_the_others(make().await).await;
    makes_senders_wait_if_asked_to(make().await).await;
    drops_by_policy_and_says_so(make().await).await;
    refuses_what_is_too_large_or_expired(make().await).await;
    loses_nothing_between_many_senders(make().await).await;
    receives_many_at_once(make().await).await;
}

async fn routes_by_recipient_and_to_nobody_else(pair: Pair<impl Transport, impl Transport>) {
    let (mut a, mut b) = (pair.open("a", &["t"]).await, pair.open("b", &["t"]).await);
    let message = build(pair.draft("sender").to(name("a")).topic(topic("t")), 1);
    assert_eq!(pair.send(message.clone()).await, Admission::Delivered);
    let got = a.recv().await.expect("it was delivered");
    assert_eq!(got, message, "the message arrives as it was sent");
    pair.check_empty(&mut b).await;
    let own = build(pair.draft("a").to(name("a")), 2);
    assert_eq!(
        pair.send(own).await,
        Admission::Delivered,
        "a message to oneself arrives"
    );
    assert_eq!(next(&mut a).await, 2);
}

async fn routes_by_topic_once_and_not_to_the_sender(pair: Pair<impl Transport, impl Transport>) {
    let (mut a, mut b) = (
        pair.open("a", &["t", "u"]).await,
        pair.open("b", &["t"]).await,
    );
    let mut other = pair.open("c", &["t/u", "T"]).await;
    let both = build(pair.draft("b").topic(topic("t")).topic(topic("u")), 1);
    assert_eq!(pair.send(both).await, Admission::Delivered);
    assert_eq!(next(&mut a).await, 1);
    for endpoint in [&mut a, &mut b, &mut other] {
        pair.check_empty(endpoint).await;
    }
}

async fn answers_no_route_and_never_broadcasts_unasked(pair: Pair<impl Transport, impl Transport>) {
    let mut a = pair.open("a", &["t"]).await;
    assert_eq!(pair.send(pair.about("nobody", 1)).await, Admission::NoRoute);
    assert_eq!(
        pair.send(build(pair.draft("sender").to(name("nobody")), 1))
            .await,
        Admission::NoRoute
    );
    let own_topic = build(pair.draft("a").topic(topic("t")), 1);
    assert_eq!(
        pair.send(own_topic).await,
        Admission::NoRoute,
        "only the sender subscribes"
    );
    pair.check_empty(&mut a).await;
}

async fn broadcasts_to_all_others_of_the_tenant(pair: Pair<impl Transport, impl Transport>) {
    let mut all = [pair.open("a", &[]).await, pair.open("b", &["t"]).await];
    let mut sender = pair.open("sender", &["t"]).await;
    assert_eq!(
        pair.send(build(pair.draft("sender").broadcast(), 7)).await,
        Admission::Delivered
    );
    for endpoint in &mut all {
        assert_eq!(next(endpoint).await, 7);
    }
    pair.check_empty(&mut sender).await;
}

async fn keeps_tenants_apart(pair: Pair<impl Transport, impl Transport>) {
    let foreign = EndpointSpec {
        tenant: tenant("two"),
        ..spec("a", &["t"])
    };
    let mut foreign = pair.open_spec(foreign).await;
    assert_eq!(pair.send(pair.about("t", 1)).await, Admission::NoRoute);
    assert_eq!(
        pair.send(build(pair.draft("sender").to(name("a")), 1))
            .await,
        Admission::NoRoute
    );
    assert_eq!(
        pair.send(build(pair.draft("sender").broadcast(), 1)).await,
        Admission::NoRoute
    );
    let _same_name = pair.open("a", &["t"]).await;
    assert_eq!(pair.send(pair.about("t", 1)).await, Admission::Delivered);
    assert!(
        timeout(Duration::from_millis(20), foreign.recv())
            .await
            .is_err(),
        "another tenant's message arrived"
    );
}

async fn keeps_the_order_of_a_sender(pair: Pair<impl Transport, impl Transport>) {
    let mut a = pair.open("a", &["t"]).await;
    for number in 0..500 {
        assert_eq!(
            pair.send(pair.about("t", number)).await,
            Admission::Delivered
        );
    }
    for number in 0..500 {
        assert_eq!(next(&mut a).await, number);
    }
}

async fn refuses_a_taken_name_and_frees_a_dropped_one(pair: Pair<impl Transport, impl Transport>) {
    let mut first = pair.open("a", &["t"]).await;
    let taken = EndpointError::Taken {
        tenant: tenant("one"),
        name: name("a"),
    };
    assert_eq!(pair.receiving.open(spec("a", &["u"])).map(drop), Err(taken));
    assert_eq!(pair.send(pair.about("t", 1)).await, Admission::Delivered);
    assert_eq!(next(&mut first).await, 1, "the first owner keeps its inbox");
    drop(first);
    assert_eq!(pair.send(pair.about("t", 2)).await, Admission::NoRoute);
    let mut second = pair.open("a", &["t"]).await;
    pair.check_empty(&mut second).await;
}

async fn refuses_when_full_and_spares_the_others(pair: Pair<impl Transport, impl Transport>) {
    let mut small = spec("small", &["t"]);
    small.inbox.max_items = 2;
    let mut small = pair.open_spec(small).await;
    let mut large = pair.open("large", &["t"]).await;
    for number in 0..2 {
        assert_eq!(
            pair.send(pair.about("t", number)).await,
            Admission::Delivered
        );
    }
    match pair.send(pair.about("t", 2)).await {
        Admission::Partial {
            reached: 1,
            refused: 1,
            why: Refusal::Full { .. },
        } => {}
        other => panic!("one inbox is full, but the answer is {other:?}"),
    }
    match pair
        .send(build(pair.draft("sender").to(name("small")), 3))
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
    pair.check_empty(&mut small).await;
}

async fn makes_senders_wait_if_asked_to(pair: Pair<impl Transport, impl Transport>) {
    let mut waiting = spec("a", &["t"]);
    (waiting.inbox.max_items, waiting.inbox.when_full) = (1, WhenFull::Block);
    let mut a = pair.open_spec(waiting).await;
    assert_eq!(pair.send(pair.about("t", 1)).await, Admission::Delivered);
    let (second, first) = tokio::join!(pair.send(pair.about("t", 2)), next(&mut a));
    assert_eq!((second, first), (Admission::Delivered, 1));
    assert_eq!(next(&mut a).await, 2);
}

async fn drops_by_policy_and_says_so(pair: Pair<impl Transport, impl Transport>) {
    let mut newest = spec("newest", &["n"]);
    (newest.inbox.max_items, newest.inbox.when_full) = (1, WhenFull::DropNewest);
    let mut newest = pair.open_spec(newest).await;
    assert_eq!(pair.send(pair.about("n", 1)).await, Admission::Delivered);
    match pair.send(pair.about("n", 2)).await {
        Admission::Dropped { hook, .. } => assert_eq!(hook, "inbox"),
        other => panic!("it was dropped, but the answer is {other:?}"),
    }
    assert_eq!(next(&mut newest).await, 1);
    let mut oldest = spec("oldest", &["o"]);
    (oldest.inbox.max_items, oldest.inbox.when_full) = (1, WhenFull::DropOldest);
    let mut oldest = pair.open_spec(oldest).await;
    for number in 1..=3 {
        assert_eq!(
            pair.send(pair.about("o", number)).await,
            Admission::Delivered
        );
    }
    assert_eq!(next(&mut oldest).await, 3);
    assert_eq!(oldest.stats().dropped, 2, "drops are counted");
}

async fn refuses_what_is_too_large_or_expired(pair: Pair<impl Transport, impl Transport>) {
    let mut tight = spec("a", &["t"]);
    tight.inbox.max_bytes = DEFAULT_INBOX.max_bytes.min(4096);
    let _a = pair.open_spec(tight).await;
    let large = pair
        .draft("sender")
        .topic(topic("t"))
        .json(&"x".repeat(5000))
        .expect("a text has a JSON form");
    match pair
        .send(large.build(SystemClock.wall()).expect("it has an address"))
        .await
    {
        Admission::Refused(Refusal::TooLarge { found, limit }) => assert!(found > limit),
        other => panic!("it is too large, but the answer is {other:?}"),
    }
    let now = SystemClock.wall();
    let late = pair
        .draft("sender")
        .topic(topic("t"))
        .deadline(now - Duration::from_secs(1));
    let late = late
        .build(now - Duration::from_secs(2))
        .expect("the deadline is after sending");
    assert_eq!(pair.send(late).await, Admission::Refused(Refusal::Expired));
}

async fn loses_nothing_between_many_senders(pair: Pair<impl Transport, impl Transport>) {
    let mut waiting = spec("a", &["t"]);
    (waiting.inbox.max_items, waiting.inbox.when_full) = (8, WhenFull::Block);
    let mut a = pair.open_spec(waiting).await;
    let pair = &pair;
    let senders = (0..8u32).map(|sender| async move {
        for index in 0..100 {
            assert_eq!(
                pair.send(pair.about("t", sender * 100 + index)).await,
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

async fn receives_many_at_once(pair: Pair<impl Transport, impl Transport>) {
    let mut a = pair.open("a", &["t"]).await;
    for number in 0..10 {
        pair.send(pair.about("t", number)).await;
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
