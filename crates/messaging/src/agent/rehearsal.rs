//! An agent fed with what was recorded: it decides, and nothing is carried out.

use super::{
    Agent, AgentError, Cx, DEFAULT_DECIDE, Decision, Done, Observation, decision::about_message,
    executor::contained,
};
use crate::{
    admission::Admission,
    message::Sender,
    replay::{
        PlannedMessage, Recording, ReplayError,
        verify::{Act, Added, ReplayContext, VerifyReport, verify_messages},
    },
};

/// Verifies an agent against a record of what it received and sent, see [`verify_messages`].
///
/// The agent gets one recorded message at a time, at the time at which it was received ([`Cx::now`]) and with the same
/// random numbers ([`Cx::random`]). Of what it decides, messages are compared; anything else was not recorded. It is told
/// that what it sent was taken, for only that is in a record. It sees no tasks, and no results of tools: an agent whose
/// messages follow from those diverges there.
#[derive(Debug)]
pub struct Rehearsal<'a, A> {
    agent: &'a mut A,
    sender: Sender,
    observations: Vec<Observation>,
}

impl<'a, A: Agent> Rehearsal<'a, A> {
    /// Of `agent` as `sender`: its recorded name and tenant.
    pub const fn new(agent: &'a mut A, sender: Sender) -> Self {
        Self {
            agent,
            sender,
            observations: Vec::new(),
        }
    }

    /// Feeds it everything recorded, from [`Agent::on_start`] on, until the first difference.
    ///
    /// # Errors
    /// Errors of reading the record. An agent that fails, in `on_start` too, is a divergence.
    pub async fn verify(
        self,
        recording: &Recording,
        added: Added,
    ) -> Result<VerifyReport, ReplayError> {
        let name = self.sender.name().clone();
        // One call at a time, as the runtime does; the lock is never waited for.
        let this = tokio::sync::Mutex::new((self, false));
        verify_messages(recording, &name, added, |planned, context| {
            let this = &this;
            async move {
                let (rehearsal, started) = &mut *this.lock().await;
                if !std::mem::replace(started, true) {
                    rehearsal.start(&context).await?;
                }
                rehearsal.decide(planned, &context).await
            }
        })
        .await
    }

    async fn start(&mut self, context: &ReplayContext) -> Result<(), String> {
        let cx = Cx::new(context.now(), &self.sender, &[]);
        call("on_start", self.agent.on_start(&cx)).await
    }

    async fn decide(
        &mut self,
        planned: PlannedMessage,
        context: &ReplayContext,
    ) -> Result<Vec<Act>, String> {
        let observations = std::mem::take(&mut self.observations);
        let cx = Cx::new(context.now(), &self.sender, &observations);
        let messages = [planned.message];
        call("on_tick", self.agent.on_tick(&messages, &[], &cx)).await?;
        let decided = call("decide", self.agent.decide(&messages, &[], &cx)).await?;
        let mut acts = Vec::new();
        for decision in decided {
            let kind = decision.kind();
            if let Decision::SendMessage(message) = decision {
                acts.push(Act::of_message(&message));
                self.observations.push(Observation {
                    kind,
                    about: about_message(message.id()),
                    result: Ok(Done::Sent(Admission::Delivered)),
                });
            }
        }
        Ok(acts)
    }
}

/// A panic of the agent, or a call without end, is a failure with its words.
async fn call<T>(
    stage: &str,
    call: impl Future<Output = Result<T, AgentError>>,
) -> Result<T, String> {
    match contained(DEFAULT_DECIDE, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(format!("{stage} failed: {error}")),
        Err(cut) => Err(format!("{stage} {}", cut.words(DEFAULT_DECIDE))),
    }
}
