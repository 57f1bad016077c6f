//! Reading a log while it is written and rotated.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use tokio::sync::watch;

use super::file::ReplicaLog;
use super::{LogLine, LogQuery};

/// Bytes read at once.
const BLOCK: usize = 64 << 10;

/// Lines of one log, oldest first. Dropping it ends a follow.
pub struct LogReader {
    log: ReplicaLog,
    /// Files still to be read, with the place to start; the last is current.
    files: VecDeque<(Arc<File>, u64)>,
    generation: u64,
    /// The file that follows, once the first is known to grow no more.
    next: Option<(File, u64)>,
    follow: bool,
    changed: watch::Receiver<u64>,
    /// Read, not yet cut into lines.
    pending: Vec<u8>,
    lines: VecDeque<LogLine>,
}

impl LogReader {
    /// Opens a log at the place asked for.
    ///
    /// # Errors
    /// When a file of the log cannot be opened or read.
    pub fn open(log: ReplicaLog, query: LogQuery) -> io::Result<Self> {
        let changed = log.subscribe();
        let (files, generation) = log.open_all()?;
        let mut files: VecDeque<_> = files.into_iter().map(|file| (Arc::new(file), 0)).collect();
        if let Some(tail) = query.tail {
            skip_to_tail(&mut files, tail)?;
        }
        Ok(Self {
            log,
            files,
            generation,
            next: None,
            follow: query.follow,
            changed,
            pending: Vec::new(),
            lines: VecDeque::new(),
        })
    }

    /// The next line; `None` at the end, which a follow never reaches. Cancel-safe.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn next(&mut self) -> io::Result<Option<LogLine>> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Ok(Some(line));
            }
            self.changed.mark_unchanged();
            if self.fill().await? || self.advance()? {
                continue;
            }
            if !self.follow {
                return Ok(None);
            }
            if self.changed.changed().await.is_err() {
                return Ok(None);
            }
        }
    }

    /// Reads a block of the first file; says whether there was one.
    async fn fill(&mut self) -> io::Result<bool> {
        let Some((file, at)) = self.files.front().cloned() else {
            return Ok(false);
        };
        let read = move || {
            let mut block = vec![0; BLOCK];
            let got = file.read_at(&mut block, at)?;
            block.truncate(got);
            io::Result::Ok(block)
        };
        let block = tokio::task::spawn_blocking(read)
            .await
            .map_err(io::Error::other)??;
        if let Some((_, at)) = self.files.front_mut() {
            *at += block.len() as u64;
        }
        self.pending.extend_from_slice(&block);
        self.cut();
        Ok(!block.is_empty())
    }

    fn cut(&mut self) {
        let Some(end) = self.pending.iter().rposition(|byte| *byte == b'\n') else {
            return;
        };
        let rest = self.pending.split_off(end + 1);
        let whole = std::mem::replace(&mut self.pending, rest);
        self.lines.extend(
            whole
                .split(|byte| *byte == b'\n')
                .filter_map(LogLine::parse),
        );
    }

    /// Goes on to the next file once the first is read to its end; says whether there is one.
    fn advance(&mut self) -> io::Result<bool> {
        if self.files.len() > 1 {
            self.files.pop_front();
            return Ok(true);
        }
        if self.files.is_empty() {
            let (files, generation) = self.log.open_all()?;
            self.files
                .extend(files.into_iter().map(|file| (Arc::new(file), 0)));
            self.generation = generation;
            return Ok(!self.files.is_empty());
        }
        if let Some((file, generation)) = self.next.take() {
            self.files.clear();
            self.files.push_back((Arc::new(file), 0));
            self.generation = generation;
            return Ok(true);
        }
        // Lines may have been added between the last read and the rotation: read once more, then go on.
        self.next = self.log.open_next(self.generation)?;
        Ok(self.next.is_some())
    }
}

/// Drops files and sets places so that `tail` lines are left.
fn skip_to_tail(files: &mut VecDeque<(Arc<File>, u64)>, tail: usize) -> io::Result<()> {
    let mut wanted = tail;
    let mut first = files.len();
    for (index, (file, start)) in files.iter_mut().enumerate().rev() {
        let length = file.metadata()?.len();
        let (at, found) = last_lines(file, length, wanted)?;
        *start = at;
        first = index;
        wanted -= found.min(wanted);
        if wanted == 0 {
            break;
        }
    }
    files.drain(..first.min(files.len().saturating_sub(1)));
    Ok(())
}

/// Where the last `wanted` lines of a file begin, and how many there are.
fn last_lines(file: &File, length: u64, wanted: usize) -> io::Result<(u64, usize)> {
    if wanted == 0 {
        return Ok((length, 0));
    }
    let mut found = 0;
    let mut end = length;
    let mut block = vec![0; BLOCK];
    while end > 0 {
        let start = end.saturating_sub(BLOCK as u64);
        let size = usize::try_from(end - start).unwrap_or(BLOCK);
        file.read_exact_at(&mut block[..size], start)?;
        for (offset, byte) in block[..size].iter().enumerate().rev() {
            let at = start + offset as u64;
            if *byte == b'\n' && at + 1 < length {
                found += 1;
                if found == wanted {
                    return Ok((at + 1, found));
                }
            }
        }
        end = start;
    }
    Ok((0, found + usize::from(length > 0)))
}
