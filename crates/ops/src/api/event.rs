//! What happened: an element of `GET /v1/events` and of the stream `GET /events`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use volary_kernel::{Name, Tenant, Timestamp, TraceId};

use super::payload::present;

/// Query of `GET /events` and `GET /v1/events`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventsQuery {
    /// First sequence number wanted. Left out, the snapshot begins with the oldest entry kept and the stream with
    /// what comes next. `Last-Event-ID` of a reconnecting stream goes before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u64>,
    /// Only these kinds, separated by commas: a kind (`page.changed`) or a beginning with a star (`page.*`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Only this agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub agent: Option<Name>,
    /// Only this trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub trace: Option<TraceId>,
    /// Only this tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub tenant: Option<Tenant>,
    /// Snapshot only: at most this many entries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Whether to show bodies; true when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<bool>,
}

/// One entry of the journal, or (without `seq`) a signal that is only shown live.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Sequence number in the journal; null for a signal, which is in no journal.
    pub seq: Option<u64>,
    /// When it happened.
    #[schemars(with = "String")]
    pub at: Timestamp,
    /// Node that it happened on.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// What kind of event it is, like `page.changed`.
    pub kind: String,
    /// Tenant it belongs to.
    #[schemars(with = "String")]
    pub tenant: Tenant,
    /// Agent it is about.
    #[schemars(with = "Option<String>")]
    pub agent: Option<Name>,
    /// Trace it belongs to.
    #[schemars(with = "Option<String>")]
    pub trace: Option<TraceId>,
    /// Sequence number of the entry that led to it.
    pub cause: Option<u64>,
    /// What it tells, by kind, with a version `v`.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<serde_json::Value>")]
    pub body: Option<Box<RawValue>>,
}
