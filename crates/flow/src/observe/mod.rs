//! What happens in a flow, told off its hot path.

mod event;

pub use event::{FlowEvent, FlowEventKind};

/// Is told of events, in batches, off the hot path.
///
/// Contract: called from one task per flow, in the order of each trace; a slow observer delays no node, it loses events,
/// which are counted (`volary_flow_events_dropped_total`); a panic is contained and counted.
pub trait Observer: Send + Sync + 'static {
    /// Some events happened.
    fn observe(&self, events: &[FlowEvent]);
}
