//! That flows always end: random graphs against a reference model, nodes that misbehave, tenants that flood.
//!
//! ```text
//!   seed ──▶ spec (graph, policies, traces) ──▶ build ──▶ run on a paused clock ──▶ what was seen ─┐
//!                │                                                                               ├─▶ judge
//!                └────────▶ act (what a node does: a pure function) ──▶ model ──▶ what may be ────┘
//! ```
//!
//! `VOLARY_TEST_FULL=1` runs 2,000 seeds instead of 60.

mod act;
mod build;
mod judge;
mod misbehaving;
mod model;
mod neighbour;
mod properties;
mod spec;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "each test binary uses a part of it")]
mod support;
mod world;
