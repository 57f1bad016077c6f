//! Accepting envelopes: room for the trace, an id that is free, a place in the tenant's lane of every ingress.

use std::{
    future::poll_fn,
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use volary_kernel::{Mono, clock};

use super::{
    Accepted,
    gate::{Grant, Waiter},
    reader::Reader,
    shared::Shared,
    trace::{Birth, Msg, Trace},
};
use crate::{
    error::EmitError,
    graph::plan::{NodeIx, Payload},
    state::book::Book,
};

/// Room for a trace, given back unless the trace came to be.
pub(super) struct Room<'a>(Option<&'a Shared>);

impl Drop for Room<'_> {
    fn drop(&mut self) {
        if let Some(shared) = self.0 {
            shared.leave();
        }
    }
}

impl Room<'_> {
    pub(super) fn keep(mut self) {
        self.0 = None;
    }
}

impl Shared {
    /// A flow that calls itself without end is stopped here; without a deadline one that calls itself at all, as it could wait
    /// for a slot that it holds.
    fn check_depth(self: &Arc<Self>, accepted: &Accepted) -> Result<(), EmitError> {
        let Some(parent) = &accepted.parent else {
            return Ok(());
        };
        if parent.depth >= self.limits.depth {
            return Err(EmitError::TooDeep(self.limits.depth));
        }
        let mut callers = std::iter::successors(Some(parent), |caller| caller.parent.as_ref());
        let bound = accepted.deadline.or(self.limits.default_deadline);
        if bound.is_none() && callers.any(|caller| Arc::ptr_eq(&caller.shared, self)) {
            return Err(EmitError::CallsItself);
        }
        Ok(())
    }

    pub(super) fn check_open(&self) -> Result<(), EmitError> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(EmitError::Stopped);
        }
        Ok(())
    }

    /// Accepts an envelope once there is room. Cancel-safe: dropped means not accepted.
    pub(crate) async fn emit(self: &Arc<Self>, accepted: Accepted) -> Result<Reader, EmitError> {
        self.check_depth(&accepted)?;
        match &self.durable {
            None => {}
            Some(Ok(durable)) => return Box::pin(self.emit_durable(durable, accepted)).await,
            Some(Err(why)) => return Err(EmitError::Store(why.clone())),
        }
        let now = self.now();
        let budget = accepted.deadline.or(self.limits.default_deadline);
        let deadline = budget.map(|budget| now + budget);
        if budget.is_some_and(|budget| budget.is_zero()) {
            return Err(EmitError::DeadlineExceeded);
        }
        let room = self.enter(deadline).await?;
        let (trace, payload) = self.birth(accepted, now, deadline, None);
        if !self.index.insert(&trace) {
            return Err(EmitError::TraceInUse(trace.id));
        }
        self.ring(&trace);
        let Err(payload) = self.try_put(&trace, payload) else {
            room.keep();
            return Ok(self.accepted(trace));
        };
        // No place yet: until there is one, nothing of it is to be seen.
        self.index.remove(&trace);
        let places = within(self, deadline, self.places(&trace)).await??;
        if !trace.has_ended() {
            self.check_open()?;
            if !self.index.insert(&trace) {
                return Err(EmitError::TraceInUse(trace.id));
            }
            self.ring(&trace);
            places.fill(&trace, payload);
        }
        room.keep();
        Ok(self.accepted(trace))
    }

    /// Waits for room for one more trace.
    pub(super) async fn enter(&self, deadline: Option<Mono>) -> Result<Room<'_>, EmitError> {
        if let Ok(permit) = self.room.try_acquire() {
            permit.forget();
        } else {
            self.check_open()?;
            let permit = within(self, deadline, self.room.acquire()).await?;
            permit.map_err(|_| EmitError::Stopped)?.forget();
        }
        let room = Room(Some(self));
        self.check_open()?;
        Ok(room)
    }

    /// Accepts an envelope if there is room now.
    pub(crate) fn emit_nowait(self: &Arc<Self>, accepted: Accepted) -> Result<Reader, EmitError> {
        self.check_open()?;
        self.check_depth(&accepted)?;
        if self.durable.is_some() {
            return Err(EmitError::Store(
                "a durable flow accepts by emit, which waits for the store".to_owned(),
            ));
        }
        let now = self.now();
        let budget = accepted.deadline.or(self.limits.default_deadline);
        if budget.is_some_and(|budget| budget.is_zero()) {
            return Err(EmitError::DeadlineExceeded);
        }
        self.room
            .try_acquire()
            .map_err(|_| EmitError::Full)?
            .forget();
        let room = Room(Some(self));
        self.check_open()?;
        let (trace, payload) = self.birth(accepted, now, budget.map(|budget| now + budget), None);
        if !self.index.insert(&trace) {
            return Err(EmitError::TraceInUse(trace.id));
        }
        self.ring(&trace);
        if self.try_put(&trace, payload).is_err() {
            self.index.remove(&trace);
            // Somebody may have cancelled it in between: then it has ended, and its place is given back.
            if trace.has_ended() {
                room.keep();
            }
            return Err(EmitError::Full);
        }
        room.keep();
        Ok(self.accepted(trace))
    }

    pub(super) fn accepted(&self, trace: Arc<Trace>) -> Reader {
        self.metrics.accepted(trace.tenant.label);
        Reader::new(trace)
    }

    /// Has the keeper look after a trace. Before its first stage is woken: what a thread wakes last runs on that thread.
    fn ring(&self, trace: &Trace) {
        self.bell.watch();
        if let Some(deadline) = trace.deadline {
            self.bell.due_at(deadline);
        }
    }

    pub(super) fn birth(
        self: &Arc<Self>,
        accepted: Accepted,
        now: Mono,
        deadline: Option<Mono>,
        book: Option<Arc<Book>>,
    ) -> (Arc<Trace>, Payload) {
        let parent = accepted.parent;
        let depth = parent.as_ref().map_or(0, |parent| parent.depth + 1);
        let birth = Birth {
            id: accepted.trace_id,
            tenant: self.tenants.enter(&accepted.headers.tenant, |tenant| {
                self.metrics.label(tenant)
            }),
            headers: accepted.headers,
            meta: accepted.meta,
            deadline,
            accepted: now,
            depth,
            parent,
            pending: u32::try_from(self.plan.ingress.len()).unwrap_or(u32::MAX),
            book,
        };
        (Arc::new(Trace::new(birth, self.clone())), accepted.payload)
    }

    /// Hands the payload to every ingress if all have a place now.
    fn try_put(&self, trace: &Arc<Trace>, payload: Payload) -> Result<(), Payload> {
        let tenant = trace.tenant.ix;
        if let [node] = *self.plan.ingress.as_slice() {
            let edge = self.node(node).ingress.unwrap_or_default();
            self.node(node).gate(|gate| {
                if !gate.reserve(tenant, edge) {
                    return Err(payload);
                }
                gate.inbox.put(first(trace, payload, edge, 0).into());
                Ok(())
            })?;
            self.stage_of(node).schedule();
            return Ok(());
        }
        let mut places = Places::new(self, tenant);
        for node in &self.plan.ingress {
            let edge = self.node(*node).ingress.unwrap_or_default();
            if !self.node(*node).gate(|gate| gate.reserve(tenant, edge)) {
                return Err(payload);
            }
            places.held.push((*node, edge));
        }
        places.fill(trace, payload);
        Ok(())
    }

    /// Waits for a place at every ingress, one after the other and always in the same order.
    pub(super) async fn places(&self, trace: &Trace) -> Result<Places<'_>, EmitError> {
        let tenant = trace.tenant.ix;
        let mut places = Places::new(self, tenant);
        for node in &self.plan.ingress {
            let edge = self.node(*node).ingress.unwrap_or_default();
            let waiter = self.node(*node).gate(|gate| {
                self.check_open()?;
                let room = gate.reserve(tenant, edge);
                Ok((!room).then(|| gate.wait(tenant, edge)))
            })?;
            if let Some(waiter) = waiter {
                let mut line = Line {
                    shared: self,
                    waiter,
                    place: (*node, edge),
                    tenant,
                    done: false,
                };
                line.wait().await?;
            }
            places.held.push((*node, edge));
        }
        Ok(places)
    }
}

pub(super) async fn within<T>(
    shared: &Shared,
    deadline: Option<Mono>,
    wait: impl Future<Output = T>,
) -> Result<T, EmitError> {
    let Some(deadline) = deadline else {
        return Ok(wait.await);
    };
    let left: Duration = deadline - shared.now();
    clock::timeout(left, wait)
        .await
        .map_err(|_| EmitError::DeadlineExceeded)
}

fn first(trace: &Arc<Trace>, payload: Payload, edge: u16, step: u64) -> Msg {
    Msg {
        trace: trace.clone(),
        payload,
        step,
        attempts: 0,
        edge,
    }
}

/// A place in a line; leaves it when dropped.
struct Line<'a> {
    shared: &'a Shared,
    waiter: Arc<Waiter>,
    place: (NodeIx, u16),
    tenant: u32,
    done: bool,
}

impl Line<'_> {
    async fn wait(&mut self) -> Result<(), EmitError> {
        let grant = poll_fn(|cx| match self.waiter.poll(cx.waker()) {
            Some(grant) => Poll::Ready(grant),
            None => Poll::Pending,
        })
        .await;
        self.done = true;
        match grant {
            Grant::Place => Ok(()),
            Grant::Closed => Err(EmitError::Stopped),
        }
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        if !self.done {
            let (node, edge) = self.place;
            let node = self.shared.node(node);
            node.gate(|gate| gate.leave(self.tenant, edge, &self.waiter));
        }
    }
}

/// Places that are held, given back unless they are filled.
pub(super) struct Places<'a> {
    shared: &'a Shared,
    tenant: u32,
    held: Vec<(NodeIx, u16)>,
}

impl<'a> Places<'a> {
    const fn new(shared: &'a Shared, tenant: u32) -> Self {
        Self {
            shared,
            tenant,
            held: Vec::new(),
        }
    }

    pub(super) fn fill(mut self, trace: &Arc<Trace>, payload: Payload) {
        let held = std::mem::take(&mut self.held);
        let last = held.len().saturating_sub(1);
        let mut payload = Some(payload);
        for (at, (node, edge)) in held.into_iter().enumerate() {
            let given = if at == last {
                payload.take()
            } else {
                let clone = self.shared.plan.clone_input;
                payload.as_deref().map(clone)
            };
            let Some(given) = given else { return };
            let msg = first(trace, given, edge, at as u64);
            let put = |gate: &mut super::gate::Gate| gate.inbox.put(msg.into());
            self.shared.node(node).gate(put);
            self.shared.stage_of(node).schedule();
        }
    }
}

impl Drop for Places<'_> {
    fn drop(&mut self) {
        for (node, edge) in self.held.drain(..) {
            let node = self.shared.node(node);
            let _ingress_has_no_producer = node.gate(|gate| gate.release(self.tenant, edge, true));
        }
    }
}
