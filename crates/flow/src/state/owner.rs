//! Who runs a durable flow: in a process, one at a time. That it is the only process is what having the queues means.

use std::collections::HashSet;

use parking_lot::Mutex;
use volary_kernel::{Name, Uid};

/// Flows that run in this process: which queues, and which flow. A global, because the two that must know of each other
/// have nothing else in common than the store they were given.
static RUNNING: Mutex<Option<HashSet<(Uid, Name)>>> = Mutex::new(None);

/// The right to run a flow on a store; ends when dropped.
pub(crate) struct Owner {
    queues: Uid,
    flow: Name,
}

impl Owner {
    /// None if somebody in this process runs it.
    pub(crate) fn take(queues: Uid, flow: &Name) -> Option<Self> {
        let mut running = RUNNING.lock();
        let fresh = running
            .get_or_insert_default()
            .insert((queues, flow.clone()));
        fresh.then(|| Self {
            queues,
            flow: flow.clone(),
        })
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let key = (self.queues, self.flow.clone());
        if let Some(running) = &mut *RUNNING.lock() {
            running.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_run_once_at_a_time_on_one_store() {
        let (store, other) = (Uid::generate(), Uid::generate());
        let flow = Name::new("orders").unwrap();
        let owner = Owner::take(store, &flow).unwrap();
        assert!(Owner::take(store, &flow).is_none());
        assert!(Owner::take(other, &flow).is_some());
        drop(owner);
        assert!(Owner::take(store, &flow).is_some());
    }
}
