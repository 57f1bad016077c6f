//! HTTP for operators and agents: health, readiness, metrics, events, control and the link API.
//!
//! ```text
//!   operators ──TCP, operator token──▶ ┌ ops thread ────────────┐        ┌ main runtime ─────┐
//!                                      │ /health /ready /metrics │        │ sections' handlers │
//!   agents ────socket, link tokens───▶ │ bounds, tokens, bodies ─┼─queue─▶│ events, inspect    │
//!                                      └────────────▲────────────┘        └─────────┬─────────┘
//!                                                   └───── answers, streams ◀───────┘
//! ```
//!
//! One thread of its own accepts connections, checks who asks and answers `/health`, `/ready` and `/metrics` right
//! there, so that they tell the truth while everything else is stuck. Everything else is handed to the main runtime
//! through a bounded queue. The server knows [`Section`]s, not domains: the node brings them.
//!
//! [`api`] holds the documents that travel, for the server's sections and for [`client`] alike.

pub mod api;
pub mod client;
pub mod code;

mod auth;
mod error;
mod events;
mod extract;
mod health;
mod host;
mod metrics;
mod negotiate;
mod openapi;
mod principal;
mod process;
mod section;
mod server;

pub use self::{
    auth::{TableFull, TokenTable},
    code::Code,
    error::{ApiError, ErrorBody, ErrorDetail, OpsError},
    events::Signals,
    extract::{Json, Query},
    principal::{LinkPeer, Operator, Principal, Stopping},
    section::{Route, Section, Surface},
    server::{
        DEFAULT_CHECK, DEFAULT_DRAIN, Exposure, Limits, MetricsAccess, OpsConfig, OpsHandle,
        OpsParts, OpsServer, ProbeFn, ProbeParts, ProbeServer, RunningProbes, SOCKET_PATH_MAX,
        SocketConfig, TcpConfig,
    },
};
