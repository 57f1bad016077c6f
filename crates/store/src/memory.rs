//! A store in memory: for tests, and for fleets that may forget. Same contract, but for durability.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::Arc,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch as latest;
use volary_kernel::{
    clock::{SharedClock, Timestamp},
    id::Name,
};

use crate::{
    batch::{Batch, Committed, Expect, Op},
    entry::{Cause, Entry, Filter, JournalPage, JournalRow, Seq},
    error::{Found, FullWhat, StoreError},
    key::{Key, Record},
    store::{PAGE_MAX, Store},
    watch::{ChangeKind, Watch, Watchers},
};

/// Most bytes of records. Default: 256 MiB, so that a runaway writer ends before the machine does.
pub const DEFAULT_MEMORY_RECORD_BYTES: u64 = 256 << 20;
/// Most bytes of journal. Default: 64 MiB; the oldest entries go first.
pub const DEFAULT_MEMORY_JOURNAL_BYTES: u64 = 64 << 20;
/// Bytes counted for each record and entry beside its content.
const OVERHEAD: u64 = 128;
/// Commits between two walks that remove records past their time.
const REAP_EVERY: u64 = 1024;

/// How a [`MemoryStore`] is bounded.
#[derive(Debug, Clone)]
pub struct MemoryConfig {
    /// The node's name, for its journal.
    pub node: Name,
    /// Most bytes of records; intake beyond is [`StoreError::Full`].
    pub max_record_bytes: u64,
    /// Most bytes of journal; the oldest entries are removed beyond it.
    pub max_journal_bytes: u64,
}

impl MemoryConfig {
    /// The default bounds for this node.
    pub const fn new(node: Name) -> Self {
        Self {
            node,
            max_record_bytes: DEFAULT_MEMORY_RECORD_BYTES,
            max_journal_bytes: DEFAULT_MEMORY_JOURNAL_BYTES,
        }
    }
}

#[derive(Default)]
struct State {
    records: BTreeMap<Key, Record>,
    record_bytes: u64,
    journal: VecDeque<JournalRow>,
    journal_bytes: u64,
    head: Seq,
    version: u64,
}

/// A store in memory. Clones share it.
#[derive(Clone)]
pub struct MemoryStore {
    inner: Arc<Inner>,
}

struct Inner {
    config: MemoryConfig,
    clock: SharedClock,
    state: Mutex<State>,
    watchers: Watchers,
    head: latest::Sender<Seq>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new(config: MemoryConfig, clock: SharedClock) -> Self {
        let (head, _) = latest::channel(Seq(0));
        let inner = Inner {
            config,
            clock,
            state: Mutex::default(),
            watchers: Watchers::default(),
            head,
        };
        Self {
            inner: Arc::new(inner),
        }
    }
}

impl State {
    fn live(&self, key: &str, now: Timestamp) -> Option<&Record> {
        self.records.get(key).filter(|record| is_live(record, now))
    }

    fn check(&self, op: &Op, now: Timestamp) -> Result<(), StoreError> {
        let found = self
            .live(op.key(), now)
            .map_or(Found::Absent, |record| Found::Version(record.version));
        check_expect(op.key(), op.expect(), found)
    }

    fn apply(&mut self, op: Op, version: u64, now: Timestamp) {
        match op {
            Op::Put {
                key, value, ttl, ..
            } => {
                let record = Record {
                    key: key.clone(),
                    version,
                    expires: ttl.map(|ttl| now + ttl),
                    value,
                };
                self.record_bytes += weight(&record);
                if let Some(old) = self.records.insert(key, record) {
                    self.record_bytes -= weight(&old);
                }
            }
            Op::Delete { key, .. } => self.remove(&key),
            Op::Check { .. } => {}
        }
    }

    fn remove(&mut self, key: &Key) {
        if let Some(old) = self.records.remove(key) {
            self.record_bytes -= weight(&old);
        }
    }

    fn append(&mut self, entry: Entry, seqs: &[Seq], node: &Name, at: Timestamp) -> Seq {
        let seq = self.head.next();
        let cause = match entry.cause {
            Cause::None | Cause::Seq(Seq(0)) => None,
            Cause::Seq(seq) => Some(seq),
            Cause::Entry(entry) => seqs.get(entry.index()).copied(),
        };
        let Entry {
            kind,
            tenant,
            agent,
            trace,
            body,
            ..
        } = entry;
        self.journal_bytes += body.len() as u64 + OVERHEAD;
        let kind = kind.into_owned();
        self.journal.push_back(JournalRow {
            seq,
            at,
            node: node.clone(),
            kind,
            tenant,
            agent,
            trace,
            cause,
            body,
        });
        self.head = seq;
        seq
    }

    fn trim(&mut self, max_bytes: u64) {
        while self.journal_bytes > max_bytes && self.journal.len() > 1 {
            if let Some(row) = self.journal.pop_front() {
                self.journal_bytes -= row.body.len() as u64 + OVERHEAD;
            }
        }
    }

    fn reap(&mut self, now: Timestamp) -> Vec<Key> {
        let dead = |(key, record): (&Key, &Record)| (!is_live(record, now)).then(|| key.clone());
        let dead: Vec<_> = self.records.iter().filter_map(dead).collect();
        for key in &dead {
            self.remove(key);
        }
        dead
    }
}

fn is_live(record: &Record, now: Timestamp) -> bool {
    record.expires.is_none_or(|expires| expires > now)
}

fn weight(record: &Record) -> u64 {
    record.key.len() as u64 + record.value.len() as u64 + OVERHEAD
}

/// Whether what was found is what was expected.
pub(crate) fn check_expect(key: &Key, expected: Expect, found: Found) -> Result<(), StoreError> {
    let holds = match (expected, found) {
        (Expect::Any, _) | (Expect::Absent, Found::Absent) => true,
        (Expect::Version(wanted), Found::Version(version)) => wanted == version,
        _ => false,
    };
    if holds {
        Ok(())
    } else {
        Err(StoreError::Conflict {
            key: key.clone(),
            expected,
            found,
        })
    }
}

impl Inner {
    fn apply(&self, batch: Batch) -> Result<Committed, StoreError> {
        let now = self.clock.wall();
        let mut state = self.state.lock();
        for op in &batch.ops {
            state.check(op, now)?;
        }
        let limit = self.config.max_record_bytes;
        if batch.intake && state.record_bytes.saturating_add(batch.weight() as u64) > limit {
            return Err(StoreError::Full {
                what: FullWhat::StoreBytes,
                used: state.record_bytes,
                limit,
            });
        }
        state.version += 1;
        let version = state.version;
        for op in batch.ops {
            match &op {
                Op::Put { key, .. } => self.watchers.publish(key, ChangeKind::Put, version),
                Op::Delete { key, .. } => self.watchers.publish(key, ChangeKind::Delete, version),
                Op::Check { .. } => {}
            }
            state.apply(op, version, now);
        }
        let mut seqs = Vec::with_capacity(batch.entries.len());
        for entry in batch.entries {
            seqs.push(state.append(entry, &seqs, &self.config.node, now));
        }
        state.trim(self.config.max_journal_bytes);
        if version.is_multiple_of(REAP_EVERY) {
            for key in state.reap(now) {
                self.watchers.publish(&key, ChangeKind::Expired, version);
            }
        }
        let committed = Committed {
            version,
            seqs,
            at: now,
        };
        // Under the lock, so that hooks run in commit order.
        for hook in batch.hooks {
            hook(&committed);
        }
        Ok(committed)
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn commit(&self, batch: Batch) -> Result<Committed, StoreError> {
        batch.validate()?;
        let committed = self.inner.apply(batch)?;
        if let Some(seq) = committed.seqs.last() {
            self.inner
                .head
                .send_if_modified(|head| std::mem::replace(head, (*head).max(*seq)) < *seq);
        }
        Ok(committed)
    }

    async fn get_many(&self, keys: &[Key]) -> Result<Vec<Option<Record>>, StoreError> {
        let now = self.inner.clock.wall();
        let state = self.inner.state.lock();
        Ok(keys
            .iter()
            .map(|key| state.live(key, now).cloned())
            .collect())
    }

    async fn scan(
        &self,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<Record>, StoreError> {
        let now = self.inner.clock.wall();
        let state = self.inner.state.lock();
        let start = match after {
            Some(after) if after.as_str() >= prefix => Bound::Excluded(after.as_str()),
            _ => Bound::Included(prefix),
        };
        let page = state.records.range::<str, _>((start, Bound::Unbounded));
        let page = page
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(_, record)| record);
        Ok(page
            .filter(|record| is_live(record, now))
            .take(limit.min(PAGE_MAX))
            .cloned()
            .collect())
    }

    async fn read(
        &self,
        from: Seq,
        filter: &Filter,
        limit: usize,
    ) -> Result<JournalPage, StoreError> {
        let state = self.inner.state.lock();
        let first = state.journal.front().map_or(Seq::FIRST, |row| row.seq);
        let start = usize::try_from(from.0.saturating_sub(first.0)).unwrap_or(usize::MAX);
        let mut page = JournalPage {
            rows: Vec::new(),
            next: from.max(first),
            first,
            end: true,
        };
        for row in state.journal.iter().skip(start) {
            if page.rows.len() >= limit.min(PAGE_MAX) {
                page.end = false;
                break;
            }
            page.next = row.seq.next();
            if filter.matches(row) {
                page.rows.push(row.clone());
            }
        }
        Ok(page)
    }

    fn watch(&self, prefix: &str) -> Watch {
        self.inner.watchers.watch(prefix)
    }

    fn head(&self) -> latest::Receiver<Seq> {
        self.inner.head.subscribe()
    }

    fn node(&self) -> &Name {
        &self.inner.config.node
    }

    fn clock(&self) -> &SharedClock {
        &self.inner.clock
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.watchers.close();
    }
}
