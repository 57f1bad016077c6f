//! Which messages from elsewhere were taken in already: the same one again gets the first result, another one under the
//! same id is refused.
//!
//! One record for each, `message.seen/<id>/<sender id>`, written in the commit that takes the message in. Which ids there
//! are is kept in memory too, so that a new one costs no reading.
//!
//! ```text
//! over the API:    loose ── forgotten after a time and, oldest first, above a number
//! of a peer:       pinned ── the peer's low mark passes ──▶ confirmed ── forgotten, oldest first, above a number
//! ```
//! What is pinned is never forgotten: its sender may not know yet that it was taken, and may send it again. How much may
//! be pinned is bounded; above it a peer's messages are refused for now.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use volary_kernel::{
    clock::Timestamp,
    id::{Name, TraceId, Uid},
    metric::{Counter, Metrics},
};
use volary_store::{Batch, Expect, ItemId, Key, PAGE_MAX, SharedStore, StoreError};

use crate::{
    admission::Admission,
    codec,
    identity::AgentId,
    message::{Message, Parts},
    post::Posted,
};

const PREFIX: &str = "message.seen/";
/// `message.low/<peer>`: the peer's low mark.
const LOW: &str = "message.low/";

/// How much is remembered of messages from elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenConfig {
    /// Most messages that came over the API. Default 100,000; the oldest is forgotten first, and counted.
    pub max: usize,
    /// How long those are remembered. Default 24 h: longer than a sender tries again.
    pub ttl: Duration,
    /// Most messages of one peer that it has not confirmed. Default 65,536, many times what a link has on its way; above
    /// it, messages are refused for now.
    pub max_pinned: usize,
    /// Most messages of one peer that it has confirmed. Default 10,000; the oldest is forgotten first.
    pub max_confirmed: usize,
}

impl Default for SeenConfig {
    fn default() -> Self {
        Self {
            max: 100_000,
            ttl: Duration::from_secs(24 * 3600),
            max_pinned: 65_536,
            max_confirmed: 10_000,
        }
    }
}

/// Whether a message was there before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Before {
    /// No.
    Never,
    /// It is in a batch that is not committed yet.
    Pending,
    /// Yes, and this was the result.
    Same(Posted),
    /// Another message had its id.
    Other,
}

/// What a message is recognised by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SeenId {
    sender: AgentId,
    id: Uid,
}

impl SeenId {
    pub(crate) fn of(message: &Message) -> Self {
        Self {
            sender: message.sender().id(),
            id: message.id(),
        }
    }

    fn key(&self) -> Key {
        let text = format!("{PREFIX}{}/{}", self.id, self.sender);
        Key::new(text).expect("a prefix, a UUID and 64 hex digits make a key")
    }

    fn read(key: &Key) -> Option<Self> {
        let (id, sender) = key.strip_prefix(PREFIX)?.split_once('/')?;
        Some(Self {
            sender: sender.parse().ok()?,
            id: id.parse().ok()?,
        })
    }
}

/// Where a message is in its sender's outbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pin {
    pub(crate) peer: Name,
    pub(crate) order: u64,
}

/// The stored record.
#[derive(Serialize, Deserialize)]
struct Record {
    v: u8,
    hash: String,
    admission: Admission,
    deliveries: Vec<(Name, ItemId)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pin: Option<Pin>,
    /// It came from a peer that will not send it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    peer: Option<Name>,
}

#[derive(Serialize, Deserialize)]
struct LowRecord {
    v: u8,
    low: u64,
}

/// What is remembered of one peer.
#[derive(Default)]
struct OfPeer {
    low: u64,
    pinned: BTreeMap<u64, SeenId>,
    confirmed: VecDeque<SeenId>,
}

impl OfPeer {
    /// Takes out what is confirmed and above the bound, oldest first; the newest stays.
    fn surplus(&mut self, config: &SeenConfig) -> Vec<SeenId> {
        let surplus = self.confirmed.len();
        let surplus = surplus.saturating_sub(config.max_confirmed.max(1));
        self.confirmed.drain(..surplus).collect()
    }
}

/// How far a message is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Its record is there.
    Stored,
    /// It is in a batch that is not committed yet.
    Pending(u64),
}

#[derive(Default)]
struct Table {
    known: HashMap<SeenId, State>,
    /// Batches that were begun.
    begun: u64,
    /// What came over the API, oldest first.
    loose: VecDeque<SeenId>,
    peers: HashMap<Name, OfPeer>,
}

impl Table {
    fn place(&mut self, id: SeenId, pin: Option<Pin>, peer: Option<Name>) {
        match (pin, peer) {
            (Some(Pin { peer, order }), _) => {
                let peer = self.peers.entry(peer).or_default();
                if order < peer.low {
                    peer.confirmed.push_back(id);
                } else if let Some(other) = peer.pinned.insert(order, id)
                    && other != id
                {
                    peer.confirmed.push_back(other);
                }
            }
            (None, Some(peer)) => self.peers.entry(peer).or_default().confirmed.push_back(id),
            (None, None) => self.loose.push_back(id),
        }
    }
}

/// What came, and from whom: where it is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kept {
    /// From the API: for a time.
    Loose,
    /// From a peer that tries once.
    Once(Name),
    /// From a peer's outbox, until it confirms.
    Pinned(Pin),
}

pub(crate) struct Seen {
    config: SeenConfig,
    table: Arc<Mutex<Table>>,
    forgotten: Counter,
}

impl Seen {
    /// Reads which there are.
    pub(crate) async fn open(
        store: &SharedStore,
        config: SeenConfig,
        metrics: &Metrics,
    ) -> Result<Self, StoreError> {
        let mut table = Table::default();
        each(store, LOW, |record| {
            let low: LowRecord = read(record)?;
            if let Some(peer) = record
                .key
                .strip_prefix(LOW)
                .and_then(|peer| Name::new(peer).ok())
            {
                table.peers.entry(peer).or_default().low = low.low;
            }
            Ok(())
        })
        .await?;
        each(store, PREFIX, |record| {
            let Record { pin, peer, .. } = read(record)?;
            let id = SeenId::read(&record.key).ok_or_else(|| StoreError::Corrupt {
                what: format!("record `{}` names no message", record.key),
                seq: None,
            })?;
            table.known.insert(id, State::Stored);
            table.place(id, pin, peer);
            Ok(())
        })
        .await?;
        let forgotten = metrics.counter(
            "message_ids_forgotten",
            "Ids of messages from elsewhere that were forgotten before their time, to make room",
        );
        Ok(Self {
            config,
            table: Arc::new(Mutex::new(table)),
            forgotten,
        })
    }

    /// Looks a message up that has this content.
    pub(crate) async fn before(
        &self,
        store: &SharedStore,
        id: SeenId,
        hash: impl FnOnce() -> String + Send,
    ) -> Result<Before, StoreError> {
        match self.table.lock().known.get(&id) {
            None => return Ok(Before::Never),
            Some(State::Pending(_)) => return Ok(Before::Pending),
            Some(State::Stored) => {}
        }
        let Some(found) = store.get(&id.key()).await? else {
            // Its time is over; its place in the line is taken care of when its turn comes.
            self.table.lock().known.remove(&id);
            return Ok(Before::Never);
        };
        let record: Record = read(&found)?;
        if record.hash != hash() {
            return Ok(Before::Other);
        }
        Ok(Before::Same(Posted {
            admission: record.admission,
            deliveries: record.deliveries,
            entry: None,
        }))
    }

    /// The low mark of the peer, if a message of this number can not be new: its sender has said that it is done with it.
    pub(crate) fn is_below(&self, pin: &Pin) -> Option<u64> {
        let low = self.table.lock().peers.get(&pin.peer)?.low;
        (pin.order < low).then_some(low)
    }

    /// Whether one more message of `peer` may be pinned.
    pub(crate) fn has_room(&self, peer: &Name) -> bool {
        let table = self.table.lock();
        table
            .peers
            .get(peer)
            .is_none_or(|peer| peer.pinned.len() < self.config.max_pinned)
    }

    /// How many messages of `peer` are pinned.
    pub(crate) fn pinned(&self, peer: &Name) -> usize {
        let table = self.table.lock();
        table.peers.get(peer).map_or(0, |peer| peer.pinned.len())
    }

    /// Adds to `tx` that the message was taken in. The batch conflicts if somebody else has taken it in meanwhile.
    pub(crate) fn remember(
        &self,
        tx: &mut Batch,
        id: SeenId,
        hash: String,
        posted: &Posted,
        kept: Kept,
    ) {
        let (pin, peer) = match kept {
            Kept::Loose => (None, None),
            Kept::Once(peer) => (None, Some(peer)),
            Kept::Pinned(pin) => (Some(pin), None),
        };
        let record = Record {
            v: 1,
            hash,
            admission: posted.admission.clone(),
            deliveries: posted.deliveries.clone(),
            pin: pin.clone(),
            peer: peer.clone(),
        };
        let value = serde_json::to_vec(&record).expect("names, ids and words have a JSON form");
        let loose = pin.is_none() && peer.is_none();
        let (token, surplus, of_peer) = {
            let mut table = self.table.lock();
            table.begun += 1;
            let token = table.begun;
            table.known.insert(id, State::Pending(token));
            let surplus =
                (table.loose.len() + usize::from(loose)).saturating_sub(self.config.max.max(1));
            let surplus: Vec<_> = table.loose.drain(..surplus).collect();
            table.place(id, pin.clone(), peer.clone());
            // A peer may send once only, or use a number again: what is not pinned is bounded here too.
            let of_peer = peer.as_ref().or(pin.as_ref().map(|pin| &pin.peer));
            let of_peer = of_peer.and_then(|peer| {
                let surplus = table.peers.get_mut(peer)?.surplus(&self.config);
                Some((peer.clone(), surplus))
            });
            (token, surplus, of_peer)
        };
        self.forgotten.inc_by(surplus.len() as u64);
        Forgotten::add(&self.table, tx, None, surplus);
        if let Some((peer, surplus)) = of_peer {
            Forgotten::add(&self.table, tx, Some(peer), surplus);
        }
        let (key, expect) = (id.key(), Expect::Absent);
        if loose {
            tx.put_ttl(key, value, expect, self.config.ttl);
        } else {
            tx.put(key, value, expect);
        }
        let mut pending = Pending {
            table: self.table.clone(),
            id,
            token,
            place: Some((pin, peer)),
        };
        tx.on_commit(move |_| pending.stored());
    }

    /// Adds to `tx` that `peer` is done with every number below `low`.
    pub(crate) fn confirm(&self, tx: &mut Batch, peer: &Name, low: u64) {
        let surplus = {
            let mut table = self.table.lock();
            let of_peer = table.peers.entry(peer.clone()).or_default();
            if low <= of_peer.low {
                return;
            }
            of_peer.low = low;
            let still = of_peer.pinned.split_off(&low);
            let confirmed = std::mem::replace(&mut of_peer.pinned, still);
            of_peer.confirmed.extend(confirmed.into_values());
            of_peer.surplus(&self.config)
        };
        let record = LowRecord { v: 1, low };
        let value = serde_json::to_vec(&record).expect("numbers have a JSON form");
        let key = Key::new(format!("{LOW}{peer}")).expect("a prefix and a name make a key");
        tx.put(key, value, Expect::Any);
        Forgotten::add(&self.table, tx, Some(peer.clone()), surplus);
    }
}

async fn each(
    store: &SharedStore,
    prefix: &str,
    mut take: impl FnMut(&volary_store::Record) -> Result<(), StoreError> + Send,
) -> Result<(), StoreError> {
    let mut after: Option<Key> = None;
    loop {
        let page = store.scan(prefix, after.as_ref(), PAGE_MAX).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.key.clone());
        page.iter().try_for_each(&mut take)?;
    }
    Ok(())
}

fn read<T: serde::de::DeserializeOwned>(record: &volary_store::Record) -> Result<T, StoreError> {
    serde_json::from_slice(&record.value).map_err(|error| StoreError::Corrupt {
        what: format!("record `{}` can not be read: {error}", record.key),
        seq: None,
    })
}

/// A message whose batch is not committed yet: forgotten if it never is.
struct Pending {
    table: Arc<Mutex<Table>>,
    id: SeenId,
    token: u64,
    /// Where it is in the line, as [`Table::place`] was told.
    place: Option<(Option<Pin>, Option<Name>)>,
}

impl Pending {
    fn stored(&mut self) {
        self.place = None;
        self.table.lock().known.insert(self.id, State::Stored);
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let Some((pin, peer)) = self.place.take() else {
            return;
        };
        let (mut table, id) = (self.table.lock(), self.id);
        // Somebody else may have taken the same message in meanwhile: that stays.
        let mine = table.known.get(&id) == Some(&State::Pending(self.token));
        if mine {
            table.known.remove(&id);
        }
        let line = match (pin, peer) {
            (Some(Pin { peer, order }), _) => {
                let of_peer = table.peers.entry(peer).or_default();
                if mine && of_peer.pinned.get(&order) == Some(&id) {
                    of_peer.pinned.remove(&order);
                    return;
                }
                &mut of_peer.confirmed
            }
            (None, Some(peer)) => &mut table.peers.entry(peer).or_default().confirmed,
            (None, None) => &mut table.loose,
        };
        if let Some(place) = line.iter().rposition(|other| *other == id) {
            line.remove(place);
        }
    }
}

/// What is forgotten when its batch is committed, and else remembered again.
struct Forgotten {
    table: Arc<Mutex<Table>>,
    peer: Option<Name>,
    ids: Vec<SeenId>,
}

impl Forgotten {
    fn add(table: &Arc<Mutex<Table>>, tx: &mut Batch, peer: Option<Name>, ids: Vec<SeenId>) {
        if ids.is_empty() {
            return;
        }
        for id in &ids {
            tx.delete(id.key(), Expect::Any);
        }
        let table = table.clone();
        let mut forgotten = Self { table, peer, ids };
        tx.on_commit(move |_| {
            let mut table = forgotten.table.lock();
            for id in &forgotten.ids {
                table.known.remove(id);
            }
            drop(table);
            forgotten.ids.clear();
        });
    }
}

impl Drop for Forgotten {
    fn drop(&mut self) {
        let mut table = self.table.lock();
        let line = match self.peer.take() {
            Some(peer) => &mut table.peers.entry(peer).or_default().confirmed,
            None => &mut table.loose,
        };
        for id in self.ids.drain(..).rev() {
            line.push_front(id);
        }
    }
}

/// Hash of what the sender determined: what the node stamps at each try (times, trace) is left out.
pub(crate) fn content_hash(message: &Message) -> String {
    let parts = Parts {
        sent_at: Timestamp::default(),
        deadline: None,
        span: None,
        trace: TraceId::from_bytes([1; 16]).expect("not all zero"),
        ..message.parts().clone()
    };
    sealed_hash(&codec::encode(&Message::from_parts(parts)))
}

/// Hash of a message that its sender sealed: of its bytes.
pub(crate) fn sealed_hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

#[cfg(test)]
#[path = "seen_tests.rs"]
mod tests;
