//! Traces of flows that agents run: `GET /v1/flows/{name}/traces` and `POST /v1/flow-traces/{trace}/…` for operators,
//! `POST /v1/flows/control` on the link API, by which an agent learns what they ask.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use volary_kernel::{Name, Tenant, Timestamp, TraceId};

use super::DurationText;

/// Query of `GET /v1/flows/{name}/traces`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FlowTracesQuery {
    /// Only of this agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub agent: Option<Name>,
    /// Only of agents of this tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub tenant: Option<Tenant>,
}

/// Body of `POST /v1/flow-traces/{trace}/cancel`, `/pause` and `/resume`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FlowActRequest {
    /// Only of agents of this tenant: another tenant's trace looks like none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub tenant: Option<Tenant>,
}

/// The answer to `GET /v1/flows/{name}/traces`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowTraces {
    /// Those that live, oldest first, then those that ended, latest first.
    pub traces: Vec<FlowTraceView>,
    /// Whether more live than are shown.
    pub more: bool,
    /// Replicas that run the flow and did not answer in time.
    #[schemars(with = "Vec<String>")]
    pub silent: Vec<Name>,
}

/// A trace of an agent's flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowTraceView {
    /// The agent.
    #[schemars(with = "String")]
    pub agent: Name,
    /// The replica that runs it.
    #[schemars(with = "String")]
    pub replica: Name,
    /// What the replica says of it.
    #[serde(flatten)]
    pub trace: FlowTrace,
}

/// A trace, as the process that runs it tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowTrace {
    /// Its id in the flow.
    #[schemars(with = "String")]
    pub trace: TraceId,
    /// The trace of the message that it works on, as events name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub message_trace: Option<TraceId>,
    /// Whose it is.
    #[schemars(with = "String")]
    pub tenant: Tenant,
    /// `running`, `paused`, or how it ended: `done`, `failed`, `cancelled`, `deadline_exceeded`, `dropped`.
    pub state: String,
    /// How long it has been under way, or took.
    pub age: DurationText,
    /// What is left of its deadline, while it lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining: Option<DurationText>,
    /// Nodes at which it waits or runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    pub nodes: Vec<Name>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub ended_at: Option<Timestamp>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What is done to a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FlowAct {
    /// Ends it; its message is parked.
    Cancel,
    /// Holds what of it does not run yet.
    Pause,
    /// Lets it go on.
    Resume,
}

impl FlowAct {
    /// Its name in paths.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Pause => "pause",
            Self::Resume => "resume",
        }
    }
}

/// The answer to an act: what it was done to, at least one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowActReply {
    /// The traces.
    pub traces: Vec<FlowActed>,
}

/// A trace to which something was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowActed {
    /// The flow.
    pub flow: String,
    /// The agent.
    #[schemars(with = "String")]
    pub agent: Name,
    /// The replica that runs it.
    #[schemars(with = "String")]
    pub replica: Name,
    /// Its id in the flow.
    #[schemars(with = "String")]
    pub trace: TraceId,
}

/// Body of `POST /v1/flows/control`: what came of orders, and the question for the next ones.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FlowControl {
    /// The run, as the registration named it.
    pub run: String,
    /// How long the node may wait for an order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<DurationText>,
    /// What came of orders.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<FlowAnswer>,
}

/// The answer to a [`FlowControl`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowControlReply {
    /// What operators ask; each is to be answered.
    pub orders: Vec<FlowOrder>,
}

/// Something that an operator asks of a process that runs flows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowOrder {
    /// Names it in the answer.
    pub id: u64,
    /// For whose traces it holds.
    #[schemars(with = "String")]
    pub tenant: Tenant,
    /// What is asked.
    pub ask: FlowAsk,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FlowAsk {
    /// The traces of a flow.
    Traces {
        /// The flow.
        #[schemars(with = "String")]
        flow: Name,
    },
    /// Something to be done to a trace.
    Act {
        /// What.
        act: FlowAct,
        /// Its id in the flow, or that of its message.
        #[schemars(with = "String")]
        trace: TraceId,
    },
}

/// What came of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FlowAnswer {
    /// The order.
    pub id: u64,
    /// What came of it.
    pub said: FlowSaid,
}

/// What came of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FlowSaid {
    /// The traces of the flow.
    Traces {
        /// Those that live, oldest first, then those that ended, latest first.
        traces: Vec<FlowTrace>,
        /// Whether more live.
        more: bool,
    },
    /// It was done to these traces; none if none is known by that id.
    Acted {
        /// The flow.
        flow: String,
        /// The traces.
        #[schemars(with = "Vec<String>")]
        traces: Vec<TraceId>,
    },
    /// It cannot be done, and why.
    Refused {
        /// Why: the trace has ended, is paused already, is not paused.
        why: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_and_answers_read_what_they_write() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let order = format!(
            r#"{{"id":7,"tenant":"default","ask":{{"act":{{"act":"cancel","trace":"{trace}"}}}}}}"#
        );
        let read: FlowOrder = serde_json::from_str(&order).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), order);
        let control = format!(
            r#"{{"run":"1","wait":"20s","answers":[{{"id":7,"said":{{"acted":{{"flow":"orders","traces":["{trace}"]}}}}}}]}}"#
        );
        let read: FlowControl = serde_json::from_str(&control).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), control);
    }
}
