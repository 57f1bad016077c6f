//! Keeps replicas in the state that was asked for.
//!
//! [`lifecycle`] decides for one replica, [`order`] for the order between agents; both are pure. [`Service`] is the
//! one task that applies what they say to a [`Backend`](crate::backend::Backend) and tells what happens.

mod handle;
pub mod lifecycle;
pub mod order;
mod service;
mod status;

use std::time::Duration;

use volary_kernel::id::Name;
use volary_kernel::secret::Redactor;

pub use handle::{EventStream, Feed, Handle, Target};
pub use lifecycle::{RestartPolicy, Rules, State};
pub use service::Service;
pub use status::ReplicaStatus;

use crate::backend::ReplicaSpec;
use crate::health::ProbeSpec;

/// What of an agent is supervised.
#[derive(Debug, Clone)]
pub struct AgentPlan {
    /// Its name.
    pub name: Name,
    /// Agents that must be ready before it starts, at every start.
    pub depends_on: Vec<Name>,
    /// What runs.
    pub body: Body,
    /// When it is started again.
    pub rules: Rules,
    /// How it is known to be ready and well; without one it is ready once it has run for a moment.
    pub health: Option<ProbeSpec>,
    /// Ports it declares, shown by `ps`.
    pub ports: Vec<u16>,
}

/// How an agent lives.
#[derive(Debug, Clone)]
pub enum Body {
    /// Long-lived replicas, one per entry; their ids must carry the agent's name.
    Process(Vec<ReplicaSpec>),
    /// One process per message: nothing to keep alive; it is ready and has no process id.
    Handler,
}

/// Settings of the service.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// All agents of the fleet.
    pub agents: Vec<AgentPlan>,
    /// What must not appear in reasons and events (a probe's output may repeat a secret).
    pub redactor: Redactor,
}

/// Longest a fleet may take to stop unless the caller says otherwise; graces of agents are cut to it.
pub const DEFAULT_DRAIN: Duration = Duration::from_secs(30);

/// What a drain could not stop in time is left to the backend's close, which kills it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DrainReport {
    /// Replicas that had not ended at the deadline. Empty is a clean stop.
    pub left: Vec<String>,
}

/// Why the service refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SuperviseError {
    /// An agent depends on one that is not there.
    #[error("agent `{agent}` depends on `{on}`, which is not in the fleet")]
    UnknownDependency {
        /// Who.
        agent: Name,
        /// On whom.
        on: Name,
    },
    /// Agents wait for each other.
    #[error("dependency cycle: {}", .path.iter().map(Name::as_str).collect::<Vec<_>>().join(" -> "))]
    Cycle {
        /// The way round, first and last are the same.
        path: Vec<Name>,
    },
    /// No such agent or replica.
    #[error("no agent or replica `{target}` in this fleet")]
    Unknown {
        /// What was asked for.
        target: String,
    },
    /// Not all became ready in time, or some never will.
    #[error("not ready: {}", .waiting.join("; "))]
    NotReady {
        /// Each with its state and reason.
        waiting: Vec<String>,
    },
    /// The service has ended.
    #[error("the supervisor has stopped")]
    Closed,
}
