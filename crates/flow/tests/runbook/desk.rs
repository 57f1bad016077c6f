//! A flow that runs, and what whoever is on call sees of it.

use std::sync::Arc;

use volary_flow::{
    Context, Envelope, Flow, FlowBuilder, NodeError, Outcome, RunConfig, RunningFlow, TraceHandle,
    policy::NodePolicy,
};
use volary_kernel::metric::Metrics;

use crate::support::{Seen, of, soon};

/// The tenant of what has no other.
pub const ANN: &str = "ann";

pub struct Desk {
    pub flow: RunningFlow<u64, u64>,
    pub seen: Arc<Seen>,
    metrics: Metrics,
}

impl Desk {
    pub fn start(flow: &Flow<u64, u64>) -> Self {
        Self::start_with(flow, |_| {})
    }

    pub fn start_with(flow: &Flow<u64, u64>, change: impl FnOnce(&mut RunConfig)) -> Self {
        let (seen, mut config) = Seen::config();
        change(&mut config);
        let metrics = config.metrics.clone();
        Self {
            flow: flow.start(config),
            seen,
            metrics,
        }
    }

    /// The sum of the series of this name that have these labels, as `/metrics` shows them now.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.metrics.encode_text();
        let start = format!("volary_flow_{name}{{");
        let mine = text.lines().filter(|line| {
            line.starts_with(&start) && labels.iter().all(|label| line.contains(label))
        });
        mine.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    pub async fn emit(&self, envelope: Envelope<u64>) -> TraceHandle<u64> {
        let emitted = soon("emit", self.flow.emit(envelope)).await;
        emitted.expect("it is accepted")
    }

    pub async fn outcome(&self, envelope: Envelope<u64>) -> Outcome {
        let handle = self.emit(envelope).await;
        soon("an outcome", handle.outcome()).await
    }

    /// Emits so many at once; says how each ended, in order.
    pub async fn flood(
        &self,
        count: u64,
        envelope: impl Fn(Envelope<u64>) -> Envelope<u64>,
    ) -> Vec<Outcome> {
        let mut handles = Vec::new();
        for n in 0..count {
            handles.push(self.emit(envelope(of(ANN, n))).await);
        }
        let mut outcomes = Vec::new();
        for handle in handles {
            outcomes.push(soon("an outcome", handle.outcome()).await);
        }
        outcomes
    }
}

/// A flow of one node, `node`.
pub fn single<F, Fut>(policy: NodePolicy, code: F) -> Flow<u64, u64>
where
    F: Fn(u64, Context) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<u64, NodeError>> + Send + 'static,
{
    let mut b = FlowBuilder::new("desk");
    let node = b.node("node", code);
    b.policy(node, policy).ingress(node).egress(node);
    b.build().unwrap()
}

/// How many of these are done.
pub fn done(outcomes: &[Outcome]) -> usize {
    outcomes.iter().filter(|outcome| outcome.is_done()).count()
}
