//! Counters, times and depths of a flow. Counters are kept at their source and do not depend on observers.
//!
//! Stages count in plain integers of their own and add them up at the end of a wake ([`StageMetrics::flush`]); rare things
//! are counted directly. Labels are bounded: the flow, its nodes, closed sets, and the tenants that were asked for; all
//! other tenants are `other`. Nothing is ever labelled by trace.

use std::{collections::HashMap, sync::Arc, time::Duration};

use volary_kernel::{
    Name, Tenant,
    metric::{Counter, Gauge, Histogram, Metrics, OTHER, SECONDS},
};

use crate::{graph::plan::NodeIx, outcome::Outcome};

/// Which label a tenant counts under; looked up once per tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TenantLabel(u16);

/// What can be counted of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NodeCount {
    /// An attempt succeeded.
    Success,
    /// An attempt returned an error or panicked.
    Error,
    /// An attempt took longer than the node's timeout.
    Timeout,
    /// Another attempt follows.
    Retry,
    /// No attempt is left.
    Failed,
}

const NODE_COUNTS: usize = 5;

/// How an attempt ended, for its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttemptEnd {
    Success,
    Error,
    Timeout,
}

const ATTEMPT_ENDS: [&str; 3] = ["success", "error", "timeout"];
const OUTCOMES: [&str; 5] = [
    "done",
    "failed",
    "cancelled",
    "deadline_exceeded",
    "dropped",
];

fn outcome_index(outcome: &Outcome) -> usize {
    match outcome {
        Outcome::Done => 0,
        Outcome::Failed(_) => 1,
        Outcome::Cancelled => 2,
        Outcome::DeadlineExceeded => 3,
        Outcome::Dropped { .. } => 4,
    }
}

/// How much waits around a node, as it is polled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct NodeDepth {
    /// Messages that wait for the node, back-off included.
    pub incoming: usize,
    /// Outputs of the node that wait for room behind it.
    pub outgoing: usize,
}

/// The metrics of one flow. Clones share them.
#[derive(Clone)]
pub(crate) struct FlowMetrics(Arc<Inner>);

struct Inner {
    tenants: HashMap<Tenant, u16>,
    nodes: Vec<NodeMetrics>,
    /// By label.
    accepted: Vec<Counter>,
    /// By label, then outcome.
    ended: Vec<[Counter; OUTCOMES.len()]>,
    in_flight: Gauge,
    totals: Totals,
}

/// Of one node.
struct NodeMetrics {
    /// By label, then [`NodeCount`].
    counts: Vec<[Counter; NODE_COUNTS]>,
    /// By [`AttemptEnd`].
    seconds: [Histogram; ATTEMPT_ENDS.len()],
    /// In, out, total.
    depth: [Gauge; 3],
    blocked: Counter,
}

/// Counters of the whole flow, for what is rare.
#[derive(Clone)]
pub(crate) struct Totals {
    pub trace_cancel_start: Counter,
    pub trace_cancel_finish: Counter,
    pub deadline_skip: Counter,
    pub late_results: Counter,
    pub events_dropped: Counter,
    pub results_expired: Counter,
    pub observer_panics: Counter,
}

impl Totals {
    fn new(metrics: &Metrics, flow: &str) -> Self {
        let of = |family: volary_kernel::metric::CounterFamily| family.with(&[flow]);
        let labels = &["flow"];
        Self {
            trace_cancel_start: of(metrics.counter_family(
                "flow_trace_cancel_start",
                "Cancels of a trace that were accepted",
                labels,
            )),
            trace_cancel_finish: of(metrics.counter_family(
                "flow_trace_cancel_finish",
                "Cancelled traces of which nothing is left",
                labels,
            )),
            deadline_skip: of(metrics.counter_family(
                "flow_deadline_skip",
                "Messages not run because their deadline had passed",
                labels,
            )),
            late_results: of(metrics.counter_family(
                "flow_late_results",
                "Attempts that came back after their trace had ended",
                labels,
            )),
            events_dropped: of(metrics.counter_family(
                "flow_events_dropped",
                "Events that observers were not told of because they were slow",
                labels,
            )),
            results_expired: of(metrics.counter_family(
                "flow_results_expired",
                "Ended traces that nobody fetched in time",
                labels,
            )),
            observer_panics: of(metrics.counter_family(
                "flow_observer_panics",
                "Panics of observers, contained",
                labels,
            )),
        }
    }
}

impl FlowMetrics {
    /// Registers what a flow shows. `tenants` are named in labels; all others count as `other`.
    pub(crate) fn new(metrics: &Metrics, flow: &Name, nodes: &[Name], tenants: &[Tenant]) -> Self {
        let flow = flow.as_str();
        let mut known = HashMap::new();
        let mut labels = vec![OTHER];
        for tenant in tenants {
            known.entry(tenant.clone()).or_insert_with(|| {
                labels.push(tenant.as_str());
                u16::try_from(labels.len() - 1).unwrap_or(0)
            });
        }
        let accepted = metrics.counter_family(
            "flow_traces_accepted",
            "Traces accepted",
            &["flow", "tenant"],
        );
        let ended = metrics.counter_family(
            "flow_traces_ended",
            "Traces ended, by outcome",
            &["flow", "tenant", "outcome"],
        );
        let in_flight = metrics.gauge_family(
            "flow_traces_inflight",
            "Traces accepted and not ended",
            &["flow"],
        );
        Self(Arc::new(Inner {
            nodes: NodeMetrics::all(metrics, flow, nodes, &labels),
            accepted: labels
                .iter()
                .map(|label| accepted.with(&[flow, label]))
                .collect(),
            ended: labels
                .iter()
                .map(|label| OUTCOMES.map(|outcome| ended.with(&[flow, label, outcome])))
                .collect(),
            in_flight: in_flight.with(&[flow]),
            totals: Totals::new(metrics, flow),
            tenants: known,
        }))
    }

    /// The label of a tenant.
    pub(crate) fn label(&self, tenant: &Tenant) -> TenantLabel {
        TenantLabel(self.0.tenants.get(tenant).copied().unwrap_or(0))
    }

    /// Counters of the whole flow.
    pub(crate) fn totals(&self) -> &Totals {
        &self.0.totals
    }

    /// A trace was accepted.
    pub(crate) fn accepted(&self, label: TenantLabel) {
        self.0.accepted[usize::from(label.0)].inc();
    }

    /// A trace ended outside a stage.
    pub(crate) fn ended(&self, label: TenantLabel, outcome: &Outcome) {
        self.0.ended[usize::from(label.0)][outcome_index(outcome)].inc();
    }

    /// A node was found holding its thread.
    pub(crate) fn blocked(&self, node: NodeIx) {
        if let Some(node) = self.0.nodes.get(usize::from(node)) {
            node.blocked.inc();
        }
    }

    /// Shows what was polled; `depths` in the order of the nodes. Polled, so that a flow that is stuck still shows it.
    pub(crate) fn show(&self, in_flight: usize, depths: &[NodeDepth]) {
        self.0.in_flight.set(gauge(in_flight));
        for (node, depth) in self.0.nodes.iter().zip(depths) {
            let [incoming, outgoing, total] = &node.depth;
            incoming.set(gauge(depth.incoming));
            outgoing.set(gauge(depth.outgoing));
            total.set(gauge(depth.incoming + depth.outgoing));
        }
    }

    /// What a stage counts with that runs these nodes.
    pub(crate) fn stage(&self, chain: &[NodeIx]) -> StageMetrics {
        let labels = self.0.accepted.len();
        StageMetrics {
            shared: self.clone(),
            chain: chain.to_vec(),
            counts: vec![[0; NODE_COUNTS]; chain.len() * labels],
            whole: vec![0; labels],
            ended: vec![[0; OUTCOMES.len()]; labels],
            dirty: false,
        }
    }
}

fn gauge(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

impl NodeMetrics {
    fn all(metrics: &Metrics, flow: &str, nodes: &[Name], tenants: &[&str]) -> Vec<Self> {
        let labels = &["flow", "node", "tenant"];
        let counts = [
            metrics.counter_family("flow_node_success", "Attempts that succeeded", labels),
            metrics.counter_family(
                "flow_node_error",
                "Attempts that failed or panicked",
                labels,
            ),
            metrics.counter_family("flow_node_timeout", "Attempts that timed out", labels),
            metrics.counter_family("flow_node_retry", "Attempts after the first", labels),
            metrics.counter_family("flow_node_failed", "Messages without attempts left", labels),
        ];
        let seconds = metrics.histogram_family(
            "flow_node_seconds",
            "Time of attempts; of those that never wait one in 64, or one per millisecond, is measured, and the next count as that one",
            &["flow", "node", "outcome"],
            &SECONDS,
        );
        let depth = metrics.gauge_family(
            "flow_queue_depth",
            "Messages that wait before (in) and behind (out) a node",
            &["flow", "node", "direction"],
        );
        let blocked = metrics.counter_family(
            "flow_node_blocked",
            "Times a node was found holding its thread",
            &["flow", "node"],
        );
        let of = |node: &Name| {
            let node = node.as_str();
            let by_tenant =
                |tenant: &&str| counts.each_ref().map(|c| c.with(&[flow, node, tenant]));
            Self {
                counts: tenants.iter().map(by_tenant).collect(),
                seconds: ATTEMPT_ENDS.map(|end| seconds.with(&[flow, node, end])),
                depth: ["in", "out", "total"].map(|way| depth.with(&[flow, node, way])),
                blocked: blocked.with(&[flow, node]),
            }
        };
        nodes.iter().map(of).collect()
    }
}

/// What one stage counts with: plain integers, added up by [`StageMetrics::flush`] at the end of a wake.
pub(crate) struct StageMetrics {
    shared: FlowMetrics,
    chain: Vec<NodeIx>,
    /// By label, then place in the chain.
    counts: Vec<[u64; NODE_COUNTS]>,
    /// Successes of the whole chain, by label.
    whole: Vec<u64>,
    ended: Vec<[u64; OUTCOMES.len()]>,
    dirty: bool,
}

impl StageMetrics {
    /// All nodes of the chain succeeded: one addition.
    #[inline]
    pub(crate) fn chain_success(&mut self, label: TenantLabel) {
        self.whole[usize::from(label.0)] += 1;
        self.dirty = true;
    }

    /// Something happened to the node at this place in the chain.
    #[inline]
    pub(crate) fn count(&mut self, label: TenantLabel, place: u16, what: NodeCount) {
        let at = usize::from(label.0) * self.chain.len() + usize::from(place);
        self.counts[at][what as usize] += 1;
        self.dirty = true;
    }

    /// A trace ended here.
    #[inline]
    pub(crate) fn ended(&mut self, label: TenantLabel, outcome: &Outcome) {
        self.ended[usize::from(label.0)][outcome_index(outcome)] += 1;
        self.dirty = true;
    }

    /// An attempt of the node at this place took so long, or `weight` of them that were not measured count to have (see the
    /// help of `volary_flow_node_seconds`).
    pub(crate) fn took(&self, place: u16, end: AttemptEnd, latency: Duration, weight: u32) {
        let node = self.chain.get(usize::from(place));
        if let Some(node) = node.and_then(|node| self.shared.0.nodes.get(usize::from(*node))) {
            node.seconds[end as usize].observe_many(latency.as_secs_f64(), u64::from(weight));
        }
    }

    /// Adds up what was counted.
    #[inline]
    pub(crate) fn flush(&mut self) {
        if std::mem::take(&mut self.dirty) {
            self.add_up();
        }
    }

    #[inline(never)]
    fn add_up(&mut self) {
        let shared = &self.shared.0;
        for (label, whole) in self.whole.iter_mut().enumerate() {
            let whole = std::mem::take(whole);
            for (place, node) in self.chain.iter().enumerate() {
                let Some(node) = shared.nodes.get(usize::from(*node)) else {
                    continue;
                };
                let local = &mut self.counts[label * self.chain.len() + place];
                local[NodeCount::Success as usize] += whole;
                for (count, total) in local.iter_mut().zip(&node.counts[label]) {
                    add(count, total);
                }
            }
            for (count, total) in self.ended[label].iter_mut().zip(&shared.ended[label]) {
                add(count, total);
            }
        }
    }
}

fn add(count: &mut u64, total: &Counter) {
    if *count > 0 {
        total.inc_by(std::mem::take(count));
    }
}

impl Drop for StageMetrics {
    fn drop(&mut self) {
        self.flush();
    }
}
