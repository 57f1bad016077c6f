//! Why a node does not start, with the stable code, the hint and the kind of exit that go with it.

use std::path::PathBuf;

use volary_context::dispatch::MapError;
use volary_deploy::backend::BackendError;
use volary_kernel::secret::SecretError;
use volary_messaging::{
    discovery::DiscoveryError,
    identity::{KeyFileError, RegistryError},
    peer::PeerError,
    pool::PoolError,
    task::TaskError,
    transport::tcp::TcpError,
};
use volary_ops::OpsError;
use volary_store::{StoreError, queue::QueueError};

/// A node could not be started, or one of its files could not be used.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The state directory cannot be used.
    #[error("state directory: {0}")]
    State(#[source] std::io::Error),
    /// The state directory lies too deep for a Unix socket.
    #[error("path of the agents' socket is longer than {limit} bytes: {}", path.display())]
    SocketPath {
        /// The path it would have.
        path: PathBuf,
        /// The most it may have, in bytes.
        limit: usize,
    },
    /// Another node runs on this state directory.
    #[error("a node is already running on {} (pid {pid})", state.display())]
    Running {
        /// The state directory.
        state: PathBuf,
        /// The other node's process id, as it wrote it.
        pid: String,
    },
    /// The database cannot be opened.
    #[error("store: {0}")]
    Store(#[from] StoreError),
    /// The queues in it cannot be read.
    #[error("queues: {0}")]
    Queue(#[from] QueueError),
    /// Tasks cannot be read.
    #[error("tasks: {0}")]
    Task(#[from] TaskError),
    /// Pools cannot be read or follow the manifests.
    #[error("pools: {0}")]
    Pool(#[from] PoolError),
    /// Registrations cannot be read.
    #[error("discovery: {0}")]
    Discovery(#[from] DiscoveryError),
    /// A key file cannot be used.
    #[error("identity: {0}")]
    Identity(#[from] KeyFileError),
    /// The known identities cannot be changed.
    #[error("identities: {0}")]
    Registry(#[from] RegistryError),
    /// Peers cannot be had.
    #[error("peers: {0}")]
    Peers(#[from] PeerError),
    /// Peers cannot be listened for.
    #[error("messaging.listen: {0}")]
    Listen(#[from] TcpError),
    /// The ops server cannot start.
    #[error(transparent)]
    Ops(#[from] OpsError),
    /// A source of context cannot be watched.
    #[error("context: {0}")]
    Context(#[from] MapError),
    /// The backend is not to be had.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A declared secret cannot be watched for.
    #[error("secret of agent `{agent}`: {problem}")]
    Secret {
        /// The agent that declares it.
        agent: String,
        /// What is wrong with it.
        problem: SecretError,
    },
    /// A secret is too short to be told from ordinary text.
    #[error("agent `{agent}`: too short to be kept secret: {secrets}")]
    ShortSecret {
        /// The agent that declares it.
        agent: String,
        /// Names of the secrets.
        secrets: String,
    },
    /// A declared secret stands among a program's arguments.
    #[error(
        "agent `{agent}`: a declared secret stands in its command, which everybody on this machine can read"
    )]
    ShownSecret {
        /// The agent whose command it is.
        agent: String,
    },
    /// The fleet asks for something that this node cannot do.
    #[error("{0}")]
    Fleet(String),
}

/// What an exit code should tell a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// An ordinary failure.
    Failure,
    /// The manifests or the data are bad.
    BadData,
    /// Something that is needed cannot be had here.
    Unavailable,
    /// It may work later.
    RetryLater,
}

/// A stable error code of this crate with its words, for `volary explain`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeCode {
    /// The code.
    pub id: &'static str,
    /// What went wrong, in general.
    pub title: &'static str,
    /// What to do about it.
    pub hint: &'static str,
    /// What the exit code tells.
    pub class: ErrorClass,
}

macro_rules! codes {
    ($($name:ident = $id:literal, $class:ident, $title:literal, $hint:literal;)*) => {
        $(pub(crate) const $name: NodeCode = NodeCode { id: $id, title: $title, hint: $hint, class: ErrorClass::$class };)*
        /// Every code of this crate, in order.
        pub const CODES: &[NodeCode] = &[$($name),*];
    };
}

codes! {
    STATE = "V7001", Failure, "the state directory cannot be used",
        "check that the folder belongs to you and has room, or choose another with --state DIR";
    SOCKET_PATH = "V7002", Failure, "the state directory lies too deep for a socket",
        "choose a shorter path with --state DIR";
    RUNNING = "V7003", Failure, "another node runs on this state directory",
        "stop it with `volary down`, or choose another with --state DIR";
    STORE = "V7004", Failure, "the store cannot be opened",
        "if it is in use, stop who has it; `volary journal verify` tells whether it is damaged";
    CORRUPT = "V7005", BadData, "the store is not as this node left it",
        "`volary journal verify` names the first bad or missing entry; put back an intact copy, or move the state \
         directory away to begin anew";
    FULL = "V7006", RetryLater, "there is no room", "make room on the disk of the state directory";
    IDENTITY = "V7007", Failure, "a key file cannot be used",
        "key files must belong to you with mode 0600; remove one to get a new identity";
    CONTEXT = "V7008", Failure, "a source of context cannot be watched",
        "check that its folder exists and can be read";
    BACKEND = "V7009", Unavailable, "the backend is not available",
        "`volary doctor` tells what this machine allows";
    SECRET = "V7010", BadData, "a secret cannot be kept secret",
        "secrets of fewer than four bytes cannot be told from ordinary text: use a longer one";
    FLEET = "V7011", BadData, "the fleet asks for something that this node cannot do",
        "see the message for what to change in the manifests";
    QUEUE = "V7012", BadData, "the queues in the store cannot be read",
        "`volary journal verify` tells whether the store is damaged";
    SHOWN = "V7013", BadData, "a secret stands where everybody can read it",
        "let the program read the secret from the file that `spec.secrets` gives it";
    PEERS = "V7014", Failure, "the peers cannot be had",
        "see the message; `volary identity list` shows who is known, `volary journal verify` whether the store is damaged";
    LISTEN = "V7015", Unavailable, "peers cannot be listened for",
        "choose another address with `messaging.listen`, or stop the program that has it";
    NO_ROOM = "V7101", RetryLater, "an inbox, the store or the disk has no room",
        "intake goes on by itself when there is room: make room on the disk, or let agents work off what waits";
    WAITERS = "V7102", RetryLater, "too many callers wait for outcomes", "wait for fewer outcomes at once";
    LIMITED = "V7103", RetryLater, "too many messages in too short a time",
        "wait as long as Retry-After says; the limits are those of `messaging.hooks` in fleet.yaml";
    NOT_ALLOWED = "V7104", Failure, "an agent asked for what it may not do",
        "a claim is settled by the agent that holds it; a pool is joined by who is on its list or shows its token";
    ARCHIVE = "V7110", BadData, "an imported archive is not what was imported",
        "import it again with `volary journal import FILE`";
}

impl NodeError {
    /// The stable code with its words.
    pub const fn code(&self) -> NodeCode {
        match self {
            Self::State(_) => STATE,
            Self::SocketPath { .. } => SOCKET_PATH,
            Self::Running { .. } => RUNNING,
            Self::Store(StoreError::Corrupt { .. }) => CORRUPT,
            Self::Store(StoreError::Full { .. }) => FULL,
            Self::Store(_) => STORE,
            Self::Queue(_) | Self::Task(_) | Self::Pool(_) | Self::Discovery(_) => QUEUE,
            Self::Identity(_) => IDENTITY,
            Self::Registry(RegistryError::Store(_)) | Self::Peers(PeerError::Store(_)) => STORE,
            Self::Registry(_) | Self::Peers(_) => PEERS,
            Self::Listen(_) => LISTEN,
            Self::Ops(error) => {
                let code = error.code();
                NodeCode {
                    id: code.id,
                    title: code.title,
                    hint: code.hint,
                    class: ErrorClass::Failure,
                }
            }
            Self::Context(_) => CONTEXT,
            Self::Backend(_) => BACKEND,
            Self::Secret { .. } | Self::ShortSecret { .. } => SECRET,
            Self::ShownSecret { .. } => SHOWN,
            Self::Fleet(_) => FLEET,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_unique_and_has_words() {
        let mut ids: Vec<_> = CODES.iter().map(|code| code.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), CODES.len());
        assert!(
            CODES
                .iter()
                .all(|code| !code.title.is_empty() && !code.hint.is_empty())
        );
    }
}
