//! The closed set of what can happen in a flow.

use std::time::Duration;

use volary_kernel::{Name, SpanId, Tenant, Timestamp, TraceId};

use crate::outcome::Outcome;

/// Something that happened to a trace.
///
/// A signal: it may be dropped when observers are slow, and drops are counted. Counters are kept at the source and do not
/// depend on it.
#[derive(Debug, Clone)]
pub struct FlowEvent {
    /// When, within a few milliseconds.
    pub at: Timestamp,
    /// The flow.
    pub flow: Name,
    /// The node, where it is about one.
    pub node: Option<Name>,
    /// The trace.
    pub trace_id: TraceId,
    /// Whose.
    pub tenant: Tenant,
    /// Which attempt of the node, from 1; 0 where it is about none.
    pub attempt: u32,
    /// What happened.
    pub kind: FlowEventKind,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum FlowEventKind {
    /// A trace was accepted.
    TraceStart,
    /// The trace has a caller, named by a W3C `traceparent`.
    TraceParent {
        /// The caller's span.
        span: SpanId,
        /// Whether the caller records it.
        sampled: bool,
    },
    /// A trace ended.
    TraceEnd {
        /// How.
        outcome: Outcome,
        /// From accepted to ended.
        latency: Duration,
    },
    /// An attempt began.
    NodeStart,
    /// An attempt succeeded.
    NodeSuccess {
        /// From its begin to its end, time to hand on not included.
        latency: Duration,
    },
    /// An attempt returned an error or panicked.
    NodeError {
        /// Why.
        error: String,
        /// How long it took.
        latency: Duration,
    },
    /// An attempt took longer than the node's timeout.
    NodeTimeout {
        /// The timeout.
        timeout: Duration,
    },
    /// Another attempt follows.
    NodeRetry {
        /// After this wait.
        delay: Duration,
    },
    /// No attempt is left; the trace fails.
    NodeFailed {
        /// The code of the failure, as in `FlowErrorCode::as_str`.
        code: &'static str,
        /// Why.
        error: String,
    },
    /// An attempt was dropped because its trace had ended.
    NodeCancelled,
    /// A node holds its thread: nothing else of its stage moves.
    NodeBlocked {
        /// Since when.
        since: Duration,
    },
    /// An attempt came back after its trace had ended; what it returned was dropped.
    LateResult,
    /// The message was not run because its deadline had passed.
    DeadlineSkip,
    /// A cancel was accepted.
    CancelStart {
        /// Messages that waited.
        queued: usize,
        /// Invocations that ran.
        running: usize,
    },
    /// A waiting message of a cancelled trace was dropped.
    CancelDrop,
    /// Nothing of the cancelled trace is left.
    CancelFinish,
    /// The trace was paused.
    Paused,
    /// The trace goes on.
    Resumed,
    /// A join went on without all it waited for.
    JoinPartial {
        /// What it had.
        have: usize,
        /// What it waited for.
        want: usize,
    },
    /// The breaker of the node opened for this tenant.
    BreakerOpened,
    /// The breaker of the node closed again.
    BreakerClosed,
}

impl FlowEventKind {
    /// Its name as it stands in logs, feeds and filters.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::TraceStart => "trace_start",
            Self::TraceParent { .. } => "trace_parent",
            Self::TraceEnd { .. } => "trace_end",
            Self::NodeStart => "node_start",
            Self::NodeSuccess { .. } => "node_success",
            Self::NodeError { .. } => "node_error",
            Self::NodeTimeout { .. } => "node_timeout",
            Self::NodeRetry { .. } => "node_retry",
            Self::NodeFailed { .. } => "node_failed",
            Self::NodeCancelled => "node_cancelled",
            Self::NodeBlocked { .. } => "node_blocked",
            Self::LateResult => "late_result",
            Self::DeadlineSkip => "deadline_skip",
            Self::CancelStart { .. } => "trace_cancel_start",
            Self::CancelDrop => "trace_cancel_drop",
            Self::CancelFinish => "trace_cancel_finish",
            Self::Paused => "trace_paused",
            Self::Resumed => "trace_resumed",
            Self::JoinPartial { .. } => "join_partial",
            Self::BreakerOpened => "breaker_opened",
            Self::BreakerClosed => "breaker_closed",
        }
    }
}
