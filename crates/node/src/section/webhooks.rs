//! `POST /v1/webhooks/{provider}`: what other systems say. They have no token; their signature is what opens it.

use axum::{
    extract::Path,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use serde_json::json;
use volary_messaging::webhook::{Arrived, Inbound, Received};
use volary_ops::{ApiError, Route, Section};

use super::inbox_error;

pub(super) struct WebhooksSection(pub Inbound);

impl Section for WebhooksSection {
    fn name(&self) -> &'static str {
        "webhooks"
    }

    fn routes(&self) -> Vec<Route> {
        let inbound = self.0.clone();
        let receive = async move |path: Path<String>, headers: HeaderMap, body: Bytes| {
            receive(&inbound, path, headers, body).await
        };
        vec![
            Route::post("/v1/webhooks/{provider}", receive)
                .open(self.0.max_bytes())
                .summary("Takes a webhook, if its signature fits"),
        ]
    }
}

async fn receive(
    inbound: &Inbound,
    Path(provider): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ApiError> {
    let texts = headers
        .iter()
        .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
    let arrived = Arrived {
        headers: texts.collect(),
        body,
    };
    let received = inbound
        .receive(&provider, arrived)
        .await
        .map_err(inbox_error)?;
    let status =
        StatusCode::from_u16(received.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let document = match &received {
        Received::Accepted => json!({"status": "accepted"}),
        Received::Repeated => json!({"status": "accepted", "repeated": true}),
        Received::Rejected(why) => {
            tracing::debug!(provider, %why, "a webhook was refused");
            json!({"error": why.to_string()})
        }
        Received::Later { problem, .. } => json!({"error": problem}),
    };
    let mut response = (status, axum::Json(document)).into_response();
    if let Received::Later { retry_after, .. } = &received {
        let seconds = retry_after.as_secs().max(1);
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, seconds.into());
    }
    Ok(response)
}
