//! Code with its types erased: what closures become in a plan.

use std::{
    marker::PhantomData,
    sync::Arc,
    task::{Context as Poller, Poll, ready},
};

use super::{
    plan::{Call, Payload, Returned, Room, Slot, Step},
    slot::Seat,
};
use crate::{
    context::Context,
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
pub(crate) struct Code<N, I, S> {
    node: N,
    step: S,
    input: PhantomData<fn(I)>,
}

impl<N, I, S> Code<N, I, S> {
    pub(crate) const fn new(node: N, step: S) -> Self {
        Self {
            node,
            step,
            input: PhantomData,
        }
    }
}

impl<N, I, S> Call for Code<N, I, S>
where
    N: Node<I>,
    I: Send + 'static,
    S: Fn(N::Out, Room) -> Step + Send + Sync + 'static,
{
    fn slot(self: Arc<Self>) -> Box<dyn Slot> {
        Box::new(CodeSlot {
            code: self,
            seat: Seat::default(),
            room: None,
        })
    }
}

/// Where attempts of code live.
struct CodeSlot<N: Node<I>, I, S> {
    code: Arc<Code<N, I, S>>,
    seat: Seat<N::Future>,
    /// What the input of an attempt that waits left for its output.
    room: Option<Room>,
}

impl<N, I, S> Slot for CodeSlot<N, I, S>
where
    N: Node<I>,
    I: Send + 'static,
    S: Fn(N::Out, Room) -> Step + Send + Sync,
{
    fn start(&mut self, input: Payload, context: Context, cx: &mut Poller<'_>) -> Poll<Returned> {
        let Some((input, room)) = input.take::<I>() else {
            return Poll::Ready(Err(mismatch::<I>().into()));
        };
        let attempt = self.code.node.call(input, context);
        let returned = self.seat.start(attempt, cx);
        if returned.is_pending() {
            self.room = Some(room);
            return Poll::Pending;
        }
        let step = &self.code.step;
        returned
            .map_ok(|output| step(output, room))
            .map_err(Box::new)
    }

    fn poll(&mut self, cx: &mut Poller<'_>) -> Poll<Returned> {
        let returned = ready!(self.seat.poll(cx));
        let Some(room) = self.room.take() else {
            return Poll::Pending;
        };
        let step = &self.code.step;
        let returned = returned.map(|output| step(output, room));
        Poll::Ready(returned.map_err(Box::new))
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
