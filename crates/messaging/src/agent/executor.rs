//! The executor: the one place where a decision becomes something done. Everything passes [`Executor::execute`], tools of
//! the tool loop included, and nothing there happens before the policy was asked.

use std::{collections::BTreeMap, panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt;
use serde_json::Value;
use volary_kernel::{clock, secret::Secret, task::panic_text};

use super::{
    counts::Counts,
    decision::{Custom, Decision, Done, Failure, Observation, about_message},
    event::{Listener, RuntimeEvent},
    policy::{ActionPolicy, ResourceLimits},
    tool::{ToolError, ToolSet},
    work::Work,
};
use crate::{
    message::{Message, Sender},
    transport::Transport,
};

/// Carries out what the policy allows.
pub(super) struct Executor<T> {
    pub(super) me: Sender,
    pub(super) transport: T,
    pub(super) policy: ActionPolicy,
    pub(super) resources: ResourceLimits,
    pub(super) tools: ToolSet,
    pub(super) custom: BTreeMap<String, Custom>,
    pub(super) work: Work,
    pub(super) tool_time: Duration,
    pub(super) tool_output: usize,
    pub(super) counts: Counts,
    pub(super) listener: Listener,
}

impl<T: Transport> Executor<T> {
    /// Carries out one decision and tells what came of it.
    pub(super) async fn execute(&self, decision: Decision) -> Observation {
        let (kind, about) = (decision.kind(), self.about(&decision));
        let result = match self.policy.denial(&decision) {
            Some(reason) => Err(Failure::Denied(reason)),
            None => Box::pin(self.carry_out(decision)).await,
        };
        match &result {
            Ok(_) => {
                self.counts.decisions.inc();
            }
            Err(Failure::Denied(reason)) => {
                self.counts.denied.inc();
                let reason = reason.clone();
                self.listener.tell(&RuntimeEvent::Denied { reason });
            }
            Err(problem) => {
                self.counts.failed_decisions.inc();
                tracing::debug!(%kind, about, %problem, "a decision was not carried out");
            }
        }
        Observation {
            kind,
            about,
            result,
        }
    }

    async fn carry_out(&self, decision: Decision) -> Result<Done, Failure> {
        match decision {
            Decision::SendMessage(message) => self.send(message).await,
            Decision::SubmitTask(task) => {
                self.resources.check(&task.constraints)?;
                self.bounded(self.work.submit(*task)).await
            }
            Decision::ClaimTask { task } => {
                let wanted = self.bounded(self.work.claimable(task)).await?;
                self.resources.check(&wanted.constraints)?;
                self.bounded(self.work.claim(task)).await
            }
            Decision::ReportTask { task, result } => {
                self.bounded(self.work.report(task, result)).await
            }
            Decision::FailTask { task, reason, then } => {
                self.bounded(self.work.fail(task, &reason, then)).await
            }
            Decision::JoinPool { pool, token } => {
                let token = token.as_ref().map(Secret::expose);
                self.bounded(self.work.join(&pool, token)).await
            }
            Decision::LeavePool { pool } => self.bounded(self.work.leave(&pool)).await,
            Decision::CreatePool { pool, admit } => {
                self.bounded(self.work.create(&pool, admit)).await
            }
            Decision::InvokeTool { tool, params, .. } => self.run_tool(&tool, params).await,
            Decision::Custom { kind, body } => self.run_custom(&kind, body).await,
        }
    }

    /// Nothing that is carried out may take longer than a tool may.
    async fn bounded<R>(
        &self,
        work: impl Future<Output = Result<R, Failure>>,
    ) -> Result<R, Failure> {
        match contained(self.tool_time, work).await {
            Ok(result) => result,
            Err(cut) => Err(Failure::Failed(cut.words(self.tool_time))),
        }
    }

    async fn send(&self, message: Message) -> Result<Done, Failure> {
        let (sender, me) = (message.sender(), &self.me);
        if sender != me {
            let words = |sender: &Sender| {
                format!(
                    "`{}` of tenant `{}`, {}",
                    sender.name(),
                    sender.tenant(),
                    sender.id()
                )
            };
            return Err(Failure::Invalid(format!(
                "the message is from {}, not from this agent ({}); begin it with `cx.message()`",
                words(sender),
                words(me)
            )));
        }
        let sending = self.transport.send(message.clone());
        let admission = match contained(self.tool_time, sending).await {
            Ok(admission) => admission,
            Err(cut) => return Err(Failure::Failed(cut.words(self.tool_time))),
        };
        if admission.is_taken() {
            self.counts.sent.inc();
            self.work.record_sent(&message, &self.listener).await;
        } else {
            self.counts.not_sent.inc();
        }
        Ok(Done::Sent(admission))
    }

    async fn run_tool(&self, name: &str, params: Value) -> Result<Done, Failure> {
        let Some(tool) = self.tools.get(name) else {
            let known: Vec<&str> = self.tools.names().collect();
            return Err(Failure::Invalid(format!(
                "there is no tool `{name}`; there are: {}",
                known.join(", ")
            )));
        };
        self.counts.tools.inc();
        let limit = tool.time(self.tool_time);
        // The tool's function itself may panic before it gives its future.
        let run = async { tool.start(params).await };
        let result = match contained(limit, run).await {
            Ok(result) => result,
            Err(Contained::Panicked(words)) => Err(ToolError::Panicked(words)),
            Err(Contained::TimedOut) => {
                self.counts.tool_timeouts.inc();
                self.listener.tell(&RuntimeEvent::ToolTimedOut {
                    tool: name.to_owned(),
                    limit,
                });
                Err(ToolError::TimedOut(limit))
            }
        };
        let value = result?;
        let (found, limit) = (size_of(&value), self.tool_output);
        if found > limit {
            return Err(ToolError::TooLarge { found, limit }.into());
        }
        Ok(Done::Tool(value))
    }

    async fn run_custom(&self, kind: &str, body: Value) -> Result<Done, Failure> {
        let Some(custom) = self.custom.get(kind) else {
            return Err(Failure::Invalid(format!(
                "no handler is registered for own decisions of kind `{kind}`"
            )));
        };
        let run = async { (custom.run)(body).await.map_err(|error| error.to_string()) };
        match contained(self.tool_time, run).await {
            Ok(Ok(value)) => Ok(Done::Custom(value)),
            Ok(Err(problem)) => Err(Failure::Failed(problem)),
            Err(Contained::Panicked(words)) => Err(Failure::Failed(format!("panicked: {words}"))),
            Err(Contained::TimedOut) => Err(ToolError::TimedOut(self.tool_time).into()),
        }
    }

    fn about(&self, decision: &Decision) -> String {
        match decision {
            Decision::SendMessage(message) => about_message(message.id()),
            Decision::SubmitTask(task) => task.id.map(|id| id.to_string()).unwrap_or_default(),
            Decision::ClaimTask { task }
            | Decision::ReportTask { task, .. }
            | Decision::FailTask { task, .. } => task.to_string(),
            Decision::JoinPool { pool, .. }
            | Decision::LeavePool { pool }
            | Decision::CreatePool { pool, .. } => pool.to_string(),
            Decision::InvokeTool { call, .. } => call.clone(),
            Decision::Custom { kind, .. } => kind.clone(),
        }
    }
}

/// Bytes of a value as JSON.
fn size_of(value: &Value) -> usize {
    serde_json::to_vec(value).map_or(usize::MAX, |bytes| bytes.len())
}

/// How a contained future ended without a value.
pub(super) enum Contained {
    Panicked(String),
    TimedOut,
}

/// Runs `future` for at most `limit`; its panic goes no further, not that of what it drops when it is cut either.
pub(super) async fn contained<F: Future>(
    limit: Duration,
    future: F,
) -> Result<F::Output, Contained> {
    let mut running = Box::pin(AssertUnwindSafe(future).catch_unwind());
    let ended = clock::timeout(limit, &mut running).await;
    let dropped = drop_contained(running);
    match ended {
        Ok(Ok(output)) => Ok(output),
        Ok(Err(panic)) => Err(Contained::Panicked(panic_text(&*panic).to_owned())),
        Err(_) => match dropped {
            Ok(()) => Err(Contained::TimedOut),
            Err(words) => Err(Contained::Panicked(format!("{words} (when it was cut)"))),
        },
    }
}

/// Drops `value`; if that panics, the panic's words.
pub(super) fn drop_contained<T>(value: T) -> Result<(), String> {
    let dropped = std::panic::catch_unwind(AssertUnwindSafe(|| drop(value)));
    dropped.map_err(|panic| panic_text(&*panic).to_owned())
}
