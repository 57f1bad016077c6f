//! Moves a replica's output from its pipe to its log, at the replica's pace and never blocking it.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

use super::Stream;
use super::file::ReplicaLog;
use super::line::Lines;

/// Bytes read at once: what a pipe holds.
const CHUNK: usize = 64 << 10;

/// One stream on its way into a log.
pub(crate) struct LogSink {
    log: ReplicaLog,
    stream: Stream,
    lines: Lines,
}

impl LogSink {
    pub(crate) fn new(log: ReplicaLog, stream: Stream) -> Self {
        Self {
            log,
            stream,
            lines: Lines::default(),
        }
    }

    /// Takes bytes as they came.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        if !self.log.admit(bytes.len()) {
            let lines = self.lines.drop_bytes(bytes);
            self.log.note_dropped(lines, bytes.len());
            return;
        }
        let mut out = Vec::with_capacity(bytes.len() + 256);
        let (log, stream) = (&self.log, self.stream);
        self.lines.push(bytes, log.redactor(), |text, partial| {
            log.format(&mut out, stream, text, partial);
        });
        if !out.is_empty() {
            log.append(&out);
        }
    }

    /// Writes what has no line end.
    pub(crate) fn finish(&mut self) {
        let mut out = Vec::new();
        let (log, stream) = (&self.log, self.stream);
        self.lines.finish(log.redactor(), |text, partial| {
            log.format(&mut out, stream, text, partial)
        });
        if !out.is_empty() {
            log.append(&out);
        }
    }
}

/// Reads `from` to its end into the log. The disk is written on a blocking thread.
pub(crate) async fn pump(mut from: impl AsyncRead + Unpin, mut sink: LogSink) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        // A read error ends the stream like its end does: what came before is kept.
        let got = from.read(&mut buffer).await.unwrap_or(0);
        let work = move || {
            match got {
                0 => sink.finish(),
                _ => sink.feed(&buffer[..got]),
            }
            (sink, buffer)
        };
        (sink, buffer) = tokio::task::spawn_blocking(work)
            .await
            .map_err(io::Error::other)?;
        if got == 0 {
            return Ok(());
        }
    }
}
