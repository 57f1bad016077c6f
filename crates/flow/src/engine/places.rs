//! Places at the ways into a flow, for a trace that is not accepted yet: waited for, held, filled. What is not filled is given
//! back.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, ready},
};

use smallvec::SmallVec;

use super::{
    gate::{Freed, Grant},
    shared::Shared,
    trace::{Msg, Trace},
};
use crate::{
    error::EmitError,
    graph::plan::{NodeIx, Payload},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    InLine,
    Held,
    /// Filled, or sent away.
    Over,
}

/// A place at one ingress.
pub(super) struct Place<'a> {
    shared: &'a Shared,
    trace: &'a Arc<Trace>,
    node: NodeIx,
    edge: u16,
    state: State,
}

impl<'a> Place<'a> {
    /// Takes a place, or lines up for one.
    pub(super) fn ask(
        shared: &'a Shared,
        trace: &'a Arc<Trace>,
        node: NodeIx,
    ) -> Result<Self, EmitError> {
        let at = shared.node(node);
        let edge = at.ingress.unwrap_or_default();
        let state = at.gate(|gate| {
            shared.check_open()?;
            if gate.reserve(trace.tenant.ix, edge) {
                return Ok(State::Held);
            }
            gate.wait(edge, trace);
            Ok(State::InLine)
        })?;
        Ok(Self {
            shared,
            trace,
            node,
            edge,
            state,
        })
    }

    /// Takes a place if there is one now.
    fn take(shared: &'a Shared, trace: &'a Arc<Trace>, node: NodeIx) -> Option<Self> {
        let at = shared.node(node);
        let edge = at.ingress.unwrap_or_default();
        let held = at.gate(|gate| gate.reserve(trace.tenant.ix, edge));
        held.then(|| Self {
            shared,
            trace,
            node,
            edge,
            state: State::Held,
        })
    }

    /// Ready when it is held.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), EmitError>> {
        if self.state == State::InLine {
            let granted = self.trace.cell.lock().poll_grant(cx.waker());
            self.state = match ready!(granted.map_or(Poll::Pending, Poll::Ready)) {
                Grant::Place => State::Held,
                Grant::Closed => State::Over,
            };
        }
        Poll::Ready(match self.state {
            State::Over => Err(EmitError::Stopped),
            State::InLine | State::Held => Ok(()),
        })
    }

    /// Has the trace begin here, as this step of its path.
    pub(super) fn fill(mut self, payload: Payload, step: u64) {
        self.state = State::Over;
        let msg = Msg::first(self.trace, payload, self.edge, step);
        let put = |gate: &mut super::gate::Gate| gate.inbox.put(msg.into());
        self.shared.node(self.node).gate(put);
        self.shared.stage_of(self.node).schedule();
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let (node, tenant) = (self.shared.node(self.node), self.trace.tenant.ix);
        match self.state {
            State::Over => {}
            State::InLine => node.gate(|gate| gate.leave(self.edge, self.trace)).wake(),
            State::Held => {
                let mut freed = Freed::default();
                node.gate(|gate| gate.release(tenant, self.edge, 1, true, &mut freed));
                freed.wake();
            }
        }
    }
}

/// What each ingress gets.
pub(super) type Payloads = SmallVec<[Payload; 2]>;

/// A place at every ingress.
pub(super) struct Places<'a>(SmallVec<[Place<'a>; 1]>);

impl<'a> Places<'a> {
    /// Takes all of them, if each ingress has one now.
    pub(super) fn take(shared: &'a Shared, trace: &'a Arc<Trace>) -> Option<Self> {
        let ingress = shared.plan.ingress.iter();
        let places: Option<_> = ingress
            .map(|node| Place::take(shared, trace, *node))
            .collect();
        places.map(Self)
    }

    /// What each place gets. A clone is code of the user, and may panic: to be made before the trace is to be seen.
    pub(super) fn share(&self, payload: Payload) -> Payloads {
        let others = self.0.len().saturating_sub(1);
        let clone = |_| (self.0[0].shared.plan.clone_input)(&payload);
        let mut payloads: Payloads = (0..others).map(clone).collect();
        payloads.push(payload);
        payloads
    }

    /// Has the trace begin.
    pub(super) fn fill(self, payloads: Payloads) {
        for ((step, place), payload) in (0..).zip(self.0).zip(payloads) {
            place.fill(payload, step);
        }
    }
}

impl Shared {
    /// Waits for a place at every ingress, one after the other and always in the same order.
    pub(super) async fn places<'a>(
        &'a self,
        trace: &'a Arc<Trace>,
    ) -> Result<Places<'a>, EmitError> {
        let mut places = SmallVec::new();
        for node in &self.plan.ingress {
            let mut place = Place::ask(self, trace, *node)?;
            poll_fn(|cx| place.poll(cx)).await?;
            places.push(place);
        }
        Ok(Places(places))
    }
}
