//! Drawing a graph: typed nodes and edges; [`FlowBuilder::build`] checks all of it at once.

use std::{any::TypeId, convert::Infallible, marker::PhantomData, sync::Arc};

use super::{
    code::{self, Code, Value},
    describe::NodeKind,
    flow::Flow,
    plan::{Call, CloneFn, DurableNode, Payload},
    problem::{BuildErrors, Problem, ProblemCode},
    refs::{NodeKey, NodeRef, next_builder},
    route::Exits,
    sketch::{EdgeSketch, End, NodeSketch, Sketch},
    subflow::Child,
};
use crate::{
    context::Context,
    error::NodeError,
    node::{Emit, Node},
    policy::NodePolicy,
};

/// Draws a flow that takes `In` and yields `Out`.
///
/// Nothing fails on the way: [`FlowBuilder::build`] reports everything that is wrong with the graph together. What the types
/// can tell does not compile.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use volary_flow::{graph::FlowBuilder, policy::NodePolicy};
///
/// let mut b = FlowBuilder::new("greeting");
/// let trim = b.node("trim", |name: String, _| async move { Ok(name.trim().to_owned()) });
/// let greet = b.node("greet", |name: String, _| async move { Ok(format!("Hello, {name}!")) });
/// b.policy(greet, NodePolicy { timeout: Some(Duration::from_secs(10)), max_retries: 1, ..NodePolicy::default() });
/// b.connect(trim, greet).ingress(trim).egress(greet);
/// let flow = b.build()?;
/// assert_eq!(flow.describe().nodes.len(), 2);
/// # Ok::<(), volary_flow::graph::BuildErrors>(())
/// ```
///
/// Values that do not fit an edge do not compile:
/// ```compile_fail,E0308
/// # use volary_flow::graph::FlowBuilder;
/// let mut b = FlowBuilder::<String, String>::new("greeting");
/// let count = b.node("count", |name: String, _| async move { Ok(name.len()) });
/// let greet = b.node("greet", |name: String, _| async move { Ok(format!("Hello, {name}!")) });
/// b.connect(count, greet); // `count` hands on a `usize`, `greet` takes a `String`
/// ```
///
/// All problems come together:
/// ```
/// use volary_flow::graph::FlowBuilder;
/// let mut b = FlowBuilder::<u64, u64>::new("lost");
/// let a = b.node("a", |n: u64, _| async move { Ok(n) });
/// let c = b.node("Fetch Page", |n: u64, _| async move { Ok(n) });
/// b.ingress(a).egress(a).queue(a, 0);
/// let errors = b.build().unwrap_err();
/// assert_eq!(errors.problems.len(), 4);
/// let text = errors.to_string();
/// assert!(text.starts_with("flow `lost` has 4 problems:\n  - "));
/// assert!(text.contains("node `Fetch Page`: is not a name; write `fetch-page`"));
/// ```
#[doc(alias = "create")]
#[doc(alias = "PenguiFlow")]
pub struct FlowBuilder<In, Out> {
    id: u32,
    pub(crate) sketch: Sketch,
    pub(crate) parts: Vec<Part>,
    types: PhantomData<fn(In) -> Out>,
}

/// What a node of the sketch does.
pub(crate) struct Part {
    work: Pending,
    clone_in: CloneFn,
    clone_out: CloneFn,
    /// How its steps are stored, where that was said.
    pub stored: DurableNode,
}

/// Work that may have to know the finished graph.
pub(crate) enum Pending {
    Call(Arc<dyn Call>),
    Route(Box<dyn FnOnce(Exits) -> Arc<dyn Call> + Send>),
    Join(fn(Vec<Payload>) -> Payload),
    Subflow(Child),
}

impl<In: Value, Out: Value> FlowBuilder<In, Out> {
    /// An empty graph. The name is shown in events, metrics and pictures.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            id: next_builder(),
            sketch: Sketch::new(name.into()),
            parts: Vec::new(),
            types: PhantomData,
        }
    }

    /// Adds a node: one value in, one value out, to every successor.
    ///
    /// Name the types of the parameters (`|order: Order, context: Context|`, or `_` for a context that is not used); any
    /// error of the node's own becomes a [`NodeError`] by `?`.
    ///
    /// A function that is not async does not compile:
    /// ```compile_fail,E0277
    /// # use volary_flow::{Context, FlowBuilder, NodeError};
    /// let mut b = FlowBuilder::<u64, u64>::new("sync");
    /// fn double(n: u64, _: Context) -> Result<u64, NodeError> {
    ///     Ok(n * 2)
    /// }
    /// b.node("double", double);
    /// ```
    ///
    /// Neither does one of other parameters:
    /// ```compile_fail,E0593
    /// # use volary_flow::FlowBuilder;
    /// let mut b = FlowBuilder::<u64, u64>::new("three");
    /// b.node("three", |n: u64, _, _: u8| async move { Ok(n) });
    /// ```
    #[doc(alias = "Node")]
    pub fn node<I: Value, O: Value, F, Fut>(
        &mut self,
        name: impl Into<String>,
        code: F,
    ) -> NodeRef<I, O>
    where
        F: Fn(I, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<O, NodeError>> + Send + 'static,
    {
        self.add(name, code)
    }

    /// Adds a node that is a type of your own; closures go by [`FlowBuilder::node`], which infers more of their types.
    pub fn add<I: Value, O: Value>(
        &mut self,
        name: impl Into<String>,
        node: impl Node<I, Out = O>,
    ) -> NodeRef<I, O> {
        let call = Code::<_, I, _>::new(node, code::one::<O>);
        self.add_call(name.into(), NodeKind::Node, call)
    }

    /// Adds a node that hands on a value or none: `None` ends this branch of the trace.
    pub fn filter_map<I: Value, O: Value, F, Fut>(
        &mut self,
        name: impl Into<String>,
        code: F,
    ) -> NodeRef<I, O>
    where
        F: Fn(I, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Option<O>, NodeError>> + Send + 'static,
    {
        let call = Code::<_, I, _>::new(code, code::perhaps::<O>);
        self.add_call(name.into(), NodeKind::FilterMap, call)
    }

    /// Adds a node that hands on any number of values, in order, each to every successor.
    pub fn flat_map<I: Value, O: Value, F, Fut>(
        &mut self,
        name: impl Into<String>,
        code: F,
    ) -> NodeRef<I, O>
    where
        F: Fn(I, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Vec<O>, NodeError>> + Send + 'static,
    {
        let call = Code::<_, I, _>::new(code, code::each::<O>);
        self.add_call(name.into(), NodeKind::FlatMap, call)
    }

    /// Adds a node that says per value what happens: on to the successors, nothing, or the final answer of the trace.
    ///
    /// With `Emit<Infallible, Out>` it needs no successor.
    #[doc(alias = "FinalAnswer")]
    pub fn step<I: Value, O: Value, F, Fut>(
        &mut self,
        name: impl Into<String>,
        code: F,
    ) -> NodeRef<I, O>
    where
        F: Fn(I, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Emit<O, Out>, NodeError>> + Send + 'static,
    {
        let call = Code::<_, I, _>::new(code, code::emit::<O, Out>);
        let node = self.add_call(name.into(), NodeKind::Step, call);
        if TypeId::of::<O>() == TypeId::of::<Infallible>() {
            self.ends_branches();
        }
        node
    }

    /// Adds a node at which a branch of the trace ends: it has an effect and no value.
    pub fn sink<I: Value, F, Fut>(
        &mut self,
        name: impl Into<String>,
        code: F,
    ) -> NodeRef<I, Infallible>
    where
        F: Fn(I, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), NodeError>> + Send + 'static,
    {
        let call = Code::<_, I, _>::new(code, code::nothing);
        let node = self.add_call(name.into(), NodeKind::Sink, call);
        self.ends_branches();
        node
    }

    /// Sets how the attempts of a node are run. Default: [`NodePolicy::default`].
    pub fn policy<I, O>(&mut self, node: NodeRef<I, O>, policy: NodePolicy) -> &mut Self {
        if let Some(ix) = self.place(node, "set the policy of") {
            let node = &mut self.sketch.nodes[ix];
            node.policy = policy;
            if std::mem::replace(&mut node.policy_set, true) {
                let name = node.name.clone();
                self.twice(&name, "its policy");
            }
        }
        self
    }

    /// Bounds each edge into a node: most messages that wait there, per tenant; of an ingress also most emitted ones.
    ///
    /// A message gives its place up when its attempt begins. One that fails and is tried again comes back past the bound, so
    /// where a node retries, up to its concurrency more may wait of each tenant.
    pub fn queue<I, O>(&mut self, node: NodeRef<I, O>, bound: usize) -> &mut Self {
        if let Some(ix) = self.place(node, "set the queue of")
            && self.sketch.nodes[ix].queue.replace(bound).is_some()
        {
            let name = self.sketch.nodes[ix].name.clone();
            self.twice(&name, "its queue");
        }
        self
    }

    /// The bound of edges that have none of their own. Default 64.
    pub fn queue_maxsize(&mut self, bound: usize) -> &mut Self {
        self.sketch.queue_maxsize = bound;
        self
    }

    /// Leads what a node hands on to another.
    pub fn connect<I, T, O>(&mut self, from: NodeRef<I, T>, to: NodeRef<T, O>) -> &mut Self {
        self.edge(from, to, false);
        self
    }

    /// As [`FlowBuilder::connect`], and declares that this edge closes a cycle.
    ///
    /// It has no bound of its own, so that the cycle cannot stand still: what goes round was admitted before. How often a
    /// trace goes round is bounded by `Limits::hops`, and how many messages it has by `Limits::messages_per_trace`.
    #[doc(alias = "allow_cycles")]
    pub fn connect_back<I, T, O>(&mut self, from: NodeRef<I, T>, to: NodeRef<T, O>) -> &mut Self {
        self.edge(from, to, true);
        self
    }

    /// Gives a node what is emitted; several each get a clone.
    #[doc(alias = "OpenSea")]
    pub fn ingress<O>(&mut self, node: NodeRef<In, O>) -> &mut Self {
        let Some(ix) = self.place(node, "make an ingress of") else {
            return self;
        };
        if std::mem::replace(&mut self.sketch.nodes[ix].ingress, true) {
            let name = self.sketch.nodes[ix].name.clone();
            self.sketch.found.push(Problem {
                code: ProblemCode::Twice,
                place: format!("node `{name}`"),
                message: "is declared as an ingress twice".to_owned(),
                hint: "declare it once: what is emitted would come twice".to_owned(),
            });
        } else {
            self.sketch.ingress.push(ix);
        }
        self
    }

    /// Yields what a node hands on to whoever waits for the trace.
    #[doc(alias = "Rookery")]
    pub fn egress<I>(&mut self, node: NodeRef<I, Out>) -> &mut Self {
        if let Some(from) = self.place(node, "make an egress of") {
            self.sketch.add_edge(EdgeSketch {
                from,
                to: End::Egress,
                back: false,
                label: None,
            });
        }
        self
    }

    /// Checks the whole graph.
    ///
    /// # Errors
    /// All problems together, each with its place and a hint.
    pub fn build(self) -> Result<Flow<In, Out>, BuildErrors> {
        let parts = self.parts.into_iter();
        let parts = parts.map(|part| (part.work, part.clone_in, part.clone_out));
        Flow::assemble(self.sketch, parts.collect(), code::clone_of::<In>, self.id)
    }

    pub(crate) fn edge<I, T, O>(&mut self, from: NodeRef<I, T>, to: NodeRef<T, O>, back: bool) {
        let ends = (self.place(from, "connect"), self.place(to, "connect to"));
        if let (Some(from), Some(to)) = ends {
            self.sketch.add_edge(EdgeSketch {
                from,
                to: End::Node(to),
                back,
                label: None,
            });
        }
    }

    fn add_call<I: Value, O: Value>(
        &mut self,
        name: String,
        kind: NodeKind,
        call: impl Call + 'static,
    ) -> NodeRef<I, O> {
        self.add_part(name, kind, Pending::Call(Arc::new(call)))
    }

    pub(crate) fn add_part<I: Value, O: Value>(
        &mut self,
        name: String,
        kind: NodeKind,
        work: Pending,
    ) -> NodeRef<I, O> {
        let ix = self.sketch.nodes.len();
        self.sketch.nodes.push(NodeSketch {
            name,
            kind,
            input: std::any::type_name::<I>(),
            output: std::any::type_name::<O>(),
            policy: NodePolicy::default(),
            policy_set: false,
            queue: None,
            ends: false,
            ingress: false,
            join: None,
            width: None,
            table: Vec::new(),
            subflow: None,
        });
        self.parts.push(Part {
            work,
            clone_in: code::clone_of::<I>,
            clone_out: code::clone_of::<O>,
            stored: DurableNode::default(),
        });
        NodeRef::new(NodeKey {
            builder: self.id,
            ix,
        })
    }

    /// The last node may end a branch.
    fn ends_branches(&mut self) {
        if let Some(node) = self.sketch.nodes.last_mut() {
            node.ends = true;
        }
    }

    /// The place of a node, if it is one of this builder.
    pub(crate) fn place<I, O>(&mut self, node: NodeRef<I, O>, to_do: &str) -> Option<usize> {
        let ours = node.key.builder == self.id && node.key.ix < self.sketch.nodes.len();
        if !ours {
            self.sketch.found.push(Problem {
                code: ProblemCode::ForeignNode,
                place: "the flow".to_owned(),
                message: format!("was asked to {to_do} a node of another builder"),
                hint: "use the references that this builder gave out; another flow goes in by b.subflow"
                    .to_owned(),
            });
        }
        ours.then_some(node.key.ix)
    }

    pub(crate) fn twice(&mut self, name: &str, what: &str) {
        self.sketch.found.push(Problem {
            code: ProblemCode::Twice,
            place: format!("node `{name}`"),
            message: format!("{what} is set twice"),
            hint: "set it once: which of them counts is not guessed".to_owned(),
        });
    }

    pub(crate) fn no_effect(&mut self, name: &str, message: &str, hint: &str) {
        self.sketch.found.push(Problem {
            code: ProblemCode::NoEffect,
            place: format!("node `{name}`"),
            message: message.to_owned(),
            hint: hint.to_owned(),
        });
    }
}
