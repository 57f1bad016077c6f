//! What outlives a process: histories of traces, durable traces, pauses.
//!
//! [`StateStore`] keeps what happened to each trace, [`Recorder`] is the observer that feeds it. A flow that was built to be
//! durable and is run with a [`DurableConfig`] keeps its traces: what was accepted, a receipt for each finished step, and
//! how it ended, until that is read.

pub(crate) mod attempt;
pub(crate) mod book;
pub(crate) mod closer;
pub(crate) mod codec;
mod durable;
mod history;
pub(crate) mod ledger;
pub(crate) mod load;
pub(crate) mod once;
pub(crate) mod owner;
pub(crate) mod pause;
mod paused;
pub(crate) mod record;
mod recorder;

pub use durable::{DEFAULT_DURABLE_RESULT_TTL, DEFAULT_DURABLE_RESULTS, DurableConfig};
pub use history::{
    DEFAULT_HISTORY_AGE, DEFAULT_HISTORY_EVENTS, EventId, HistoryConfig, Listed, StateStore,
    StoredEvent,
};
pub use once::Once;
pub use pause::{PauseError, pause, resume};
pub use recorder::Recorder;
