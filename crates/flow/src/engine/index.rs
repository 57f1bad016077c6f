//! Traces by id, with their deadlines, in shards.

use std::sync::{Arc, atomic::Ordering};

use hashbrown::{HashMap, hash_map::Entry};
use parking_lot::Mutex;
use volary_kernel::{Mono, TraceId};

use super::{
    timers::{Key, Timers},
    trace::Trace,
};

const SHARDS: usize = 32;

#[derive(Default)]
struct Shard {
    traces: HashMap<TraceId, Arc<Trace>>,
    deadlines: Timers<TraceId>,
}

/// Traces that live, and those whose end nobody has read.
pub(crate) struct Index(Vec<Mutex<Shard>>);

impl Default for Index {
    fn default() -> Self {
        Self((0..SHARDS).map(|_| Mutex::default()).collect())
    }
}

impl Index {
    fn shard(&self, id: TraceId) -> &Mutex<Shard> {
        let bytes = id.to_bytes();
        &self.0[usize::from(bytes[15] ^ bytes[7]) % SHARDS]
    }

    /// Adds a trace; false if its id is in use.
    pub(crate) fn insert(&self, trace: &Arc<Trace>) -> bool {
        let mut shard = self.shard(trace.id).lock();
        let Shard { traces, deadlines } = &mut *shard;
        let Entry::Vacant(vacant) = traces.entry(trace.id) else {
            return false;
        };
        if let Some(deadline) = trace.deadline {
            let key = deadlines.insert(deadline, trace.id);
            trace.timer.store(key.to_bits(), Ordering::Relaxed);
        }
        vacant.insert(trace.clone());
        true
    }

    pub(crate) fn get(&self, id: TraceId) -> Option<Arc<Trace>> {
        self.shard(id).lock().traces.get(&id).cloned()
    }

    /// Removes this very trace.
    pub(crate) fn remove(&self, trace: &Arc<Trace>) {
        let mut shard = self.shard(trace.id).lock();
        let Entry::Occupied(found) = shard.traces.entry(trace.id) else {
            return;
        };
        if !Arc::ptr_eq(found.get(), trace) {
            return;
        }
        let removed = found.remove();
        if removed.deadline.is_some() {
            let key = Key::from_bits(removed.timer.load(Ordering::Relaxed));
            shard.deadlines.remove(key);
        }
        // Dropped outside the lock: payloads may be in it.
        drop(shard);
    }

    /// The earliest deadline.
    pub(crate) fn next_deadline(&self) -> Option<Mono> {
        self.0
            .iter()
            .filter_map(|shard| shard.lock().deadlines.next())
            .min()
    }

    /// Traces whose deadline passed, ended ones too.
    pub(crate) fn due(&self, now: Mono) -> Vec<Arc<Trace>> {
        let mut due = Vec::new();
        for shard in &self.0 {
            let mut shard = shard.lock();
            while let Some(id) = shard.deadlines.pop_due(now) {
                due.extend(shard.traces.get(&id).cloned());
            }
        }
        due
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<Arc<Trace>> {
        let mut all = Vec::new();
        for shard in &self.0 {
            all.extend(shard.lock().traces.values().cloned());
        }
        all
    }

    /// Forgets all.
    pub(crate) fn clear(&self) {
        for shard in &self.0 {
            let old = std::mem::take(&mut *shard.lock());
            drop(old);
        }
    }

    /// Traces and deadlines in it.
    #[cfg(test)]
    pub(crate) fn len(&self) -> (usize, usize) {
        self.0.iter().fold((0, 0), |(traces, deadlines), shard| {
            let shard = shard.lock();
            (
                traces + shard.traces.len(),
                deadlines + shard.deadlines.len(),
            )
        })
    }
}
