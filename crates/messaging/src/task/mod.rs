//! Tasks: work that is done once, by whoever may and claims it first.
//!
//! ```text
//! submit ─▶ pending ──claim (a lease with a number)──▶ claimed ──report under that number──▶ completed
//!              ▲                                         │ renew: holds on
//!              └──── lapsed, failed: again later ────────┤ the last attempt ─▶ parked (`volary parked retry`)
//!  cancel, deadline ─▶ cancelled, expired                └ given up ─▶ failed
//! ```
//! Every change is one commit together with its journal entry; a report under a claim that has ended changes nothing, and
//! what it said is kept in the journal. Tasks of different tenants never meet.

mod books;
mod event;
mod machine;
mod manage;
mod model;
mod settle;
mod view;

use std::time::Duration;

use volary_kernel::id::Name;
use volary_store::{QueueError, StoreError, queue::QueueFull};

pub use self::{
    books::task_in,
    event::TaskEvent,
    machine::{NotAllowed, Step, TaskState},
    manage::{Submitted, TaskClaim, TaskManager},
    model::{ClaimToken, NewTask, REQUIRED_MAX, Task, TaskFilter, TaskId, Worker},
    settle::{Failing, Renewed, Reported},
    view::{TaskPage, TaskQuery, Waited},
};

/// How tasks are kept.
#[derive(Debug, Clone)]
pub struct TaskConfig {
    /// Most tasks of one tenant that have not ended (parked ones not counted). Default 100,000.
    pub max_tasks: usize,
    /// Most bytes of them. Default 256 MiB.
    pub max_bytes: u64,
    /// Most bytes of one task, and of one result. Default 1 MiB: bigger things are stored elsewhere and referred to.
    pub max_task_bytes: usize,
    /// How long a claim holds without renewal if the task does not say. Default 30 s.
    pub claim_ttl: Duration,
    /// How often a task is tried again if it does not say. Default 4, so five attempts.
    pub max_retries: u32,
    /// Wait before the next attempt.
    pub backoff: volary_kernel::retry::Backoff,
    /// How long an ended task is kept. Default 24 h.
    pub retention: Duration,
    /// Most ended tasks of one tenant that are kept; the oldest goes first. Default 10,000.
    pub max_ended: usize,
    /// Most tenants. Default 1024.
    pub max_tenants: usize,
}

impl Default for TaskConfig {
    fn default() -> Self {
        Self {
            max_tasks: 100_000,
            max_bytes: 256 << 20,
            max_task_bytes: 1 << 20,
            claim_ttl: Duration::from_secs(30),
            max_retries: 4,
            backoff: volary_kernel::retry::Backoff::default(),
            retention: Duration::from_secs(24 * 3600),
            max_ended: 10_000,
            max_tenants: 1024,
        }
    }
}

/// Shortest time that a claim may hold: shorter ones lapse before anybody can work.
pub const CLAIM_TTL_MIN: Duration = Duration::from_millis(10);
/// Longest time that a claim may hold without renewal.
pub const CLAIM_TTL_MAX: Duration = Duration::from_secs(24 * 3600);

/// Why something about a task is refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TaskError {
    /// No such task of this tenant, or it ended too long ago.
    #[error("task {0} is not known")]
    Unknown(TaskId),
    /// Another task was submitted under this id.
    #[error("task {0} was submitted before with another content")]
    Conflict(TaskId),
    /// The task can not be as it stands.
    #[error("{0}")]
    Invalid(String),
    /// It contains a declared secret.
    #[error("task {0} contains a declared secret")]
    Secret(TaskId),
    /// Task or result is larger than allowed.
    #[error("{what} of {found} bytes is larger than {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Bytes found.
        found: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The claim is another agent's.
    #[error("`{worker}` is not authorized to settle task {id}: the claim is another's")]
    NotAuthorized {
        /// The task.
        id: TaskId,
        /// Who asked.
        worker: Name,
    },
    /// The claim does not hold any more; the task is as it was.
    #[error("the claim of task {id} has ended, the task is {state}")]
    Lapsed {
        /// The task.
        id: TaskId,
        /// Where it stands now.
        state: TaskState,
    },
    /// More tenants have tasks than may.
    #[error("{0} tenants have tasks already")]
    TooManyTenants(usize),
    /// The queue refused or failed: full, the store.
    #[error(transparent)]
    Queue(#[from] QueueError),
}

impl From<StoreError> for TaskError {
    fn from(error: StoreError) -> Self {
        Self::Queue(error.into())
    }
}

impl TaskError {
    /// Whether the same may work later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Queue(QueueError::Full { what, .. }) => *what != QueueFull::Parked,
            Self::Queue(QueueError::Store(error)) => error.is_transient(),
            _ => false,
        }
    }
}
