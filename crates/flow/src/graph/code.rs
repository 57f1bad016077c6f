//! Code with its types erased: what closures become in a plan.

use std::{any::Any, future, marker::PhantomData};

use futures_util::TryFutureExt as _;

use super::plan::{Call, Payload, Step};
use crate::{
    context::Context,
    engine::Slot,
    error::NodeError,
    node::{Emit, Node},
};

/// What travels over an edge: cloned for branches and further attempts. Large values belong into an `Arc`.
///
/// Every such type implements it; it only shortens bounds.
pub trait Value: Clone + Send + 'static + sealed::Sealed {}
impl<T: Clone + Send + 'static> Value for T {}

mod sealed {
    pub trait Sealed {}
    impl<T: Clone + Send + 'static> Sealed for T {}
}

/// A node whose result becomes a step by `step`.
pub(crate) struct Code<N, I, M> {
    node: N,
    step: fn(M) -> Step,
    input: PhantomData<fn(I)>,
}

impl<N, I, M> Code<N, I, M> {
    pub(crate) const fn new(node: N, step: fn(M) -> Step) -> Self {
        Self {
            node,
            step,
            input: PhantomData,
        }
    }
}

impl<N, I> Call for Code<N, I, N::Out>
where
    N: Node<I>,
    N::Out: 'static,
    I: Send + 'static,
{
    fn start(&self, input: Payload, context: Context, slot: &mut Slot) {
        match input.downcast::<I>() {
            Ok(input) => slot.set(self.node.call(*input, context).map_ok(self.step)),
            Err(_) => slot.set(future::ready(Err(mismatch::<I>()))),
        }
    }
}

/// What cannot happen, as the types were checked when the graph was built, and is an error all the same.
pub(crate) fn mismatch<I>() -> NodeError {
    let wanted = std::any::type_name::<I>();
    NodeError::permanent(format!("a value arrived that is no {wanted}"))
}

/// Clones a payload that is a `T`.
pub(crate) fn clone_of<T: Clone + Send + 'static>(value: &(dyn Any + Send)) -> Payload {
    match value.downcast_ref::<T>() {
        Some(value) => Box::new(value.clone()),
        // Unreachable, and refused by whoever takes it.
        None => Box::new(()),
    }
}

pub(crate) fn one<O: Send + 'static>(output: O) -> Step {
    Step::Next(Box::new(output))
}

pub(crate) fn perhaps<O: Send + 'static>(output: Option<O>) -> Step {
    output.map_or(Step::Nothing, one)
}

pub(crate) fn each<O: Send + 'static>(outputs: Vec<O>) -> Step {
    if outputs.is_empty() {
        return Step::Nothing;
    }
    let erase = |output| Box::new(output) as Payload;
    Step::Each(outputs.into_iter().map(erase).collect())
}

pub(crate) fn emit<O: Send + 'static, A: Send + 'static>(emit: Emit<O, A>) -> Step {
    match emit {
        Emit::Next(output) => one(output),
        Emit::Each(outputs) => each(outputs),
        Emit::Nothing => Step::Nothing,
        Emit::Finish(answer) => Step::Finish(Box::new(answer)),
    }
}

pub(crate) fn nothing((): ()) -> Step {
    Step::Nothing
}
