//! What happens to replicas: the one closed list from which journal, live feed, logs and dashboard are made.

use serde_json::{Value, json};
use volary_kernel::clock::Timestamp;
use volary_kernel::id::Name;

use crate::backend::{Exit, ReplicaId};

/// One thing that happened to one replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// To whom.
    pub replica: ReplicaId,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// It waits for these agents before it starts.
    Waiting {
        /// The agents that are not ready yet.
        on: Vec<Name>,
    },
    /// Its program is being started.
    Starting {
        /// Starts before this one since it was last started by a person or with the node.
        restarts: u64,
    },
    /// Its program runs, but is not ready yet.
    Started {
        /// Process id on the machine.
        pid: Option<u32>,
        /// What was asked for and cannot be had here.
        warnings: Vec<String>,
    },
    /// It can be given work.
    Ready,
    /// Its health check failed too often.
    Unhealthy {
        /// The last probe's words.
        reason: String,
    },
    /// Its main process ended, and everything with it.
    Exited {
        /// How.
        exit: Exit,
    },
    /// It could not be started.
    StartFailed {
        /// Why, without secrets.
        reason: String,
    },
    /// It is started again at a time.
    BackingOff {
        /// When.
        until: Timestamp,
    },
    /// It failed too often in a row; it is still tried again at a time.
    CrashLoop {
        /// When.
        until: Timestamp,
        /// Failures in a row.
        failures: u32,
    },
    /// It was asked to end.
    Stopping,
    /// It ended for good, by wish or by policy.
    Stopped,
    /// It is given up; only a person starts it again.
    Failed {
        /// Why.
        reason: String,
    },
}

impl Event {
    /// Name of the kind, for filters: `replica.ready`.
    pub fn kind(&self) -> &'static str {
        match &self.what {
            What::Waiting { .. } => "replica.waiting",
            What::Starting { .. } => "replica.starting",
            What::Started { .. } => "replica.started",
            What::Ready => "replica.ready",
            What::Unhealthy { .. } => "replica.unhealthy",
            What::Exited { .. } => "replica.exited",
            What::StartFailed { .. } => "replica.start_failed",
            What::BackingOff { .. } => "replica.backoff",
            What::CrashLoop { .. } => "replica.crashloop",
            What::Stopping => "replica.stopping",
            What::Stopped => "replica.stopped",
            What::Failed { .. } => "replica.failed",
        }
    }

    /// The agent it is about.
    pub fn agent(&self) -> &Name {
        &self.replica.agent
    }

    /// The particulars, version 1, as an object.
    pub fn body(&self) -> Value {
        let mut body = match &self.what {
            What::Waiting { on } => {
                json!({ "on": on.iter().map(Name::as_str).collect::<Vec<_>>() })
            }
            What::Starting { restarts } => json!({ "restarts": restarts }),
            What::Started { pid, warnings } => json!({ "pid": pid, "warnings": warnings }),
            What::Ready | What::Stopping | What::Stopped => json!({}),
            What::Unhealthy { reason } | What::StartFailed { reason } | What::Failed { reason } => {
                json!({ "reason": reason })
            }
            What::Exited { exit } => json!({ "exit": exit, "text": exit.to_string() }),
            What::BackingOff { until } => json!({ "until": until.to_string() }),
            What::CrashLoop { until, failures } => {
                json!({ "until": until.to_string(), "failures": failures })
            }
        };
        body["v"] = json!(1);
        body["replica"] = json!(self.replica.to_string());
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_versioned_and_names_its_replica() {
        let replica = ReplicaId::new(Name::new("writer").unwrap(), 2);
        let event = Event {
            replica,
            what: What::Exited {
                exit: Exit::Code(3),
            },
        };
        assert_eq!(event.kind(), "replica.exited");
        assert_eq!(
            event.body(),
            json!({ "v": 1, "replica": "writer-2", "exit": { "code": 3 }, "text": "exit code 3" })
        );
    }
}
