//! What somebody who runs or ends traces writes down with: events and counts.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use volary_kernel::Mono;

use super::trace::Trace;
use crate::{
    graph::plan::NodeIx,
    observe::{
        FlowEventKind,
        metrics::{FlowMetrics, StageMetrics},
        tap::{Tap, TraceTag},
        trace_context::TraceParent,
    },
    outcome::Outcome,
};

/// Who a trace is, for events.
pub(crate) fn tag(trace: &Trace) -> TraceTag {
    TraceTag {
        id: trace.id,
        tenant: trace.tenant.serial,
        hops: trace.hops(),
    }
}

/// Writes events and counts down: a stage's own, or one that the others share.
pub(crate) struct Pen {
    pub tap: Tap,
    pub metrics: Counting,
}

/// What is counted with.
pub(crate) enum Counting {
    /// In a stage's own numbers.
    Stage(StageMetrics),
    /// At once.
    Direct(FlowMetrics),
}

impl Pen {
    pub(crate) fn is_on(&self) -> bool {
        self.tap.is_on()
    }

    pub(crate) fn event(&mut self, trace: &Trace, at: Mono, kind: FlowEventKind) {
        if self.tap.is_on() {
            self.tap.event(&tag(trace), None, 0, at, kind);
        }
    }

    /// The trace was accepted, perhaps on behalf of a caller.
    pub(crate) fn started(&mut self, trace: &Trace) {
        self.event(trace, trace.accepted, FlowEventKind::TraceStart);
        if let Some(caller) = TraceParent::of_caller(&trace.meta) {
            let (span, sampled) = (caller.span_id, caller.sampled);
            let kind = FlowEventKind::TraceParent { span, sampled };
            self.event(trace, trace.accepted, kind);
        }
    }

    pub(crate) fn of_node(
        &mut self,
        trace: &Trace,
        node: NodeIx,
        attempt: u32,
        at: Mono,
        kind: FlowEventKind,
    ) {
        if self.tap.is_on() {
            self.tap.event(&tag(trace), Some(node), attempt, at, kind);
        }
    }

    /// The trace ended.
    pub(crate) fn over(&mut self, trace: &Trace, outcome: Outcome, at: Mono) {
        if !self.tap.is_on() {
            return;
        }
        if trace.first_to_tell() {
            self.started(trace);
        }
        let latency = at - trace.accepted;
        self.event(trace, at, FlowEventKind::TraceEnd { outcome, latency });
    }

    pub(crate) fn ended(&mut self, trace: &Trace, outcome: &Outcome) {
        match &mut self.metrics {
            Counting::Stage(stage) => stage.ended(trace.tenant.label, outcome),
            Counting::Direct(flow) => flow.ended(trace.tenant.label, outcome),
        }
    }

    pub(crate) fn flush(&mut self) {
        self.tap.flush();
        if let Counting::Stage(stage) = &mut self.metrics {
            stage.flush();
        }
    }
}

/// A pen for all who are no stage.
pub(crate) struct SharedPen {
    pen: Mutex<Pen>,
    /// The thread that has it; 0 is none.
    holder: AtomicUsize,
}

/// Nobody has the pen any more.
struct LaidDown<'a>(&'a AtomicUsize);

impl Drop for LaidDown<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

impl SharedPen {
    pub(crate) const fn new(pen: Pen) -> Self {
        Self {
            pen: Mutex::new(pen),
            holder: AtomicUsize::new(0),
        }
    }

    /// Writes with it, or with a `spare` one where this thread has it already: what is dropped with a trace is code of a
    /// user, which may end another.
    pub(crate) fn write<R>(
        &self,
        spare: impl FnOnce() -> Pen,
        work: impl FnOnce(&mut Pen) -> R,
    ) -> R {
        thread_local!(static ME: u8 = const { 0 });
        let me = ME.with(|me| std::ptr::from_ref(me).addr());
        // Only this thread writes its own number, and takes it away again.
        if self.holder.load(Ordering::Relaxed) == me {
            let mut pen = spare();
            let done = work(&mut pen);
            pen.flush();
            return done;
        }
        let mut pen = self.pen.lock();
        self.holder.store(me, Ordering::Relaxed);
        let _laid_down = LaidDown(&self.holder);
        let done = work(&mut pen);
        pen.flush();
        done
    }

    /// Waits until whoever has it has written.
    pub(crate) fn wait(&self) {
        drop(self.pen.lock());
    }
}
