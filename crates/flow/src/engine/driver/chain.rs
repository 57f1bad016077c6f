//! What is written down of a message that goes through fused nodes without a wait: one record and one count, at the end.

use std::sync::Arc;

use volary_kernel::Mono;

use super::{
    super::{
        pen::{Counting, tag},
        trace::Trace,
    },
    Stage,
};
use crate::{
    graph::plan::Payload,
    observe::{
        metrics::{NodeCount, TenantLabel},
        tap::{ChainRun, TraceTag},
        trace_context::TraceParent,
    },
    outcome::Outcome,
};

/// The nodes that a message went through since its stage took it, each of which succeeded at its first attempt at once.
pub(super) struct Chain {
    tag: TraceTag,
    label: TenantLabel,
    accepted: Mono,
    started: Mono,
    first: usize,
    count: usize,
    /// This is what tells that the trace began, and that has not been done yet.
    begins: bool,
    /// The trace was done with the last of them.
    ends: bool,
}

impl Chain {
    pub(super) fn of(trace: &Trace, now: Mono) -> Self {
        Self {
            tag: tag(trace),
            label: trace.tenant.label,
            accepted: trace.accepted,
            started: now,
            first: 0,
            count: 0,
            begins: false,
            ends: false,
        }
    }

    /// One more node; they follow one another.
    pub(super) const fn add(&mut self, local: usize) {
        if self.count == 0 {
            self.first = local;
        }
        self.count += 1;
    }
}

impl Stage {
    /// The trace begins with what runs now. That is told with it, unless it turns out not to be a way without a wait
    /// ([`Stage::tell_begin`]).
    pub(super) fn begin(&mut self, trace: &Trace) {
        if !self.pen.is_on() || !trace.first_to_tell() {
            return;
        }
        match self.chains.last_mut() {
            Some(chain) if TraceParent::of_caller(&trace.meta).is_none() => chain.begins = true,
            _ => self.pen.started(trace),
        }
    }

    /// Tells at once that the trace began, if that is still to be done.
    pub(super) fn tell_begin(&mut self, trace: &Trace) {
        if let Some(chain) = self.chains.last_mut()
            && chain.begins
            && chain.count == 0
        {
            chain.begins = false;
            self.pen.started(trace);
        }
    }

    /// The trace is done, perhaps with a last value. False if it had ended before.
    pub(super) fn end_done(&mut self, trace: &Arc<Trace>, value: Option<Payload>) -> bool {
        let (shared, pen) = (&self.shared, &mut self.pen);
        let Some(outcome) = shared.settle(pen, trace, Outcome::Done, value) else {
            return false;
        };
        match self.chains.last_mut() {
            Some(chain) if chain.count > 0 && chain.tag.id == trace.id && outcome.is_done() => {
                chain.ends = true;
            }
            _ => pen.over(trace, outcome, self.now),
        }
        true
    }

    /// Writes down what became of a message.
    pub(super) fn write_down(&mut self, chain: &Chain) {
        if chain.count == 0 {
            return;
        }
        if let Counting::Stage(stage) = &mut self.pen.metrics {
            if chain.count == self.nodes.len() {
                stage.chain_success(chain.label);
            } else {
                for place in chain.first..chain.first + chain.count {
                    let place = u16::try_from(place).unwrap_or(u16::MAX);
                    stage.count(chain.label, place, NodeCount::Success);
                }
            }
        }
        if self.pen.is_on() {
            let run = ChainRun {
                first: u16::try_from(chain.first).unwrap_or(u16::MAX),
                count: u16::try_from(chain.count).unwrap_or(u16::MAX),
                begins: chain.begins,
                ends: chain.ends,
                accepted: chain.accepted,
                started: chain.started,
                ended: self.now,
            };
            self.pen.tap.chain(&chain.tag, run);
        }
    }
}
