//! The whole product from outside: a real node, real agents, real signals, real disks.
//!
//! Sizes are small by default; `VOLARY_TEST_FULL=1` runs the same tests at the size that Volary promises.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails the test where it stands"
)]

mod checkout;
mod disk;
mod flow_traces;
mod flows;
mod handlers;
mod isolation;
mod kill9;
mod limits;
mod peers;
mod replay;
mod secrets;
mod support;
mod tamper;
mod tasks;
mod two_nodes;
