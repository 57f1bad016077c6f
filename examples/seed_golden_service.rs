//! A flow as a long-lived service, with the defaults that a service should begin with.
//!
//! ```sh
//! cargo run -p volary --example seed_golden_service
//! ```
//!
//! It answers one request, shows what is kept of it, and stops. What stands in [`start`] is the whole list: bounded queues,
//! a time limit on the node that does I/O and a deadline on every request, few retries with a bounded back-off, a tenant and a
//! trace of its own for each request, structured logs before anything else, events logged and kept, and a drain at the
//! stop. `crates/node/tests/seed_golden_service.rs` runs this file and looks at each of them.

use std::{error::Error, io, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tracing_subscriber::fmt::MakeWriter;
use volary::{
    flow::{
        Context, EmitError, Envelope, Flow, FlowBuilder, Limits, NodeError, Outcome, RunConfig,
        RunningFlow, StopReport,
        graph::BuildErrors,
        observe::{configure_logging, log_flow_events},
        policy::NodePolicy,
        state::{HistoryConfig, Recorder, StateStore},
    },
    kernel::{
        Name, SystemClock, Tenant, TraceId, metric::Metrics, retry::Backoff, task::Supervisor,
    },
    store::{MemoryConfig, MemoryStore, SharedStore},
};

/// Most messages that wait at a node, per tenant: small enough to feel, large enough for a burst.
pub const QUEUE: usize = 64;
/// Longest time of one attempt of the node that does I/O.
pub const TIMEOUT: Duration = Duration::from_secs(10);
/// Attempts after the first: 0 to 2, as the node is idempotent.
pub const RETRIES: u32 = 1;
/// Longest wait between two attempts.
pub const MAX_BACKOFF: Duration = Duration::from_secs(2);
/// Longest time of a whole request: queues, attempts and waits together.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// Time that a stop gives to what is under way.
pub const DRAIN: Duration = Duration::from_secs(10);

/// What is asked, and answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {
    /// Whether it is a ping.
    pub ping: bool,
}

/// The work: replace it with yours. `context.idempotency_key()` is the same in every attempt; give it to whatever has
/// effects.
pub async fn handler(message: Ping, _context: Context) -> Result<Ping, NodeError> {
    Ok(message)
}

/// The graph: one node that does I/O.
pub fn graph() -> Result<Flow<Ping, Ping>, BuildErrors> {
    let mut flow = FlowBuilder::new("golden");
    flow.queue_maxsize(QUEUE);
    let handler = flow.node("handler", handler);
    flow.policy(
        handler,
        NodePolicy {
            timeout: Some(TIMEOUT),
            max_retries: RETRIES,
            backoff: Backoff {
                base: Duration::from_millis(100),
                max: MAX_BACKOFF,
                ..Backoff::default()
            },
            ..NodePolicy::default()
        },
    );
    flow.ingress(handler).egress(handler);
    flow.build()
}

/// The service and what its operator holds on to.
pub struct Service<I, O> {
    /// The flow: to emit, fetch and cancel.
    pub flow: RunningFlow<I, O>,
    /// What is counted: serve it at `/metrics`.
    pub metrics: Metrics,
    /// What happened to each trace.
    pub history: Arc<StateStore>,
    tasks: Supervisor,
}

/// Structured logs, with secrets taken out: the first thing a service does.
pub fn log_to<W>(writer: W) -> impl tracing::Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    configure_logging()
        .structured(true)
        .writer(writer)
        .subscriber()
}

/// Starts a flow with all of the defaults.
pub fn start<I, O>(flow: &Flow<I, O>, store: SharedStore) -> Service<I, O> {
    let (tasks, metrics) = (Supervisor::new(), Metrics::default());
    let history = Arc::new(StateStore::new(store, HistoryConfig::default()));
    let recorder = Recorder::start(history.clone(), &tasks, &metrics);
    let config = RunConfig {
        limits: Limits {
            default_deadline: Some(DEADLINE),
            ..Limits::default()
        },
        supervisor: tasks.clone(),
        metrics: metrics.clone(),
        observers: vec![Arc::new(log_flow_events()), recorder],
        ..RunConfig::default()
    };
    Service {
        flow: flow.start(config),
        metrics,
        history,
        tasks,
    }
}

/// How a request ended that has no answer.
#[derive(Debug)]
pub enum NoAnswer {
    /// It was not accepted.
    Refused(EmitError),
    /// Its trace ended otherwise.
    Ended(Outcome),
}

impl<I: Send + 'static, O: Send + 'static> Service<I, O> {
    /// One request: a trace of its own, a tenant, a deadline; the answer is fetched by the trace, never "the next one".
    pub async fn request(&self, tenant: Tenant, payload: I) -> Result<(TraceId, O), NoAnswer> {
        let message = Envelope::new(payload)
            .tenant(tenant.clone())
            .deadline(DEADLINE);
        let trace = message.trace_id;
        // Whoever emits and whoever fetches may be two: an endpoint that accepts, and one that is asked for the answer.
        drop(self.flow.emit(message).await.map_err(NoAnswer::Refused)?);
        let handle = self.flow.fetch(trace, &tenant);
        let handle = handle.ok_or(NoAnswer::Ended(Outcome::Done))?;
        let answer = handle.result().await.map_err(NoAnswer::Ended)?;
        Ok((trace, answer))
    }

    /// Takes nothing more, finishes what is under way within [`DRAIN`], and says what was left.
    pub async fn stop(self) -> StopReport {
        let left = self.flow.stop(DRAIN).await;
        // Events that are still to be kept, and the flow's own tasks.
        self.tasks.drain(DRAIN).await;
        left
    }
}

/// Answers one request and stops.
#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example shows what happens")]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing::subscriber::set_global_default(log_to(io::stderr))?;
    let node = Name::new("golden")?;
    let store = MemoryStore::new(MemoryConfig::new(node), SystemClock::shared());
    let service = start(&graph()?, Arc::new(store));

    let tenant: Tenant = "demo".parse()?;
    let answered = service.request(tenant.clone(), Ping { ping: true }).await;
    let (trace, answer) = answered.map_err(|why| format!("no answer: {why:?}"))?;
    println!("trace {trace}: {answer:?}");

    let history = service.history.clone();
    let left = service.stop().await;
    println!("stopped, all done: {}", left.is_clean());
    for event in history.history(trace, &tenant).await? {
        println!("{} {}", event.at, event.kind);
    }
    Ok(())
}
