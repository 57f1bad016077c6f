//! Flows that agents run: `POST /v1/flows` and `/report` on the link API, `GET /v1/flows` and `/{name}` for operators.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use volary_kernel::{Name, Tenant, Timestamp, TraceId};

/// Body of `POST /v1/flows`: every flow that this replica runs. What it registered before is forgotten.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterFlows {
    /// The flows; none takes all of them back.
    pub flows: Vec<FlowRegistration>,
}

/// A flow that an agent runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FlowRegistration {
    /// Its name.
    #[schemars(with = "String")]
    pub name: Name,
    /// Its nodes, edges, policies and types, as the flow describes itself.
    pub description: Value,
}

/// The answer to a [`RegisterFlows`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RegisterFlowsReply {
    /// Names this registration in reports. It ends with the replica's process, and with the next registration.
    pub run: String,
}

/// Body of `POST /v1/flows/report`: how the flows of a run do.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FlowReport {
    /// The run, as the registration named it.
    pub run: String,
    /// Series that changed since the last report, each with what it has come to since the run began: a report that is lost
    /// or comes twice changes nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub series: Vec<FlowSeries>,
    /// What happened that an operator wants to see, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<FlowSignal>,
    /// Events since the last report that were left out because there were too many.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub events_dropped: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
const fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// A metric of a flow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FlowSeries {
    /// Its name as in `/metrics`, without the prefix `volary_` and without `_total`: `flow_node_success`.
    pub name: String,
    /// Its labels: `flow`, mostly `node`, sometimes one more.
    pub labels: BTreeMap<String, String>,
    /// What it has come to.
    pub value: FlowValue,
}

/// What a series has come to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FlowValue {
    /// Of a counter: since the run began.
    Counter(u64),
    /// Of a gauge: now.
    Gauge(i64),
    /// Of a histogram: since the run began.
    Histogram {
        /// Values in each bucket, not in those below it; the one without an upper bound last.
        counts: Vec<u64>,
        /// Their sum.
        sum: f64,
    },
}

/// Something that happened in a flow, for the live feed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FlowSignal {
    /// When.
    #[schemars(with = "String")]
    pub at: Timestamp,
    /// What: `node_failed`, `trace_end`, …; the feed shows it as `flow.node_failed`.
    pub kind: String,
    /// The flow.
    #[schemars(with = "String")]
    pub flow: Name,
    /// The node, where it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub node: Option<Name>,
    /// The trace of the message that the flow worked on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub trace: Option<TraceId>,
    /// Which attempt of the node, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// More, by kind: `reason`, `code`, `outcome`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, String>,
}

/// The answer to a [`FlowReport`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowReportReply {
    /// Events that were shown.
    pub shown: usize,
    /// Events that were not shown because this replica tells too many. They are counted.
    pub dropped: usize,
}

/// Query of `GET /v1/flows/{name}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FlowQuery {
    /// The agent that runs it; needed only where several run one of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub agent: Option<Name>,
}

/// A flow that runs, in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowSummary {
    /// Its name.
    #[schemars(with = "String")]
    pub name: Name,
    /// The agent that runs it.
    #[schemars(with = "String")]
    pub agent: Name,
    /// Whose it is.
    #[schemars(with = "String")]
    pub tenant: Tenant,
    /// Replicas that run it.
    #[schemars(with = "Vec<String>")]
    pub replicas: Vec<Name>,
    /// Nodes it has.
    pub nodes: usize,
    /// Traces under way, all replicas together, as last reported.
    pub in_flight: i64,
    /// Traces that were done since these replicas began.
    pub done: u64,
    /// Traces that failed since then.
    pub failed: u64,
    /// When it was registered last.
    #[schemars(with = "String")]
    pub registered_at: Timestamp,
}

/// The answer to `GET /v1/flows`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowList {
    /// The flows, by name, then agent.
    pub flows: Vec<FlowSummary>,
}

/// The answer to `GET /v1/flows/{name}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FlowView {
    /// The flow in short.
    #[serde(flatten)]
    pub summary: FlowSummary,
    /// Its nodes, edges, policies and types, as the replica that registered last describes them.
    pub description: Value,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_reads_what_it_writes() {
        let report = r#"{"run":"7","series":[{"name":"flow_node_success","labels":{"flow":"f","node":"n"},"value":{"counter":3}},{"name":"flow_node_seconds","labels":{"flow":"f"},"value":{"histogram":{"counts":[1,0],"sum":0.5}}}],"events":[{"at":"2026-11-21T09:26:13.042000Z","kind":"node_failed","flow":"f","details":{"reason":"x"}}]}"#;
        let read: FlowReport = serde_json::from_str(report).unwrap();
        assert_eq!(read.series[0].value, FlowValue::Counter(3));
        assert_eq!(serde_json::to_string(&read).unwrap(), report);
        assert!(serde_json::from_str::<FlowReport>(r#"{"run":"7","serie":[]}"#).is_err());
    }
}
