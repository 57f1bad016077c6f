//! How nodes and traces fail, and why an envelope was not accepted.

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use volary_kernel::{Name, TraceId};

/// What a node returns when it cannot do its work.
///
/// Made from any error with `?`; such an error may be tried again. [`NodeError::permanent`] says that it would fail again.
#[derive(Clone)]
pub struct NodeError {
    /// Why, for people.
    pub message: Cow<'static, str>,
    /// Whether another attempt could do better.
    pub retryable: bool,
    /// When the other side asked to be left alone until then (`Retry-After`): the next attempt waits at least this long.
    pub retry_after: Option<Duration>,
    /// What the node met.
    pub source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl NodeError {
    /// A failure that another attempt may mend.
    pub fn retryable(message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            message: message.into(),
            retryable: true,
            retry_after: None,
            source: None,
        }
    }

    /// A failure that no other attempt will mend.
    pub fn permanent(message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            retryable: false,
            ..Self::retryable(message)
        }
    }

    /// The next attempt waits at least this long.
    #[must_use]
    pub fn after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }
}

impl fmt::Debug for NodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeError")
            .field("message", &self.message)
            .field("retryable", &self.retryable)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for NodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Any error of the node's own, as a failure that may be tried again. (`NodeError` is itself no `std::error::Error`, so that
/// this does not collide.)
impl<E: std::error::Error + Send + Sync + 'static> From<E> for NodeError {
    fn from(error: E) -> Self {
        Self {
            message: error.to_string().into(),
            retryable: true,
            retry_after: None,
            source: Some(Arc::new(error)),
        }
    }
}

/// Why a trace failed, as one of a closed set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlowErrorCode {
    /// An attempt took longer than the node's timeout, and none was left.
    NodeTimeout,
    /// The node returned an error, and no attempt was left or it was permanent.
    NodeError,
    /// The node panicked.
    NodePanic,
    /// The breaker of the node is open.
    BreakerOpen,
    /// The trace went round declared cycles more often than allowed.
    HopBudgetExhausted,
    /// The trace had more messages or unread items at once than allowed.
    TooManyMessages,
    /// A router named a target that the node has no edge to.
    NoSuchTarget,
    /// A join could no longer get what it waits for.
    JoinIncomplete,
    /// The effect of a commit-once node is in doubt after a crash, and nothing can tell.
    InDoubt,
    /// What the trace needs could not be written to the store.
    Store,
}

impl FlowErrorCode {
    /// Its name as it stands in events, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NodeTimeout => "node_timeout",
            Self::NodeError => "node_error",
            Self::NodePanic => "node_panic",
            Self::BreakerOpen => "breaker_open",
            Self::HopBudgetExhausted => "hop_budget_exhausted",
            Self::TooManyMessages => "too_many_messages",
            Self::NoSuchTarget => "no_such_target",
            Self::JoinIncomplete => "join_incomplete",
            Self::InDoubt => "in_doubt",
            Self::Store => "store",
        }
    }
}

/// The failure that ended a trace. Cheap to clone.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FlowError {
    /// The trace.
    pub trace_id: TraceId,
    /// The node where it failed.
    pub node: Name,
    /// What happened.
    pub code: FlowErrorCode,
    /// Why, for people.
    pub message: String,
    /// Attempts made, this one included; 1 is the first.
    pub attempts: u32,
    /// How long the last attempt took. Serialised in seconds.
    #[serde(
        rename = "latency_seconds",
        with = "seconds",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub latency: Option<Duration>,
    /// The timeout that passed, for [`FlowErrorCode::NodeTimeout`]. Serialised in seconds.
    #[serde(
        rename = "timeout_seconds",
        with = "seconds",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub timeout: Option<Duration>,
    /// What the node returned; not kept over a restart.
    #[serde(skip)]
    pub source: Option<NodeError>,
}

/// Durations as numbers of seconds; to the nanosecond for a hundred days.
mod seconds {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(
        duration: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => serializer.serialize_f64(duration.as_secs_f64()),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        let seconds = Option::<f64>::deserialize(deserializer)?;
        let duration = seconds.map(Duration::try_from_secs_f64).transpose();
        duration.map_err(de::Error::custom)
    }
}

impl FlowError {
    /// As a JSON object, as it is serialised too: `trace_id`, `node`, `code`, `message`, `attempts`, and where they are
    /// known `latency_seconds` and `timeout_seconds`. What the node returned is not in it.
    pub fn to_payload(&self) -> serde_json::Map<String, serde_json::Value> {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::Object(payload)) => payload,
            _ => serde_json::Map::new(),
        }
    }
}

impl fmt::Display for FlowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "node {} failed after {} attempt(s): {}: {}",
            self.node,
            self.attempts,
            self.code.as_str(),
            self.message
        )
    }
}

/// Its source is the node's own error, if it had one.
impl std::error::Error for FlowError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        let source = self.source.as_ref()?.source.as_ref()?;
        Some(&**source)
    }
}

/// An envelope was not accepted; nothing of it happened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EmitError {
    /// The flow is stopping or stopped.
    #[error("the flow is stopped")]
    Stopped,
    /// The trace id belongs to a trace that lives, or whose outcome is still kept.
    #[error("trace {0} is in use: give each request an id of its own")]
    TraceInUse(TraceId),
    /// Only of `emit_nowait`: the tenant's queue at the ingress is full.
    #[error("the queue of this tenant is full")]
    Full,
    /// The flow was called by a node of a flow that was called, and so on: more often than its limits allow.
    #[error("flows call one another more than {0} deep")]
    TooDeep(u32),
    /// The flow was called, directly or through others, by a node of its own, and no deadline bounds that.
    #[error(
        "the flow calls itself and has no deadline: it could wait for ever for a slot that it holds"
    )]
    CallsItself,
    /// The deadline had passed before there was room.
    #[error("the deadline passed before there was room")]
    DeadlineExceeded,
    /// A durable flow could not write the accepted envelope.
    #[error("the envelope could not be stored: {0}")]
    Store(String),
}
