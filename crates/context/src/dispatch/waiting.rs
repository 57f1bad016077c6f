//! Changes that wait because an inbox is full: in order of their first sign, merged by page. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::delivery::merge;
use crate::source::SourceChange;

/// The waiting changes of one source.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    changes: BTreeMap<u64, SourceChange>,
    places: HashMap<Arc<str>, u64>,
    next: u64,
}

impl Waiting {
    pub(super) fn len(&self) -> usize {
        self.changes.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    pub(super) fn holds(&self, path: &str) -> bool {
        self.places.contains_key(path)
    }

    /// Adds a change, or merges it into the one of its page that waits already.
    pub(super) fn add(&mut self, change: SourceChange) {
        let path = change.state.path.clone();
        if let Some(place) = self.places.get(&path).copied() {
            let merged = self
                .changes
                .remove(&place)
                .and_then(|first| merge(&first, change));
            match merged {
                Some(merged) => {
                    self.changes.insert(place, merged);
                }
                None => {
                    self.places.remove(&path);
                }
            }
            return;
        }
        self.places.insert(path, self.next);
        self.changes.insert(self.next, change);
        self.next += 1;
    }

    /// Takes everything out, oldest first. What still has to wait is added again, in the same order.
    pub(super) fn take(&mut self) -> Vec<SourceChange> {
        self.places.clear();
        std::mem::take(&mut self.changes).into_values().collect()
    }
}
