//! The fleet as operators see it: agents, replicas, sources, logs, and how it is stopped.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use volary_kernel::{Name, Tenant, Timestamp};

use super::DurationText;

/// `GET /v1/fleet`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FleetView {
    /// Name of the fleet.
    pub name: String,
    /// Tenant of agents that name none.
    #[schemars(with = "String")]
    pub tenant: Tenant,
    /// Name of the node that answers.
    pub node: String,
    /// Version of the node.
    pub version: String,
    /// Process id of the node.
    pub pid: u32,
    /// When the node started.
    #[schemars(with = "String")]
    pub started_at: Timestamp,
    /// The agents, by name.
    pub agents: Vec<AgentSummary>,
    /// The sources of context, by name.
    pub sources: Vec<SourceView>,
}

/// One agent in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AgentSummary {
    /// Name of the agent.
    #[schemars(with = "String")]
    pub name: Name,
    /// Tenant it belongs to.
    #[schemars(with = "String")]
    pub tenant: Tenant,
    /// What runs: `command`, `handler`, `image` or `model`.
    pub body: String,
    /// Replicas wanted.
    pub replicas: u32,
    /// Replicas ready.
    pub ready: u32,
    /// Items waiting in its inbox.
    pub waiting: u64,
}

/// One source of context.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SourceView {
    /// Name of the source.
    pub name: String,
    /// Kind of the source, like `files`.
    pub kind: String,
    /// What it watches.
    pub location: String,
    /// Whether it has caught up and watches.
    pub ready: bool,
    /// Pages it knows.
    pub pages: u64,
}

/// `GET /v1/agents/{name}`: all there is to know about one agent, without the values of secrets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AgentView {
    /// The agent.
    pub agent: AgentSummary,
    /// Its replicas.
    pub replicas: Vec<ReplicaView>,
    /// Its inbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inbox: Option<InboxStats>,
    /// Topics it sends to and receives.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub topics: Vec<String>,
    /// Its manifest as understood, defaults filled in, secrets by reference only.
    #[serde(default)]
    pub spec: serde_json::Value,
    /// What else the parts of the node know about it, by part.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub more: BTreeMap<String, serde_json::Value>,
}

/// An inbox in figures.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InboxStats {
    /// Items that can be claimed now.
    pub ready: u64,
    /// Items that wait for their time.
    pub delayed: u64,
    /// Items somebody works on.
    pub claimed: u64,
    /// Items whose attempts are used up.
    pub parked: u64,
    /// Bytes of all of them.
    pub bytes: u64,
}

/// One replica: an element of `GET /v1/replicas` and of `volary ps --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReplicaView {
    /// Agent that it is a copy of.
    #[schemars(with = "String")]
    pub agent: Name,
    /// Name of the replica, stable over restarts.
    #[schemars(with = "String")]
    pub replica: Name,
    /// Tenant of the agent.
    #[schemars(with = "String")]
    pub tenant: Tenant,
    /// How it runs: `process`, `docker`, `kubernetes`.
    pub backend: String,
    /// State of its life, like `starting`, `running`, `crash_loop`.
    pub state: String,
    /// Whether it can take work.
    pub ready: bool,
    /// Process id; null while no process runs (an idle handler agent).
    pub pid: Option<u32>,
    /// Container id, for backends that have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Restarts since the node started.
    pub restarts: u64,
    /// When its present run started; null before the first.
    #[schemars(with = "Option<String>")]
    pub started_at: Option<Timestamp>,
    /// Ports it listens on.
    pub ports: Vec<PortView>,
    /// Why it is not ready, or how it last ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// One port of a replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortView {
    /// Name in the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Port inside.
    pub port: u16,
    /// Port on the host, if it is published under another number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_port: Option<u16>,
    /// `tcp` or `udp`.
    pub protocol: String,
}

/// Query of `GET /v1/logs`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogsQuery {
    /// Only this agent; all when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub agent: Option<Name>,
    /// Only this replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub replica: Option<Name>,
    /// Last lines per replica to begin with; all that is kept when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<u32>,
    /// Go on with what comes.
    #[serde(default)]
    pub follow: bool,
}

/// Body of `POST /v1/down`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DownRequest {
    /// How long agents may take to finish; the fleet's own setting when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<DurationText>,
}

/// The answer to a [`DownRequest`]: the node drains now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DownReply {
    /// Process id of the node: it is down when this process has ended.
    pub pid: u32,
    /// How many replicas are asked to stop.
    pub replicas: u32,
}
