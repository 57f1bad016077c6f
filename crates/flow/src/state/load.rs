//! Reading what earlier lives of a durable flow left.

use std::{collections::HashMap, sync::Arc, time::Duration};

use serde_json::value::RawValue;
use volary_kernel::{Timestamp, Uid};
use volary_store::{Key, Record, StoreError};

use super::{
    book::{Book, Found},
    ledger::{Ledger, corrupt, each},
    record::{self, KeptRecord, LiveRecord, ParkedRecord, ParkedStep},
};
use crate::{
    envelope::{Headers, Meta},
    graph::plan::Payload,
    outcome::Outcome,
};

/// A trace that an earlier life accepted.
pub(crate) struct Resumed {
    pub book: Arc<Book>,
    pub headers: Headers,
    pub meta: Meta,
    /// What is left of its time, by the wall clock.
    pub left: Option<Duration>,
    pub payload: Payload,
    pub paused: bool,
}

/// A trace that an earlier life ended and nobody has read.
pub(crate) struct Kept {
    pub book: Arc<Book>,
    pub outcome: Outcome,
    pub values: Vec<Payload>,
    /// What is left of the time it is kept.
    pub left: Duration,
}

/// What a store holds of a flow.
#[derive(Default)]
pub(crate) struct Loaded {
    pub live: Vec<Resumed>,
    pub kept: Vec<Kept>,
    /// Traces whose payload cannot be read any more, and why.
    pub unreadable: Vec<(Arc<Book>, String)>,
    /// Steps and pauses of traces that have ended.
    pub garbage: Vec<Key>,
}

impl Ledger {
    /// Reads what earlier lives left.
    pub(crate) async fn load(&self) -> Result<Loaded, StoreError> {
        let mut steps: HashMap<Uid, Found> = HashMap::new();
        each(self.store(), &self.keys.steps, |record| {
            let Some((uid, node, step)) = self.keys.of_step(&record.key) else {
                return Err(corrupt(&record.key));
            };
            let found = steps.entry(uid).or_default();
            match self.nodes.get(&node) {
                Some(node) => {
                    let record = record::decode(&record.key, &record.value)?;
                    found.steps.push(((*node, step), record));
                }
                None => found.orphans.push(record.key),
            }
            Ok(())
        })
        .await?;
        let mut paused = self.pauses().await?;
        let mut loaded = Loaded::default();
        let now = self.wall();
        each(self.store(), &self.keys.live, |record| {
            let uid =
                record::end_of(&record.key, &self.keys.live).ok_or_else(|| corrupt(&record.key))?;
            let live: LiveRecord = record::decode(&record.key, &record.value)?;
            let found = steps.remove(&uid).unwrap_or_default();
            let is_paused = paused.remove(&live.trace).is_some();
            match self.resumed(uid, &live, found, now, is_paused) {
                Ok(resumed) => loaded.live.push(resumed),
                Err(unreadable) => loaded.unreadable.push(unreadable),
            }
            Ok(())
        })
        .await?;
        for (uid, found) in steps {
            for ((node, step), _) in found.steps {
                loaded
                    .garbage
                    .push(self.keys.step(uid, self.node(node), step)?);
            }
            loaded.garbage.extend(found.orphans);
        }
        // Nobody else ends traces of this flow: what is paused and does not live has ended.
        for trace in paused.into_keys() {
            loaded.garbage.push(self.keys.pause(trace)?);
        }
        each(self.store(), &self.keys.kept, |record| {
            loaded.kept.push(self.kept(&record, now)?);
            Ok(())
        })
        .await?;
        Ok(loaded)
    }

    pub(crate) fn resumed(
        &self,
        uid: Uid,
        live: &LiveRecord,
        found: Found,
        now: Timestamp,
        paused: bool,
    ) -> Result<Resumed, (Arc<Book>, String)> {
        let book = Arc::new(Book::found(uid, live.trace, live.tenant.clone(), found));
        if paused {
            let _it_has_not_ended = book.paused();
        }
        let payload = self.durable.input.decode(live.payload.get().as_bytes());
        let payload = payload.map_err(|error| (book.clone(), error.to_string()))?;
        Ok(Resumed {
            book,
            headers: live.headers(),
            meta: live.meta.clone(),
            left: live.deadline.map(|at| at.since(now)),
            payload,
            paused,
        })
    }

    fn kept(&self, record: &Record, now: Timestamp) -> Result<Kept, StoreError> {
        let uid =
            record::end_of(&record.key, &self.keys.kept).ok_or_else(|| corrupt(&record.key))?;
        let kept: KeptRecord = record::decode(&record.key, &record.value)?;
        let decode = |value: &RawValue| self.durable.output.decode(value.get().as_bytes());
        let values: Result<_, _> = kept.values.iter().map(|value| decode(value)).collect();
        let values = values.map_err(|error| StoreError::Corrupt {
            what: format!("record `{}`: {error}", record.key),
            seq: None,
        })?;
        Ok(Kept {
            book: Arc::new(Book::new(uid, kept.trace, kept.tenant)),
            outcome: kept.outcome,
            values,
            left: record
                .expires
                .map_or(self.config.result_ttl, |at| at.since(now)),
        })
    }

    /// The steps of a parked trace, as this plan knows them.
    pub(crate) fn found_in(&self, uid: Uid, parked: ParkedRecord) -> Result<Found, StoreError> {
        let mut found = Found::default();
        for ParkedStep { node, step, record } in parked.steps {
            match self.nodes.get(&node) {
                Some(ix) => found.steps.push(((*ix, step), record)),
                None => found.orphans.push(self.keys.step(uid, &node, step)?),
            }
        }
        Ok(found)
    }
}
