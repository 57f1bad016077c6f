//! A fleet, resolved: its agents, sources and the node's own settings.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use serde::Serialize;
use volary_kernel::id::{Name, Tenant};

use super::{AgentSpec, MessagingSpec, text};

/// Everything a node needs to know to run a fleet.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FleetSpec {
    /// The fleet's name; of a fleet of one, its agent's.
    pub name: Name,
    /// `fleet.yaml`, or the `agent.yaml` of a fleet of one.
    pub file: PathBuf,
    /// The file's folder: relative paths in the file start here.
    pub dir: PathBuf,
    /// Whose work the fleet does.
    pub tenant: Tenant,
    /// Its agents in file order, names unique, dependencies known and free of cycles.
    pub agents: Vec<AgentSpec>,
    /// Where context comes from.
    pub sources: BTreeMap<Name, SourceSpec>,
    /// Inboxes, hooks, and the links to other nodes.
    pub messaging: MessagingSpec,
    /// Where records are kept.
    pub store: StoreSpec,
    /// The operators' server.
    pub ops: OpsSpec,
    /// How long and how much journal is kept.
    pub retention: RetentionSpec,
    /// What the fleet may use at most.
    pub quota: QuotaSpec,
}

impl FleetSpec {
    /// The agent called `name`.
    pub fn agent(&self, name: &str) -> Option<&AgentSpec> {
        self.agents.iter().find(|agent| agent.name.as_str() == name)
    }
}

/// One source of context.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceSpec {
    /// The name subscriptions use.
    pub name: Name,
    /// What kind of source, with its own settings.
    #[serde(flatten)]
    pub kind: SourceKind,
    /// Data type of its pages.
    pub data_type: String,
    /// When a change counts as finished.
    pub settle: Settle,
}

/// The kinds of source of this build.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase", tag = "type")]
pub enum SourceKind {
    /// The files of a folder.
    Files(FilesSource),
}

/// The files of a folder, at any depth.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FilesSource {
    /// The folder; it existed when the manifest was checked.
    pub path: PathBuf,
    /// Globs, relative to the folder, of the files that count. Default: all.
    pub include: Vec<String>,
    /// Globs of files and folders that do not count, whatever `include` says.
    pub exclude: Vec<String>,
    /// Whether version control, build output and editors' files do not count.
    pub default_excludes: bool,
    /// Larger files do not count, in bytes.
    pub max_file_size: u64,
    /// Most pages.
    pub max_pages: u32,
    /// How changes are noticed.
    pub watch: WatchMode,
    /// From one look to the next where there are no notifications.
    #[serde(serialize_with = "text::duration")]
    pub poll_interval: Duration,
    /// What files mean that are there at the very first start.
    pub initial: Initial,
}

/// How changes are noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WatchMode {
    /// By notifications, and at intervals where there are none. The default.
    Auto,
    /// By notifications only.
    Notify,
    /// At intervals only.
    Poll,
}

/// What files mean that are there at the very first start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Initial {
    /// Each is told as added. The default.
    Dispatch,
    /// They are known, and nothing is told.
    Baseline,
}

/// When a change counts as finished: rest for `rest`, but wait no longer than `max_wait`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Settle {
    /// Nothing more happened to the page for this long.
    #[serde(serialize_with = "text::duration")]
    pub rest: Duration,
    /// The longest a page that keeps changing is held back.
    #[serde(serialize_with = "text::duration")]
    pub max_wait: Duration,
}

/// Where records are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StoreSpec {
    /// Which store.
    pub kind: StoreKind,
    /// Intake stops while the disk has less than this free, in bytes.
    pub min_free_disk: u64,
}

/// The stores of this build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// One SQLite file in the state folder. The default.
    Sqlite,
    /// Nothing survives the node. For trying things out.
    Memory,
}

/// The operators' server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct OpsSpec {
    /// Where it listens; port 0 takes a free one.
    pub bind: SocketAddr,
}

/// How long and how much journal is kept; whichever comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RetentionSpec {
    /// Older entries go.
    #[serde(serialize_with = "text::duration")]
    pub max_age: Duration,
    /// The oldest entries beyond this many bytes go.
    pub max_bytes: u64,
}

/// What the fleet may use at most; checked with the manifests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct QuotaSpec {
    /// Replicas of all agents together.
    pub max_replicas: u32,
}
