//! Replay: `GET /v1/replay` plans, `POST /v1/replay` feeds one agent's inbox, `POST /v1/replay/verify` compares.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use volary_kernel::{Name, Tenant, Timestamp, TraceId, Uid};

/// Query of `GET /v1/replay`. What is left out does not restrict.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplayQuery {
    /// Only messages that went this way, seen from the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<ReplayDirection>,
    /// Only messages to or from this agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub agent: Option<Name>,
    /// Only this tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub tenant: Option<Tenant>,
    /// Only this trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub trace: Option<TraceId>,
    /// Only accepted at or after this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub from: Option<Timestamp>,
    /// Only accepted at or before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub to: Option<Timestamp>,
    /// Only journal entries at or after this one: where a plan that was too long goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_seq: Option<u64>,
    /// Only journal entries at or before this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_seq: Option<u64>,
    /// Plan at most this many messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    /// Read this imported archive instead of the node's own journal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<String>,
}

/// Body of `POST /v1/replay`: puts recorded messages into an agent's inbox, marked as replayed, under their own ids and
/// idempotency keys. Of an entry that several agents received, one message is fed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplayRequest {
    /// Which messages. `max` bounds one call: 256 if it is not set, and at most that.
    pub query: ReplayQuery,
    /// The agent that gets them.
    #[schemars(with = "String")]
    pub into: Name,
}

/// What was fed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReplayReply {
    /// Messages that are in the inbox now.
    pub fed: u64,
    /// The entry of the last one.
    pub last: Option<u64>,
    /// Where to go on (`from_seq`) if there is more, or after a stop.
    pub next: Option<u64>,
    /// Why it stopped before its end, if it did: mend that and go on at `next`.
    pub stopped: Option<String>,
    /// Whether the same call can work later by itself: the inbox is full.
    #[serde(default)]
    pub retry: bool,
}

/// Body of `POST /v1/replay/verify`: runs a handler agent on recorded deliveries again, carries nothing out, and compares
/// what it asks for with what it asked for then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyRequest {
    /// The agent.
    #[schemars(with = "String")]
    pub agent: Name,
    /// Which deliveries: tenant, trace, and time and place of their acknowledgement. `max` bounds one call: 16 if it is not
    /// set, and at most that.
    #[serde(default)]
    pub query: ReplayQuery,
}

/// What a verification found so far.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VerifyReply {
    /// Deliveries that were fed and compared.
    pub checked: u64,
    /// Actions that were the same.
    pub same: u64,
    /// Deliveries that could not be compared.
    pub skipped: Vec<ReplayUnreadable>,
    /// The first difference.
    pub divergence: Option<ReplayDivergence>,
    /// Where to go on (`from_seq`) if there is more.
    pub next: Option<u64>,
}

/// Where an agent did something else than it did then.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReplayDivergence {
    /// The entry of the acknowledgement.
    pub seq: u64,
    /// The delivery.
    #[schemars(with = "Option<String>")]
    pub delivery: Option<Uid>,
    /// Its trace.
    #[schemars(with = "String")]
    pub trace: TraceId,
    /// Which action of the delivery, from 1.
    pub action: u64,
    /// What was done then; nothing if there was no such action.
    pub expected: Option<serde_json::Value>,
    /// What is done now.
    pub actual: Option<serde_json::Value>,
    /// What is different about it.
    pub differences: Vec<ReplayDifference>,
    /// How the run failed, if it did.
    pub failure: Option<String>,
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReplayDifference {
    /// The field, or the place inside the payload.
    pub at: String,
    /// What it was.
    pub expected: String,
    /// What it is.
    pub actual: String,
}

/// Which way a message went, seen from the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReplayDirection {
    /// To the agent.
    Inbound,
    /// From the agent.
    Outbound,
}

/// The messages that a replay would feed, in the order in which they were accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReplayPlan {
    /// The messages.
    pub messages: Vec<ReplayMessage>,
    /// Entries that should hold a message and cannot be read.
    pub unreadable: Vec<ReplayUnreadable>,
    /// Where to go on (`from_seq`) if there is more.
    pub next: Option<u64>,
    /// The first entry that retention has left, if the query reaches further back.
    pub missing_before: Option<u64>,
}

/// One message of a plan, without what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReplayMessage {
    /// Its journal entry.
    pub seq: u64,
    /// When it was accepted.
    #[schemars(with = "String")]
    pub at: Timestamp,
    /// Which way it went.
    pub direction: ReplayDirection,
    /// The agent on this node's side.
    #[schemars(with = "String")]
    pub agent: Name,
    /// Id of the message.
    #[schemars(with = "String")]
    pub id: Uid,
    /// Who sent it.
    #[schemars(with = "String")]
    pub sender: Name,
    /// Topics it was sent to.
    pub topics: Vec<String>,
    /// Tenant it belongs to.
    #[schemars(with = "String")]
    pub tenant: Tenant,
    /// Trace it belongs to.
    #[schemars(with = "String")]
    pub trace: TraceId,
    /// Bytes of its payload.
    pub bytes: u64,
    /// The key under which it was delivered.
    #[serde(default)]
    pub idempotency_key: String,
    /// Whether it carries a seal that proves it alone.
    #[serde(default)]
    pub sealed: bool,
}

/// An entry that should hold a message and cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReplayUnreadable {
    /// The journal entry.
    pub seq: u64,
    /// What is wrong with it.
    pub problem: String,
}
