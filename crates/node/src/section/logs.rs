//! `GET /v1/logs`: what replicas wrote, as text, one line each.

use std::{convert::Infallible, sync::Arc};

use axum::{
    body::Body,
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use volary_deploy::{
    backend::{BackendError, ReplicaId},
    log::{LogLine, LogQuery, LogReader},
};
use volary_ops::{ApiError, Operator, Query, Route, Section, api::LogsQuery};

use crate::core::Core;

pub(super) struct LogsSection(pub Arc<Core>);

impl Section for LogsSection {
    fn name(&self) -> &'static str {
        "logs"
    }

    fn routes(&self) -> Vec<Route> {
        let core = self.0.clone();
        let logs = move |_: Operator, Query(query): Query<LogsQuery>| {
            let core = core.clone();
            async move { logs(&core, query).await }
        };
        vec![
            Route::get("/v1/logs", logs)
                .summary("Shows what replicas wrote; `replica | line` where several are shown.")
                .query::<LogsQuery>()
                .streams("text/plain"),
        ]
    }
}

async fn logs(core: &Core, query: LogsQuery) -> Result<Response, ApiError> {
    let wanted = wanted(core, &query)?;
    let prefix = wanted.len() > 1;
    let width = wanted
        .iter()
        .map(|id| id.to_string().len())
        .max()
        .unwrap_or(0);
    let lines = LogQuery {
        tail: query
            .tail
            .map(|tail| usize::try_from(tail).unwrap_or(usize::MAX)),
        follow: query.follow,
    };
    let mut streams = Vec::new();
    for id in wanted {
        match core.backend.logs(&id, lines).await {
            Ok(reader) => {
                let name = prefix.then(|| format!("{:width$} | ", id.to_string()));
                streams.push(text(reader, name).boxed());
            }
            // Nothing was written yet.
            Err(BackendError::Unknown { .. }) => {}
            Err(error) => return Err(ApiError::internal("reading a log", &error)),
        }
    }
    let all = if query.follow {
        stream::select_all(streams).boxed()
    } else {
        stream::iter(streams).flatten().boxed()
    };
    let stopping = core.stopping.clone();
    let body = Body::from_stream(all.take_until(async move { stopping.cancelled().await }));
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response())
}

/// The replicas asked for.
fn wanted(core: &Core, query: &LogsQuery) -> Result<Vec<ReplicaId>, ApiError> {
    let all = core.replica_ids();
    let chosen: Vec<_> = all
        .into_iter()
        .filter(|id| query.agent.as_ref().is_none_or(|agent| *agent == id.agent))
        .filter(|id| {
            query
                .replica
                .as_ref()
                .is_none_or(|replica| replica.as_str() == id.to_string())
        })
        .collect();
    if chosen.is_empty() && (query.agent.is_some() || query.replica.is_some()) {
        return Err(
            ApiError::not_found("no such agent or replica").hint("`volary ps` lists what there is")
        );
    }
    Ok(chosen)
}

/// The lines of one log as text.
fn text(
    reader: LogReader,
    prefix: Option<String>,
) -> impl futures_util::Stream<Item = Result<Bytes, Infallible>> {
    let next = |(mut reader, prefix): (LogReader, Option<String>)| async move {
        match reader.next().await {
            Ok(Some(line)) => {
                let line = show(&line, prefix.as_deref());
                Some((Ok(line), (reader, prefix)))
            }
            Ok(None) => None,
            Err(error) => {
                tracing::warn!(%error, "a log cannot be read on");
                None
            }
        }
    };
    stream::unfold((reader, prefix), next)
}

fn show(line: &LogLine, prefix: Option<&str>) -> Bytes {
    let mut text = prefix.unwrap_or_default().to_owned();
    text.push_str(&line.text);
    text.push('\n');
    text.into()
}
