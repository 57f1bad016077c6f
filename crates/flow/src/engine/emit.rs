//! Accepting envelopes: room for the trace, an id that is free, a place in the tenant's lane of every ingress.

use std::{
    future::poll_fn,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use volary_kernel::{Mono, clock};

use super::{
    Accepted,
    gate::Freed,
    home::Home,
    places::{Place, Places},
    reader::Reader,
    shared::Shared,
    trace::{Msg, Trace},
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
pub(crate) struct Times {
    pub accepted: Mono,
    pub deadline: Option<Mono>,
}

/// What became of an envelope that did not wait.
pub(crate) enum Tried {
    Accepted(Reader),
    Later(Later),
}

/// An envelope that has to wait.
pub(crate) enum Later {
    /// For room or for a place.
    Place(Candidate),
    /// For the disk.
    Disk(Box<(Accepted, Arc<Home>, Times)>),
}

/// A trace that may be accepted. Until it is, nothing of it is to be seen.
pub(crate) struct Candidate {
    trace: Arc<Trace>,
    payload: Payload,
}

impl Shared {
    /// A flow that calls itself without end is stopped here; without a deadline one that calls itself at all, as it could wait
    /// for a slot that it holds.
    fn check_depth(&self, accepted: &Accepted) -> Result<(), EmitError> {
        let Some(parent) = &accepted.parent else {
            return Ok(());
        };
        if parent.depth >= self.limits.depth {
            return Err(EmitError::TooDeep(self.limits.depth));
        }
        let mut callers = std::iter::successors(Some(parent), |caller| caller.parent.as_ref());
        let bound = accepted.deadline.or(self.limits.default_deadline);
        if bound.is_none() && callers.any(|caller| std::ptr::eq(&**caller.shared(), self)) {
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

    /// Accepts an envelope if that needs no wait. A `patient` one, which would wait, lets those go first who do.
    pub(super) fn try_emit(
        &self,
        accepted: Accepted,
        home: Arc<Home>,
        patient: bool,
    ) -> Result<Tried, EmitError> {
        self.check_open()?;
        let times = self.times_of(&accepted)?;
        match &self.durable {
            None => {}
            Some(Ok(_)) => return Ok(Tried::Later(Later::Disk(Box::new((accepted, home, times))))),
            Some(Err(why)) => return Err(EmitError::Store(why.clone())),
        }
        let (trace, payload) = self.birth(accepted, home, times, None);
        let candidate = Candidate { trace, payload };
        // Where others wait for a place already, one is not looked for twice.
        let mut ingress = self.plan.ingress.iter();
        if patient && ingress.any(|node| self.node(*node).has_line()) {
            return Ok(Tried::Later(Later::Place(candidate)));
        }
        self.accept_now(candidate)
    }

    /// Accepts an envelope once what it waits for is there. Cancel-safe: dropped means not accepted.
    pub(super) async fn emit_later(&self, later: Later) -> Result<Reader, EmitError> {
        let Candidate { trace, payload } = match (later, &self.durable) {
            (Later::Place(candidate), _) => candidate,
            (Later::Disk(waiting), Some(Ok(durable))) => {
                let (accepted, home, times) = *waiting;
                // Large, and it waits for the disk anyway.
                return Box::pin(self.emit_durable(durable, accepted, home, times)).await;
            }
            (Later::Disk(_), _) => return Err(EmitError::Stopped),
        };
        // Known before it waits: a node that emits its own trace again would wait for the slot that it holds.
        if self.index.get(trace.id).is_some() {
            return Err(EmitError::TraceInUse(trace.id));
        }
        let node = match (self.plan.ingress.as_slice(), trace.deadline) {
            ([node], None) => *node,
            _ => return Box::pin(self.enter_later(trace, payload)).await,
        };
        // As `enter_later`, for the most who wait; what is small here is not moved about in every caller's future.
        let mut place = Place::ask(self, &trace, node)?;
        poll_fn(|cx| place.poll(cx)).await?;
        let entry = match self.try_enter() {
            Some(entry) => entry,
            None => Box::pin(self.enter(None)).await?,
        };
        self.enlist(&trace)?;
        self.ring(&trace);
        place.fill(payload, 0);
        entry.keep();
        Ok(self.accepted(trace))
    }

    /// Accepts a trace once there is a place at every ingress, and room for it.
    async fn enter_later(&self, trace: Arc<Trace>, payload: Payload) -> Result<Reader, EmitError> {
        // First what the tenant has for itself: who waits for that takes nothing that all have in common.
        let places = within(self, trace.deadline, self.places(&trace)).await??;
        let entry = self.enter(trace.deadline).await?;
        self.enter_all(&trace, payload, places)?;
        entry.keep();
        Ok(self.accepted(trace))
    }

    /// When it came, and until when it has to be done.
    fn times_of(&self, accepted: &Accepted) -> Result<Times, EmitError> {
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

    /// Accepts a trace if there is room for it, and a place at each ingress.
    fn accept_now(&self, candidate: Candidate) -> Result<Tried, EmitError> {
        let Some(entry) = self.try_enter() else {
            return Ok(Tried::Later(Later::Place(candidate)));
        };
        let tried = if let [node] = *self.plan.ingress.as_slice() {
            self.enter_one(node, candidate)?
        } else {
            let Candidate { trace, payload } = candidate;
            let Some(places) = Places::take(self, &trace) else {
                return Ok(Tried::Later(Later::Place(Candidate { trace, payload })));
            };
            self.enter_all(&trace, payload, places)?;
            Tried::Accepted(self.accepted(trace))
        };
        if let Tried::Accepted(_) = tried {
            entry.keep();
        }
        Ok(tried)
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
                gate.inbox.put(Msg::first(&trace, payload, edge, 0).into());
            }
            Ok(())
        });
        freed.wake();
        entered?;
        if let Some(payload) = payload {
            return Ok(Tried::Later(Later::Place(Candidate { trace, payload })));
        }
        self.ring(&trace);
        self.stage_of(node).schedule();
        Ok(Tried::Accepted(self.accepted(trace)))
    }

    /// Has a trace begin that holds its places.
    fn enter_all(
        &self,
        trace: &Arc<Trace>,
        payload: Payload,
        places: Places<'_>,
    ) -> Result<(), EmitError> {
        let payloads = places.share(payload);
        self.enlist(trace)?;
        self.ring(trace);
        places.fill(payloads);
        Ok(())
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

    /// Takes room for one more trace, if there is some.
    fn try_enter(&self) -> Option<Entry<'_>> {
        self.room.try_take().then(|| Entry(Some(self)))
    }

    /// Waits for room for one more trace.
    pub(super) async fn enter(&self, deadline: Option<Mono>) -> Result<Entry<'_>, EmitError> {
        if let Some(entry) = self.try_enter() {
            return Ok(entry);
        }
        self.check_open()?;
        if !within(self, deadline, self.room.take()).await? {
            return Err(EmitError::Stopped);
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
        &self,
        accepted: Accepted,
        home: Arc<Home>,
        times: Times,
        book: Option<Arc<Book>>,
    ) -> (Arc<Trace>, Payload) {
        let pending = u32::try_from(self.plan.ingress.len()).unwrap_or(u32::MAX);
        let (trace, payload) = Trace::new(accepted, home, times, pending, book);
        (Arc::new(trace), payload)
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
