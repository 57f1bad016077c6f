//! The recorder: makes every send and receive it sees a journal entry, committed before the message goes on.

use volary_kernel::secret::Redactor;
use volary_store::{Batch, SharedStore, StoreError};

use super::{HookContext, HookError, MessageHook, Outcome, Stage, Step, secret::contains_secret};
use crate::{admission::Refusal, event::Event, message::Message};

/// Records `message.sent` and `message.received`. Put it last, so that it sees what really goes on.
///
/// A message that can not be recorded does not go on: with a recorder set, a send is a record.
#[derive(Clone)]
pub struct RecorderHook {
    store: SharedStore,
    secrets: Redactor,
}

impl RecorderHook {
    /// A recorder into the journal of `store`. What contains one of `secrets` is refused, never recorded.
    pub const fn new(store: SharedStore, secrets: Redactor) -> Self {
        Self { store, secrets }
    }

    async fn record(
        &self,
        message: Message,
        context: HookContext<'_>,
    ) -> Result<Outcome, HookError> {
        if contains_secret(&self.secrets, &message) {
            return Ok(Outcome::Refuse(Refusal::Secret));
        }
        let event = match context.stage {
            Stage::PreSend => Event::Sent { message: &message },
            Stage::PostReceive => Event::Received {
                message: &message,
                receiver: context.receiver,
            },
        };
        let mut batch = Batch::new();
        batch.intake();
        batch.append(event.record());
        match self.store.commit(batch).await {
            Ok(_) => Ok(Outcome::Continue(message)),
            Err(error) => refusal(&error),
        }
    }
}

fn refusal(error: &StoreError) -> Result<Outcome, HookError> {
    Refusal::of_store(error)
        .map(Outcome::Refuse)
        .ok_or_else(|| HookError::failed(error))
}

impl MessageHook for RecorderHook {
    fn name(&self) -> &'static str {
        "record"
    }

    fn pre_send<'a>(&'a self, message: Message, context: HookContext<'a>) -> Step<'a> {
        Step::wait(self.record(message, context))
    }

    fn post_receive<'a>(&'a self, message: Message, context: HookContext<'a>) -> Step<'a> {
        Step::wait(self.record(message, context))
    }
}
