//! Nodes with an effect that must not be repeated: what to do when nobody knows whether it happened.

use std::{future::Future, pin::Pin, sync::Arc};

use crate::{error::NodeError, graph::plan::Payload};

/// Asks whether the effect with an idempotency key happened.
pub(crate) type Probe = Arc<
    dyn Fn(String) -> Pin<Box<dyn Future<Output = Result<Option<Payload>, NodeError>> + Send>>
        + Send
        + Sync,
>;

/// What to do with an effect that is in doubt.
#[derive(Clone)]
pub(crate) enum Settle {
    /// Ask.
    Probe(Probe),
    /// Run it again: whoever has the effect recognises the key.
    Again,
    /// Nothing can tell: a person decides.
    Park,
}

/// Says of a node of a durable flow that its effect must happen once.
///
/// Before an attempt an intent is stored, after it the receipt. When a process ends in between (or an attempt is dropped
/// by its timeout or panics), the effect is *in doubt*, and what is said here settles it.
///
/// The idempotency key is [`crate::Context::idempotency_key`]: the same in every attempt and every life.
pub struct Once<O> {
    pub(crate) settle: Settle,
    output: std::marker::PhantomData<fn() -> O>,
}

impl<O: Send + 'static> Once<O> {
    /// `probe(key)` finds out: the node's output if the effect happened, `None` if it did not. An error is tried again by the
    /// node's retry policy, and when that is used up the trace is parked.
    pub fn probe<F, Fut>(probe: F) -> Self
    where
        F: Fn(String) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Option<O>, NodeError>> + Send + 'static,
    {
        let probe: Probe = Arc::new(move |key| {
            let asked = probe(key);
            Box::pin(async move { Ok(asked.await?.map(Payload::new)) })
        });
        Self::of(Settle::Probe(probe))
    }

    /// The effect recognises its key and does nothing the second time: it is run again.
    pub fn idempotent() -> Self {
        Self::of(Settle::Again)
    }

    /// Nothing can tell: the trace ends [`crate::FlowErrorCode::InDoubt`] and is parked for a person.
    pub fn park() -> Self {
        Self::of(Settle::Park)
    }

    const fn of(settle: Settle) -> Self {
        Self {
            settle,
            output: std::marker::PhantomData,
        }
    }
}
