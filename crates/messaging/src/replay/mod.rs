//! Replay: recorded messages fed again, in the order in which they were accepted.
//!
//! ```text
//! ReplayLog, a node's journal, an archive ──▶ Recording ──▶ ReplayRunner ──plan──▶ what would be fed
//!                                                              │          ├─────▶ a callback
//!                                                              │          └─────▶ inboxes, marked as replayed
//!                                                              └──▶ verify: the same inputs to an agent, first divergence
//! ```
//!
//! What holds:
//! - The order is the record's own: by when the node accepted a message, never by what its sender claims; of two that
//!   were accepted at the same time, the one recorded first comes first. A wall clock that was set back does not change it.
//! - Bytes are as they were. A message that was sealed keeps its seal and can be verified alone.
//! - Recordings of any length are read in pages; memory is bounded by one page and one message.
//! - A callback that fails stops the replay, which tells where: [`Replay::after`] goes on there.
//! - What is put into an inbox keeps its id and idempotency key, is marked ([`crate::delivery::Replayed`], journal entry
//!   `message.replayed`), and has no deadline: the recorded one has passed. Of the same message replayed twice while the
//!   first waits, one is delivered; once handled, it is delivered again under the same key, so that effects which are
//!   deduplicated by key count once. What an agent sends in answer is a new message and is sent again.

mod archive;
mod imports;
mod inbox;
mod log;
mod pace;
mod plan;
mod recording;
mod runner;
pub mod verify;

use std::{fmt, str::FromStr};

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use volary_kernel::{
    clock::Timestamp,
    id::{Name, Tenant, TraceId},
};
use volary_store::{Seq, StoreError, journal::ExportError};

pub use self::{
    archive::{Exported, Signers, export},
    imports::{IMPORT_BYTES_MAX, IMPORTS_MAX, ImportError, Imported, Imports},
    log::ReplayLog,
    pace::{Pace, Speed, SpeedError},
    recording::{PageFn, RecordedPage, Recording},
    runner::{Progress, Replay, ReplayReport, ReplayRunner, ReplayStopped},
};
use crate::{
    delivery::message_key,
    frame::{OpenError, SealedMessage, Trust},
    inbox::InboxError,
    message::Message,
};

/// Most messages of one plan. A longer one ends `truncated`, and goes on at its `next`.
pub const PLAN_MAX: usize = 100_000;

/// Which way a message went, seen from the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// To the agent.
    Inbound,
    /// From the agent.
    Outbound,
}

/// What to replay. What is not set does not restrict.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplayQuery {
    /// Only messages that went this way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// Only messages of this agent: to it or from it, as `direction` says; both if that is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<Name>,
    /// Only of this tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Tenant>,
    /// Only of this request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceId>,
    /// Only accepted at or after this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Timestamp>,
    /// Only accepted at or before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Timestamp>,
    /// Only journal entries at or after this one: where a truncated plan goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_seq: Option<Seq>,
    /// Only journal entries at or before this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_seq: Option<Seq>,
}

/// A place in a replay: a journal entry, and which of the messages it stands for. Its text form is `41` or `41.2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The journal entry.
    pub seq: Seq,
    /// Which of its messages, from 0: the sender's side comes before the receivers'.
    pub nth: u32,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.nth {
            0 => self.seq.fmt(f),
            nth => write!(f, "{}.{nth}", self.seq),
        }
    }
}

/// A text is no [`Position`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a position is a sequence number like `41` or `41.2`, found `{0}`")]
pub struct PositionError(String);

impl FromStr for Position {
    type Err = PositionError;
    fn from_str(text: &str) -> Result<Self, PositionError> {
        let bad = || PositionError(text.chars().take(40).collect());
        let (seq, nth) = text.split_once('.').unwrap_or((text, "0"));
        Ok(Self {
            seq: Seq(seq.parse().map_err(|_| bad())?),
            nth: nth.parse().map_err(|_| bad())?,
        })
    }
}

impl Serialize for Position {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Position {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// One message of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedMessage {
    /// Its journal entry.
    pub seq: Seq,
    /// Which of the messages of that entry.
    pub nth: u32,
    /// When it was accepted.
    pub at: Timestamp,
    /// The node that recorded it.
    pub node: Name,
    /// Which way it went.
    pub direction: Direction,
    /// The agent on this node's side: the receiver of an inbound message, the sender of an outbound one.
    pub agent: Name,
    /// The message, with its bytes as they were.
    pub message: Message,
    /// The message with its seal ([`SealedMessage`]'s stored form), if it was recorded or exported with one.
    pub sealed: Option<Bytes>,
}

impl PlannedMessage {
    /// Its place in the replay.
    pub const fn position(&self) -> Position {
        Position {
            seq: self.seq,
            nth: self.nth,
        }
    }

    /// The idempotency key under which it was (or, for an outbound one, would be) delivered to its agent.
    pub fn idempotency_key(&self) -> String {
        message_key(&self.message, &self.agent)
    }

    /// Verifies the seal alone, without the recording, and gives what was sealed; `None` if there is no seal. It is this
    /// message unless a hook of the receiving node changed it, which the journal then tells.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_seal(&self, trust: Trust<'_>) -> Option<Result<Message, OpenError>> {
        let sealed = SealedMessage::decode(self.sealed.as_ref()?);
        Some(
            sealed
                .map_err(OpenError::from)
                .and_then(|sealed| sealed.open(trust)),
        )
    }
}

impl Serialize for PlannedMessage {
    /// Tells what it is and where it goes, not what is in it.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut out = serializer.serialize_struct("PlannedMessage", 13)?;
        out.serialize_field("seq", &self.seq)?;
        out.serialize_field("at", &self.at)?;
        out.serialize_field("direction", &self.direction)?;
        out.serialize_field("agent", &self.agent)?;
        out.serialize_field("id", &self.message.id())?;
        out.serialize_field("sender", self.message.sender().name())?;
        out.serialize_field("to", &self.message.recipient())?;
        out.serialize_field("topics", self.message.topics())?;
        out.serialize_field("tenant", self.message.tenant())?;
        out.serialize_field("trace", &self.message.trace())?;
        out.serialize_field("bytes", &self.message.body().len())?;
        out.serialize_field("idempotency_key", &self.idempotency_key())?;
        out.serialize_field("sealed", &self.sealed.is_some())?;
        out.end()
    }
}

/// An entry that should hold a message but does not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unreadable {
    /// The journal entry.
    pub seq: Seq,
    /// What is wrong with it.
    pub problem: String,
}

/// What a replay would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ReplayPlan {
    /// The messages, in the order in which they were accepted.
    pub messages: Vec<PlannedMessage>,
    /// Entries that could not be read; a live replay would stop at the first.
    pub unreadable: Vec<Unreadable>,
    /// Where to go on if there is more.
    pub next: Option<Seq>,
    /// The first entry that retention has left, if the query reaches further back.
    pub missing_before: Option<Seq>,
}

/// Why a replay, an export or an import ends.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The record could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The archive is not what was written, or could not be read or written.
    #[error(transparent)]
    Archive(#[from] ExportError),
    /// An entry should hold a message and does not.
    #[error("entry {seq} cannot be read: {problem}")]
    Unreadable {
        /// The journal entry.
        seq: Seq,
        /// What is wrong with it.
        problem: String,
    },
    /// An inbox did not take a message.
    #[error(transparent)]
    Inbox(#[from] InboxError),
    /// A message holds a declared secret.
    #[error("a message contains a declared secret; it is not delivered")]
    Secret,
    /// The callback failed.
    #[error("the callback failed: {0}")]
    Callback(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// An imported archive is not to be had.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// A thread that reads was lost.
    #[error("the reader ended: {0}")]
    Reader(String),
}
