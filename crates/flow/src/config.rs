//! How a flow is run: its bounds, and the parts of its surroundings.

use std::{sync::Arc, time::Duration};

use volary_kernel::{
    SharedClock, SystemClock, Tenant, metric::Metrics, secret::Redactor, task::Supervisor,
};

use crate::state::DurableConfig;

/// Bounds of a running flow. Every queue, map and buffer of it is behind one of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Most traces that live at once; `emit` waits beyond it. Default 100,000.
    pub traces: usize,
    /// Most messages and unread values of one trace at once; beyond it the trace fails. Default 1,024.
    pub messages_per_trace: usize,
    /// Most unread chunks of one trace; a node that streams waits beyond it. Default 64.
    pub chunks_per_trace: usize,
    /// How often a trace may go over edges that close a cycle. Default 64.
    pub hops: u32,
    /// How many flows may be in the middle of calling one another, the first not counted; a call beyond it is refused.
    /// Default 16.
    pub depth: u32,
    /// Deadline of a trace that names none. Default none.
    pub default_deadline: Option<Duration>,
    /// How long what nobody has fetched is kept after a trace ended. Default 60 s.
    pub result_ttl: Duration,
    /// Most ended traces that are kept for fetching; beyond it the oldest of the tenant with the most goes. Default 10,000.
    pub results: usize,
    /// A node that holds its thread for longer is told of. Default 250 ms.
    pub blocked_after: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            traces: 100_000,
            messages_per_trace: 1_024,
            chunks_per_trace: 64,
            hops: 64,
            depth: 16,
            default_deadline: None,
            result_ttl: Duration::from_secs(60),
            results: 10_000,
            blocked_after: Duration::from_millis(250),
        }
    }
}

/// What a flow is run with.
#[derive(Clone)]
pub struct RunConfig {
    /// Bounds.
    pub limits: Limits,
    /// Whether chains of nodes run as one where nothing observable changes. Default true.
    pub fuse: bool,
    /// Where time comes from.
    pub clock: SharedClock,
    /// Whose children the flow's tasks are.
    pub supervisor: Supervisor,
    /// Where its counters are shown.
    pub metrics: Metrics,
    /// Tenants that metrics name; all others count as `other`. Default none.
    pub metric_tenants: Vec<Tenant>,
    /// Where the traces of a flow that was built to be durable are kept; such a flow runs like any other without it.
    pub durable: Option<DurableConfig>,
    /// Who is told of events, off the hot path.
    pub observers: Vec<Arc<dyn crate::observe::Observer>>,
    /// Knows the secrets that must not be shown in events and logs; error texts of nodes pass it. Default none.
    pub redactor: Option<Redactor>,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            fuse: true,
            clock: SystemClock::shared(),
            supervisor: Supervisor::new(),
            metrics: Metrics::default(),
            metric_tenants: Vec::new(),
            durable: None,
            observers: Vec::new(),
            redactor: None,
        }
    }
}
