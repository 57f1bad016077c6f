//! How many requests each replica (and the operator) has open: one agent must not crowd out the others, and work that
//! outlives its client stays bounded.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use super::config::Limits;
use crate::{ApiError, Principal, code};

/// Counts open requests by principal. Holds an entry only while there are some.
#[derive(Debug, Clone)]
pub(super) struct Peers {
    open: Arc<Mutex<HashMap<Principal, usize>>>,
    operator: usize,
    replica: usize,
}

/// One open request; counted until dropped.
#[derive(Debug)]
pub(super) struct Slot {
    peers: Peers,
    principal: Principal,
}

impl Peers {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            open: Arc::default(),
            operator: limits.connections,
            replica: limits.replica_requests,
        }
    }

    /// Counts a request of `principal`.
    ///
    /// # Errors
    /// 429 when it has too many open already.
    pub(super) fn enter(&self, principal: &Principal) -> Result<Slot, ApiError> {
        let (who, most) = match principal {
            Principal::Operator => ("the operator", self.operator),
            Principal::Link(peer) => (peer.replica.as_str(), self.replica),
            Principal::Stranger => ("everybody without a token", self.replica),
        };
        let mut open = self.open.lock();
        let count = open.entry(principal.clone()).or_insert(0);
        if *count >= most {
            let message = format!("{who} has {count} requests open, which is the limit");
            return Err(ApiError::new(code::TOO_MANY_OPEN, message).retry_after(1));
        }
        *count += 1;
        Ok(Slot {
            peers: self.clone(),
            principal: principal.clone(),
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = self.peers.open.lock();
        if let Some(count) = open.get_mut(&self.principal) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.principal);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LinkPeer;

    fn replica(text: &str) -> Principal {
        let name = |text: &str| text.parse().unwrap();
        let tenant = volary_kernel::Tenant::default();
        Principal::Link(LinkPeer {
            tenant,
            agent: name("a"),
            replica: name(text),
        })
    }

    #[test]
    fn each_has_its_own_bound_and_gets_its_slots_back() {
        let peers = Peers::new(&Limits {
            replica_requests: 2,
            ..Limits::default()
        });
        let slots = [
            peers.enter(&replica("a-0")).unwrap(),
            peers.enter(&replica("a-0")).unwrap(),
        ];
        let refused = peers.enter(&replica("a-0")).unwrap_err();
        assert_eq!(
            (refused.status.as_u16(), refused.retry_after),
            (429, Some(1))
        );
        assert!(
            refused.message.contains("a-0 has 2 requests open"),
            "{refused}"
        );
        let others = [
            peers.enter(&replica("a-1")).unwrap(),
            peers.enter(&Principal::Operator).unwrap(),
        ];
        drop((slots, others));
        assert!(peers.open.lock().is_empty());
    }
}
