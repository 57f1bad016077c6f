//! Signals: events that are shown live and kept nowhere.

use std::sync::Arc;

use tokio::sync::broadcast;

use crate::api::Event;

/// Signals that a lagging reader may be behind before it loses the oldest.
const CAPACITY: usize = 1024;

/// The live feed; clones share it. Bounded: a reader that lags loses the oldest and is told how many.
#[derive(Debug, Clone)]
pub struct Signals(broadcast::Sender<Arc<Event>>);

impl Default for Signals {
    fn default() -> Self {
        Self(broadcast::channel(CAPACITY).0)
    }
}

impl Signals {
    /// Shows `event` to whoever looks now. Never waits. Its `seq` is cleared: it is in no journal.
    pub fn emit(&self, mut event: Event) {
        if self.has_readers() {
            event.seq = None;
            let _nobody_looks_any_more = self.0.send(Arc::new(event));
        }
    }

    /// Whether anybody looks: making an event for nobody is a waste.
    pub fn has_readers(&self) -> bool {
        self.0.receiver_count() > 0
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.0.subscribe()
    }
}
