//! Who asks: the operator, or one replica of one agent. Handlers learn it through the extractors here.

use axum::{extract::FromRequestParts, http::request::Parts};
use serde::Serialize;
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// Whoever holds the operator token.
    Operator,
    /// One replica, by its link token.
    Link(LinkPeer),
}

/// Extractor for routes of the operator API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operator;

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
            Principal::Link(_) => Err(ApiError::new(
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
            Principal::Operator => Err(ApiError::new(code::TOKEN_KIND, "this route is for agents")),
        }
    }
}
