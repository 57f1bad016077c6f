//! What happened, to read and to follow: `GET /v1/events` (JSON lines) and `GET /events` (server-sent events).
//!
//! Both are views of the journal and take the same filters. The stream reads the journal at the pace of its reader, so
//! a slow one misses nothing of it; [`Signals`] are in no journal and are dropped, counted and announced, when a
//! reader lags. A reader that takes nothing at all is cut after the write-stall limit.

mod document;
mod filter;
mod signals;
mod snapshot;
mod sse;

use std::sync::Arc;

use axum::{
    body::Body,
    http::{HeaderMap, header},
    response::{IntoResponse as _, Response},
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use volary_kernel::secret::Redactor;
use volary_store::{Seq, SharedStore};

pub use self::signals::Signals;
use crate::{
    ApiError, OpsParts, Query,
    api::EventsQuery,
    code,
    metrics::OpsMetrics,
    section::{Route, Section},
    server::Limits,
};

/// Path of the live stream; its short name is what browsers and `curl` users type.
pub(crate) const STREAM_PATH: &str = "/events";
const SNAPSHOT_PATH: &str = "/v1/events";

/// The section of both routes.
#[derive(Clone)]
pub(crate) struct EventsSection(Arc<Parts>);

struct Parts {
    store: SharedStore,
    signals: Signals,
    redactor: Redactor,
    limits: Limits,
    metrics: OpsMetrics,
    stopping: CancellationToken,
    streams: Arc<Semaphore>,
}

impl EventsSection {
    pub(crate) fn new(
        parts: &OpsParts,
        limits: Limits,
        metrics: OpsMetrics,
        stopping: CancellationToken,
    ) -> Self {
        Self(Arc::new(Parts {
            store: parts.store.clone(),
            signals: parts.signals.clone(),
            redactor: parts.redactor.clone(),
            limits,
            metrics,
            stopping,
            streams: Arc::new(Semaphore::new(limits.event_streams)),
        }))
    }

    async fn stream(&self, query: EventsQuery, headers: &HeaderMap) -> Result<Response, ApiError> {
        if query.limit.is_some() {
            return Err(ApiError::bad_request(format!(
                "limit belongs to {SNAPSHOT_PATH}; a stream has no end"
            )));
        }
        let filter = filter::of(&query)?;
        let from = match last_event_id(headers)? {
            Some(last) => last.next(),
            None => query
                .from
                .map_or_else(|| self.0.store.head().borrow().next(), Seq),
        };
        let permit = self.0.streams.clone().try_acquire_owned().map_err(|_| {
            let limit = self.0.limits.event_streams;
            ApiError::new(
                code::OVERLOADED,
                format!("{limit} event streams are open, which is the limit"),
            )
        })?;
        let stream = sse::Stream::new(&self.0, from, filter, query.body.unwrap_or(true), permit);
        let headers = [(header::CONTENT_TYPE, sse::MEDIA_TYPE)];
        Ok((headers, Body::from_stream(stream.into_chunks())).into_response())
    }

    async fn snapshot(&self, query: EventsQuery) -> Result<Response, ApiError> {
        let filter = filter::of(&query)?;
        let lines = snapshot::Lines::begin(&self.0, filter, &query).await?;
        let headers = [(header::CONTENT_TYPE, snapshot::MEDIA_TYPE)];
        Ok((headers, Body::from_stream(lines.into_chunks())).into_response())
    }
}

/// What a reconnecting stream saw last.
fn last_event_id(headers: &HeaderMap) -> Result<Option<Seq>, ApiError> {
    let Some(value) = headers.get("last-event-id") else {
        return Ok(None);
    };
    let seq = value
        .to_str()
        .ok()
        .and_then(|text| text.trim().parse().ok());
    seq.map(|seq| Some(Seq(seq)))
        .ok_or_else(|| ApiError::bad_request("Last-Event-ID is not a sequence number"))
}

impl Section for EventsSection {
    fn name(&self) -> &'static str {
        "events"
    }

    fn routes(&self) -> Vec<Route> {
        let (live, past) = (self.clone(), self.clone());
        let stream = async move |headers: HeaderMap, Query(query): Query<EventsQuery>| {
            live.stream(query, &headers).await
        };
        let snapshot = async move |Query(query): Query<EventsQuery>| past.snapshot(query).await;
        vec![
            Route::get(STREAM_PATH, stream)
                .summary("Follow what happens (server-sent events; resumes after Last-Event-ID)")
                .query::<EventsQuery>()
                .streams(sse::MEDIA_TYPE),
            Route::get(SNAPSHOT_PATH, snapshot)
                .summary("What the journal holds now, one JSON document a line")
                .query::<EventsQuery>()
                .streams(snapshot::MEDIA_TYPE),
        ]
    }
}
