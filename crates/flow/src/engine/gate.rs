//! An inbox together with those who wait outside it to emit.

use std::{collections::VecDeque, sync::Arc, task::Waker};

use hashbrown::HashMap;

use super::{
    inbox::{Inbox, Taken},
    trace::{Msg, Trace},
};

/// An inbox together with those who wait outside it to emit.
pub(crate) struct Gate {
    pub inbox: Inbox<Msg>,
    /// Traces that are not accepted yet, in order, per tenant; a tenant without any has no entry. What they wait with stands in
    /// their cells.
    waiters: HashMap<u32, VecDeque<Arc<Trace>>>,
}

/// Who is to be told that places were given back: once the gate is free, as being told may take long.
#[derive(Default)]
#[must_use]
pub(crate) struct Freed {
    /// Producers of an edge, which have outputs of a tenant for it.
    pub room: Vec<(u32, u16)>,
    granted: Vec<Waker>,
    /// Traces that are sent away: whoever drops one last runs code of users.
    sent_away: Vec<Arc<Trace>>,
}

impl Freed {
    /// Wakes who waited to emit.
    pub(crate) fn wake(&mut self) {
        for waker in self.granted.drain(..) {
            waker.wake();
        }
    }
}

/// What became of a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grant {
    /// A place is held for it.
    Place,
    /// The flow stops.
    Closed,
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
    pub(crate) fn wait(&mut self, edge: u16, trace: &Arc<Trace>) {
        let tenant = trace.tenant.ix;
        let line = self.waiters.entry(tenant).or_default();
        line.push_back(trace.clone());
        self.inbox.want(tenant, edge);
    }

    /// Leaves the line, or gives the place back that was granted meanwhile.
    pub(crate) fn leave(&mut self, edge: u16, trace: &Arc<Trace>) -> Freed {
        let tenant = trace.tenant.ix;
        let granted = trace.cell.lock().granted();
        match granted {
            Some(Grant::Place) => {
                let mut freed = Freed::default();
                self.release(tenant, edge, 1, true, &mut freed);
                return freed;
            }
            Some(Grant::Closed) => {}
            None => {
                if let Some(line) = self.waiters.get_mut(&tenant) {
                    line.retain(|other| !Arc::ptr_eq(other, trace));
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
            if let Some(trace) = first {
                freed.granted.extend(trace.cell.lock().grant(Grant::Place));
            }
        }
    }

    /// Sends all away who wait.
    pub(crate) fn close(&mut self) -> Freed {
        let mut freed = Freed::default();
        for (_, line) in self.waiters.drain() {
            for trace in line {
                freed.sent_away.push(trace.clone());
                freed.granted.extend(trace.cell.lock().grant(Grant::Closed));
            }
        }
        freed
    }
}
