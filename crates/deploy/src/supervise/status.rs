//! What `ps` shows of a replica.

use serde::Serialize;
use volary_kernel::clock::Timestamp;
use volary_kernel::id::Name;

use super::lifecycle::State;
use crate::backend::Exit;

/// One line of `ps`; additive only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReplicaStatus {
    /// Its agent.
    pub agent: Name,
    /// Its name, `agent-0`.
    pub replica: String,
    /// How it runs: `process`, or `handler` for one process per message.
    pub backend: &'static str,
    /// Where it is.
    #[serde(serialize_with = "as_word")]
    pub state: State,
    /// Whether it can be given work.
    pub ready: bool,
    /// Process id on the machine, if there is one.
    pub pid: Option<u32>,
    /// Starts after the first one.
    pub restarts: u64,
    /// When its program was last started.
    pub started_at: Option<Timestamp>,
    /// Ports it declares.
    pub ports: Vec<u16>,
    /// How it ended last.
    pub last_exit: Option<Exit>,
    /// Why it is not ready.
    pub reason: Option<String>,
}

fn as_word<S: serde::Serializer>(state: &State, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(state.as_str())
}

impl ReplicaStatus {
    /// Its state with the reason, for people.
    pub fn describe(&self) -> String {
        match &self.reason {
            Some(reason) => format!("{} is {}: {reason}", self.replica, self.state.as_str()),
            None => format!("{} is {}", self.replica, self.state.as_str()),
        }
    }
}
