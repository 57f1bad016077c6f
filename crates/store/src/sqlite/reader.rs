//! Reads: a few connections that can only read, used off the async threads.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use rusqlite::{Connection, params_from_iter, types::Value};
use tokio::sync::Semaphore;
use volary_kernel::{Name, clock::Timestamp};

use super::{
    rows::{self, Raw},
    schema::{self, failed},
};
use crate::{
    entry::{Filter, JournalPage, Seq},
    error::StoreError,
    key::{Key, Record},
    store::PAGE_MAX,
};

const READING: &str = "reading the database";
/// A journal page ends early when its bodies pass this, in bytes.
const PAGE_BYTES: usize = 16 << 20;

/// Reading connections; as many reads run at a time.
pub(super) struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    free: Semaphore,
}

impl Readers {
    pub(super) fn open(path: &Path, count: usize) -> Result<Self, StoreError> {
        let count = count.max(1);
        let idle = (0..count)
            .map(|_| schema::open_reader(path))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            path: path.into(),
            idle: Mutex::new(idle),
            free: Semaphore::new(count),
        })
    }

    /// Runs `read` on a connection, on a thread that may block.
    pub(super) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let permit = self.free.acquire().await.map_err(|_| StoreError::Closed)?;
        let this = self.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let idle = this.idle.lock().pop();
            let conn = idle.map_or_else(|| schema::open_reader(&this.path), Ok)?;
            let end = read(&conn);
            this.idle.lock().push(conn);
            end
        });
        let end = reading
            .await
            .map_err(|error| StoreError::io("reading the database", error))?;
        drop(permit);
        end
    }

    /// Refuses further reads and closes what is idle.
    pub(super) fn close(&self) {
        self.free.close();
        self.idle.lock().clear();
    }
}

/// The live records of these keys, of one moment.
pub(super) fn get_many(
    conn: &Connection,
    keys: &[Key],
    now: Timestamp,
) -> Result<Vec<Option<Record>>, StoreError> {
    let snapshot = conn
        .unchecked_transaction()
        .map_err(|error| failed(READING, error))?;
    let live = |record: &Record| record.expires.is_none_or(|expires| expires > now);
    keys.iter()
        .map(|key| Ok(rows::find(&snapshot, key)?.filter(live)))
        .collect()
}

/// Live records under a prefix.
pub(super) fn scan(
    conn: &Connection,
    prefix: &str,
    after: Option<&Key>,
    limit: usize,
    now: Timestamp,
) -> Result<Vec<Record>, StoreError> {
    let snapshot = conn
        .unchecked_transaction()
        .map_err(|error| failed(READING, error))?;
    let (compare, start) = match after {
        Some(after) if after.as_str() >= prefix => (">", after.as_str()),
        // A space sorts behind the keys of the store's own records.
        _ => (">=", if prefix.is_empty() { " " } else { prefix }),
    };
    let columns = rows::RECORD;
    let sql = format!(
        "SELECT {columns} FROM record WHERE key {compare} ?1 AND (expires IS NULL OR expires > ?2) ORDER BY key LIMIT ?3"
    );
    let mut statement = snapshot
        .prepare_cached(&sql)
        .map_err(|error| failed(READING, error))?;
    let limit = i64::try_from(limit.min(PAGE_MAX)).unwrap_or(0);
    let found = statement.query(rusqlite::params![start, now.as_micros(), limit]);
    let mut found = found.map_err(|error| failed(READING, error))?;
    let mut records = Vec::new();
    while let Some(row) = found.next().map_err(|error| failed(READING, error))? {
        let key = row
            .get_ref(0)
            .and_then(|key| Ok(key.as_str()?))
            .map_err(|error| failed(READING, error))?;
        if !key.starts_with(prefix) {
            break;
        }
        records.push(rows::record(&snapshot, row)?);
    }
    Ok(records)
}

/// A page of the journal.
pub(crate) fn journal(
    conn: &Connection,
    node: &Name,
    from: Seq,
    filter: &Filter,
    limit: usize,
) -> Result<JournalPage, StoreError> {
    let snapshot = conn
        .unchecked_transaction()
        .map_err(|error| failed(READING, error))?;
    let ends = "SELECT min(seq), max(seq) FROM journal";
    let ends = snapshot.query_row(ends, [], |row| {
        Ok((row.get::<_, Option<i64>>(0)?, row.get::<_, Option<i64>>(1)?))
    });
    let (first, last) = ends.map_err(|error| failed(READING, error))?;
    let first = first.map_or(Seq::FIRST, |first| Seq(first.cast_unsigned()));
    let next = last
        .map_or(first, |last| Seq(last.cast_unsigned()).next())
        .max(from);
    let mut page = JournalPage {
        rows: Vec::new(),
        next,
        first,
        end: true,
    };
    let limit = limit.min(PAGE_MAX);
    let (sql, values) = query(from.max(first), filter, limit + 1);
    let mut statement = snapshot
        .prepare_cached(&sql)
        .map_err(|error| failed(READING, error))?;
    let mut found = statement
        .query(params_from_iter(values))
        .map_err(|error| failed(READING, error))?;
    let mut bytes = 0;
    while let Some(row) = found.next().map_err(|error| failed(READING, error))? {
        let row = Raw::read(&snapshot, row).map_err(|error| failed(READING, error))?;
        if page.rows.len() >= limit || bytes > PAGE_BYTES {
            (page.next, page.end) = (row.seq, false);
            break;
        }
        bytes += row.body.len();
        page.rows.push(row.into_row(node)?);
    }
    Ok(page)
}

fn query(from: Seq, filter: &Filter, limit: usize) -> (String, Vec<Value>) {
    let mut sql = format!("SELECT {} FROM journal WHERE seq >= ?", rows::JOURNAL);
    // No entry has a number that large; a negative one would mean all of them.
    let from = i64::try_from(from.0).unwrap_or(i64::MAX);
    let mut values = vec![Value::Integer(from)];
    if !filter.kinds.is_empty() {
        sql.push_str(" AND (0");
        for kind in &filter.kinds {
            if let Some(front) = kind.strip_suffix('.') {
                // '/' follows '.'.
                sql.push_str(" OR (kind >= ? AND kind < ?)");
                values.extend([Value::Text(kind.clone()), Value::Text(format!("{front}/"))]);
            } else {
                sql.push_str(" OR kind = ?");
                values.push(Value::Text(kind.clone()));
            }
        }
        sql.push(')');
    }
    let mut and = |what: &str, value: Option<Value>| {
        if let Some(value) = value {
            // Writing to a String cannot fail.
            let _ = write!(sql, " AND {what} ?");
            values.push(value);
        }
    };
    and(
        "agent =",
        filter
            .agent
            .as_ref()
            .map(|agent| Value::Text(agent.to_string())),
    );
    and(
        "trace =",
        filter
            .trace
            .map(|trace| Value::Blob(trace.to_bytes().to_vec())),
    );
    and(
        "tenant =",
        filter
            .tenant
            .as_ref()
            .map(|tenant| Value::Text(tenant.to_string())),
    );
    and(
        "at >=",
        filter.since.map(|at| Value::Integer(at.as_micros())),
    );
    and(
        "at <",
        filter.until.map(|at| Value::Integer(at.as_micros())),
    );
    sql.push_str(" ORDER BY seq LIMIT ?");
    values.push(Value::Integer(i64::try_from(limit).unwrap_or(i64::MAX)));
    (sql, values)
}
