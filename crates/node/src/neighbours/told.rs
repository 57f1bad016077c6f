//! What happens to links, into the journal: `peer.connected`, `peer.down`, `peer.refused`.
//!
//! Peers come and go, and strangers may knock as often as they like; so each is told at most once in a while, with the
//! number of times.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use volary_kernel::{Name, Tenant, clock, task::TaskResult};
use volary_messaging::transport::tcp::{LinkState, TurnedAway};
use volary_store::{Batch, Entry, SharedStore, StoreError};

/// A link is up.
const CONNECTED: &str = "peer.connected";
/// A link is down, and why.
const DOWN: &str = "peer.down";
/// Somebody who is no peer, or does not behave like one, was turned away.
const REFUSED: &str = "peer.refused";
/// The shortest time between two entries about the same.
const PAUSE: Duration = Duration::from_secs(1);

/// Where entries go.
#[derive(Clone)]
pub(super) struct Teller {
    pub store: SharedStore,
    pub tenant: Tenant,
}

impl Teller {
    async fn tell(&self, kind: &'static str, mut body: Value) -> Result<(), StoreError> {
        body["v"] = json!(1);
        let mut tx = Batch::new();
        tx.append(Entry::new(kind, self.tenant.clone(), body.to_string()));
        match self.store.commit(tx).await {
            // The links go on, and the next entry tells how often it happened.
            Err(StoreError::Full { .. }) => Ok(()),
            done => done.map(drop),
        }
    }

    /// Tells how a link to `peer` is, until `stop`.
    pub(super) async fn link(
        self,
        peer: Name,
        mut state: watch::Receiver<LinkState>,
        stop: CancellationToken,
    ) -> TaskResult {
        let mut told = None;
        loop {
            let now = describe(&state.borrow_and_update());
            if now.is_some() && now != told {
                if let Some((kind, body)) = &now {
                    let mut body = body.clone();
                    body["peer"] = json!(peer);
                    self.tell(kind, body).await?;
                }
                told = now;
                stop.run_until_cancelled(clock::sleep(PAUSE)).await;
            }
            let changed = stop.run_until_cancelled(state.changed()).await;
            if !matches!(changed, Some(Ok(()))) {
                return Ok(());
            }
        }
    }

    /// Tells who was turned away, until `stop`.
    pub(super) async fn turned_away(
        self,
        mut away: watch::Receiver<TurnedAway>,
        stop: CancellationToken,
    ) -> TaskResult {
        let mut told = 0;
        loop {
            let now = away.borrow_and_update().clone();
            if now.count > told {
                let remote = now.remote.map(|remote| remote.to_string());
                let body = json!({
                    "count": now.count - told,
                    "remote": remote,
                    "reason": now.reason,
                    "words": now.words,
                });
                self.tell(REFUSED, body).await?;
                told = now.count;
                stop.run_until_cancelled(clock::sleep(PAUSE)).await;
            }
            let changed = stop.run_until_cancelled(away.changed()).await;
            if !matches!(changed, Some(Ok(()))) {
                return Ok(());
            }
        }
    }
}

/// What is told of a state; nothing of one that says nothing yet.
fn describe(state: &LinkState) -> Option<(&'static str, Value)> {
    match state {
        LinkState::Connected { name, .. } => Some((CONNECTED, json!({"name": name}))),
        LinkState::Connecting { last_error, .. } => {
            let reason = last_error.as_ref()?;
            Some((DOWN, json!({"reason": reason})))
        }
        LinkState::Failed { reason } => Some((DOWN, json!({"reason": reason, "for_good": true}))),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use volary_kernel::SystemClock;
    use volary_store::{Filter, MemoryConfig, MemoryStore, Seq};

    use super::*;

    async fn bodies(store: &SharedStore) -> Vec<(String, Value)> {
        let page = store.read(Seq(0), &Filter::default(), 100).await.unwrap();
        let body = |entry: &volary_store::JournalRow| {
            (
                entry.kind.to_string(),
                serde_json::from_slice(&entry.body).unwrap(),
            )
        };
        page.rows.iter().map(body).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_strangers_is_a_few_entries_that_count_all() {
        let name = Name::new("f").unwrap();
        let store: SharedStore = Arc::new(MemoryStore::new(
            MemoryConfig::new(name),
            SystemClock::shared(),
        ));
        let teller = Teller {
            store: store.clone(),
            tenant: Tenant::default(),
        };
        let (away, seen) = watch::channel(TurnedAway::default());
        let stop = CancellationToken::new();
        let flood = async {
            for count in 1..=5_000 {
                away.send_replace(TurnedAway {
                    count,
                    reason: "tls",
                    ..TurnedAway::default()
                });
                clock::sleep(Duration::from_millis(1)).await;
            }
            clock::sleep(2 * PAUSE).await;
            stop.cancel();
        };
        let (told, ()) = tokio::join!(teller.turned_away(seen, stop.clone()), flood);
        told.unwrap();
        let entries = bodies(&store).await;
        let counted: u64 = entries
            .iter()
            .filter_map(|(_, body)| body["count"].as_u64())
            .sum();
        assert_eq!(counted, 5_000);
        assert!((2..=8).contains(&entries.len()), "{}", entries.len());
        assert!(entries.iter().all(|(kind, _)| kind == REFUSED));
    }
}
