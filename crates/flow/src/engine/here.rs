//! Whose node is polled on this thread now, so that what a node calls knows its caller.
//!
//! A stage moves its mark into the thread as long as it is polled: nothing is allocated or counted. Which trace it is
//! stands at the stage ([`StageShared::busy_for`](super::shared::StageShared::busy_for)) and is looked up only by who asks.

use std::{cell::Cell, sync::Arc};

use super::{shared::Shared, trace::Trace};

thread_local! {
    static HERE: Cell<Option<Here>> = const { Cell::new(None) };
}

/// A stage that is polled.
struct Here {
    shared: Arc<Shared>,
    stage: usize,
}

/// Where a stage keeps its mark while it is not polled.
pub(super) struct Mark(Option<Here>);

impl Mark {
    pub(super) const fn new(shared: Arc<Shared>, stage: usize) -> Self {
        Self(Some(Here { shared, stage }))
    }

    /// What polls the stage runs here.
    pub(super) fn within<R>(&mut self, poll: impl FnOnce() -> R) -> R {
        let before = swap(self.0.take());
        let _back = Back { mark: self, before };
        poll()
    }
}

/// Puts all back as it was, after a panic too.
struct Back<'a> {
    mark: &'a mut Mark,
    before: Option<Here>,
}

impl Drop for Back<'_> {
    fn drop(&mut self) {
        self.mark.0 = swap(self.before.take());
    }
}

/// A thread that ends has no mark any more, and polls nothing.
fn swap(here: Option<Here>) -> Option<Here> {
    HERE.try_with(|mark| mark.replace(here)).ok().flatten()
}

/// The trace whose node is polled on this thread now.
pub(crate) fn caller() -> Option<Arc<Trace>> {
    let here = swap(None)?;
    let tag = here.shared.stages[here.stage].busy_for();
    let trace = tag.and_then(|tag| here.shared.index.get(tag.id));
    swap(Some(here));
    trace
}
