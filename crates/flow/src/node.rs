//! What a node is: the seam that closures implement.

use std::future::Future;

use crate::{context::Context, error::NodeError};

/// A step of a flow.
///
/// Contract: `call` is run once per attempt, several at once up to the concurrency of its policy; it may be dropped at any
/// await point (cancel, timeout, deadline, stop), so what must not be torn belongs into one await or a commit-once node. It
/// must not block its thread: a node that does is named by the flow's health. A panic is an error of this attempt and
/// nothing more. What it returns travels on only when it succeeds.
///
/// Closures and functions implement it: `async fn double(n: u64, _: Context) -> Result<u64, NodeError>`.
pub trait Node<I>: Send + Sync + 'static {
    /// What it hands on.
    type Out;
    /// One attempt.
    type Future: Future<Output = Result<Self::Out, NodeError>> + Send + 'static;

    /// Starts an attempt.
    fn call(&self, input: I, context: Context) -> Self::Future;
}

impl<F, Fut, I, O> Node<I> for F
where
    F: Fn(I, Context) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<O, NodeError>> + Send + 'static,
{
    type Out = O;
    type Future = Fut;

    fn call(&self, input: I, context: Context) -> Fut {
        self(input, context)
    }
}

/// What a step hands on, where one value to every successor is not the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Emit<O, A = std::convert::Infallible> {
    /// One value, to every successor.
    Next(O),
    /// Several values in order, each to every successor.
    Each(Vec<O>),
    /// Nothing: this branch of the trace ends here.
    Nothing,
    /// The final answer: it is yielded, and the trace is done, whatever else of it is under way.
    #[doc(alias = "FinalAnswer")]
    Finish(A),
}
