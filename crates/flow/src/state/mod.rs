//! What outlives a process: histories of traces, durable traces, pauses.

pub(crate) mod codec;
mod durable;
pub(crate) mod once;
pub(crate) mod step;

pub use durable::{DEFAULT_DURABLE_RESULT_TTL, DEFAULT_DURABLE_RESULTS, DurableConfig};
pub use once::Once;
