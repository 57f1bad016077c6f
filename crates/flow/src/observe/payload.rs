//! Events as JSON, with keys that stay: the one place that spells them, for what is told and for what is kept. Pure.

use std::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};
use volary_kernel::{Timestamp, TraceId};

use super::event::{FlowEvent, FlowEventKind};
use crate::{
    error::FlowError,
    outcome::{DropReason, Outcome},
};

/// All that an event can say. Keys are additive: one that is there keeps its name and meaning. What does not apply is
/// left out. Times are in seconds.
#[derive(Serialize, Default)]
struct Payload<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    ts: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flow: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<TraceId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delay_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blocked_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<DropReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_node: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queued: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    running: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    have: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    want: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_span: Option<String>,
}

impl<'a> Payload<'a> {
    fn of(event: &'a FlowEvent) -> Self {
        Self {
            ts: Some(event.at),
            event: Some(event.kind.as_str()),
            flow: Some(event.flow.as_str()),
            node: event.node.as_ref().map(AsRef::as_ref),
            trace: Some(event.trace_id),
            tenant: Some(event.tenant.as_str()),
            attempt: (event.attempt > 0).then_some(event.attempt),
            ..Self::of_kind(&event.kind)
        }
    }

    /// Only what belongs to the kind.
    fn of_kind(kind: &'a FlowEventKind) -> Self {
        let mut payload = Self {
            latency_seconds: kind.latency().map(|latency| latency.as_secs_f64()),
            ..Self::default()
        };
        payload.add(kind);
        payload
    }

    fn into_map(self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(payload)) => payload,
            _ => Map::new(),
        }
    }

    fn add(&mut self, kind: &'a FlowEventKind) {
        let seconds = |duration: &Duration| Some(duration.as_secs_f64());
        match kind {
            FlowEventKind::TraceEnd { outcome, .. } => {
                self.outcome = Some(outcome.as_str());
                match outcome {
                    Outcome::Failed(error) => self.add_failure(error),
                    Outcome::Dropped { reason } => self.reason = Some(*reason),
                    _ => {}
                }
            }
            FlowEventKind::TraceParent { span, .. } => self.parent_span = Some(span.to_string()),
            FlowEventKind::NodeError { error, .. } => self.error = Some(error),
            FlowEventKind::NodeFailed { code, error } => {
                self.error_code = Some(code);
                self.error = Some(error);
            }
            FlowEventKind::NodeTimeout { timeout } => self.timeout_seconds = seconds(timeout),
            FlowEventKind::NodeRetry { delay } => self.delay_seconds = seconds(delay),
            FlowEventKind::NodeBlocked { since } => self.blocked_seconds = seconds(since),
            FlowEventKind::CancelStart { queued, running } => {
                self.queued = Some(*queued);
                self.running = Some(*running);
            }
            FlowEventKind::JoinPartial { have, want } => {
                self.have = Some(*have);
                self.want = Some(*want);
            }
            FlowEventKind::TraceStart
            | FlowEventKind::NodeStart
            | FlowEventKind::NodeSuccess { .. }
            | FlowEventKind::NodeCancelled
            | FlowEventKind::LateResult
            | FlowEventKind::DeadlineSkip
            | FlowEventKind::CancelDrop
            | FlowEventKind::CancelFinish
            | FlowEventKind::Paused
            | FlowEventKind::Resumed
            | FlowEventKind::BreakerOpened
            | FlowEventKind::BreakerClosed => {}
        }
    }

    fn add_failure(&mut self, error: &'a FlowError) {
        self.error_code = Some(error.code.as_str());
        self.error = Some(&error.message);
        self.error_node = Some(error.node.as_str());
        self.error_attempts = Some(error.attempts);
        self.timeout_seconds = error.timeout.map(|timeout| timeout.as_secs_f64());
    }
}

impl Serialize for FlowEvent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Payload::of(self).serialize(serializer)
    }
}

impl FlowEvent {
    /// As a flat JSON object, as it is serialised too. Always there: `ts`, `event`, `flow`, `trace`, `tenant`; where it
    /// applies: `node`, `attempt`, `latency_seconds`, `outcome`, `error`, `error_code`, `error_node`, and more.
    pub fn to_payload(&self) -> Map<String, Value> {
        Payload::of(self).into_map()
    }

    /// Only what is said of a failure (the keys that begin with `error`); `None` if it is about none.
    pub fn error_payload(&self) -> Option<Map<String, Value>> {
        let mut payload = self.to_payload();
        payload.retain(|key, _| key.starts_with("error"));
        (!payload.is_empty()).then_some(payload)
    }

    /// How long what it tells of took.
    pub fn latency(&self) -> Option<Duration> {
        self.kind.latency()
    }
}

impl FlowEventKind {
    /// What [`FlowEvent::to_payload`] says of the kind, without what it says of every event.
    pub(crate) fn to_payload(&self) -> Map<String, Value> {
        Payload::of_kind(self).into_map()
    }

    fn latency(&self) -> Option<Duration> {
        match self {
            Self::TraceEnd { latency, .. }
            | Self::NodeSuccess { latency }
            | Self::NodeError { latency, .. } => Some(*latency),
            Self::NodeTimeout { timeout } => Some(*timeout),
            _ => None,
        }
    }
}
