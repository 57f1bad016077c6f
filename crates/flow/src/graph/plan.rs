//! What the builder hands to the engine: a checked graph with its types erased. Pure data.

use std::{sync::Arc, time::Duration};

use smallvec::SmallVec;
use volary_kernel::Name;

use crate::{
    error::NodeError,
    policy::NodePolicy,
    state::{codec::Codec, once::Settle},
};

pub(crate) use super::{
    payload::{Payload, Room},
    slot::Slot,
};

/// Index of a node in its plan.
pub(crate) type NodeIx = u16;

/// A graph that passed all checks.
#[derive(Clone)]
pub(crate) struct Plan {
    pub name: Name,
    pub nodes: Vec<PlanNode>,
    /// Every node that gets what is emitted.
    pub ingress: SmallVec<[NodeIx; 2]>,
    /// Clones what is emitted, where there are several of them.
    pub clone_input: CloneFn,
    /// How its values are stored; only of a flow that was built to be durable.
    pub durable: Option<Arc<Durable>>,
}

/// How the values of a durable flow are stored.
pub(crate) struct Durable {
    /// What is emitted.
    pub input: Codec,
    /// What the flow yields.
    pub output: Codec,
    /// One for each node of the plan.
    pub nodes: Vec<DurableNode>,
}

/// How the steps of a node are kept.
#[derive(Clone, Default)]
pub(crate) struct DurableNode {
    /// Its outputs. None of a join, which only gathers, and of a node that hands on nothing.
    pub output: Option<Codec>,
    /// It is a switch: the same input takes the same way again, so nothing is kept of it.
    pub pure: bool,
    /// The node has an effect that must not be repeated: what to do when it is in doubt.
    pub once: Option<Settle>,
}

/// Clones a payload of one known type.
pub(crate) type CloneFn = fn(&Payload) -> Payload;

/// A node of a plan.
#[derive(Clone)]
pub(crate) struct PlanNode {
    pub name: Name,
    pub policy: NodePolicy,
    pub work: Work,
    /// Most messages that wait on each edge into it, per tenant; of an ingress also most emitted ones that wait.
    pub queue: usize,
    /// Where its output goes, in the order of connecting.
    pub out: SmallVec<[Edge; 2]>,
    /// Clones an input, for further attempts.
    pub clone_in: CloneFn,
    /// Clones an output, for branches.
    pub clone_out: CloneFn,
}

/// An edge, seen from its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Edge {
    pub to: Target,
    /// Declared as closing a cycle: it is exempt from the bound (what goes round was admitted before) and counts as a hop.
    pub back: bool,
    /// Most messages that wait on it, per tenant: the `queue` of the node it leads to.
    pub queue: usize,
}

/// Where an edge goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Node(NodeIx),
    /// Out of the flow, to whoever waits for the trace.
    Egress,
}

/// What a node does.
#[derive(Clone)]
pub(crate) enum Work {
    /// Runs code.
    Call(Arc<dyn Call>),
    /// Gathers the messages of a trace.
    Join(Join),
}

/// Code with its types erased.
pub(crate) trait Call: Send + Sync {
    /// A place for its attempts.
    fn slot(self: Arc<Self>) -> Box<dyn Slot>;
}

/// What an attempt returns. Little, as it is handed from function to function; an error is rare and may be larger.
pub(crate) type Returned = Result<Step, Box<NodeError>>;

const _: () = assert!(size_of::<Returned>() <= 32);

/// What an attempt ended with.
pub(crate) enum Step {
    /// One value, to every edge.
    Next(Payload),
    /// Several, in order.
    Each(Vec<Payload>),
    /// To one edge, by its index in `PlanNode::out`.
    One(u16, Payload),
    /// To some edges, by their index in `PlanNode::out`.
    To(Vec<(u16, Payload)>),
    /// To nobody.
    Nothing,
    /// To a target that the node has no edge to: the trace fails with `NoSuchTarget` and this message, whatever the policy.
    NoSuchTarget(String),
    /// The final answer: yielded, then the trace is done.
    Finish(Payload),
}

/// Gathers the messages of one trace.
#[derive(Clone)]
pub(crate) struct Join {
    /// How many complete it; none is one from each edge into it.
    pub count: Option<usize>,
    /// Longest wait after the first.
    pub timeout: Option<Duration>,
    /// Whether what is there goes on when no more can come, or the wait is over.
    pub partial: bool,
    /// Makes the output from the inputs, in order of arrival.
    pub gather: fn(Vec<Payload>) -> Payload,
}
