//! The state directory: everything a node keeps between runs, and the lock that keeps a second node out.
//!
//! ```text
//! STATE/                      0700
//!   node.lock                 held (flock) by the running node, with its pid inside
//!   node.json                 how to reach the running node; gone after a clean stop
//!   operator.token            0600
//!   keys/node.key             who the node is: opens links to peers, and signs the journal's head
//!   keys/journal.key          signs the journal's head once the node's own key was replaced
//!   keys/node-ID.succession   the statement that a new node key follows the one before
//!   keys/agents/AGENT.key     one identity per agent, shared by its replicas
//!   volary.db (-wal, -head)   the store
//!   logs/REPLICA.log          what replicas print; logs/node.log after `up -d`
//!   replicas/REPLICA/         what one replica may see: its token, its secret files
//!   link/link.sock            where agents reach the link API
//! ```

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, Write as _},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use volary_kernel::{Timestamp, file};
use volary_messaging::AgentId;

use crate::error::NodeError;

/// Longest path of a Unix socket that every kernel takes, in bytes (`sun_path` holds 108 with its end mark).
const SOCKET_PATH_MAX: usize = 107;

/// The paths below one state directory. Pure: making one touches nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir {
    root: PathBuf,
}

impl StateDir {
    /// The state directory at `root`, which should be absolute.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The running node's address card, see [`NodeCard`].
    pub fn card(&self) -> PathBuf {
        self.root.join("node.json")
    }

    /// The lock file.
    pub fn lock_file(&self) -> PathBuf {
        self.root.join("node.lock")
    }

    /// The operator token.
    pub fn operator_token(&self) -> PathBuf {
        self.root.join("operator.token")
    }

    /// The node's own key.
    pub fn node_key(&self) -> PathBuf {
        self.root.join("keys/node.key")
    }

    /// The key that signs the journal's head: the node's first one. The journal keeps it when the node gets another, for
    /// what was signed stays signed.
    pub fn journal_key(&self) -> PathBuf {
        let own = self.own_journal_key();
        if own.exists() { own } else { self.node_key() }
    }

    pub(crate) fn own_journal_key(&self) -> PathBuf {
        self.root.join("keys/journal.key")
    }

    /// The statement that the node key with this id follows the one before.
    pub fn succession(&self, id: &AgentId) -> PathBuf {
        let short = &id.to_string()[..16];
        self.root.join(format!("keys/node-{short}.succession"))
    }

    /// The key of an agent.
    pub fn agent_key(&self, agent: &str) -> PathBuf {
        self.root.join("keys/agents").join(format!("{agent}.key"))
    }

    /// The database.
    pub fn database(&self) -> PathBuf {
        self.root.join("volary.db")
    }

    /// Imported archives of journals.
    pub fn imports(&self) -> PathBuf {
        self.root.join("imports")
    }

    /// Where logs go.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// The private directories of the replicas.
    pub fn replicas(&self) -> PathBuf {
        self.root.join("replicas")
    }

    /// The socket of the link API.
    pub fn link_socket(&self) -> PathBuf {
        self.root.join("link/link.sock")
    }

    /// Makes the directories, 0700, and checks that the socket's path is short enough.
    ///
    /// # Errors
    /// [`NodeError::State`] or [`NodeError::SocketPath`].
    pub fn create(&self) -> Result<(), NodeError> {
        let socket = self.link_socket();
        if socket.as_os_str().len() > SOCKET_PATH_MAX {
            return Err(NodeError::SocketPath {
                path: socket,
                limit: SOCKET_PATH_MAX,
            });
        }
        let folders = [
            self.root.clone(),
            self.root.join("keys/agents"),
            self.logs(),
            self.replicas(),
            self.root.join("link"),
        ];
        folders
            .iter()
            .try_for_each(|folder| file::create_private_dir(folder))
            .map_err(NodeError::State)
    }

    /// Removes temporary files that a killed predecessor left. Call with the lock held.
    ///
    /// # Errors
    /// [`NodeError::State`].
    pub fn sweep(&self) -> Result<(), NodeError> {
        for folder in [
            self.root.clone(),
            self.root.join("keys"),
            self.root.join("keys/agents"),
        ] {
            for entry in std::fs::read_dir(folder).map_err(NodeError::State)? {
                let path = entry.map_err(NodeError::State)?.path();
                if path
                    .as_os_str()
                    .as_encoded_bytes()
                    .ends_with(file::TEMP_SUFFIX.as_bytes())
                {
                    std::fs::remove_file(path).map_err(NodeError::State)?;
                }
            }
        }
        Ok(())
    }
}

/// The lock of a running node. Dropping it, or the death of the process, frees it.
#[derive(Debug)]
pub struct NodeLock {
    _file: File,
}

impl NodeLock {
    /// Takes the lock and writes this process's id into it.
    ///
    /// # Errors
    /// [`NodeError::Running`] with the other node's pid, or [`NodeError::State`].
    pub fn acquire(state: &StateDir) -> Result<Self, NodeError> {
        let path = state.lock_file();
        let options = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path);
        let mut file = options.map_err(NodeError::State)?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut pid = String::new();
            let _unknown_pid = file.read_to_string(&mut pid);
            return Err(NodeError::Running {
                state: state.root().to_owned(),
                pid: pid.trim().to_owned(),
            });
        }
        let write = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            write!(file, "{}", std::process::id())
        };
        write(&mut file).map_err(NodeError::State)?;
        Ok(Self { _file: file })
    }
}

/// Whether the process of that id runs: not when it is gone, and not when it is dead but for its last threads.
pub(crate) fn is_running(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name stands in parentheses and may hold any character; the state is the first field after it.
    let state = stat
        .rsplit_once(')')
        .and_then(|(_, fields)| fields.trim_start().chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// How to reach the running node: what `node.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeCard {
    /// Process id.
    pub pid: u32,
    /// Address of the ops server.
    pub ops: SocketAddr,
    /// Socket of the link API.
    pub link: PathBuf,
    /// The fleet's name.
    pub fleet: String,
    /// Folder or file the fleet was read from.
    pub source: PathBuf,
    /// When the node started.
    pub started_at: Timestamp,
    /// Version of the program.
    pub version: String,
}

impl NodeCard {
    /// Writes the card, 0600.
    ///
    /// # Errors
    /// [`NodeError::State`].
    pub fn write(&self, state: &StateDir) -> Result<(), NodeError> {
        let json =
            serde_json::to_vec_pretty(self).map_err(|error| NodeError::State(error.into()))?;
        file::write_atomic(&state.card(), &json, 0o600).map_err(NodeError::State)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> (tempfile::TempDir, StateDir) {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path().join("state"));
        state.create().unwrap();
        (folder, state)
    }

    fn card() -> NodeCard {
        NodeCard {
            pid: 7,
            ops: ([127, 0, 0, 1], 9100).into(),
            link: "/tmp/link.sock".into(),
            fleet: "first".into(),
            source: "fleet.yaml".into(),
            started_at: Timestamp::from_micros(0),
            version: "0.1.0".into(),
        }
    }

    #[test]
    fn a_second_node_on_the_same_state_is_told_who_has_it() {
        let (_folder, state) = state();
        let lock = NodeLock::acquire(&state).unwrap();
        let refused = NodeLock::acquire(&state).unwrap_err();
        assert!(
            refused
                .to_string()
                .contains(&std::process::id().to_string()),
            "{refused}"
        );
        drop(lock);
        NodeLock::acquire(&state).unwrap();
    }

    #[test]
    fn a_process_that_is_gone_or_a_zombie_does_not_run() {
        assert!(is_running(&std::process::id().to_string()));
        assert!(!is_running("0"));
        assert!(!is_running(""));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id().to_string();
        while is_running(&pid) {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!is_running(&pid));
    }

    #[test]
    fn a_sweep_takes_only_what_a_crash_left() {
        let (_folder, state) = state();
        std::fs::write(
            state
                .root()
                .join(format!("node.json.x{}", file::TEMP_SUFFIX)),
            "half",
        )
        .unwrap();
        card().write(&state).unwrap();
        state.sweep().unwrap();
        let left: Vec<_> = std::fs::read_dir(state.root())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert!(left.iter().any(|name| name == "node.json"));
        assert!(
            left.iter()
                .all(|name| !name.to_string_lossy().ends_with(file::TEMP_SUFFIX))
        );
    }

    #[test]
    fn a_state_directory_too_deep_for_a_socket_is_refused_with_its_limit() {
        let state = StateDir::new(format!("/tmp/{}", "x".repeat(100)));
        assert!(matches!(
            state.create(),
            Err(NodeError::SocketPath {
                limit: SOCKET_PATH_MAX,
                ..
            })
        ));
    }
}
