//! Durable flows: saying that what a node hands on can be stored. A flow with a node of which nobody said so is not built.

use std::convert::Infallible;

use serde::{Serialize, de::DeserializeOwned};

use super::{
    builder::FlowBuilder,
    code::Value,
    describe::NodeKind,
    flow::Flow,
    plan::{Durable, DurableNode},
    problem::{BuildErrors, Problem, ProblemCode},
    refs::NodeRef,
};
use crate::{
    context::Context,
    error::NodeError,
    state::{Once, codec::Codec},
};

impl<In: Value, Out: Value> FlowBuilder<In, Out> {
    /// Says that what a node hands on can be stored, as JSON: needed for each node of a flow that is built by
    /// [`FlowBuilder::build_durable`], but for joins, switches and sinks, which make no values of their own.
    ///
    /// A type that cannot be stored does not compile:
    /// ```compile_fail,E0277
    /// # use volary_flow::graph::FlowBuilder;
    /// #[derive(Clone)]
    /// struct Opaque;
    /// let mut b = FlowBuilder::<u64, u64>::new("opaque");
    /// let a = b.node("a", |_: u64, _| async move { Ok(Opaque) });
    /// b.keep(a);
    /// ```
    pub fn keep<I, O>(&mut self, node: NodeRef<I, O>) -> &mut Self
    where
        O: Value + Serialize + DeserializeOwned,
    {
        if let Some(ix) = self.place(node, "keep the outputs of") {
            self.parts[ix].stored.output = Some(Codec::of::<O>());
        }
        self
    }

    /// Adds a node as [`FlowBuilder::node`] does, whose output can be stored.
    pub fn durable_node<I: Value, O, F, Fut>(
        &mut self,
        name: impl Into<String>,
        code: F,
    ) -> NodeRef<I, O>
    where
        O: Value + Serialize + DeserializeOwned,
        F: Fn(I, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<O, NodeError>> + Send + 'static,
    {
        let node = self.node(name, code);
        self.keep(node);
        node
    }

    /// Adds a node with an effect that must not be repeated: of each step an intent is stored before its first attempt, and a
    /// receipt when it is done. What is in doubt in between is settled as `once` says.
    ///
    /// It needs a flow that is run durable; run otherwise, only attempts of one life of the process know of each other, by
    /// [`Context::idempotency_key`].
    #[doc(alias = "commit_once")]
    pub fn once_node<I: Value, O, F, Fut>(
        &mut self,
        name: impl Into<String>,
        once: Once<O>,
        code: F,
    ) -> NodeRef<I, O>
    where
        O: Value + Serialize + DeserializeOwned,
        F: Fn(I, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<O, NodeError>> + Send + 'static,
    {
        let node = self.durable_node(name, code);
        if let Some(part) = self.parts.last_mut() {
            part.stored.once = Some(once.settle);
        }
        node
    }

    /// Checks the whole graph as [`FlowBuilder::build`] does, and that all its values can be stored: such a flow can be run
    /// with `RunConfig::durable`.
    ///
    /// # Errors
    /// All problems together, each with its place and a hint.
    ///
    /// # Examples
    /// ```
    /// use volary_flow::graph::{FlowBuilder, ProblemCode};
    ///
    /// let mut b = FlowBuilder::<u64, u64>::new("sums");
    /// let double = b.durable_node("double", |n: u64, _| async move { Ok(n * 2) });
    /// let add = b.node("add", |n: u64, _| async move { Ok(n + 1) });
    /// b.connect(double, add).ingress(double).egress(add);
    /// let errors = b.build_durable().unwrap_err();
    /// assert!(errors.has(ProblemCode::NotStored));
    /// assert!(errors.to_string().contains("node `add`"));
    /// ```
    pub fn build_durable(mut self) -> Result<Flow<In, Out>, BuildErrors>
    where
        In: Serialize + DeserializeOwned,
        Out: Serialize + DeserializeOwned,
    {
        let mut nodes = Vec::with_capacity(self.parts.len());
        for (node, part) in self.sketch.nodes.iter().zip(&self.parts) {
            let mut stored: DurableNode = part.stored.clone();
            stored.pure = node.kind == NodeKind::Switch;
            let valueless = node.output == std::any::type_name::<Infallible>()
                || matches!(node.kind, NodeKind::Join | NodeKind::Switch);
            if stored.output.is_none() && !valueless {
                self.sketch.found.push(Problem {
                    code: ProblemCode::NotStored,
                    place: format!("node `{}`", node.name),
                    message:
                        "is part of a durable flow, and nobody said that its output can be stored"
                            .to_owned(),
                    hint: "add it by b.durable_node, or say b.keep(node)".to_owned(),
                });
            }
            nodes.push(stored);
        }
        let durable = Durable {
            input: Codec::of::<In>(),
            output: Codec::of::<Out>(),
            nodes,
        };
        Ok(self.build()?.durable(durable))
    }
}
