//! What happens in a flow, told off its hot path.

mod event;
mod events;
mod log;
#[cfg(feature = "logging")]
mod logging;
pub(crate) mod metrics;
#[cfg(feature = "otel")]
mod otel;
mod payload;
mod record;
pub(crate) mod tap;
mod times;
pub mod trace_context;
mod window;

pub use event::{FlowEvent, FlowEventKind};
pub use log::{LOG_TARGET, LogFlowEvents, log_flow_events};
#[cfg(feature = "logging")]
pub use logging::{LogLevel, LogLevelError, Logging, configure_logging};
#[cfg(feature = "otel")]
pub use otel::OtelSpans;

/// Is told of events, in batches, off the hot path.
///
/// Contract: called from one task per flow, on a thread where it may block; a slow observer delays no node, it loses
/// events, which are counted (`volary_flow_events_dropped_total`); a panic is contained and counted
/// (`volary_flow_observer_panics_total`).
///
/// Order within one trace: `trace_start` comes first and `trace_end` after all that led to it; what one node caused at
/// another comes after it; what happens to one node comes as it happened. Branches that run side by side are merged by
/// time, to a millisecond. A node that holds its thread may delay the events of its stage, which then come late. Between
/// traces there is no order.
pub trait Observer: Send + Sync + 'static {
    /// Some events happened.
    fn observe(&self, events: &[FlowEvent]);
}

#[cfg(test)]
mod tests;
