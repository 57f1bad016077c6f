//! What replicas write: one file per replica with rotation, redaction before the disk, tail and follow.
//!
//! A line of the file is `<RFC 3339 time> <stream> <F|P> <text>`, the shape that container runtimes use, so
//! that existing collectors read it. The stream is `stdout`, `stderr` or `node` (a remark of ours). `P` marks a
//! piece of a line longer than [`MAX_LINE`]; its last piece is `F`.
//!
//! A replica that floods is never blocked and never fills the disk: beyond [`LogConfig::rate`] its output is
//! dropped (`DropNewest`), counted, and a `node` line says how much; the file rotates at its bound.

mod file;
mod line;
mod pump;
mod reader;

use std::str::FromStr;

use volary_kernel::clock::Timestamp;

pub use file::{LogSet, ReplicaLog};
pub use line::MAX_LINE;
pub(crate) use pump::{LogSink, pump};
pub use reader::LogReader;

/// Bounds of one replica's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogConfig {
    /// Bytes per file before it is rotated.
    pub max_file: u64,
    /// Files kept, the current one included.
    pub files: u32,
    /// Bytes per second taken in the long run; twice this in a burst.
    pub rate: u64,
}

/// 10 MiB per file: enough for a day of an ordinary agent.
pub const DEFAULT_MAX_FILE: u64 = 10 << 20;
/// Three files, so 30 MiB per replica at most.
pub const DEFAULT_FILES: u32 = 3;
/// 8 MiB/s: above any honest logging, below what wears a disk out.
pub const DEFAULT_RATE: u64 = 8 << 20;

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            max_file: DEFAULT_MAX_FILE,
            files: DEFAULT_FILES,
            rate: DEFAULT_RATE,
        }
    }
}

/// Where a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// A remark of the node about the log itself.
    Node,
}

impl Stream {
    /// The word in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Node => "node",
        }
    }
}

impl FromStr for Stream {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "stdout" => Ok(Self::Stdout),
            "stderr" => Ok(Self::Stderr),
            "node" => Ok(Self::Node),
            _ => Err(()),
        }
    }
}

/// One line of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// When the node read it.
    pub at: Timestamp,
    /// Where it came from.
    pub stream: Stream,
    /// Whether it is a piece of a longer line, with more to follow.
    pub partial: bool,
    /// The text without its line end; bytes that are no UTF-8 are replaced.
    pub text: String,
}

impl LogLine {
    /// Reads a line of the file; `None` if it does not follow the format.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let mut word = || std::str::from_utf8(parts.next()?).ok();
        let (at, stream, tag) = (word()?, word()?, word()?);
        let partial = match tag {
            "F" => false,
            "P" => true,
            _ => return None,
        };
        let text = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
        Some(Self {
            at: at.parse().ok()?,
            stream: stream.parse().ok()?,
            partial,
            text,
        })
    }
}

/// What part of a log is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogQuery {
    /// Only the last lines; all that is kept when `None`.
    pub tail: Option<usize>,
    /// Go on with what is written from now on.
    pub follow: bool,
}
