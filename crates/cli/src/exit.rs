//! Exit codes. Scripts rely on them: each keeps its meaning.

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done. Also a drain that SIGTERM or `volary down` asked for.
    Ok = 0,
    /// It failed.
    Failure = 1,
    /// The command line is wrong (`EX_USAGE`).
    Usage = 64,
    /// A manifest, a document or stored data is wrong (`EX_DATAERR`).
    BadData = 65,
    /// What should answer does not: no node, no backend, a port taken (`EX_UNAVAILABLE`).
    Unavailable = 69,
    /// Not now; the same may work later (`EX_TEMPFAIL`).
    RetryLater = 75,
    /// Not allowed (`EX_NOPERM`).
    Denied = 77,
    /// A deadline passed, as with timeout(1).
    Deadline = 124,
    /// Ctrl-C ended it.
    Interrupted = 130,
    /// SIGTERM ended it before it had drained.
    Terminated = 143,
}

impl Exit {
    /// What the system is told.
    pub const fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
