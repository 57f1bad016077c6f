//! What every answer goes through: errors become the envelope, declared secrets do not pass.

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Body as _;
use volary_kernel::secret::Redactor;

use crate::{
    ApiError,
    code::{self, Code},
    section::Surface,
};

/// Bytes of an error text that are looked at; longer ones are bugs.
const ERROR_TEXT_MAX: usize = 64 << 10;

/// `response` as it may leave: an error that is not the envelope yet becomes one, and declared secrets are replaced
/// in errors and in every whole answer to an operator. (Agents get payloads as they were sent.)
pub(super) async fn checked(surface: Surface, response: Response, redactor: &Redactor) -> Response {
    if is_error(response.status()) && !is_json(&response) {
        return redacted(enveloped(response).await, redactor).await;
    }
    if is_error(response.status()) || surface == Surface::Operator {
        return redacted(response, redactor).await;
    }
    response
}

fn is_error(status: StatusCode) -> bool {
    status.is_client_error() || status.is_server_error()
}

fn is_json(response: &Response) -> bool {
    let content_type = response.headers().get(header::CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/json"))
}

/// The envelope for an error that the router or an extractor wrote as plain text.
async fn enveloped(response: Response) -> Response {
    let (head, body) = response.into_parts();
    let code = match head.status {
        StatusCode::NOT_FOUND => code::NO_ROUTE,
        StatusCode::METHOD_NOT_ALLOWED => code::METHOD,
        StatusCode::PAYLOAD_TOO_LARGE => code::BODY_TOO_LARGE,
        status if status.is_client_error() => Code {
            status: status.as_u16(),
            ..code::BAD_REQUEST
        },
        status => Code {
            status: status.as_u16(),
            ..code::INTERNAL
        },
    };
    let text = Limited::new(body, ERROR_TEXT_MAX)
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes);
    let text = text
        .map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned())
        .unwrap_or_default();
    let message = if text.is_empty() || head.status.is_server_error() {
        code.title.to_owned()
    } else {
        text
    };
    let mut enveloped = ApiError::new(code, message).into_response();
    if let Some(allow) = head.headers.get(header::ALLOW) {
        enveloped.headers_mut().insert(header::ALLOW, allow.clone());
    }
    enveloped
}

/// Replaces declared secrets in a body that is all there; a stream passes (its maker redacts).
async fn redacted(response: Response, redactor: &Redactor) -> Response {
    let (mut head, body) = response.into_parts();
    if body.size_hint().exact().is_none() {
        return Response::from_parts(head, body);
    }
    let bytes = body
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes)
        .unwrap_or_default();
    let clean = match redactor.redact_bytes(&bytes) {
        std::borrow::Cow::Borrowed(_) => bytes.clone(),
        std::borrow::Cow::Owned(clean) => Bytes::from(clean),
    };
    if clean.len() != bytes.len() && head.headers.contains_key(header::CONTENT_LENGTH) {
        head.headers
            .insert(header::CONTENT_LENGTH, HeaderValue::from(clean.len()));
    }
    Response::from_parts(head, Body::from(clean))
}
