//! Hooks around the local transport: recording, secrets, slow hooks, changed copies.

#![expect(clippy::unwrap_used, reason = "a test whose setup fails has failed")]

use std::{sync::Arc, time::Duration};

use volary_kernel::{
    clock::{Clock, ManualClock},
    id::{Name, Tenant},
    metric::Metrics,
    secret::{Redactor, Secret},
};
use volary_messaging::{
    Admission, AgentId, Direction, Endpoint, EndpointSpec, HookChain, HookedTransport, Local,
    Message, MessageHook, Refusal, ReplayQuery, ReplayRunner, Sender, Topic, Transport,
    event::{kind, message_in},
    hook::{HookContext, RecorderHook, SecretGuard, Step},
};
use volary_store::{Filter, JournalRow, MemoryConfig, MemoryStore, Seq, SharedStore};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn topic(text: &str) -> Topic {
    text.parse().unwrap()
}

fn message(body: &str) -> Message {
    let sender = Sender::new(AgentId::from_bytes([3; 32]), name("a"), Tenant::default());
    let draft = Message::builder(sender)
        .topic(topic("t"))
        .json(body)
        .unwrap();
    draft.build(ManualClock::default().wall()).unwrap()
}

fn text(message: &Message) -> String {
    message.payload().parse_json().unwrap()
}

fn store(max_record_bytes: u64) -> SharedStore {
    let config = MemoryConfig {
        node: name("node"),
        max_record_bytes,
        max_journal_bytes: 1 << 20,
    };
    Arc::new(MemoryStore::new(config, ManualClock::default().shared()))
}

fn bus(hooks: Vec<Arc<dyn MessageHook>>, metrics: &Metrics) -> (HookedTransport<Local>, Endpoint) {
    let local = Local::new(ManualClock::default().shared(), metrics);
    let bus = HookedTransport::new(local, HookChain::new(hooks, metrics));
    let endpoint = bus
        .open(EndpointSpec::new(
            Tenant::default(),
            name("b"),
            vec![topic("t")],
        ))
        .unwrap();
    (bus, endpoint)
}

async fn rows(store: &SharedStore) -> Vec<JournalRow> {
    store
        .read(Seq::FIRST, &Filter::all(), 100)
        .await
        .unwrap()
        .rows
}

#[tokio::test]
async fn with_a_recorder_every_send_and_receive_is_an_entry_that_can_be_replayed() {
    let store = store(1 << 20);
    let recorder = RecorderHook::new(store.clone(), Redactor::default());
    let (bus, mut endpoint) = bus(vec![Arc::new(recorder)], &Metrics::default());
    let sent = message("hello");
    assert_eq!(bus.send(sent.clone()).await, Admission::Delivered);
    assert_eq!(endpoint.recv().await, Some(sent.clone()));
    let rows = rows(&store).await;
    let told: Vec<_> = rows
        .iter()
        .map(|row| (row.kind.as_str(), row.agent.clone().unwrap()))
        .collect();
    assert_eq!(told, [(kind::SENT, name("a")), (kind::RECEIVED, name("b"))]);
    assert!(rows.iter().all(|row| message_in(&row.body) == Ok(sent.clone()) && row.trace == Some(sent.trace())));
    let plan = ReplayRunner::new(store)
        .plan(&ReplayQuery::default())
        .await
        .unwrap();
    let ways: Vec<_> = plan
        .messages
        .iter()
        .map(|planned| (planned.direction, planned.agent.clone()))
        .collect();
    assert_eq!(
        ways,
        [
            (Direction::Outbound, name("a")),
            (Direction::Inbound, name("b"))
        ]
    );
}

#[tokio::test]
async fn a_secret_is_refused_by_guard_and_recorder_alike_and_never_recorded() {
    let secrets = Redactor::default();
    secrets.add(&Secret::new("canary-1")).unwrap();
    let store = store(1 << 20);
    let hooks: [Arc<dyn MessageHook>; 2] = [
        Arc::new(SecretGuard::new(secrets.clone())),
        Arc::new(RecorderHook::new(store.clone(), secrets)),
    ];
    for hook in hooks {
        let (bus, _endpoint) = bus(vec![hook], &Metrics::default());
        assert_eq!(
            bus.send(message("a canary-1")).await,
            Admission::Refused(Refusal::Secret)
        );
    }
    assert!(rows(&store).await.is_empty());
}

/// Waits for ever on what says so, at the receiver's side.
struct Sticky;

impl MessageHook for Sticky {
    fn name(&self) -> &'static str {
        "sticky"
    }
    fn post_receive<'a>(&'a self, message: Message, _: HookContext<'a>) -> Step<'a> {
        match text(&message).as_str() {
            "stick" => Step::wait(std::future::pending()),
            "panic" => panic!("boom"),
            _ => Step::pass(message),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_receiving_hook_that_hangs_or_panics_costs_its_message_and_no_other() {
    let metrics = Metrics::default();
    let (bus, mut endpoint) = bus(vec![Arc::new(Sticky)], &metrics);
    for body in ["1", "stick", "2", "panic", "3"] {
        assert_eq!(bus.send(message(body)).await, Admission::Delivered);
    }
    let mut got = Vec::new();
    while got.len() < 3 {
        endpoint.recv_many(&mut got, 10).await;
    }
    assert_eq!(got.iter().map(text).collect::<Vec<_>>(), ["1", "2", "3"]);
    let counted = metrics.encode_text();
    let line =
        "volary_hook_outcomes_total{hook=\"sticky\",stage=\"post_receive\",outcome=\"failed\"} 2";
    assert!(counted.contains(line), "{counted}");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_receive_keeps_the_messages_that_no_hook_has_seen() {
    let (bus, mut endpoint) = bus(vec![Arc::new(Sticky)], &Metrics::default());
    for body in ["1", "stick", "2"] {
        bus.send(message(body)).await;
    }
    let mut got = Vec::new();
    let short = Duration::from_millis(10);
    let cut = volary_kernel::clock::timeout(short, endpoint.recv_many(&mut got, 10)).await;
    assert!(cut.is_err());
    endpoint.recv_many(&mut got, 10).await;
    assert_eq!(got.iter().map(text).collect::<Vec<_>>(), ["1", "2"]);
}

/// Adds a header on the way out.
struct Stamp;

impl MessageHook for Stamp {
    fn name(&self) -> &'static str {
        "stamp"
    }
    fn pre_send<'a>(&'a self, message: Message, _: HookContext<'a>) -> Step<'a> {
        Step::pass(
            message
                .edit()
                .header("stamp", "1")
                .unwrap()
                .build(message.sent_at())
                .unwrap(),
        )
    }
}

#[tokio::test]
async fn a_hook_changes_the_copy_that_goes_on_and_not_the_senders() {
    let (bus, mut endpoint) = bus(vec![Arc::new(Stamp)], &Metrics::default());
    let sent = message("x");
    bus.send(sent.clone()).await;
    let got = endpoint.recv().await.unwrap();
    assert_eq!(
        (got.headers().get("stamp"), sent.headers().get("stamp")),
        (Some("1"), None)
    );
    assert_eq!(got.id(), sent.id());
}
