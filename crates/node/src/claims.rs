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
/// Lapsed claims are not looked for among fewer than this: each holds its payload, so they must not pile up.
const SWEEP_ABOVE: usize = 256;

struct Held {
    agent: Name,
    claimed: Claimed,
    until: Mono,
}

/// Claims by token.
#[derive(Default)]
pub(crate) struct Claims {
    held: BTreeMap<String, Held>,
    /// How many held when lapsed ones were last looked for.
    swept: usize,
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

    /// Forgets claims that have lapsed by `now`, whenever there are twice as many as the last time; returns how many more
    /// can be held.
    pub(crate) fn sweep(&mut self, now: Mono) -> usize {
        if self.held.len() > SWEEP_ABOVE.max(self.swept.saturating_mul(2).min(MAX_CLAIMS / 2)) {
            self.held.retain(|_, held| held.until > now);
            self.swept = self.held.len();
        }
        MAX_CLAIMS - self.held.len().min(MAX_CLAIMS)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use volary_kernel::{ManualClock, Tenant, TraceId, metric::Metrics, secret::Redactor};
    use volary_messaging::{
        Parcel,
        delivery::DeliveryKind,
        inbox::{InboxSpec, Inboxes, PutOptions},
        message::Payload,
    };
    use volary_store::{Batch, MemoryConfig, MemoryStore, SharedStore, queue::Queues};

    use super::*;

    async fn claimed(agent: &Name) -> Claimed {
        let store: SharedStore = Arc::new(MemoryStore::new(
            MemoryConfig::new(agent.clone()),
            ManualClock::default().shared(),
        ));
        let queues = Queues::open(store.clone()).await.unwrap();
        let inboxes = Inboxes::new(
            queues,
            store.clone(),
            Redactor::default(),
            &Metrics::default(),
        );
        let spec = InboxSpec::new(Tenant::default(), agent.clone(), Vec::new());
        let mailbox = inboxes.open(spec).unwrap();
        let parcel = Parcel {
            kind: DeliveryKind::Task,
            topic: None,
            sender: "test".into(),
            trace: TraceId::generate(),
            idempotency_key: "1".into(),
            payload: Payload::json("work").unwrap(),
        };
        let mut tx = Batch::new();
        let to = (&Tenant::default(), agent);
        inboxes
            .put(&mut tx, to, &parcel, PutOptions::default())
            .unwrap();
        store.commit(tx).await.unwrap();
        let claims = mailbox.claim("replica", 1, Duration::ZERO).await;
        claims.unwrap().remove(0)
    }

    #[tokio::test]
    async fn lapsed_claims_do_not_pile_up() {
        let agent = Name::new("agent").unwrap();
        let claimed = claimed(&agent).await;
        let mut claims = Claims::default();
        let at = |seconds| Mono::default() + Duration::from_secs(seconds);
        for round in 0..1_000_u64 {
            claims.sweep(at(round));
            for index in 0..10 {
                let held = Held {
                    agent: agent.clone(),
                    claimed: claimed.clone(),
                    until: at(round + 30),
                };
                claims.held.insert(format!("{round}.{index}"), held);
            }
        }
        assert!(claims.find(&agent, "990.0").is_some(), "what holds is kept");
        assert!(claims.held.len() < 1_000, "{}", claims.held.len());
    }
}
