//! The reading end of a trace.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use volary_kernel::TraceId;

use super::trace::{Cell, Trace, Yield};
use crate::{graph::plan::Payload, outcome::Outcome, stream::StreamChunk};

/// What was read.
pub(crate) enum Read {
    Value(Payload),
    Chunk(Box<StreamChunk>),
    /// The end; read again and again after the first time.
    End(Outcome),
}

/// Which values [`Reader::poll_end`] keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    Nothing,
    First,
    All,
}

/// Reads one trace. Dropped before the end, what is unread stays fetchable for a while.
pub(crate) struct Reader {
    trace: Arc<Trace>,
    end: Option<Outcome>,
    /// The first value, read by [`Reader::poll_end`] and not given to anybody.
    first: Option<Payload>,
    /// As `first`, those after it.
    more: Vec<Payload>,
}

impl Reader {
    pub(crate) const fn new(trace: Arc<Trace>) -> Self {
        Self {
            trace,
            end: None,
            first: None,
            more: Vec::new(),
        }
    }

    /// The first value that [`Reader::poll_end`] kept.
    pub(crate) fn into_first(mut self) -> Option<Payload> {
        self.first.take()
    }

    /// What [`Reader::poll_end`] kept.
    pub(crate) fn into_values(mut self) -> impl Iterator<Item = Payload> {
        let more = std::mem::take(&mut self.more);
        self.first.take().into_iter().chain(more)
    }

    pub(crate) fn trace_id(&self) -> TraceId {
        self.trace.id
    }

    /// The next thing the trace yields, its outcome last. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Read {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`Reader::next`].
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Read> {
        if let Some(end) = &self.end {
            return Poll::Ready(Read::End(end.clone()));
        }
        let mut cell = self.trace.cell.lock();
        match cell.pop() {
            Some(Yield::Value(payload)) => return Poll::Ready(Read::Value(payload)),
            Some(Yield::Chunk(chunk)) => {
                let writers = writers_of(&mut cell);
                drop(cell);
                for writer in writers {
                    writer.wake();
                }
                return Poll::Ready(Read::Chunk(chunk));
            }
            None => {}
        }
        let Some(outcome) = end_of(&mut cell, cx) else {
            return Poll::Pending;
        };
        drop(cell);
        self.over();
        self.end = Some(outcome.clone());
        Poll::Ready(Read::End(outcome))
    }

    /// How the trace ended; of what it yields until then values are kept as `keep` says, the rest is thrown away. As
    /// [`Reader::next`] up to the end, and cheaper: most traces are read like this, once, after they ended.
    pub(crate) fn poll_end(&mut self, keep: Keep, cx: &mut Context<'_>) -> Poll<Outcome> {
        if let Some(end) = &self.end {
            return Poll::Ready(end.clone());
        }
        let mut cell = self.trace.cell.lock();
        if self.first.is_none() && keep != Keep::Nothing {
            self.first = cell.take_only();
        }
        let others = cell
            .has_unread()
            .then(|| (cell.take_unread(), writers_of(&mut cell)));
        let end = end_of(&mut cell, cx);
        drop(cell);
        if let Some((unread, writers)) = others {
            // What is thrown away is dropped outside the lock: its drop is code of a user.
            match keep {
                Keep::Nothing => drop(unread),
                Keep::First => unread.sift(&mut self.first, None),
                Keep::All => unread.sift(&mut self.first, Some(&mut self.more)),
            }
            for writer in writers {
                writer.wake();
            }
        }
        let Some(outcome) = end else {
            return Poll::Pending;
        };
        self.over();
        self.end = Some(outcome.clone());
        Poll::Ready(outcome)
    }

    /// The end was read.
    fn over(&self) {
        self.trace.shared().index.remove(&self.trace);
        self.trace.shared().forget_end(&self.trace);
    }
}

/// How a trace ended; if it has not, its reader is woken then.
fn end_of(cell: &mut Cell, cx: &mut Context<'_>) -> Option<Outcome> {
    if let Some(outcome) = &cell.outcome
        && !cell.untold
    {
        cell.gone = true;
        return Some(outcome.clone());
    }
    let waker = cx.waker();
    if !cell.reader.as_ref().is_some_and(|old| old.will_wake(waker)) {
        cell.reader = Some(waker.clone());
    }
    None
}

/// Who waits until chunks are read.
fn writers_of(cell: &mut Cell) -> Vec<Waker> {
    let rare = cell.rare.as_mut();
    rare.map(|rare| std::mem::take(&mut rare.writers))
        .unwrap_or_default()
}

impl Drop for Reader {
    fn drop(&mut self) {
        if self.end.is_some() {
            return;
        }
        let ended = {
            let mut cell = self.trace.cell.lock();
            cell.attached = false;
            cell.reader = None;
            // Whoever reads it next finds what this one waited with in vain.
            for value in self.more.drain(..).rev().chain(self.first.take()) {
                cell.push_front(value);
            }
            if let Some(rare) = &mut cell.rare {
                // A node that waits for the reader learns that there is none.
                for writer in rare.writers.drain(..) {
                    writer.wake();
                }
            }
            cell.outcome.is_some() && !cell.untold
        };
        if ended {
            self.trace.shared().keep(&self.trace);
        }
    }
}

/// A reader for a trace that has none, if it is this tenant's and not read yet.
pub(crate) fn attach(trace: Arc<Trace>) -> Option<Reader> {
    let kept = {
        let mut cell = trace.cell.lock();
        if cell.attached || cell.gone {
            return None;
        }
        cell.attached = true;
        cell.rare.as_mut().and_then(|rare| rare.expires.take())
    };
    if let Some(expires) = kept {
        trace.shared().keep_no_more(&trace, expires);
    }
    Some(Reader::new(trace))
}
