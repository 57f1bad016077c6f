//! What is done to a trace from outside: cancel, pause, resume; and what is to be seen of all.

use std::sync::{Arc, atomic::Ordering};

use volary_kernel::Name;

use super::{shared::Shared, trace::Trace};
use crate::{
    observe::{FlowEventKind, metrics},
    outcome::{CancelReport, Outcome},
};

/// What waits and runs where in a flow, at about the same moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Depths {
    /// Per node of the plan.
    pub nodes: Vec<NodeDepth>,
    /// Traces that live.
    pub traces: usize,
}

/// What waits and runs at a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeDepth {
    /// The node.
    pub node: Name,
    /// Messages that wait for it in its queue.
    pub queued: usize,
    /// Messages that wait for their next attempt.
    pub backing_off: usize,
    /// Attempts under way that wait for something.
    pub running: usize,
    /// Outputs of it that wait for room at the next node.
    pub waiting: usize,
}

impl Shared {
    pub(crate) fn depths(&self) -> Depths {
        let nodes = self.plan.nodes.iter().zip(&self.nodes);
        let nodes = nodes.map(|(plan, node)| NodeDepth {
            node: plan.name.clone(),
            queued: node.gate(|gate| gate.inbox.len()),
            running: node.running.load(Ordering::Relaxed) as usize,
            backing_off: node.backing_off.load(Ordering::Relaxed) as usize,
            waiting: node.waiting.load(Ordering::Relaxed) as usize,
        });
        Depths {
            nodes: nodes.collect(),
            traces: self.live(),
        }
    }

    /// Shows the depths as gauges.
    pub(crate) fn show(&self) {
        let depths = self.depths();
        let of = |node: &NodeDepth| metrics::NodeDepth {
            incoming: node.queued + node.backing_off,
            outgoing: node.waiting,
        };
        let nodes: Vec<_> = depths.nodes.iter().map(of).collect();
        self.metrics.show(depths.traces, &nodes);
    }
}

/// Ends a trace as cancelled: at once for its reader, before their next poll for its attempts, when they are met for its
/// messages in queues.
pub(crate) fn cancel(trace: &Arc<Trace>) -> CancelReport {
    let shared = trace.shared();
    let running = trace.cell.lock().running();
    // Held until the cancel is told, so that its finish is not told before.
    let pending = trace.add(1).pending as usize - 1;
    let now = shared.now();
    shared.write(|pen| {
        let cancelled = shared.end(pen, trace, Outcome::Cancelled, None, now);
        let mut report = CancelReport::default();
        if cancelled {
            let queued = pending.saturating_sub(running);
            report = CancelReport {
                cancelled,
                queued,
                running,
            };
            shared.metrics.totals().trace_cancel_start.inc();
            let kind = FlowEventKind::CancelStart { queued, running };
            pen.event(trace, now, kind);
        }
        shared.dropped(pen, trace, 1);
        report
    })
}

/// Holds what of a trace is not running yet.
pub(crate) fn pause(trace: &Arc<Trace>) -> bool {
    let paused = hold(trace);
    if paused {
        trace.shared().write_pause(trace, true);
    }
    paused
}

/// As [`pause`], where that is written already.
pub(crate) fn hold(trace: &Arc<Trace>) -> bool {
    let paused = !trace.has_ended() && trace.set_paused(true);
    if paused {
        tell(trace, FlowEventKind::Paused);
    }
    paused
}

/// Lets a paused trace go on.
pub(crate) fn resume(trace: &Arc<Trace>) -> bool {
    let resumed = release(trace);
    if resumed {
        trace.shared().write_pause(trace, false);
    }
    resumed
}

/// As [`resume`], where that is written already.
pub(crate) fn release(trace: &Arc<Trace>) -> bool {
    if trace.has_ended() || !trace.set_paused(false) {
        return false;
    }
    tell(trace, FlowEventKind::Resumed);
    let (held, joins) = {
        let mut cell = trace.cell.lock();
        let held = cell
            .rare
            .as_mut()
            .map(|rare| std::mem::take(&mut rare.held));
        let joins = cell.rare.iter().flat_map(|rare| &rare.joins);
        // Their wait was over meanwhile.
        let over = joins.filter(|(_, spot)| spot.wait.is_none() && spot.bucket.len() > 0);
        (held, over.map(|(node, _)| *node).collect::<Vec<_>>())
    };
    for (node, msg) in held.unwrap_or_default() {
        trace.shared().put_again(node, msg);
    }
    for node in joins {
        trace.shared().resolve_join(node, trace);
    }
    if trace.counts().is_quiet() {
        trace.shared().resolve_joins(trace);
    }
    true
}

fn tell(trace: &Trace, kind: FlowEventKind) {
    trace.shared().write(|pen| {
        // It may not have run anywhere yet.
        if pen.is_on() && trace.first_to_tell() {
            pen.started(trace);
        }
        pen.event(trace, trace.shared().now(), kind);
    });
}
