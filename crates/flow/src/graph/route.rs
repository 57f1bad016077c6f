//! Routers: nodes that choose which of their successors get a value.

use std::{borrow::Cow, marker::PhantomData, sync::Arc};

use futures_util::future::{BoxFuture, Either, Ready, ready};
use smallvec::{SmallVec, smallvec};

use super::{
    builder::{FlowBuilder, Pending},
    check::listing,
    code::{Value, mismatch},
    describe::NodeKind,
    plan::{Call, Payload, Returned, Slot, Step},
    refs::{NodeKey, NodeRef},
    slot,
    table::TablePolicy,
};
use crate::{context::Context, error::NodeError};

/// Where a router sends a `T`: to successors of the router that take a `T`.
///
/// # Examples
/// ```
/// use volary_flow::graph::{FlowBuilder, Route};
/// let mut b = FlowBuilder::new("sizes");
/// let small = b.node("small", |n: u64, _| async move { Ok(format!("{n} is small")) });
/// let large = b.node("large", |n: u64, _| async move { Ok(format!("{n} is large")) });
/// let size = b.route("size", move |n: &u64, _| match n {
///     0 => Route::nothing(),
///     1..10 => Route::to(small),
///     10..100 => Route::to(small).and(large),
///     _ => Route::named("large"),
/// });
/// b.connect(size, small).connect(size, large);
/// b.ingress(size).egress(small).egress(large);
/// let flow = b.build()?;
/// # Ok::<(), volary_flow::graph::BuildErrors>(())
/// ```
pub struct Route<T> {
    choice: Choice,
    types: PhantomData<fn(T)>,
}

enum Choice {
    All,
    Some(SmallVec<[Target; 2]>),
}

enum Target {
    Node(NodeKey),
    Name(Cow<'static, str>),
}

impl<T> Route<T> {
    /// To this node.
    pub fn to<O>(node: NodeRef<T, O>) -> Self {
        Self::some(smallvec![Target::Node(node.key)])
    }

    /// To the successor of this name; `egress` is the way out of the flow.
    pub fn named(name: impl Into<Cow<'static, str>>) -> Self {
        Self::some(smallvec![Target::Name(name.into())])
    }

    /// To the successors of these names; none is [`Route::nothing`].
    pub fn names<N: Into<Cow<'static, str>>>(names: impl IntoIterator<Item = N>) -> Self {
        let targets = names.into_iter().map(|name| Target::Name(name.into()));
        Self::some(targets.collect())
    }

    /// Out of the flow: the router must be an egress.
    pub fn egress() -> Self {
        Self::named(super::sketch::EGRESS)
    }

    /// To every successor, the egress included.
    pub const fn all() -> Self {
        Self {
            choice: Choice::All,
            types: PhantomData,
        }
    }

    /// To nobody: this branch of the trace ends here.
    pub fn nothing() -> Self {
        Self::some(SmallVec::new())
    }

    /// And to this node.
    #[must_use]
    pub fn and<O>(self, node: NodeRef<T, O>) -> Self {
        self.with(Target::Node(node.key))
    }

    /// And to the successor of this name.
    #[must_use]
    pub fn and_named(self, name: impl Into<Cow<'static, str>>) -> Self {
        self.with(Target::Name(name.into()))
    }

    const fn some(targets: SmallVec<[Target; 2]>) -> Self {
        Self {
            choice: Choice::Some(targets),
            types: PhantomData,
        }
    }

    fn with(mut self, target: Target) -> Self {
        if let Choice::Some(targets) = &mut self.choice {
            targets.push(target);
        }
        self
    }
}

/// What a [`RoutePolicy`] makes of a router's choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// As the router proposed.
    Accept,
    /// To the successors of these names instead; it may name fewer, more, or others than proposed.
    Only(Vec<String>),
    /// To nobody: this branch of the trace ends here.
    Drop,
}

impl Decision {
    /// To the successor of this name only.
    pub fn only(name: impl Into<String>) -> Self {
        Self::Only(vec![name.into()])
    }
}

/// What a [`RoutePolicy`] decides on.
#[doc(alias = "RoutingRequest")]
#[derive(Debug, Clone)]
pub struct RouteRequest<T> {
    /// The value.
    pub payload: T,
    /// Its surroundings: tenant, topic, trace, facts, and the router as the node.
    pub context: Context,
    /// Names of the successors that the router chose, in the order of connecting; `egress` is the way out.
    pub proposed: Vec<String>,
}

/// Narrows or drops what a router proposes: the same graph, other routes per deployment or tenant. Cheap to clone.
///
/// # Examples
/// ```
/// use volary_flow::graph::{Decision, RoutePolicy};
/// let cheap = RoutePolicy::<String>::new(|request| match request.payload.len() {
///     0 => Decision::Drop,
///     1..100 => Decision::Accept,
///     _ => Decision::only("summary"),
/// });
/// ```
#[doc(alias = "DictRoutingPolicy")]
pub struct RoutePolicy<T>(PolicyKind<T>);

enum PolicyKind<T> {
    Now(Arc<DecideNow<T>>),
    Later(Arc<DecideLater<T>>),
    Table(TablePolicy<T>),
}

type DecideNow<T> = dyn Fn(&RouteRequest<T>) -> Decision + Send + Sync;
type DecideLater<T> =
    dyn Fn(RouteRequest<T>) -> BoxFuture<'static, Result<Decision, NodeError>> + Send + Sync;

impl<T> RoutePolicy<T> {
    /// Decides at once.
    pub fn new(decide: impl Fn(&RouteRequest<T>) -> Decision + Send + Sync + 'static) -> Self {
        Self(PolicyKind::Now(Arc::new(decide)))
    }

    /// Decides by asking somebody: it gets a clone of the value. Its failure is a failure of the router's attempt, to which
    /// the router's [`NodePolicy`](crate::policy::NodePolicy) applies.
    pub fn new_async<F, Fut>(decide: F) -> Self
    where
        F: Fn(RouteRequest<T>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Decision, NodeError>> + Send + 'static,
    {
        Self(PolicyKind::Later(Arc::new(move |request| {
            Box::pin(decide(request))
        })))
    }
}

impl<T> Clone for RoutePolicy<T> {
    fn clone(&self) -> Self {
        Self(match &self.0 {
            PolicyKind::Now(decide) => PolicyKind::Now(decide.clone()),
            PolicyKind::Later(decide) => PolicyKind::Later(decide.clone()),
            PolicyKind::Table(table) => PolicyKind::Table(table.clone()),
        })
    }
}

impl<T> From<TablePolicy<T>> for RoutePolicy<T> {
    fn from(table: TablePolicy<T>) -> Self {
        Self(PolicyKind::Table(table))
    }
}

impl<In: Value, Out: Value> FlowBuilder<In, Out> {
    /// Adds a node that sends each value to some of its successors, unchanged. See [`Route`] for an example.
    ///
    /// A route to what the router is not connected to ends the trace with `NoSuchTarget`.
    #[doc(alias = "predicate_router")]
    pub fn route<T: Value>(
        &mut self,
        name: impl Into<String>,
        choose: impl Fn(&T, &Context) -> Route<T> + Send + Sync + 'static,
    ) -> NodeRef<T, T> {
        self.add_router(name.into(), choose, None)
    }

    /// As [`FlowBuilder::route`], with a policy that has the last word.
    ///
    /// # Examples
    /// ```
    /// use volary_flow::graph::{FlowBuilder, Route, TablePolicy};
    /// let mut b = FlowBuilder::new("models");
    /// let fast = b.node("fast", |words: String, _| async move { Ok(words) });
    /// let good = b.node("good", |words: String, _| async move { Ok(words) });
    /// let table = TablePolicy::<String>::by(|request| Some(request.payload.len().to_string()))
    ///     .json(r#"{"1": "fast", "2": ["fast", "good"], "3": null}"#)?;
    /// let model = b.route_with("model", |_, _| Route::all(), table.clone());
    /// b.connect(model, fast).connect(model, good);
    /// b.ingress(model).egress(fast).egress(good);
    /// let flow = b.build()?;
    /// table.set_default(volary_flow::graph::Decision::only("good"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn route_with<T: Value>(
        &mut self,
        name: impl Into<String>,
        choose: impl Fn(&T, &Context) -> Route<T> + Send + Sync + 'static,
        policy: impl Into<RoutePolicy<T>>,
    ) -> NodeRef<T, T> {
        self.add_router(name.into(), choose, Some(policy.into()))
    }

    fn add_router<T: Value>(
        &mut self,
        name: String,
        choose: impl Fn(&T, &Context) -> Route<T> + Send + Sync + 'static,
        policy: Option<RoutePolicy<T>>,
    ) -> NodeRef<T, T> {
        let named = match &policy {
            Some(RoutePolicy(PolicyKind::Table(table))) => table.targets(),
            _ => Vec::new(),
        };
        let work = move |exits: Exits| -> Arc<dyn Call> {
            Arc::new(Router {
                choose,
                policy,
                exits: Arc::new(exits),
                types: PhantomData,
            })
        };
        let node = self.add_part(name, NodeKind::Route, Pending::Route(Box::new(work)));
        if let Some(sketch) = self.sketch.nodes.last_mut() {
            sketch.table = named;
        }
        node
    }
}

/// The edges of a router, as it may choose them; places are those in `PlanNode::out`.
#[derive(Debug, Default)]
pub(crate) struct Exits {
    /// The router.
    pub router: String,
    /// Where each edge leads: the node, if it is one, and its name.
    pub edges: Vec<(Option<NodeKey>, String)>,
}

/// Which edges to take.
type Edges = SmallVec<[u16; 2]>;

impl Exits {
    fn place(&self, target: &Target) -> Result<u16, String> {
        let wanted = |(key, name): &(Option<NodeKey>, String)| match target {
            Target::Node(node) => *key == Some(*node),
            Target::Name(wanted) => name == wanted,
        };
        let place = self.edges.iter().position(wanted);
        let place = place.and_then(|place| u16::try_from(place).ok());
        place.ok_or_else(|| {
            let router = &self.router;
            let leads: Vec<&str> = self.edges.iter().map(|(_, name)| name.as_str()).collect();
            let leads = listing(&leads);
            match target {
                Target::Node(_) => {
                    format!(
                        "`{router}` chose a node that it is not connected to; it leads to {leads}"
                    )
                }
                Target::Name(name) => {
                    format!(
                        "`{router}` chose `{name}`, to which it does not lead; it leads to {leads}"
                    )
                }
            }
        })
    }

    fn resolve<T>(&self, route: &Route<T>) -> Result<Edges, String> {
        match &route.choice {
            Choice::All => Ok((0..self.edges.len())
                .map_while(|n| n.try_into().ok())
                .collect()),
            Choice::Some(targets) => self.places(targets.iter()),
        }
    }

    /// In the order of connecting, each once.
    fn places<'a>(&self, targets: impl Iterator<Item = &'a Target>) -> Result<Edges, String> {
        let mut places = targets
            .map(|target| self.place(target))
            .collect::<Result<Edges, _>>()?;
        places.sort_unstable();
        places.dedup();
        Ok(places)
    }

    fn names(&self, edges: &Edges) -> Vec<String> {
        let name = |edge: &u16| self.edges[usize::from(*edge)].1.clone();
        edges.iter().map(name).collect()
    }

    fn decided(&self, proposed: Edges, decision: Decision) -> Result<Edges, String> {
        match decision {
            Decision::Accept => Ok(proposed),
            Decision::Drop => Ok(Edges::new()),
            Decision::Only(names) => {
                let targets: Vec<Target> = names
                    .into_iter()
                    .map(|name| Target::Name(name.into()))
                    .collect();
                self.places(targets.iter())
            }
        }
    }
}

/// A router as it runs.
struct Router<F, T> {
    choose: F,
    policy: Option<RoutePolicy<T>>,
    exits: Arc<Exits>,
    types: PhantomData<fn(T)>,
}

impl<F, T> Call for Router<F, T>
where
    F: Fn(&T, &Context) -> Route<T> + Send + Sync + 'static,
    T: Value,
{
    fn slot(self: Arc<Self>) -> Box<dyn Slot> {
        slot::of(move |input, context| self.attempt(input, context))
    }
}

impl<F, T> Router<F, T>
where
    F: Fn(&T, &Context) -> Route<T>,
    T: Value,
{
    /// Ready, or what waits for a decision.
    fn attempt(
        &self,
        input: Payload,
        context: Context,
    ) -> Either<Ready<Returned>, impl Future<Output = Returned> + Send + use<F, T>> {
        let at_once = |returned| Either::Left(ready(returned));
        let Some(value) = input.get::<T>() else {
            return at_once(Err(mismatch::<T>().into()));
        };
        let proposed = self.exits.resolve(&(self.choose)(value, &context));
        let (Ok(proposed), Some(policy)) = (&proposed, &self.policy) else {
            return at_once(Ok(send::<T>(input, proposed)));
        };
        let request = RouteRequest {
            payload: value.clone(),
            context,
            proposed: self.exits.names(proposed),
        };
        let (proposed, exits) = (proposed.clone(), self.exits.clone());
        match &policy.0 {
            PolicyKind::Later(decide) => {
                let decision = decide(request);
                Either::Right(async move {
                    let edges = exits.decided(proposed, decision.await?);
                    Ok(send::<T>(input, edges))
                })
            }
            PolicyKind::Now(decide) => {
                let edges = exits.decided(proposed, decide(&request));
                at_once(Ok(send::<T>(input, edges)))
            }
            PolicyKind::Table(table) => {
                let edges = exits.decided(proposed, table.decide(&request));
                at_once(Ok(send::<T>(input, edges)))
            }
        }
    }
}

/// The value to each edge; the last gets it without a clone.
fn send<T: Value>(value: Payload, edges: Result<Edges, String>) -> Step {
    let edges = match edges {
        Ok(edges) => edges,
        Err(message) => return Step::NoSuchTarget(message),
    };
    let Some((last, others)) = edges.split_last() else {
        return Step::Nothing;
    };
    if others.is_empty() {
        return Step::One(*last, value);
    }
    let mut sent = Vec::with_capacity(edges.len());
    for edge in others {
        sent.push((*edge, super::code::clone_of::<T>(&value)));
    }
    sent.push((*last, value));
    Step::To(sent)
}
