//! What a replay would feed again: `GET /v1/replay`. Planned only: nothing is delivered.

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
    /// Only accepted before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub to: Option<Timestamp>,
    /// Only journal entries at or after this one: where a plan that was too long goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_seq: Option<u64>,
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
}

/// An entry that should hold a message and cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReplayUnreadable {
    /// The journal entry.
    pub seq: u64,
    /// What is wrong with it.
    pub problem: String,
}
