//! Accepting envelopes: room for the trace, an id that is free, a place in the tenant's lane of every ingress.

use std::{
    future::poll_fn,
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use smallvec::SmallVec;
use volary_kernel::{Mono, Tenant, clock};

use super::{
    Accepted,
    gate::{Freed, Grant, Waiter},
    reader::Reader,
    shared::Shared,
    tenants::Row,
    trace::{Birth, Msg, Trace},
};
use crate::{
    error::EmitError,
    graph::plan::{NodeIx, Payload},
    outcome::{DropReason, Outcome},
    state::book::Book,
};

/// Room for a trace, given back unless the trace came to be.
pub(super) struct Entry<'a>(Option<&'a Shared>);

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        if let Some(shared) = self.0 {
            shared.leave();
        }
    }
}

impl Entry<'_> {
    pub(super) fn keep(mut self) {
        self.0 = None;
    }
}

/// When a trace came, and until when it has to be done.
#[derive(Clone, Copy)]
pub(super) struct Times {
    pub accepted: Mono,
    pub deadline: Option<Mono>,
}

/// What became of an envelope that did not wait.
enum Tried {
    Accepted(Reader),
    /// It has to wait, for room or for a place.
    Later(Candidate),
}

/// A trace that may be accepted. Until it is, nothing of it is to be seen.
struct Candidate {
    trace: Arc<Trace>,
    payload: Payload,
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
        let deadline = self.deadline_of(&accepted)?;
        match &self.durable {
            None => {}
            // Large, and it waits for the disk anyway.
            Some(Ok(durable)) => {
                return Box::pin(self.emit_durable(durable, accepted, deadline)).await;
            }
            Some(Err(why)) => return Err(EmitError::Store(why.clone())),
        }
        let mut candidate = self.candidate(accepted, deadline);
        // Where others wait for a place already, one is not looked for twice.
        let mut ingress = self.plan.ingress.iter();
        if !ingress.any(|node| self.node(*node).has_line()) {
            match self.accept_now(candidate)? {
                Tried::Accepted(reader) => return Ok(reader),
                Tried::Later(later) => candidate = later,
            }
        }
        self.accept_later(candidate).await
    }

    /// Accepts an envelope if there is room now.
    pub(crate) fn emit_nowait(self: &Arc<Self>, accepted: Accepted) -> Result<Reader, EmitError> {
        self.check_open()?;
        let deadline = self.deadline_of(&accepted)?;
        if self.durable.is_some() {
            return Err(EmitError::Store(
                "a durable flow accepts by emit, which waits for the store".to_owned(),
            ));
        }
        match self.accept_now(self.candidate(accepted, deadline))? {
            Tried::Accepted(reader) => Ok(reader),
            Tried::Later(_) => Err(EmitError::Full),
        }
    }

    /// When it came, and until when it has to be done.
    fn deadline_of(self: &Arc<Self>, accepted: &Accepted) -> Result<Times, EmitError> {
        self.check_depth(accepted)?;
        let budget = accepted.deadline.or(self.limits.default_deadline);
        if budget.is_some_and(|budget| budget.is_zero()) {
            return Err(EmitError::DeadlineExceeded);
        }
        let now = self.now();
        Ok(Times {
            accepted: now,
            deadline: budget.map(|budget| now + budget),
        })
    }

    fn candidate(self: &Arc<Self>, accepted: Accepted, times: Times) -> Candidate {
        let row = self.row(&accepted.headers.tenant);
        let (trace, payload) = self.birth(accepted, row, times, None);
        Candidate { trace, payload }
    }

    /// Accepts a trace if there is room for it, and a place at each ingress.
    fn accept_now(&self, candidate: Candidate) -> Result<Tried, EmitError> {
        if !self.room.try_take() {
            return Ok(Tried::Later(candidate));
        }
        let entry = Entry(Some(self));
        self.check_open()?;
        let tried = if let [node] = *self.plan.ingress.as_slice() {
            self.enter_one(node, candidate)?
        } else {
            let mut places = Places::new(self, candidate.trace.tenant.clone());
            if places.try_hold() {
                Tried::Accepted(self.enter_all(candidate, places)?)
            } else {
                Tried::Later(candidate)
            }
        };
        if let Tried::Accepted(_) = tried {
            entry.keep();
        }
        Ok(tried)
    }

    /// Accepts a trace once there is room.
    async fn accept_later(&self, candidate: Candidate) -> Result<Reader, EmitError> {
        let (id, deadline) = (candidate.trace.id, candidate.trace.deadline);
        if self.index.get(id).is_some() {
            return Err(EmitError::TraceInUse(id));
        }
        // First what the tenant has for itself: who waits for that takes nothing that all have in common.
        let places = self.places(candidate.trace.tenant.clone());
        let places = within(self, deadline, places).await??;
        let entry = self.enter(deadline).await?;
        let reader = self.enter_all(candidate, places)?;
        entry.keep();
        Ok(reader)
    }

    /// Has a trace begin at its only ingress if there is a place: under one lock, as most traces begin like this.
    fn enter_one(&self, node: NodeIx, candidate: Candidate) -> Result<Tried, EmitError> {
        let Candidate { trace, payload } = candidate;
        let (at, tenant) = (self.node(node), trace.tenant.ix);
        let edge = at.ingress.unwrap_or_default();
        let mut payload = Some(payload);
        let mut freed = Freed::default();
        let entered = at.gate(|gate| {
            if !gate.reserve(tenant, edge) {
                return Ok(());
            }
            if let Err(error) = self.enlist(&trace) {
                gate.release(tenant, edge, 1, true, &mut freed);
                return Err(error);
            }
            if let Some(payload) = payload.take() {
                gate.inbox.put(first(&trace, payload, edge, 0).into());
            }
            Ok(())
        });
        freed.wake();
        entered?;
        if let Some(payload) = payload {
            return Ok(Tried::Later(Candidate { trace, payload }));
        }
        self.ring(&trace);
        self.stage_of(node).schedule();
        Ok(Tried::Accepted(self.accepted(trace)))
    }

    /// Has a trace begin that holds its places.
    fn enter_all(&self, candidate: Candidate, places: Places<'_>) -> Result<Reader, EmitError> {
        let Candidate { trace, payload } = candidate;
        let payloads = places.share(payload);
        self.enlist(&trace)?;
        self.ring(&trace);
        places.fill(&trace, payloads);
        Ok(self.accepted(trace))
    }

    /// Puts a trace into the index: from here on it is to be seen. Either the flow is not closed yet, and whoever closes it
    /// finds the trace there and ends it, or it is not accepted: never both.
    pub(super) fn enlist(&self, trace: &Arc<Trace>) -> Result<(), EmitError> {
        if !self.index.insert(trace) {
            return Err(EmitError::TraceInUse(trace.id));
        }
        let open = self.check_open();
        let reason = DropReason::Stopped;
        if open.is_err()
            && trace
                .close(Outcome::Dropped { reason }, None, false)
                .is_some()
        {
            self.index.remove(trace);
            return open;
        }
        Ok(())
    }

    /// Waits for room for one more trace.
    pub(super) async fn enter(&self, deadline: Option<Mono>) -> Result<Entry<'_>, EmitError> {
        if !self.room.try_take() {
            self.check_open()?;
            if !within(self, deadline, self.room.take()).await? {
                return Err(EmitError::Stopped);
            }
        }
        let entry = Entry(Some(self));
        self.check_open()?;
        Ok(entry)
    }

    pub(super) fn accepted(&self, trace: Arc<Trace>) -> Reader {
        self.metrics.accepted(trace.tenant.label);
        Reader::new(trace)
    }

    /// Has the keeper look after a trace. Before its first stage is woken: what a thread wakes last runs on that thread.
    pub(super) fn ring(&self, trace: &Trace) {
        self.bell.watch();
        if let Some(deadline) = trace.deadline {
            self.bell.due_at(deadline);
        }
    }

    pub(super) fn birth(
        self: &Arc<Self>,
        accepted: Accepted,
        tenant: Arc<Row>,
        times: Times,
        book: Option<Arc<Book>>,
    ) -> (Arc<Trace>, Payload) {
        let parent = accepted.parent;
        let depth = parent.as_ref().map_or(0, |parent| parent.depth + 1);
        let birth = Birth {
            id: accepted.trace_id,
            tenant,
            headers: accepted.headers,
            meta: accepted.meta,
            deadline: times.deadline,
            accepted: times.accepted,
            depth,
            parent,
            pending: u32::try_from(self.plan.ingress.len()).unwrap_or(u32::MAX),
            book,
        };
        (Arc::new(Trace::new(birth, self.clone())), accepted.payload)
    }

    /// The row of a tenant.
    pub(super) fn row(&self, tenant: &Tenant) -> Arc<Row> {
        let label = |tenant: &Tenant| self.metrics.label(tenant);
        self.tenants.enter(tenant, label)
    }

    /// Waits for a place at every ingress, one after the other and always in the same order.
    pub(super) async fn places(&self, row: Arc<Row>) -> Result<Places<'_>, EmitError> {
        let tenant = row.ix;
        let mut places = Places::new(self, row);
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
            node.gate(|gate| gate.leave(self.tenant, edge, &self.waiter))
                .wake();
        }
    }
}

/// What each ingress gets.
pub(super) type Payloads = SmallVec<[Payload; 2]>;

/// Places that are held, given back unless they are filled.
pub(super) struct Places<'a> {
    shared: &'a Shared,
    tenant: Arc<Row>,
    held: SmallVec<[(NodeIx, u16); 2]>,
}

impl<'a> Places<'a> {
    fn new(shared: &'a Shared, tenant: Arc<Row>) -> Self {
        Self {
            shared,
            tenant,
            held: SmallVec::new(),
        }
    }

    /// Takes a place at every ingress, if each has one now.
    fn try_hold(&mut self) -> bool {
        for node in &self.shared.plan.ingress {
            let at = self.shared.node(*node);
            let edge = at.ingress.unwrap_or_default();
            if !at.gate(|gate| gate.reserve(self.tenant.ix, edge)) {
                return false;
            }
            self.held.push((*node, edge));
        }
        true
    }

    /// What each place gets. A clone is code of the user, and may panic: to be made before the trace is to be seen.
    pub(super) fn share(&self, payload: Payload) -> Payloads {
        let others = self.held.len().saturating_sub(1);
        let clone = |_| (self.shared.plan.clone_input)(&payload);
        let mut payloads: Payloads = (0..others).map(clone).collect();
        payloads.push(payload);
        payloads
    }

    pub(super) fn fill(mut self, trace: &Arc<Trace>, payloads: Payloads) {
        let held = std::mem::take(&mut self.held);
        for ((at, (node, edge)), given) in (0..).zip(held).zip(payloads) {
            let msg = first(trace, given, edge, at);
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
            let mut freed = Freed::default();
            node.gate(|gate| gate.release(self.tenant.ix, edge, 1, true, &mut freed));
            freed.wake();
        }
    }
}
