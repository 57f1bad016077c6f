//! What a backend says about what it runs.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use volary_kernel::clock::Timestamp;

use super::spec::ReplicaId;

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// It exited with a code.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
    /// It went beyond its memory limit, bytes.
    OutOfMemory {
        /// The limit, bytes.
        limit: u64,
    },
    /// Its init vanished without a word: killed from outside.
    Lost,
}

impl Exit {
    /// Whether this is what `on-failure` calls success.
    pub fn is_success(&self) -> bool {
        *self == Self::Code(0)
    }

    /// Reads a wait status.
    pub(crate) fn from_wait_status(status: i32) -> Self {
        if libc::WIFSIGNALED(status) {
            Self::Signal(libc::WTERMSIG(status))
        } else {
            Self::Code(libc::WEXITSTATUS(status))
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::OutOfMemory { limit } => {
                write!(
                    f,
                    "out of memory (limit {})",
                    volary_kernel::text::format_bytes(*limit)
                )
            }
            Self::Lost => f.write_str("killed from outside"),
        }
    }
}

/// Where a replica is, as the backend sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observed {
    /// Its program runs.
    Running {
        /// Process id on the machine of the main process, or of its init where that cannot be had.
        pid: u32,
        /// When the program was started.
        since: Timestamp,
    },
    /// It ended, with everything it started.
    Exited {
        /// How.
        exit: Exit,
        /// When.
        at: Timestamp,
    },
}

/// A started replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// Process id on the machine.
    pub pid: Option<u32>,
    /// When the program was started.
    pub at: Timestamp,
    /// What was asked for and cannot be had here, each said once.
    pub warnings: Vec<String>,
}

/// How a handler run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HandlerExit {
    /// With a code; 0 is an acknowledgement.
    Exited(i32),
    /// By a signal.
    Signaled(i32),
    /// Killed at its timeout.
    TimedOut,
    /// Killed because it wrote more than its bound.
    OutputTooLarge,
    /// It went beyond its memory limit, bytes.
    OutOfMemory(u64),
    /// Its init vanished without a word: killed from outside.
    Lost,
    /// It never ran.
    SpawnFailed(String),
}

impl std::fmt::Display for HandlerExit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exit code {code}"),
            Self::Signaled(signal) => write!(f, "signal {signal}"),
            Self::TimedOut => f.write_str("killed at its timeout"),
            Self::OutputTooLarge => f.write_str("killed because it wrote too much"),
            Self::OutOfMemory(limit) => write!(f, "out of memory, limit {limit} bytes"),
            Self::Lost => f.write_str("killed from outside"),
            Self::SpawnFailed(why) => write!(f, "not started: {why}"),
        }
    }
}

/// A handler run that is over, with everything it started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandlerOutcome {
    /// How it ended.
    pub exit: HandlerExit,
    /// Standard output up to the bound, byte for byte.
    pub stdout: Bytes,
    /// From the call to the end.
    pub duration: Duration,
}

impl HandlerOutcome {
    /// Whether the message may be acknowledged.
    pub fn is_ack(&self) -> bool {
        self.exit == HandlerExit::Exited(0)
    }

    /// The lines of the output that are not blank.
    pub fn lines(&self) -> impl Iterator<Item = &[u8]> {
        self.stdout
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.trim_ascii().is_empty())
    }
}

/// How a further command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutcome {
    /// `None`: killed at its timeout.
    pub exit: Option<Exit>,
    /// Standard output, up to the bound.
    pub stdout: Bytes,
    /// Standard error, up to the bound.
    pub stderr: Bytes,
    /// Whether output was cut at the bound.
    pub truncated: bool,
}

/// What a replica uses now.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Stats {
    /// Processor time since its start, seconds.
    pub cpu_seconds: f64,
    /// Resident memory of all its processes, bytes (shared pages counted in each, unless from a cgroup).
    pub memory_bytes: u64,
    /// Its processes, init included.
    pub processes: u64,
}

/// What was found of a predecessor.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recovered {
    /// Replicas that still run and are ours again (containers; processes end with their node).
    pub adopted: Vec<ReplicaId>,
    /// Left-over files, directories, cgroups that were removed.
    pub removed: Vec<String>,
}

/// What a backend can do on this machine; shown by `doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// Which backend.
    pub backend: &'static str,
    /// Whether isolated replicas can be started.
    pub isolation: Support,
    /// How the replica's view of files is made: `mounts`, `landlock` or `none`.
    pub view: &'static str,
    /// Whether everything dies with the node by the kernel's own hand.
    pub no_orphans: Support,
    /// Landlock version of the kernel, if any.
    pub landlock: Option<u32>,
    /// Which cgroup limits work: of `memory`, `cpu`, `pids`.
    pub cgroup: Vec<&'static str>,
    /// Whether replicas may run as other users.
    pub other_users: Support,
    /// Named weaknesses on this machine.
    pub notes: Vec<String>,
}

/// Whether something can be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Support {
    /// Yes.
    Yes,
    /// No, and why.
    No(String),
}

impl Support {
    /// Whether it can be had.
    pub fn is_yes(&self) -> bool {
        *self == Self::Yes
    }
}

/// Why a backend refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// The backend cannot be used on this machine at all.
    #[error("backend `{backend}` is not available: {why}")]
    Unavailable {
        /// Which.
        backend: &'static str,
        /// Why.
        why: String,
    },
    /// The isolation asked for cannot be had; `isolation: none` would run without it.
    #[error("`{replica}` cannot be isolated here: {why}")]
    NoIsolation {
        /// Which replica.
        replica: ReplicaId,
        /// Why.
        why: String,
    },
    /// The request contradicts itself or the machine; trying again does not help.
    #[error("`{replica}`: {why}")]
    Invalid {
        /// Which replica.
        replica: ReplicaId,
        /// Why.
        why: String,
    },
    /// A step before the program ran failed.
    #[error("`{replica}` did not start: {step}: {why}")]
    Start {
        /// Which replica.
        replica: ReplicaId,
        /// What was being done.
        step: String,
        /// The system's answer.
        why: String,
    },
    /// It runs already.
    #[error("`{replica}` is running already")]
    AlreadyRunning {
        /// Which replica.
        replica: ReplicaId,
    },
    /// No such replica.
    #[error("no replica `{replica}` is known")]
    Unknown {
        /// Which replica.
        replica: ReplicaId,
    },
    /// The replica does not run.
    #[error("`{replica}` is not running")]
    NotRunning {
        /// Which replica.
        replica: ReplicaId,
    },
    /// The system refused something.
    #[error("{what}: {why}")]
    Io {
        /// What was being done.
        what: String,
        /// The system's answer.
        why: String,
    },
}

impl BackendError {
    /// Whether the same request may succeed later without a change by a person.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Start { .. } | Self::Io { .. } => true,
            Self::Unavailable { .. }
            | Self::NoIsolation { .. }
            | Self::Invalid { .. }
            | Self::AlreadyRunning { .. }
            | Self::Unknown { .. }
            | Self::NotRunning { .. } => false,
        }
    }

    /// An input or output error with what was being done.
    pub(crate) fn io(what: impl Into<String>, error: &std::io::Error) -> Self {
        Self::Io {
            what: what.into(),
            why: error.to_string(),
        }
    }
}
