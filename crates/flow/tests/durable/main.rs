//! What outlives a process: histories, durable traces, pauses.

mod crash;
mod pauses;
#[path = "../support/store.rs"]
mod store;
mod traces;
mod world;
