//! What an agent can want, and what it is told of it.

use std::{fmt, pin::Pin, sync::Arc};

use serde_json::Value;
use volary_kernel::{
    id::{Name, Uid},
    secret::Secret,
};

use super::{AgentError, tool::ToolError};
use crate::{
    admission::Admission,
    message::Message,
    pool::{Admit, PoolError},
    task::{Failing, NewTask, Task, TaskError, TaskId, TaskState},
};

/// Something that an agent wants done. The runtime's policy decides whether it is.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Send a message of its own: see [`super::Cx::message`].
    SendMessage(Message),
    /// Submit a task.
    SubmitTask(Box<NewTask>),
    /// Claim a task that it was shown. The runtime renews the claim until it is settled, and gives it back at the stop.
    ClaimTask {
        /// The task.
        task: TaskId,
    },
    /// Say that a task it claimed is done.
    ReportTask {
        /// The task.
        task: TaskId,
        /// What it came to.
        result: Value,
    },
    /// Say that an attempt at a task it claimed failed.
    FailTask {
        /// The task.
        task: TaskId,
        /// Why.
        reason: String,
        /// Whether it is tried again.
        then: Failing,
    },
    /// Join a pool.
    JoinPool {
        /// The pool.
        pool: Name,
        /// What it asks for, if it asks for a token.
        token: Option<Secret>,
    },
    /// Leave a pool.
    LeavePool {
        /// The pool.
        pool: Name,
    },
    /// Create a pool. Its creator is no member until it joins.
    CreatePool {
        /// The pool.
        pool: Name,
        /// Whom it lets in.
        admit: Admit,
    },
    /// Run a tool. The result is an observation under the same `call`.
    InvokeTool {
        /// The agent's own mark for this run.
        call: String,
        /// The tool's name.
        tool: String,
        /// Its parameters.
        params: Value,
    },
    /// Something of the user's own, for the handler registered under `kind`.
    Custom {
        /// Which handler.
        kind: String,
        /// What it is given.
        body: Value,
    },
}

/// The kinds of [`Decision`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DecisionKind {
    /// [`Decision::SendMessage`].
    SendMessage,
    /// [`Decision::SubmitTask`].
    SubmitTask,
    /// [`Decision::ClaimTask`].
    ClaimTask,
    /// [`Decision::ReportTask`].
    ReportTask,
    /// [`Decision::FailTask`].
    FailTask,
    /// [`Decision::JoinPool`].
    JoinPool,
    /// [`Decision::LeavePool`].
    LeavePool,
    /// [`Decision::CreatePool`].
    CreatePool,
    /// [`Decision::InvokeTool`].
    InvokeTool,
    /// [`Decision::Custom`].
    Custom,
}

impl DecisionKind {
    /// All kinds.
    pub const ALL: [Self; 10] = [
        Self::SendMessage,
        Self::SubmitTask,
        Self::ClaimTask,
        Self::ReportTask,
        Self::FailTask,
        Self::JoinPool,
        Self::LeavePool,
        Self::CreatePool,
        Self::InvokeTool,
        Self::Custom,
    ];

    /// The word for texts and lists.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SendMessage => "SendMessage",
            Self::SubmitTask => "SubmitTask",
            Self::ClaimTask => "ClaimTask",
            Self::ReportTask => "ReportTask",
            Self::FailTask => "FailTask",
            Self::JoinPool => "JoinPool",
            Self::LeavePool => "LeavePool",
            Self::CreatePool => "CreatePool",
            Self::InvokeTool => "InvokeTool",
            Self::Custom => "Custom",
        }
    }
}

impl fmt::Display for DecisionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Decision {
    /// Its kind.
    pub const fn kind(&self) -> DecisionKind {
        match self {
            Self::SendMessage(_) => DecisionKind::SendMessage,
            Self::SubmitTask(_) => DecisionKind::SubmitTask,
            Self::ClaimTask { .. } => DecisionKind::ClaimTask,
            Self::ReportTask { .. } => DecisionKind::ReportTask,
            Self::FailTask { .. } => DecisionKind::FailTask,
            Self::JoinPool { .. } => DecisionKind::JoinPool,
            Self::LeavePool { .. } => DecisionKind::LeavePool,
            Self::CreatePool { .. } => DecisionKind::CreatePool,
            Self::InvokeTool { .. } => DecisionKind::InvokeTool,
            Self::Custom { .. } => DecisionKind::Custom,
        }
    }
}

/// What became of one decision.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    /// The decision's kind.
    pub kind: DecisionKind,
    /// What it was about: the message's id, the task, the pool, the tool call, the own kind.
    pub about: String,
    /// What came of it, or why nothing did.
    pub result: Result<Done, Failure>,
}

/// What came of a decision that was carried out.
#[derive(Debug, Clone, PartialEq)]
pub enum Done {
    /// The message was answered so; a refusal is an answer, too.
    Sent(Admission),
    /// The task is there, now or already.
    Submitted(TaskId),
    /// The task is the agent's, until it settles it.
    Claimed(Box<Task>),
    /// The task is completed.
    Reported,
    /// The attempt has failed; this is how the task stands.
    TaskFailed(TaskState),
    /// It is as it was wanted: joined, left or created. `false` if it was so before.
    Pool(bool),
    /// The tool gave this.
    Tool(Value),
    /// The handler gave this.
    Custom(Value),
}

/// Why a decision was not carried out.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Failure {
    /// The policy does not allow it.
    #[error("denied: {0}")]
    Denied(String),
    /// It makes no sense here: an unknown tool, somebody else's message, more decisions than the limit.
    #[error("{0}")]
    Invalid(String),
    /// The tool gave no result.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// It was tried and failed.
    #[error("{0}")]
    Failed(String),
}

impl From<PoolError> for Failure {
    fn from(error: PoolError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<TaskError> for Failure {
    fn from(error: TaskError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl Observation {
    /// Whether the agent should be asked at once, even if nothing else is new: it waits for this, or it went wrong.
    pub(super) fn wants_answer(&self) -> bool {
        match &self.result {
            Ok(Done::Sent(_) | Done::Reported | Done::Submitted(_) | Done::Pool(_)) => false,
            Ok(_) | Err(_) => true,
        }
    }
}

type Handling = Pin<Box<dyn Future<Output = Result<Value, AgentError>> + Send>>;

/// A handler of [`Decision::Custom`]. It passes the same policy and has the same time as a tool.
#[derive(Clone)]
pub struct Custom {
    pub(super) kind: String,
    pub(super) run: Arc<dyn Fn(Value) -> Handling + Send + Sync>,
}

impl Custom {
    /// A handler for decisions of this kind.
    pub fn new<F>(kind: impl Into<String>, run: impl Fn(Value) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Value, AgentError>> + Send + 'static,
    {
        Self {
            kind: kind.into(),
            run: Arc::new(move |body| Box::pin(run(body))),
        }
    }
}

impl fmt::Debug for Custom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Custom({})", self.kind)
    }
}

pub(super) fn about_message(id: Uid) -> String {
    id.to_string()
}
