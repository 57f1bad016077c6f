//! Claims that agents hold over the link API: which token stands for which claim, and whose it is.
//!
//! Pure. A claim is named by `<item>.<epoch>`, so an acknowledgement that comes late can never settle the claim of
//! somebody who got the item afterwards. Nothing here is durable: the store knows what is claimed, and claims of a node
//! that died are free again.

use std::collections::BTreeMap;

use volary_kernel::{Mono, Name};
use volary_messaging::inbox::Claimed;

/// Most claims held over the link API at once, all agents together.
pub(crate) const MAX_CLAIMS: usize = 100_000;

struct Held {
    agent: Name,
    claimed: Claimed,
    until: Mono,
}

/// Claims by token.
#[derive(Default)]
pub(crate) struct Claims {
    held: BTreeMap<String, Held>,
}

impl Claims {
    /// Remembers a claim that `agent` holds `until` it lapses, and returns its token.
    pub(crate) fn hold(&mut self, agent: &Name, claimed: Claimed, until: Mono) -> String {
        let token = format!("{}.{}", claimed.item(), claimed.epoch());
        self.held.insert(
            token.clone(),
            Held {
                agent: agent.clone(),
                claimed,
                until,
            },
        );
        token
    }

    /// The claim of `agent` that `token` stands for.
    pub(crate) fn find(&self, agent: &Name, token: &str) -> Option<&Claimed> {
        self.held
            .get(token)
            .filter(|held| held.agent == *agent)
            .map(|held| &held.claimed)
    }

    /// Forgets a claim that was settled or has lapsed.
    pub(crate) fn forget(&mut self, token: &str) {
        self.held.remove(token);
    }

    /// Forgets claims that have lapsed by `now`, if it is getting tight; returns how many more can be held.
    pub(crate) fn sweep(&mut self, now: Mono) -> usize {
        if self.held.len() > MAX_CLAIMS / 2 {
            self.held.retain(|_, held| held.until > now);
        }
        MAX_CLAIMS - self.held.len().min(MAX_CLAIMS)
    }
}
