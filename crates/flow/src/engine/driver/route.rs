//! Where outputs go: to the reader, to fused nodes at once, to other inboxes, or into the outbox until there is room.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{
    super::{
        durable::Stored,
        shared::Route,
        trace::{Msg, Trace, Yield},
    },
    NESTED, Stage, contained, discard,
};
use crate::{
    error::FlowErrorCode,
    graph::plan::{Payload, Step},
};

/// Outputs of one step: where each goes, and as which step of its path.
type Outputs = SmallVec<[(Route, Payload, u64); 2]>;

/// A number for a branch of a path.
pub(super) const fn mix(step: u64, salt: u64) -> u64 {
    // The finalizer of SplitMix64.
    let mut z = step
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(salt.wrapping_add(1).wrapping_mul(0xbf58_476d_1ce4_e5b9));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Stage {
    /// Hands on what a step returned. Returns the message that a fused node can take at once.
    pub(super) fn route(
        &mut self,
        local: usize,
        trace: Arc<Trace>,
        step: u64,
        done: Step,
    ) -> Option<(usize, Msg)> {
        match done {
            Step::Next(payload) => self.route_one(local, trace, step, payload),
            Step::Each(payloads) => self.route_each(local, &trace, step, payloads),
            Step::One(edge, payload) => {
                self.route_to(local, &trace, step, [(edge, payload)].into_iter())
            }
            Step::To(chosen) => self.route_to(local, &trace, step, chosen.into_iter()),
            Step::Nothing => {
                self.consumed(&trace);
                None
            }
            Step::NoSuchTarget(why) => {
                self.no_such_target(local, &trace, why);
                None
            }
            Step::Finish(value) => {
                self.end_done(&trace, Some(value));
                self.shared.dropped(&mut self.pen, &trace, 1);
                None
            }
        }
    }

    fn route_to(
        &mut self,
        local: usize,
        trace: &Arc<Trace>,
        step: u64,
        chosen: impl ExactSizeIterator<Item = (u16, Payload)>,
    ) -> Option<(usize, Msg)> {
        let routes = &self.shared.node(self.nodes[local].ix).routes;
        let single = routes.len() == 1 && chosen.len() == 1;
        let mut outputs = Outputs::new();
        for (at, (edge, payload)) in (0u64..).zip(chosen) {
            let Some(route) = routes.get(usize::from(edge)).copied() else {
                let why = format!("edge {edge} of {}", routes.len());
                self.no_such_target(local, trace, why);
                return None;
            };
            let branch = mix(step, u64::from(edge) << 32 | at);
            let plain = single && !route.back;
            outputs.push((route, payload, if plain { step } else { branch }));
        }
        self.send_all(local, trace, outputs)
    }

    /// Hands on the one value of a step.
    pub(super) fn route_one(
        &mut self,
        local: usize,
        trace: Arc<Trace>,
        step: u64,
        payload: Payload,
    ) -> Option<(usize, Msg)> {
        let routes = &self.shared.node(self.nodes[local].ix).routes;
        let &[route] = routes.as_slice() else {
            return self.route_each(local, &trace, step, vec![payload]);
        };
        if route.to.is_none() && trace.counts().pending == 1 {
            // Nothing else of it is anywhere, and only this message could add something.
            if !self.end_done(&trace, Some(payload)) {
                self.shared.dropped(&mut self.pen, &trace, 1);
            }
            return None;
        }
        if route.to.is_some() && !route.back {
            return self.send(local, route, trace, payload, step);
        }
        let step = if route.back {
            mix(step, u64::MAX)
        } else {
            step
        };
        let outputs = Outputs::from_iter([(route, payload, step)]);
        self.send_all(local, &trace, outputs)
    }

    /// The edge to the node behind, if it is the only way and that node can take a message at once.
    #[inline]
    pub(super) fn straight(&self, local: usize) -> Option<u16> {
        let edge = self.nodes[local].straight?;
        (self.chains.len() <= NESTED && self.can_start(local + 1)).then_some(edge)
    }

    fn route_each(
        &mut self,
        local: usize,
        trace: &Arc<Trace>,
        step: u64,
        payloads: Vec<Payload>,
    ) -> Option<(usize, Msg)> {
        let ix = self.nodes[local].ix;
        let routes = self.shared.node(ix).routes.clone();
        let most = self.shared.limits.messages_per_trace;
        let pending = trace.counts().pending as usize;
        if payloads
            .len()
            .saturating_mul(routes.len())
            .saturating_add(pending)
            > most.saturating_add(1)
        {
            discard(payloads);
            self.too_many(local, trace);
            return None;
        }
        let clone = self.shared.plan.nodes[usize::from(ix)].clone_out;
        let single = routes.len() == 1 && payloads.len() == 1 && !routes[0].back;
        let mut outputs = Outputs::new();
        let cloned = contained(|| {
            for (item, payload) in (0u64..).zip(payloads) {
                let Some((last, others)) = routes.split_last() else {
                    break;
                };
                let branch = |edge: usize| {
                    if single {
                        step
                    } else {
                        mix(step, (edge as u64) << 32 | item)
                    }
                };
                for (edge, route) in others.iter().enumerate() {
                    outputs.push((*route, clone(&payload), branch(edge)));
                }
                outputs.push((*last, payload, branch(others.len())));
            }
        });
        if let Err(panic) = cloned {
            let why = format!("cloning its output panicked: {panic}");
            self.broken(local, trace, FlowErrorCode::NodePanic, why);
            return None;
        }
        self.send_all(local, trace, outputs)
    }

    /// Sends outputs, those to the reader first.
    fn send_all(
        &mut self,
        local: usize,
        trace: &Arc<Trace>,
        outputs: Outputs,
    ) -> Option<(usize, Msg)> {
        let hops = outputs.iter().filter(|(route, ..)| route.back).count();
        for _ in 0..hops {
            if trace.hop() > self.shared.limits.hops {
                let why = format!(
                    "it went round {} times, as often as is allowed",
                    self.shared.limits.hops
                );
                discard(outputs);
                self.broken(local, trace, FlowErrorCode::HopBudgetExhausted, why);
                return None;
            }
        }
        let mut messages = SmallVec::<[(Route, Payload, u64); 2]>::new();
        let mut values = SmallVec::<[Payload; 2]>::new();
        for (route, payload, step) in outputs {
            if route.to.is_none() {
                values.push(payload);
            } else {
                messages.push((route, payload, step));
            }
        }
        if !values.is_empty() && !self.yield_values(local, trace, values) {
            return None;
        }
        let Some(more) = messages.len().checked_sub(1) else {
            self.consumed(trace);
            return None;
        };
        let counts = trace.add(u32::try_from(more).unwrap_or(u32::MAX));
        if counts.pending as usize > self.shared.limits.messages_per_trace {
            trace.remove(u32::try_from(more).unwrap_or(u32::MAX));
            discard(messages);
            self.too_many(local, trace);
            return None;
        }
        let mut at_once = None;
        for (at, (route, payload, step)) in messages.into_iter().enumerate() {
            let next = self.send(local, route, trace.clone(), payload, step);
            match next {
                // Each in order: the next may have to queue behind it.
                Some((next, msg)) if at < more => self.advance(next, msg),
                other => at_once = other,
            }
        }
        at_once
    }

    fn yield_values(
        &mut self,
        local: usize,
        trace: &Arc<Trace>,
        values: SmallVec<[Payload; 2]>,
    ) -> bool {
        let most = self.shared.limits.messages_per_trace;
        let mut kept = SmallVec::<[(Payload, Stored); 2]>::new();
        for value in values {
            match self.shared.stored(trace, &value) {
                Ok(stored) => kept.push((value, stored)),
                Err(error) => {
                    self.broken(local, trace, FlowErrorCode::Store, error.to_string());
                    return false;
                }
            }
        }
        let reader = {
            let mut cell = trace.cell.lock();
            if cell.outcome.is_some() {
                drop(cell);
                discard(kept);
                self.shared.dropped(&mut self.pen, trace, 1);
                return false;
            }
            if cell.values as usize + kept.len() > most {
                drop(cell);
                discard(kept);
                self.too_many(local, trace);
                return false;
            }
            for (value, stored) in kept {
                trace.keep_value(stored);
                cell.push(Yield::Value(value));
            }
            cell.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
        true
    }

    /// A message is gone, and nothing came of it.
    pub(super) fn consumed(&mut self, trace: &Arc<Trace>) {
        self.settled(trace, trace.remove(1));
    }

    /// Ends the trace if nothing of it is left, or has its joins go on if nothing else is.
    pub(super) fn settled(&mut self, trace: &Arc<Trace>, counts: super::super::trace::Counts) {
        if counts.pending == 0 {
            if !self.end_done(trace, None) {
                self.shared.dropped(&mut self.pen, trace, 0);
            }
        } else if counts.is_quiet() && !trace.has_ended() {
            self.shared.resolve_joins(trace);
        }
    }

    fn too_many(&mut self, local: usize, trace: &Arc<Trace>) {
        let most = self.shared.limits.messages_per_trace;
        let why = format!("it would have more than {most} messages or unread values at once");
        self.broken(local, trace, FlowErrorCode::TooManyMessages, why);
    }

    fn no_such_target(&mut self, local: usize, trace: &Arc<Trace>, why: String) {
        self.broken(local, trace, FlowErrorCode::NoSuchTarget, why);
    }

    /// The trace fails, and the message that made it fail is gone.
    pub(super) fn broken(
        &mut self,
        local: usize,
        trace: &Arc<Trace>,
        code: FlowErrorCode,
        why: String,
    ) {
        let error = self.error(local, trace, code, why, 1);
        self.fail(local, trace, error);
        self.shared.dropped(&mut self.pen, trace, 1);
    }

    // --- sending -------------------------------------------------------------------------------

    /// Sends a message to a node, or gives it back for a fused node that can take it at once.
    fn send(
        &mut self,
        local: usize,
        route: Route,
        trace: Arc<Trace>,
        payload: Payload,
        step: u64,
    ) -> Option<(usize, Msg)> {
        let (to, edge) = route.to?;
        let tenant = trace.tenant.ix;
        let msg = Msg {
            trace,
            payload,
            step,
            attempts: 0,
            edge,
        };
        let shared = self.shared.node(to);
        let fused = usize::from(shared.local);
        if fused == local + 1
            && self.chains.len() <= NESTED
            && self.nodes.get(fused).is_some_and(|node| node.ix == to)
            && self.can_start(fused)
        {
            return Some((fused, msg));
        }
        if !route.back && self.nodes[local].outbox.contains_key(&tenant) {
            self.keep(local, route, msg);
            return None;
        }
        if let Err(msg) = self.put(route, msg) {
            self.keep(local, route, msg);
            let ix = self.nodes[local].ix;
            self.shared
                .node(ix)
                .gate(|gate| gate.inbox.set_blocked(tenant, true));
            self.put_back(local);
        }
        None
    }

    fn can_start(&self, local: usize) -> bool {
        let node = &self.nodes[local];
        node.has_room()
            && node.taken.is_empty()
            && node.outbox.is_empty()
            && !self.shared.node(node.ix).has_queued()
    }

    /// Puts a message into the inbox of its node if there is room; else this stage is told when there is.
    fn put(&self, route: Route, msg: Msg) -> Result<(), Msg> {
        let Some((to, edge)) = route.to else {
            return Ok(());
        };
        let tenant = msg.trace.tenant.ix;
        self.shared.node(to).gate(|gate| {
            gate.inbox.offer(msg.into()).map_err(|full| {
                gate.inbox.want(tenant, edge);
                full.item
            })
        })?;
        let stage = self.shared.stage_of(to);
        if !Arc::ptr_eq(stage, &self.me) {
            stage.schedule();
        }
        Ok(())
    }

    fn keep(&mut self, local: usize, route: Route, msg: Msg) {
        let node = &mut self.nodes[local];
        node.waiting += 1;
        let outbox = node.outbox.entry(msg.trace.tenant.ix).or_default();
        outbox.push_back((route, msg));
    }

    /// Sends outputs of a tenant that found no room before.
    pub(super) fn send_waiting(&mut self, local: usize, tenant: u32) {
        loop {
            let Some(outbox) = self.nodes[local].outbox.get_mut(&tenant) else {
                return;
            };
            let Some((route, msg)) = outbox.pop_front() else {
                break;
            };
            if msg.trace.has_ended() {
                self.nodes[local].waiting -= 1;
                self.drop_message(msg);
                continue;
            }
            if let Err(msg) = self.put(route, msg) {
                if let Some(outbox) = self.nodes[local].outbox.get_mut(&tenant) {
                    outbox.push_front((route, msg));
                }
                return;
            }
            self.nodes[local].waiting -= 1;
        }
        self.nodes[local].outbox.remove(&tenant);
        let ix = self.nodes[local].ix;
        self.shared
            .node(ix)
            .gate(|gate| gate.inbox.set_blocked(tenant, false));
    }
}
