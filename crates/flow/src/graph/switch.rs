//! Switches: choosing by the variant of an enum, each arm with the type of its variant.

use std::{future::ready, sync::Arc};

use super::{
    builder::{FlowBuilder, Pending},
    code::{Value, mismatch},
    describe::NodeKind,
    plan::{Call, Payload, Returned, Slot, Step},
    refs::NodeRef,
    sketch::{EdgeSketch, End},
    slot,
};

/// What a switch hands on: its arms have their own types, so nothing can be connected to the switch itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switched {}

/// Makes the function of an arm that takes one variant of an enum, the one field of it: see [`FlowBuilder::switch`].
#[macro_export]
macro_rules! variant {
    ($($path:ident)::+) => {
        |value| match value {
            $($path)::+(inner) => ::core::result::Result::Ok(inner),
            #[allow(unreachable_patterns, reason = "an enum may have one variant only")]
            other => ::core::result::Result::Err(other),
        }
    };
}

/// A switch under construction, made by [`FlowBuilder::switch`]: arms are tried in order.
#[must_use = "a switch is added by `done` or `otherwise`"]
pub struct Switch<'b, T, In, Out> {
    builder: &'b mut FlowBuilder<In, Out>,
    name: String,
    arms: Vec<Arm<T>>,
    edges: Vec<EdgeSketch>,
}

/// Takes a value apart, or gives it back.
type Take<T> = Box<dyn Fn(T) -> Result<Payload, T> + Send + Sync>;

/// An arm: what it takes, and which edge that goes to.
struct Arm<T> {
    take: Take<T>,
    edge: u16,
}

impl<In: Value, Out: Value> FlowBuilder<In, Out> {
    /// Adds a node that sends each value to the first arm that takes it, by the arm's own type.
    ///
    /// A value that no arm takes ends the trace with `NoSuchTarget`, unless a last arm takes all
    /// ([`Switch::otherwise`]).
    ///
    /// # Examples
    /// ```
    /// use volary_flow::{graph::FlowBuilder, variant};
    ///
    /// #[derive(Clone)]
    /// enum Event {
    ///     Order(u64),
    ///     Note(String),
    ///     Ping,
    /// }
    ///
    /// let mut b = FlowBuilder::new("events");
    /// let order = b.node("order", |cents: u64, _| async move { Ok(format!("{cents} cents")) });
    /// let note = b.node("note", |text: String, _| async move { Ok(text) });
    /// let other = b.node("other", |_: Event, _| async move { Ok("pong".to_owned()) });
    /// let kind = b
    ///     .switch("kind")
    ///     .arm("order", variant!(Event::Order), order)
    ///     .arm("note", variant!(Event::Note), note)
    ///     .otherwise(other);
    /// b.ingress(kind).egress(order).egress(note).egress(other);
    /// let flow = b.build()?;
    /// # Ok::<(), volary_flow::graph::BuildErrors>(())
    /// ```
    #[doc(alias = "union_router")]
    pub fn switch<T: Value>(&mut self, name: impl Into<String>) -> Switch<'_, T, In, Out> {
        Switch {
            builder: self,
            name: name.into(),
            arms: Vec::new(),
            edges: Vec::new(),
        }
    }
}

impl<T: Value, In: Value, Out: Value> Switch<'_, T, In, Out> {
    /// What `take` takes goes to the node; what it gives back is offered to the next arm. The label is shown in pictures.
    pub fn arm<U: Value, O>(
        self,
        label: impl Into<String>,
        take: impl Fn(T) -> Result<U, T> + Send + Sync + 'static,
        node: NodeRef<U, O>,
    ) -> Self {
        self.add(label.into(), take, node, false)
    }

    /// As [`Switch::arm`], over an edge that closes a cycle: see [`FlowBuilder::connect_back`].
    pub fn arm_back<U: Value, O>(
        self,
        label: impl Into<String>,
        take: impl Fn(T) -> Result<U, T> + Send + Sync + 'static,
        node: NodeRef<U, O>,
    ) -> Self {
        self.add(label.into(), take, node, true)
    }

    /// What no arm takes goes to this node. Adds the switch.
    pub fn otherwise<O>(self, node: NodeRef<T, O>) -> NodeRef<T, Switched> {
        self.arm("otherwise", Ok, node).done()
    }

    /// Adds the switch. What no arm takes ends the trace with `NoSuchTarget`.
    pub fn done(self) -> NodeRef<T, Switched> {
        let call = SwitchCall {
            name: self.name.clone(),
            arms: self.arms,
        };
        let work = Pending::Call(Arc::new(call));
        let node = self.builder.add_part(self.name, NodeKind::Switch, work);
        for edge in self.edges {
            let from = node.key.ix;
            self.builder.sketch.add_edge(EdgeSketch { from, ..edge });
        }
        node
    }

    fn add<U: Value, O>(
        mut self,
        label: String,
        take: impl Fn(T) -> Result<U, T> + Send + Sync + 'static,
        node: NodeRef<U, O>,
        back: bool,
    ) -> Self {
        let Some(to) = self.builder.place(node, "lead an arm to") else {
            return self;
        };
        let to = End::Node(to);
        let known = self
            .edges
            .iter()
            .position(|edge| edge.to == to && edge.back == back);
        let edge = known.unwrap_or(self.edges.len());
        match known.and_then(|known| self.edges[known].label.as_mut()) {
            Some(labels) => {
                labels.push_str(" | ");
                labels.push_str(&label);
            }
            None => self.edges.push(EdgeSketch {
                from: 0,
                to,
                back,
                label: Some(label),
            }),
        }
        let take = move |value| take(value).map(|inner| Payload::new(inner));
        // The graph's own bound on edges is checked by `build`, before any of these is used.
        let edge = u16::try_from(edge).unwrap_or(u16::MAX);
        self.arms.push(Arm {
            take: Box::new(take),
            edge,
        });
        self
    }
}

/// A switch as it runs.
struct SwitchCall<T> {
    name: String,
    arms: Vec<Arm<T>>,
}

impl<T: Value> SwitchCall<T> {
    fn choose(&self, mut value: T) -> Step {
        for arm in &self.arms {
            match (arm.take)(value) {
                Ok(inner) => return Step::One(arm.edge, inner),
                Err(back) => value = back,
            }
        }
        let name = &self.name;
        Step::NoSuchTarget(format!("`{name}` has no arm that takes this value"))
    }
}

impl<T: Value> Call for SwitchCall<T> {
    fn slot(self: Arc<Self>) -> Box<dyn Slot> {
        let step = move |input: Payload| -> Returned {
            let value = input.into_value::<T>().ok_or_else(mismatch::<T>)?;
            Ok(self.choose(value))
        };
        slot::of(move |input, _| ready(step(input)))
    }
}
