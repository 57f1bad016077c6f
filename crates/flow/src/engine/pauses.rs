//! Pauses that anybody on the store writes, heard of by whoever runs the flow.
//!
//! ```text
//!   Store::watch(pauses) ─▶ being accepted?  marked, held as soon as it is in the index
//!                           lives?           held; its end removes the record
//!                           has ended?       the record came too late, and goes
//! ```

use std::sync::{Arc, atomic::Ordering};

use volary_kernel::{Tenant, TraceId};
use volary_store::{Change, ChangeKind};

use super::{control, opener::Opener, trace::Trace};
use crate::state::{
    pause::{self, PauseError},
    record,
};

impl Opener {
    /// A pause was written or removed.
    pub(super) async fn pause_changed(&self, change: &Change) {
        let ledger = &self.durable.ledger;
        let Some(id) = record::end_of::<TraceId>(&change.key, &ledger.keys.pauses) else {
            return;
        };
        if change.kind != ChangeKind::Put {
            self.durable.mark(id, false);
            if let Some(trace) = self.shared.index.get(id) {
                control::release(&trace);
            }
            return;
        }
        match ledger.pause_of(&change.key).await {
            Ok(Some((pause, _))) => self.paused(id, &pause.tenant).await,
            // It was resumed since.
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(flow = %self.flow(), trace = %id, %error, "a pause could not be read");
            }
        }
    }

    /// A trace of this tenant is paused.
    async fn paused(&self, id: TraceId, tenant: &Tenant) {
        // This before the index: a trace is in one or the other from before it can be paused.
        if self.durable.mark(id, true) {
            return;
        }
        let trace = self.shared.index.get(id);
        match trace.filter(|trace| trace.headers.tenant == *tenant) {
            Some(trace) if held(&trace) => {}
            // In the store it goes on: the next life will hold it.
            _ if self.shared.closed.load(Ordering::SeqCst) => {}
            _ => {
                let ledger = &self.durable.ledger;
                let live = pause::find(ledger.store(), self.flow(), id, tenant).await;
                if matches!(live, Err(PauseError::Unknown(_))) {
                    ledger.remove_late_pause(id).await;
                }
            }
        }
    }

    /// Changes were missed: all pauses are looked at, and all traces that are held.
    pub(super) async fn pauses_lagged(&self) {
        let pauses = match self.durable.ledger.pauses().await {
            Ok(pauses) => pauses,
            Err(error) => {
                tracing::warn!(flow = %self.flow(), %error, "pauses could not be read");
                return;
            }
        };
        for trace in self.shared.index.all() {
            if trace.is_paused() && !pauses.contains_key(&trace.id) {
                control::release(&trace);
            }
        }
        for (id, tenant) in pauses {
            self.paused(id, &tenant).await;
        }
    }
}

/// Holds a trace of which somebody heard that it is paused. False if its end is on disk.
pub(super) fn held(trace: &Arc<Trace>) -> bool {
    let lives = trace.book.as_ref().is_none_or(|book| book.paused());
    control::hold(trace);
    lives
}
