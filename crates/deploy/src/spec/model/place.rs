//! What surrounds a replica: ports, mounts, resources, network, user, number.

use std::{collections::BTreeMap, fmt, net::IpAddr, path::PathBuf, time::Duration};

use serde::Serialize;

use super::text;

/// A port an agent listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct PortSpec {
    /// The port the program binds.
    pub container: u16,
    /// The port on the host; equal to `container` for a process.
    pub host: u16,
    /// The host address it is published on; unspecified means all.
    pub address: IpAddr,
    /// TCP or UDP.
    pub protocol: Protocol,
}

/// TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP, the default.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSpec {
    /// What is mounted.
    pub source: VolumeSource,
    /// Where: an absolute path other than `/`, unique in its agent.
    pub target: PathBuf,
    /// Whether writing is refused.
    pub read_only: bool,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeSource {
    /// A file or folder of the host.
    Bind(PathBuf),
    /// A volume with a name that outlives the replica.
    Volume(String),
    /// Memory that ends with the replica, of this many bytes; `None` leaves it to the backend.
    Temporary(Option<u64>),
    /// Read-only files with these names and contents.
    ConfigMap(BTreeMap<String, String>),
}

/// CPU and memory, upper and lower.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Resources {
    /// At most; never below `requests`.
    pub limits: ResourceSet,
    /// At least.
    pub requests: ResourceSet,
}

/// CPU and memory; `None` means unlimited, or nothing asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceSet {
    /// Thousandths of a CPU.
    pub cpu_milli: Option<u64>,
    /// Bytes.
    pub memory: Option<u64>,
    /// Bytes of disk that end with the replica.
    pub ephemeral_storage: Option<u64>,
}

/// Reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkSpec {
    /// Which network. Default: `host` for a process, `bridge` for a container.
    pub mode: NetworkMode,
    /// Name servers; empty means the host's.
    pub dns: Vec<IpAddr>,
    /// Whether it may reach beyond the fleet.
    pub allow_external: bool,
    /// If not empty, the only outside hosts it may reach: names, `*.name`, addresses, networks, each with `:port` or not.
    pub allowed_hosts: Vec<String>,
}

/// Which network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// The host's own.
    Host,
    /// A private one with a way out.
    Bridge,
    /// None but loopback.
    None,
    /// One that the user made, by name.
    Custom(String),
}

/// A service an agent expects to find.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServiceSpec {
    /// Its name.
    pub name: String,
    /// Its port.
    pub port: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
}

/// How many replicas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ScalingSpec {
    /// How many at the start, and all the time without `autoscale`.
    pub replicas: u32,
    /// The lower bound of `scale` and of the autoscaler.
    pub min: u32,
    /// The upper bound of `scale` and of the autoscaler.
    pub max: u32,
    /// What the autoscaler aims at; `None`: the number is fixed.
    pub autoscale: Option<AutoscaleSpec>,
}

/// What the autoscaler aims at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AutoscaleSpec {
    /// Mean CPU use, percent of what is requested.
    pub cpu_percent: Option<u32>,
    /// Mean memory use, percent of what is requested.
    pub memory_percent: Option<u32>,
    /// A higher number must be right for this long.
    #[serde(serialize_with = "text::duration")]
    pub up_delay: Duration,
    /// A lower number must be right for this long.
    #[serde(serialize_with = "text::duration")]
    pub down_delay: Duration,
}

/// User, group, capabilities.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SecuritySpec {
    /// User id; `None`: the node's, or the image's.
    pub run_as_user: Option<u32>,
    /// Group id; `None` exactly if there is no user.
    pub run_as_group: Option<u32>,
    /// Whether the root file system is read-only.
    pub read_only_root: bool,
    /// Linux capabilities.
    pub capabilities: Capabilities,
}

/// Linux capabilities, upper case without `CAP_`; `ALL` means every one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// Given beyond the default.
    pub add: Vec<String>,
    /// Taken from the default, before `add`.
    pub drop: Vec<String>,
}
