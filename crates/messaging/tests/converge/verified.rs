//! Verified receive: with an identity registry, only messages of believed senders reach the agent.

use std::sync::Arc;

use parking_lot::Mutex;
use volary_kernel::{
    clock::{Clock as _, SystemClock},
    collector::MetricsCollector,
    id::Tenant,
};
use volary_messaging::{
    Admission, Identity, IdentityRegistry, Local, Message, Sender, Transport,
    agent::{AgentRuntime, RuntimeEvent, Unverified},
    frame::{self, OpenError, Trust},
    identity::RegistryError,
};

use crate::support::{Scripted, Seen, local, name, quiet, text, to};

struct Known(Identity, Sender);

fn somebody(who: &str) -> Known {
    let identity = Identity::generate().unwrap();
    let sender = Sender::new(identity.id(), name(who), Tenant::default());
    Known(identity, sender)
}

async fn register(registry: &IdentityRegistry, who: &Known) {
    let Known(identity, sender) = who;
    let (name, tenant) = (sender.name().clone(), sender.tenant().clone());
    let registered = registry.register(identity.id(), identity.public(), name, tenant);
    registered.await.unwrap();
}

/// A started runtime that believes `registry`.
struct World {
    bus: Local,
    runtime: AgentRuntime<Scripted, Local>,
    seen: Seen,
    drops: Arc<Mutex<Vec<(String, Unverified)>>>,
    metrics: MetricsCollector,
}

impl World {
    async fn new(registry: &IdentityRegistry) -> Self {
        let (bus, metrics) = (local(), MetricsCollector::new());
        let (builder, seen) = quiet(bus.clone());
        let drops = Arc::new(Mutex::new(Vec::new()));
        let log = drops.clone();
        let runtime = builder
            .identity_registry(registry.clone())
            .metrics_collector(metrics.clone())
            .on_event(move |event| {
                if let RuntimeEvent::Unverified { message, reason } = event {
                    log.lock().push((text(message), *reason));
                }
            })
            .build()
            .unwrap();
        runtime.start().await.unwrap();
        Self {
            bus,
            runtime,
            seen,
            drops,
            metrics,
        }
    }

    async fn send(&self, message: Message) {
        assert_eq!(self.bus.send(message).await, Admission::Delivered);
    }

    /// What the agent saw, when everything sent was looked at.
    async fn end(&self) -> Vec<String> {
        assert!(self.runtime.stop().await.is_clean());
        self.seen.calls().concat()
    }
}

/// T1 (verified): signed by a registered sender, it is delivered: sealed bytes open against the registry, and the runtime
/// believes the same sender.
#[tokio::test(start_paused = true)]
async fn a_registered_senders_signed_message_is_delivered() {
    let (registry, a) = (IdentityRegistry::in_memory(), somebody("a"));
    register(&registry, &a).await;
    let world = World::new(&registry).await;
    let sealed = frame::seal(&a.0, &[to(&a.1, "agent", "hi")]).unwrap();
    let opened = frame::open(&sealed, Trust::Registry(&registry)).unwrap();
    for message in opened.into_messages() {
        world.send(message).await;
    }
    assert_eq!(world.end().await, ["hi"]);
    assert!(world.drops.lock().is_empty());
}

/// T2 (verified): the sender is not in the registry: nothing is delivered, sealed or not.
#[tokio::test(start_paused = true)]
async fn an_unknown_senders_message_is_not_delivered() {
    let (registry, stranger) = (IdentityRegistry::in_memory(), somebody("s"));
    let world = World::new(&registry).await;
    let message = to(&stranger.1, "agent", "hi");
    let sealed = frame::seal(&stranger.0, std::slice::from_ref(&message)).unwrap();
    let refused = frame::open(&sealed, Trust::Registry(&registry)).unwrap_err();
    assert!(
        matches!(refused, OpenError::Untrusted(RegistryError::Unknown(_))),
        "{refused}"
    );
    world.send(message).await;
    assert_eq!(world.end().await, [""; 0]);
}

/// T3 (verified): of a registered sender's message and a stranger's, one reaches the agent; the counts say so.
#[tokio::test(start_paused = true)]
async fn of_a_known_and_an_unknown_sender_one_message_arrives() {
    let (registry, a) = (IdentityRegistry::in_memory(), somebody("a"));
    register(&registry, &a).await;
    let world = World::new(&registry).await;
    world.send(to(&a.1, "agent", "good")).await;
    world.send(to(&somebody("evil").1, "agent", "bad")).await;
    assert_eq!(world.end().await, ["good"]);
    assert_eq!(world.metrics.snapshot().counters["messages_received"], 1);
}

/// T4 (verified): what is not verified never gets to the agent, whatever is wrong with its sender.
#[tokio::test(start_paused = true)]
async fn whatever_is_wrong_with_a_sender_nothing_of_it_is_pushed() {
    let registry = IdentityRegistry::in_memory();
    let (a, gone) = (somebody("a"), somebody("gone"));
    register(&registry, &a).await;
    register(&registry, &gone).await;
    registry
        .revoke(gone.0.id(), SystemClock.wall())
        .await
        .unwrap();
    let world = World::new(&registry).await;
    let posing = Sender::new(a.0.id(), name("boss"), Tenant::default());
    world.send(to(&gone.1, "agent", "revoked")).await;
    world.send(to(&posing, "agent", "posing")).await;
    world.send(to(&somebody("x").1, "agent", "unknown")).await;
    assert_eq!(world.end().await, [""; 0]);
    let reasons = [
        ("revoked".to_owned(), Unverified::Revoked),
        ("posing".to_owned(), Unverified::WrongName),
        ("unknown".to_owned(), Unverified::UnknownSender),
    ];
    assert_eq!(*world.drops.lock(), reasons);
}

/// T5 (verified): the drop is told to the callback and counted by reason.
#[tokio::test(start_paused = true)]
async fn an_unverified_drop_is_told_and_counted() {
    let world = World::new(&IdentityRegistry::in_memory()).await;
    world.send(to(&somebody("x").1, "agent", "who?")).await;
    world.end().await;
    let told = [("who?".to_owned(), Unverified::UnknownSender)];
    assert_eq!(*world.drops.lock(), told);
    let counters = world.metrics.snapshot().counters;
    let counted = counters[r#"messages_unverified_total{reason="unknown_sender"}"#];
    assert_eq!((counted, counters["messages_received"]), (1, 0));
}

/// T9 (verified): the registry's own operations. Different on purpose: instead of an unregister that forgets, a key is
/// revoked and stays known as revoked; of an unknown id that is an error that says so (decision 13).
#[tokio::test]
async fn a_registry_registers_gets_contains_and_revokes() {
    let (registry, a) = (IdentityRegistry::in_memory(), somebody("a"));
    let id = a.0.id();
    assert!(registry.get(&id).is_none() && registry.is_empty());
    register(&registry, &a).await;
    assert_eq!(registry.get(&id).unwrap().key, a.0.public());
    assert!(registry.trusted(&id).is_ok());
    let unknown = somebody("b").0.id();
    let at = SystemClock.wall();
    let nobody = registry.revoke(unknown, at).await;
    assert!(
        matches!(nobody, Err(RegistryError::Unknown(_))),
        "{nobody:?}"
    );
    registry.revoke(id, at).await.unwrap();
    registry.revoke(id, at).await.unwrap();
    let refused = registry.trusted(&id);
    assert!(
        matches!(refused, Err(RegistryError::Revoked { .. })),
        "{refused:?}"
    );
}

/// D10 (verified): the same message again is refused, told and counted.
#[tokio::test(start_paused = true)]
async fn the_same_message_again_is_refused() {
    let (registry, a) = (IdentityRegistry::in_memory(), somebody("a"));
    register(&registry, &a).await;
    let world = World::new(&registry).await;
    let message = to(&a.1, "agent", "once");
    for _ in 0..3 {
        world.send(message.clone()).await;
    }
    assert_eq!(world.end().await, ["once"]);
    let again = ("once".to_owned(), Unverified::Repeated);
    assert_eq!(*world.drops.lock(), [again.clone(), again]);
}

/// D11 (verified): an id that is not the hash of its key can not be registered.
#[tokio::test]
async fn an_id_that_is_not_the_hash_of_its_key_is_refused() {
    let (registry, victim, attacker) =
        (IdentityRegistry::in_memory(), somebody("v"), somebody("x"));
    let stolen = registry
        .register(
            victim.0.id(),
            attacker.0.public(),
            name("v"),
            Tenant::default(),
        )
        .await;
    assert!(
        matches!(stolen, Err(RegistryError::Mismatch { .. })),
        "{stolen:?}"
    );
}
