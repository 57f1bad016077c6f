//! What a durable trace writes: a store in memory that looks, after each commit, at what it changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Mutex, watch};
use volary_flow::Envelope;
use volary_kernel::clock::{SharedClock, SystemClock};
use volary_kernel::id::{Name, Uid};
use volary_store::{
    Batch, Committed, Filter, JournalPage, Key, MemoryConfig, MemoryStore, PAGE_MAX, Record, Seq,
    SharedStore, Store, StoreError, Watch,
};

use super::ours;
use crate::Failure;
use crate::figure::Figure;
use crate::flow::ours::stop;

/// What all records of flows begin with.
const PREFIX: &str = "flow.";

/// A key, around the id of its trace.
pub struct Pattern(String, String);

impl Pattern {
    /// Keys are `kind/flow/id`, and more for steps.
    fn of(key: &Key) -> Result<Self, Failure> {
        let mut parts = key.splitn(4, '/');
        let mut next = || parts.next().ok_or("a key without the id of its trace");
        let (kind, flow, id) = (next()?, next()?, next()?);
        id.parse::<Uid>()?;
        let rest = parts.next().map(|rest| format!("/{rest}"));
        Ok(Self(format!("{kind}/{flow}/"), rest.unwrap_or_default()))
    }

    fn key(&self, uid: Uid) -> String {
        format!("{}{uid}{}", self.0, self.1)
    }
}

/// A row of the journal.
pub struct Row {
    pub kind: String,
    pub tenant: String,
    pub body: Bytes,
}

/// What one commit changed.
#[derive(Default)]
pub struct Written {
    pub puts: Vec<(Pattern, Bytes)>,
    pub removes: Vec<Pattern>,
    pub rows: Vec<Row>,
}

impl Written {
    /// The keys of the puts, then those of the removes, for a trace of this id.
    pub fn keys(&self, uid: Uid) -> Vec<String> {
        let puts = self.puts.iter().map(|(pattern, _)| pattern);
        let all = puts.chain(&self.removes);
        all.map(|pattern| pattern.key(uid)).collect()
    }

    /// All together.
    pub fn of(batches: &[Self]) -> Sum {
        let sum = |part: fn(&Self) -> usize| batches.iter().map(part).sum();
        Sum {
            batches: batches.len(),
            puts: sum(|written| written.puts.len()),
            removes: sum(|written| written.removes.len()),
            rows: sum(|written| written.rows.len()),
            bytes: sum(|written| {
                let puts = written.puts.iter().map(|(_, value)| value.len());
                let rows = written.rows.iter().map(|row| row.body.len());
                puts.chain(rows).sum()
            }),
        }
    }
}

/// How much a trace writes.
pub struct Sum {
    batches: usize,
    puts: usize,
    removes: usize,
    rows: usize,
    bytes: usize,
}

impl Sum {
    /// Shows it beside a figure.
    pub fn tell(&self, figure: Figure) -> Figure {
        figure
            .with("batches", self.batches)
            .with("puts", self.puts)
            .with("removes", self.removes)
            .with("rows", self.rows)
            .with("bytes", self.bytes)
    }
}

/// The batches of one trace of ours, in order.
pub async fn of_one_trace() -> Result<Arc<[Written]>, Failure> {
    let config = MemoryConfig::new(Name::new("bench")?);
    let store = Arc::new(Seen {
        inner: MemoryStore::new(config, SystemClock::shared()),
        noted: Mutex::default(),
    });
    let running = ours::start(store.clone() as SharedStore, 1).await?;
    store.noted.lock().await.batches.clear();
    let handle = running.emit(Envelope::new(ours::payload())).await?;
    let answer = handle.result().await;
    answer.map_err(|outcome| format!("the trace ended as {}", outcome.as_str()))?;
    // It waits until all is written.
    stop(&running).await?;
    let mut noted = store.noted.lock().await;
    if !noted.records.is_empty() {
        return Err("a trace that was read left something behind".into());
    }
    let batches: Result<Vec<_>, _> = std::mem::take(&mut noted.batches).into_iter().collect();
    Ok(batches?.into())
}

/// What is known of the store, and what each commit changed.
#[derive(Default)]
struct Noted {
    records: BTreeMap<Key, (u64, Bytes)>,
    seq: Seq,
    batches: Vec<Result<Written, Failure>>,
}

/// A store whose commits come one after the other, and each is looked at.
struct Seen {
    inner: MemoryStore,
    noted: Mutex<Noted>,
}

impl Seen {
    /// What changed since the last look.
    async fn look(&self, noted: &mut Noted) -> Result<Written, Failure> {
        let mut written = Written::default();
        let found = self.inner.scan(PREFIX, None, PAGE_MAX).await?;
        let now: BTreeMap<_, _> = found
            .into_iter()
            .map(|record| (record.key, (record.version, record.value)))
            .collect();
        for (key, (version, value)) in &now {
            if noted.records.get(key).is_none_or(|(old, _)| old != version) {
                written.puts.push((Pattern::of(key)?, value.clone()));
            }
        }
        for key in noted.records.keys().filter(|key| !now.contains_key(*key)) {
            written.removes.push(Pattern::of(key)?);
        }
        noted.records = now;
        let from = Seq(noted.seq.0 + 1);
        let page = self.inner.read(from, &Filter::default(), PAGE_MAX).await?;
        for row in page.rows {
            noted.seq = row.seq;
            written.rows.push(Row {
                kind: row.kind,
                tenant: row.tenant.to_string(),
                body: row.body,
            });
        }
        Ok(written)
    }
}

#[async_trait]
impl Store for Seen {
    async fn commit(&self, batch: Batch) -> Result<Committed, StoreError> {
        let mut noted = self.noted.lock().await;
        let committed = self.inner.commit(batch).await?;
        let written = self.look(&mut noted).await;
        noted.batches.push(written);
        Ok(committed)
    }

    async fn get_many(&self, keys: &[Key]) -> Result<Vec<Option<Record>>, StoreError> {
        self.inner.get_many(keys).await
    }

    async fn scan(
        &self,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<Record>, StoreError> {
        self.inner.scan(prefix, after, limit).await
    }

    async fn read(
        &self,
        from: Seq,
        filter: &Filter,
        limit: usize,
    ) -> Result<JournalPage, StoreError> {
        self.inner.read(from, filter, limit).await
    }

    fn watch(&self, prefix: &str) -> Watch {
        self.inner.watch(prefix)
    }

    fn head(&self) -> watch::Receiver<Seq> {
        self.inner.head()
    }

    fn node(&self) -> &Name {
        self.inner.node()
    }

    fn clock(&self) -> &SharedClock {
        self.inner.clock()
    }
}
