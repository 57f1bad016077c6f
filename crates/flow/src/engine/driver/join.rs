//! Joins: messages of one trace gathered, by count, by edge, by the end of all else, or by time.

use std::sync::Arc;

use super::{
    super::{
        joins::Added,
        trace::{Counts, JoinSpot, Msg, Spot, Trace},
    },
    Due, Job, Stage, contained, discard,
    route::mix,
    run::Doing,
};
use crate::{
    error::FlowErrorCode,
    graph::plan::Step,
    observe::{FlowEventKind, metrics::NodeCount},
};

impl Stage {
    /// Adds a message to its join. Returns the message that a fused node after the join can take at once.
    pub(super) fn gather(&mut self, local: usize, msg: Msg) -> Option<(usize, Msg)> {
        let ix = self.nodes[local].ix;
        let need = self.shared.node(ix).need?;
        let trace = msg.trace.clone();
        let (round, wait) = {
            let mut cell = trace.cell.lock();
            if cell.outcome.is_some() {
                drop(cell);
                self.drop_message(msg);
                return None;
            }
            let joins = &mut cell.rare().joins;
            let at = joins.iter().position(|(node, _)| *node == ix);
            let at = at.unwrap_or_else(|| {
                joins.push((ix, JoinSpot::default()));
                joins.len() - 1
            });
            let spot = &mut joins[at].1;
            let edge = msg.edge;
            let round = spot.bucket.add(edge, msg, need);
            let over = spot.bucket.len() == 0;
            (round, over.then(|| spot.wait.take()).flatten())
        };
        if let Some(run) = wait {
            self.end_wait(local, run);
        }
        let round = match round {
            Added::Round(round) => round,
            Added::Waits => {
                self.wait_in_join(local, &trace);
                let counts = trace.join();
                if counts.is_quiet() {
                    self.settled(&trace, counts);
                }
                return None;
            }
            Added::Late(late) => {
                self.shared.metrics.totals().late_results.inc();
                let kind = FlowEventKind::LateResult;
                self.pen.of_node(&trace, ix, 0, self.now, kind);
                let _its_drop_may_panic = contained(|| drop(late));
                self.consumed(&trace);
                return None;
            }
        };
        let others = u32::try_from(round.len().saturating_sub(1)).unwrap_or(u32::MAX);
        trace.unjoin(others, others);
        self.go_on_with(local, &trace, round)
    }

    /// Makes one message of several, and hands it on.
    fn go_on_with(
        &mut self,
        local: usize,
        trace: &Arc<Trace>,
        round: Vec<Msg>,
    ) -> Option<(usize, Msg)> {
        let Job::Join(join) = self.nodes[local].work.clone() else {
            return None;
        };
        // The same whatever the order of arrival.
        let step = match round.as_slice() {
            [one] => one.step,
            several => several
                .iter()
                .fold(0u64, |sum, msg| sum.wrapping_add(mix(msg.step, 7))),
        };
        let inputs = round.into_iter().map(|msg| msg.payload).collect();
        match contained(|| (join.gather)(inputs)) {
            Ok(output) => {
                self.count(local, trace, NodeCount::Success);
                self.route(local, trace.clone(), step, Step::Next(output))
            }
            Err(panic) => {
                self.broken(local, trace, FlowErrorCode::NodePanic, panic);
                None
            }
        }
    }

    /// Has the trace wait for no longer than the join allows.
    fn wait_in_join(&mut self, local: usize, trace: &Arc<Trace>) {
        let Job::Join(join) = &self.nodes[local].work else {
            return;
        };
        let Some(limit) = join.timeout else { return };
        let ix = self.nodes[local].ix;
        let run = self.nodes[local].open(&self.me, local);
        let place = &mut self.nodes[local].runs[run as usize];
        {
            let mut cell = trace.cell.lock();
            let ended = cell.outcome.is_some();
            let spot = cell.rare.as_mut().and_then(|rare| {
                let mut spots = rare.joins.iter_mut();
                spots.find(|(node, _)| *node == ix)
            });
            let waits = |spot: &JoinSpot| spot.wait.is_none() && spot.bucket.len() > 0;
            let Some((_, spot)) = spot.filter(|(_, spot)| !ended && waits(spot)) else {
                drop(cell);
                self.nodes[local].free.push(run);
                return;
            };
            spot.wait = Some(run);
            let key = self
                .timers
                .insert(self.now + limit, Due::Wait { local, run });
            let token = cell.park(place.waker.clone(), Spot::Waits(ix));
            place.doing = Doing::Join(trace.clone(), key, token);
        }
    }

    /// Ends the wait of a run for a join.
    pub(super) fn end_wait(&mut self, local: usize, run: u32) {
        let node = &mut self.nodes[local];
        let doing = &mut node.runs[run as usize].doing;
        let Doing::Join(trace, key, token) = std::mem::replace(doing, Doing::Nothing) else {
            return;
        };
        node.free.push(run);
        self.timers.remove(key);
        let mut cell = trace.cell.lock();
        cell.unpark(token);
        let spots = cell.rare.iter_mut().flat_map(|rare| &mut rare.joins);
        for (_, spot) in spots.filter(|(ix, _)| *ix == node.ix) {
            spot.wait = None;
        }
    }

    pub(super) fn join_timed_out(&mut self, local: usize, trace: &Arc<Trace>) {
        self.go_on_without(local, trace, true);
    }

    /// Nothing more comes to the joins of this trace, and this is the first of them.
    pub(super) fn resolve(&mut self, local: usize, trace: &Arc<Trace>) {
        if trace.has_ended() || trace.is_paused() {
            // Of a paused one nothing moves; what is in joins goes on like the rest when it is resumed.
            return;
        }
        if !trace.counts().is_quiet() {
            self.wait_in_join(local, trace);
            return;
        }
        self.go_on_without(local, trace, false);
    }

    fn go_on_without(&mut self, local: usize, trace: &Arc<Trace>, timed_out: bool) {
        let ix = self.nodes[local].ix;
        let Some(need) = self.shared.node(ix).need else {
            return;
        };
        let (round, completed, wait) = {
            let mut cell = trace.cell.lock();
            if cell.outcome.is_some() {
                return;
            }
            let joins = &mut cell.rare().joins;
            let Some((_, spot)) = joins.iter_mut().find(|(node, _)| *node == ix) else {
                return;
            };
            let completed = spot.bucket.has_completed();
            let round = if timed_out {
                spot.bucket.take_in_time(need)
            } else {
                spot.bucket.take_all()
            };
            (round, completed, spot.wait.take())
        };
        if let Some(run) = wait {
            self.end_wait(local, run);
        }
        let Job::Join(join) = &self.nodes[local].work else {
            return;
        };
        let (have, want, partial) = (round.len(), need.want(), join.partial);
        if have == 0 {
            return;
        }
        let left = u32::try_from(have).unwrap_or(u32::MAX);
        if partial || completed {
            let kind = FlowEventKind::JoinPartial { have, want };
            self.pen.of_node(trace, ix, 0, self.now, kind);
        }
        if partial {
            trace.unjoin(left, left - 1);
            if let Some((next, msg)) = self.go_on_with(local, trace, round) {
                self.advance(next, msg);
            }
            return;
        }
        if completed {
            // It had its rounds; what is left over makes no other.
            discard(round);
            let counts: Counts = trace.unjoin(left, left);
            self.settled(trace, counts);
            return;
        }
        discard(round);
        trace.unjoin(left, left - 1);
        let why = if timed_out {
            "the wait is over"
        } else {
            "nothing more can come"
        };
        let why = format!("it has {have} of {want} and {why}");
        self.broken(local, trace, FlowErrorCode::JoinIncomplete, why);
    }
}
