//! Cases 12, 36 to 39, 66 and 71, and what the log tells of: errors of flows, events, logs and metrics.

use std::{
    error::Error as _,
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use parking_lot::Mutex;
use serde_json::{Map, Value};
use tracing::Level;
use volary_flow::{
    Envelope, FlowError, FlowErrorCode, NodeError, Outcome, RunConfig,
    graph::{Flow, FlowBuilder},
    observe::{FlowEvent, FlowEventKind, Observer, configure_logging, log_flow_events},
    policy::NodePolicy,
};
use volary_kernel::{
    clock,
    secret::{Redactor, Secret},
};

use crate::seen::{Seen, ms, of, soon, tenant};

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
    error
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
