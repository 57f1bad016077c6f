//! Removing the beginning of the journal, a few entries at a time, up to what somebody still needs.

use rusqlite::Connection;
use volary_kernel::clock::Timestamp;

use super::{
    apply::{Progress, Statements},
    open::cut_value,
    rows,
    schema::{META_CUT, failed},
};
use crate::{
    entry::Seq,
    error::StoreError,
    journal::Cut,
    key::Record,
    pin::{self, PINS},
    queue,
};
use volary_kernel::sign::SigningKey;

/// Entries removed in one transaction: a few milliseconds, so that commits do not wait long.
const STEP: i64 = 512;
/// Queue items looked at for the oldest entry that they need. They lie in time order; a few more than one because
/// those of concurrent batches may be out of order.
const ITEMS: i64 = 256;

const REMOVING: &str = "removing old journal entries";

/// Why an entry may go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// All that are older than this.
    pub before: Timestamp,
    /// Any, because room is needed.
    pub room: bool,
}

/// Where the journal may be cut now, if anywhere. Reads only.
pub(super) fn plan(
    conn: &Connection,
    wanted: Wanted,
    head: Seq,
) -> Result<Option<Cut>, StoreError> {
    let error = |error| failed(REMOVING, error);
    let sql = "SELECT seq, at, hash FROM journal ORDER BY seq LIMIT ?1";
    let mut statement = conn.prepare_cached(sql).map_err(error)?;
    let mut rows = statement.query([STEP]).map_err(error)?;
    let mut floor = None;
    let mut cut = None;
    while let Some(row) = rows.next().map_err(error)? {
        let read = || -> rusqlite::Result<(i64, i64, Vec<u8>)> {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        };
        let (seq, at, hash) = read().map_err(error)?;
        if !wanted.room && at >= wanted.before.as_micros() {
            break;
        }
        // Asked only when there is something to remove.
        let floor = match floor {
            Some(floor) => floor,
            None => *floor.insert(needed_from(conn)?.unwrap_or(head).min(head)),
        };
        let seq = Seq(seq.cast_unsigned());
        if seq >= floor {
            break;
        }
        let bad = |_| StoreError::corrupt("journal entry has a bad hash", Some(seq));
        cut = Some(Cut {
            seq,
            hash: hash.try_into().map_err(bad)?,
        });
    }
    Ok(cut)
}

/// The oldest entry that a pin or a live queue item needs.
fn needed_from(conn: &Connection) -> Result<Option<Seq>, StoreError> {
    let pins = under(conn, PINS, i64::MAX)?;
    let pins = pins.iter().map(pin::read).collect::<Result<Vec<_>, _>>()?;
    let items = under(conn, queue::ITEMS, ITEMS)?;
    let items = items
        .iter()
        .map(|item| queue::decode(&item.key, &item.value).map(|(header, _)| header.from));
    let items = items.collect::<Result<Vec<_>, _>>()?;
    Ok(pins.into_iter().chain(items).min())
}

fn under(conn: &Connection, prefix: &str, limit: i64) -> Result<Vec<Record>, StoreError> {
    let error = |error| failed(REMOVING, error);
    let sql = format!(
        "SELECT {} FROM record WHERE key >= ?1 AND key < ?2 ORDER BY key LIMIT ?3",
        rows::RECORD
    );
    let mut statement = conn.prepare_cached(&sql).map_err(error)?;
    // '0' follows '/', which every such prefix ends in.
    let end = format!("{}0", prefix.trim_end_matches('/'));
    let mut found = statement
        .query(rusqlite::params![prefix, end, limit])
        .map_err(error)?;
    let mut records = Vec::new();
    while let Some(row) = found.next().map_err(error)? {
        records.push(rows::record(conn, row)?);
    }
    Ok(records)
}

/// Cuts the journal, inside an open transaction: the signed cut is kept together with what it removes.
pub(super) fn cut(
    conn: &Connection,
    sql: &mut Statements<'_>,
    cut: &Cut,
    node: &str,
    key: &SigningKey,
    progress: &mut Progress,
) -> rusqlite::Result<()> {
    conn.prepare_cached("DELETE FROM journal WHERE seq <= ?1")?
        .execute([cut.seq.0.cast_signed()])?;
    sql.put_meta(META_CUT, &cut_value(cut, node, key), progress)
}
