//! Pieces of streams: numbered, in order, held back until they are read.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use parking_lot::MutexGuard;

use super::trace::{Cell, Trace, Yield};
use crate::{
    context::{ChunkSpec, numbered},
    error::NodeError,
    outcome::{DropReason, Outcome},
};

/// Most unfinished streams of one trace.
const STREAMS: usize = 64;

/// Yields `chunk`, once there is room for it.
pub(crate) fn poll_chunk(
    trace: &Arc<Trace>,
    chunk: &mut Option<ChunkSpec>,
    cx: &mut Context<'_>,
) -> Poll<Result<(), NodeError>> {
    let limit = trace.shared().limits.chunks_per_trace.max(1);
    let mut cell = trace.cell.lock();
    if cell.outcome.is_some() {
        return Poll::Ready(Err(NodeError::permanent("the trace has ended")));
    }
    if cell.chunks as usize >= limit {
        return wait(trace, cell, cx);
    }
    let Some(chunk) = chunk.take() else {
        return Poll::Ready(Ok(()));
    };
    let key = chunk.stream_id.clone().unwrap_or_default();
    let Some(seq) = next_number(&mut cell, key, chunk.done) else {
        let message = format!("more than {STREAMS} unfinished streams in one trace");
        return Poll::Ready(Err(NodeError::permanent(message)));
    };
    cell.push(Yield::Chunk(Box::new(numbered(chunk, trace.id, seq))));
    let reader = cell.reader.take();
    drop(cell);
    if let Some(reader) = reader {
        reader.wake();
    }
    Poll::Ready(Ok(()))
}

/// Waits until the reader has read some. Nobody waits for a reader that is gone: the trace ends, so that others move on.
fn wait(
    trace: &Arc<Trace>,
    mut cell: MutexGuard<'_, Cell>,
    cx: &mut Context<'_>,
) -> Poll<Result<(), NodeError>> {
    if cell.attached {
        let writers = &mut cell.rare().writers;
        if !writers.iter().any(|writer| writer.will_wake(cx.waker())) {
            writers.push(cx.waker().clone());
        }
        return Poll::Pending;
    }
    drop(cell);
    let reason = DropReason::Abandoned;
    let shared = trace.shared();
    let outcome = Outcome::Dropped { reason };
    shared.write(|pen| shared.end(pen, trace, outcome, None, shared.now()));
    Poll::Ready(Err(NodeError::permanent("nobody reads the trace")))
}

/// The number of the next piece of a stream; `None` if there are too many streams.
fn next_number(cell: &mut Cell, stream: String, done: bool) -> Option<u64> {
    let streams = &mut cell.rare().streams;
    let Some(at) = streams.iter().position(|(name, _)| *name == stream) else {
        if !done {
            if streams.len() >= STREAMS {
                return None;
            }
            streams.push((stream, 1));
        }
        return Some(0);
    };
    let seq = streams[at].1;
    if done {
        streams.swap_remove(at);
    } else {
        streams[at].1 += 1;
    }
    Some(seq)
}
