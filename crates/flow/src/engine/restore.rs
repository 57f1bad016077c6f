//! Traces of earlier lives, put back into the index and into the flow.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{Accepted, control, emit::Times, shared::Shared, trace::Trace};
use crate::{
    envelope::{Headers, Meta},
    graph::plan::Payload,
    state::{
        book::Book,
        ledger::{Kept, Resumed},
    },
};

impl Shared {
    /// A trace of an earlier life.
    fn reborn(
        self: &Arc<Self>,
        book: Arc<Book>,
        headers: Headers,
        meta: Meta,
        left: Option<Duration>,
    ) -> Arc<Trace> {
        let now = self.now();
        let accepted = Accepted {
            payload: Box::new(()),
            headers,
            trace_id: book.trace,
            deadline: left,
            meta,
            parent: None,
        };
        let times = Times {
            accepted: now,
            deadline: left.map(|left| now + left),
        };
        let row = self.row(&accepted.headers.tenant);
        let (trace, _no_payload) = self.birth(accepted, row, times, Some(book));
        trace.cell.lock().attached = false;
        trace
    }

    /// Puts a trace that ended in an earlier life into the index, to be fetched.
    pub(super) fn restore_kept(self: &Arc<Self>, kept: Kept) {
        let headers = Headers {
            tenant: kept.book.tenant.clone(),
            ..Headers::default()
        };
        let trace = self.reborn(kept.book, headers, Meta::default(), None);
        trace.ended_before(kept.outcome, kept.values);
        if self.index.insert(&trace) {
            self.keep_for(&trace, kept.left);
        }
    }

    /// Puts a trace that lived in an earlier life into the index. It has room even where that is short now: it was accepted.
    pub(super) fn restore_live(
        self: &Arc<Self>,
        resumed: Resumed,
    ) -> Option<(Arc<Trace>, Payload)> {
        let Resumed {
            book,
            headers,
            meta,
            left,
            payload,
            paused,
        } = resumed;
        let trace = self.reborn(book, headers, meta, left);
        if paused {
            control::hold(&trace);
        }
        if !self.room.try_take() {
            self.beyond.fetch_add(1, Ordering::SeqCst);
        }
        if !self.index.insert(&trace) {
            tracing::error!(flow = %self.plan.name, trace = %trace.id, "two durable traces have one id");
            self.leave();
            return None;
        }
        self.ring(&trace);
        Some((trace, payload))
    }

    /// Hands a trace that lives to its ingress. False if the flow is stopping.
    pub(super) async fn take_up(&self, trace: &Arc<Trace>, payload: Payload) -> bool {
        let Ok(places) = self.places(trace.tenant.clone()).await else {
            return false;
        };
        if !trace.has_ended() {
            let payloads = places.share(payload);
            places.fill(trace, payloads);
        }
        true
    }

    /// Makes room for a trace of the same id, if this one has ended and nobody reads it.
    pub(super) fn give_way(&self, trace: &Arc<Trace>) -> bool {
        {
            let mut cell = trace.cell.lock();
            if cell.outcome.is_none() || cell.untold || cell.attached {
                return false;
            }
            cell.gone = true;
        }
        self.index.remove(trace);
        self.forget_end(trace);
        true
    }
}
