//! Everything that happens to tasks: one closed list, from which journal entries are made.

use std::time::Duration;

use serde_json::{Value, json};
use volary_kernel::{id::Name, text};
use volary_store::Entry;

use super::model::{ClaimToken, Task};

/// What happened to a task. The entry's kind is `task.` and the word.
#[derive(Debug, Clone, Copy)]
pub enum TaskEvent<'a> {
    /// It was submitted. The entry holds the task.
    Submitted,
    /// Somebody took it.
    Claimed {
        /// Which attempt.
        attempt: u32,
        /// Who.
        by: &'a str,
    },
    /// A claim ended without an answer: it waits again.
    Lapsed {
        /// Which attempt.
        attempt: u32,
    },
    /// It was done. The entry holds the result.
    Completed {
        /// Who.
        by: &'a str,
        /// What it came to.
        result: &'a Value,
    },
    /// An attempt failed.
    Failed {
        /// Who.
        by: &'a str,
        /// Why.
        reason: &'a str,
        /// How long until the next attempt may begin; `None` if there is none.
        retry_in: Option<Duration>,
    },
    /// It was called off.
    Cancelled {
        /// Why.
        reason: &'a str,
    },
    /// Its deadline passed.
    Expired,
    /// Its attempts are used up.
    Parked {
        /// Attempts made.
        attempts: u32,
        /// Why the last one failed.
        reason: &'a str,
    },
    /// A person lets it be tried again.
    Retried,
    /// A report came after its claim had ended. It changed nothing; what it said is kept here.
    Late {
        /// Who.
        by: &'a str,
        /// The claim.
        token: ClaimToken,
        /// What was reported.
        result: &'a Value,
    },
}

impl TaskEvent<'_> {
    /// The kind of its journal entry.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Submitted => "task.submitted",
            Self::Claimed { .. } => "task.claimed",
            Self::Lapsed { .. } => "task.lapsed",
            Self::Completed { .. } => "task.completed",
            Self::Failed { .. } => "task.failed",
            Self::Cancelled { .. } => "task.cancelled",
            Self::Expired => "task.expired",
            Self::Parked { .. } => "task.parked",
            Self::Retried => "task.retried",
            Self::Late { .. } => "task.late",
        }
    }

    /// Its journal entry, about `agent` if that is known. The cause is left to the caller.
    pub(super) fn record(&self, task: &Task, agent: Option<&Name>) -> Entry {
        let mut body = json!({"v": 1, "task": task.id, "pool": task.pool, "topic": task.topic});
        let whole = |duration: Duration| {
            Duration::from_millis(duration.as_millis().try_into().unwrap_or(u64::MAX))
        };
        match self {
            Self::Submitted => body["submitted"] = json!(task),
            Self::Claimed { attempt, by } => {
                (body["attempt"], body["by"]) = (json!(attempt), json!(by));
            }
            Self::Lapsed { attempt } => body["attempt"] = json!(attempt),
            Self::Completed { by, result } => {
                (body["by"], body["result"]) = (json!(by), (*result).clone());
            }
            Self::Failed {
                by,
                reason,
                retry_in,
            } => {
                (body["by"], body["reason"]) = (json!(by), json!(reason));
                body["retry_in"] = json!(retry_in.map(|delay| text::format_duration(whole(delay))));
            }
            Self::Cancelled { reason } => body["reason"] = json!(reason),
            Self::Parked { attempts, reason } => {
                (body["attempts"], body["reason"]) = (json!(attempts), json!(reason));
            }
            Self::Expired | Self::Retried => {}
            Self::Late { by, token, result } => {
                (body["by"], body["result"]) = (json!(by), (*result).clone());
                body["epoch"] = json!(token.epoch);
            }
        }
        Entry::new(self.kind(), task.tenant.clone(), body.to_string())
            .agent(agent.cloned())
            .trace(task.trace)
    }
}
