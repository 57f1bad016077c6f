//! The journal's proof: a hash chain over all entries, a signed head beside the database, checks and exports of both.

pub(crate) mod chain;
#[cfg(feature = "sqlite")]
mod export;
pub(crate) mod head;
#[cfg(feature = "sqlite")]
mod verify;

#[cfg(feature = "sqlite")]
pub use export::{ExportError, ExportSummary, export, verify_export};
pub use head::{Cut, Head};
#[cfg(feature = "sqlite")]
pub use verify::{Problem, VerifyReport, verify};
