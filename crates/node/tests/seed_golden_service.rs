//! The golden service, run: each of its operational defaults is looked at.

#![expect(clippy::unwrap_used, reason = "a test whose setup fails has failed")]

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use serde_json::Value;
use tokio::time::Instant;
use volary::{
    flow::{Context, FlowBuilder, FlowErrorCode, NodeError, Outcome, policy::NodePolicy},
    kernel::{SystemClock, Tenant, clock},
    store::{MemoryConfig, MemoryStore, SharedStore},
};

#[path = "../../../examples/seed_golden_service.rs"]
#[expect(dead_code, reason = "its main is for people; the rest is run here")]
mod example;

use example::{DEADLINE, NoAnswer, Ping, QUEUE, RETRIES, TIMEOUT};

fn store() -> SharedStore {
    let config = MemoryConfig::new("golden".parse().unwrap());
    Arc::new(MemoryStore::new(config, SystemClock::shared()))
}

fn tenant(name: &str) -> Tenant {
    name.parse().unwrap()
}

/// Log lines in memory.
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

/// The seed's skeleton: emit, fetch by trace, stop; logged as JSON, counted, and kept under its tenant.
#[tokio::test]
async fn a_request_is_answered_logged_counted_and_kept() {
    let lines = Lines::default();
    let writer = lines.clone();
    // Observers run on a thread of their own, so the default of this one would not hear them.
    let logging = example::log_to(move || writer.clone());
    tracing::subscriber::set_global_default(logging).unwrap();
    let service = example::start(&example::graph().unwrap(), store());
    let (trace, answer) = service
        .request(tenant("demo"), Ping { ping: true })
        .await
        .unwrap();
    assert_eq!(answer, Ping { ping: true });
    let (again, _) = service
        .request(tenant("demo"), Ping { ping: false })
        .await
        .unwrap();
    assert_ne!(trace, again, "each request has a trace of its own");
    let (history, metrics) = (service.history.clone(), service.metrics.clone());
    assert!(service.stop().await.is_clean());

    let kept = history.history(trace, &tenant("demo")).await.unwrap();
    let kinds: Vec<&str> = kept.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(
        kinds,
        ["trace_start", "node_start", "node_success", "trace_end"]
    );
    assert!(
        history
            .history(trace, &tenant("other"))
            .await
            .unwrap()
            .is_empty()
    );

    let text = metrics.encode_text();
    let ended = r#"volary_flow_traces_ended_total{flow="golden",tenant="other",outcome="done"} 2"#;
    assert!(text.contains(ended), "{text}");
    assert!(text.contains("volary_flow_node_seconds_bucket"), "{text}");
    assert!(
        !text.contains(&trace.to_string()),
        "no metric names a trace"
    );

    let logged = String::from_utf8(lines.0.lock().clone()).unwrap();
    let documents: Vec<Value> = logged
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of_trace = documents
        .iter()
        .filter(|line| line["extra"]["trace"] == trace.to_string());
    assert!(of_trace.count() >= 2, "{logged}");
    assert!(
        !logged.contains("ping"),
        "payloads are not logged: {logged}"
    );
}

/// Queues, time limits and retries are those of the list.
#[test]
fn the_graph_has_the_defaults() {
    let flow = example::graph().unwrap();
    let node = &flow.describe().nodes[0];
    let policy = node.policy.as_ref().unwrap();
    assert_eq!(node.queue, QUEUE);
    assert_eq!(
        policy.timeout_ms,
        Some(u64::try_from(TIMEOUT.as_millis()).unwrap())
    );
    assert_eq!(policy.max_retries, RETRIES);
    assert!(policy.max_retries <= 2 && policy.max_backoff_ms.is_some_and(|max| max <= 2_000));
}

/// A dependency that hangs costs each attempt its time limit, and the request its deadline at most.
#[tokio::test(start_paused = true)]
async fn a_hanging_dependency_ends_by_its_time_limits() {
    let attempts = Arc::new(AtomicU32::new(0));
    let counted = attempts.clone();
    let mut flow = FlowBuilder::<Ping, Ping>::new("golden");
    let handler = flow.node("handler", move |ping: Ping, _: Context| {
        counted.fetch_add(1, Ordering::Relaxed);
        async move {
            clock::sleep(Duration::from_secs(3_600)).await;
            Ok(ping)
        }
    });
    let policy = NodePolicy {
        timeout: Some(TIMEOUT),
        max_retries: RETRIES,
        ..NodePolicy::default()
    };
    flow.policy(handler, policy)
        .ingress(handler)
        .egress(handler);
    let service = example::start(&flow.build().unwrap(), store());
    let begun = Instant::now();
    let answer = service.request(tenant("demo"), Ping { ping: true }).await;
    let Err(NoAnswer::Ended(Outcome::Failed(error))) = answer else {
        panic!("{answer:?}");
    };
    assert_eq!(error.code, FlowErrorCode::NodeTimeout);
    assert_eq!(attempts.load(Ordering::Relaxed), 1 + RETRIES);
    assert!(begun.elapsed() >= TIMEOUT * (1 + RETRIES) && begun.elapsed() < DEADLINE);
    service.stop().await;
}

/// A stop finishes what is under way.
#[tokio::test(start_paused = true)]
async fn a_stop_drains() {
    let mut flow = FlowBuilder::<Ping, Ping>::new("golden");
    let handler = flow.node("handler", |ping: Ping, _: Context| async move {
        clock::sleep(Duration::from_secs(3)).await;
        Ok::<_, NodeError>(ping)
    });
    flow.ingress(handler).egress(handler);
    let service = example::start(&flow.build().unwrap(), store());
    let running = service.flow.clone();
    let envelope = volary::flow::Envelope::new(Ping { ping: true }).tenant(tenant("demo"));
    let waiting = running.emit(envelope).await.unwrap();
    assert!(service.stop().await.is_clean());
    assert_eq!(waiting.result().await.unwrap(), Ping { ping: true });
    let late = running
        .emit(volary::flow::Envelope::new(Ping { ping: true }))
        .await;
    assert!(late.is_err(), "a stopped flow takes nothing more");
}
