//! Why a call failed, sorted by what the caller can do about it.

use thiserror::Error;
use volary_kernel::clock::Elapsed;

/// Why a call failed.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens, or nobody lets us in. The node is probably not running.
    #[error("cannot reach the node at {endpoint}: {cause}")]
    Unreachable {
        /// Where.
        endpoint: String,
        /// What the system said.
        cause: String,
    },
    /// The token is missing, not valid, or of the wrong kind (401, 403).
    #[error("{message} ({code})")]
    Unauthorised {
        /// HTTP status.
        status: u16,
        /// Stable code.
        code: String,
        /// What happened.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The node answered with another error.
    #[error("{message} ({code})")]
    Api {
        /// HTTP status.
        status: u16,
        /// Stable code.
        code: String,
        /// What happened.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The node took too long. Whether it did what was asked is unknown.
    #[error("the node at {endpoint} {elapsed}")]
    TimedOut {
        /// Where.
        endpoint: String,
        /// Which limit passed.
        elapsed: Elapsed,
    },
    /// The connection broke before the answer was whole. Whether the node did what was asked is unknown.
    #[error("the connection to {endpoint} broke: {cause}")]
    Broken {
        /// Where.
        endpoint: String,
        /// How.
        cause: String,
    },
    /// The other side is no node, or one of another age.
    #[error("unexpected answer: {0}")]
    Protocol(String),
    /// The request itself cannot be made.
    #[error("cannot make the request: {0}")]
    Request(String),
}

impl ClientError {
    /// The stable code that the node gave, if it was the node who refused.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Unauthorised { code, .. } | Self::Api { code, .. } => Some(code),
            _ => None,
        }
    }

    /// The hint that the node gave.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Unauthorised { hint, .. } | Self::Api { hint, .. } => hint.as_deref(),
            _ => None,
        }
    }

    /// HTTP status of the node's refusal.
    pub const fn status(&self) -> Option<u16> {
        match self {
            Self::Unauthorised { status, .. } | Self::Api { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether the same call may succeed a little later.
    pub const fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::Broken { .. }
        ) || matches!(self.status(), Some(429 | 503))
    }
}
