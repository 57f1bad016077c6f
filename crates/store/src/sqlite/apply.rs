//! Writing one batch inside the open transaction.

use std::collections::HashSet;

use rusqlite::{Connection, Statement};

use super::{
    job::{Job, Row, Write},
    schema::{CHUNK, META_VERSION},
};
use crate::{
    batch::{Committed, Expect},
    entry::{Cause, Seq},
    error::{Found, StoreError},
    journal::chain::{self, Hash, Place},
    key::Key,
    memory::check_expect,
};
use volary_kernel::clock::Timestamp;

/// What grows with every commit; put back when a transaction is rolled back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress {
    pub seq: Seq,
    pub hash: Hash,
    pub version: u64,
    /// The next free id of a chunk.
    pub chunk: i64,
    /// Whether the last commit left no journal entry, so that its version must be kept elsewhere.
    pub version_unkept: bool,
}

/// Why a batch was not written.
pub(super) enum NotApplied {
    /// It was refused before anything was written; the transaction goes on.
    Refused(StoreError),
    /// The transaction is broken.
    Failed(rusqlite::Error),
}

impl From<rusqlite::Error> for NotApplied {
    fn from(error: rusqlite::Error) -> Self {
        Self::Failed(error)
    }
}

/// Entries written with one statement.
const MANY: usize = 16;
/// Columns of an entry.
const COLUMNS: usize = 12;

/// An entry with its place.
struct Placed {
    place: Place,
    hash: Hash,
    parts: Option<(i64, i64)>,
}

impl Placed {
    /// Binds the entry as the row `index` of `append`.
    fn bind(&self, row: &Row, append: &mut Statement<'_>, index: usize) -> rusqlite::Result<()> {
        let Self { place, hash, parts } = self;
        let first = index * COLUMNS;
        append.raw_bind_parameter(first + 1, place.seq.0.cast_signed())?;
        append.raw_bind_parameter(first + 2, place.at)?;
        append.raw_bind_parameter(first + 3, place.version.cast_signed())?;
        append.raw_bind_parameter(first + 4, place.cause.map(|cause| cause.0.cast_signed()))?;
        append.raw_bind_parameter(first + 5, row.kind.as_ref())?;
        append.raw_bind_parameter(first + 6, row.tenant.as_str())?;
        append.raw_bind_parameter(
            first + 7,
            row.agent.as_ref().map(volary_kernel::Name::as_str),
        )?;
        append.raw_bind_parameter(first + 8, row.trace.as_ref().map(<[u8; 16]>::as_slice))?;
        append.raw_bind_parameter(first + 9, hash.as_slice())?;
        append.raw_bind_parameter(first + 10, parts.map(|(first, _)| first))?;
        append.raw_bind_parameter(first + 11, parts.map(|(_, count)| count))?;
        append.raw_bind_parameter(
            first + 12,
            if parts.is_some() {
                &[]
            } else {
                row.body.as_ref()
            },
        )
    }
}

/// Appends `rows` entries. `OR ROLLBACK` because no constraint can fail, and SQLite then keeps no undo journal.
fn append_sql(rows: usize) -> String {
    let row = format!("({})", ["?"; COLUMNS].join(", "));
    let rows = vec![row; rows].join(", ");
    format!(
        "INSERT OR ROLLBACK INTO journal
         (seq, at, version, cause, kind, tenant, agent, trace, hash, chunk, chunks, body) VALUES {rows}"
    )
}

/// The statements of the writer, prepared once.
pub(super) struct Statements<'conn> {
    find: Statement<'conn>,
    put: Statement<'conn>,
    delete: Statement<'conn>,
    append: Statement<'conn>,
    append_many: Statement<'conn>,
    /// Entries that have their place and are not written yet.
    placed: Vec<Placed>,
    chunk: Statement<'conn>,
    unchunk: Statement<'conn>,
    /// Records with chunks. Few: each has more than [`CHUNK`] bytes.
    chunked: HashSet<Key>,
}

impl<'conn> Statements<'conn> {
    pub(super) fn new(conn: &'conn Connection) -> rusqlite::Result<Self> {
        Ok(Self {
            find: conn.prepare("SELECT version, expires FROM record WHERE key = ?1")?,
            put: conn.prepare(
                "INSERT INTO record (key, version, expires, sum, chunk, chunks, value) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT (key) DO UPDATE SET version = excluded.version, expires = excluded.expires,
                 sum = excluded.sum, chunk = excluded.chunk, chunks = excluded.chunks, value = excluded.value",
            )?,
            delete: conn.prepare("DELETE FROM record WHERE key = ?1")?,
            append: conn.prepare(&append_sql(1))?,
            append_many: conn.prepare(&append_sql(MANY))?,
            placed: Vec::new(),
            chunk: conn.prepare("INSERT INTO chunk (id, data) VALUES (?1, ?2)")?,
            unchunk: conn.prepare(
                "DELETE FROM chunk WHERE id >= (SELECT chunk FROM record WHERE key = ?1)
                 AND id < (SELECT chunk + chunks FROM record WHERE key = ?1)",
            )?,
            chunked: chunked(conn)?,
        })
    }

    /// Checks what the batch expects, then writes it.
    pub(super) fn apply(
        &mut self,
        job: &Job,
        progress: &mut Progress,
        now: Timestamp,
    ) -> Result<Committed, NotApplied> {
        for (key, expect) in &job.checks {
            self.check(key, *expect, now)?;
        }
        progress.version += 1;
        let version = progress.version;
        for write in &job.writes {
            match write {
                Write::Put {
                    key,
                    value,
                    expires,
                    sum,
                } => {
                    self.put(key, value, *expires, chain::stamp(*sum, version), progress)?;
                }
                Write::Delete { key } => self.delete(key)?,
            }
        }
        let mut seqs = Vec::with_capacity(job.rows.len());
        for row in &job.rows {
            seqs.push(self.append(row, &seqs, progress, now)?);
        }
        progress.version_unkept = job.rows.is_empty();
        Ok(Committed {
            version,
            seqs,
            at: now,
        })
    }

    fn check(&mut self, key: &Key, expect: Expect, now: Timestamp) -> Result<(), NotApplied> {
        self.find.raw_bind_parameter(1, key.as_str())?;
        let mut rows = self.find.raw_query();
        let found = match rows.next()? {
            None => Found::Absent,
            Some(row)
                if row
                    .get::<_, Option<i64>>(1)?
                    .is_some_and(|expires| expires <= now.as_micros()) =>
            {
                Found::Absent
            }
            Some(row) => Found::Version(row.get::<_, i64>(0)?.cast_unsigned()),
        };
        check_expect(key, expect, found).map_err(NotApplied::Refused)
    }

    /// Removes a record.
    pub(super) fn delete(&mut self, key: &str) -> rusqlite::Result<()> {
        self.unchunk(key)?;
        self.delete.raw_bind_parameter(1, key)?;
        self.delete.raw_execute().map(drop)
    }

    /// Removes the chunks of a record, if it has some.
    fn unchunk(&mut self, key: &str) -> rusqlite::Result<()> {
        if !self.chunked.is_empty() && self.chunked.remove(key) {
            self.unchunk.raw_bind_parameter(1, key)?;
            self.unchunk.raw_execute()?;
        }
        Ok(())
    }

    /// After a rollback: forgets what was not written, and learns anew which records have chunks.
    pub(super) fn rolled_back(&mut self, conn: &Connection) -> rusqlite::Result<()> {
        self.placed.clear();
        self.chunked = chunked(conn)?;
        Ok(())
    }

    fn put(
        &mut self,
        key: &str,
        value: &[u8],
        expires: Option<i64>,
        sum: i64,
        progress: &mut Progress,
    ) -> rusqlite::Result<()> {
        self.unchunk(key)?;
        let parts = self.cut(value, progress)?;
        if parts.is_some() {
            self.chunked.insert(Key::trusted(key.into()));
        }
        let put = &mut self.put;
        put.raw_bind_parameter(1, key)?;
        put.raw_bind_parameter(2, progress.version.cast_signed())?;
        put.raw_bind_parameter(3, expires)?;
        put.raw_bind_parameter(4, sum)?;
        put.raw_bind_parameter(5, parts.map(|(first, _)| first))?;
        put.raw_bind_parameter(6, parts.map(|(_, count)| count))?;
        put.raw_bind_parameter(7, if parts.is_some() { &[] } else { value })?;
        put.raw_execute().map(drop)
    }

    /// Gives an entry its place in the chain. It is written by [`Statements::flush`].
    fn append(
        &mut self,
        row: &Row,
        earlier: &[Seq],
        progress: &mut Progress,
        now: Timestamp,
    ) -> rusqlite::Result<Seq> {
        let cause = match row.cause {
            Cause::None | Cause::Seq(Seq(0)) => None,
            Cause::Seq(seq) => Some(seq),
            Cause::Entry(entry) => earlier.get(entry.index()).copied(),
        };
        let (seq, at, version) = (progress.seq.next(), now.as_micros(), progress.version);
        let place = Place {
            seq,
            at,
            version,
            cause,
        };
        let parts = self.cut(&row.body, progress)?;
        (progress.seq, progress.hash) = (seq, chain::link(&progress.hash, &place, &row.digest));
        self.placed.push(Placed {
            place,
            hash: progress.hash,
            parts,
        });
        Ok(seq)
    }

    /// Writes the entries that were given their places: `rows` are those of all batches applied since the last time.
    /// Many with one statement, because nobody reads them before the commit.
    pub(super) fn flush<'a>(
        &mut self,
        rows: impl Iterator<Item = &'a Row>,
    ) -> rusqlite::Result<()> {
        let entries: Vec<_> = self.placed.drain(..).zip(rows).collect();
        let (many, rest) = entries.as_chunks::<MANY>();
        for entries in many {
            for (index, (placed, row)) in entries.iter().enumerate() {
                placed.bind(row, &mut self.append_many, index)?;
            }
            self.append_many.raw_execute()?;
        }
        for (placed, row) in rest {
            placed.bind(row, &mut self.append, 0)?;
            self.append.raw_execute()?;
        }
        Ok(())
    }

    /// Writes what is too long for a row as chunks; says which.
    fn cut(
        &mut self,
        value: &[u8],
        progress: &mut Progress,
    ) -> rusqlite::Result<Option<(i64, i64)>> {
        if value.len() <= CHUNK {
            return Ok(None);
        }
        let first = progress.chunk;
        for part in value.chunks(CHUNK) {
            self.chunk.raw_bind_parameter(1, progress.chunk)?;
            self.chunk.raw_bind_parameter(2, part)?;
            self.chunk.raw_execute()?;
            progress.chunk += 1;
        }
        Ok(Some((first, progress.chunk - first)))
    }

    /// Writes a record of the store's own.
    pub(super) fn put_meta(
        &mut self,
        key: &str,
        value: &[u8],
        progress: &mut Progress,
    ) -> rusqlite::Result<()> {
        let sum = chain::stamp(chain::record_sum(key, value, None), progress.version);
        self.put(key, value, None, sum, progress)
    }

    /// Makes sure the version of the last commit is kept.
    pub(super) fn keep_version(&mut self, progress: &mut Progress) -> rusqlite::Result<()> {
        if std::mem::take(&mut progress.version_unkept) {
            self.put_meta(
                META_VERSION,
                progress.version.to_string().as_bytes(),
                progress,
            )?;
        }
        Ok(())
    }
}

fn chunked(conn: &Connection) -> rusqlite::Result<HashSet<Key>> {
    let mut statement = conn.prepare_cached("SELECT key FROM record WHERE chunk IS NOT NULL")?;
    let keys = statement.query_map([], |row| row.get::<_, String>(0))?;
    keys.map(|key| key.map(Key::trusted)).collect()
}
