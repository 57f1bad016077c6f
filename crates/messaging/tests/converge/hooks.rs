//! Hooks around a transport, and around a runtime.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use parking_lot::Mutex;
use volary_kernel::{clock::SystemClock, collector::MetricsCollector, metric::Metrics};
use volary_messaging::{
    Admission, HookChain, HookedTransport, IdentityRegistry, Local, Message, MessageHook, Refusal,
    Transport,
    agent::RuntimeEvent,
    hook::{HookContext, HookError, Step},
    rate::{RateLimitHook, RateLimiter, RateLimiterConfig, TokenBucketConfig},
};

use crate::support::{local, open, quiet, receive, sender, text, to};

/// Writes its word behind the text, in both directions, and notes where it was called.
struct Word(&'static str, Arc<Mutex<Vec<String>>>);

impl Word {
    fn step(&self, message: Message, context: HookContext<'_>) -> Step<'static> {
        let stage = context.stage.as_str();
        self.1.lock().push(format!("{stage} {}", self.0));
        match self.0 {
            "drop" => Step::drop("asked to"),
            "fail" => Step::Done(Err(HookError::failed("no luck"))),
            word => {
                let text = format!("{}{word}", text(&message));
                let edited = message.edit().json(&text).unwrap();
                Step::pass(edited.build(message.sent_at()).unwrap())
            }
        }
    }
}

impl MessageHook for Word {
    fn name(&self) -> &'static str {
        self.0
    }
    fn pre_send<'a>(&'a self, message: Message, context: HookContext<'a>) -> Step<'a> {
        self.step(message, context)
    }
    fn post_receive<'a>(&'a self, message: Message, context: HookContext<'a>) -> Step<'a> {
        self.step(message, context)
    }
    fn on_error(&self, error: &HookError, context: HookContext<'_>) {
        let line = format!("on_error {} {error}", context.stage.as_str());
        self.1.lock().push(line);
    }
}

/// Only at one stage; the default does nothing at the other, nor on an error.
struct OnReceive(fn(Message) -> Step<'static>);

impl MessageHook for OnReceive {
    fn name(&self) -> &'static str {
        "on-receive"
    }
    fn post_receive<'a>(&'a self, message: Message, _: HookContext<'a>) -> Step<'a> {
        (self.0)(message)
    }
}

type Calls = Arc<Mutex<Vec<String>>>;

fn words(list: &[&'static str]) -> (Vec<Arc<dyn MessageHook>>, Calls) {
    let calls = Calls::default();
    let hook = |word: &&'static str| Arc::new(Word(word, calls.clone())) as Arc<dyn MessageHook>;
    (list.iter().map(hook).collect(), calls)
}

fn hooked(hooks: Vec<Arc<dyn MessageHook>>) -> HookedTransport<Local> {
    HookedTransport::new(local(), HookChain::new(hooks, &Metrics::default()))
}

/// T1 (hooks): pre_send and post_receive both run, and a change made in pre_send reaches the receiver.
#[tokio::test(start_paused = true)]
async fn both_stages_run_and_a_change_reaches_the_receiver() {
    let (hooks, calls) = words(&["!"]);
    let bus = hooked(hooks);
    let mut inbox = open(&bus, "b", &[]);
    assert_eq!(
        bus.send(to(&sender("a"), "b", "hi")).await,
        Admission::Delivered
    );
    assert_eq!(
        receive(&mut inbox).await.map(|got| text(&got)).as_deref(),
        Some("hi!!")
    );
    assert_eq!(*calls.lock(), ["pre_send !", "post_receive !"]);
}

/// T2 (hooks): what post_receive drops is not received. Different on purpose: the receiver goes on with the next message
/// at once and the drop is counted under the hook's name; it is no time-out (decision 13).
#[tokio::test(start_paused = true)]
async fn what_post_receive_drops_is_not_received_and_counted() {
    let metrics = Metrics::default();
    let drops: fn(Message) -> Step<'static> = |message| match text(&message).as_str() {
        "bad" => Step::drop("bad word"),
        _ => Step::pass(message),
    };
    let hooks = HookChain::new(vec![Arc::new(OnReceive(drops))], &metrics);
    let bus = HookedTransport::new(local(), hooks);
    let mut inbox = open(&bus, "b", &[]);
    let begun = tokio::time::Instant::now();
    for word in ["bad", "good"] {
        bus.send(to(&sender("a"), "b", word)).await;
    }
    assert_eq!(
        receive(&mut inbox).await.map(|got| text(&got)).as_deref(),
        Some("good")
    );
    assert!(begun.elapsed().is_zero());
    assert!(receive(&mut inbox).await.is_none());
    let counted =
        r#"volary_hook_outcomes_total{hook="on-receive",stage="post_receive",outcome="dropped"} 1"#;
    assert!(metrics.encode_text().contains(counted));
}

/// T3 (hooks): an error in pre_send surfaces from the send, and on_error saw the stage.
#[tokio::test]
async fn an_error_in_pre_send_surfaces_and_on_error_saw_the_stage() {
    let (hooks, calls) = words(&["fail", "later"]);
    let bus = hooked(hooks);
    let _inbox = open(&bus, "b", &[]);
    let refused = Refusal::Hook {
        hook: "fail".into(),
        problem: "no luck".into(),
    };
    assert_eq!(
        bus.send(to(&sender("a"), "b", "hi")).await,
        Admission::Refused(refused)
    );
    assert_eq!(
        *calls.lock(),
        ["pre_send fail", "on_error pre_send no luck"]
    );
}

/// T4 (hooks): a runtime behind a limiter of capacity 0 gets nothing, and the ingress counter tells.
#[tokio::test(start_paused = true)]
async fn a_runtime_behind_a_limiter_of_zero_gets_nothing_and_it_is_counted() {
    let (bus, metrics) = (local(), MetricsCollector::new());
    let limiter = RateLimiter::new(RateLimiterConfig {
        global: Some(TokenBucketConfig::new(0.0, 0.0).unwrap()),
        ..RateLimiterConfig::default()
    });
    let hook = RateLimitHook::new(limiter, SystemClock::shared(), metrics.parts())
        .metrics_collector(&metrics)
        .unwrap();
    let (builder, seen) = quiet(bus.clone());
    let runtime = builder
        .hooks(vec![Arc::new(hook)])
        .metrics_collector(metrics.clone())
        .build()
        .unwrap();
    runtime.start().await.unwrap();
    // Sent past the runtime's own hooks: they are only at the receiver.
    assert_eq!(
        bus.send(to(&sender("a"), "agent", "hi")).await,
        Admission::Delivered
    );
    assert!(runtime.stop().await.is_clean());
    assert_eq!(seen.count(), 0);
    let counters = metrics.snapshot().counters;
    assert_eq!(counters["rate_limit_ingress_dropped_total"], 1);
    assert_eq!(counters["rate_limit_egress_dropped_total"], 0);
    assert_eq!(counters["messages_received"], 0);
}

/// D5 (hooks): hooks run in the order of registration in both directions.
#[tokio::test(start_paused = true)]
async fn hooks_run_in_order_in_both_directions() {
    let (hooks, calls) = words(&["1", "2", "3"]);
    let bus = hooked(hooks);
    let mut inbox = open(&bus, "b", &[]);
    bus.send(to(&sender("a"), "b", "")).await;
    assert_eq!(
        receive(&mut inbox).await.map(|got| text(&got)).as_deref(),
        Some("123123")
    );
    let stages = ["pre_send", "post_receive"];
    let expected: Vec<String> = stages
        .iter()
        .flat_map(|stage| ["1", "2", "3"].map(|word| format!("{stage} {word}")))
        .collect();
    assert_eq!(*calls.lock(), expected);
}

/// D5 (hooks): of hooks around hooks, the outer ones send first and receive last.
#[tokio::test(start_paused = true)]
async fn hooks_around_hooks_all_run() {
    let (inner, calls) = words(&["inner"]);
    let outer: Vec<Arc<dyn MessageHook>> = vec![Arc::new(Word("outer", calls.clone()))];
    let none = HookChain::new(vec![], &Metrics::default());
    let bus = HookedTransport::new(hooked(inner), HookChain::new(outer, &Metrics::default()));
    let bus = HookedTransport::new(bus, none);
    let mut inbox = open(&bus, "b", &[]);
    bus.send(to(&sender("a"), "b", "")).await;
    assert!(receive(&mut inbox).await.is_some());
    let expected = [
        "pre_send outer",
        "pre_send inner",
        "post_receive inner",
        "post_receive outer",
    ];
    assert_eq!(*calls.lock(), expected);
}

/// D6 (hooks): a drop stops later hooks, and the sender learns which hook dropped it and why.
#[tokio::test]
async fn a_drop_stops_later_hooks_and_is_told() {
    let (hooks, calls) = words(&["1", "drop", "3"]);
    let bus = hooked(hooks);
    let _inbox = open(&bus, "b", &[]);
    let dropped = Admission::Dropped {
        hook: "drop".into(),
        reason: "asked to".into(),
    };
    assert_eq!(bus.send(to(&sender("a"), "b", "hi")).await, dropped);
    assert_eq!(*calls.lock(), ["pre_send 1", "pre_send drop"]);
}

/// D7 (hooks): a hook without on_error works, and its error surfaces all the same.
#[tokio::test(start_paused = true)]
async fn a_hook_without_on_error_works() {
    let fails: fn(Message) -> Step<'static> = |_| Step::Done(Err(HookError::failed("no")));
    let bus = hooked(vec![Arc::new(OnReceive(fails))]);
    let mut inbox = open(&bus, "b", &[]);
    assert_eq!(
        bus.send(to(&sender("a"), "b", "hi")).await,
        Admission::Delivered
    );
    assert!(receive(&mut inbox).await.is_none());
}

struct ErrsTwice(AtomicUsize);

impl MessageHook for ErrsTwice {
    fn name(&self) -> &'static str {
        "errs-twice"
    }
    fn pre_send<'a>(&'a self, _: Message, _: HookContext<'a>) -> Step<'a> {
        Step::Done(Err(HookError::failed("the first")))
    }
    fn on_error(&self, _: &HookError, _: HookContext<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
        panic!("the second");
    }
}

/// D8 (hooks): an on_error that fails does not hide the first error.
#[tokio::test]
async fn a_failing_on_error_does_not_hide_the_error() {
    let hook = Arc::new(ErrsTwice(AtomicUsize::new(0)));
    let bus = hooked(vec![hook.clone()]);
    let _inbox = open(&bus, "b", &[]);
    let refused = Refusal::Hook {
        hook: "errs-twice".into(),
        problem: "the first".into(),
    };
    assert_eq!(
        bus.send(to(&sender("a"), "b", "hi")).await,
        Admission::Refused(refused)
    );
    assert_eq!(hook.0.load(Ordering::Relaxed), 1);
}

/// D9 (hooks): a drop in verified receive is not taken for an unverified message: different counters, different events.
#[tokio::test(start_paused = true)]
async fn a_dropped_message_is_not_an_unverified_one() {
    let (bus, metrics) = (local(), MetricsCollector::new());
    let registry = IdentityRegistry::in_memory();
    let known = volary_messaging::Identity::generate().unwrap();
    let who = volary_messaging::Sender::new(known.id(), "a".parse().unwrap(), Default::default());
    let (id, name, tenant) = (known.id(), who.name().clone(), who.tenant().clone());
    registry
        .register(id, known.public(), name, tenant)
        .await
        .unwrap();
    let unverified = Arc::new(AtomicUsize::new(0));
    let counter = unverified.clone();
    let drops: fn(Message) -> Step<'static> = |_| Step::drop("not today");
    let (builder, seen) = quiet(bus.clone());
    let runtime = builder
        .hooks(vec![Arc::new(OnReceive(drops))])
        .identity_registry(registry)
        .metrics_collector(metrics.clone())
        .on_event(move |event| {
            if matches!(event, RuntimeEvent::Unverified { .. }) {
                counter.fetch_add(1, Ordering::Relaxed);
            }
        })
        .build()
        .unwrap();
    runtime.start().await.unwrap();
    bus.send(to(&who, "agent", "dropped")).await;
    runtime.stop().await;
    assert_eq!((seen.count(), unverified.load(Ordering::Relaxed)), (0, 0));
    let all = metrics.encode_text();
    let dropped =
        r#"volary_hook_outcomes_total{hook="on-receive",stage="post_receive",outcome="dropped"} 1"#;
    assert!(all.contains(dropped), "{all}");
    assert!(
        all.contains(r#"messages_unverified_total{reason="unknown_sender"} 0"#),
        "{all}"
    );
}

struct Spy(Local, Arc<AtomicUsize>);

impl Transport for Spy {
    async fn send(&self, message: Message) -> Admission {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.send(message).await
    }
    fn open(
        &self,
        spec: volary_messaging::EndpointSpec,
    ) -> Result<volary_messaging::Endpoint, volary_messaging::transport::EndpointError> {
        self.0.open(spec)
    }
}

/// D10 (hooks): a send that a hook drops never reaches the base, and is no error of the caller. Different on purpose: it is
/// answered `Dropped`, not like a success (decision 13).
#[tokio::test]
async fn a_dropped_send_never_reaches_the_base() {
    let calls = Arc::new(AtomicUsize::new(0));
    let (hooks, _) = words(&["drop"]);
    let spy = Spy(local(), calls.clone());
    let bus = HookedTransport::new(spy, HookChain::new(hooks, &Metrics::default()));
    let answer = bus.send(to(&sender("a"), "b", "hi")).await;
    assert!(matches!(answer, Admission::Dropped { .. }), "{answer}");
    assert_eq!(calls.load(Ordering::Relaxed), 0);
}
