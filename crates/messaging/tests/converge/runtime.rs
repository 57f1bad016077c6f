//! Runtime: the loop of an agent, its stop, its failures, its tools.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use serde_json::json;
use volary_kernel::{
    clock::{self, ManualClock, SystemClock},
    collector::MetricsCollector,
    id::Tenant,
    queue::{QueueConfig, WhenFull},
    retry::Backoff,
    secret::Secret,
    testing::eventually,
};
use volary_messaging::{
    Admission, Direction, Identity, Message, MessageHook, Refusal, ReplayLog, Transport,
    agent::{
        ActionPolicy, Agent, AgentError, AgentRuntime, Companion, Custom, Cx, Decision,
        DecisionKind, Done, Failure, Observation, ResourceLimits, RestartPolicy, RuntimeError,
        RuntimeEvent, RuntimeLimits, Tool, ToolError,
    },
    hook::{HookContext, HookError, Step},
    pool::{Admit, PoolManager},
    task::{Failing, NewTask, Task, TaskId, TaskManager, TaskState, Waited},
};

use crate::support::{LONG, about, local, name, open, quiet, receive, scripted, sender, text, to};

const fn limits() -> RuntimeLimits {
    RuntimeLimits {
        inbox: QueueConfig {
            max_items: 20_000,
            max_bytes: 256 << 20,
            when_full: WhenFull::Reject,
        },
        batch: 64,
        tasks: 256,
        decisions: 1024,
        decide: Duration::from_secs(30),
        tool: Duration::from_secs(30),
        tool_output: 1 << 20,
        tool_loop: 8,
        attempts: 3,
        tick: Duration::from_secs(1),
        drain: Duration::from_secs(10),
    }
}

/// T1 (runtime): of fifteen waiting messages, a call gets ten and the next gets five.
#[tokio::test(start_paused = true)]
async fn a_call_gets_at_most_a_batch_and_the_next_gets_the_rest() {
    let bus = local();
    let (builder, seen) = quiet(bus.clone());
    let limits = RuntimeLimits {
        batch: 10,
        ..limits()
    };
    let runtime = builder.limits(limits).build().unwrap();
    runtime.start().await.unwrap();
    for n in 0..15 {
        let sent = bus.send(to(&sender("a"), "agent", &n.to_string())).await;
        assert_eq!(sent, Admission::Delivered);
    }
    assert!(eventually(LONG, || seen.count() == 15).await);
    assert_eq!(seen.sizes(), [10, 5]);
    assert!(runtime.stop().await.is_clean());
}

/// T2 (runtime): a full inbox that drops what is new keeps what came first, and says so to the sender.
#[tokio::test(start_paused = true)]
async fn a_full_inbox_that_drops_what_is_new_keeps_the_first() {
    let bus = local();
    let (builder, seen) = quiet(bus.clone());
    let inbox = QueueConfig {
        max_items: 1,
        when_full: WhenFull::DropNewest,
        ..limits().inbox
    };
    let limits = RuntimeLimits { inbox, ..limits() };
    let runtime = builder.limits(limits).build().unwrap();
    runtime.start().await.unwrap();
    let first = bus.send(to(&sender("a"), "agent", "first")).await;
    let second = bus.send(to(&sender("a"), "agent", "second")).await;
    assert_eq!(first, Admission::Delivered);
    assert!(matches!(second, Admission::Dropped { .. }), "{second}");
    assert!(runtime.stop().await.is_clean());
    assert_eq!(seen.calls(), [["first"]]);
}

/// T3 (runtime): a second start changes nothing.
#[tokio::test(start_paused = true)]
async fn a_second_start_changes_nothing() {
    let starts = Arc::new(AtomicUsize::new(0));
    let counter = starts.clone();
    let companion = Companion::new(
        "counter",
        move || {
            counter.fetch_add(1, Ordering::Relaxed);
            std::future::ready(Ok(()))
        },
        || std::future::ready(Ok(())),
    );
    let (builder, _) = quiet(local());
    let runtime = builder.ops_server(companion.clone()).build().unwrap();
    runtime.start().await.unwrap();
    runtime.start().await.unwrap();
    assert_eq!(starts.load(Ordering::Relaxed), 1);
    let late = runtime.set_ops_server(companion);
    assert!(matches!(late, Err(RuntimeError::Running(_))), "{late:?}");
    runtime.stop().await;
}

/// T4 (runtime): a stop before the start does nothing, and the runtime can still start, and start again.
#[tokio::test(start_paused = true)]
async fn a_stop_before_the_start_does_nothing_and_a_stopped_runtime_starts_again() {
    let bus = local();
    let (builder, seen) = quiet(bus.clone());
    let runtime = builder.build().unwrap();
    assert!(runtime.stop().await.is_clean());
    for round in 1..=2 {
        runtime.start().await.unwrap();
        bus.send(to(&sender("a"), "agent", "hi")).await;
        assert!(eventually(LONG, || seen.count() == round).await);
        assert!(runtime.stop().await.is_clean());
        let late = bus.send(to(&sender("a"), "agent", "late")).await;
        assert_eq!(late, Admission::NoRoute);
    }
}

struct FailsOnce(AtomicU32);

impl MessageHook for FailsOnce {
    fn name(&self) -> &'static str {
        "fails-once"
    }
    fn post_receive<'a>(&'a self, message: Message, _: HookContext<'a>) -> Step<'a> {
        match self.0.fetch_add(1, Ordering::Relaxed) {
            0 => Step::Done(Err(HookError::failed("poison"))),
            1 => panic!("worse poison"),
            _ => Step::pass(message),
        }
    }
}

/// T5 (runtime): receiving survives an error of a hook, and what follows is not even late.
#[tokio::test(start_paused = true)]
async fn receiving_survives_a_failing_hook_without_delay() {
    let bus = local();
    let (builder, seen) = quiet(bus.clone());
    let hook = Arc::new(FailsOnce(AtomicU32::new(0)));
    let runtime = builder.hooks(vec![hook]).build().unwrap();
    runtime.start().await.unwrap();
    let begun = tokio::time::Instant::now();
    for text in ["poison", "poison", "good"] {
        bus.send(to(&sender("a"), "agent", text)).await;
    }
    assert!(eventually(LONG, || seen.count() == 1).await);
    assert!(begun.elapsed() < Duration::from_millis(100));
    assert_eq!(seen.calls(), [["good"]]);
    runtime.stop().await;
}

struct Slow(Identity, Arc<AtomicUsize>);

impl Agent for Slow {
    fn identity(&self) -> &Identity {
        &self.0
    }
    async fn decide(
        &mut self,
        messages: &[Message],
        _: &[Task],
        _: &Cx<'_>,
    ) -> Result<Vec<Decision>, AgentError> {
        clock::sleep(Duration::from_millis(5)).await;
        self.1.fetch_add(messages.len(), Ordering::Relaxed);
        Ok(Vec::new())
    }
}

/// T6 (runtime): a decide that waits is fine, and does not slow a burst down to one batch a second.
#[tokio::test(start_paused = true)]
async fn a_decide_that_waits_handles_a_burst_batch_after_batch() {
    let (bus, handled) = (local(), Arc::new(AtomicUsize::new(0)));
    let agent = Slow(Identity::generate().unwrap(), handled.clone());
    let runtime = AgentRuntime::builder(agent, bus.clone())
        .name(name("agent"))
        .limits(limits())
        .build()
        .unwrap();
    runtime.start().await.unwrap();
    let begun = tokio::time::Instant::now();
    for _ in 0..10_000 {
        bus.send(to(&sender("a"), "agent", "x")).await;
    }
    assert!(eventually(LONG, || handled.load(Ordering::Relaxed) == 10_000).await);
    // 157 batches of 64, 5 ms each, and nothing between them.
    assert!(
        begun.elapsed() < Duration::from_millis(157 * 8),
        "{:?}",
        begun.elapsed()
    );
    assert!(runtime.stop().await.is_clean());
}

/// Beats the reference (stranded inbox): a burst is handled without any wait between batches.
#[tokio::test(start_paused = true)]
async fn a_burst_of_ten_thousand_is_handled_without_a_wait() {
    let (bus, metrics) = (local(), MetricsCollector::new());
    let (builder, seen) = quiet(bus.clone());
    let builder = builder.limits(limits()).metrics_collector(metrics.clone());
    let runtime = builder.build().unwrap();
    runtime.start().await.unwrap();
    let begun = tokio::time::Instant::now();
    for _ in 0..10_000 {
        let sent = bus.send(to(&sender("a"), "agent", "x")).await;
        assert_eq!(sent, Admission::Delivered);
    }
    while seen.count() < 10_000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(begun.elapsed(), Duration::ZERO, "no timer had to fire");
    assert_eq!(metrics.snapshot().counters["messages_received"], 10_000);
    let report = runtime.stop().await;
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.handled, 10_000);
}

// --- failures --------------------------------------------------------------------------------

fn quick_restart() -> RestartPolicy {
    let backoff = Backoff {
        base: Duration::from_secs(1),
        factor: 2.0,
        max: Duration::from_secs(8),
        jitter: 0.0,
    };
    RestartPolicy {
        backoff,
        ..RestartPolicy::default()
    }
}

/// Beats the reference (zombie loop): a poison message costs itself after a bounded number of attempts, is told, and the
/// others of its batch are handled once.
#[tokio::test(start_paused = true)]
async fn a_poison_message_costs_itself_and_is_told() {
    let bus = local();
    let (builder, seen) = scripted(bus.clone(), |messages, _, _| {
        let poison = messages.iter().any(|message| text(message) == "poison");
        assert!(!poison, "I do not like this");
        Ok(Vec::new())
    });
    let events = Arc::new(Mutex::new(Vec::new()));
    let log = events.clone();
    let runtime = builder
        .restart(quick_restart())
        .on_event(move |event| log.lock().push(event.clone()))
        .build()
        .unwrap();
    runtime.start().await.unwrap();
    for text in ["one", "poison", "two"] {
        bus.send(to(&sender("a"), "agent", text)).await;
    }
    assert!(
        eventually(LONG, || seen
            .calls()
            .last()
            .is_some_and(|last| last == &["two"]))
        .await
    );
    assert!(
        eventually(LONG, || runtime.is_ready()).await,
        "it works again"
    );
    let calls = seen.calls();
    assert_eq!(calls[0], ["one", "poison", "two"]);
    assert_eq!(calls[1], ["one"], "alone, after the back-off");
    assert_eq!(calls[2..], [["poison"], ["poison"], ["two"]]);
    let given_up = events.lock().iter().any(|event| {
        matches!(event, RuntimeEvent::Unhandled { message, reason }
            if text(message) == "poison" && reason.contains("given up after 3 attempts"))
    });
    assert!(given_up, "{:?}", events.lock());
    let report = runtime.stop().await;
    assert_eq!((report.handled, report.is_clean()), (2, true), "{report:?}");
}

/// Beats the reference: errors, panics and time-outs of decide and on_tick are a back-off, not the end; a crash loop is
/// unhealthy and says why; when the agent works again, so does health.
#[tokio::test(start_paused = true)]
async fn a_crash_loop_is_unhealthy_until_the_agent_works() {
    let bus = local();
    let broken = Arc::new(AtomicUsize::new(6));
    let left = broken.clone();
    let (builder, seen) = scripted(bus.clone(), move |_, _, _| {
        let failing = left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
            .is_ok();
        if failing {
            Err("model is down".into())
        } else {
            Ok(Vec::new())
        }
    });
    let runtime = builder
        .restart(quick_restart())
        .limits(RuntimeLimits {
            attempts: 100,
            ..limits()
        })
        .build()
        .unwrap();
    runtime.start().await.unwrap();
    bus.send(to(&sender("a"), "agent", "work")).await;
    assert!(eventually(LONG, || !runtime.is_ready()).await, "at once");
    assert!(runtime.is_healthy(), "one failure is no crash loop");
    assert!(eventually(LONG, || !runtime.is_healthy()).await);
    let report = runtime.probe().health();
    let reason = report.checks.iter().find_map(|check| check.reason.clone());
    let reason = reason.unwrap();
    assert!(
        reason.contains("crash loop") && reason.contains("model is down"),
        "{reason}"
    );
    assert!(eventually(LONG, || runtime.is_healthy() && runtime.is_ready()).await);
    assert_eq!(seen.calls().len(), 7);
    assert!(runtime.stop().await.is_clean());
}

/// A decide that never returns is cut at its time and counts as a failure.
#[tokio::test(start_paused = true)]
async fn a_decide_that_hangs_is_cut_and_its_message_is_tried_again() {
    struct Hangs(Identity, bool, Arc<AtomicUsize>);
    impl Agent for Hangs {
        fn identity(&self) -> &Identity {
            &self.0
        }
        async fn decide(
            &mut self,
            messages: &[Message],
            _: &[Task],
            _: &Cx<'_>,
        ) -> Result<Vec<Decision>, AgentError> {
            if std::mem::take(&mut self.1) {
                std::future::pending::<()>().await;
            }
            self.2.fetch_add(messages.len(), Ordering::Relaxed);
            Ok(Vec::new())
        }
    }
    let (bus, handled) = (local(), Arc::new(AtomicUsize::new(0)));
    let agent = Hangs(Identity::generate().unwrap(), true, handled.clone());
    let metrics = MetricsCollector::new();
    let runtime = AgentRuntime::builder(agent, bus.clone())
        .name(name("agent"))
        .metrics_collector(metrics.clone())
        .build()
        .unwrap();
    runtime.start().await.unwrap();
    bus.send(to(&sender("a"), "agent", "work")).await;
    assert!(eventually(LONG, || handled.load(Ordering::Relaxed) == 1).await);
    assert_eq!(metrics.snapshot().counters["agent_failures_total"], 1);
    assert!(runtime.stop().await.is_clean());
}

/// When the policy gives up, the loop ends, health says so, and what was not handled is told.
#[tokio::test(start_paused = true)]
async fn an_agent_that_is_given_up_leaves_a_dead_loop_that_health_names() {
    let bus = local();
    let (builder, _) = scripted(bus.clone(), |_, _, _| Err("never".into()));
    let restart = RestartPolicy {
        give_up: Some(2),
        ..quick_restart()
    };
    let runtime = builder.restart(restart).build().unwrap();
    runtime.start().await.unwrap();
    bus.send(to(&sender("a"), "agent", "lost")).await;
    assert!(eventually(LONG, || !runtime.is_healthy()).await);
    let health = runtime.probe().health();
    let ended = health
        .checks
        .iter()
        .any(|check| check.reason.as_deref() == Some("its loop ended"));
    assert!(ended, "{health:?}");
    assert!(!runtime.is_ready());
    let gone = bus.send(to(&sender("a"), "agent", "late")).await;
    assert_eq!(gone, Admission::NoRoute);
    let report = runtime.stop().await;
    assert_eq!(report.unhandled.len(), 1);
    assert!(report.problems[0].contains("gave up after 2"), "{report:?}");
}

/// Beats the reference: an agent that blocks its thread turns health bad within five seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_blocks_its_thread_is_unhealthy_within_five_seconds() {
    let (bus, time) = (local(), ManualClock::default());
    let (release, blocked) = std::sync::mpsc::channel::<()>();
    let (builder, seen) = scripted(bus.clone(), move |_, _, _| {
        let _released = blocked.recv();
        Ok(Vec::new())
    });
    let runtime = builder.clock(time.shared()).build().unwrap();
    runtime.start().await.unwrap();
    bus.send(to(&sender("a"), "agent", "block")).await;
    assert!(eventually(Duration::from_secs(20), || seen.count() == 1).await);
    assert!(runtime.is_healthy());
    time.advance(Duration::from_secs(5));
    assert!(!runtime.is_healthy());
    release.send(()).unwrap();
    assert!(eventually(Duration::from_secs(20), || runtime.is_healthy()).await);
    assert!(runtime.stop().await.is_clean());
}

// --- stop ------------------------------------------------------------------------------------

/// A stop handles what was received, takes nothing more, and calls on_stop last.
#[tokio::test(start_paused = true)]
async fn a_stop_drains_the_inbox() {
    let (bus, handled) = (local(), Arc::new(AtomicUsize::new(0)));
    let agent = Slow(Identity::generate().unwrap(), handled.clone());
    let runtime = AgentRuntime::builder(agent, bus.clone())
        .name(name("agent"))
        .build()
        .unwrap();
    runtime.start().await.unwrap();
    for _ in 0..500 {
        bus.send(to(&sender("a"), "agent", "x")).await;
    }
    let report = runtime.stop().await;
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(handled.load(Ordering::Relaxed), 500);
    assert_eq!(report.handled, 500);
}

/// Beats the reference (no drain): what a stop could not handle within its time is told, message by message.
#[tokio::test(start_paused = true)]
async fn what_a_stop_could_not_handle_is_told() {
    struct Stuck(Identity);
    impl Agent for Stuck {
        fn identity(&self) -> &Identity {
            &self.0
        }
        async fn decide(
            &mut self,
            _: &[Message],
            _: &[Task],
            _: &Cx<'_>,
        ) -> Result<Vec<Decision>, AgentError> {
            std::future::pending().await
        }
    }
    let (bus, told) = (local(), Arc::new(Mutex::new(Vec::new())));
    let log = told.clone();
    let limits = RuntimeLimits {
        batch: 2,
        decide: LONG,
        ..limits()
    };
    let runtime = AgentRuntime::builder(Stuck(Identity::generate().unwrap()), bus.clone())
        .name(name("agent"))
        .limits(limits)
        .on_event(move |event| {
            if let RuntimeEvent::Unhandled { message, .. } = event {
                log.lock().push(text(message));
            }
        })
        .build()
        .unwrap();
    runtime.start().await.unwrap();
    for n in 0..5 {
        bus.send(to(&sender("a"), "agent", &n.to_string())).await;
    }
    let report = runtime.stop().await;
    let all: Vec<String> = (0..5).map(|n| n.to_string()).collect();
    let unhandled: Vec<String> = report.unhandled.iter().map(text).collect();
    assert_eq!(
        unhandled, all,
        "those with the agent and those in the inbox"
    );
    assert_eq!(*told.lock(), all);
    assert!(!report.is_clean());
    assert!(!runtime.is_ready());
}

// --- decisions and tools ---------------------------------------------------------------------

fn observed(cx: &Cx<'_>, log: &Mutex<Vec<Observation>>) {
    log.lock().extend_from_slice(cx.observations());
}

fn invoke(tool: &str) -> Decision {
    Decision::InvokeTool {
        call: "call-1".into(),
        tool: tool.into(),
        params: json!({"n": 1}),
    }
}

/// Beats the reference: a tool's result comes in the next call, which has no messages again, so that what was decided
/// beside it is done once.
#[tokio::test(start_paused = true)]
async fn a_tool_result_comes_in_the_next_call_and_nothing_is_repeated() {
    let bus = local();
    let mut sink = open(&bus, "sink", &[]);
    let log = Arc::new(Mutex::new(Vec::new()));
    let seen_by_agent = log.clone();
    let (builder, _) = scripted(bus.clone(), move |messages, _, cx| {
        observed(cx, &seen_by_agent);
        let Some(message) = messages.first() else {
            return Ok(Vec::new());
        };
        let note = cx.message().to(name("sink")).json(&text(message))?;
        Ok(vec![
            Decision::SendMessage(note.build(cx.now())?),
            invoke("double"),
        ])
    });
    let double = Tool::typed(
        "double",
        json!({"type": "object"}),
        async |params: std::collections::BTreeMap<String, i64>| Ok(json!(params["n"] * 2)),
    );
    let metrics = MetricsCollector::new();
    let runtime = builder
        .tool(double)
        .metrics_collector(metrics.clone())
        .build()
        .unwrap();
    runtime.start().await.unwrap();
    bus.send(to(&sender("a"), "agent", "go")).await;
    assert!(eventually(LONG, || log.lock().len() == 2).await);
    let results: Vec<_> = log.lock().iter().map(|seen| seen.result.clone()).collect();
    assert_eq!(
        results,
        [
            Ok(Done::Sent(Admission::Delivered)),
            Ok(Done::Tool(json!(2)))
        ]
    );
    assert_eq!(log.lock()[1].about, "call-1");
    runtime.stop().await;
    assert_eq!(
        receive(&mut sink).await.map(|sent| text(&sent)).as_deref(),
        Some("go")
    );
    assert!(receive(&mut sink).await.is_none(), "sent once");
    let counters = metrics.snapshot().counters;
    assert_eq!(
        (
            counters["messages_sent"],
            counters["tools_invoked"],
            counters["decisions_executed"]
        ),
        (1, 1, 2)
    );
}

/// Beats the reference (bypass in the tool loop): a tool that is not on the list does not run, in any pass.
#[tokio::test(start_paused = true)]
async fn the_policy_is_asked_in_every_pass_of_the_tool_loop() {
    let bus = local();
    let ran = Arc::new(AtomicUsize::new(0));
    let log = Arc::new(Mutex::new(Vec::new()));
    let seen_by_agent = log.clone();
    let (builder, _) = scripted(bus.clone(), move |messages, _, cx| {
        observed(cx, &seen_by_agent);
        Ok(match (messages.len(), cx.observations().len()) {
            (1, _) => vec![invoke("read")],
            (0, 1) => vec![invoke("delete"), invoke("read")],
            _ => Vec::new(),
        })
    });
    let counter = ran.clone();
    let read = Tool::new("read", json!({}), async |_| Ok(json!("read")));
    let delete = Tool::new("delete", json!({}), move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
        std::future::ready(Ok(json!("gone")))
    });
    let metrics = MetricsCollector::new();
    let runtime = builder
        .tool(read)
        .tool(delete)
        .policy(ActionPolicy::deny_all().allow_tool("read"))
        .metrics_collector(metrics.clone())
        .build()
        .unwrap();
    runtime.start().await.unwrap();
    bus.send(to(&sender("a"), "agent", "go")).await;
    assert!(eventually(LONG, || log.lock().len() == 3).await);
    assert!(matches!(log.lock()[1].result, Err(Failure::Denied(_))));
    assert_eq!(ran.load(Ordering::Relaxed), 0);
    let counters = metrics.snapshot().counters;
    assert_eq!(
        (
            counters["decisions_denied_total"],
            counters["tools_invoked"]
        ),
        (1, 2)
    );
    runtime.stop().await;
}

/// Beats the reference: an empty allow-list denies everything.
#[tokio::test(start_paused = true)]
async fn an_empty_policy_denies_everything() {
    let bus = local();
    let mut sink = open(&bus, "sink", &[]);
    let (builder, _) = scripted(bus.clone(), |messages, _, cx| {
        let note = cx.message().to(name("sink")).json("x")?.build(cx.now())?;
        Ok(messages
            .iter()
            .map(|_| Decision::SendMessage(note.clone()))
            .collect())
    });
    let denied = Arc::new(AtomicUsize::new(0));
    let counter = denied.clone();
    let runtime = builder
        .policy(ActionPolicy::allowing([]))
        .on_event(move |event| {
            if matches!(event, RuntimeEvent::Denied { .. }) {
                counter.fetch_add(1, Ordering::Relaxed);
            }
        })
        .build()
        .unwrap();
    runtime.start().await.unwrap();
    bus.send(to(&sender("a"), "agent", "go")).await;
    assert!(eventually(LONG, || denied.load(Ordering::Relaxed) == 1).await);
    runtime.stop().await;
    assert!(receive(&mut sink).await.is_none());
}

struct Dropped(Arc<AtomicUsize>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Beats the reference: a tool past its time is cancelled, not left running; panics and sizes are contained.
#[tokio::test(start_paused = true)]
async fn a_tool_past_its_time_is_cancelled_counted_and_told() {
    let bus = local();
    let log = Arc::new(Mutex::new(Vec::new()));
    let seen_by_agent = log.clone();
    let (builder, _) = scripted(bus.clone(), move |messages, _, cx| {
        observed(cx, &seen_by_agent);
        Ok(messages
            .iter()
            .flat_map(|_| ["hang", "panic", "large", "missing"].map(invoke))
            .collect())
    });
    let cancelled = Arc::new(AtomicUsize::new(0));
    let flag = cancelled.clone();
    let hang = Tool::new("hang", json!({}), move |_| {
        let guard = Dropped(flag.clone());
        async move {
            let _guard = guard;
            std::future::pending().await
        }
    })
    .timeout(Duration::from_secs(2));
    let panics = Tool::new("panic", json!({}), async |_| panic!("boom"));
    let large = Tool::new("large", json!({}), async |_| Ok(json!("x".repeat(2 << 20))));
    let metrics = MetricsCollector::new();
    let runtime = builder
        .tool(hang)
        .tool(panics)
        .tool(large)
        .metrics_collector(metrics.clone())
        .build()
        .unwrap();
    runtime.start().await.unwrap();
    bus.send(to(&sender("a"), "agent", "go")).await;
    assert!(eventually(LONG, || log.lock().len() == 4).await);
    assert_eq!(cancelled.load(Ordering::Relaxed), 1);
    let results: Vec<_> = log.lock().iter().map(|seen| seen.result.clone()).collect();
    assert_eq!(
        results[0],
        Err(Failure::Tool(ToolError::TimedOut(Duration::from_secs(2))))
    );
    assert_eq!(
        results[1],
        Err(Failure::Tool(ToolError::Panicked("boom".into())))
    );
    assert!(
        matches!(&results[2], Err(Failure::Tool(ToolError::TooLarge { limit, .. })) if *limit == 1 << 20)
    );
    assert!(matches!(&results[3], Err(Failure::Invalid(words)) if words.contains("missing")));
    assert_eq!(metrics.snapshot().counters["tool_timeouts_total"], 1);
    runtime.stop().await;
}

/// A tool loop that never ends is stopped after a bounded number of passes, until something new comes.
#[tokio::test(start_paused = true)]
async fn an_endless_tool_loop_pauses_until_the_next_input() {
    let (bus, runs) = (local(), Arc::new(AtomicUsize::new(0)));
    let (builder, _) = scripted(bus.clone(), |_, _, _| Ok(vec![invoke("again")]));
    let counter = runs.clone();
    let again = Tool::new("again", json!({}), move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
        std::future::ready(Ok(json!(null)))
    });
    let runtime = builder.tool(again).limits(limits()).build().unwrap();
    runtime.start().await.unwrap();
    bus.send(to(&sender("a"), "agent", "go")).await;
    clock::sleep(Duration::from_secs(60)).await;
    assert_eq!(
        runs.load(Ordering::Relaxed),
        9,
        "one for the message, eight passes"
    );
    bus.send(to(&sender("a"), "agent", "go")).await;
    clock::sleep(Duration::from_secs(60)).await;
    assert_eq!(runs.load(Ordering::Relaxed), 18);
    runtime.stop().await;
}

/// Own decisions go to their handler, under the same policy; somebody else's message is not sent.
#[tokio::test(start_paused = true)]
async fn own_decisions_and_foreign_messages() {
    let bus = local();
    let log = Arc::new(Mutex::new(Vec::new()));
    let seen_by_agent = log.clone();
    let (builder, _) = scripted(bus.clone(), move |messages, _, cx| {
        observed(cx, &seen_by_agent);
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        let own = |kind: &str| Decision::Custom {
            kind: kind.into(),
            body: json!(20),
        };
        let forged = to(&sender("boss"), "agent", "obey");
        Ok(vec![own("bid"), own("vote"), Decision::SendMessage(forged)])
    });
    let bid = Custom::new("bid", async |body| Ok(json!({"bid": body})));
    let runtime = builder.custom(bid).build().unwrap();
    runtime.start().await.unwrap();
    bus.send(to(&sender("a"), "agent", "go")).await;
    assert!(eventually(LONG, || log.lock().len() == 3).await);
    let results: Vec<_> = log.lock().iter().map(|seen| seen.result.clone()).collect();
    assert_eq!(results[0], Ok(Done::Custom(json!({"bid": 20}))));
    assert!(matches!(&results[1], Err(Failure::Invalid(words)) if words.contains("vote")));
    assert!(
        matches!(&results[2], Err(Failure::Invalid(words)) if words.contains("not from this agent"))
    );
    assert_eq!(log.lock()[2].kind, DecisionKind::SendMessage);
    runtime.stop().await;
}

/// A refused send is an observation, too: the agent learns what became of every message.
#[tokio::test(start_paused = true)]
async fn what_became_of_a_send_is_told() {
    let bus = local();
    let log = Arc::new(Mutex::new(Vec::new()));
    let seen_by_agent = log.clone();
    let (builder, _) = scripted(bus.clone(), move |messages, _, cx| {
        observed(cx, &seen_by_agent);
        let mut sends = Vec::new();
        for _ in messages {
            let nowhere = cx.message().topic("nobody".parse()?).json("x")?;
            sends.push(Decision::SendMessage(nowhere.build(cx.now())?));
        }
        Ok(sends)
    });
    let runtime = builder.topic("work".parse().unwrap()).build().unwrap();
    runtime.start().await.unwrap();
    bus.send(about(&sender("a"), "work", "1")).await;
    clock::sleep(Duration::from_secs(5)).await;
    bus.send(about(&sender("a"), "work", "2")).await;
    assert!(eventually(LONG, || log.lock().len() == 1).await);
    assert_eq!(log.lock()[0].result, Ok(Done::Sent(Admission::NoRoute)));
    runtime.stop().await;
    assert_eq!(
        bus.send(about(&sender("a"), "work", "3")).await,
        Admission::NoRoute
    );
    bus.close();
    let closed = bus.send(about(&sender("a"), "work", "4")).await;
    assert_eq!(closed, Admission::Refused(Refusal::Closed));
}

/// T7 (replay): a runtime with a log records what it receives, sender kept, and what it sends.
#[tokio::test(start_paused = true)]
async fn a_runtime_with_a_log_records_what_it_receives_and_sends() {
    let (bus, log) = (local(), ReplayLog::new());
    let _sink = open(&bus, "sink", &[]);
    let (builder, seen) = scripted(bus.clone(), |messages, _, cx| {
        let mut sends = Vec::new();
        for _ in messages {
            let note = cx.message().to(name("sink")).json("noted")?;
            sends.push(Decision::SendMessage(note.build(cx.now())?));
            let lost = cx.message().to(name("nobody")).json("lost")?;
            sends.push(Decision::SendMessage(lost.build(cx.now())?));
        }
        Ok(sends)
    });
    let runtime = builder.replay_log(log.clone()).build().unwrap();
    runtime.start().await.unwrap();
    let sent = to(&sender("a"), "agent", "hi");
    bus.send(sent.clone()).await;
    assert!(runtime.stop().await.is_clean());
    assert_eq!(seen.count(), 1);
    let recorded = log.messages().await.unwrap();
    let ways: Vec<_> = recorded.iter().map(|planned| planned.direction).collect();
    assert_eq!(
        ways,
        [Direction::Inbound, Direction::Outbound],
        "what was not taken is not there"
    );
    assert_eq!(
        (&recorded[0].message, recorded[0].agent.as_str()),
        (&sent, "agent")
    );
    assert_eq!(text(&recorded[1].message), "noted");
}

// --- tasks -----------------------------------------------------------------------------------

/// An agent claims what it is shown, works, and reports; it is asked about the same tasks once; what it may not see it can
/// not claim.
#[tokio::test(start_paused = true)]
async fn tasks_are_shown_claimed_and_reported_once() {
    let tasks = TaskManager::in_memory(SystemClock::shared()).await.unwrap();
    let tenant = Tenant::default();
    let submit = async |cpu: u32, pool: Option<&str>| {
        let new = NewTask {
            constraints: json!({"cpu": cpu}),
            pool: pool.map(name),
            ..NewTask::default()
        };
        tasks
            .submit(&tenant, &name("boss"), new)
            .await
            .unwrap()
            .id()
    };
    let small = submit(1, None).await;
    let large = submit(8, None).await;
    let foreign = submit(1, Some("elsewhere")).await;
    let shown = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::new(Mutex::new(Vec::new()));
    let (list, seen_by_agent) = (shown.clone(), log.clone());
    let (builder, _) = scripted(local(), move |_, tasks, cx| {
        observed(cx, &seen_by_agent);
        list.lock().push(tasks.len());
        let first = cx.observations().is_empty() && list.lock().len() == 1;
        let mut decisions = Vec::new();
        if first {
            let wanted = tasks.iter().map(|task| task.id).chain([foreign]);
            decisions.extend(wanted.map(|task| Decision::ClaimTask { task }));
        }
        for observation in cx.observations() {
            if let Ok(Done::Claimed(task)) = &observation.result {
                let (task, result) = (task.id, json!({"done": true}));
                decisions.push(Decision::ReportTask { task, result });
            }
        }
        Ok(decisions)
    });
    let runtime = builder
        .task_manager(tasks.clone())
        .resources(ResourceLimits {
            cpu: Some(2.0),
            memory_mb: None,
        })
        .build()
        .unwrap();
    runtime.start().await.unwrap();
    let waited = tasks.wait_until_done(&tenant, small, LONG).await.unwrap();
    let Waited::Done(done) = waited else {
        panic!("{waited:?}")
    };
    assert_eq!(
        (done.state, done.result),
        (TaskState::Completed, Some(json!({"done": true})))
    );
    let calls = shown.lock().len();
    clock::sleep(Duration::from_secs(60)).await;
    let more = shown.lock().len() - calls;
    assert!(more <= 2, "asked {more} times about the same tasks");
    let denied = |id: TaskId| {
        let id = id.to_string();
        let all = log.lock();
        let mut about = all.iter().filter(|seen| seen.about == id);
        about.all(|seen| matches!(seen.result, Err(Failure::Denied(_))))
    };
    assert!(denied(large) && denied(foreign), "{:?}", log.lock());
    assert!(runtime.stop().await.is_clean());
    assert_eq!(
        tasks.get(&tenant, large).await.unwrap().state,
        TaskState::Pending
    );
}

/// A claim is renewed as long as the loop turns, and given back at the stop; a report without a claim is refused.
#[tokio::test(start_paused = true)]
async fn a_claim_is_renewed_while_the_loop_turns_and_given_back_at_the_stop() {
    let tasks = TaskManager::in_memory(SystemClock::shared()).await.unwrap();
    let tenant = Tenant::default();
    let new = NewTask {
        claim_ttl: Some(Duration::from_secs(3)),
        ..NewTask::default()
    };
    let id = tasks
        .submit(&tenant, &name("boss"), new)
        .await
        .unwrap()
        .id();
    let log = Arc::new(Mutex::new(Vec::new()));
    let seen_by_agent = log.clone();
    let (builder, _) = scripted(local(), move |_, tasks, cx| {
        observed(cx, &seen_by_agent);
        let mut decisions = Vec::new();
        for task in tasks.iter().filter(|task| task.state == TaskState::Pending) {
            let (not_mine, reason) = (TaskId::generate(), "no".to_owned());
            decisions.push(Decision::ClaimTask { task: task.id });
            decisions.push(Decision::FailTask {
                task: not_mine,
                reason,
                then: Failing::GiveUp,
            });
        }
        Ok(decisions)
    });
    let runtime = builder.task_manager(tasks.clone()).build().unwrap();
    runtime.start().await.unwrap();
    assert!(eventually(LONG, || log.lock().len() == 2).await);
    assert!(matches!(&log.lock()[0].result, Ok(Done::Claimed(task)) if task.id == id));
    assert!(
        matches!(&log.lock()[1].result, Err(Failure::Invalid(words)) if words.contains("not authorized"))
    );
    clock::sleep(Duration::from_secs(30)).await;
    let held = tasks.get(&tenant, id).await.unwrap();
    assert_eq!((held.state, held.attempts), (TaskState::Claimed, 1));
    assert!(runtime.stop().await.is_clean());
    let given_back = tasks.get(&tenant, id).await.unwrap();
    assert_eq!(
        (given_back.state, given_back.attempts),
        (TaskState::Pending, 0)
    );
}

/// An agent creates, joins and leaves pools; of what a pool keeps to its members it is shown nothing before it joins.
#[tokio::test(start_paused = true)]
async fn pools_are_created_joined_and_left_and_open_their_tasks() {
    let clock = SystemClock::shared();
    let tasks = TaskManager::in_memory(clock.clone()).await.unwrap();
    let pools = PoolManager::in_memory(clock).await.unwrap();
    let (tenant, crew) = (Tenant::default(), name("crew"));
    let new = NewTask {
        pool: Some(crew.clone()),
        ..NewTask::default()
    };
    tasks.submit(&tenant, &name("boss"), new).await.unwrap();
    let (bus, shown, log) = (
        local(),
        Arc::new(AtomicUsize::new(0)),
        Arc::new(Mutex::new(Vec::new())),
    );
    let (most, seen_by_agent) = (shown.clone(), log.clone());
    let (builder, _) = scripted(bus.clone(), move |messages, tasks, cx| {
        observed(cx, &seen_by_agent);
        most.fetch_max(tasks.len(), Ordering::Relaxed);
        let pool = name("crew");
        let token = || Some(Secret::new("a token of enough bytes"));
        let decide = |message: &Message| match text(message).as_str() {
            "create" => Decision::CreatePool {
                pool: pool.clone(),
                admit: Admit::Token(Secret::new("a token of enough bytes")),
            },
            "sneak" => Decision::JoinPool {
                pool: pool.clone(),
                token: None,
            },
            "join" => Decision::JoinPool {
                pool: pool.clone(),
                token: token(),
            },
            _ => Decision::LeavePool { pool: pool.clone() },
        };
        Ok(messages.iter().map(decide).collect())
    });
    let metrics = MetricsCollector::new();
    let runtime = builder
        .task_manager(tasks.clone())
        .pool_manager(pools.clone())
        .metrics_collector(metrics.clone())
        .build()
        .unwrap();
    runtime.start().await.unwrap();
    for word in ["create", "sneak"] {
        bus.send(to(&sender("a"), "agent", word)).await;
    }
    clock::sleep(Duration::from_secs(5)).await;
    assert_eq!(shown.load(Ordering::Relaxed), 0, "no member yet");
    bus.send(to(&sender("a"), "agent", "join")).await;
    assert!(eventually(LONG, || shown.load(Ordering::Relaxed) == 1).await);
    assert_eq!(metrics.snapshot().gauges["pool_size"], 1.0);
    let joined = pools.of_agent(&tenant, &name("agent"));
    assert_eq!(joined, std::slice::from_ref(&crew));
    bus.send(to(&sender("a"), "agent", "leave")).await;
    assert!(eventually(LONG, || pools.of_agent(&tenant, &name("agent")).is_empty()).await);
    assert!(runtime.stop().await.is_clean());
    let results: Vec<_> = log.lock().iter().map(|seen| seen.result.clone()).collect();
    assert_eq!(results[0], Ok(Done::Pool(true)));
    assert!(
        matches!(&results[1], Err(Failure::Failed(words)) if words.contains("does not let `agent` in"))
    );
    assert_eq!(results[2], Ok(Done::Pool(true)));
}
