//! Typed dataflow graphs that always end.
//!
//! A flow is a graph of nodes, checked as a whole when it is built. What is emitted into it is a *trace*: one request with
//! a tenant, perhaps a deadline, and exactly one terminal [`Outcome`] that whoever waits for it learns.
//!
//! ```text
//!   FlowBuilder ──build──▶ Plan (checked) ──start──▶ stages (one task each: a fused chain of nodes behind a fair inbox)
//!                                                      │  ▲
//!   emit ─▶ Trace ─▶ ingress inbox ─▶ stage ─▶ inbox ─▶ stage ─▶ items, chunks, one outcome ─▶ TraceHandle / fetch
//!                                                      │
//!                     keeper (deadlines, expiry, blocked nodes)      tap ─▶ observers (events, logs, spans)
//! ```

mod config;
mod context;
mod engine;
mod envelope;
mod error;
pub mod graph;
mod node;
pub mod observe;
mod outcome;
pub mod policy;
pub mod state;
pub mod stream;
#[cfg(feature = "testkit")]
pub mod testkit;

pub use config::{Limits, RunConfig};
pub use context::{ChunkSpec, Context};
pub use engine::{Depths, NodeDepth, TraceView};
pub use envelope::{Envelope, Headers, Meta};
pub use error::{EmitError, FlowError, FlowErrorCode, NodeError};
pub use graph::{CallError, Flow, FlowBuilder, RunningFlow, TraceHandle};
pub use node::{Emit, Node};
pub use outcome::{CancelReport, DropReason, Item, Outcome, StopReport};
