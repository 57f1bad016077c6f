//! How the database is laid out and opened. One place for writer, readers and checks.
//!
//! | table | row |
//! |---|---|
//! | `record` | a record, clustered by key; `sum` is its checksum |
//! | `journal` | an entry, clustered by `seq`; `version` is its commit, `hash` the chain after it |
//! | `chunk` | a part of a value or body longer than [`CHUNK`]: `chunk` is the first id, `chunks` how many follow |
//!
//! Chunks of a record are removed by the writer, which knows the few keys that have some: a trigger would make SQLite
//! keep an undo journal for every single write.
//!
//! Records whose keys begin with U+0001 are the store's own (callers' keys cannot): the node, the last commit, the cut,
//! and notes of the last commits where several processes share the database.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OpenFlags, config::DbConfig};

use crate::error::StoreError;

/// Marks the file as ours ("Vlry").
const APPLICATION_ID: i32 = 0x566c_7279;
/// Version of this layout.
const LAYOUT: i32 = 2;
/// Longest value or body kept in its row, in bytes. Longer ones are cut into parts of this size.
pub(crate) const CHUNK: usize = 256 << 10;

pub(crate) const META_NODE: &str = "\u{1}meta/node";
pub(crate) const META_VERSION: &str = "\u{1}meta/version";
/// What a commit changed, for others that share the database; ends in the commit's number.
pub(crate) const META_NOTE: &str = "\u{1}note/";
pub(crate) const META_CUT: &str = "\u{1}meta/cut";

const TABLES: &str = "
CREATE TABLE record (
    key TEXT PRIMARY KEY NOT NULL, version INTEGER NOT NULL, expires INTEGER, sum INTEGER NOT NULL,
    chunk INTEGER, chunks INTEGER, value BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX record_expires ON record (expires) WHERE expires IS NOT NULL;
CREATE INDEX record_chunked ON record (key) WHERE chunk IS NOT NULL;
CREATE TABLE journal (
    seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, version INTEGER NOT NULL, cause INTEGER,
    kind TEXT NOT NULL, tenant TEXT NOT NULL, agent TEXT, trace BLOB, hash BLOB NOT NULL,
    chunk INTEGER, chunks INTEGER, body BLOB NOT NULL
) STRICT;
CREATE TABLE chunk (id INTEGER PRIMARY KEY, data BLOB NOT NULL) STRICT;
CREATE TRIGGER journal_chunks_deleted AFTER DELETE ON journal WHEN old.chunk IS NOT NULL BEGIN
    DELETE FROM chunk WHERE id >= old.chunk AND id < old.chunk + old.chunks;
END;
";

/// Frames in the log before it is moved into the database: 4,000 pages of 4 KiB, so that a busy page is moved once
/// for many commits.
const CHECKPOINT_PAGES: u32 = 4000;

/// What the log may keep on disk after a burst, in bytes.
const LOG_BYTES: i64 = 64 << 20;

/// How long SQLite waits for a lock that somebody else has.
pub(crate) const BUSY: std::time::Duration = std::time::Duration::from_secs(5);

/// Opens the one writing connection; makes the tables in an empty file.
pub(crate) fn open_writer(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)
        .map_err(|error| failed("opening the database", error))?;
    let setup = || -> rusqlite::Result<i32> {
        // Moved into the database on a clean close only: a log that may be damaged stays as evidence.
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        conn.pragma_update(None, "journal_mode", "WAL")?;
        conn.pragma_update(None, "synchronous", "FULL")?;
        conn.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
        conn.pragma_update(None, "journal_size_limit", LOG_BYTES)?;
        common(&conn)?;
        conn.pragma_query_value(None, "user_version", |row| row.get(0))
    };
    let layout = setup().map_err(|error| failed("opening the database", error))?;
    if layout == 0 {
        let tables = format!(
            "BEGIN IMMEDIATE; {TABLES} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {LAYOUT}; COMMIT;"
        );
        conn.execute_batch(&tables)
            .map_err(|error| failed("making the tables", error))?;
    }
    check_layout(&conn)?;
    Ok(conn)
}

/// Opens a connection that can only read. It leaves database and log as they are, also when it is the last to close.
pub(crate) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)
        .map_err(|error| failed("opening the database", error))?;
    set_up_reader(&conn)?;
    Ok(conn)
}

fn set_up_reader(conn: &Connection) -> Result<(), StoreError> {
    let setup = || -> rusqlite::Result<()> {
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        conn.pragma_update(None, "query_only", true)?;
        common(conn)
    };
    setup().map_err(|error| failed("opening the database", error))?;
    check_layout(conn)
}

fn common(conn: &Connection) -> rusqlite::Result<()> {
    conn.pragma_update(None, "cell_size_check", true)?;
    conn.pragma_update(None, "cache_size", -16_384)?;
    conn.busy_timeout(BUSY)?;
    conn.set_prepared_statement_cache_capacity(64);
    Ok(())
}

fn check_layout(conn: &Connection) -> Result<(), StoreError> {
    let number = |name| conn.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let (id, layout) = number("application_id")
        .and_then(|id| Ok((id, number("user_version")?)))
        .map_err(|error| failed("reading the database", error))?;
    if id != APPLICATION_ID || layout != LAYOUT {
        let what = format!(
            "not a Volary database of layout {LAYOUT} (application id {id:#x}, layout {layout})"
        );
        return Err(StoreError::corrupt(what, None));
    }
    Ok(())
}

/// An error of SQLite, sorted: damage, or the system.
pub(crate) fn failed(what: &'static str, error: rusqlite::Error) -> StoreError {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    // Rows that hold what no writer of this layout writes.
    let foreign = matches!(
        error,
        rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::InvalidColumnName(_)
            | rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::Utf8Error(..)
    );
    match error.sqlite_error_code() {
        code if foreign || matches!(code, Some(DatabaseCorrupt | NotADatabase)) => {
            StoreError::corrupt(format!("{what}: {error}"), None)
        }
        _ => StoreError::io(what, error),
    }
}

/// Whether tables, indices and triggers are those that were made.
pub(crate) fn is_as_made(conn: &Connection) -> Result<bool, StoreError> {
    let list = |conn: &Connection| -> rusqlite::Result<Vec<(String, String, Option<String>)>> {
        let mut statement =
            conn.prepare("SELECT type, name, sql FROM sqlite_schema ORDER BY type, name")?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        rows.collect()
    };
    let wanted = || -> rusqlite::Result<_> {
        let fresh = Connection::open_in_memory()?;
        fresh.execute_batch(TABLES)?;
        list(&fresh)
    };
    let wanted = wanted().map_err(|error| failed("making the tables", error))?;
    Ok(list(conn).map_err(|error| failed("reading the tables", error))? == wanted)
}

/// A database opened to be looked at, wherever it lies, without leaving a trace.
pub(crate) struct View {
    conn: Connection,
    /// The log that must stay empty for what is seen to be true.
    quiet_log: Option<PathBuf>,
    _copy: Option<Copy>,
}

impl View {
    pub(crate) fn of(path: &Path) -> Result<Self, StoreError> {
        let log = beside(path, "-wal");
        if !has_content(&log) {
            // Cleanly closed: nobody needs locks or a log, so none are made.
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
                | OpenFlags::SQLITE_OPEN_NO_MUTEX
                | OpenFlags::SQLITE_OPEN_URI;
            let uri = format!("file:{}?immutable=1", escape(path));
            let conn = Connection::open_with_flags(uri, flags)
                .map_err(|error| failed("opening the database", error))?;
            set_up_reader(&conn)?;
            return Ok(Self {
                conn,
                quiet_log: Some(log),
                _copy: None,
            });
        }
        match open_reader(path) {
            Ok(conn) => Ok(Self {
                conn,
                quiet_log: None,
                _copy: None,
            }),
            // A directory that cannot be written to: SQLite needs a place for its index of the log.
            Err(StoreError::Io { .. }) => {
                let copy = Copy::of(path)
                    .map_err(|error| StoreError::io("copying the database", error))?;
                let conn = open_reader(&copy.database())?;
                Ok(Self {
                    conn,
                    quiet_log: None,
                    _copy: Some(copy),
                })
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) const fn conn(&self) -> &Connection {
        &self.conn
    }

    /// Whether somebody began to write while it was looked at.
    pub(crate) fn is_stale(&self) -> bool {
        self.quiet_log.as_deref().is_some_and(has_content)
    }
}

fn has_content(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|file| file.len() > 0)
}

pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// A path as part of a URI.
fn escape(path: &Path) -> String {
    let bytes = path.as_os_str().as_encoded_bytes().iter();
    bytes.fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || b"/-_.".contains(byte) {
            text.push(char::from(*byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
        text
    })
}

/// A copy of database and log, gone when dropped.
struct Copy(PathBuf);

impl Copy {
    fn of(path: &Path) -> std::io::Result<Self> {
        let this =
            Self(std::env::temp_dir().join(format!("volary-{}", volary_kernel::Uid::generate())));
        volary_kernel::file::create_private_dir(&this.0)?;
        std::fs::copy(path, this.database())?;
        std::fs::copy(beside(path, "-wal"), beside(&this.database(), "-wal"))?;
        Ok(this)
    }

    fn database(&self) -> PathBuf {
        self.0.join("copy.db")
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // What cannot be removed is left to the system's clean-up of its temporary directory.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
