//! Checking a database against its signed head: every entry, every record, the structure. Changes nothing.

use std::{fmt, path::Path};

use rusqlite::Connection;
use volary_kernel::sign::PublicKey;

use super::head::{self, Head, HeadError};
use crate::{
    entry::Seq,
    error::StoreError,
    journal::chain::Hash,
    sqlite::{
        open::{Found, check_head, find_state},
        rows::{self, JOURNAL, RECORD, Raw},
        schema::{self, View, failed},
    },
};

/// Problems listed; more are only counted.
const LISTED: usize = 100;

const CHECKING: &str = "checking the database";

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong.
    pub what: String,
    /// The bad or missing journal entry, if it is one.
    pub seq: Option<Seq>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.seq {
            Some(seq) => write!(f, "entry {seq}: {}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

/// What a check found.
#[derive(Debug, Clone, Default)]
pub struct VerifyReport {
    /// The signed head, if there is a good one.
    pub head: Option<Head>,
    /// The first entry that is there.
    pub first: Option<Seq>,
    /// The last entry that is there.
    pub last: Option<Seq>,
    /// Entries that were read.
    pub entries: u64,
    /// Records that were read.
    pub records: u64,
    /// Entries after the signed head that continue the chain: written, but acknowledged to nobody, when the node died.
    pub unacknowledged: u64,
    /// What is wrong; the first hundred.
    pub problems: Vec<Problem>,
    /// How many problems there are.
    pub problem_count: u64,
}

impl VerifyReport {
    /// Whether everything is as it was written.
    pub const fn is_ok(&self) -> bool {
        self.problem_count == 0
    }

    /// The first bad or missing entry.
    pub fn first_bad(&self) -> Option<Seq> {
        self.problems.iter().filter_map(|problem| problem.seq).min()
    }

    fn add(&mut self, what: impl Into<String>, seq: Option<Seq>) {
        self.problem_count += 1;
        if self.problems.len() < LISTED {
            self.problems.push(Problem {
                what: what.into(),
                seq,
            });
        }
    }

    /// Notes damage; passes on anything else.
    fn note(&mut self, error: StoreError, seq: Option<Seq>) -> Result<(), StoreError> {
        match error {
            StoreError::Corrupt { what, seq: found } => self.add(what, found.or(seq)),
            other => return Err(other),
        }
        Ok(())
    }
}

/// Checks the database at `database` with the public half of its node's key. Works on a copy, on a database that a
/// killed node left, and beside a running node; changes neither database nor log. Blocks; takes a few seconds per GiB.
///
/// What is found: an edited entry or record, a gap, another order, an end before what was acknowledged (a damaged
/// log, an older copy put back), a head that is missing or forged, damage to the structure.
///
/// # Errors
/// [`StoreError::Io`] when the files cannot be read. Damage is no error: it is in the report.
pub fn verify(database: &Path, key: &PublicKey) -> Result<VerifyReport, StoreError> {
    // First the head: while a node runs, the database is then at least as far.
    let head = head::read(&head::path_of(database), key);
    let missing = head.as_ref().map_or(Seq::FIRST, |head| head.cut.seq.next());
    let mut report = VerifyReport {
        head: head.as_ref().ok().cloned(),
        ..VerifyReport::default()
    };
    if !std::fs::metadata(database).is_ok_and(|file| file.len() > 0) {
        match head {
            // A node that died at its very first step.
            Ok(head) if head.version == 0 => {}
            _ => report.add("the database is not there", Some(missing)),
        }
        return Ok(report);
    }
    let end = View::of(database).and_then(|view| {
        let mut report = report.clone();
        check(view.conn(), key, head, &mut report)?;
        Ok((report, view.is_stale()))
    });
    match end {
        Ok((report, false)) => Ok(report),
        // A node began to write meanwhile: what was seen may be half old, half new.
        Ok((_, true)) => verify(database, key),
        Err(error) => {
            report.note(error, Some(missing))?;
            Ok(report)
        }
    }
}

fn check(
    conn: &Connection,
    key: &PublicKey,
    head: Result<Head, HeadError>,
    report: &mut VerifyReport,
) -> Result<(), StoreError> {
    let snapshot = conn
        .unchecked_transaction()
        .map_err(|error| failed(CHECKING, error))?;
    let missing = head.as_ref().map_or(Seq::FIRST, |head| head.cut.seq.next());
    let as_made = schema::is_as_made(&snapshot)?;
    if !as_made {
        report.add("the tables are not those that were made", None);
    }
    match contents(&snapshot, key, head, missing, report) {
        // Without its tables a database cannot be read: that is damage, not a failure to look.
        Err(error) if !as_made => report.add(error.to_string(), Some(missing)),
        end => end?,
    }
    Ok(())
}

fn contents(
    conn: &Connection,
    key: &PublicKey,
    head: Result<Head, HeadError>,
    missing: Seq,
    report: &mut VerifyReport,
) -> Result<(), StoreError> {
    let node = head
        .as_ref()
        .map_or("", |head| head.node.as_str())
        .to_owned();
    match find_state(conn, &node, key) {
        Ok(found) => {
            entries(conn, &found, report)?;
            match &head {
                Ok(head) => against_head(conn, &found, head, report)?,
                Err(error) => report.add(error.to_string(), None),
            }
        }
        Err(error) => report.note(error, Some(missing))?,
    }
    records(conn, report)?;
    structure(conn, report)
}

/// Reads every entry and follows the chain.
fn entries(conn: &Connection, found: &Found, report: &mut VerifyReport) -> Result<(), StoreError> {
    let sql = format!("SELECT {JOURNAL} FROM journal ORDER BY seq");
    let mut statement = conn
        .prepare(&sql)
        .map_err(|error| failed(CHECKING, error))?;
    let mut rows = statement
        .query([])
        .map_err(|error| failed(CHECKING, error))?;
    let (mut seq, mut hash) = (found.cut.seq, found.cut.hash);
    loop {
        let row = match rows.next() {
            Ok(Some(row)) => Raw::read(conn, row),
            Ok(None) => return Ok(()),
            Err(error) => {
                report.note(failed(CHECKING, error), Some(seq.next()))?;
                return Ok(());
            }
        };
        match row {
            Ok(row) => {
                report.first.get_or_insert(row.seq);
                report.last = Some(row.seq);
                report.entries += 1;
                hash = entry(&row, seq, &hash, &found.node, report);
                seq = row.seq;
            }
            Err(error) => {
                report.add(
                    format!("the entry cannot be read: {error}"),
                    Some(seq.next()),
                );
                return Ok(());
            }
        }
    }
}

/// Checks one entry; returns the chain to go on with.
fn entry(row: &Raw, before: Seq, hash: &Hash, node: &str, report: &mut VerifyReport) -> Hash {
    if row.seq != before.next() {
        let what = format!("the journal goes on at entry {}", row.seq);
        report.add(what, Some(before.next().min(row.seq)));
    } else if row
        .link(hash, node)
        .is_none_or(|link| link.as_slice() != row.hash)
    {
        report.add("the entry is not what was written", Some(row.seq));
    }
    // Going on with what is written there, so that one bad entry does not make all later ones bad.
    row.hash.as_slice().try_into().unwrap_or_default()
}

fn against_head(
    conn: &Connection,
    found: &Found,
    head: &Head,
    report: &mut VerifyReport,
) -> Result<(), StoreError> {
    // A bad entry after the head was found already, and is found again here.
    if let Err(error) = check_head(conn, found, head) {
        let known = matches!(&error, StoreError::Corrupt { seq, .. } if report.problems.iter().any(|problem| problem.seq == *seq));
        if !known {
            report.note(error, None)?;
        }
    }
    report.unacknowledged = found
        .progress
        .seq
        .0
        .saturating_sub(head.seq.0.max(found.cut.seq.0));
    Ok(())
}

/// Reads every record and its checksum.
fn records(conn: &Connection, report: &mut VerifyReport) -> Result<(), StoreError> {
    let sql = format!("SELECT {RECORD} FROM record NOT INDEXED ORDER BY key");
    let mut statement = conn
        .prepare(&sql)
        .map_err(|error| failed(CHECKING, error))?;
    let mut rows = statement
        .query([])
        .map_err(|error| failed(CHECKING, error))?;
    loop {
        let end = match rows.next() {
            Ok(Some(row)) => rows::record(conn, row).map(drop),
            Ok(None) => return Ok(()),
            Err(error) => {
                report.note(failed(CHECKING, error), None)?;
                return Ok(());
            }
        };
        match end {
            Ok(()) => report.records += 1,
            Err(StoreError::Corrupt { what, .. }) => report.add(what, None),
            // Of another type or not UTF-8: damage too.
            Err(error) => report.add(format!("a record cannot be read: {error}"), None),
        }
    }
}

fn structure(conn: &Connection, report: &mut VerifyReport) -> Result<(), StoreError> {
    let check = || -> rusqlite::Result<Vec<String>> {
        let mut statement = conn.prepare("PRAGMA integrity_check(20)")?;
        let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
        rows.collect()
    };
    match check() {
        Ok(lines) => lines
            .into_iter()
            .filter(|line| line != "ok")
            .for_each(|line| report.add(line, None)),
        Err(error) => report.note(failed(CHECKING, error), None)?,
    }
    Ok(())
}
