//! Plans by hand, with numbers as payloads, for the engine's own tests.

use std::{
    future::{Ready, ready},
    sync::Arc,
    time::Duration,
};

use futures_util::TryFutureExt as _;
use smallvec::{SmallVec, smallvec};
use volary_kernel::TraceId;

use super::{Accepted, Read, Reader};
use crate::{
    context::Context,
    envelope::{Headers, Meta},
    error::NodeError,
    graph::{
        plan::{Call, Edge, Join, NodeIx, Payload, Plan, PlanNode, Slot, Step, Target, Work},
        slot,
    },
    outcome::Outcome,
    policy::NodePolicy,
};

pub(crate) type Done = Result<Step, NodeError>;

/// Hands on what it got.
pub(crate) fn pass(n: u64, _: Context) -> Ready<Done> {
    ready(Ok(next(n)))
}

pub(crate) fn next(n: u64) -> Step {
    Step::Next(Payload::new(n))
}

fn clone(payload: &Payload) -> Payload {
    Payload::new(*payload.get::<u64>().unwrap())
}

fn sum(inputs: Vec<Payload>) -> Payload {
    Payload::new(inputs.iter().map(|n| *n.get::<u64>().unwrap()).sum::<u64>())
}

struct TestCall<F>(F);

impl<F, Fut> Call for TestCall<F>
where
    F: Fn(u64, Context) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Done> + Send + 'static,
{
    fn slot(self: Arc<Self>) -> Box<dyn Slot> {
        slot::of(move |input: Payload, context| {
            let attempt = (self.0)(input.into_value::<u64>().unwrap(), context);
            attempt.map_err(Box::new)
        })
    }
}

/// A plan in the making.
pub(crate) struct TestPlan(Plan);

impl TestPlan {
    pub(crate) fn new() -> Self {
        Self(Plan {
            name: "test".parse().unwrap(),
            nodes: Vec::new(),
            ingress: smallvec![],
            clone_input: clone,
            durable: None,
        })
    }

    fn add(&mut self, name: &str, work: Work) -> NodeIx {
        self.0.nodes.push(PlanNode {
            name: name.parse().unwrap(),
            policy: NodePolicy::default(),
            work,
            queue: 64,
            out: SmallVec::new(),
            clone_in: clone,
            clone_out: clone,
        });
        NodeIx::try_from(self.0.nodes.len() - 1).unwrap()
    }

    pub(crate) fn call<F, Fut>(&mut self, name: &str, code: F) -> NodeIx
    where
        F: Fn(u64, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Done> + Send + 'static,
    {
        self.add(name, Work::Call(Arc::new(TestCall(code))))
    }

    pub(crate) fn join(&mut self, name: &str, count: Option<usize>, partial: bool) -> NodeIx {
        let gather = sum;
        let timeout = None;
        self.add(
            name,
            Work::Join(Join {
                count,
                timeout,
                partial,
                gather,
            }),
        )
    }

    pub(crate) fn join_within(&mut self, node: NodeIx, limit: Duration) {
        if let Work::Join(join) = &mut self.node(node).work {
            join.timeout = Some(limit);
        }
    }

    pub(crate) fn node(&mut self, node: NodeIx) -> &mut PlanNode {
        &mut self.0.nodes[usize::from(node)]
    }

    pub(crate) fn policy(&mut self, node: NodeIx) -> &mut NodePolicy {
        &mut self.node(node).policy
    }

    pub(crate) fn ingress(&mut self, node: NodeIx) {
        self.0.ingress.push(node);
    }

    pub(crate) fn egress(&mut self, node: NodeIx) {
        let to = Target::Egress;
        let (back, queue) = (false, 64);
        self.node(node).out.push(Edge { to, back, queue });
    }

    pub(crate) fn edge(&mut self, from: NodeIx, to: NodeIx, queue: usize) {
        let to = Target::Node(to);
        let back = false;
        self.node(from).out.push(Edge { to, back, queue });
    }

    pub(crate) fn back(&mut self, from: NodeIx, to: NodeIx) {
        let to = Target::Node(to);
        let (back, queue) = (true, 1);
        self.node(from).out.push(Edge { to, back, queue });
    }

    /// Ingress, one after the other, egress.
    pub(crate) fn chain(&mut self, nodes: &[NodeIx]) {
        self.ingress(nodes[0]);
        for pair in nodes.windows(2) {
            self.edge(pair[0], pair[1], 64);
        }
        self.egress(nodes[nodes.len() - 1]);
    }

    pub(crate) fn build(self) -> Plan {
        self.0
    }
}

/// An envelope of the default tenant.
pub(crate) fn envelope(payload: u64) -> Accepted {
    Accepted {
        payload: Payload::new(payload),
        headers: Headers::default(),
        trace_id: TraceId::generate(),
        deadline: None,
        meta: Meta::default(),
        parent: None,
    }
}

/// An envelope of a tenant.
pub(crate) fn of_tenant(tenant: &str, payload: u64) -> Accepted {
    let mut accepted = envelope(payload);
    accepted.headers.tenant = tenant.parse().unwrap();
    accepted
}

/// An envelope with a deadline.
pub(crate) fn within(deadline: Duration, payload: u64) -> Accepted {
    let mut accepted = envelope(payload);
    accepted.deadline = Some(deadline);
    accepted
}

/// What a trace yielded, and how it ended.
pub(crate) async fn read(mut reader: Reader) -> (Vec<u64>, Outcome) {
    let mut values = Vec::new();
    loop {
        match reader.next().await {
            Read::Value(value) => values.push(value.into_value::<u64>().unwrap()),
            Read::Chunk(_) => {}
            Read::End(outcome) => return (values, outcome),
        }
    }
}
