//! A batch: puts, deletes, checks and journal entries that are committed together or not at all.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::Bytes;

use crate::{
    entry::{Entry, EntryRef, Seq},
    error::StoreError,
    key::Key,
};

/// What a record must be like for a batch to apply. A record whose time to live is over counts as absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Anything.
    Any,
    /// No record of this key.
    Absent,
    /// A record of exactly this version.
    Version(u64),
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("in any state"),
            Self::Absent => f.write_str("absent"),
            Self::Version(version) => write!(f, "at version {version}"),
        }
    }
}

/// One change of a record.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    Put {
        key: Key,
        value: Bytes,
        expect: Expect,
        ttl: Option<Duration>,
    },
    Delete {
        key: Key,
        expect: Expect,
    },
    Check {
        key: Key,
        expect: Expect,
    },
}

impl Op {
    pub(crate) const fn key(&self) -> &Key {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } | Self::Check { key, .. } => key,
        }
    }

    pub(crate) const fn expect(&self) -> Expect {
        match self {
            Self::Put { expect, .. } | Self::Delete { expect, .. } | Self::Check { expect, .. } => {
                *expect
            }
        }
    }

    fn weight(&self) -> usize {
        let value = if let Self::Put { value, .. } = self {
            value.len()
        } else {
            0
        };
        self.key().len() + value + OVERHEAD
    }
}

/// Called once, right after the batch was committed and before the committer is told.
pub(crate) type Hook = Box<dyn FnOnce(&Committed) + Send>;

/// Bytes counted for each op and entry beside its content.
const OVERHEAD: usize = 64;
/// Largest value of a record and largest body of an entry, in bytes.
pub const VALUE_MAX: usize = 64 << 20;
/// Largest batch, in bytes: it is held in memory until it is durable.
pub const BATCH_BYTES_MAX: usize = 128 << 20;

/// How far a batch was: see [`Batch::savepoint`].
#[derive(Debug, Clone, Copy)]
pub struct Savepoint {
    ops: usize,
    entries: usize,
    hooks: usize,
    intake: bool,
}

/// Changes that are committed together or not at all.
///
/// All expectations are checked against the state before the batch; then the changes are applied in the order they
/// were added, so of two puts to one key the later stays. Parts of different domains may be added to one batch.
/// A batch that is dropped without being committed leaves no trace; what was reserved for it is given back.
#[derive(Default)]
pub struct Batch {
    pub(crate) ops: Vec<Op>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) hooks: Vec<Hook>,
    pub(crate) intake: bool,
    token: Option<u64>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Marks the batch as intake of new work: it is refused with [`StoreError::Full`] when space runs out, so that
    /// acks and deletes still have room.
    pub const fn intake(&mut self) -> &mut Self {
        self.intake = true;
        self
    }

    /// Whether the batch takes in new work.
    pub const fn is_intake(&self) -> bool {
        self.intake
    }

    /// Writes a record.
    pub fn put(&mut self, key: Key, value: impl Into<Bytes>, expect: Expect) -> &mut Self {
        self.ops.push(Op::Put {
            key,
            value: value.into(),
            expect,
            ttl: None,
        });
        self
    }

    /// Writes a record that disappears after `ttl` (by the wall clock, counted from the call of `commit`).
    pub fn put_ttl(
        &mut self,
        key: Key,
        value: impl Into<Bytes>,
        expect: Expect,
        ttl: Duration,
    ) -> &mut Self {
        self.ops.push(Op::Put {
            key,
            value: value.into(),
            expect,
            ttl: Some(ttl),
        });
        self
    }

    /// Removes a record. One that is not there is no error with [`Expect::Any`].
    pub fn delete(&mut self, key: Key, expect: Expect) -> &mut Self {
        self.ops.push(Op::Delete { key, expect });
        self
    }

    /// Lets the batch apply only if a record is as expected, without changing it.
    pub fn check(&mut self, key: Key, expect: Expect) -> &mut Self {
        self.ops.push(Op::Check { key, expect });
        self
    }

    /// Appends to the journal.
    pub fn append(&mut self, entry: Entry) -> EntryRef {
        self.entries.push(entry);
        EntryRef(self.entries.len() - 1)
    }

    /// Runs `hook` right after the commit is durable, in commit order, before the committer is told. It runs on the
    /// store's own thread: it must be short and must not wait. If the batch is not committed it is dropped unrun.
    pub fn on_commit(&mut self, hook: impl FnOnce(&Committed) + Send + 'static) {
        self.hooks.push(Box::new(hook));
    }

    /// Runs `end` once: with the commit's result, under the rules of [`Batch::on_commit`], or with `None` when the batch
    /// is dropped, refused or fails.
    pub(crate) fn on_end(&mut self, end: impl FnOnce(Option<&Committed>) + Send + 'static) {
        let mut guard = OnEnd(Some(end));
        self.hooks.push(Box::new(move |committed| {
            if let Some(end) = guard.0.take() {
                end(Some(committed));
            }
        }));
    }

    /// Marks how far the batch is, for [`Batch::roll_back`].
    pub fn savepoint(&self) -> Savepoint {
        Savepoint {
            ops: self.ops.len(),
            entries: self.entries.len(),
            hooks: self.hooks.len(),
            intake: self.intake,
        }
    }

    /// Takes back everything that was added since `to`; what was reserved for it is given back. References to entries
    /// that were appended since then mean nothing any more.
    pub fn roll_back(&mut self, to: Savepoint) {
        self.ops.truncate(to.ops);
        self.entries.truncate(to.entries);
        self.intake = to.intake;
        // Dropped unrun, as if the batch had not been committed.
        self.hooks.truncate(to.hooks);
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty() && self.entries.is_empty() && self.hooks.is_empty()
    }

    /// Bytes it holds, with a fixed sum for each part.
    pub fn weight(&self) -> usize {
        let entry = |entry: &Entry| entry.body.len() + entry.kind.len() + OVERHEAD;
        self.ops.iter().map(Op::weight).sum::<usize>()
            + self.entries.iter().map(entry).sum::<usize>()
    }

    /// A number that no other batch of this process has.
    pub(crate) fn token(&mut self) -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        *self
            .token
            .get_or_insert_with(|| NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Checks sizes, kinds and causes; says what it weighs.
    pub(crate) fn validate(&self) -> Result<usize, StoreError> {
        for op in &self.ops {
            if let Op::Put { value, .. } = op {
                limit("record value", value.len(), VALUE_MAX)?;
            }
        }
        for (index, entry) in self.entries.iter().enumerate() {
            limit("journal body", entry.body.len(), VALUE_MAX)?;
            check_kind(&entry.kind)?;
            if let crate::entry::Cause::Entry(EntryRef(cause)) = entry.cause
                && cause >= index
            {
                return Err(StoreError::invalid(format!(
                    "journal entry `{}` names entry {cause} of its batch as cause, which is not before it",
                    entry.kind
                )));
            }
        }
        let weight = self.weight();
        limit("batch", weight, BATCH_BYTES_MAX)?;
        Ok(weight)
    }
}

struct OnEnd<F: FnOnce(Option<&Committed>)>(Option<F>);

impl<F: FnOnce(Option<&Committed>)> Drop for OnEnd<F> {
    fn drop(&mut self) {
        if let Some(end) = self.0.take() {
            end(None);
        }
    }
}

fn limit(what: &'static str, size: usize, limit: usize) -> Result<(), StoreError> {
    if size > limit {
        Err(StoreError::TooLarge { what, size, limit })
    } else {
        Ok(())
    }
}

fn check_kind(kind: &str) -> Result<(), StoreError> {
    let good = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-')
    };
    if kind.is_empty() || kind.len() > crate::entry::KIND_MAX || !kind.bytes().all(good) {
        return Err(StoreError::invalid(format!(
            "kind of a journal entry must be 1 to {} of a-z, 0-9, '.', '_' and '-', found `{kind}`",
            crate::entry::KIND_MAX
        )));
    }
    Ok(())
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("ops", &self.ops)
            .field("entries", &self.entries)
            .field("hooks", &self.hooks.len())
            .field("intake", &self.intake)
            .finish_non_exhaustive()
    }
}

/// What a commit brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The version of every record that the batch wrote; grows with every commit, so it is a fencing token too.
    pub version: u64,
    /// The places of the entries, in the order they were appended.
    pub seqs: Vec<Seq>,
    /// The time that the entries carry.
    pub at: volary_kernel::clock::Timestamp,
}

impl Committed {
    /// The place of an entry of the batch.
    pub fn seq(&self, entry: EntryRef) -> Option<Seq> {
        self.seqs.get(entry.0).copied()
    }
}
