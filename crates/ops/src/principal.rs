//! Who asks (the operator, or one replica of one agent) and whether the server is stopping. Handlers learn it through
//! the extractors here.

use axum::{extract::FromRequestParts, http::request::Parts};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use volary_kernel::{Name, Tenant};

use crate::{ApiError, code};

/// Whom a link token speaks for. The node stamps sender and tenant from it; what a request claims does not count.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct LinkPeer {
    /// Tenant of the agent.
    pub tenant: Tenant,
    /// The agent.
    pub agent: Name,
    /// The replica, like `indexer-0`.
    pub replica: Name,
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Principal {
    /// Whoever holds the operator token.
    Operator,
    /// One replica, by its link token.
    Link(LinkPeer),
    /// Somebody without a token, on a route that proves its callers itself ([`crate::Route::open`]).
    Stranger,
}

/// Extractor for routes of the operator API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operator;

/// Extractor for handlers that wait: the server is stopping when this resolves. A long poll answers "nothing" then, a
/// stream ends; whoever does not is cut after [`crate::OpsConfig::drain`].
#[derive(Debug, Clone)]
pub struct Stopping(pub(crate) CancellationToken);

impl Stopping {
    /// Resolves when the server begins to stop. Cancel-safe.
    pub async fn begun(&self) {
        self.0.cancelled().await;
    }
}

impl<S: Sync> FromRequestParts<S> for Stopping {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        let stopping = parts.extensions.get::<Self>().cloned();
        stopping
            .ok_or_else(|| ApiError::internal("stopping", &"a route was reached past the server"))
    }
}

impl<S: Sync> FromRequestParts<S> for Principal {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        let principal = parts.extensions.get::<Self>().cloned();
        principal.ok_or_else(|| {
            ApiError::internal("authentication", &"a route was reached without a principal")
        })
    }
}

impl<S: Sync> FromRequestParts<S> for Operator {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Principal::from_request_parts(parts, state).await? {
            Principal::Operator => Ok(Self),
            Principal::Link(_) | Principal::Stranger => Err(ApiError::new(
                code::TOKEN_KIND,
                "this route is for operators",
            )),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for LinkPeer {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Principal::from_request_parts(parts, state).await? {
            Principal::Link(peer) => Ok(peer),
            Principal::Operator | Principal::Stranger => {
                Err(ApiError::new(code::TOKEN_KIND, "this route is for agents"))
            }
        }
    }
}
