//! A small HTTP client for the API: what the command line, tests and link commands speak with a node.
//!
//! One connection per request, no pool, no task of its own: dropping a call or a stream closes its connection. Every
//! wait has a limit. It speaks to nodes only, over TCP or a Unix socket, without TLS.

mod endpoint;
mod error;
mod exchange;
mod query;
mod sse;
mod stream;

use std::{net::SocketAddr, path::Path, time::Duration};

use axum::http::{HeaderValue, Method, Request, StatusCode, header};
use bytes::Bytes;
use http_body_util::Full;
use serde::{Serialize, de::DeserializeOwned};
use volary_kernel::secret::Secret;

use self::exchange::Exchange;
pub use self::{
    endpoint::{Endpoint, read_token},
    error::ClientError,
    stream::{EventStream, Lines, StreamEvent},
};
use crate::{ErrorBody, api::HealthDocument};

/// How long the client waits, and for how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For the connection; default 2 s.
    pub connect: Duration,
    /// For the head of an answer, and for the whole of one that is not a stream; default 30 s. A request that waits by
    /// itself (`wait`) needs more: see [`Client::waiting`].
    pub answer: Duration,
    /// For the next sign of life on a stream; default 45 s, three times what a node keeps alive by.
    pub silence: Duration,
    /// Bytes of an answer that is not a stream; default 64 MiB.
    pub answer_bytes: usize,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            answer: Duration::from_secs(30),
            silence: Duration::from_secs(45),
            answer_bytes: 64 << 20,
        }
    }
}

/// Speaks with one node; cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    endpoint: Endpoint,
    token: Option<Secret>,
    patience: Patience,
}

impl Client {
    /// A client for `endpoint`, without a token.
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            token: None,
            patience: Patience::default(),
        }
    }

    /// A client for the operators' address.
    pub fn tcp(address: SocketAddr) -> Self {
        Self::new(Endpoint::Tcp(address))
    }

    /// A client for the agents' socket.
    pub fn unix(path: impl AsRef<Path>) -> Self {
        Self::new(Endpoint::Unix(path.as_ref().to_owned()))
    }

    /// The same, with a token.
    #[must_use]
    pub fn token(mut self, token: Secret) -> Self {
        self.token = Some(token);
        self
    }

    /// The same, with other limits.
    #[must_use]
    pub const fn patience(mut self, patience: Patience) -> Self {
        self.patience = patience;
        self
    }

    /// The same, for a request that makes the node wait up to `wait`.
    #[must_use]
    pub fn waiting(mut self, wait: Duration) -> Self {
        self.patience.answer += wait;
        self
    }

    /// Whom it speaks with.
    pub const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// `GET` of a JSON document. `query` becomes the query parameters: a struct, or `()` for none.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &impl Serialize,
    ) -> Result<T, ClientError> {
        json(
            &self
                .call(Method::GET, &query::join(path, query)?, None)
                .await?,
        )
    }

    /// `POST` of a JSON document, for another; `()` sends none.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let mut body =
            serde_json::to_vec(body).map_err(|error| ClientError::Request(error.to_string()))?;
        if body == b"null" {
            body.clear();
        }
        json(&self.call(Method::POST, path, Some(body.into())).await?)
    }

    /// `DELETE`, for a JSON document.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        json(&self.call(Method::DELETE, path, None).await?)
    }

    /// `GET` of a text, like `/metrics`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn text(&self, path: &str) -> Result<String, ClientError> {
        let bytes = self.call(Method::GET, path, None).await?;
        String::from_utf8(bytes.into())
            .map_err(|_| ClientError::Protocol("the answer is not text".to_owned()))
    }

    /// `GET` of `/health` or `/ready`: whether all is well, and the document, which comes either way.
    ///
    /// # Errors
    /// [`ClientError`]; a node that is not well is no error.
    pub async fn probe(&self, path: &str) -> Result<(bool, HealthDocument), ClientError> {
        let mut exchange = self.open(self.request(Method::GET, path, None)?).await?;
        let (status, bytes) = (exchange.status(), exchange.collect().await?);
        match status {
            StatusCode::OK | StatusCode::SERVICE_UNAVAILABLE => {
                Ok((status == StatusCode::OK, json(&bytes)?))
            }
            _ => Err(refusal(status, &bytes)),
        }
    }

    /// `GET` of a text that comes line by line, like `/v1/events` and `/v1/logs`. The stream may be silent as long as it
    /// likes.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn lines(&self, path: &str, query: &impl Serialize) -> Result<Lines, ClientError> {
        Ok(Lines::new(
            self.stream(self.request(Method::GET, &query::join(path, query)?, None)?)
                .await?,
        ))
    }

    /// `GET` of server-sent events, like `/events`; after `last_event_id` when given.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn events(
        &self,
        path: &str,
        query: &impl Serialize,
        last_event_id: Option<&str>,
    ) -> Result<EventStream, ClientError> {
        let mut request = self.request(Method::GET, &query::join(path, query)?, None)?;
        request.headers_mut().insert(
            header::ACCEPT,
            HeaderValue::from_static("text/event-stream"),
        );
        if let Some(id) = last_event_id {
            let id = HeaderValue::from_str(id)
                .map_err(|error| ClientError::Request(error.to_string()))?;
            request.headers_mut().insert("last-event-id", id);
        }
        Ok(EventStream::new(self.stream(request).await?))
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<Bytes, ClientError> {
        let mut exchange = self.open(self.request(method, path, body)?).await?;
        let (status, bytes) = (exchange.status(), exchange.collect().await?);
        if status.is_success() {
            Ok(bytes)
        } else {
            Err(refusal(status, &bytes))
        }
    }

    async fn stream(&self, request: Request<Full<Bytes>>) -> Result<Exchange, ClientError> {
        let mut exchange = self.open(request).await?;
        if exchange.status().is_success() {
            return Ok(exchange);
        }
        let (status, bytes) = (exchange.status(), exchange.collect().await?);
        Err(refusal(status, &bytes))
    }

    async fn open(&self, request: Request<Full<Bytes>>) -> Result<Exchange, ClientError> {
        Exchange::open(&self.endpoint, self.patience, request).await
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<Request<Full<Bytes>>, ClientError> {
        let host = match &self.endpoint {
            Endpoint::Tcp(address) => address.to_string(),
            Endpoint::Unix(_) => "localhost".to_owned(),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, host);
        if let Some(token) = &self.token {
            let mut value =
                HeaderValue::from_str(&format!("Bearer {}", token.expose())).map_err(|_| {
                    ClientError::Request(
                        "the token has characters that a header cannot hold".to_owned(),
                    )
                })?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = Full::new(body.unwrap_or_default());
        request
            .body(body)
            .map_err(|error| ClientError::Request(error.to_string()))
    }
}

fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(bytes)
        .map_err(|error| ClientError::Protocol(format!("the answer does not fit: {error}")))
}

fn refusal(status: StatusCode, bytes: &[u8]) -> ClientError {
    let Ok(ErrorBody { error }) = serde_json::from_slice::<ErrorBody>(bytes) else {
        return ClientError::Protocol(format!("status {status} without an error document"));
    };
    let status = status.as_u16();
    match status {
        401 | 403 => ClientError::Unauthorised {
            status,
            code: error.code,
            message: error.message,
            hint: error.hint,
        },
        _ => ClientError::Api {
            status,
            code: error.code,
            message: error.message,
            hint: error.hint,
        },
    }
}
