//! Reading an archive, line by line, checking everything. Input is not trusted.

use std::io::{BufRead, Read as _};

use serde::Deserialize;
use volary_kernel::sign::{PublicKey, Signature};

use super::{
    ArchiveHeader, ArchiveRow, ArchiveTrust, ExportError, ExportSummary, FORMAT_CHOSEN,
    FORMAT_WHOLE, First, Last, Line,
    line::{link, message, origin, own_link},
};
use crate::{batch::VALUE_MAX, entry::Seq, journal::chain::Hash};

/// Longest line, in bytes: a largest body and a largest seal, both in hex, and the rest.
const LINE_MAX: u64 = 4 * VALUE_MAX as u64 + (64 << 10);

/// Reads an archive of either format. Each entry is checked against the chain before it is given out; that nobody made
/// up a chain is known only once [`ArchiveReader::next_row`] has returned `None`, which it does only for a good
/// signature.
#[derive(Debug)]
pub struct ArchiveReader<R> {
    input: R,
    header: ArchiveHeader,
    lines: blake3::Hasher,
    line: Vec<u8>,
    number: u64,
    chain: Hash,
    /// In format 1, the next entry.
    next: Option<Seq>,
    summary: ExportSummary,
    ended: bool,
}

impl<R: BufRead> ArchiveReader<R> {
    /// Reads the first line.
    ///
    /// # Errors
    /// [`ExportError::Format`], [`ExportError::WrongKey`], [`ExportError::Bad`], [`ExportError::CutOff`],
    /// [`ExportError::Io`].
    pub fn open(mut input: R, trust: ArchiveTrust) -> Result<Self, ExportError> {
        let mut line = Vec::new();
        if !read_line(&mut input, &mut line, 1)? {
            return Err(ExportError::CutOff);
        }
        let (header, chain, next) = first(&line)?;
        if let ArchiveTrust::Key(expected) = trust
            && header.key != expected
        {
            return Err(ExportError::WrongKey {
                found: header.key.into(),
                expected: expected.into(),
            });
        }
        let mut lines = blake3::Hasher::new();
        lines.update(&line);
        Ok(Self {
            summary: ExportSummary::of(header.node.clone()),
            input,
            header,
            lines,
            line,
            number: 1,
            chain,
            next,
            ended: false,
        })
    }

    /// What it says about itself. It proves nothing before the end was read.
    pub const fn header(&self) -> &ArchiveHeader {
        &self.header
    }

    /// What was read so far.
    pub const fn summary(&self) -> &ExportSummary {
        &self.summary
    }

    /// The next entry; `None` at the end, when everything was found good.
    ///
    /// # Errors
    /// [`ExportError`], with the first line that is wrong.
    pub fn next_row(&mut self) -> Result<Option<ArchiveRow>, ExportError> {
        if self.ended {
            return Ok(None);
        }
        if !read_line(&mut self.input, &mut self.line, self.number + 1)? {
            return Err(ExportError::CutOff);
        }
        self.number += 1;
        if self.line.starts_with(b"{\"entries\":") {
            self.last(&parse(&self.line, self.number)?)?;
            self.ended = true;
            return Ok(None);
        }
        let row = self.entry(parse(&self.line, self.number)?)?;
        self.lines.update(&self.line);
        Ok(Some(row))
    }

    /// Reads to the end and says what there was.
    ///
    /// # Errors
    /// As [`ArchiveReader::next_row`].
    pub fn verify(mut self) -> Result<ExportSummary, ExportError> {
        while self.next_row()?.is_some() {}
        Ok(self.summary)
    }

    fn entry(&mut self, line: Line) -> Result<ArchiveRow, ExportError> {
        let seq = line.seq;
        let changed = || bad(self.number, format!("entry {seq} is not what was written"));
        let (entry, version, hash) = line.into_entry(&self.header.node).ok_or_else(changed)?;
        let (follows, link) = match (self.next, version) {
            (Some(next), Some(version)) if entry.sealed.is_none() => {
                (seq == next, own_link(&self.chain, &entry.row, version))
            }
            (None, None) => (
                self.summary.last.is_none_or(|last| last < seq),
                link(&self.chain, &entry),
            ),
            _ => return Err(changed()),
        };
        if !follows || link != hash {
            return Err(changed());
        }
        self.chain = link;
        self.next = self.next.map(|_| seq.next());
        self.summary.count(seq);
        Ok(entry)
    }

    fn last(&mut self, last: &Last) -> Result<(), ExportError> {
        if self.summary.entries != last.entries || hex::encode(self.chain) != last.hash {
            return Err(bad(self.number, "entries are missing before the signature"));
        }
        // One text for one signature: digits in lower case only, as they are written.
        let signature = hex::decode(&last.signature)
            .ok()
            .filter(|bytes| hex::encode(bytes) == last.signature)
            .and_then(|bytes| Signature::try_from(bytes).ok());
        let signature =
            signature.ok_or_else(|| bad(self.number, "the signature is not 64 bytes in hex"))?;
        // A line is what the writer writes: there is one text for one content.
        let canonical = serde_json::to_vec(last).map_err(|error| bad(self.number, error))?;
        if self.line.trim_ascii_end() != canonical || !self.line.ends_with(b"}\n") {
            return Err(bad(self.number, "the last line is not as it was written"));
        }
        let key = &self.header.key;
        key.verify_strict(&message(&self.lines), &signature)?;
        if read_line(&mut self.input, &mut self.line, self.number + 1)? {
            return Err(bad(self.number + 1, "something follows the signature"));
        }
        Ok(())
    }
}

fn bad(line: u64, what: impl ToString) -> ExportError {
    ExportError::Bad {
        line,
        what: what.to_string(),
    }
}

fn parse<'a, T: Deserialize<'a>>(line: &'a [u8], number: u64) -> Result<T, ExportError> {
    serde_json::from_slice(line).map_err(|error| bad(number, error))
}

/// Reads a line with its end into `line`; `false` at the end of the input.
fn read_line(
    input: &mut impl BufRead,
    line: &mut Vec<u8>,
    number: u64,
) -> Result<bool, ExportError> {
    line.clear();
    input.take(LINE_MAX).read_until(b'\n', line)?;
    if line.len() as u64 >= LINE_MAX {
        return Err(bad(
            number,
            format!("the line is longer than {LINE_MAX} bytes"),
        ));
    }
    Ok(!line.is_empty())
}

/// The header, the chain before the first entry and, in format 1, which entry that is.
fn first(line: &[u8]) -> Result<(ArchiveHeader, Hash, Option<Seq>), ExportError> {
    #[derive(Deserialize)]
    struct Any {
        volary_journal: u32,
    }
    let format = parse::<Any>(line, 1)?.volary_journal;
    if ![FORMAT_WHOLE, FORMAT_CHOSEN].contains(&format) {
        return Err(ExportError::Format { found: format });
    }
    let first: First = parse(line, 1)?;
    let key = PublicKey::from_hex(&first.key).map_err(|error| bad(1, error))?;
    let (chain, next) = match (format, first.from, first.previous) {
        (FORMAT_WHOLE, Some(from), Some(previous)) => {
            let mut chain = Hash::default();
            hex::decode_to_slice(&previous, &mut chain).map_err(|error| bad(1, error))?;
            (chain, Some(from))
        }
        (FORMAT_CHOSEN, None, None) if first.filter.is_some() => (origin(line), None),
        _ => {
            return Err(bad(
                1,
                format!("it is not the first line of format {format}"),
            ));
        }
    };
    let header = ArchiveHeader {
        format,
        node: first.node,
        key,
        at: first.at,
        filter: first.filter,
    };
    Ok((header, chain, next))
}
