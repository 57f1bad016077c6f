//! Items whose attempts are used up, over all queues: `GET /v1/parked` and what can be done with one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use volary_kernel::{Name, Tenant, Timestamp, TraceId};

use super::payload::present;

/// Query of `GET /v1/parked`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ParkedQuery {
    /// Only this agent's; all when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub agent: Option<Name>,
    /// Most items to list; 1,000 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// The answer to a [`ParkedQuery`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ParkedList {
    /// The items, oldest first.
    pub items: Vec<ParkedItem>,
    /// Whether there are more than were listed.
    pub more: bool,
}

/// One parked item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ParkedItem {
    /// Names the item in `GET`, `DELETE` and `POST …/retry`.
    pub id: String,
    /// Queue it stands in.
    pub queue: String,
    /// Agent whose queue that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub agent: Option<Name>,
    /// Tenant it belongs to.
    #[schemars(with = "String")]
    pub tenant: Tenant,
    /// Trace it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub trace: Option<TraceId>,
    /// Attempts made.
    pub attempts: u32,
    /// Why the last one failed.
    pub reason: String,
    /// When it was put into the queue.
    #[schemars(with = "String")]
    pub enqueued_at: Timestamp,
    /// When it was parked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub parked_at: Option<Timestamp>,
    /// Bytes of its payload.
    pub bytes: u64,
}

/// `GET /v1/parked/{id}`: one item with its payload.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ParkedView {
    /// The item.
    pub item: ParkedItem,
    /// Payload as JSON, or else see `payload_base64`.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<serde_json::Value>")]
    pub payload: Option<Box<RawValue>>,
    /// Payload as base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_base64: Option<String>,
}

/// The answer to `POST /v1/parked/{id}/retry` and to `DELETE /v1/parked/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RetryReply {
    /// The item.
    pub id: String,
    /// Queue it stood in.
    pub queue: String,
}
