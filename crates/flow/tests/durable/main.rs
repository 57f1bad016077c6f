//! What outlives a process: histories, durable traces, pauses.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod crash;
mod pauses;
mod restored;
mod second;
#[path = "../support/store.rs"]
mod store;
mod traces;
mod world;
