//! The journal's proof: a hash chain over all entries, a signed head beside the database, checks and exports of both.

mod archive;
pub(crate) mod chain;
#[cfg(feature = "sqlite")]
mod export;
pub(crate) mod head;
#[cfg(feature = "sqlite")]
mod offline;
#[cfg(feature = "sqlite")]
mod verify;

pub use archive::{
    ArchiveHeader, ArchiveReader, ArchiveRow, ArchiveTrust, ArchiveWriter, ExportError,
    ExportSummary, FORMAT_CHOSEN, FORMAT_WHOLE,
};
#[cfg(feature = "sqlite")]
pub use export::{export, verify_export};
pub use head::{Cut, Head};
#[cfg(feature = "sqlite")]
pub use offline::OfflineJournal;
#[cfg(feature = "sqlite")]
pub use verify::{Problem, VerifyReport, verify};
