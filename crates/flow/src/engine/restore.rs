//! Traces of earlier lives, put back into the index and into the flow.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{
    Accepted, control, driver::contained, emit::Times, home::Home, shared::Shared, trace::Trace,
};
use crate::{
    envelope::{Headers, Meta},
    error::{FlowError, FlowErrorCode},
    graph::plan::Payload,
    outcome::Outcome,
    state::{
        book::Book,
        load::{Kept, Resumed},
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
            payload: Payload::new(()),
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
        let home = Home::new(self, &accepted.headers.tenant);
        let (trace, _no_payload) = self.birth(accepted, home, times, Some(book));
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
        let Ok(places) = self.places(trace).await else {
            return false;
        };
        // One that has ended meanwhile too: it is told of where it is dropped, as of any that ends in a queue.
        match contained(|| places.share(payload)) {
            Ok(payloads) => places.fill(payloads),
            Err(panic) => self.not_cloned(trace, &panic),
        }
        true
    }

    /// Ends a trace whose ways in did not get their clones: nobody emits it who could be told by the panic.
    fn not_cloned(&self, trace: &Arc<Trace>, panic: &str) {
        let ways_in = &self.plan.ingress;
        let Some(first) = ways_in.first() else { return };
        let outcome = Outcome::Failed(Box::new(FlowError {
            trace_id: trace.id,
            node: self.plan.nodes[usize::from(*first)].name.clone(),
            code: FlowErrorCode::NodePanic,
            message: format!("cloning its input panicked: {panic}"),
            attempts: 0,
            latency: None,
            timeout: None,
            source: None,
        }));
        let messages = u32::try_from(ways_in.len()).unwrap_or(u32::MAX);
        self.write(|pen| {
            self.end(pen, trace, outcome, None, self.now());
            self.dropped(pen, trace, messages);
        });
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
