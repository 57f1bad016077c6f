//! Words and tools that every Volary domain needs, and no domain noun among them.
//!
//! | module | what it owns |
//! |---|---|
//! | [`id`] | trace, span and time-ordered unique ids; validated names |
//! | [`clock`] | time as a parameter: wall clock, monotonic clock, pausable sleep |
//! | [`random`] | randomness from the operating system |
//! | [`rate`] | quotas and token buckets, as arithmetic |
//! | [`retry`] | back-off arithmetic |
//! | [`queue`] | bounded queues (count and bytes) that name what happens when full |
//! | [`task`] | supervised tasks: kind, cancel, restart, drain with a deadline |
//! | [`ready`] | readiness latches and heartbeats, readable from any thread |
//! | [`metric`] | the metric facade with its naming rules and bounded labels |
//! | [`collector`] | metrics by name for who embeds parts of Volary |
//! | [`secret`] | values that must not be shown, and the redactor that finds them |
//! | [`sign`] | Ed25519 keys |
//! | [`mod@file`] | atomic and private files |
//! | [`text`] | durations and byte counts as people write them |

pub mod clock;
pub mod collector;
pub mod file;
pub mod id;
pub mod metric;
pub mod queue;
pub mod random;
pub mod rate;
pub mod ready;
pub mod retry;
pub mod secret;
pub mod sign;
pub mod task;
pub mod testing;
pub mod text;

pub use clock::{Clock, MachineTime, ManualClock, Mono, SharedClock, SystemClock, Timestamp};
pub use id::{Name, SpanId, Tenant, TraceId, Uid};
