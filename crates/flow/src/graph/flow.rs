//! A checked graph, ready to be started, shown and drawn.

use std::{fmt, marker::PhantomData, sync::Arc};

use smallvec::SmallVec;
use volary_kernel::Name;

use super::{
    builder::Pending,
    check,
    describe::Description,
    draw::Direction,
    plan::{Call, CloneFn, Durable, Edge, Join, NodeIx, Plan, PlanNode, Target, Work},
    problem::{BuildErrors, Problem, ProblemCode},
    refs::NodeKey,
    route::Exits,
    running::{Core, RunningFlow},
    sketch::{EdgeSketch, End, Sketch},
    subflow::{Child, Unstarted},
};
use crate::{config::RunConfig, engine::Engine};

/// A graph that passed all checks. Cheap to clone; can be started several times, each run by itself.
pub struct Flow<In, Out> {
    pub(crate) plan: Arc<Plan>,
    description: Arc<Description>,
    /// Sub-flows, by the place of their node.
    children: Arc<[(usize, Child)]>,
    types: PhantomData<fn(In) -> Out>,
}

impl<In, Out> Clone for Flow<In, Out> {
    fn clone(&self) -> Self {
        Self {
            plan: self.plan.clone(),
            description: self.description.clone(),
            children: self.children.clone(),
            types: PhantomData,
        }
    }
}

impl<In, Out> fmt::Debug for Flow<In, Out> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Flow({}, {} nodes)",
            self.plan.name,
            self.plan.nodes.len()
        )
    }
}

impl<In, Out> Flow<In, Out> {
    /// Runs the flow, in the current tokio runtime, until it is stopped or its last handle is dropped.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[doc(alias = "run")]
    pub fn start(&self, config: RunConfig) -> RunningFlow<In, Out> {
        if self.children.is_empty() {
            return Self::run(self.plan.clone(), Vec::new(), config);
        }
        self.start_with(config, |_, call| call)
    }

    /// As [`Flow::start`], each node's code changed by `wrap`.
    pub(crate) fn start_with(
        &self,
        config: RunConfig,
        wrap: impl Fn(&Name, Arc<dyn Call>) -> Arc<dyn Call>,
    ) -> RunningFlow<In, Out> {
        let mut plan = Plan::clone(&self.plan);
        let mut children = Vec::with_capacity(self.children.len());
        for (node, child) in self.children.iter() {
            let (call, core) = child(&config);
            plan.nodes[*node].work = Work::Call(call);
            children.push(core);
        }
        for node in &mut plan.nodes {
            if let Work::Call(call) = &node.work {
                node.work = Work::Call(wrap(&node.name, call.clone()));
            }
        }
        Self::run(Arc::new(plan), children, config)
    }

    fn run(plan: Arc<Plan>, children: Vec<Core>, config: RunConfig) -> RunningFlow<In, Out> {
        let clock = config.clock.clone();
        RunningFlow::new(Core {
            engine: Engine::start(plan, config),
            children: children.into(),
            clock,
        })
    }

    /// The flow as data.
    pub fn describe(&self) -> &Description {
        &self.description
    }

    /// The graph as a Mermaid flowchart.
    pub fn to_mermaid(&self, direction: Direction) -> String {
        self.description.to_mermaid(direction)
    }

    /// The graph in the DOT language of Graphviz.
    pub fn to_dot(&self, direction: Direction) -> String {
        self.description.to_dot(direction)
    }
}

impl<In, Out> Flow<In, Out> {
    /// The same, whose values can be stored.
    pub(crate) fn durable(self, durable: Durable) -> Self {
        let mut plan = (*self.plan).clone();
        plan.durable = Some(Arc::new(durable));
        Self {
            plan: Arc::new(plan),
            ..self
        }
    }

    /// Checks the sketch and makes the plan of it.
    pub(crate) fn assemble(
        sketch: Sketch,
        parts: Vec<(Pending, CloneFn, CloneFn)>,
        clone_input: CloneFn,
        builder: u32,
    ) -> Result<Self, BuildErrors> {
        let problems = check::check(&sketch);
        let failed = |problems| BuildErrors {
            flow: sketch.name.clone(),
            problems,
        };
        if !problems.is_empty() {
            return Err(failed(problems));
        }
        let children = parts.iter().enumerate();
        let children = children.filter_map(|(ix, (pending, ..))| match pending {
            Pending::Subflow(child) => Some((ix, child.clone())),
            _ => None,
        });
        let children = children.collect();
        let plan = plan(&sketch, parts, clone_input, builder);
        Ok(Self {
            children,
            plan: Arc::new(plan.map_err(|problem| failed(vec![problem]))?),
            description: Arc::new(Description::of(&sketch)),
            types: PhantomData,
        })
    }
}

/// The plan of a sketch that was checked.
fn plan(
    sketch: &Sketch,
    parts: Vec<(Pending, CloneFn, CloneFn)>,
    clone_input: CloneFn,
    builder: u32,
) -> Result<Plan, Problem> {
    let mut nodes = Vec::with_capacity(parts.len());
    let edges = sketch.out();
    for (ix, (pending, clone_in, clone_out)) in parts.into_iter().enumerate() {
        let node = &sketch.nodes[ix];
        nodes.push(PlanNode {
            name: name(&node.name)?,
            policy: node.policy.clone(),
            work: work(sketch, ix, &edges[ix], pending, builder),
            queue: sketch.queue_of(ix),
            out: out(sketch, &edges[ix])?,
            clone_in,
            clone_out,
        });
    }
    let ingress = sketch.ingress.iter().map(|ix| number(*ix));
    Ok(Plan {
        name: name(&sketch.name)?,
        nodes,
        ingress: ingress.collect::<Result<_, _>>()?,
        clone_input,
        durable: None,
    })
}

fn work(sketch: &Sketch, ix: usize, edges: &[&EdgeSketch], pending: Pending, builder: u32) -> Work {
    match pending {
        Pending::Call(call) => Work::Call(call),
        Pending::Subflow(_) => Work::Call(Arc::new(Unstarted)),
        Pending::Route(make) => {
            let exit = |to: End| {
                let key = match to {
                    End::Node(ix) => Some(NodeKey { builder, ix }),
                    End::Egress => None,
                };
                (key, sketch.name_of(to).to_owned())
            };
            Work::Call(make(Exits {
                router: sketch.nodes[ix].name.clone(),
                edges: edges.iter().map(|edge| exit(edge.to)).collect(),
            }))
        }
        Pending::Join(gather) => {
            let join = sketch.nodes[ix].join.unwrap_or_default();
            Work::Join(Join {
                count: join.count,
                timeout: join.timeout,
                partial: join.partial,
                gather,
            })
        }
    }
}

fn out(sketch: &Sketch, edges: &[&EdgeSketch]) -> Result<SmallVec<[Edge; 2]>, Problem> {
    let edge = |to: End, back: bool| match to {
        End::Node(to) => Ok(Edge {
            to: Target::Node(number(to)?),
            back,
            queue: sketch.queue_of(to),
        }),
        End::Egress => Ok(Edge {
            to: Target::Egress,
            back: false,
            queue: sketch.queue_maxsize,
        }),
    };
    let edges = edges.iter();
    edges.map(|found| edge(found.to, found.back)).collect()
}

/// What the checks have already seen to, and is a problem all the same.
fn number(ix: usize) -> Result<NodeIx, Problem> {
    NodeIx::try_from(ix).map_err(|_| Problem {
        code: ProblemCode::TooLarge,
        place: "the flow".to_owned(),
        message: format!("has a node number {ix}"),
        hint: "split it into sub-flows".to_owned(),
    })
}

/// As [`number`], for names.
fn name(text: &str) -> Result<Name, Problem> {
    Name::new(text).map_err(|error| Problem {
        code: ProblemCode::BadName,
        place: format!("`{text}`"),
        message: error.to_string(),
        hint: "choose another name".to_owned(),
    })
}
