//! The agent as code: a trait, what it decides, and the runtime that keeps it going.
//!
//! ```text
//!              verified? ─▶ hooks ─▶ inbox ─▶ batch ─┐            ┌─▶ policy ─▶ send, claim, report, run a tool, …
//!  transport ───┘                                    ├─▶ decide ──┤      (the one place that carries anything out)
//!              tasks that changed, observations ─────┘      ▲     └─────────────────┐
//!                                                           └────── observations ◀──┘
//! ```
//!
//! [`Agent::decide`] only says what it wants done; the [`AgentRuntime`] does it, once, and tells the result as an
//! [`Observation`] in the next call. Messages are given to the agent once: a pass that only brings observations has none.

mod builder;
mod check;
mod companion;
mod counts;
mod decision;
mod event;
mod executor;
mod policy;
mod rehearsal;
mod runtime;
mod tool;
mod turn;
mod verify;
mod work;

use volary_kernel::{
    clock::Timestamp,
    id::{Name, Tenant},
};

pub use self::{
    builder::{
        AgentRuntimeBuilder, DEFAULT_BATCH, DEFAULT_DECIDE, DEFAULT_DRAIN, DEFAULT_TOOL,
        RestartPolicy, RuntimeLimits,
    },
    check::CheckResult,
    companion::Companion,
    decision::{Custom, Decision, DecisionKind, Done, Failure, Observation},
    event::{RuntimeEvent, Unverified},
    policy::{ActionPolicy, ResourceLimits},
    rehearsal::Rehearsal,
    runtime::{AgentRuntime, RuntimeError, RuntimeProbe, StopReport},
    tool::{TOOL_NAME_MAX, Tool, ToolError, ToolSetError},
    verify::REMEMBERED_MAX,
};
use crate::{
    delivery::message_key,
    identity::{AgentId, Identity},
    message::{Message, MessageBuilder, Sender},
    replay::verify::{ReplayRandom, seed},
    task::Task,
};

/// An error of an agent: whatever it is, it is told and the agent is tried again by policy.
pub type AgentError = Box<dyn std::error::Error + Send + Sync>;

/// Something with an identity that decides.
///
/// Contract:
/// - The runtime calls one method at a time, on one value, from `on_start` to `on_stop`.
/// - [`Agent::decide`] gets every message once. If it fails, panics or takes longer than its time, none of its decisions
///   is carried out; its messages are tried again one by one, a bounded number of times, after a back-off and another
///   [`Agent::on_start`].
/// - Decisions are carried out in the order given, each once; what became of them is in [`Cx::observations`] of the next
///   call, which comes at once if an observation may need an answer.
/// - No method may block its thread: the runtime's health turns bad within 5 s. Waiting (`await`) is fine within the
///   time the limits give.
pub trait Agent: Send + 'static {
    /// Who it is.
    fn identity(&self) -> &Identity;

    /// Its fingerprint.
    fn id(&self) -> AgentId {
        self.identity().id()
    }

    /// What it wants done about `messages` (new since the last call) and `tasks` (that it may claim or holds).
    ///
    /// # Errors
    /// Whatever it likes: see the contract.
    fn decide(
        &mut self,
        messages: &[Message],
        tasks: &[Task],
        cx: &Cx<'_>,
    ) -> impl Future<Output = Result<Vec<Decision>, AgentError>> + Send;

    /// Called before the first message, and again after a failure.
    ///
    /// # Errors
    /// Fails the start of the runtime, or counts as another failure.
    fn on_start(&mut self, cx: &Cx<'_>) -> impl Future<Output = Result<(), AgentError>> + Send {
        let _unused = cx;
        std::future::ready(Ok(()))
    }

    /// Called before every [`Agent::decide`] and, when there is nothing to decide about, every tick.
    ///
    /// # Errors
    /// As [`Agent::decide`].
    fn on_tick(
        &mut self,
        messages: &[Message],
        tasks: &[Task],
        cx: &Cx<'_>,
    ) -> impl Future<Output = Result<(), AgentError>> + Send {
        let _unused = (messages, tasks, cx);
        std::future::ready(Ok(()))
    }

    /// Called last, when everything received was handled or given up.
    ///
    /// # Errors
    /// Told in the [`StopReport`].
    fn on_stop(&mut self, cx: &Cx<'_>) -> impl Future<Output = Result<(), AgentError>> + Send {
        let _unused = cx;
        std::future::ready(Ok(()))
    }
}

/// What an agent knows in a call, beside messages and tasks.
#[derive(Debug, Clone, Copy)]
pub struct Cx<'a> {
    pub(super) now: Timestamp,
    pub(super) sender: &'a Sender,
    pub(super) observations: &'a [Observation],
    pub(super) stopping: bool,
}

impl<'a> Cx<'a> {
    /// A context for a test of an agent that needs no runtime.
    pub const fn new(now: Timestamp, sender: &'a Sender, observations: &'a [Observation]) -> Self {
        Self {
            now,
            sender,
            observations,
            stopping: false,
        }
    }

    /// The time of this call.
    pub const fn now(&self) -> Timestamp {
        self.now
    }

    /// The agent as the sender of its messages.
    pub const fn sender(&self) -> &'a Sender {
        self.sender
    }

    /// Its name.
    pub fn name(&self) -> &'a Name {
        self.sender.name()
    }

    /// Its tenant.
    pub fn tenant(&self) -> &'a Tenant {
        self.sender.tenant()
    }

    /// What became of the decisions before, in their order.
    pub const fn observations(&self) -> &'a [Observation] {
        self.observations
    }

    /// Whether the runtime is stopping: what is decided now is carried out, but no answer will be waited for.
    pub const fn stopping(&self) -> bool {
        self.stopping
    }

    /// Random numbers for what is decided about `message`: the same whenever this agent decides about it, so that a
    /// verification ([`Rehearsal`]) meets the same choices. Good for choices and jitter; never for keys.
    pub fn random(&self, message: &Message) -> ReplayRandom {
        ReplayRandom::new(seed(&message_key(message, self.name()), 1))
    }

    /// A new message from this agent.
    pub fn message(&self) -> MessageBuilder {
        Message::builder(self.sender.clone())
    }

    /// A message from this agent to the sender of `to`, in the same trace and task.
    pub fn reply(&self, to: &Message) -> MessageBuilder {
        let reply = self
            .message()
            .to(to.sender().name().clone())
            .trace(to.trace());
        match to.task_id() {
            Some(task) => reply.task(task),
            None => reply,
        }
    }
}
