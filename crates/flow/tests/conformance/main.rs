//! The cases of the reference that flows are held against, one test each, named after what it checks.
//!
//! `docs/reference/conformance-flow.md` says which case is which test, and where we differ.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod core;
mod graph;
mod observe;
mod seen;
mod state;
#[path = "../support/store.rs"]
mod store;
mod streams;
mod subflow;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "each test binary uses a part of it")]
mod support;
