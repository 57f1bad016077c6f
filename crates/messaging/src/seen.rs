//! Which messages from elsewhere were taken in already: the same one again gets the first result, another one under the
//! same id is refused.
//!
//! One record for each: `message.seen/<id>/<sender id>`, forgotten after a time and, oldest first, above a number.

use std::{collections::VecDeque, time::Duration};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use volary_kernel::{
    clock::Timestamp,
    id::{Name, TraceId},
    metric::{Counter, Metrics},
};
use volary_store::{Batch, Expect, ItemId, Key, SharedStore, StoreError};

use crate::{
    admission::Admission,
    codec,
    message::{Message, Parts},
    post::Posted,
};

const PREFIX: &str = "message.seen/";

/// How much is remembered of messages from elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenConfig {
    /// Most messages. Default 100,000; the oldest is forgotten first, and counted.
    pub max: usize,
    /// How long. Default 24 h: longer than a sender tries again.
    pub ttl: Duration,
}

impl Default for SeenConfig {
    fn default() -> Self {
        Self {
            max: 100_000,
            ttl: Duration::from_secs(24 * 3600),
        }
    }
}

/// Whether a message was there before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Before {
    /// No.
    Never,
    /// Yes, and this was the result.
    Same(Posted),
    /// Another message had its id.
    Other,
}

/// The stored record.
#[derive(Serialize, Deserialize)]
struct Record {
    v: u8,
    hash: String,
    admission: Admission,
    deliveries: Vec<(Name, ItemId)>,
}

pub(crate) struct Seen {
    config: SeenConfig,
    /// Keys that are there, oldest first; at most `config.max` and the ones of open batches.
    order: std::sync::Arc<Mutex<VecDeque<Key>>>,
    forgotten: Counter,
}

impl Seen {
    /// Reads which there are.
    pub(crate) async fn open(
        store: &SharedStore,
        config: SeenConfig,
        metrics: &Metrics,
    ) -> Result<Self, StoreError> {
        let mut order = VecDeque::new();
        let mut after: Option<Key> = None;
        loop {
            let page = store
                .scan(PREFIX, after.as_ref(), volary_store::PAGE_MAX)
                .await?;
            let Some(last) = page.last() else { break };
            after = Some(last.key.clone());
            order.extend(page.into_iter().map(|record| record.key));
        }
        let forgotten = metrics.counter(
            "message_ids_forgotten",
            "Ids of messages from elsewhere that were forgotten before their time, to make room",
        );
        Ok(Self {
            config,
            order: std::sync::Arc::new(Mutex::new(order)),
            forgotten,
        })
    }

    /// Looks a message up.
    pub(crate) async fn before(
        &self,
        store: &SharedStore,
        message: &Message,
    ) -> Result<Before, StoreError> {
        let Some(found) = store.get(&key(message)).await? else {
            return Ok(Before::Never);
        };
        let corrupt = |error: serde_json::Error| StoreError::Corrupt {
            what: format!("record `{}` can not be read: {error}", found.key.as_str()),
            seq: None,
        };
        let record: Record = serde_json::from_slice(&found.value).map_err(corrupt)?;
        if record.hash != content_hash(message) {
            return Ok(Before::Other);
        }
        Ok(Before::Same(Posted {
            admission: record.admission,
            deliveries: record.deliveries,
            entry: None,
        }))
    }

    /// Adds to `tx` that the message was taken in. The batch conflicts if somebody else has taken it in meanwhile.
    pub(crate) fn remember(&self, tx: &mut Batch, message: &Message, posted: &Posted) {
        let record = Record {
            v: 1,
            hash: content_hash(message),
            admission: posted.admission.clone(),
            deliveries: posted.deliveries.clone(),
        };
        let value = serde_json::to_vec(&record).expect("names, ids and words have a JSON form");
        let key = key(message);
        for oldest in self.surplus() {
            tx.delete(oldest, Expect::Any);
            self.forgotten.inc();
        }
        tx.put_ttl(key.clone(), value, Expect::Absent, self.config.ttl);
        let order = self.order.clone();
        tx.on_commit(move |_| order.lock().push_back(key));
    }

    /// Takes out what is too much when one more comes.
    fn surplus(&self) -> Vec<Key> {
        let mut order = self.order.lock();
        let surplus = (order.len() + 1).saturating_sub(self.config.max.max(1));
        order.drain(..surplus).collect()
    }
}

fn key(message: &Message) -> Key {
    let text = format!("{PREFIX}{}/{}", message.id(), message.sender().id());
    Key::new(text).expect("a prefix, a UUID and 64 hex digits make a key")
}

/// Hash of what the sender determined: what the node stamps at each try (times, trace) is left out.
fn content_hash(message: &Message) -> String {
    let parts = Parts {
        sent_at: Timestamp::default(),
        deadline: None,
        span: None,
        trace: TraceId::from_bytes([1; 16]).expect("not all zero"),
        ..message.parts().clone()
    };
    blake3::hash(&codec::encode(&Message::from_parts(parts)))
        .to_hex()
        .to_string()
}
