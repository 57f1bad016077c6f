//! How a trace ends, and what it yields before.

use serde::{Deserialize, Serialize};
use volary_kernel::TraceId;

use crate::{error::FlowError, stream::StreamChunk};

/// The one end of a trace.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// All its work is done; its results were yielded before.
    Done,
    /// A node failed for good.
    Failed(Box<FlowError>),
    /// Somebody cancelled it.
    Cancelled,
    /// Its deadline passed.
    DeadlineExceeded,
    /// The flow gave it up.
    Dropped {
        /// Why.
        reason: DropReason,
    },
}

impl Outcome {
    /// Its name as it stands in events, logs and metrics.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed(_) => "failed",
            Self::Cancelled => "cancelled",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Dropped { .. } => "dropped",
        }
    }

    /// Whether it is [`Outcome::Done`].
    pub const fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }
}

/// Why a flow gave a trace up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DropReason {
    /// The flow stopped before it was done.
    Stopped,
    /// It streamed, its reader was gone, and more was unread than is kept.
    Abandoned,
}

/// What a trace yields.
#[derive(Debug, Clone)]
pub enum Item<T> {
    /// A value that reached an egress, or a final answer.
    Value(T),
    /// A piece of a stream.
    Chunk(StreamChunk),
}

/// What a cancel stopped.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CancelReport {
    /// Whether this call ended the trace; otherwise it was unknown, another tenant's, or had ended.
    pub cancelled: bool,
    /// Messages of it that waited in queues, joins and back-off.
    pub queued: usize,
    /// Invocations of it that ran.
    pub running: usize,
}

/// What a stop left.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StopReport {
    /// Traces that were not done in time and ended as dropped; for durable flows, those kept for the next start.
    pub unfinished: Vec<TraceId>,
    /// Nodes that still held their thread when the limit passed.
    pub blocked: Vec<String>,
}

impl StopReport {
    /// Whether all work was done.
    pub fn is_clean(&self) -> bool {
        self.unfinished.is_empty() && self.blocked.is_empty()
    }
}
