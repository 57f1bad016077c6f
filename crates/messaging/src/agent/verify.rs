//! Verified receive: only messages of believed senders go on, each once.
//!
//! Signatures are checked where sealed bytes arrive (`frame::open` against the same registry); what reaches a runtime is
//! the opened message. Here its sender must be registered, not revoked, under the name and tenant the message states.

use std::collections::{HashSet, VecDeque};

use parking_lot::Mutex;
use volary_kernel::id::Uid;

use super::{
    counts::Counts,
    event::{Listener, RuntimeEvent, Unverified},
};
use crate::{
    identity::{AgentId, IdentityRegistry, RegistryError},
    message::Message,
};

/// Messages whose ids are remembered: minutes of a busy agent, a few megabytes.
pub const REMEMBERED_MAX: usize = 65_536;

/// Decides about received messages.
pub(super) struct Verifier {
    registry: IdentityRegistry,
    seen: Mutex<Window>,
    counts: Counts,
    listener: Listener,
}

/// The last messages, by sender and id; the oldest is forgotten first.
#[derive(Default)]
struct Window {
    known: HashSet<(AgentId, Uid)>,
    order: VecDeque<(AgentId, Uid)>,
}

impl Window {
    /// Whether it is new, and remembers it.
    fn is_new(&mut self, key: (AgentId, Uid), limit: usize) -> bool {
        if !self.known.insert(key) {
            return false;
        }
        self.order.push_back(key);
        if self.order.len() > limit
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}

impl Verifier {
    pub(super) fn new(registry: IdentityRegistry, counts: Counts, listener: Listener) -> Self {
        Self {
            registry,
            seen: Mutex::default(),
            counts,
            listener,
        }
    }

    /// Whether `message` goes on; if not, it is counted and told.
    pub(super) fn passes(&self, message: &Message) -> bool {
        let Some(reason) = self.problem(message) else {
            return true;
        };
        self.counts.unverified(reason);
        self.listener.tell(&RuntimeEvent::Unverified {
            message: message.clone(),
            reason,
        });
        false
    }

    fn problem(&self, message: &Message) -> Option<Unverified> {
        let sender = message.sender();
        let known = match self.registry.trusted(&sender.id()) {
            Ok(known) => known,
            Err(RegistryError::Revoked { .. }) => return Some(Unverified::Revoked),
            Err(_) => return Some(Unverified::UnknownSender),
        };
        if known.name != *sender.name() || known.tenant != *sender.tenant() {
            return Some(Unverified::WrongName);
        }
        let is_new = self
            .seen
            .lock()
            .is_new((sender.id(), message.id()), REMEMBERED_MAX);
        (!is_new).then_some(Unverified::Repeated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_forgets_the_oldest_and_nothing_else() {
        let mut window = Window::default();
        let key = |n: u8| (AgentId::from_bytes([n; 32]), Uid::from_bytes([n; 16]));
        for n in 0..5 {
            assert!(window.is_new(key(n), 3));
        }
        assert!(!window.is_new(key(4), 3));
        assert!(!window.is_new(key(2), 3));
        assert!(window.is_new(key(1), 3), "forgotten");
        assert_eq!((window.known.len(), window.order.len()), (3, 3));
    }
}
