//! Journal entries: what is appended, what is read back, and how to choose among them.

use std::{borrow::Cow, fmt};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use volary_kernel::{
    clock::Timestamp,
    id::{Name, Tenant, TraceId},
};

use crate::error::StoreError;

/// The place of an entry in its node's journal: contiguous from 1. `Seq(0)` is "before the first".
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl Seq {
    /// The first entry a journal ever has.
    pub const FIRST: Self = Self(1);

    /// The entry after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An entry of a batch that is not committed yet; becomes a [`Seq`] in [`crate::Committed::seqs`] at this index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryRef(pub(crate) usize);

impl EntryRef {
    /// Its place among the entries of its batch.
    pub const fn index(self) -> usize {
        self.0
    }
}

/// What brought an entry about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cause {
    /// Nothing in this journal.
    #[default]
    None,
    /// An entry that is there already; `Seq(0)` is none.
    Seq(Seq),
    /// An earlier entry of the same batch.
    Entry(EntryRef),
}

impl From<Seq> for Cause {
    fn from(seq: Seq) -> Self {
        Self::Seq(seq)
    }
}

impl From<Option<Seq>> for Cause {
    fn from(seq: Option<Seq>) -> Self {
        seq.map_or(Self::None, Self::Seq)
    }
}

impl From<EntryRef> for Cause {
    fn from(entry: EntryRef) -> Self {
        Self::Entry(entry)
    }
}

/// Longest kind, in bytes.
pub const KIND_MAX: usize = 64;

/// An entry to append. Sequence number, time and node are given by the store.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What happened: `domain.verb`, lower case, at most [`KIND_MAX`] bytes.
    pub kind: Cow<'static, str>,
    /// Whose it is.
    pub tenant: Tenant,
    /// The agent it is about.
    pub agent: Option<Name>,
    /// The request it belongs to.
    pub trace: Option<TraceId>,
    /// What brought it about.
    pub cause: Cause,
    /// A JSON document with a `"v"` (its version).
    pub body: Bytes,
}

impl Entry {
    /// An entry of `kind` with a body that is JSON already.
    pub fn new(kind: impl Into<Cow<'static, str>>, tenant: Tenant, body: impl Into<Bytes>) -> Self {
        let (kind, body) = (kind.into(), body.into());
        Self {
            kind,
            tenant,
            agent: None,
            trace: None,
            cause: Cause::None,
            body,
        }
    }

    /// An entry of `kind` whose body is `body` as JSON.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] when `body` cannot be JSON (a map with keys that are not text, say).
    pub fn json<T: Serialize + ?Sized>(
        kind: impl Into<Cow<'static, str>>,
        tenant: Tenant,
        body: &T,
    ) -> Result<Self, StoreError> {
        let kind = kind.into();
        let body = serde_json::to_vec(body).map_err(|error| {
            StoreError::invalid(format!(
                "body of journal entry `{kind}` is not JSON: {error}"
            ))
        })?;
        Ok(Self::new(kind, tenant, body))
    }

    /// Says which agent it is about.
    #[must_use]
    pub fn agent(mut self, agent: impl Into<Option<Name>>) -> Self {
        self.agent = agent.into();
        self
    }

    /// Says which request it belongs to.
    #[must_use]
    pub fn trace(mut self, trace: impl Into<Option<TraceId>>) -> Self {
        self.trace = trace.into();
        self
    }

    /// Says what brought it about.
    #[must_use]
    pub fn cause(mut self, cause: impl Into<Cause>) -> Self {
        self.cause = cause.into();
        self
    }
}

/// An entry as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalRow {
    /// Its place.
    pub seq: Seq,
    /// When it was committed (wall clock of the node).
    pub at: Timestamp,
    /// The node that wrote it.
    pub node: Name,
    /// What happened.
    pub kind: String,
    /// Whose it is.
    pub tenant: Tenant,
    /// The agent it is about.
    pub agent: Option<Name>,
    /// The request it belongs to.
    pub trace: Option<TraceId>,
    /// The entry that brought it about.
    pub cause: Option<Seq>,
    /// The JSON document that was written, byte for byte.
    pub body: Bytes,
}

/// Which entries to read. Empty means all; what is set must hold together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Any of these kinds; one that ends in `.` means all kinds that begin so.
    pub kinds: Vec<String>,
    /// About this agent.
    pub agent: Option<Name>,
    /// Of this request.
    pub trace: Option<TraceId>,
    /// Of this tenant.
    pub tenant: Option<Tenant>,
    /// Committed at or after.
    pub since: Option<Timestamp>,
    /// Committed before.
    pub until: Option<Timestamp>,
}

impl Filter {
    /// Every entry.
    pub fn all() -> Self {
        Self::default()
    }

    /// Entries of one kind (or, with a `.` at the end, of all kinds that begin so).
    pub fn kind(kind: impl Into<String>) -> Self {
        Self {
            kinds: vec![kind.into()],
            ..Self::default()
        }
    }

    /// Entries of one request.
    pub fn trace(trace: TraceId) -> Self {
        Self {
            trace: Some(trace),
            ..Self::default()
        }
    }

    /// Whether `row` is one of those meant.
    pub fn matches(&self, row: &JournalRow) -> bool {
        let kind_fits = |wanted: &String| {
            if wanted.ends_with('.') {
                row.kind.starts_with(wanted.as_str())
            } else {
                row.kind == *wanted
            }
        };
        (self.kinds.is_empty() || self.kinds.iter().any(kind_fits))
            && (self.agent.is_none() || self.agent == row.agent)
            && (self.trace.is_none() || self.trace == row.trace)
            && self
                .tenant
                .as_ref()
                .is_none_or(|tenant| *tenant == row.tenant)
            && self.since.is_none_or(|since| row.at >= since)
            && self.until.is_none_or(|until| row.at < until)
    }
}

/// Some entries, and where to go on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JournalPage {
    /// The entries, in order.
    pub rows: Vec<JournalRow>,
    /// Where the next page begins: past everything that was looked at, matching or not.
    pub next: Seq,
    /// The first entry retention has left. A reader that asked for an earlier one has missed some.
    pub first: Seq,
    /// Whether the page reaches the end of what was committed when it was read.
    pub end: bool,
}
