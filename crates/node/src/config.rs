//! What a node is started with. Everything is settled here: nothing further down reads files of the user, arguments or
//! the environment.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use volary_deploy::{backend::process::InitCommand, spec::model::FleetSpec};
use volary_kernel::SharedClock;
use volary_store::SharedStore;

/// Settings of a [`crate::Node`].
pub struct NodeConfig {
    /// What to run.
    pub fleet: FleetSpec,
    /// Where state is kept; made if it is not there. Absolute.
    pub state_dir: PathBuf,
    /// How to run this program as the init of a replica's namespace.
    pub init: InitCommand,
    /// The `volary` program, for agents that are shell scripts (`VOLARY_BIN`).
    pub program: PathBuf,
    /// `PATH`, `HOME`, `LANG`, `TZ`: the base of every agent's environment.
    pub base_env: BTreeMap<String, String>,
    /// Address of the ops server; `None`: as the fleet says.
    pub ops_bind: Option<SocketAddr>,
    /// Whether the ops server may listen beyond this machine in plain HTTP.
    pub insecure: bool,
    /// Time.
    pub clock: SharedClock,
    /// A store to use instead of the one that the fleet names: for embedding, and for tests that make it fail.
    pub store: Option<SharedStore>,
}
