//! What an attempt may ask and do besides returning a value.

use std::{fmt, future::poll_fn, sync::Arc, task::Poll, time::Duration};

use volary_kernel::{Mono, Name, Tenant, TraceId};

use crate::{
    engine::{Spot, Trace},
    envelope::{Headers, Meta},
    error::NodeError,
    graph::plan::NodeIx,
    observe::trace_context::TraceParent,
    stream::StreamChunk,
};

/// The surroundings of one attempt of a node. Cheap to clone; outliving the attempt is harmless.
#[derive(Clone)]
pub struct Context {
    trace: Arc<Trace>,
    node: NodeIx,
    attempt: u32,
    step: u64,
}

/// A piece of a stream, before it is numbered.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ChunkSpec {
    /// Which stream of the trace; none is the one that is named by the trace's id.
    pub stream_id: Option<String>,
    /// The piece.
    pub text: String,
    /// Whether it is the last of its stream: the next begins at 0 again.
    pub done: bool,
    /// Facts about this piece.
    pub meta: Meta,
}

impl Context {
    pub(crate) const fn new(trace: Arc<Trace>, node: NodeIx, attempt: u32, step: u64) -> Self {
        Self {
            trace,
            node,
            attempt,
            step,
        }
    }

    /// The trace.
    pub fn trace_id(&self) -> TraceId {
        self.trace.id
    }

    /// Whose it is.
    pub fn tenant(&self) -> &Tenant {
        &self.trace.headers.tenant
    }

    /// Its headers.
    pub fn headers(&self) -> &Headers {
        &self.trace.headers
    }

    /// Facts about it.
    pub fn meta(&self) -> &Meta {
        &self.trace.meta
    }

    /// The node that runs.
    pub fn node(&self) -> &Name {
        &self.trace.shared().plan.nodes[usize::from(self.node)].name
    }

    /// The flow.
    pub fn flow(&self) -> &Name {
        &self.trace.shared().plan.name
    }

    /// Which attempt of this step runs, from 1.
    pub const fn attempt(&self) -> u32 {
        self.attempt
    }

    /// When the trace's deadline passes, on the flow's monotonic clock.
    pub fn deadline(&self) -> Option<Mono> {
        self.trace.deadline
    }

    /// What is left of the trace's deadline; zero once it passed.
    pub fn remaining(&self) -> Option<Duration> {
        let deadline = self.trace.deadline?;
        Some(deadline - self.trace.shared().now())
    }

    /// Whether the trace has ended, by whatever: what this attempt returns will go nowhere.
    pub fn is_cancelled(&self) -> bool {
        self.trace.has_ended()
    }

    /// Resolves when the trace has ended: for work that this attempt handed to somebody else. The attempt itself is dropped
    /// then. Cancel-safe.
    pub async fn cancelled(&self) {
        let mut waiting = Waiting {
            trace: &self.trace,
            token: None,
        };
        poll_fn(|cx| {
            let mut cell = self.trace.cell.lock();
            if let Some(token) = waiting.token.take() {
                cell.unpark(token);
            }
            if cell.outcome.is_some() {
                return Poll::Ready(());
            }
            waiting.token = Some(cell.park(cx.waker().clone(), Spot::Watches));
            Poll::Pending
        })
        .await;
    }

    /// The key of this step's effect, the same in every attempt and after a restart: `trace/node/step`.
    ///
    /// The step is 0 where a message comes through a node once. Where a trace has several on their way to a node (branches,
    /// several values of one step, cycles), it is a number made from the path, so that it does not depend on who is faster.
    #[doc(alias = "idempotency")]
    pub fn idempotency_key(&self) -> String {
        format!("{}/{}/{:x}", self.trace.id, self.node(), self.step)
    }

    /// What this node tells those whom it calls on behalf of the trace, as the W3C header `traceparent` (by `to_string`).
    pub fn traceparent(&self) -> TraceParent {
        TraceParent::outgoing(self.trace.id, self.flow(), &self.trace.meta)
    }

    /// Yields a piece of the trace's stream; see [`Context::chunk_of`].
    ///
    /// # Errors
    /// When the trace has ended.
    pub async fn chunk(&self, text: impl Into<String>) -> Result<(), NodeError> {
        self.chunk_of(ChunkSpec {
            text: text.into(),
            ..ChunkSpec::default()
        })
        .await
    }

    /// Yields a piece of a stream to whoever reads the trace, at once: pieces of an attempt that fails later were yielded,
    /// and the next attempt goes on counting. Waits while `Limits::chunks_per_trace` are unread; if so many are and there is
    /// no reader any more, the trace ends as abandoned, so that it holds nobody up. Cancel-safe: dropped means not yielded.
    ///
    /// # Errors
    /// When the trace has ended, or has too many unfinished streams.
    pub async fn chunk_of(&self, chunk: ChunkSpec) -> Result<(), NodeError> {
        let mut chunk = Some(chunk);
        poll_fn(|cx| crate::engine::poll_chunk(&self.trace, &mut chunk, cx)).await
    }

    /// Holds the trace after this step, until somebody resumes it. Its deadline goes on; a wait of its joins that is over
    /// meanwhile begins again then.
    pub fn pause(&self) {
        crate::engine::pause(&self.trace);
    }

    pub(crate) const fn trace(&self) -> &Arc<Trace> {
        &self.trace
    }

    pub(crate) const fn step(&self) -> u64 {
        self.step
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("trace_id", &self.trace.id)
            .field("node", self.node())
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

struct Waiting<'a> {
    trace: &'a Arc<Trace>,
    token: Option<u32>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(token) = self.token {
            self.trace.cell.lock().unpark(token);
        }
    }
}

/// Numbers a piece.
pub(crate) fn numbered(chunk: ChunkSpec, trace: TraceId, seq: u64) -> StreamChunk {
    StreamChunk {
        stream_id: chunk.stream_id.unwrap_or_else(|| trace.to_string()),
        seq,
        text: chunk.text,
        done: chunk.done,
        meta: chunk.meta,
    }
}
