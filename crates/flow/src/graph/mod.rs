//! Building a flow: typed nodes and edges, checked as a whole.
//!
//! ```text
//!   FlowBuilder ── closures become `Code`, routers, switches, joins
//!       │            and a `Sketch` (names, edges, policies: plain data)
//!       └─ build ──▶ check (pure, all problems) ──▶ Plan (for the engine) + Description (for people: draw, store)
//! ```

mod builder;
mod check;
mod code;
mod describe;
mod draw;
mod durable;
mod flow;
mod join;
mod map;
mod payload;
pub(crate) mod plan;
mod problem;
mod refs;
mod route;
mod running;
mod sketch;
pub(crate) mod slot;
mod subflow;
mod switch;
mod table;

pub use builder::FlowBuilder;
pub use code::Value;
pub use describe::{
    DESCRIPTION_VERSION, Description, DescriptionError, EdgeDescription, JoinDescription,
    NodeDescription, NodeKind, PolicyDescription,
};
pub use draw::{Direction, DirectionError};
pub use flow::Flow;
pub use join::JoinPolicy;
pub use map::map_concurrent;
pub use problem::{BuildErrors, Problem, ProblemCode};
pub use refs::NodeRef;
pub use route::{Decision, Route, RoutePolicy, RouteRequest};
pub use running::{CallError, RunningFlow, TraceHandle};
pub use switch::{Switch, Switched};
pub use table::{TableError, TablePolicy};
