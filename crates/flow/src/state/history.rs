//! Histories of traces: what happened to each, kept in the journal of a store.
//!
//! The journal is the one record: events stand in it as `flow.event.<kind>` beside everything else that tells of the trace,
//! age and size are bounded by the store's retention, and its chain shows edits. It has no index by trace, so reading a
//! history walks the journal: meant for people and tests, not for hot paths.

use std::{
    cmp::Reverse,
    collections::{HashMap, hash_map},
    time::Duration,
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use volary_kernel::{Name, Tenant, Timestamp, TraceId, Uid};
use volary_store::{
    Batch, Entry, Expect, Filter, JournalRow, Key, PAGE_MAX, Seq, SharedStore, StoreError,
};

use crate::observe::{FlowEvent, FlowEventKind};

/// How long events are found. Default: 7 days, as long as the journal keeps them by default.
pub const DEFAULT_HISTORY_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Most events kept of one trace. Default: 10,000; a trace that goes on is known by then.
pub const DEFAULT_HISTORY_EVENTS: usize = 10_000;
/// Longest text kept of an event, in bytes: the rest is cut.
const TEXT: usize = 1024;
/// Sources whose place is remembered.
const SOURCES: usize = 256;
/// Attempts to save beside others that save events of the same source.
const TRIES: u32 = 5;
const KIND: &str = "flow.event.";

/// Bounds of histories, beside those of the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryConfig {
    /// Older events are not found, by the wall clock.
    pub max_age: Duration,
    /// Most events kept of one trace; what comes later is counted and not kept.
    pub max_events: usize,
}

impl Default for HistoryConfig {
    fn default() -> Self {
        Self {
            max_age: DEFAULT_HISTORY_AGE,
            max_events: DEFAULT_HISTORY_EVENTS,
        }
    }
}

/// Which event of which recorder: saving one twice is saving it once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EventId {
    /// The recorder, of one life of a process.
    pub source: Uid,
    /// Grows by one with each of its events, from 1.
    pub seq: u64,
}

/// Something that happened to a trace, as it is kept. Values of users are not in it.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredEvent {
    /// Which event it is.
    pub id: EventId,
    /// The trace.
    pub trace_id: TraceId,
    /// Whose.
    pub tenant: Tenant,
    /// When.
    pub at: Timestamp,
    /// What, as in [`FlowEventKind::as_str`].
    pub kind: String,
    /// The flow.
    pub flow: Name,
    /// The node, where it is about one.
    pub node: Option<Name>,
    /// Which attempt of the node, from 1; 0 where it is about none.
    pub attempt: u32,
    /// What belongs to the kind, by the names of [`FlowEvent::to_payload`]; longer texts are cut.
    pub payload: serde_json::Map<String, serde_json::Value>,
}

/// An event and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    /// The event.
    pub event: StoredEvent,
    /// Its place in the journal: a cursor for [`StateStore::list_after`].
    pub place: Seq,
}

#[derive(Serialize, Deserialize)]
struct Body {
    v: u8,
    source: Uid,
    seq: u64,
    at: Timestamp,
    flow: Name,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<Name>,
    #[serde(default, skip_serializing_if = "is_zero")]
    attempt: u32,
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    payload: serde_json::Map<String, serde_json::Value>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature serde asks for"
)]
const fn is_zero(value: &u32) -> bool {
    *value == 0
}

impl StoredEvent {
    /// What is kept of an event.
    pub fn of(event: &FlowEvent, id: EventId) -> Self {
        Self {
            id,
            trace_id: event.trace_id,
            tenant: event.tenant.clone(),
            at: event.at,
            kind: event.kind.as_str().to_owned(),
            flow: event.flow.clone(),
            node: event.node.clone(),
            attempt: event.attempt,
            payload: payload_of(&event.kind),
        }
    }

    fn read(row: &JournalRow) -> Result<Listed, StoreError> {
        let bad = |cause: String| StoreError::Corrupt {
            what: format!(
                "journal entry of kind `{}` is no stored event: {cause}",
                row.kind
            ),
            seq: Some(row.seq),
        };
        let body: Body =
            serde_json::from_slice(&row.body).map_err(|error| bad(error.to_string()))?;
        let kind = row.kind.strip_prefix(KIND).unwrap_or(&row.kind).to_owned();
        let event = Self {
            id: EventId {
                source: body.source,
                seq: body.seq,
            },
            trace_id: row.trace.ok_or_else(|| bad("it has no trace".into()))?,
            tenant: row.tenant.clone(),
            at: body.at,
            kind,
            flow: body.flow,
            node: body.node,
            attempt: body.attempt,
            payload: body.payload,
        };
        Ok(Listed {
            event,
            place: row.seq,
        })
    }

    fn entry(&self) -> Result<Entry, StoreError> {
        let body = Body {
            v: 1,
            source: self.id.source,
            seq: self.id.seq,
            at: self.at,
            flow: self.flow.clone(),
            node: self.node.clone(),
            attempt: self.attempt,
            payload: self.payload.clone(),
        };
        let kind = format!("{KIND}{}", self.kind);
        Ok(Entry::json(kind, self.tenant.clone(), &body)?.trace(self.trace_id))
    }
}

/// What an event says beside what every event says, under the same names, its texts cut.
fn payload_of(kind: &FlowEventKind) -> serde_json::Map<String, serde_json::Value> {
    let mut payload = kind.to_payload();
    for value in payload.values_mut() {
        if let serde_json::Value::String(text) = value {
            text.truncate(clip(text).len());
        }
    }
    payload
}

/// The first [`TEXT`] bytes.
fn clip(text: &str) -> &str {
    let end = (0..=TEXT.min(text.len()))
        .rev()
        .find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

/// Histories over a store.
pub struct StateStore {
    store: SharedStore,
    config: HistoryConfig,
    /// How far the events of a source are saved, and the version of the record that says so.
    saved: Mutex<HashMap<Uid, (u64, u64)>>,
}

impl StateStore {
    /// Histories on `store`.
    pub fn new(store: SharedStore, config: HistoryConfig) -> Self {
        Self {
            store,
            config,
            saved: Mutex::default(),
        }
    }

    /// How it is bounded.
    pub const fn config(&self) -> &HistoryConfig {
        &self.config
    }

    /// Saves events; says how many of them were new. The events of one source are saved in the order of their numbers:
    /// one that is not after the last saved of its source was saved before, and is left out.
    ///
    /// # Errors
    /// Those of the store; nothing of it is saved then. Saving the same events again is always right.
    #[doc(alias = "save_event")]
    pub async fn save(&self, events: &[StoredEvent]) -> Result<usize, StoreError> {
        let mut tries = 1;
        loop {
            let (tx, places, new) = self.batch(events).await?;
            if new == 0 {
                return Ok(0);
            }
            match self.store.commit(tx).await {
                Ok(committed) => {
                    let mut saved = self.saved.lock();
                    if saved.len() >= SOURCES {
                        saved.clear();
                    }
                    let at = |(source, seq)| (source, (seq, committed.version));
                    saved.extend(places.into_iter().map(at));
                    return Ok(new);
                }
                Err(StoreError::Conflict { .. }) if tries < TRIES => {
                    tries += 1;
                    self.saved.lock().clear();
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// What is new of `events`, how far each source is then, and how many are new.
    async fn batch(
        &self,
        events: &[StoredEvent],
    ) -> Result<(Batch, HashMap<Uid, u64>, usize), StoreError> {
        let mut tx = Batch::new();
        tx.intake();
        let mut places: HashMap<Uid, (u64, Option<u64>)> = HashMap::new();
        let mut new = 0;
        for event in events {
            let source = event.id.source;
            let place = match places.entry(source) {
                hash_map::Entry::Occupied(known) => known.into_mut(),
                hash_map::Entry::Vacant(new) => new.insert(self.place(source).await?),
            };
            if event.id.seq > place.0 {
                place.0 = event.id.seq;
                new += 1;
                tx.append(event.entry()?);
            }
        }
        for (source, (seq, version)) in &places {
            let expect = version.map_or(Expect::Absent, Expect::Version);
            let ttl = self.config.max_age;
            tx.put_ttl(place_key(*source)?, seq.to_string(), expect, ttl);
        }
        let places = places.into_iter().map(|(source, (seq, _))| (source, seq));
        Ok((tx, places.collect(), new))
    }

    /// How far a source is, and the version of the record that says so.
    async fn place(&self, source: Uid) -> Result<(u64, Option<u64>), StoreError> {
        if let Some((seq, version)) = self.saved.lock().get(&source) {
            return Ok((*seq, Some(*version)));
        }
        let key = place_key(source)?;
        let Some(record) = self.store.get(&key).await? else {
            return Ok((0, None));
        };
        let seq = std::str::from_utf8(&record.value)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| StoreError::Corrupt {
                what: format!("record `{key}` is no place of a source of events"),
                seq: None,
            })?;
        Ok((seq, Some(record.version)))
    }

    /// Everything kept of a trace of this tenant, ordered by time and number. Empty for an unknown trace and for another
    /// tenant's.
    ///
    /// # Errors
    /// Those of reading.
    #[doc(alias = "load_history")]
    pub async fn history(
        &self,
        trace: TraceId,
        tenant: &Tenant,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        let mut events: Vec<StoredEvent> = Vec::new();
        let mut after = Seq(0);
        loop {
            let (page, next) = self.page(trace, tenant, after, PAGE_MAX).await?;
            events.extend(page.into_iter().map(|listed| listed.event));
            match next {
                Some(next) if events.len() < self.config.max_events => after = next,
                _ => break,
            }
        }
        events.sort_by_key(|event| (event.at, event.id.seq, event.id.source));
        events.truncate(self.config.max_events);
        Ok(events)
    }

    /// Up to `limit` events of a trace of this tenant that stand after `after`, in the order in which they were saved;
    /// `Seq(0)` begins. Fewer than `limit` means that there are no more for now.
    ///
    /// # Errors
    /// Those of reading.
    #[doc(alias = "list_updates")]
    pub async fn list_after(
        &self,
        trace: TraceId,
        tenant: &Tenant,
        after: Seq,
        limit: usize,
    ) -> Result<Vec<Listed>, StoreError> {
        let mut events = Vec::new();
        let mut from = after;
        loop {
            let left = limit.saturating_sub(events.len());
            if left == 0 {
                return Ok(events);
            }
            let (page, next) = self.page(trace, tenant, from, left).await?;
            events.extend(page);
            match next {
                Some(next) => from = next,
                None => return Ok(events),
            }
        }
    }

    /// Up to `limit` events after `after`, and after what the next page is, if there is more to look at.
    async fn page(
        &self,
        trace: TraceId,
        tenant: &Tenant,
        after: Seq,
        limit: usize,
    ) -> Result<(Vec<Listed>, Option<Seq>), StoreError> {
        let filter = Filter {
            kinds: vec![KIND.to_owned()],
            trace: Some(trace),
            tenant: Some(tenant.clone()),
            since: Some(self.store.clock().wall() - self.config.max_age),
            ..Filter::default()
        };
        let page = self.store.read(after.next(), &filter, limit).await?;
        let events = page.rows.iter().map(StoredEvent::read);
        let events = events.collect::<Result<Vec<_>, _>>()?;
        let next = (!page.end).then(|| Seq(page.next.0.saturating_sub(1)));
        Ok((events, next))
    }

    /// Traces of this tenant of which something is kept, the one whose last event is newest first; at most `limit`.
    ///
    /// # Errors
    /// Those of reading.
    pub async fn traces(&self, tenant: &Tenant, limit: usize) -> Result<Vec<TraceId>, StoreError> {
        let filter = Filter {
            kinds: vec![KIND.to_owned()],
            tenant: Some(tenant.clone()),
            since: Some(self.store.clock().wall() - self.config.max_age),
            ..Filter::default()
        };
        let mut last: HashMap<TraceId, Seq> = HashMap::new();
        let mut from = Seq(0);
        loop {
            let page = self.store.read(from, &filter, PAGE_MAX).await?;
            for row in &page.rows {
                last.extend(row.trace.map(|trace| (trace, row.seq)));
            }
            // Bounded: the newest stay.
            if last.len() > limit.saturating_mul(2).max(PAGE_MAX) {
                keep_newest(&mut last, limit);
            }
            if page.end {
                break;
            }
            from = page.next;
        }
        keep_newest(&mut last, limit);
        let mut traces: Vec<_> = last.into_iter().collect();
        traces.sort_by_key(|(_, seq)| Reverse(*seq));
        Ok(traces.into_iter().map(|(trace, _)| trace).collect())
    }
}

fn keep_newest(last: &mut HashMap<TraceId, Seq>, limit: usize) {
    if last.len() > limit {
        let mut seqs: Vec<_> = last.values().copied().collect();
        seqs.sort_unstable_by_key(|seq| Reverse(*seq));
        let oldest = limit.checked_sub(1).and_then(|ix| seqs.get(ix)).copied();
        last.retain(|_, seq| oldest.is_some_and(|oldest| *seq >= oldest));
    }
}

fn place_key(source: Uid) -> Result<Key, StoreError> {
    Key::new(format!("flow.source/{source}"))
}
