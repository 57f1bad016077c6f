//! Archives: parts of a journal as files that prove themselves. JSON lines, chained, signed at the end.
//!
//! | line | format 1, a journal from some entry on | format 2, chosen entries |
//! |---|---|---|
//! | first | `{"volary_journal":1,"node","key","from","previous"}` | `{"volary_journal":2,"node","key","at","filter"}` |
//! | entry | `{"seq","at","version","cause"?,"kind","tenant","agent"?,"trace"?,"body" or "body_hex","hash"}` | the same without `version`, with `"sealed_hex"?` |
//! | last | `{"entries","hash","signature"}` | the same |
//!
//! In format 1 `hash` is the node's own chain, so each entry can be compared with the node's signed head. In format 2 the
//! entries between are missing, so `hash` is a chain over the archive itself: it begins with the first line, in which the
//! node says what it chose (`filter`), and covers every entry and its seal. The signature is over the BLAKE3 hash of all
//! lines before it, so no byte can change. A body that is one line of JSON stands as it is, byte for byte; any other as
//! hex. The decoder is pure and reads untrusted input: bounded, without panics.

mod line;
mod read;
mod write;

use bytes::Bytes;
use serde_json::value::RawValue;
use volary_kernel::{
    Name,
    clock::Timestamp,
    sign::{PublicKey, SignError},
};

use self::line::Last;
pub(super) use self::line::{First, Line};
#[cfg(feature = "sqlite")]
pub(super) use self::write::Lines;
pub use self::{read::ArchiveReader, write::ArchiveWriter};
use crate::{
    entry::{JournalRow, Seq},
    error::StoreError,
};

/// A journal from some entry on, in the node's own chain.
pub const FORMAT_WHOLE: u32 = 1;
/// Chosen entries, in a chain of their own.
pub const FORMAT_CHOSEN: u32 = 2;

/// An archive that is not what was written, or cannot be read or written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ExportError {
    /// A line is not as it was written.
    #[error("line {line}: {what}")]
    Bad {
        /// The line, from 1.
        line: u64,
        /// What is wrong.
        what: String,
    },
    /// It was written in a format that this version does not know.
    #[error("format {found} is not known, only {FORMAT_WHOLE} and {FORMAT_CHOSEN}")]
    Format {
        /// The format it states.
        found: u32,
    },
    /// It states another key than the one that is trusted.
    #[error("it is signed with the key {found}, not with {expected}")]
    WrongKey {
        /// The key it states.
        found: Box<PublicKey>,
        /// The key that is trusted.
        expected: Box<PublicKey>,
    },
    /// The export does not end with its signature: it was cut off.
    #[error("the export ends without its signature")]
    CutOff,
    /// The signature is of another key or another content.
    #[error(transparent)]
    Signature(#[from] SignError),
    /// It could not be read or written.
    #[error("{0}")]
    Io(String),
    /// The database could not be read, or is damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<std::io::Error> for ExportError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error.to_string())
    }
}

/// What an archive holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportSummary {
    /// Whose journal.
    pub node: Name,
    /// How many entries.
    pub entries: u64,
    /// The first entry, if there is one.
    pub first: Option<Seq>,
    /// The last entry, if there is one.
    pub last: Option<Seq>,
}

impl ExportSummary {
    pub(super) const fn of(node: Name) -> Self {
        Self {
            node,
            entries: 0,
            first: None,
            last: None,
        }
    }

    pub(super) fn count(&mut self, seq: Seq) {
        self.entries += 1;
        self.first.get_or_insert(seq);
        self.last = Some(seq);
    }
}

/// Whose signature counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveTrust {
    /// Only this key's: says that the node wrote it.
    Key(PublicKey),
    /// The key that the archive states: says only that nothing was changed since somebody signed it.
    Stated,
}

/// What an archive says about itself in its first line.
#[derive(Debug, Clone)]
pub struct ArchiveHeader {
    /// [`FORMAT_WHOLE`] or [`FORMAT_CHOSEN`].
    pub format: u32,
    /// Whose journal.
    pub node: Name,
    /// The key it says it is signed with.
    pub key: PublicKey,
    /// When the entries were chosen; format 2 only.
    pub at: Option<Timestamp>,
    /// What they were chosen by, as the writer put it; format 2 only.
    pub filter: Option<Box<RawValue>>,
}

/// An entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveRow {
    /// The entry.
    pub row: JournalRow,
    /// What proves it without the archive, in the form of the domain that wrote it.
    pub sealed: Option<Bytes>,
}
