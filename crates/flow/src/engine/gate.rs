//! An inbox together with those who wait outside it to emit.

use std::{collections::VecDeque, sync::Arc, task::Waker};

use hashbrown::HashMap;
use parking_lot::Mutex;

use super::{
    inbox::{Inbox, Taken},
    trace::Msg,
};

/// An inbox together with those who wait outside it to emit.
pub(crate) struct Gate {
    pub inbox: Inbox<Msg>,
    /// In order, per tenant; a tenant without any has no entry.
    waiters: HashMap<u32, VecDeque<Arc<Waiter>>>,
}

/// Who is to be told that places were given back: once the gate is free, as being told may take long.
#[derive(Default)]
#[must_use]
pub(crate) struct Freed {
    /// Producers of an edge, which have outputs of a tenant for it.
    pub room: Vec<(u32, u16)>,
    granted: Vec<Waker>,
}

impl Freed {
    /// Wakes who waited to emit.
    pub(crate) fn wake(&mut self) {
        for waker in self.granted.drain(..) {
            waker.wake();
        }
    }
}

/// Somebody who waits for a place.
#[derive(Default)]
pub(crate) struct Waiter(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    granted: Option<Grant>,
    waker: Option<Waker>,
}

/// What became of a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grant {
    /// A place is held for it.
    Place,
    /// The flow stops.
    Closed,
}

impl Waiter {
    /// Grants it. Returns who is to be woken, once the gate is free.
    #[must_use]
    fn grant(&self, grant: Grant) -> Option<Waker> {
        let mut waiting = self.0.lock();
        waiting.granted = Some(grant);
        waiting.waker.take()
    }

    /// What was granted; else `waker` is woken then.
    pub(crate) fn poll(&self, waker: &Waker) -> Option<Grant> {
        let mut waiting = self.0.lock();
        if waiting.granted.is_none() {
            waiting.waker = Some(waker.clone());
        }
        waiting.granted
    }

    pub(crate) fn granted(&self) -> Option<Grant> {
        self.0.lock().granted
    }
}

impl From<Msg> for Taken<Msg> {
    fn from(msg: Msg) -> Self {
        Self {
            tenant: msg.trace.tenant.ix,
            priority: msg.trace.headers.priority,
            edge: msg.edge,
            item: msg,
        }
    }
}

impl Gate {
    pub(crate) fn new(inbox: Inbox<Msg>) -> Self {
        Self {
            inbox,
            waiters: HashMap::new(),
        }
    }

    /// Whether somebody waits for a place.
    pub(crate) fn has_line(&self) -> bool {
        !self.waiters.is_empty()
    }

    /// Takes a place for somebody who did not wait, unless others do.
    pub(crate) fn reserve(&mut self, tenant: u32, edge: u16) -> bool {
        !self.waiters.contains_key(&tenant) && self.inbox.reserve(tenant, edge)
    }

    /// Lines up for a place.
    pub(crate) fn wait(&mut self, tenant: u32, edge: u16) -> Arc<Waiter> {
        let waiter = Arc::<Waiter>::default();
        let line = self.waiters.entry(tenant).or_default();
        line.push_back(waiter.clone());
        self.inbox.want(tenant, edge);
        waiter
    }

    /// Leaves the line, or gives the place back that was granted meanwhile.
    pub(crate) fn leave(&mut self, tenant: u32, edge: u16, waiter: &Arc<Waiter>) -> Freed {
        match waiter.granted() {
            Some(Grant::Place) => {
                let mut freed = Freed::default();
                self.release(tenant, edge, 1, true, &mut freed);
                return freed;
            }
            Some(Grant::Closed) => {}
            None => {
                if let Some(line) = self.waiters.get_mut(&tenant) {
                    line.retain(|other| !Arc::ptr_eq(other, waiter));
                    if line.is_empty() {
                        self.waiters.remove(&tenant);
                    }
                }
            }
        }
        Freed::default()
    }

    /// Gives places back. Who waits to emit is granted them here, and is to be told like a producer that waits for room.
    pub(crate) fn release(
        &mut self,
        tenant: u32,
        edge: u16,
        places: u32,
        ingress: bool,
        freed: &mut Freed,
    ) {
        if !self.inbox.release(tenant, edge, places) {
            return;
        }
        if !ingress {
            freed.room.push((tenant, edge));
            return;
        }
        while let Some(line) = self.waiters.get_mut(&tenant) {
            if !self.inbox.reserve(tenant, edge) {
                self.inbox.want(tenant, edge);
                break;
            }
            let first = line.pop_front();
            if line.is_empty() {
                self.waiters.remove(&tenant);
            }
            if let Some(waiter) = first {
                freed.granted.extend(waiter.grant(Grant::Place));
            }
        }
    }

    /// Sends all away who wait.
    pub(crate) fn close(&mut self) -> Freed {
        let mut freed = Freed::default();
        for (_, line) in self.waiters.drain() {
            for waiter in line {
                freed.granted.extend(waiter.grant(Grant::Closed));
            }
        }
        freed
    }
}
