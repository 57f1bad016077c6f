//! A flow as data: what the builder checked, in a form that can be stored, shown and drawn.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::{
    draw::{self, Direction},
    sketch::{End, NodeSketch, Sketch, short_type},
};
use crate::policy::NodePolicy;

/// The version of [`Description`] that this crate writes and reads.
pub const DESCRIPTION_VERSION: u32 = 1;

/// A flow as data: nodes with policies and types, edges, ways in and out.
///
/// # Examples
/// ```
/// use volary_flow::graph::{Description, Direction, FlowBuilder};
/// let mut b = FlowBuilder::new("answer");
/// let double = b.node("double", |n: u64, _| async move { Ok(n * 2) });
/// b.ingress(double).egress(double);
/// let description = b.build()?.describe().clone();
///
/// let text = serde_json::to_string(&description)?;
/// let again = Description::from_json(&text)?;
/// assert_eq!(again, description);
/// assert!(again.to_mermaid(Direction::LeftToRight).starts_with("flowchart LR\n"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// Format of what follows: [`DESCRIPTION_VERSION`].
    pub version: u32,
    /// The flow's name.
    pub flow: String,
    /// Its nodes, in the order of adding.
    pub nodes: Vec<NodeDescription>,
    /// Its edges, in the order of connecting; those to the egress are in [`Description::egress`].
    pub edges: Vec<EdgeDescription>,
    /// Names of the nodes that get what is emitted.
    pub ingress: Vec<String>,
    /// Names of the nodes whose values are yielded.
    pub egress: Vec<String>,
}

/// What a node is, for pictures and people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeKind {
    /// One value in, one value out.
    Node,
    /// One value or none out.
    FilterMap,
    /// Any number of values out.
    FlatMap,
    /// The elements of a list, several at once.
    MapConcurrent,
    /// May give the final answer.
    Step,
    /// Nothing out.
    Sink,
    /// Chooses among its successors.
    Route,
    /// Chooses by variant.
    Switch,
    /// Gathers the values of a trace.
    Join,
    /// Another flow.
    Subflow,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeDescription {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: NodeKind,
    /// The type it takes.
    pub input: String,
    /// The type it hands on.
    pub output: String,
    /// Most messages that wait on each edge into it, per tenant.
    pub queue: usize,
    /// How its attempts are run; joins have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyDescription>,
    /// What a join waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<JoinDescription>,
    /// The flow that a sub-flow node runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subflow: Option<Box<Description>>,
}

/// How the attempts of a node are run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyDescription {
    /// Attempts at once.
    pub concurrency: usize,
    /// Longest time of an attempt, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Attempts after the first.
    pub max_retries: u32,
    /// Wait after the first failure, in milliseconds; only where there are retries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff_ms: Option<u64>,
    /// Longest wait between attempts, in milliseconds; only where there are retries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_backoff_ms: Option<u64>,
    /// Failures in a row that open the breaker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breaker_failures: Option<u32>,
    /// How long the breaker stays open, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breaker_open_ms: Option<u64>,
}

/// What a join waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinDescription {
    /// How many messages complete it; none is one from each edge into it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
    /// Longest wait after the first, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Whether it goes on with what is there.
    pub partial: bool,
}

/// An edge between nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EdgeDescription {
    /// Name of the node it leaves.
    pub from: String,
    /// Name of the node it leads to.
    pub to: String,
    /// Whether it is declared as closing a cycle.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub back: bool,
    /// Which case of a switch takes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// Why a text is no description.
#[derive(Debug, thiserror::Error)]
pub enum DescriptionError {
    /// Not the JSON of a description.
    #[error("not the description of a flow: {0}")]
    Json(#[from] serde_json::Error),
    /// Written by a version that this one does not know.
    #[error(
        "the description has version {found}, this program reads version {DESCRIPTION_VERSION}"
    )]
    Version {
        /// The version found.
        found: u32,
    },
    /// Two nodes have this name.
    #[error("the description has two nodes named `{0}`")]
    DuplicateNode(String),
    /// An edge, the ingress or the egress names a node that is not there.
    #[error("the description names a node `{0}` and does not have it")]
    UnknownNode(String),
}

impl Description {
    /// Reads what was written as JSON.
    ///
    /// # Errors
    /// [`DescriptionError`], the version being looked at first; names must be those of nodes.
    pub fn from_json(text: &str) -> Result<Self, DescriptionError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version } = serde_json::from_str(text)?;
        if version != DESCRIPTION_VERSION {
            return Err(DescriptionError::Version { found: version });
        }
        let description: Self = serde_json::from_str(text)?;
        description.check_names()?;
        Ok(description)
    }

    fn check_names(&self) -> Result<(), DescriptionError> {
        let mut names = HashSet::new();
        for node in &self.nodes {
            if !names.insert(node.name.as_str()) {
                return Err(DescriptionError::DuplicateNode(node.name.clone()));
            }
            if let Some(subflow) = &node.subflow {
                subflow.check_names()?;
            }
        }
        let ends = self.edges.iter().flat_map(|edge| [&edge.from, &edge.to]);
        for name in ends.chain(&self.ingress).chain(&self.egress) {
            if !names.contains(name.as_str()) {
                return Err(DescriptionError::UnknownNode(name.clone()));
            }
        }
        Ok(())
    }

    /// The graph as a Mermaid flowchart.
    pub fn to_mermaid(&self, direction: Direction) -> String {
        draw::mermaid(self, direction)
    }

    /// The graph in the DOT language of Graphviz.
    pub fn to_dot(&self, direction: Direction) -> String {
        draw::dot(self, direction)
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Option<&NodeDescription> {
        self.nodes.iter().find(|node| node.name == name)
    }

    pub(crate) fn of(sketch: &Sketch) -> Self {
        let name = |node: usize| sketch.nodes[node].name.clone();
        let between = sketch.edges.iter().filter_map(|edge| match edge.to {
            End::Egress => None,
            End::Node(to) => Some(EdgeDescription {
                from: name(edge.from),
                to: name(to),
                back: edge.back,
                label: edge.label.clone(),
            }),
        });
        let out = sketch.edges.iter().filter(|edge| edge.to == End::Egress);
        Self {
            version: DESCRIPTION_VERSION,
            flow: sketch.name.clone(),
            nodes: (0..sketch.nodes.len())
                .map(|node| NodeDescription::of(&sketch.nodes[node], sketch.queue_of(node)))
                .collect(),
            edges: between.collect(),
            ingress: sketch.ingress.iter().map(|node| name(*node)).collect(),
            egress: out.map(|edge| name(edge.from)).collect(),
        }
    }
}

impl NodeDescription {
    fn of(node: &NodeSketch, queue: usize) -> Self {
        Self {
            name: node.name.clone(),
            kind: node.kind,
            input: short_type(node.input),
            output: short_type(node.output),
            queue,
            policy: node.join.is_none().then(|| (&node.policy).into()),
            join: node.join.map(|join| JoinDescription {
                count: join.count,
                timeout_ms: join.timeout.map(millis),
                partial: join.partial,
            }),
            subflow: node.subflow.clone(),
        }
    }
}

impl From<&NodePolicy> for PolicyDescription {
    fn from(policy: &NodePolicy) -> Self {
        let retries = policy.max_retries > 0;
        Self {
            concurrency: policy.concurrency,
            timeout_ms: policy.timeout.map(millis),
            max_retries: policy.max_retries,
            backoff_ms: retries.then(|| millis(policy.backoff.base)),
            max_backoff_ms: retries.then(|| millis(policy.backoff.max)),
            breaker_failures: policy.breaker.map(|breaker| breaker.failures),
            breaker_open_ms: policy.breaker.map(|breaker| millis(breaker.open_for)),
        }
    }
}

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
