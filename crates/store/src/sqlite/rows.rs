//! Reading rows back, with their checksums.

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use volary_kernel::{
    Name,
    clock::Timestamp,
    id::{Tenant, TraceId},
};

use super::schema::failed;
use crate::{
    entry::{JournalRow, Seq},
    error::StoreError,
    journal::chain,
    key::{Key, Record},
};

/// The columns [`record`] reads.
pub(crate) const RECORD: &str = "key, version, expires, sum, chunk, chunks, value";
/// The columns [`Raw::read`] reads.
pub(crate) const JOURNAL: &str =
    "seq, at, version, cause, kind, tenant, agent, trace, hash, chunk, chunks, body";

const READING: &str = "reading the database";

/// A value that may lie in chunks: first id, count, and what is in the row itself.
fn whole(
    conn: &Connection,
    chunk: Option<i64>,
    chunks: Option<i64>,
    value: Vec<u8>,
) -> rusqlite::Result<Bytes> {
    let (first, count) = match (chunk, chunks) {
        (Some(first), Some(count)) => (first, count),
        (None, None) => return Ok(value.into()),
        _ => {
            let column = if chunk.is_none() { "chunk" } else { "chunks" };
            return Err(rusqlite::Error::InvalidColumnName(column.into()));
        }
    };
    let mut statement =
        conn.prepare_cached("SELECT data FROM chunk WHERE id >= ?1 AND id < ?2 ORDER BY id")?;
    let mut rows = statement.query(params![first, first.saturating_add(count)])?;
    let mut value = Vec::new();
    while let Some(row) = rows.next()? {
        value.extend_from_slice(row.get_ref(0)?.as_blob().map_err(rusqlite::Error::from)?);
    }
    Ok(value.into())
}

/// A record, if its checksum fits.
pub(crate) fn record(conn: &Connection, row: &Row<'_>) -> Result<Record, StoreError> {
    let read = || -> rusqlite::Result<_> {
        let value = whole(conn, row.get(4)?, row.get(5)?, row.get(6)?)?;
        Ok((
            row.get::<_, String>(0)?,
            row.get::<_, i64>(1)?,
            row.get::<_, Option<i64>>(2)?,
            row.get::<_, i64>(3)?,
            value,
        ))
    };
    let (key, version, expires, sum, value) = read().map_err(|error| failed(READING, error))?;
    let version = version.cast_unsigned();
    if chain::stamp(chain::record_sum(&key, &value, expires), version) != sum {
        return Err(StoreError::corrupt(
            format!("record {key:?} does not fit its checksum"),
            None,
        ));
    }
    Ok(Record {
        key: Key::trusted(key),
        version,
        expires: expires.map(Timestamp::from_micros),
        value,
    })
}

/// One record by key, whether its time is over or not.
pub(crate) fn find(conn: &Connection, key: &str) -> Result<Option<Record>, StoreError> {
    let sql = format!("SELECT {RECORD} FROM record WHERE key = ?1");
    let mut statement = conn
        .prepare_cached(&sql)
        .map_err(|error| failed(READING, error))?;
    let mut rows = statement
        .query([key])
        .map_err(|error| failed(READING, error))?;
    match rows.next().map_err(|error| failed(READING, error))? {
        Some(row) => record(conn, row).map(Some),
        None => Ok(None),
    }
}

/// A journal row as it lies in the table.
pub(crate) struct Raw {
    pub seq: Seq,
    pub at: i64,
    pub version: u64,
    pub cause: Option<Seq>,
    pub kind: String,
    pub tenant: String,
    pub agent: Option<String>,
    pub trace: Option<Vec<u8>>,
    pub hash: Vec<u8>,
    pub body: Bytes,
}

impl Raw {
    pub(crate) fn read(conn: &Connection, row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            seq: Seq(row.get::<_, i64>(0)?.cast_unsigned()),
            at: row.get(1)?,
            version: row.get::<_, i64>(2)?.cast_unsigned(),
            cause: row
                .get::<_, Option<i64>>(3)?
                .map(|cause| Seq(cause.cast_unsigned())),
            kind: row.get(4)?,
            tenant: row.get(5)?,
            agent: row.get(6)?,
            trace: row.get(7)?,
            hash: row.get(8)?,
            body: whole(conn, row.get(9)?, row.get(10)?, row.get(11)?)?,
        })
    }

    /// The chain after this entry, if the one before ends in `previous`. `None` for fields no entry can have.
    pub(crate) fn link(&self, previous: &chain::Hash, node: &str) -> Option<chain::Hash> {
        // The chain has no other sign for "none".
        if self.cause == Some(Seq(0)) {
            return None;
        }
        let trace = match &self.trace {
            Some(trace) => Some(<[u8; 16]>::try_from(trace.as_slice()).ok()?),
            None => None,
        };
        let digest = chain::digest(&chain::Row {
            node,
            kind: &self.kind,
            tenant: &self.tenant,
            agent: self.agent.as_deref(),
            trace,
            body: &self.body,
        });
        let place = chain::Place {
            seq: self.seq,
            at: self.at,
            version: self.version,
            cause: self.cause,
        };
        Some(chain::link(previous, &place, &digest))
    }

    /// The entry as callers see it.
    pub(crate) fn into_row(self, node: &Name) -> Result<JournalRow, StoreError> {
        let seq = self.seq;
        let bad =
            |what: &str| StoreError::corrupt(format!("journal entry has a bad {what}"), Some(seq));
        let trace = match self.trace {
            Some(trace) => {
                let bytes = trace.as_slice().try_into().map_err(|_| bad("trace"))?;
                Some(TraceId::from_bytes(bytes).ok_or_else(|| bad("trace"))?)
            }
            None => None,
        };
        Ok(JournalRow {
            seq,
            at: Timestamp::from_micros(self.at),
            node: node.clone(),
            tenant: Tenant::new(Name::new(&self.tenant).map_err(|_| bad("tenant"))?),
            agent: self
                .agent
                .map(Name::new)
                .transpose()
                .map_err(|_| bad("agent"))?,
            kind: self.kind,
            trace,
            cause: self.cause,
            body: self.body,
        })
    }
}

/// The last journal row.
pub(crate) fn last(conn: &Connection) -> rusqlite::Result<Option<Raw>> {
    let sql = format!("SELECT {JOURNAL} FROM journal ORDER BY seq DESC LIMIT 1");
    conn.query_row(&sql, [], |row| Raw::read(conn, row))
        .optional()
}
