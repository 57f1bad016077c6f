//! A started flow and the handles of its traces: the engine with its types put back.

use std::{
    fmt,
    future::poll_fn,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::Stream;
use volary_kernel::{Name, SharedClock, Tenant, TraceId};

use super::plan::Payload;
use crate::{
    engine::{self, Accepted, Depths, Engine, Keep, Read, Reader, TraceView, Tried},
    envelope::Envelope,
    error::EmitError,
    outcome::{CancelReport, Item, Outcome, StopReport},
};

/// A started flow. Cheap to clone; when the last clone is dropped it stops at once, without waiting.
pub struct RunningFlow<In, Out> {
    pub(crate) core: Core,
    types: PhantomData<fn(In) -> Out>,
}

/// An engine and those of the sub-flows it started.
#[derive(Clone)]
pub(crate) struct Core {
    pub engine: Engine,
    pub children: Arc<[Core]>,
    pub clock: SharedClock,
}

/// Why a call gave no result.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// It was not accepted; nothing of it happened.
    #[error(transparent)]
    Refused(#[from] EmitError),
    /// The trace ended otherwise, or is done without a value.
    #[error("{}", ended(.0))]
    Ended(Outcome),
}

fn ended(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Failed(error) => error.to_string(),
        Outcome::Done => "the trace is done and yielded no value".to_owned(),
        other => format!("the trace ended as {}", other.as_str()),
    }
}

impl<In, Out> Clone for RunningFlow<In, Out> {
    fn clone(&self) -> Self {
        Self::new(self.core.clone())
    }
}

impl<In, Out> fmt::Debug for RunningFlow<In, Out> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunningFlow").finish_non_exhaustive()
    }
}

impl<In, Out> RunningFlow<In, Out> {
    pub(crate) const fn new(core: Core) -> Self {
        Self {
            core,
            types: PhantomData,
        }
    }

    /// The handle of a trace that was emitted elsewhere, or whose handle was dropped.
    ///
    /// None: unknown, of another tenant, expired, or read already.
    pub fn fetch(&self, trace_id: TraceId, tenant: &Tenant) -> Option<TraceHandle<Out>> {
        let reader = self.core.engine.fetch(trace_id, tenant);
        reader.map(TraceHandle::new)
    }

    /// Ends a trace as cancelled, and the sub-flows it called with it; tells what that stopped.
    ///
    /// An unknown trace, one that has ended and one of another tenant look the same: nothing was cancelled.
    pub fn cancel(&self, trace_id: TraceId, tenant: &Tenant) -> CancelReport {
        self.core.engine.cancel(trace_id, tenant)
    }

    /// Holds what of a trace is not running yet; see [`Context::pause`](crate::Context::pause). False if there is no such
    /// trace of this tenant, or it is held already.
    pub fn pause(&self, trace_id: TraceId, tenant: &Tenant) -> bool {
        self.core.engine.pause(trace_id, tenant)
    }

    /// Lets a paused trace go on. False if there is no such trace of this tenant, or it is not held.
    pub fn resume(&self, trace_id: TraceId, tenant: &Tenant) -> bool {
        self.core.engine.resume(trace_id, tenant)
    }

    /// Traces that live, oldest first and at most so many: looked at one after the other, while they go on. Those that
    /// sub-flows work on are not among them.
    pub fn traces(&self, most: usize) -> Vec<TraceView> {
        self.core.engine.traces(most)
    }

    /// What waits and runs where.
    #[doc(alias = "queue_depth")]
    pub fn depths(&self) -> Depths {
        self.core.engine.depths()
    }

    /// Nodes that hold their thread for longer than [`Limits::blocked_after`](crate::Limits::blocked_after), and for how long:
    /// for the health of whoever runs the flow. Those of sub-flows are not among them.
    pub fn blocked(&self) -> Vec<(Name, Duration)> {
        self.core.engine.blocked()
    }

    /// Accepts nothing more, drains for up to `limit`, ends the rest as dropped, and stops the sub-flows. A second stop waits
    /// for the first.
    ///
    /// A node may stop the flow that it is part of: its own attempt is then what does not drain, and is dropped with this call
    /// when `limit` is over. Nobody gets that report; a second stop, from outside, gets one, and stops the sub-flows.
    pub async fn stop(&self, limit: Duration) -> StopReport {
        self.core.stop(limit).await
    }
}

impl Core {
    /// The flow first, as its nodes need the sub-flows to drain; then these, with what is left of the time.
    async fn stop(&self, limit: Duration) -> StopReport {
        let from = self.clock.mono();
        let mut report = self.engine.stop(limit).await;
        for child in self.children.iter() {
            let left = limit.saturating_sub(self.clock.mono() - from);
            let below = Box::pin(child.stop(left)).await;
            report.unfinished.extend(below.unfinished);
            report.blocked.extend(below.blocked);
        }
        report
    }
}

impl<In: Send + 'static, Out: Send + 'static> RunningFlow<In, Out> {
    /// Resolves when a durable flow has taken up what earlier lives of it left: from then on its traces can be fetched,
    /// cancelled and paused. At once for other flows. `emit` waits for it by itself. Cancel-safe.
    ///
    /// # Errors
    /// [`EmitError::Store`] if the flow cannot run durable: it was not built so, it runs on this store already, or what is
    /// stored cannot be read.
    pub async fn ready(&self) -> Result<(), EmitError> {
        self.core.engine.ready().await
    }

    /// Emits a payload into the flow, once there is room for its tenant. Cancel-safe: dropped means not accepted.
    ///
    /// A node may emit into its own flow and go on. If it waits, for room or for how that trace ends, it may wait for the slot
    /// that it holds: only a deadline bounds that. [`RunningFlow::emit_nowait`] does not wait for room.
    ///
    /// # Errors
    /// When it was not accepted; nothing of it happened.
    pub async fn emit(&self, envelope: Envelope<In>) -> Result<TraceHandle<Out>, EmitError> {
        let engine = &self.core.engine;
        let reader = match engine.try_emit(accepted(envelope), true)? {
            Tried::Accepted(reader) => reader,
            Tried::Later(later) => engine.emit_later(later).await?,
        };
        Ok(TraceHandle::new(reader))
    }

    /// As [`RunningFlow::emit`], if there is room now.
    ///
    /// # Errors
    /// [`EmitError::Full`] if there is none, and as `emit`.
    pub fn emit_nowait(&self, envelope: Envelope<In>) -> Result<TraceHandle<Out>, EmitError> {
        let reader = self.core.engine.emit_nowait(accepted(envelope))?;
        Ok(TraceHandle::new(reader))
    }

    /// Emits, waits for the end, and returns the first value. Dropping it does not end the trace; cancel does.
    ///
    /// In a node use [`Context::call`](crate::Context::call), which hands tenant, deadline and cancel down. This one knows its
    /// caller too and is refused where it could wait for itself for ever, as long as the node polls it: not in a task that
    /// the node spawned.
    ///
    /// # Errors
    /// When it was not accepted, or the trace did not end as done with a value. Of what a node calls also
    /// [`EmitError::CallsItself`] and [`EmitError::TooDeep`].
    pub async fn call(&self, envelope: Envelope<In>) -> Result<Out, CallError> {
        let accepted = Accepted {
            parent: engine::caller(),
            ..accepted(envelope)
        };
        let reader = self.core.engine.emit(accepted).await?;
        let handle = TraceHandle::new(reader);
        handle.result().await.map_err(CallError::Ended)
    }
}

fn accepted<In: Send + 'static>(envelope: Envelope<In>) -> Accepted {
    Accepted {
        payload: Payload::new(envelope.payload),
        headers: envelope.headers,
        trace_id: envelope.trace_id,
        deadline: envelope.deadline,
        meta: envelope.meta,
        parent: None,
    }
}

/// The reading end of a trace: its values and chunks, then its one outcome. Also a `Stream` of items.
///
/// Dropped before the end, the trace goes on, and what is unread stays fetchable for `Limits::result_ttl`.
pub struct TraceHandle<Out> {
    reader: Reader,
    types: PhantomData<fn() -> Out>,
}

impl<Out> fmt::Debug for TraceHandle<Out> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TraceHandle({})", self.reader.trace_id())
    }
}

impl<Out> TraceHandle<Out> {
    pub(crate) const fn new(reader: Reader) -> Self {
        Self {
            reader,
            types: PhantomData,
        }
    }

    /// The trace.
    pub fn trace_id(&self) -> TraceId {
        self.reader.trace_id()
    }
}

impl<Out: Send + 'static> TraceHandle<Out> {
    /// The next thing the trace yields; none once it has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<Item<Out>> {
        poll_fn(|cx| self.poll_item(cx)).await
    }

    /// How the trace ended, once it has; what it yields until then is thrown away.
    pub async fn outcome(mut self) -> Outcome {
        poll_fn(|cx| self.reader.poll_end(Keep::Nothing, cx)).await
    }

    /// The first value, once the trace is done. Given up before, by a timeout say, that value stays fetchable.
    ///
    /// # Errors
    /// How it ended otherwise; [`Outcome::Done`] if it is done without a value.
    pub async fn result(mut self) -> Result<Out, Outcome> {
        let end = poll_fn(|cx| self.reader.poll_end(Keep::First, cx)).await;
        match (end, self.reader.into_first().and_then(typed)) {
            (Outcome::Done, Some(value)) => Ok(value),
            (other, _) => Err(other),
        }
    }

    /// All values in order, once the trace is done. Given up before, those that came by then stay fetchable, and count as
    /// unread again: the trace fails where it yields more than `Limits::messages_per_trace` that nobody reads.
    ///
    /// # Errors
    /// How it ended otherwise.
    pub async fn values(mut self) -> Result<Vec<Out>, Outcome> {
        match poll_fn(|cx| self.reader.poll_end(Keep::All, cx)).await {
            Outcome::Done => Ok(self.reader.into_values().filter_map(typed).collect()),
            other => Err(other),
        }
    }

    fn poll_item(&mut self, cx: &mut Context<'_>) -> Poll<Option<Item<Out>>> {
        self.poll_read(cx).map(Result::ok)
    }

    /// The next thing the trace yields, or how it ended, which it says again when asked again.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Item<Out>, Outcome>> {
        loop {
            match ready!(self.reader.poll_next(cx)) {
                Read::Value(payload) => {
                    if let Some(value) = typed(payload) {
                        return Poll::Ready(Ok(Item::Value(value)));
                    }
                }
                Read::Chunk(chunk) => return Poll::Ready(Ok(Item::Chunk(*chunk))),
                Read::End(outcome) => return Poll::Ready(Err(outcome)),
            }
        }
    }
}

/// The value of a payload; always one, as the types were checked when the graph was built.
fn typed<Out: 'static>(payload: Payload) -> Option<Out> {
    payload.into_value()
}

impl<Out: Send + 'static> Stream for TraceHandle<Out> {
    type Item = Item<Out>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Item<Out>>> {
        self.poll_item(cx)
    }
}
