//! What a running trace knows of its records in the store.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use serde_json::value::RawValue;
use volary_kernel::{Tenant, TraceId, Uid};
use volary_store::Key;

use super::record::{Deed, StepRecord};
use crate::graph::plan::NodeIx;

/// A step of a trace.
pub(crate) type StepAt = (NodeIx, u64);

/// The records of one durable trace. Clones of the `Arc` are in the trace's cell and with whoever ends it.
pub(crate) struct Book {
    pub uid: Uid,
    pub trace: TraceId,
    pub tenant: Tenant,
    /// Steps of nodes that the flow no longer has.
    pub orphans: Vec<Key>,
    pages: Mutex<Pages>,
}

#[derive(Default)]
struct Pages {
    /// Every step that has a record, and what it says if an earlier life wrote it.
    steps: HashMap<StepAt, Option<Arc<StepRecord>>>,
    /// Intents without receipts.
    open: Vec<StepAt>,
    /// What was yielded.
    values: Vec<Box<RawValue>>,
    pause: Pause,
}

/// The record that says that a trace is paused. Anybody on the store may write it while the trace lives, so it may be
/// heard of while the end is being written, or after.
#[derive(Default)]
struct Pause {
    /// There may be one.
    heard: bool,
    /// It goes with the end.
    goes: bool,
    /// The end is on disk.
    ended: bool,
}

/// What an earlier life left of a trace.
#[derive(Default)]
pub(crate) struct Found {
    pub steps: Vec<(StepAt, StepRecord)>,
    pub orphans: Vec<Key>,
}

/// What is known of a step before an attempt.
pub(crate) enum Known {
    /// Nothing: it was never begun.
    New,
    /// It was begun, and nobody knows whether its effect happened.
    InDoubt,
    /// It was done.
    Done(Arc<StepRecord>),
}

impl Book {
    /// The records of a trace that is accepted now.
    pub(crate) fn new(uid: Uid, trace: TraceId, tenant: Tenant) -> Self {
        Self::found(uid, trace, tenant, Found::default())
    }

    /// The records of a trace that an earlier life accepted.
    pub(crate) fn found(uid: Uid, trace: TraceId, tenant: Tenant, found: Found) -> Self {
        let is_open =
            |(at, record): &(StepAt, StepRecord)| (record.deed == Deed::Intent).then_some(*at);
        let open = found.steps.iter().filter_map(is_open).collect();
        let known = |(at, record)| (at, Some(Arc::new(record)));
        let pages = Pages {
            steps: found.steps.into_iter().map(known).collect(),
            open,
            ..Pages::default()
        };
        Self {
            uid,
            trace,
            tenant,
            orphans: found.orphans,
            pages: Mutex::new(pages),
        }
    }

    /// There may be a record that says that it is paused. False if the end is on disk: then it is to be removed by whoever
    /// heard of it; otherwise by whoever writes the end.
    pub(crate) fn paused(&self) -> bool {
        let mut pages = self.pages.lock();
        pages.pause.heard = true;
        !pages.pause.ended
    }

    /// The end is written now. Whether the record of a pause goes with it.
    pub(crate) fn ends(&self) -> bool {
        let mut pages = self.pages.lock();
        pages.pause.goes = pages.pause.heard;
        pages.pause.goes
    }

    /// The end is on disk. Whether a pause was heard of too late to go with it.
    pub(crate) fn ended(&self) -> bool {
        let mut pages = self.pages.lock();
        pages.pause.ended = true;
        pages.pause.heard && !pages.pause.goes
    }

    pub(crate) fn known(&self, at: StepAt) -> Known {
        let pages = self.pages.lock();
        if pages.open.contains(&at) {
            return Known::InDoubt;
        }
        match pages.steps.get(&at) {
            Some(Some(record)) => Known::Done(record.clone()),
            // Its receipt was written by this life: a second attempt of a step that is done does not happen.
            Some(None) | None => Known::New,
        }
    }

    /// A record of the step is about to be written: from here on it has to be removed at the end.
    pub(crate) fn writes(&self, at: StepAt, deed: Deed) {
        let mut pages = self.pages.lock();
        if deed == Deed::Intent {
            pages.steps.entry(at).or_insert(None);
            if !pages.open.contains(&at) {
                pages.open.push(at);
            }
        } else {
            pages.steps.insert(at, None);
        }
    }

    /// The receipt of the step is there.
    pub(crate) fn wrote(&self, at: StepAt) {
        self.pages.lock().open.retain(|open| *open != at);
    }

    pub(crate) fn yields(&self, value: Box<RawValue>) {
        self.pages.lock().values.push(value);
    }

    pub(crate) fn values(&self) -> Vec<Box<RawValue>> {
        self.pages.lock().values.clone()
    }

    /// They are stored, or cannot be.
    pub(crate) fn drop_values(&self) {
        self.pages.lock().values = Vec::new();
    }

    /// Every step that has a record.
    pub(crate) fn steps(&self) -> Vec<StepAt> {
        self.pages.lock().steps.keys().copied().collect()
    }

    /// Steps whose effects are in doubt.
    pub(crate) fn open(&self) -> Vec<StepAt> {
        self.pages.lock().open.clone()
    }
}
