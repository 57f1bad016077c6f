//! Code with its types erased: what closures become in a plan.

use std::{future, marker::PhantomData};

use futures_util::FutureExt as _;

use super::plan::{Call, Payload, Room, Step};
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
    step: fn(M, Room) -> Step,
    input: PhantomData<fn(I)>,
}

impl<N, I, M> Code<N, I, M> {
    pub(crate) const fn new(node: N, step: fn(M, Room) -> Step) -> Self {
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
        let step = self.step;
        match input.take::<I>() {
            Some((input, room)) => {
                let attempt = self.node.call(input, context);
                slot.set(attempt.map(move |returned| match returned {
                    Ok(output) => Ok(step(output, room)),
                    Err(error) => Err(Box::new(error)),
                }));
            }
            None => slot.set(future::ready(Err(mismatch::<I>().into()))),
        }
    }
}

/// What cannot happen, as the types were checked when the graph was built, and is an error all the same.
pub(crate) fn mismatch<I>() -> NodeError {
    let wanted = std::any::type_name::<I>();
    NodeError::permanent(format!("a value arrived that is no {wanted}"))
}

/// Clones a payload that is a `T`.
pub(crate) fn clone_of<T: Clone + Send + 'static>(value: &Payload) -> Payload {
    match value.get::<T>() {
        Some(value) => Payload::new(value.clone()),
        // Unreachable, and refused by whoever takes it.
        None => Payload::new(()),
    }
}

pub(crate) fn one<O: Send + 'static>(output: O, room: Room) -> Step {
    Step::Next(room.fill(output))
}

pub(crate) fn perhaps<O: Send + 'static>(output: Option<O>, room: Room) -> Step {
    output.map_or(Step::Nothing, |output| one(output, room))
}

pub(crate) fn each<O: Send + 'static>(outputs: Vec<O>, _: Room) -> Step {
    if outputs.is_empty() {
        return Step::Nothing;
    }
    Step::Each(outputs.into_iter().map(Payload::new).collect())
}

pub(crate) fn emit<O: Send + 'static, A: Send + 'static>(emit: Emit<O, A>, room: Room) -> Step {
    match emit {
        Emit::Next(output) => one(output, room),
        Emit::Each(outputs) => each(outputs, room),
        Emit::Nothing => Step::Nothing,
        Emit::Finish(answer) => Step::Finish(room.fill(answer)),
    }
}

pub(crate) fn nothing((): (), _: Room) -> Step {
    Step::Nothing
}
