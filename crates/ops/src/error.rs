//! Errors: [`ApiError`] is what a client sees, [`OpsError`] what stops the server from starting.
//!
//! An [`ApiError`] carries only words meant for its reader. What went wrong inside is logged where it happened and
//! never travels: see [`ApiError::internal`].

use std::{borrow::Cow, io, net::SocketAddr, path::PathBuf};

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::code::{self, Code};

/// The error envelope: `{"error": {"code", "message", "hint"}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorDetail,
}

/// What went wrong, in one stable code and words for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorDetail {
    /// Stable code to match on and to look up (`volary explain CODE`).
    pub code: String,
    /// What happened, with the values at hand.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// An answer that says no. Handlers return it; it becomes the envelope and a status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// Stable code.
    pub code: Cow<'static, str>,
    /// What happened. A lower-case fragment with actual value and limit, fit for the client's eyes.
    pub message: String,
    /// What to do about it.
    pub hint: Option<Cow<'static, str>>,
    /// For 429 and 503: seconds after which a retry makes sense.
    pub retry_after: Option<u32>,
}

/// Seconds in `Retry-After` when nothing better is known: long enough for a burst to pass.
const RETRY_AFTER_SECONDS: u32 = 1;

impl ApiError {
    /// An error with a code of this crate and its usual hint.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        let status = StatusCode::from_u16(code.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self {
            status,
            code: code.id.into(),
            message: message.into(),
            hint: Some(code.hint.into()),
            retry_after: (status == StatusCode::SERVICE_UNAVAILABLE).then_some(RETRY_AFTER_SECONDS),
        }
    }

    /// An error of a domain, with the domain's own stable code.
    pub fn domain(
        status: StatusCode,
        code: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            status,
            code: code.into(),
            message: message.into(),
            hint: None,
            retry_after: None,
        }
    }

    /// Replaces the hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Says when a retry makes sense, in seconds.
    #[must_use]
    pub const fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// 400: the request cannot be understood.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(code::BAD_REQUEST, message)
    }

    /// 404: what the request names is not there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(code::NOT_FOUND, message)
    }

    /// 409: the request does not fit the present state.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(code::CONFLICT, message)
    }

    /// 500: a bug or a broken part. `what` and `cause` go to the log; the client learns neither.
    pub fn internal(what: &'static str, cause: &dyn std::fmt::Display) -> Self {
        tracing::error!(what, %cause, "internal error while answering a request");
        Self::new(code::INTERNAL, format!("{what} failed"))
    }

    /// The envelope that is sent.
    pub fn body(&self) -> ErrorBody {
        ErrorBody {
            error: ErrorDetail {
                code: self.code.to_string(),
                message: self.message.clone(),
                hint: self.hint.as_deref().map(str::to_owned),
            },
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let json = serde_json::to_vec(&self.body()).expect("three strings always encode as JSON");
        let mut response = (self.status, json).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Why the ops server cannot start or run.
#[derive(Debug, thiserror::Error)]
pub enum OpsError {
    /// The address reaches beyond this machine, and nothing protects it.
    #[error("{address} is not a loopback address, and the ops server speaks plain HTTP")]
    NotLoopback {
        /// The address asked for.
        address: SocketAddr,
    },
    /// The address cannot be bound.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The socket path is too long for the system.
    #[error("socket path {path} has {length} bytes, the system takes {limit}")]
    SocketPath {
        /// The path asked for.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
        /// The most the system takes.
        limit: usize,
    },
    /// Another process answers on the socket.
    #[error("another process answers on {path}")]
    SocketInUse {
        /// The path asked for.
        path: PathBuf,
    },
    /// The path belongs to something that is not a socket.
    #[error("{path} exists and is not a socket")]
    SocketTaken {
        /// The path asked for.
        path: PathBuf,
    },
    /// The socket cannot be made.
    #[error("cannot make the socket {path}")]
    Socket {
        /// The path asked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The operator token file cannot be used.
    #[error("operator token file {path}: {problem}")]
    TokenFile {
        /// The path asked for.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Two sections claim one route.
    #[error("section `{section}` adds {route}, which {why}")]
    Route {
        /// The section that came second.
        section: &'static str,
        /// Method and path.
        route: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A thread or a runtime cannot be had.
    #[error("cannot start the ops thread")]
    Resources(#[source] io::Error),
}

impl OpsError {
    /// The stable code with its hint.
    pub const fn code(&self) -> Code {
        match self {
            Self::NotLoopback { .. } => code::NOT_LOOPBACK,
            Self::Bind { .. } => code::BIND,
            Self::SocketPath { .. } => code::SOCKET_PATH,
            Self::SocketInUse { .. } => code::SOCKET_IN_USE,
            Self::SocketTaken { .. } | Self::Socket { .. } => code::SOCKET_TAKEN,
            Self::TokenFile { .. } => code::TOKEN_FILE,
            Self::Route { .. } => code::ROUTE_CLASH,
            Self::Resources(_) => code::RESOURCES,
        }
    }

    /// What to do about it.
    pub const fn hint(&self) -> &'static str {
        self.code().hint
    }
}
