//! What the cases of observing and streaming share: an observer that remembers whole events.

use std::sync::Arc;

use parking_lot::Mutex;
use volary_flow::{
    RunConfig,
    observe::{FlowEvent, Observer},
};
use volary_kernel::TraceId;

pub use crate::support::{WANTED, hush, ms, of, soon, tenant, until};

/// Remembers what happened.
#[derive(Default)]
pub struct Seen(Mutex<Vec<FlowEvent>>);

impl Observer for Seen {
    fn observe(&self, events: &[FlowEvent]) {
        self.0.lock().extend_from_slice(events);
    }
}

impl Seen {
    /// An observer, and a configuration that has it.
    pub fn config() -> (Arc<Self>, RunConfig) {
        let seen = Arc::new(Self::default());
        let config = RunConfig {
            observers: vec![seen.clone()],
            ..RunConfig::default()
        };
        (seen, config)
    }

    /// What was seen of a trace, once its end was.
    pub async fn whole(&self, trace: TraceId) -> Vec<FlowEvent> {
        let of = || {
            let events = self.0.lock();
            let mine = events.iter().filter(|event| event.trace_id == trace);
            mine.cloned().collect::<Vec<_>>()
        };
        let ended = |event: &FlowEvent| event.kind.as_str() == "trace_end";
        until("the end of a trace, as an event", || of().iter().any(ended)).await;
        of()
    }
}
