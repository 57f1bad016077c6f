//! What a task is, who may see it, and the lane of the queue it waits in (pure).

use std::{collections::BTreeSet, fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use volary_kernel::{
    clock::Timestamp,
    id::{IdError, Name, Tenant, TraceId, Uid},
};
use volary_store::queue::LANE_MAX;

use super::machine::TaskState;
use crate::{discovery::Capability, message::Priority, topic::Topic};

/// Most capabilities that one task may require: each set of them is a lane of its own.
pub const REQUIRED_MAX: usize = 32;

/// A task. Sorts by time of making; the same id is the same task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskId(pub Uid);

impl TaskId {
    /// A new one.
    pub fn generate() -> Self {
        Self(Uid::generate())
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for TaskId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        text.parse().map(Self)
    }
}

/// Work to be done once.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NewTask {
    /// Its id; a new one if there is none. The same id with the same content again is the same task.
    pub id: Option<TaskId>,
    /// Only for members of this pool.
    pub pool: Option<Name>,
    /// Only for who gets this topic.
    pub topic: Option<Topic>,
    /// Only for who can do all of this.
    pub required_capabilities: BTreeSet<Capability>,
    /// What is to be reached.
    pub objective: Value,
    /// What there is to work with.
    pub inputs: Value,
    /// What holds meanwhile; for the worker, Volary does not look inside.
    pub constraints: Value,
    /// Higher goes first.
    pub priority: Priority,
    /// When nobody wants it any more: a task that waits then is expired.
    pub deadline: Option<Timestamp>,
    /// How often it is tried again after a failed or lapsed attempt; the manager's default if not said.
    pub max_retries: Option<u32>,
    /// How long a claim holds without renewal; the manager's default if not said.
    pub claim_ttl: Option<Duration>,
    /// The request it is part of; a new one if there is none.
    pub trace: Option<TraceId>,
}

/// A task as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Its id.
    pub id: TaskId,
    /// Whose it is.
    pub tenant: Tenant,
    /// Only for members of this pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<Name>,
    /// Only for who gets this topic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<Topic>,
    /// Only for who can do all of this.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub required_capabilities: BTreeSet<Capability>,
    /// What is to be reached.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub objective: Value,
    /// What there is to work with.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub inputs: Value,
    /// What holds meanwhile.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub constraints: Value,
    /// Higher goes first.
    pub priority: Priority,
    /// When nobody wants it any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// How often it is tried again.
    pub max_retries: u32,
    /// How long a claim holds without renewal, in milliseconds.
    pub claim_ttl_ms: u64,
    /// Who submitted it.
    pub submitted_by: Name,
    /// When.
    pub submitted_at: Timestamp,
    /// The request it is part of.
    pub trace: TraceId,
    /// Where it stands.
    pub state: TaskState,
    /// Who works on it, or who ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assigned_to: Option<String>,
    /// Attempts made, the running one included; from zero again after a retry of a parked task.
    #[serde(default)]
    pub attempts: u32,
    /// What it came to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Why it failed, was cancelled or parked; of a pending task, why its last attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The claim under which it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
}

impl Task {
    /// How long a claim holds without renewal.
    pub const fn claim_ttl(&self) -> Duration {
        Duration::from_millis(self.claim_ttl_ms)
    }

    /// The same in every attempt: what a side effect deduplicates by.
    pub fn idempotency_key(&self) -> String {
        format!("task/{}", self.id)
    }

    /// The hash of what its submitter determined. Times and trace are left out: they may differ when the same is submitted
    /// again.
    pub(super) fn content_hash(&self) -> String {
        let content = serde_json::json!([
            self.id,
            self.pool,
            self.topic,
            self.required_capabilities,
            self.objective,
            self.inputs,
            self.constraints,
            self.priority,
            self.max_retries,
            self.claim_ttl_ms,
            self.submitted_by,
        ]);
        blake3::hash(content.to_string().as_bytes())
            .to_hex()
            .to_string()
    }

    /// The lane it waits in: what decides who may see it.
    pub(super) fn lane(&self) -> String {
        let words = |set: &BTreeSet<Capability>| {
            set.iter()
                .map(Capability::as_str)
                .collect::<Vec<_>>()
                .join(",")
        };
        let pool = self.pool.as_ref().map_or("", Name::as_str);
        let topic = self.topic.as_ref().map_or("", Topic::as_str);
        let lane = format!("{pool}|{topic}|{}", words(&self.required_capabilities));
        debug_assert!(lane.len() <= LANE_MAX, "the parts are bounded");
        lane
    }
}

/// Which tasks somebody may see. What is `None` does not matter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskFilter {
    /// In one of these pools, or in none. With an empty list: in none.
    pub pools: Option<Vec<Name>>,
    /// About one of these topics, or about none.
    pub topics: Option<Vec<Topic>>,
    /// Requires no more than this.
    pub capabilities: Option<BTreeSet<Capability>>,
}

impl TaskFilter {
    /// Every task of the tenant.
    pub fn all() -> Self {
        Self::default()
    }

    /// Whether a task of this lane may be seen.
    pub(super) fn admits(&self, lane: &str) -> bool {
        let mut parts = lane.splitn(3, '|');
        let mut part = || parts.next().unwrap_or_default();
        let (pool, topic, required) = (part(), part(), part());
        let in_list = |list: Option<&[&str]>, word: &str| {
            word.is_empty() || list.is_none_or(|list| list.contains(&word))
        };
        let pools: Option<Vec<&str>> = self
            .pools
            .as_ref()
            .map(|pools| pools.iter().map(Name::as_str).collect());
        let topics: Option<Vec<&str>> = self
            .topics
            .as_ref()
            .map(|topics| topics.iter().map(Topic::as_str).collect());
        let able = |capabilities: &BTreeSet<Capability>| {
            required
                .split(',')
                .all(|word| word.is_empty() || capabilities.contains(word))
        };
        in_list(pools.as_deref(), pool)
            && in_list(topics.as_deref(), topic)
            && self.capabilities.as_ref().is_none_or(able)
    }
}

/// Who works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// Its tenant: it sees no other's tasks.
    pub tenant: Tenant,
    /// The agent.
    pub name: Name,
    /// Which of the agent's replicas, for people; may be empty.
    pub replica: String,
}

impl Worker {
    /// What a task says about who has it: `agent`, or `agent/replica`.
    pub fn owner(&self) -> String {
        if self.replica.is_empty() {
            self.name.to_string()
        } else {
            format!("{}/{}", self.name, self.replica)
        }
    }
}

impl Worker {
    /// A worker that is the only replica of its agent.
    pub fn new(tenant: Tenant, name: Name) -> Self {
        let replica = String::new();
        Self {
            tenant,
            name,
            replica,
        }
    }
}

/// Names one claim of a task: what a report must show. Text form `<task>.<epoch>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClaimToken {
    /// The task.
    pub task: TaskId,
    /// Grows with every claim.
    pub epoch: u64,
}

impl fmt::Display for ClaimToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.task, self.epoch)
    }
}

impl FromStr for ClaimToken {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let (task, epoch) = text.split_once('.')?;
            let (task, epoch) = (task.parse().ok()?, epoch.parse().ok()?);
            Some(Self { task, epoch })
        };
        read().ok_or_else(|| {
            let found: String = text.chars().take(80).collect();
            format!("claim must look like `<task>.<number>`, found `{found}`")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{name, topic};

    #[test]
    fn a_lane_is_seen_by_who_may_see_it() {
        let can = |word: &str| Capability::new(word).unwrap();
        let filter = TaskFilter {
            pools: Some(vec![name("p")]),
            topics: Some(vec![topic("t/u")]),
            capabilities: Some([can("a"), can("b/c")].into()),
        };
        for (lane, seen) in [
            ("||", true),
            ("p|t/u|a,b/c", true),
            ("p||b/c", true),
            ("q||", false),
            ("|t|", false),
            ("||a,d", false),
        ] {
            assert_eq!(filter.admits(lane), seen, "{lane}");
            assert!(TaskFilter::all().admits(lane));
        }
        let nothing = TaskFilter {
            pools: Some(Vec::new()),
            ..TaskFilter::all()
        };
        assert!(nothing.admits("|t|") && !nothing.admits("p|t|"));
    }

    #[test]
    fn a_claim_reads_back() {
        let token = ClaimToken {
            task: TaskId::generate(),
            epoch: 7,
        };
        assert_eq!(token.to_string().parse(), Ok(token));
        assert!("x.1".parse::<ClaimToken>().is_err());
    }
}
