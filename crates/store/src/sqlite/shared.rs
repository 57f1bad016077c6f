//! Several processes on one database: taking turns, catching up with what others committed, and telling watchers of it.
//!
//! ```text
//! turn (file lock) ─▶ anything new? re-read place and chain ─▶ transaction ─▶ signed head ─▶ next one's turn
//! ```
//! Whoever has the turn is the only one that commits or writes the head, so the head never goes back. A process that dies
//! with the turn leaves what a crash leaves: a transaction that SQLite takes back, or one that is whole and whose head is
//! older, which the next commit moves on. Each commit leaves a note of what it changed, from which the others tell their
//! watchers; the last few thousand notes are kept, and one who missed some tells its watchers that they lagged.

use std::time::Duration;

use rusqlite::Connection;

use super::{
    apply::{Progress, Statements},
    job::{Job, Write},
    open,
    schema::{META_NOTE, failed},
    writer::{Db, Writer},
};
use crate::{
    entry::Seq,
    error::StoreError,
    key::Key,
    watch::{Change, ChangeKind},
};

/// How often an idle process looks for what others that share its database committed.
pub const SHARED_POLL: Duration = Duration::from_millis(20);

/// Commits whose notes are kept.
const NOTES: u64 = 4096;
/// Commits between two removals of old notes.
const CLEAR_EVERY: u64 = 64;
/// Longest note, in bytes; more changes than fit are told of as "many".
const NOTE_BYTES: usize = 64 << 10;

const SHARING: &str = "sharing the database";

/// What a process knows of the others' commits.
#[derive(Debug, Default)]
pub(super) struct Others {
    /// SQLite's number for "somebody else committed", as of the last look.
    looked: i64,
    /// The same, as of the last catching up.
    caught_up: i64,
    /// The last commit that watchers were told of.
    told: u64,
}

impl Others {
    pub(super) fn new(conn: &Connection, version: u64) -> rusqlite::Result<Self> {
        let now = data_version(conn)?;
        Ok(Self {
            looked: now,
            // Something may have come between opening and now.
            caught_up: now.wrapping_sub(1),
            told: version,
        })
    }
}

fn data_version(conn: &Connection) -> rusqlite::Result<i64> {
    conn.prepare_cached("PRAGMA data_version")?
        .query_row([], |row| row.get(0))
}

impl Writer {
    /// Whether other processes share the database.
    pub(super) const fn is_shared(&self) -> bool {
        self.turn.is_some()
    }

    /// Waits for this process's turn and catches up with the others. Nothing where nobody shares.
    pub(super) fn enter(&mut self, db: &mut Db<'_>) -> Result<(), StoreError> {
        let Some(turn) = &mut self.turn else {
            return Ok(());
        };
        turn.take()?;
        let end = self.catch_up(db);
        if end.is_err() {
            self.leave();
        }
        end
    }

    /// Lets the next one have its turn.
    pub(super) fn leave(&mut self) {
        if let Some(turn) = &mut self.turn {
            turn.leave();
        }
    }

    fn catch_up(&mut self, db: &mut Db<'_>) -> Result<(), StoreError> {
        let now = data_version(db.conn).map_err(|error| failed(SHARING, error))?;
        if now == self.others.caught_up {
            return Ok(());
        }
        let (node, key) = (self.config.node.as_str(), self.config.key.public());
        let found = open::find_state(db.conn, node, &key)?;
        (self.progress, self.cut) = (found.progress, found.cut);
        self.drop_draft();
        self.head
            .refresh()
            .map_err(|error| StoreError::io("reading the signed head", error))?;
        db.sql
            .rolled_back(db.conn)
            .map_err(|error| failed(SHARING, error))?;
        self.others.caught_up = now;
        self.look(db.conn)
    }

    /// Tells those who watch of what other processes committed since the last look.
    pub(super) fn look(&mut self, conn: &Connection) -> Result<(), StoreError> {
        let error = |error| failed(SHARING, error);
        let now = data_version(conn).map_err(error)?;
        if now == self.others.looked {
            return Ok(());
        }
        self.others.looked = now;
        let notes = Notes::since(conn, self.others.told).map_err(error)?;
        if notes.gap {
            self.shared.watchers.lagged();
        }
        for change in &notes.changes {
            self.shared
                .watchers
                .publish(&change.key, change.kind, change.version);
        }
        self.others.told = notes.last;
        let last = "SELECT max(seq) FROM journal";
        let last = conn
            .prepare_cached(last)
            .and_then(|mut last| last.query_row([], |row| row.get::<_, Option<i64>>(0)));
        if let Some(last) = last.map_err(error)? {
            let last = Seq(last.cast_unsigned());
            self.news
                .send_if_modified(|head| last > *head && std::mem::replace(head, last) != last);
        }
        Ok(())
    }

    /// Leaves the note of a group, inside its transaction.
    pub(super) fn note_group<'a>(
        &mut self,
        db: &mut Db<'_>,
        before: u64,
        jobs: impl Iterator<Item = (&'a Job, u64)>,
    ) -> rusqlite::Result<()> {
        let mut note = Note::after(before);
        for (job, version) in jobs {
            for write in &job.writes {
                match write {
                    Write::Put { key, .. } => note.add(key, ChangeKind::Put, version),
                    Write::Delete { key } => note.add(key, ChangeKind::Delete, version),
                }
            }
        }
        note.leave(&mut db.sql, db.conn, &mut self.progress)
    }

    /// Leaves the note of records past their time, inside the transaction that removes them.
    pub(super) fn note_expired(&mut self, db: &mut Db<'_>, keys: &[Key]) -> rusqlite::Result<()> {
        if self.is_shared() && !keys.is_empty() {
            let mut note = Note::after(self.progress.version);
            self.progress.version += 1;
            self.progress.version_unkept = true;
            for key in keys {
                note.add(key, ChangeKind::Expired, self.progress.version);
            }
            note.leave(&mut db.sql, db.conn, &mut self.progress)?;
            db.sql.keep_version(&mut self.progress)?;
        }
        Ok(())
    }

    /// After a commit of this process, of which it tells its watchers itself.
    pub(super) const fn told_own(&mut self) {
        self.others.told = self.progress.version;
    }
}

/// What one commit changed: the commit before it, then kind, version and key of each change.
struct Note {
    bytes: Vec<u8>,
    many: bool,
}

const PUT: u8 = 0;
const DELETE: u8 = 1;
const EXPIRED: u8 = 2;
const MANY: u8 = 3;

impl Note {
    fn after(before: u64) -> Self {
        Self {
            bytes: before.to_le_bytes().to_vec(),
            many: false,
        }
    }

    fn add(&mut self, key: &Key, kind: ChangeKind, version: u64) {
        if self.many || self.bytes.len() + key.len() > NOTE_BYTES {
            self.many = true;
            return;
        }
        let length = u16::try_from(key.len()).unwrap_or(u16::MAX);
        self.bytes.push(match kind {
            ChangeKind::Put => PUT,
            ChangeKind::Delete => DELETE,
            ChangeKind::Expired => EXPIRED,
        });
        self.bytes.extend_from_slice(&version.to_le_bytes());
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(key.as_bytes());
    }

    fn leave(
        mut self,
        sql: &mut Statements<'_>,
        conn: &Connection,
        progress: &mut Progress,
    ) -> rusqlite::Result<()> {
        if self.many {
            self.bytes.truncate(8);
            self.bytes.push(MANY);
        }
        let version = progress.version;
        sql.put_meta(&note_key(version), &self.bytes, progress)?;
        if version.is_multiple_of(CLEAR_EVERY) {
            let clear = "DELETE FROM record WHERE key >= ?1 AND key < ?2";
            let last = note_key(version.saturating_sub(NOTES));
            conn.prepare_cached(clear)?.execute([META_NOTE, &last])?;
        }
        Ok(())
    }
}

fn note_key(version: u64) -> String {
    format!("{META_NOTE}{version:020}")
}

/// What was noted since a commit.
struct Notes {
    changes: Vec<Change>,
    last: u64,
    /// Some notes are missing.
    gap: bool,
}

impl Notes {
    fn since(conn: &Connection, told: u64) -> rusqlite::Result<Self> {
        let sql = "SELECT key, value FROM record WHERE key > ?1 AND key < ?2 ORDER BY key";
        let mut statement = conn.prepare_cached(sql)?;
        // Digits sort before ':'.
        let mut rows = statement.query([note_key(told), format!("{META_NOTE}:")])?;
        let mut this = Self {
            changes: Vec::new(),
            last: told,
            gap: false,
        };
        while let Some(row) = rows.next()? {
            let key = row.get_ref(0)?.as_str()?;
            let bytes = row.get_ref(1)?.as_blob()?;
            let version = key
                .strip_prefix(META_NOTE)
                .and_then(|digits| digits.parse().ok());
            let whole = this.read(bytes);
            this.gap |= whole.is_none();
            this.last = version.unwrap_or(this.last);
        }
        Ok(this)
    }

    /// Takes in one note; `None` if something is missing before it or in it.
    fn read(&mut self, bytes: &[u8]) -> Option<()> {
        let (before, mut rest) = bytes.split_first_chunk::<8>()?;
        let follows = u64::from_le_bytes(*before) == self.last;
        while let Some((kind, more)) = rest.split_first() {
            let (version, more) = more.split_first_chunk::<8>()?;
            let (length, more) = more.split_first_chunk::<2>()?;
            let (key, more) = more.split_at_checked(u16::from_le_bytes(*length).into())?;
            let kind = match *kind {
                PUT => ChangeKind::Put,
                DELETE => ChangeKind::Delete,
                EXPIRED => ChangeKind::Expired,
                _ => return None,
            };
            self.changes.push(Change {
                key: Key::new(std::str::from_utf8(key).ok()?).ok()?,
                kind,
                version: u64::from_le_bytes(*version),
            });
            rest = more;
        }
        follows.then_some(())
    }
}
