//! Writing an archive of chosen entries, line by line.

use std::io::Write;

use serde::Serialize;
use serde_json::value::RawValue;
use volary_kernel::{Name, clock::Timestamp, sign::SigningKey};

use super::{
    ArchiveRow, ExportError, ExportSummary, FORMAT_CHOSEN, First, Last, Line,
    line::{link, message, origin},
};
use crate::journal::chain::Hash;

/// Writes an archive of format 2 as its entries come. Without [`ArchiveWriter::finish`] what was written is worthless.
#[derive(Debug)]
pub struct ArchiveWriter<W> {
    lines: Lines<W>,
    chain: Hash,
    summary: ExportSummary,
}

/// Lines, hashed as they are written.
#[derive(Debug)]
pub(in crate::journal) struct Lines<W> {
    pub out: W,
    pub hash: blake3::Hasher,
}

impl<W: Write> Lines<W> {
    /// Writes a line; gives it back.
    pub(in crate::journal) fn write<T: Serialize>(
        &mut self,
        line: &T,
    ) -> Result<Vec<u8>, ExportError> {
        let mut line =
            serde_json::to_vec(line).map_err(|error| ExportError::Io(error.to_string()))?;
        line.push(b'\n');
        self.hash.update(&line);
        self.out.write_all(&line)?;
        Ok(line)
    }

    /// Signs everything so far as the last line.
    pub(in crate::journal) fn sign(
        mut self,
        entries: u64,
        hash: String,
        key: &SigningKey,
    ) -> Result<W, ExportError> {
        let signature = hex::encode(key.sign(&message(&self.hash)));
        self.write(&Last {
            entries,
            hash,
            signature,
        })?;
        self.out.flush()?;
        Ok(self.out)
    }
}

impl<W: Write> ArchiveWriter<W> {
    /// Begins an archive of entries of `node`, to be signed with `key`: what `filter` (any JSON) chose at `at`.
    ///
    /// # Errors
    /// [`ExportError::Io`].
    pub fn begin(
        out: W,
        node: Name,
        key: &SigningKey,
        at: Timestamp,
        filter: Box<RawValue>,
    ) -> Result<Self, ExportError> {
        let hash = blake3::Hasher::new();
        let mut lines = Lines { out, hash };
        let first = lines.write(&First {
            volary_journal: FORMAT_CHOSEN,
            node: node.clone(),
            key: key.public().to_string(),
            from: None,
            previous: None,
            at: Some(at),
            filter: Some(filter),
        })?;
        Ok(Self {
            lines,
            chain: origin(&first),
            summary: ExportSummary::of(node),
        })
    }

    /// Adds an entry. Entries come in the order of their sequence numbers.
    ///
    /// # Errors
    /// [`ExportError::Bad`] for an entry of another node or out of order; [`ExportError::Io`].
    pub fn add(&mut self, entry: ArchiveRow) -> Result<(), ExportError> {
        let (seq, ours) = (entry.row.seq, entry.row.node == self.summary.node);
        if !ours || self.summary.last.is_some_and(|last| last >= seq) {
            return Err(ExportError::Bad {
                line: self.summary.entries + 2,
                what: format!("entry {seq} does not follow in this archive"),
            });
        }
        self.chain = link(&self.chain, &entry);
        let line = Line::of(entry.row, None, entry.sealed.as_ref(), &self.chain);
        self.lines.write(&line)?;
        self.summary.count(seq);
        Ok(())
    }

    /// Signs what was written and flushes it.
    ///
    /// # Errors
    /// [`ExportError::Io`].
    pub fn finish(self, key: &SigningKey) -> Result<(ExportSummary, W), ExportError> {
        let hash = hex::encode(self.chain);
        let out = self.lines.sign(self.summary.entries, hash, key)?;
        Ok((self.summary, out))
    }
}
