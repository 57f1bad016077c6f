//! What can go wrong with a store, sorted by what the caller should do about it.

use std::{fmt, path::PathBuf};

use crate::{batch::Expect, entry::Seq, key::Key};

/// A record as a conflict found it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// No live record has this key.
    Absent,
    /// A record of this version is there.
    Version(u64),
}

/// What is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FullWhat {
    /// The store holds as many bytes as it may, and nothing more of the journal can be removed.
    StoreBytes,
    /// The file system has less free space than the watermark. `limit` is the watermark, in bytes.
    DiskSpace,
    /// The file system refused to grow a file.
    Disk,
}

impl fmt::Display for FullWhat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StoreBytes => "store is at its size bound",
            Self::DiskSpace => "free disk space is below the watermark",
            Self::Disk => "disk is full",
        })
    }
}

/// A store refused or failed.
///
/// Unless a variant says otherwise the batch was not applied, not even in part.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// A precondition did not hold. Read again and decide anew.
    #[error("record `{key}` was expected {expected}, found {found}", found = show_found(*.found))]
    Conflict {
        /// The record.
        key: Key,
        /// What the batch expected.
        expected: Expect,
        /// What was there.
        found: Found,
    },
    /// There is no room for new work. Deletes, acks and other batches that are not intake still go through; try again
    /// when space is there.
    #[error("{what}: {used} bytes used or free, limit {limit}")]
    Full {
        /// Which bound.
        what: FullWhat,
        /// Bytes used (of the store) or free (of the disk).
        used: u64,
        /// The bound, in bytes.
        limit: u64,
    },
    /// One value, body or batch is larger than a store takes.
    #[error("{what} has {size} bytes, limit {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size, in bytes.
        size: usize,
        /// The bound, in bytes.
        limit: usize,
    },
    /// The caller handed over something that no store takes.
    #[error("{0}")]
    Invalid(String),
    /// What is stored is not what was written. Nothing may be built on it.
    #[error("{what}{}", show_seq(*.seq))]
    Corrupt {
        /// What is wrong.
        what: String,
        /// The first bad or missing entry of the journal, if that is known.
        seq: Option<Seq>,
    },
    /// The entries asked for were removed by retention. Continue at `first`.
    #[error("journal entries before {first} were removed by retention, {from} was asked for")]
    Trimmed {
        /// What was asked for.
        from: Seq,
        /// The first entry that is still there.
        first: Seq,
    },
    /// Another process (or another part of this one) has the database open for writing.
    #[error("database {} is in use by another node{}", path.display(), show_pid(*.pid))]
    InUse {
        /// The database.
        path: PathBuf,
        /// The process that holds it, if it said so.
        pid: Option<u32>,
    },
    /// Some openers want the database for themselves, others share it.
    #[error("database {} is open in {} mode{}, {wanted} was asked for: all openers must agree", path.display(), other_mode(.wanted), show_pid(*.pid))]
    Mixed {
        /// The database.
        path: PathBuf,
        /// The process that holds it, if it said so.
        pid: Option<u32>,
        /// How it should have been opened.
        wanted: &'static str,
    },
    /// Other processes that share the database kept this one waiting too long. Try again; if it stays, look at `pid`.
    #[error("database {} was busy for {} with the commit of another process{}", path.display(), volary_kernel::text::brief_duration(*.waited), show_pid(*.pid))]
    Busy {
        /// The database.
        path: PathBuf,
        /// The process whose turn it was, if it said so.
        pid: Option<u32>,
        /// How long was waited.
        waited: std::time::Duration,
    },
    /// The queues of a shared database are run by another process.
    #[error("the queues of database {} are run by another process{}: of those that share it, one may", path.display(), show_pid(*.pid))]
    QueuesInUse {
        /// The database.
        path: PathBuf,
        /// That process, if it said so.
        pid: Option<u32>,
    },
    /// The store was closed.
    #[error("store is closed")]
    Closed,
    /// The disk or the database engine failed. A commit that got this error may or may not be there after the next
    /// open; the store takes no more commits until then.
    #[error("{what}: {cause}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        cause: String,
    },
}

fn show_found(found: Found) -> String {
    match found {
        Found::Absent => "absent".into(),
        Found::Version(version) => format!("at version {version}"),
    }
}

fn show_seq(seq: Option<Seq>) -> String {
    seq.map_or_else(String::new, |seq| {
        format!(" (first bad or missing entry: {seq})")
    })
}

fn show_pid(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (pid {pid})"))
}

fn other_mode(wanted: &str) -> &'static str {
    if wanted == "shared" {
        "exclusive"
    } else {
        "shared"
    }
}

impl StoreError {
    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        Self::Invalid(what.into())
    }

    pub(crate) fn corrupt(what: impl Into<String>, seq: Option<Seq>) -> Self {
        Self::Corrupt {
            what: what.into(),
            seq,
        }
    }

    pub(crate) fn io(what: &'static str, cause: impl fmt::Display) -> Self {
        Self::Io {
            what,
            cause: cause.to_string(),
        }
    }

    /// Whether trying the same thing again, after reading anew or when space is there, can succeed.
    pub const fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Conflict { .. } | Self::Full { .. } | Self::Busy { .. }
        )
    }
}
