//! What a peer says of its agents: opened, verified, entered into the register, kept, routed by.
//!
//! ```text
//! introduction ─▶ each descriptor: signature, id, expiry ─▶ tenant agreed? ─▶ register: ours or another's? ─▶ route
//!                     └──────────────── not taken: peer.objected says which and why ────────────────┘
//! identities, `peer/<name>/routes` and the journal entry are one commit; the routes outlive restarts and the peer's absence
//! ```

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use volary_kernel::{clock, id::Name};
use volary_store::{Batch, Expect, Key, SharedStore, StoreError};

use super::{Peer, PeerError, Peers, routes::Route};
use crate::{discovery::Introduction, event::Event, identity::Introduced, webhook};

/// Most objections that are told of one introduction.
const OBJECTIONS: usize = 100;
/// Descriptors that are verified without a pause: a few milliseconds.
const AT_ONCE: usize = 64;
/// How much longer than an introduction took the next one of the same peer waits: one that introduces itself without
/// end has a fifth of a core.
const REST: u32 = 4;
/// The longest such wait.
const REST_MAX: Duration = Duration::from_secs(2);
/// The shortest one after an introduction of which something was not taken: each of those is told in the journal.
const REST_OBJECTED: Duration = Duration::from_secs(1);

/// Whether something of an introduction was not taken.
enum Objections {
    None,
    Some,
}

#[derive(Serialize, Deserialize)]
struct RoutesRecord {
    v: u8,
    routes: Vec<Route>,
}

fn key(peer: &Name) -> Key {
    Key::new(format!("peer/{peer}/routes")).expect("a prefix, a name and a suffix make a key")
}

/// What a peer said before.
pub(super) async fn stored(store: &SharedStore, peer: &Name) -> Result<Vec<Route>, StoreError> {
    let Some(record) = store.get(&key(peer)).await? else {
        return Ok(Vec::new());
    };
    let read: Result<RoutesRecord, _> = serde_json::from_slice(&record.value);
    read.map(|record| record.routes)
        .map_err(|error| StoreError::Corrupt {
            what: format!("record `{}` can not be read: {error}", record.key),
            seq: None,
        })
}

impl Peers {
    /// What a peer says of its agents: opened, verified, registered, kept; takes the place of what it said before. What
    /// can not be taken of it is left out, and told in the journal.
    ///
    /// # Errors
    /// [`PeerError::Unknown`]; [`PeerError::Introduction`] when it can not be read or stored: what it said before stays.
    pub async fn introduced(&self, peer: &Name, said: Bytes) -> Result<(), PeerError> {
        let (place, configured) = self.find(peer)?;
        let clock = &self.0.parts.clock;
        let mut turn = configured.introducing.lock().await;
        let begun = clock.mono();
        if *turn > begun {
            clock::sleep(*turn - begun).await;
        }
        let begun = clock.mono();
        let taken = self.take_introduction((place, configured), said).await;
        let now = clock.mono();
        let mut rest = ((now - begun) * REST).min(REST_MAX);
        if !matches!(taken, Ok(Objections::None)) {
            rest = rest.max(REST_OBJECTED);
        }
        *turn = now + rest;
        taken.map(drop)
    }

    async fn take_introduction(
        &self,
        (place, configured): (usize, &Arc<Peer>),
        said: Bytes,
    ) -> Result<Objections, PeerError> {
        let spec = &configured.config.spec;
        let peer = &spec.name;
        let failed = |problem: String| PeerError::Introduction {
            peer: peer.clone(),
            problem,
        };
        let parts = &self.0.parts;
        let now = parts.clock.wall();
        // Nothing said is no agents.
        let introduction = if said.is_empty() {
            Introduction::default()
        } else {
            Introduction::decode(&said).map_err(|error| failed(error.to_string()))?
        };
        let (mut agents, mut routes, mut objections) = (Vec::new(), Vec::new(), Vec::new());
        for (number, signed) in introduction.descriptors().iter().enumerate() {
            if number % AT_ONCE == AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
            let descriptor = match signed.open(now) {
                Ok(descriptor) => descriptor,
                Err(error) => {
                    objections.push((signed.claimed().name.to_string(), error.to_string()));
                    continue;
                }
            };
            if !spec.tenants.contains(&descriptor.tenant) {
                let why = format!("tenant `{}` is not agreed", descriptor.tenant);
                objections.push((descriptor.name.to_string(), why));
                continue;
            }
            if descriptor.name.as_str() == webhook::SENDER {
                let why = "the name is that of this node's webhooks".to_owned();
                objections.push((descriptor.name.to_string(), why));
                continue;
            }
            agents.push(Introduced {
                id: descriptor.id(),
                key: descriptor.key,
                name: descriptor.name.clone(),
                tenant: descriptor.tenant.clone(),
            });
            routes.push(Route {
                tenant: descriptor.tenant,
                name: descriptor.name,
                topics: descriptor.topics,
            });
        }
        let before = self.0.routes.of(place);
        let outranked: Vec<Name> = self.0.peers[place + 1..]
            .iter()
            .map(|peer| peer.config.spec.name.clone())
            .collect();
        let mut taken = Vec::new();
        let verdicts = parts.identities.introduce(
            peer,
            (&agents, &outranked),
            now,
            |tx, verdicts, changed| {
                for ((agent, route), verdict) in agents.iter().zip(routes).zip(verdicts) {
                    match verdict {
                        Ok(()) => taken.push(route),
                        Err(error) => objections.push((agent.name.to_string(), error.to_string())),
                    }
                }
                if changed || taken != before || !objections.is_empty() {
                    self.tell(tx, peer, &taken, &mut objections);
                }
            },
        );
        verdicts.await.map_err(|error| failed(error.to_string()))?;
        self.0.routes.learn(place, taken);
        Ok(match objections.is_empty() {
            true => Objections::None,
            false => Objections::Some,
        })
    }

    fn tell(
        &self,
        tx: &mut Batch,
        peer: &Name,
        taken: &[Route],
        objections: &mut Vec<(String, String)>,
    ) {
        if let Some((agent, problem)) = objections.first() {
            let count = objections.len();
            tracing::warn!(%peer, count, agent, problem, "agents of a peer were not taken; this is the first");
        }
        objections.truncate(OBJECTIONS);
        let event = Event::Introduced {
            peer,
            taken: taken.len(),
            objections,
        };
        tx.append(event.record());
        let record = RoutesRecord {
            v: 1,
            routes: taken.to_vec(),
        };
        let value = serde_json::to_vec(&record).expect("names and topics have a JSON form");
        tx.put(key(peer), value, Expect::Any);
    }
}
