//! The journal as a file that proves itself: JSON lines, chained, signed at the end.
//!
//! | line | content |
//! |---|---|
//! | first | `{"volary_journal":1,"node","key","from","previous"}`: `previous` is the chain before the first entry |
//! | each entry | `{"seq","at","version","cause"?,"kind","tenant","agent"?,"trace"?,"body" or "body_hex","hash"}` |
//! | last | `{"entries","hash","signature"}`: the signature is over the BLAKE3 hash of all lines before |
//!
//! A body that is one line of JSON stands as it is, byte for byte; any other as hex.

use std::{
    io::{BufRead, Write},
    path::Path,
};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use volary_kernel::{
    Name, TraceId,
    clock::Timestamp,
    sign::{PublicKey, SignError, Signature, SigningKey},
};

use super::chain::Hash;
use crate::{
    entry::Seq,
    error::StoreError,
    sqlite::{
        open::find_state,
        rows::{JOURNAL, Raw},
        schema::{View, failed},
    },
};

const FORMAT: u32 = 1;
const DOMAIN: &[u8] = b"volary journal export v1\0";
const EXPORTING: &str = "exporting the journal";

/// An export that is not what was written, or cannot be read.
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

/// What an export holds.
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

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct First {
    volary_journal: u32,
    node: Name,
    key: String,
    from: Seq,
    previous: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    seq: Seq,
    at: Timestamp,
    version: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cause: Option<Seq>,
    kind: String,
    tenant: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    agent: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trace: Option<TraceId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body_hex: Option<String>,
    hash: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Last {
    entries: u64,
    hash: String,
    signature: String,
}

impl Line {
    fn of(row: Raw) -> Result<Self, StoreError> {
        let bad = || StoreError::corrupt("journal entry has a bad trace", Some(row.seq));
        let trace = match &row.trace {
            Some(trace) => {
                let bytes = trace.as_slice().try_into().map_err(|_| bad())?;
                Some(TraceId::from_bytes(bytes).ok_or_else(bad)?)
            }
            None => None,
        };
        let body = one_line(&row.body);
        Ok(Self {
            seq: row.seq,
            at: Timestamp::from_micros(row.at),
            version: row.version,
            cause: row.cause,
            body_hex: body.is_none().then(|| hex::encode(&row.body)),
            body,
            kind: row.kind,
            tenant: row.tenant,
            agent: row.agent,
            trace,
            hash: hex::encode(&row.hash),
        })
    }

    fn into_raw(self) -> Option<Raw> {
        let body = match (self.body, self.body_hex) {
            (Some(body), None) => body.get().to_owned().into_bytes(),
            (None, Some(body)) => hex::decode(body).ok()?,
            _ => return None,
        };
        Some(Raw {
            seq: self.seq,
            at: self.at.as_micros(),
            version: self.version,
            cause: self.cause,
            kind: self.kind,
            tenant: self.tenant,
            agent: self.agent,
            trace: self.trace.map(|trace| trace.to_bytes().to_vec()),
            hash: hex::decode(self.hash).ok()?,
            body: body.into(),
        })
    }
}

/// The body as JSON, if it comes back byte for byte.
fn one_line(body: &[u8]) -> Option<Box<RawValue>> {
    let text = std::str::from_utf8(body)
        .ok()
        .filter(|text| !text.contains(['\n', '\r']))?;
    let value = RawValue::from_string(text.to_owned()).ok()?;
    (value.get() == text).then_some(value)
}

/// Lines, hashed as they are written.
struct Lines<W> {
    out: W,
    hash: blake3::Hasher,
}

impl<W: Write> Lines<W> {
    fn write<T: Serialize>(&mut self, line: &T) -> Result<(), ExportError> {
        let mut line =
            serde_json::to_vec(line).map_err(|error| ExportError::Io(error.to_string()))?;
        line.push(b'\n');
        self.hash.update(&line);
        Ok(self.out.write_all(&line)?)
    }
}

fn message(hash: &blake3::Hasher) -> Vec<u8> {
    [DOMAIN, hash.finalize().as_bytes().as_slice()].concat()
}

/// Writes the journal of `database` from `from` on to `out`, signed with `key`, the key of its node. Works beside a
/// running node. Blocks.
///
/// # Errors
/// [`ExportError::Store`] for a database that cannot be read or has no entry `from`; [`ExportError::Io`].
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
        volary_journal: FORMAT,
        node: node.clone(),
        key: key.public().to_string(),
        from,
        previous: hash.clone(),
    })?;
    let mut summary = ExportSummary {
        node,
        entries: 0,
        first: None,
        last: None,
    };
    let sql = format!("SELECT {JOURNAL} FROM journal WHERE seq >= ?1 ORDER BY seq");
    let mut statement = conn.prepare(&sql).map_err(error)?;
    let mut rows = statement.query([from.0.cast_signed()]).map_err(error)?;
    while let Some(row) = rows.next().map_err(error)? {
        let line = Line::of(Raw::read(&conn, row).map_err(error)?)?;
        lines.write(&line)?;
        summary.count(line.seq);
        hash = line.hash;
    }
    let signature = hex::encode(key.sign(&message(&lines.hash)));
    lines.write(&Last {
        entries: summary.entries,
        hash,
        signature,
    })?;
    lines.out.flush()?;
    Ok(summary)
}

impl ExportSummary {
    fn count(&mut self, seq: Seq) {
        self.entries += 1;
        self.first.get_or_insert(seq);
        self.last = Some(seq);
    }
}

/// Reads an export and checks every line, the chain and the signature.
///
/// # Errors
/// [`ExportError`], with the first line that is wrong.
pub fn verify_export(
    mut input: impl BufRead,
    key: &PublicKey,
) -> Result<ExportSummary, ExportError> {
    let mut check = Check {
        key,
        hasher: blake3::Hasher::new(),
        line: 0,
        chain: None,
    };
    let mut line = String::new();
    loop {
        line.clear();
        if input.read_line(&mut line)? == 0 {
            return Err(ExportError::CutOff);
        }
        check.line += 1;
        if check.take(&line)? {
            break;
        }
    }
    line.clear();
    if input.read_line(&mut line)? > 0 {
        check.line += 1;
        return Err(check.bad("something follows the signature"));
    }
    check
        .chain
        .map(|(summary, ..)| summary)
        .ok_or(ExportError::CutOff)
}

struct Check<'a> {
    key: &'a PublicKey,
    hasher: blake3::Hasher,
    line: u64,
    /// What was read, the next entry, and the chain before it.
    chain: Option<(ExportSummary, Seq, Hash)>,
}

impl Check<'_> {
    fn bad(&self, what: impl Into<String>) -> ExportError {
        ExportError::Bad {
            line: self.line,
            what: what.into(),
        }
    }

    fn parse<'a, T: Deserialize<'a>>(&self, line: &'a str) -> Result<T, ExportError> {
        serde_json::from_str(line).map_err(|error| self.bad(error.to_string()))
    }

    /// Checks a line; whether it was the last.
    fn take(&mut self, line: &str) -> Result<bool, ExportError> {
        if self.chain.is_none() {
            self.chain = Some(self.first(self.parse(line)?)?);
        } else if line.starts_with("{\"entries\":") {
            self.last(&self.parse(line)?)?;
            return Ok(true);
        } else {
            self.entry(self.parse(line)?)?;
        }
        self.hasher.update(line.as_bytes());
        Ok(false)
    }

    fn first(&self, first: First) -> Result<(ExportSummary, Seq, Hash), ExportError> {
        if first.volary_journal != FORMAT {
            return Err(self.bad(format!(
                "format {} is not known, only {FORMAT}",
                first.volary_journal
            )));
        }
        let mut previous = Hash::default();
        hex::decode_to_slice(&first.previous, &mut previous)
            .map_err(|error| self.bad(error.to_string()))?;
        let summary = ExportSummary {
            node: first.node,
            entries: 0,
            first: None,
            last: None,
        };
        Ok((summary, first.from, previous))
    }

    fn entry(&mut self, line: Line) -> Result<(), ExportError> {
        let seq = line.seq;
        let bad = ExportError::Bad {
            line: self.line,
            what: format!("entry {seq} is not what was written"),
        };
        let (Some(row), Some((summary, next, hash))) = (line.into_raw(), self.chain.as_mut())
        else {
            return Err(bad);
        };
        let link = row
            .link(hash, summary.node.as_str())
            .filter(|link| seq == *next && link.as_slice() == row.hash);
        let Some(link) = link else { return Err(bad) };
        summary.count(seq);
        (*next, *hash) = (seq.next(), link);
        Ok(())
    }

    fn last(&self, last: &Last) -> Result<(), ExportError> {
        let fits = |(summary, _, hash): &(ExportSummary, Seq, Hash)| {
            summary.entries == last.entries && hex::encode(hash) == last.hash
        };
        if !self.chain.as_ref().is_some_and(fits) {
            return Err(self.bad("entries are missing before the signature"));
        }
        let signature = hex::decode(&last.signature)
            .ok()
            .and_then(|bytes| Signature::try_from(bytes).ok());
        let signature =
            signature.ok_or_else(|| self.bad("the signature is not 64 bytes in hex"))?;
        Ok(self.key.verify_strict(&message(&self.hasher), &signature)?)
    }
}
