//! What a backend is asked to run, independent of how it was written down.
//!
//! Every field has a default that suits a test: build with [`ReplicaSpec::new`] or [`HandlerRun::new`] and set
//! what differs.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use volary_kernel::id::Name;
use volary_kernel::secret::Secret;

use crate::log::LogConfig;

/// Names one replica of one agent; displayed as `agent-0`, and unique by that text within a backend.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReplicaId {
    /// The agent it is a copy of.
    pub agent: Name,
    /// Which copy, from 0.
    pub ordinal: u32,
}

impl ReplicaId {
    /// Replica number `ordinal` of `agent`.
    pub fn new(agent: Name, ordinal: u32) -> Self {
        Self { agent, ordinal }
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.agent, self.ordinal)
    }
}

/// The value of an environment variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvValue {
    /// As it stands.
    Plain(String),
    /// A secret that the user asked to have as a variable; visible inside the replica.
    Secret(Secret),
    /// The path, inside the replica, of the private file with this name.
    PrivatePath(String),
}

impl From<&str> for EnvValue {
    fn from(text: &str) -> Self {
        Self::Plain(text.to_owned())
    }
}

/// A file in the replica's own directory; its content never reaches a disk where mounts can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrivateFile {
    /// Plain file name, unique within the replica.
    pub name: String,
    /// What it holds.
    pub content: Secret,
    /// Permission bits; 0400 by default, owner is the replica's user.
    pub mode: u32,
}

impl PrivateFile {
    /// A file that only the replica's user can read.
    pub fn new(name: impl Into<String>, content: Secret) -> Self {
        Self {
            name: name.into(),
            content,
            mode: 0o400,
        }
    }
}

/// Whether a bound directory may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DirAccess {
    /// Read and write.
    #[default]
    ReadWrite,
    /// Read only.
    ReadOnly,
}

/// A directory, file or socket made visible inside the replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// On the machine; must exist.
    pub source: PathBuf,
    /// Inside the replica. It must exist on the machine too, unless it lies in a hidden directory.
    pub target: BindTarget,
    /// Whether it may be written.
    pub access: DirAccess,
}

/// Where a bind appears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BindTarget {
    /// At this path.
    Path(PathBuf),
    /// In the replica's own directory, under this name.
    Private(String),
}

/// Bounds on what a replica may use. `None` is the backend's default.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Limits {
    /// Memory of all its processes, bytes. Needs a writable cgroup; otherwise per process address space.
    pub memory: Option<u64>,
    /// Processor cores, 0.5 is half of one. Needs a writable cgroup.
    pub cpu: Option<f64>,
    /// Processes and threads at once; default [`DEFAULT_PIDS`].
    pub pids: Option<u64>,
    /// Open files per process; default: what the node itself was started with.
    pub open_files: Option<u64>,
    /// Largest file it may write, bytes.
    pub file_size: Option<u64>,
    /// Processor seconds of one process before it is killed.
    pub cpu_seconds: Option<u64>,
}

/// Processes of one replica at once, where a limit can be set: as container engines commonly have it.
pub const DEFAULT_PIDS: u64 = 512;

/// Who the replica runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// How far a replica is kept from the machine and from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Isolation {
    /// Own PID namespace, own view of files, Landlock. Refused where it cannot be had.
    #[default]
    Namespace,
    /// No walls, by explicit wish: it can read what the node's user can. It still ends with its node.
    None,
}

/// Whether a replica may write outside its own and its bound directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RootAccess {
    /// As its user may. For a root replica the system's own directories are read-only all the same.
    #[default]
    AsUser,
    /// Nothing but read-write binds, its own directory and a `/tmp` of its own.
    ReadOnly,
}

/// Capabilities of a root replica beside the default set, by number-free name (`NET_BIND_SERVICE`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CapabilityChange {
    /// Taken away; `ALL` takes every one.
    pub drop: Vec<String>,
    /// Kept or given, after the drops.
    pub add: Vec<String>,
}

/// What to run: shared by long-lived replicas and single handler runs.
#[derive(Debug, Clone, PartialEq)]
pub struct ProgramSpec {
    /// Program and arguments; never holds a secret. A program without `/` is looked up in `PATH`.
    pub argv: Vec<String>,
    /// Declared variables. The environment starts empty but for `PATH`, `HOME`, `LANG`, `TZ`.
    pub env: BTreeMap<String, EnvValue>,
    /// Working directory.
    pub cwd: PathBuf,
    /// Files put into the replica's own directory.
    pub files: Vec<PrivateFile>,
    /// What else it can see or write.
    pub binds: Vec<Bind>,
    /// Bounds.
    pub limits: Limits,
    /// Another user; needs a root node.
    pub user: Option<User>,
    /// Walls.
    pub isolation: Isolation,
    /// Writable root or not.
    pub root: RootAccess,
    /// Changes to the default capabilities of a root replica.
    pub capabilities: CapabilityChange,
    /// Where its output goes.
    pub log: LogConfig,
}

impl ProgramSpec {
    /// Runs `argv` in `cwd`, everything else by default.
    pub fn new(argv: impl IntoIterator<Item = impl Into<String>>, cwd: impl Into<PathBuf>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            env: BTreeMap::new(),
            cwd: cwd.into(),
            files: Vec::new(),
            binds: Vec::new(),
            limits: Limits::default(),
            user: None,
            isolation: Isolation::default(),
            root: RootAccess::default(),
            capabilities: CapabilityChange::default(),
            log: LogConfig::default(),
        }
    }

    /// Sets a plain variable.
    #[must_use]
    pub fn with_env(mut self, name: impl Into<String>, value: impl Into<EnvValue>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }
}

/// A long-lived replica.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplicaSpec {
    /// Its name.
    pub id: ReplicaId,
    /// What runs.
    pub program: ProgramSpec,
}

impl ReplicaSpec {
    /// Replica `id` running `program`.
    pub fn new(id: ReplicaId, program: ProgramSpec) -> Self {
        Self { id, program }
    }
}

/// Longest a handler may take unless its agent says otherwise.
pub const DEFAULT_HANDLER_TIMEOUT: Duration = Duration::from_secs(30);
/// Most a handler may write to its standard output, bytes: actions are small.
pub const DEFAULT_MAX_OUTPUT: usize = 1 << 20;

/// One run of a handler program for one message.
#[derive(Debug, Clone, PartialEq)]
pub struct HandlerRun {
    /// The replica whose name, own directory and log it uses.
    pub id: ReplicaId,
    /// What runs.
    pub program: ProgramSpec,
    /// Written to its standard input, which is then closed.
    pub stdin: Bytes,
    /// After this the run and everything it started is killed.
    pub timeout: Duration,
    /// With one byte more on standard output it is killed; bytes.
    pub max_output: usize,
}

impl HandlerRun {
    /// A run with the default bounds.
    pub fn new(id: ReplicaId, program: ProgramSpec, stdin: impl Into<Bytes>) -> Self {
        Self {
            id,
            program,
            stdin: stdin.into(),
            timeout: DEFAULT_HANDLER_TIMEOUT,
            max_output: DEFAULT_MAX_OUTPUT,
        }
    }
}

/// A further command inside a running replica.
#[derive(Debug, Clone, PartialEq)]
pub struct ExecRequest {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Written to its standard input.
    pub stdin: Bytes,
    /// After this it is killed with its session.
    pub timeout: Duration,
    /// Bound on output and errors together, bytes; what comes after is dropped and flagged.
    pub max_output: usize,
}

impl ExecRequest {
    /// A command without input, 10 s, 64 KiB of output.
    pub fn new(argv: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            stdin: Bytes::new(),
            timeout: Duration::from_secs(10),
            max_output: 64 << 10,
        }
    }
}
