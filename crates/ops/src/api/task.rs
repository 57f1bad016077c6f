//! Tasks: `/v1/tasks`, on the operator API and on the link API.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use volary_kernel::{Name, Tenant, Timestamp, TraceId};

use super::DurationText;

/// Body of `POST /v1/tasks`: work to be done once.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SubmitRequest {
    /// A UUID. The same task again under it is the same task; another one is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Only for members of this pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub pool: Option<Name>,
    /// Only for agents that get this topic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// Only for agents that can do all of this.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    /// What is to be reached.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub objective: Value,
    /// What there is to work with.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub inputs: Value,
    /// What holds meanwhile; for the worker.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub constraints: Value,
    /// How urgent, 0 to 255; 128 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// When nobody wants it any more: a time (RFC 3339) or a duration from now (`10m`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<String>,
    /// How often it is tried again; 4 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<u32>,
    /// How long a claim holds without renewal; 30 s when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim_ttl: Option<DurationText>,
    /// Trace that it belongs to; a new one when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub trace: Option<TraceId>,
}

/// The answer to a [`SubmitRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SubmitReply {
    /// Id of the task.
    pub id: String,
    /// Whether it was submitted before.
    pub repeated: bool,
    /// Where it stands.
    pub state: String,
}

/// A task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskView {
    /// Its id.
    pub id: String,
    /// `pending`, `claimed`, `completed`, `failed`, `cancelled`, `expired` or `parked`.
    pub state: String,
    /// Whose it is.
    #[schemars(with = "String")]
    pub tenant: Tenant,
    /// Only for members of this pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub pool: Option<Name>,
    /// Only for agents that get this topic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// Only for agents that can do all of this.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    /// What is to be reached.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub objective: Value,
    /// What there is to work with.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub inputs: Value,
    /// What holds meanwhile.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub constraints: Value,
    /// How urgent.
    pub priority: u8,
    /// When nobody wants it any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub deadline: Option<Timestamp>,
    /// How often it is tried again.
    pub max_retries: u32,
    /// How long a claim holds without renewal.
    pub claim_ttl: DurationText,
    /// Who submitted it.
    #[schemars(with = "String")]
    pub submitted_by: Name,
    /// When.
    #[schemars(with = "String")]
    pub submitted_at: Timestamp,
    /// Trace that it belongs to.
    #[schemars(with = "String")]
    pub trace: TraceId,
    /// Who works on it, or ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assigned_to: Option<String>,
    /// Attempts made.
    pub attempts: u32,
    /// What it came to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Why it failed, was cancelled or parked, or why its last attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub ended_at: Option<Timestamp>,
}

/// Query of `GET /v1/tasks`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TasksQuery {
    /// Only in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Only of this pool, or of none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub pool: Option<Name>,
    /// Only about this topic, or about none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// Most tasks; 100 when left out, at most 1,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// The answer to a [`TasksQuery`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskList {
    /// The tasks: waiting, claimed, parked, then the ones that ended last.
    pub tasks: Vec<TaskView>,
}

/// Query of `GET /v1/tasks/{id}/wait`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskWaitQuery {
    /// How long to wait, at most [`super::MAX_WAIT`]; no wait when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<DurationText>,
}

/// The answer to a [`TaskWaitQuery`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskWaitReply {
    /// Whether the task ended or is parked; else time was up.
    pub done: bool,
    /// The task.
    pub task: TaskView,
}

/// Body of `POST /v1/tasks/{id}/cancel`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CancelRequest {
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The answer to a [`CancelRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CancelReply {
    /// Id of the task.
    pub id: String,
    /// Whether this ended it; `false` if it had ended before.
    pub cancelled: bool,
}

/// Body of `POST /v1/tasks/claim`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClaimRequest {
    /// This task; else the next one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Only of these pools; all that the agent is in when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<String>>")]
    pub pools: Option<Vec<Name>>,
    /// What the agent can do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    /// Most tasks; 1 when left out, at most 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    /// Wait this long for the first, at most [`super::MAX_WAIT`]; no wait when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<DurationText>,
}

/// The answer to a [`ClaimRequest`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ClaimReply {
    /// What was claimed; empty if nothing came within the wait.
    pub claims: Vec<TaskClaimView>,
}

/// A claimed task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskClaimView {
    /// Names this claim in renew, report and fail.
    pub claim: String,
    /// The same in every attempt: what a side effect deduplicates by.
    pub idempotency_key: String,
    /// The task.
    pub task: TaskView,
}

/// Body of `POST /v1/tasks/renew`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    /// The claim.
    pub claim: String,
}

/// The answer to a [`RenewRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RenewReply {
    /// How long the claim holds from now.
    pub holds_for: DurationText,
}

/// Body of `POST /v1/tasks/report`: the task was done.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReportRequest {
    /// The claim.
    pub claim: String,
    /// What it came to.
    #[serde(default)]
    pub result: Value,
}

/// The answer to a [`ReportRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReportReply {
    /// Whether the same was reported before.
    pub repeated: bool,
}

/// Body of `POST /v1/tasks/fail`: the attempt failed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FailRequest {
    /// The claim.
    pub claim: String,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it is tried again; by the back-off when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<DurationText>,
    /// Trying again is no use: the task has failed.
    #[serde(default)]
    pub give_up: bool,
}

/// The answer to a [`FailRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FailReply {
    /// Where the task stands now: `pending`, `parked` or `failed`.
    pub state: String,
}
