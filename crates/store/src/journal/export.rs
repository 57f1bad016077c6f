//! The whole journal as a file that proves itself: an archive of format 1 (see [`super::archive`]), in the node's own
//! chain.

use std::{
    io::{BufRead, Write},
    path::Path,
};

use volary_kernel::{
    Name,
    sign::{PublicKey, SigningKey},
};

use super::archive::{
    ArchiveReader, ArchiveTrust, ExportError, ExportSummary, FORMAT_WHOLE, First, Line, Lines,
};
use crate::{
    entry::Seq,
    error::StoreError,
    sqlite::{
        open::find_state,
        rows::{JOURNAL, Raw},
        schema::{View, failed},
    },
};

const EXPORTING: &str = "exporting the journal";

/// Writes the journal of `database` from `from` on to `out`, signed with `key`, the key of its node. Works beside a
/// running node. Blocks.
///
/// # Errors
/// [`ExportError::Store`] for a database that cannot be read, and for a `from` that is more than one past its last entry;
/// [`ExportError::Io`].
pub fn export(
    database: &Path,
    key: &SigningKey,
    from: Seq,
    out: impl Write,
) -> Result<ExportSummary, ExportError> {
    let view = View::of(database)?;
    let error = |error| failed(EXPORTING, error);
    let conn = view.conn().unchecked_transaction().map_err(error)?;
    let found = find_state(&conn, "", &key.public())?;
    let node =
        Name::new(&found.node).map_err(|error| StoreError::corrupt(error.to_string(), None))?;
    let from = from.max(found.cut.seq.next());
    let last: Option<i64> = conn
        .query_row("SELECT max(seq) FROM journal", [], |row| row.get(0))
        .map_err(error)?;
    let last = last.map_or(found.cut.seq, |last| Seq(last.cast_unsigned()));
    if from > last.next() {
        let problem = format!("there is no entry {from}: the journal ends with {last}");
        return Err(StoreError::invalid(problem).into());
    }
    let before = "SELECT hash FROM journal WHERE seq = ?1";
    let previous = if from == found.cut.seq.next() {
        found.cut.hash.to_vec()
    } else {
        conn.query_row(before, [from.0.cast_signed() - 1], |row| row.get(0))
            .map_err(error)?
    };
    let mut lines = Lines {
        out,
        hash: blake3::Hasher::new(),
    };
    let mut hash = hex::encode(previous);
    lines.write(&First {
        volary_journal: FORMAT_WHOLE,
        node: node.clone(),
        key: key.public().to_string(),
        from: Some(from),
        previous: Some(hash.clone()),
        at: None,
        filter: None,
    })?;
    let mut summary = ExportSummary::of(node);
    let sql = format!("SELECT {JOURNAL} FROM journal WHERE seq >= ?1 ORDER BY seq");
    let mut statement = conn.prepare(&sql).map_err(error)?;
    let mut rows = statement.query([from.0.cast_signed()]).map_err(error)?;
    while let Some(row) = rows.next().map_err(error)? {
        let raw = Raw::read(&conn, row).map_err(error)?;
        let (version, own) = (raw.version, raw.hash.clone());
        let line = Line::of(raw.into_row(&summary.node)?, Some(version), None, &own);
        lines.write(&line)?;
        summary.count(line.seq);
        hash = line.hash;
    }
    lines.sign(summary.entries, hash, key)?;
    Ok(summary)
}

/// Reads an export of either format and checks every line, the chain and the signature.
///
/// # Errors
/// [`ExportError`], with the first line that is wrong.
pub fn verify_export(input: impl BufRead, key: &PublicKey) -> Result<ExportSummary, ExportError> {
    ArchiveReader::open(input, ArchiveTrust::Key(*key))?.verify()
}
