//! How a SQLite store is opened.

use std::{path::PathBuf, sync::Arc, time::Duration};

use volary_kernel::{Name, sign::SigningKey};

/// How long journal entries are kept. Default: 7 days.
pub const DEFAULT_MAX_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// How large the database may grow. Default: 1 GiB.
pub const DEFAULT_MAX_BYTES: u64 = 1 << 30;
/// Free disk space below which new work is refused. Default: 256 MiB, so that what runs can end in peace.
pub const DEFAULT_MIN_FREE_DISK: u64 = 256 << 20;
/// Disk space set aside for acks when the disk is full all the same. Default: 4 MiB.
pub const DEFAULT_RESERVE: u64 = 4 << 20;
/// Reads that run at a time. Default: 2.
pub const DEFAULT_READERS: usize = 2;

/// How long a commit waits for other processes that share the database. Default: 10 s, a slow disk's flush and more.
pub const DEFAULT_BUSY: Duration = Duration::from_secs(10);

/// Who may have the database open at a time. All openers must say the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Sharing {
    /// This process alone, and one handle in it: the fastest.
    #[default]
    Exclusive,
    /// Several processes of one node on one machine. Each commit waits for its turn among them; a process that dies at any
    /// point harms no other. [`crate::Queues`] stay with the first that opens them. Watchers see what others committed
    /// within some [`super::SHARED_POLL`].
    Shared,
}

impl Sharing {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Exclusive => "exclusive",
            Self::Shared => "shared",
        }
    }
}

/// What is removed when. Whole beginnings of the journal go, never single entries; what pins, live queue items
/// ([`crate::queue`]) or the last entry need stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Entries older than this are removed.
    pub max_age: Duration,
    /// From nine tenths of this size on, the oldest entries are removed; at this size new work is refused. Counts the
    /// pages in use of the whole database, records too.
    pub max_bytes: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            max_age: DEFAULT_MAX_AGE,
            max_bytes: DEFAULT_MAX_BYTES,
        }
    }
}

/// What to do with a database that is not what its signed head says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnDamage {
    /// Do not open it: [`crate::StoreError::Corrupt`]. Nothing is changed, so that it can be looked into.
    #[default]
    Refuse,
    /// Go on from what is there, sign that, and tell of it in the journal (`store.accepted_loss`).
    Accept,
}

/// How a [`super::SqliteStore`] is opened.
#[derive(Debug, Clone)]
pub struct SqliteConfig {
    /// The database. Beside it are `.head` (the signed head), `.lock`, `.reserve`, and SQLite's `-wal` and `-shm`.
    pub path: PathBuf,
    /// The node. A database belongs to one.
    pub node: Name,
    /// Signs the journal's head.
    pub key: Arc<SigningKey>,
    /// What is removed when.
    pub retention: Retention,
    /// Free disk space below which new work is refused, in bytes; 0 turns it off.
    pub min_free_disk: u64,
    /// Disk space set aside for acks, in bytes; 0 for none.
    pub reserve: u64,
    /// Reads that run at a time; at least 1.
    pub readers: usize,
    /// What to do with a database that is not what its signed head says.
    pub on_damage: OnDamage,
    /// Who may have it open at a time.
    pub sharing: Sharing,
    /// Shared: how long a commit waits for its turn before it is [`crate::StoreError::Busy`].
    pub busy: Duration,
}

impl SqliteConfig {
    /// A database at `path` with the default bounds.
    pub fn new(path: impl Into<PathBuf>, node: Name, key: Arc<SigningKey>) -> Self {
        Self {
            path: path.into(),
            node,
            key,
            retention: Retention::default(),
            min_free_disk: DEFAULT_MIN_FREE_DISK,
            reserve: DEFAULT_RESERVE,
            readers: DEFAULT_READERS,
            on_damage: OnDamage::Refuse,
            sharing: Sharing::Exclusive,
            busy: DEFAULT_BUSY,
        }
    }
}
