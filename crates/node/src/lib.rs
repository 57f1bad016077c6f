//! A Volary node: every domain wired together, and the facade that Rust users import.
//!
//! [`Node::start`] takes a [`NodeConfig`] and returns a running node; [`Node::stop`] drains it. Inside, `build` is the
//! one wiring function, `bridge` is the only place where domains meet, `section` is what the node adds to the HTTP API.

mod agents;
mod bridge;
mod build;
mod claims;
mod config;
mod core;
mod error;
mod flow_agent;
mod flows;
mod hooks;
mod key_files;
pub mod link;
mod neighbours;
mod node;
mod pulse;
mod runtime_ops;
mod section;
mod state;
mod webhook;

pub use volary_context as context;
pub use volary_deploy as deploy;
pub use volary_flow as flow;
pub use volary_kernel as kernel;
pub use volary_messaging as messaging;
pub use volary_ops as ops;
pub use volary_store as store;

pub use self::{
    config::NodeConfig,
    error::{CODES, ErrorClass, NodeCode, NodeError},
    flow_agent::FlowAgent,
    key_files::KeyFiles,
    node::{DEFAULT_STOP, Node, StopReport},
    runtime_ops::{RuntimeOpsError, RuntimeOpsServer},
    state::{NodeCard, StateDir},
};

/// The reason that [`Node::shutdown_requested`] gives when an operator asked for the stop (`volary down`).
pub const STOP_REQUESTED: &str = "asked to over the API";

/// Version of the node.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
