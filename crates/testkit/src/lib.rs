//! Development only: what the product's own tests stand on.
//!
//! - [`CliEnv`]: a hermetic home for tests of the `volary` program: cleared environment, own folders, bounded waits,
//!   and nothing left running when it is dropped.
//! - [`process`]: looking for processes, waiting for them, killing them.
//! - [`fault`]: damage on purpose: a flipped byte, a disk that is full.
//! - [`git`]: a generated repository whose history is known.
//! - `tests/tidy`: the house rules, checked over the whole tree.
//!
//! Helpers panic when they cannot do their work: a test that cannot be set up has failed. Nothing here is a dependency of
//! the product outside `[dev-dependencies]`, except of the benchmarks.

mod cli_env;
pub mod fault;
pub mod git;
pub mod process;

pub use cli_env::{CliEnv, Output, Running};
pub use process::eventually;
