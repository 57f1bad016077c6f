//! `GET /events`: the journal as it grows, with the signals between, as server-sent events.
//!
//! ```text
//!   id: 42                          the sequence number: what a client sends back as Last-Event-ID
//!   event: page.changed             the kind
//!   data: {"seq":42,…}              the document, one line
//! ```
//!
//! Signals have no `id`. What happens to the stream itself is told by events whose kind begins with `stream.`:
//! `stream.trimmed` (retention removed entries that were not seen), `stream.missed` (signals were dropped because
//! the reader lagged), `stream.failed` and `stream.stopping`, after which it ends.

use std::{io, sync::Arc};

use bytes::Bytes;
use futures_util::stream;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, broadcast};
use tokio_util::sync::CancellationToken;
use volary_kernel::{clock, secret::Redactor};
use volary_store::{Filter, JournalRow, Seq, StoreError, Tail};

use super::{Parts, document};
use crate::{api::Event, metrics::OpsMetrics, server::Limits};

/// Server-sent events.
pub(super) const MEDIA_TYPE: &str = "text/event-stream";

/// Entries that are at hand are sent together up to this many bytes.
const CHUNK_BYTES: usize = 32 << 10;

/// One reader's stream.
pub(super) struct Stream {
    tail: Tail,
    filter: Filter,
    signals: Option<broadcast::Receiver<Arc<Event>>>,
    with_body: bool,
    redactor: Redactor,
    limits: Limits,
    metrics: OpsMetrics,
    stopping: CancellationToken,
    phase: Phase,
    _permit: OwnedSemaphorePermit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Begin,
    Follow,
    Ended,
}

enum News {
    Row(Result<Option<JournalRow>, StoreError>),
    Signal(Result<Arc<Event>, broadcast::error::RecvError>),
    Silence,
    Stopping,
}

impl Stream {
    pub(super) fn new(
        parts: &Parts,
        from: Seq,
        filter: Filter,
        with_body: bool,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        parts.metrics.event_streams.inc();
        Self {
            tail: Tail::new(parts.store.clone(), from, filter.clone()),
            filter,
            signals: Some(parts.signals.subscribe()),
            with_body,
            redactor: parts.redactor.clone(),
            limits: parts.limits,
            metrics: parts.metrics.clone(),
            stopping: parts.stopping.clone(),
            phase: Phase::Begin,
            _permit: permit,
        }
    }

    /// The stream in pieces to send.
    pub(super) fn into_chunks(self) -> impl futures_util::Stream<Item = io::Result<Bytes>> {
        stream::unfold(self, async |mut stream| {
            let chunk = stream.next_chunk().await?;
            Some((Ok(Bytes::from(chunk)), stream))
        })
    }

    async fn next_chunk(&mut self) -> Option<Vec<u8>> {
        match self.phase {
            Phase::Ended => None,
            Phase::Begin => {
                self.phase = Phase::Follow;
                // Something at once: the client sees that it is connected. Then: wait 2 s before reconnecting.
                Some(b": volary events\nretry: 2000\n\n".to_vec())
            }
            Phase::Follow => loop {
                let mut chunk = Vec::new();
                let news = self.news().await;
                self.tell(news, &mut chunk);
                self.add_what_is_at_hand(&mut chunk);
                if !chunk.is_empty() || self.phase == Phase::Ended {
                    return Some(chunk);
                }
            },
        }
    }

    async fn news(&mut self) -> News {
        let signal = async {
            match &mut self.signals {
                Some(signals) => signals.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.stopping.cancelled() => News::Stopping,
            row = self.tail.next() => News::Row(row),
            signal = signal => News::Signal(signal),
            () = clock::sleep(self.limits.keep_alive) => News::Silence,
        }
    }

    fn tell(&mut self, news: News, chunk: &mut Vec<u8>) {
        match news {
            News::Row(Ok(Some(row))) => {
                let json = document::of_row(&row, self.with_body, &self.redactor);
                frame(chunk, Some(row.seq), &row.kind, &json);
            }
            News::Row(Err(StoreError::Trimmed { from, first })) => {
                note(
                    chunk,
                    "stream.trimmed",
                    &json!({"from": from, "first": first}),
                );
            }
            News::Row(Err(error)) => {
                tracing::error!(%error, "the journal cannot be followed");
                self.end(chunk, "stream.failed", "the journal cannot be read");
            }
            News::Row(Ok(None)) => self.end(chunk, "stream.stopping", "the journal was closed"),
            News::Stopping => self.end(chunk, "stream.stopping", "the node is stopping"),
            News::Signal(Ok(event)) => self.signal(&event, chunk),
            News::Signal(Err(broadcast::error::RecvError::Lagged(missed))) => {
                self.metrics.signals_missed.with(&[]).inc_by(missed);
                note(chunk, "stream.missed", &json!({"signals": missed}));
            }
            News::Signal(Err(broadcast::error::RecvError::Closed)) => self.signals = None,
            News::Silence => self.sign_of_life(chunk),
        }
    }

    /// Entries that need no waiting go with the first, so that catching up is quick.
    fn add_what_is_at_hand(&mut self, chunk: &mut Vec<u8>) {
        while self.phase == Phase::Follow && !chunk.is_empty() && chunk.len() < CHUNK_BYTES {
            let Some(row) = self.tail.at_hand() else {
                return;
            };
            self.tell(News::Row(Ok(Some(row))), chunk);
        }
    }

    fn signal(&self, event: &Event, chunk: &mut Vec<u8>) {
        let fits = |wanted: &String| match wanted.strip_suffix('.') {
            Some(_) => event.kind.starts_with(wanted.as_str()),
            None => event.kind == *wanted,
        };
        let filter = &self.filter;
        let wanted = (filter.kinds.is_empty() || filter.kinds.iter().any(fits))
            && (filter.agent.is_none() || filter.agent == event.agent)
            && (filter.trace.is_none() || filter.trace == event.trace)
            && filter
                .tenant
                .as_ref()
                .is_none_or(|tenant| *tenant == event.tenant);
        if wanted {
            let mut event = event.clone();
            event.body = event.body.filter(|_| self.with_body);
            frame(
                chunk,
                None,
                &event.kind,
                &document::encode(&event, &self.redactor),
            );
        }
    }

    /// A comment, with the place reached as `id`: a client that resumes does not read again what its filter hid.
    fn sign_of_life(&self, chunk: &mut Vec<u8>) {
        chunk.extend_from_slice(b": still here\n");
        let seen = self.tail.position().0.saturating_sub(1);
        if seen > 0 {
            chunk.extend_from_slice(format!("id: {seen}\n").as_bytes());
        }
        chunk.push(b'\n');
    }

    fn end(&mut self, chunk: &mut Vec<u8>, kind: &str, reason: &str) {
        note(chunk, kind, &json!({"reason": reason}));
        self.phase = Phase::Ended;
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.metrics.event_streams.dec();
    }
}

/// One event; `json` has no line breaks.
fn frame(chunk: &mut Vec<u8>, id: Option<Seq>, kind: &str, json: &[u8]) {
    if let Some(id) = id {
        chunk.extend_from_slice(format!("id: {id}\n").as_bytes());
    }
    chunk.extend_from_slice(b"event: ");
    chunk.extend(kind.bytes().filter(|byte| !matches!(byte, b'\n' | b'\r')));
    chunk.extend_from_slice(b"\ndata: ");
    chunk.extend_from_slice(json);
    chunk.extend_from_slice(b"\n\n");
}

fn note(chunk: &mut Vec<u8>, kind: &str, data: &serde_json::Value) {
    frame(chunk, None, kind, data.to_string().as_bytes());
}
