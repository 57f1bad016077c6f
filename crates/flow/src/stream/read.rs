//! Reading a trace as a stream of pieces.

use std::{
    collections::HashSet,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_util::Stream;

use super::StreamChunk;
use crate::{
    graph::TraceHandle,
    outcome::{Item, Outcome},
};

/// What [`stream_flow`] reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Until {
    /// Pieces, until all streams that began have ended. Default.
    #[default]
    Done,
    /// As `Done`, and values too: those before, and the first one that follows.
    Final,
    /// Everything, until the trace has ended.
    End,
}

/// The pieces of a trace, until its streams have ended: a stream that yields [`Item`]s.
///
/// It ends after the last piece of a stream if no other stream of the trace has begun and not ended. It also ends when the
/// trace does, whatever is missing; where that is not [`Outcome::Done`], the outcome is its last item, as an error. Dropping
/// it does not end the trace.
///
/// # Examples
/// ```no_run
/// # use futures_util::StreamExt as _;
/// # use volary_flow::{Item, graph::TraceHandle, stream::{Until, sse, stream_flow}};
/// # async fn f(handle: TraceHandle<String>) {
/// let mut pieces = stream_flow(handle, Until::Done);
/// while let Some(Ok(Item::Chunk(chunk))) = pieces.next().await {
///     let event = sse::encode(&chunk, None); // to the browser
/// #   drop(event);
/// }
/// # }
/// ```
pub fn stream_flow<Out: Send + 'static>(handle: TraceHandle<Out>, until: Until) -> FlowStream<Out> {
    FlowStream {
        handle,
        until,
        open: HashSet::new(),
        state: State::Reading,
    }
}

/// Made by [`stream_flow`].
#[derive(Debug)]
pub struct FlowStream<Out> {
    handle: TraceHandle<Out>,
    until: Until,
    /// Streams that began and have not ended; the engine bounds how many a trace may have.
    open: HashSet<String>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Reading,
    /// All streams have ended; one value may follow.
    Trailing,
    Ended,
}

impl<Out> FlowStream<Out> {
    /// What follows from a piece.
    fn took(&mut self, chunk: &StreamChunk) {
        if !chunk.done {
            if !self.open.contains(&chunk.stream_id) {
                self.open.insert(chunk.stream_id.clone());
            }
            self.state = State::Reading;
            return;
        }
        self.open.remove(&chunk.stream_id);
        if self.open.is_empty() {
            self.state = match self.until {
                Until::Done => State::Ended,
                Until::Final => State::Trailing,
                Until::End => State::Reading,
            };
        }
    }
}

impl<Out: Send + 'static> Stream for FlowStream<Out> {
    type Item = Result<Item<Out>, Outcome>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if this.state == State::Ended {
                return Poll::Ready(None);
            }
            match ready!(this.handle.poll_read(cx)) {
                Ok(Item::Chunk(chunk)) => {
                    this.took(&chunk);
                    return Poll::Ready(Some(Ok(Item::Chunk(chunk))));
                }
                Ok(Item::Value(_)) if this.until == Until::Done => {}
                Ok(value) => {
                    if this.state == State::Trailing {
                        this.state = State::Ended;
                    }
                    return Poll::Ready(Some(Ok(value)));
                }
                Err(outcome) => {
                    this.state = State::Ended;
                    return Poll::Ready((!outcome.is_done()).then_some(Err(outcome)));
                }
            }
        }
    }
}
