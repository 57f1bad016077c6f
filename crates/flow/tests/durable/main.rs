//! What outlives a process: histories, durable traces, pauses.

#[path = "../conformance/state.rs"]
mod state;
#[path = "../support/store.rs"]
mod store;
