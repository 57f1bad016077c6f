//! Our flows, as users build them, and an observer that counts what it is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use volary_flow::graph::{Flow, FlowBuilder, RunningFlow, TraceHandle};
use volary_flow::observe::{FlowEvent, Observer};
use volary_flow::{Context, Envelope, NodeError, RunConfig};

use super::hand::BRANCHES;
use super::load::Service;
use crate::Failure;

/// Longest wait for a clean stop.
const PATIENCE: Duration = Duration::from_secs(10);

/// The no-op that each node runs.
async fn pass(number: u64, _: Context) -> Result<u64, NodeError> {
    Ok(number)
}

/// No-op nodes in a row.
pub fn chain(nodes: usize) -> Result<Flow<u64, u64>, Failure> {
    let mut builder = FlowBuilder::<u64, u64>::new("chain");
    let mut last = builder.node("node-0", pass);
    builder.ingress(last);
    for index in 1..nodes {
        let next = builder.node(format!("node-{index}"), pass);
        builder.connect(last, next);
        last = next;
    }
    builder.egress(last);
    Ok(builder.build()?)
}

/// One node, eight after it, and a join of all of them.
pub fn fanout() -> Result<Flow<u64, Vec<u64>>, Failure> {
    let mut builder = FlowBuilder::<u64, Vec<u64>>::new("fanout");
    let spread = builder.node("spread", pass);
    builder.ingress(spread);
    let join = builder.join_all::<u64>("join");
    for index in 0..BRANCHES {
        let branch = builder.node(format!("branch-{index}"), pass);
        builder.connect(spread, branch);
        builder.connect(branch, join);
    }
    builder.egress(join);
    Ok(builder.build()?)
}

/// Counts events: the least that an observer can do.
#[derive(Default)]
pub struct Counting(AtomicU64);

impl Counting {
    /// Events so far.
    pub fn seen(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Observer for Counting {
    fn observe(&self, events: &[FlowEvent]) {
        self.0.fetch_add(events.len() as u64, Ordering::Relaxed);
    }
}

/// A configuration with events on.
pub fn observed(fuse: bool) -> (RunConfig, Arc<Counting>) {
    let counting = Arc::new(Counting::default());
    let config = RunConfig {
        fuse,
        observers: vec![counting.clone()],
        ..RunConfig::default()
    };
    (config, counting)
}

impl<O: Send + 'static> Service for RunningFlow<u64, O> {
    type Pending = TraceHandle<O>;

    async fn emit(&self, envelope: Envelope<u64>) -> Self::Pending {
        let accepted = RunningFlow::emit(self, envelope).await;
        accepted.expect("the flow runs, and every trace is new")
    }

    async fn answer(pending: Self::Pending) {
        match pending.result().await {
            Ok(value) => drop(std::hint::black_box(value)),
            Err(outcome) => panic!("a trace ended as {}", outcome.as_str()),
        }
    }
}

/// Stops a flow that has nothing left to do.
pub async fn stop<I: Send + 'static, O: Send + 'static>(
    running: &RunningFlow<I, O>,
) -> Result<(), Failure> {
    let report = running.stop(PATIENCE).await;
    if report.is_clean() {
        return Ok(());
    }
    Err(format!("the flow did not stop cleanly: {report:?}").into())
}
