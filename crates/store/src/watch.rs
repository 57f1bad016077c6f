//! Watching records: a bounded list of changes per watcher; one that falls behind is told so, once, and rescans.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::key::Key;

/// Changes kept for a watcher that does not take them. Beyond, it is [`WatchEvent::Lagged`].
pub const WATCH_CAPACITY: usize = 1024;

/// What happened to a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// It was written.
    Put,
    /// It was removed.
    Delete,
    /// Its time to live was over and it was removed.
    Expired,
}

/// A record changed. The value is not carried: read it if it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The record.
    pub key: Key,
    /// What happened.
    pub kind: ChangeKind,
    /// The commit that did it.
    pub version: u64,
}

/// What a watcher learns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEvent {
    /// A record changed.
    Changed(Change),
    /// Changes were missed: scan again. What comes after is complete again.
    Lagged,
}

#[derive(Default)]
struct Pending {
    changes: VecDeque<Change>,
    lagged: bool,
    closed: bool,
}

struct Slot {
    prefix: String,
    pending: Mutex<Pending>,
    news: Notify,
}

/// The receiving end of a watch. Dropping it ends the watch.
pub struct Watch {
    slot: Arc<Slot>,
}

impl Watch {
    /// The next change; `None` when the store was closed. Cancel-safe.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        loop {
            if let Some(event) = self.try_next() {
                return Some(event);
            }
            if self.slot.pending.lock().closed {
                return None;
            }
            self.slot.news.notified().await;
        }
    }

    /// A change that is there already.
    pub fn try_next(&mut self) -> Option<WatchEvent> {
        let mut pending = self.slot.pending.lock();
        if let Some(change) = pending.changes.pop_front() {
            return Some(WatchEvent::Changed(change));
        }
        std::mem::take(&mut pending.lagged).then_some(WatchEvent::Lagged)
    }
}

/// All watchers of a store.
#[derive(Default)]
pub(crate) struct Watchers {
    slots: Mutex<Vec<Weak<Slot>>>,
    count: AtomicUsize,
}

impl Watchers {
    pub(crate) fn watch(&self, prefix: &str) -> Watch {
        let slot = Arc::new(Slot {
            prefix: prefix.into(),
            pending: Mutex::default(),
            news: Notify::new(),
        });
        let mut slots = self.slots.lock();
        slots.retain(|slot| slot.strong_count() > 0);
        slots.push(Arc::downgrade(&slot));
        self.count.store(slots.len(), Ordering::Release);
        Watch { slot }
    }

    /// Whether publishing would reach anybody.
    pub(crate) fn any(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    pub(crate) fn publish(&self, key: &Key, kind: ChangeKind, version: u64) {
        if !self.any() {
            return;
        }
        for slot in self.slots.lock().iter().filter_map(Weak::upgrade) {
            if key.starts_with(&slot.prefix) {
                let mut pending = slot.pending.lock();
                if pending.lagged || pending.changes.len() >= WATCH_CAPACITY {
                    pending.lagged = true;
                } else {
                    pending.changes.push_back(Change {
                        key: key.clone(),
                        kind,
                        version,
                    });
                }
                drop(pending);
                slot.news.notify_one();
            }
        }
    }

    /// Tells everybody that changes were missed.
    pub(crate) fn lagged(&self) {
        for slot in self.slots.lock().iter().filter_map(Weak::upgrade) {
            slot.pending.lock().lagged = true;
            slot.news.notify_one();
        }
    }

    pub(crate) fn close(&self) {
        for slot in self.slots.lock().iter().filter_map(Weak::upgrade) {
            slot.pending.lock().closed = true;
            slot.news.notify_one();
        }
    }
}
