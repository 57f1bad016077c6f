//! Cases 12, 36 to 39 and 65 to 71: errors of flows, events, logs and metrics.

use std::{
    error::Error as _,
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use serde_json::{Map, Value};
use tracing::Level;
use volary_flow::{
    Envelope, FlowError, FlowErrorCode, NodeError, Outcome, RunConfig,
    graph::{Flow, FlowBuilder},
    observe::{FlowEvent, FlowEventKind, LOG_TARGET, Observer, configure_logging, log_flow_events},
    policy::NodePolicy,
};
use volary_kernel::{
    clock,
    secret::{Redactor, Secret},
};

use crate::seen::{Seen, ms, of, soon, tenant, until};

/// One node that fails so often, then returns what it got.
fn failing(times: u32, policy: NodePolicy) -> Flow<u64, u64> {
    let failed = Arc::new(AtomicU32::new(0));
    let mut b = FlowBuilder::new("orders");
    let charge = b.node("charge", move |n: u64, _| {
        let fails = failed.fetch_add(1, Ordering::Relaxed) < times;
        async move {
            if fails {
                return Err(io::Error::other("card canary-1234 refused").into());
            }
            Ok(n)
        }
    });
    b.policy(charge, policy).ingress(charge).egress(charge);
    b.build().unwrap()
}

fn retries(max_retries: u32) -> NodePolicy {
    NodePolicy {
        max_retries,
        ..NodePolicy::default()
    }
}

/// One node that never returns, with a timeout.
fn hanging() -> Flow<u64, u64> {
    let mut b = FlowBuilder::new("orders");
    let charge = b.node("charge", |_: u64, _| {
        std::future::pending::<Result<u64, NodeError>>()
    });
    let policy = NodePolicy {
        timeout: Some(ms(50)),
        ..NodePolicy::default()
    };
    b.policy(charge, policy).ingress(charge).egress(charge);
    b.build().unwrap()
}

async fn failure_of(flow: &Flow<u64, u64>, config: RunConfig) -> FlowError {
    let running = flow.start(config);
    let handle = running.emit(of("demo", 1)).await.unwrap();
    let trace = handle.trace_id();
    let outcome = soon("a trace that fails", handle.outcome()).await;
    running.stop(ms(1_000)).await;
    let Outcome::Failed(error) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(error.trace_id, trace);
    *error
}

/// All events of one trace, the flow stopped.
async fn events_of(flow: &Flow<u64, u64>) -> Vec<FlowEvent> {
    let (seen, config) = Seen::config();
    let running = flow.start(config);
    let handle = running.emit(of("demo", 1)).await.unwrap();
    let trace = handle.trace_id();
    soon("a trace that ends", handle.outcome()).await;
    running.stop(ms(1_000)).await;
    seen.whole(trace).await
}

fn one<'a>(events: &'a [FlowEvent], name: &str) -> &'a FlowEvent {
    let mut same = events.iter().filter(|event| event.kind.as_str() == name);
    let (Some(first), None) = (same.next(), same.next()) else {
        panic!("not one {name} in {events:?}");
    };
    first
}

#[tokio::test(start_paused = true)]
async fn an_observer_sees_the_success_of_a_node() {
    let events = events_of(&failing(0, NodePolicy::default())).await;
    let names: Vec<_> = events.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(
        names,
        ["trace_start", "node_start", "node_success", "trace_end"]
    );
    let success = one(&events, "node_success");
    assert_eq!(success.node.as_ref().unwrap().as_str(), "charge");
    assert_eq!((success.attempt, success.tenant.as_str()), (1, "demo"));
}

/// Fused or not, and whatever place a node has in its task: each is told of, in the order of the trace.
#[tokio::test(start_paused = true)]
async fn an_observer_sees_each_node_of_a_chain_fused_or_not() {
    for fuse in [true, false] {
        let mut b = FlowBuilder::<u64, u64>::new("orders");
        let pass = |n: u64, _| async move { Ok::<_, NodeError>(n) };
        let [first, second, third] = ["first", "second", "third"].map(|name| b.node(name, pass));
        b.ingress(first).connect(first, second);
        b.connect(second, third).egress(third);
        let (seen, config) = Seen::config();
        let running = b.build().unwrap().start(RunConfig { fuse, ..config });
        let handle = running.emit(of("demo", 1)).await.unwrap();
        let trace = handle.trace_id();
        soon("a trace that ends", handle.outcome()).await;
        running.stop(ms(1_000)).await;
        let told: Vec<_> = seen
            .whole(trace)
            .await
            .iter()
            .map(|event| {
                let node = event.node.as_ref().map_or("-", |node| node.as_str());
                format!("{} {node}", event.kind.as_str())
            })
            .collect();
        let wanted = [
            "trace_start -",
            "node_start first",
            "node_success first",
            "node_start second",
            "node_success second",
            "node_start third",
            "node_success third",
            "trace_end -",
        ];
        assert_eq!(told, wanted, "fused: {fuse}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_payload_of_a_failure_reads_back_and_its_source_is_the_original() {
    let error = failure_of(&failing(9, NodePolicy::default()), RunConfig::default()).await;
    let payload = error.to_payload();
    assert_eq!(payload["code"], "node_error");
    assert_eq!(payload["node"], "charge");
    assert!(
        !payload.contains_key("timeout_seconds"),
        "what is unset is left out"
    );
    let back: FlowError = serde_json::from_value(Value::Object(payload)).unwrap();
    assert_eq!(back.to_payload(), error.to_payload());
    let original = error.source().unwrap();
    assert!(original.downcast_ref::<io::Error>().is_some());
    assert_eq!(original.to_string(), "card canary-1234 refused");
}

#[tokio::test(start_paused = true)]
async fn a_failure_reaches_who_waits_for_the_trace_and_names_node_and_attempts() {
    let error = failure_of(&failing(9, retries(1)), RunConfig::default()).await;
    assert_eq!(error.code, FlowErrorCode::NodeError);
    assert_eq!((error.node.as_str(), error.attempts), ("charge", 2));
}

#[tokio::test(start_paused = true)]
async fn a_timeout_names_its_limit_and_its_attempt() {
    let error = failure_of(&hanging(), RunConfig::default()).await;
    assert_eq!(error.code, FlowErrorCode::NodeTimeout);
    assert_eq!((error.timeout, error.attempts), (Some(ms(50)), 1));
    assert_eq!(error.to_payload()["timeout_seconds"], 0.05);
}

#[tokio::test(start_paused = true)]
async fn events_of_an_error_and_of_a_failure_carry_its_text() {
    let events = events_of(&failing(9, NodePolicy::default())).await;
    for name in ["node_error", "node_failed"] {
        let payload = one(&events, name).to_payload();
        assert_eq!(payload["error"], "card canary-1234 refused", "{payload:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_keys_of_an_event_are_stable_and_queues_are_gauges_of_in_out_and_total() {
    let events = events_of(&failing(0, NodePolicy::default())).await;
    let keys = |name| {
        one(&events, name)
            .to_payload()
            .keys()
            .cloned()
            .collect::<Vec<_>>()
    };
    let common = ["event", "flow", "tenant", "trace", "ts"].map(str::to_owned);
    assert_eq!(keys("trace_start"), common);
    let mut of_node = common.to_vec();
    of_node.extend(["attempt", "latency_seconds", "node"].map(str::to_owned));
    of_node.sort();
    assert_eq!(keys("node_success"), of_node);

    // A node that stands still, and what waits before it.
    let gate = Arc::new(tokio::sync::Notify::new());
    let held = gate.clone();
    let mut b = FlowBuilder::new("held");
    let charge = b.node("charge", move |n: u64, _| {
        let held = held.clone();
        async move {
            held.notified().await;
            Ok(n)
        }
    });
    b.ingress(charge).egress(charge);
    let config = RunConfig::default();
    let metrics = config.metrics.clone();
    let running = b.build().unwrap().start(config);
    let mut handles = Vec::new();
    for n in 0..4 {
        handles.push(running.emit(of("demo", n)).await.unwrap());
    }
    let shows = |line: &str| metrics.encode_text().contains(line);
    until("gauges of a flow that stands still", || {
        shows("volary_flow_traces_inflight{flow=\"held\"} 4\n")
            && shows("volary_flow_queue_depth{flow=\"held\",node=\"charge\",direction=\"in\"} 3\n")
            && shows(
                "volary_flow_queue_depth{flow=\"held\",node=\"charge\",direction=\"total\"} 3\n",
            )
    })
    .await;
    running.stop(Duration::ZERO).await;
}

#[tokio::test(start_paused = true)]
async fn latency_has_one_source_in_events_and_metrics() {
    let mut b = FlowBuilder::new("orders");
    let charge = b.node("charge", |n: u64, _| async move {
        clock::sleep(ms(40)).await;
        Ok(n)
    });
    b.ingress(charge).egress(charge);
    let (seen, config) = Seen::config();
    let metrics = config.metrics.clone();
    let running = b.build().unwrap().start(config);
    let handle = running.emit(of("demo", 1)).await.unwrap();
    let trace = handle.trace_id();
    soon("a trace", handle.outcome()).await;
    running.stop(ms(1_000)).await;
    let events = seen.whole(trace).await;
    let latency = one(&events, "node_success").latency().unwrap();
    assert!(latency >= ms(40) && latency < ms(45), "{latency:?}");
    let text = metrics.encode_text();
    let of_node = "{flow=\"orders\",node=\"charge\",outcome=\"success\"}";
    assert!(
        text.contains(&format!("volary_flow_node_seconds_count{of_node} 1\n")),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn only_events_of_failures_have_an_error_payload_and_it_is_flat() {
    let events = events_of(&failing(9, NodePolicy::default())).await;
    assert_eq!(one(&events, "node_start").error_payload(), None);
    let failure = one(&events, "trace_end").error_payload().unwrap();
    assert_eq!(failure["error_code"], "node_error");
    assert_eq!(failure["error_node"], "charge");
    assert_eq!(failure["error_attempts"], 1);
    assert!(
        failure.values().all(|value| !value.is_object()),
        "{failure:?}"
    );
    // What an observer does to its copy changes nothing for another.
    let mut copy = one(&events, "trace_end").to_payload();
    copy.clear();
    assert!(!one(&events, "trace_end").to_payload().is_empty());
}

struct Panics;

impl Observer for Panics {
    fn observe(&self, _: &[FlowEvent]) {
        panic!("{}: an observer", crate::seen::WANTED);
    }
}

#[tokio::test(start_paused = true)]
async fn an_observer_that_panics_breaks_neither_the_flow_nor_other_observers() {
    crate::seen::hush();
    let (seen, mut config) = Seen::config();
    config.observers.insert(0, Arc::new(Panics));
    let metrics = config.metrics.clone();
    let running = failing(1, retries(2)).start(config);
    let handle = running.emit(of("demo", 7)).await.unwrap();
    let trace = handle.trace_id();
    assert_eq!(soon("a result", handle.result()).await.unwrap(), 7);
    running.stop(ms(1_000)).await;
    let events = seen.whole(trace).await;
    let names: Vec<_> = events.iter().map(|event| event.kind.as_str()).collect();
    let wanted = [
        "trace_start",
        "node_start",
        "node_error",
        "node_retry",
        "node_start",
        "node_success",
        "trace_end",
    ];
    assert_eq!(names, wanted);
    let text = metrics.encode_text();
    let panics = text
        .lines()
        .find(|line| line.starts_with("volary_flow_observer_panics_total{"));
    assert!(panics.is_some_and(|line| !line.ends_with(" 0")), "{text}");
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn json(&self) -> Vec<Map<String, Value>> {
        let text = String::from_utf8(self.0.lock().clone()).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

/// What is logged of these events.
fn logged(
    observer: &dyn Observer,
    level: Level,
    redactor: Redactor,
    events: &[FlowEvent],
) -> Lines {
    let lines = Lines::default();
    let writer = lines.clone();
    let logging = configure_logging()
        .structured(true)
        .level(level)
        .redactor(redactor)
        .writer(move || writer.clone());
    tracing::subscriber::with_default(logging.subscriber(), || observer.observe(events));
    lines
}

fn told(lines: &Lines) -> Vec<(String, String)> {
    let text = |line: &Map<String, Value>, key: &str| line[key].as_str().unwrap().to_owned();
    lines
        .json()
        .iter()
        .map(|line| (text(line, "message"), text(line, "level")))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn every_kind_is_logged_at_its_level_and_latencies_are_told() {
    crate::seen::hush();
    let events = events_of(&failing(1, retries(1))).await;
    let lines = logged(
        &log_flow_events(),
        Level::DEBUG,
        Redactor::default(),
        &events,
    );
    let wanted = [
        ("trace_start", "DEBUG"),
        ("node_start", "DEBUG"),
        ("node_error", "ERROR"),
        ("node_retry", "WARN"),
        ("node_start", "DEBUG"),
        ("node_success", "INFO"),
        ("trace_end", "INFO"),
    ];
    let wanted: Vec<_> = wanted.map(|(m, l)| (m.to_owned(), l.to_owned())).to_vec();
    assert_eq!(told(&lines), wanted);
    let success = &lines.json()[5];
    assert_eq!(success["logger"], LOG_TARGET);
    assert_eq!(success["extra"]["tenant"], "demo");
    assert_eq!(success["extra"]["attempt"], 2);
    assert!(success["extra"]["latency_seconds"].is_number());

    // Levels may be set, and what takes too long costs a panic of the callback nothing else.
    let told_of = Arc::new(Mutex::new(Vec::new()));
    let kept = told_of.clone();
    let observer = log_flow_events()
        .start_level(Level::TRACE)
        .success_level(Level::DEBUG)
        .warning_level(Level::INFO)
        .error_level(Level::WARN)
        .on_latency(move |event, _| {
            kept.lock().push(event.kind.as_str());
            assert!(
                event.attempt != 1,
                "{}: a latency callback",
                crate::seen::WANTED
            );
        });
    let lines = logged(&observer, Level::DEBUG, Redactor::default(), &events);
    let levels: Vec<_> = told(&lines).into_iter().map(|(_, level)| level).collect();
    assert_eq!(levels, ["WARN", "ERROR", "INFO", "DEBUG", "DEBUG"]);
    assert_eq!(*told_of.lock(), ["node_error", "node_success", "trace_end"]);
    let failed = lines.json()[1]["message"].as_str().unwrap().to_owned();
    assert_eq!(failed, "the latency callback panicked");
}

/// Kinds that the reference never logged, so that nobody could watch them.
#[test]
fn deadlines_cancels_timeouts_and_late_results_are_logged_too() {
    let of_kind = |kind| FlowEvent {
        at: volary_kernel::Timestamp::default(),
        flow: "orders".parse().unwrap(),
        node: Some("charge".parse().unwrap()),
        trace_id: volary_kernel::TraceId::generate(),
        tenant: tenant("demo"),
        attempt: 1,
        kind,
    };
    let events = [
        FlowEventKind::DeadlineSkip,
        FlowEventKind::NodeTimeout { timeout: ms(50) },
        FlowEventKind::CancelStart {
            queued: 2,
            running: 1,
        },
        FlowEventKind::CancelDrop,
        FlowEventKind::CancelFinish,
        FlowEventKind::LateResult,
        FlowEventKind::NodeBlocked { since: ms(300) },
        FlowEventKind::JoinPartial { have: 1, want: 2 },
        FlowEventKind::BreakerOpened,
        FlowEventKind::Paused,
        FlowEventKind::Resumed,
    ]
    .map(of_kind);
    let lines = logged(
        &log_flow_events(),
        Level::DEBUG,
        Redactor::default(),
        &events,
    );
    let wanted: Vec<_> = events
        .iter()
        .map(|event| event.kind.as_str().to_owned())
        .collect();
    let names: Vec<_> = told(&lines).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, wanted);
    assert_eq!(lines.json()[2]["extra"]["detail"], "2 queued, 1 running");
}

#[tokio::test(start_paused = true)]
async fn log_lines_are_json_and_declared_secrets_are_in_no_event_and_no_line() {
    let redactor = Redactor::default();
    redactor.add(&Secret::new("canary-1234")).unwrap();
    // Without the redactor in the flow, the log still takes it out; with it, no observer ever sees it.
    let events = events_of(&failing(9, NodePolicy::default())).await;
    let lines = logged(&log_flow_events(), Level::DEBUG, redactor.clone(), &events);
    let error = lines.json()[2]["extra"]["error"].clone();
    assert_eq!(error, "card [redacted] refused");

    let (seen, mut config) = Seen::config();
    config.redactor = Some(redactor);
    let running = failing(9, NodePolicy::default()).start(config);
    let handle = running.emit(Envelope::new(1)).await.unwrap();
    let trace = handle.trace_id();
    soon("a failure", handle.outcome()).await;
    running.stop(ms(1_000)).await;
    let shown = format!("{:?}", seen.whole(trace).await);
    assert!(shown.contains("card [redacted] refused"), "{shown}");
    assert!(!shown.contains("canary"), "{shown}");
}
