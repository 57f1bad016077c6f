//! How an attempt ends: the acknowledgement and everything the agent asks for, in one commit.
//!
//! ```text
//! ack ──▶ batch { item done, delivery.acked, each send's deliveries and message.accepted, agent.report } ──▶ commit
//!           │ a receiver has no room      nothing is committed; the attempt is handed back and comes again
//!           │ a sender is over a limit    the same, after the time that the limit asks for
//!           │ the claim has lapsed        nothing is committed; somebody else has the item
//!           └ a send that no one may have (no route, secret, hook): journaled, and the rest goes through
//! ```
//! So an attempt that does not get this far has no effects, and one that does has them once.

use std::time::Duration;

use super::dispatch;
use bytes::Bytes;
use serde_json::json;
use volary_kernel::{SharedClock, TraceId, Uid, secret::Redactor};
use volary_messaging::{
    Admission, Refusal, Sender,
    action::{Action, ActionError, SendAction},
    inbox::{Claimed, InboxError, Mailbox},
    post::{Origin, Post},
    task::TaskError,
};
use volary_store::{
    Batch, Entry, EntryRef, SharedStore, StoreError,
    queue::{Nacked, QueueError},
};

/// Kind of the journal entry that holds an agent's report.
const REPORT: &str = "agent.report";

/// Settles attempts. Clones share what they work on.
#[derive(Clone)]
pub(crate) struct Settler {
    pub post: Post,
    pub store: SharedStore,
    pub clock: SharedClock,
    pub redactor: Redactor,
}

/// What became of one `send` of an acknowledgement.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub id: Uid,
    pub trace: TraceId,
    pub admission: Admission,
}

/// Why an attempt was not settled. Nothing was committed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettleError {
    /// An action cannot be carried out as it stands.
    #[error(transparent)]
    Action(#[from] ActionError),
    /// A receiver has no room; the same may work later.
    #[error("an action was turned back for now: {0}")]
    Later(String),
    /// A limit was reached.
    #[error("an action was turned back for now: {words}")]
    Limited {
        /// The refusal, in words.
        words: String,
        /// When there is room for one more.
        retry_after: Duration,
    },
    /// The store has no room for what the actions would add.
    #[error("an action was turned back for now: {0}")]
    StoreFull(String),
    /// The actions together are more than the store takes at once: trying again is no use.
    #[error("the actions are too large: {0}")]
    TooLarge(String),
    /// The task cannot end like this.
    #[error(transparent)]
    Task(TaskError),
    /// The claim no longer holds.
    #[error("the claim has lapsed")]
    Lapsed,
    /// The store or an inbox failed.
    #[error(transparent)]
    Inbox(InboxError),
}

impl From<InboxError> for SettleError {
    fn from(error: InboxError) -> Self {
        match error {
            InboxError::Queue(QueueError::Lapsed(_)) => Self::Lapsed,
            InboxError::Queue(QueueError::Store(full @ StoreError::Full { .. })) => {
                Self::StoreFull(full.to_string())
            }
            other => match other.refusal() {
                Some(why @ Refusal::TooLarge { .. }) => Self::TooLarge(why.to_string()),
                Some(why) => Self::Later(why.to_string()),
                None => Self::Inbox(other),
            },
        }
    }
}

impl From<StoreError> for SettleError {
    fn from(error: StoreError) -> Self {
        match error {
            // The only versions that a settling batch expects are those of its claims.
            StoreError::Conflict { .. } => Self::Lapsed,
            other => InboxError::from(other).into(),
        }
    }
}

impl Settler {
    /// A claimed delivery as it is now: `None`, and settled, if after all nothing changed for the agent.
    pub(crate) async fn open(
        &self,
        mailbox: &Mailbox,
        sender: &Sender,
        claimed: Claimed,
    ) -> Result<Option<Claimed>, SettleError> {
        match dispatch::open(claimed) {
            Ok(claimed) => Ok(Some(claimed)),
            Err(nothing_new) => self
                .ack(mailbox, sender, &[*nothing_new], Vec::new())
                .await
                .map(|_| None),
        }
    }

    /// Acknowledges `claimed` (one or more, of one mailbox) and carries out `actions`, all in one commit. Actions belong
    /// to the trace of the first claim.
    pub(crate) async fn ack(
        &self,
        mailbox: &Mailbox,
        sender: &Sender,
        claimed: &[Claimed],
        actions: Vec<Action>,
    ) -> Result<Vec<Sent>, SettleError> {
        let Some(first) = claimed.first() else {
            return Ok(Vec::new());
        };
        let mut tx = Batch::new();
        let cause = mailbox.ack(&mut tx, first, actions.len())?;
        for other in &claimed[1..] {
            mailbox.ack(&mut tx, other, 0)?;
        }
        let mut sent = Vec::new();
        for action in actions {
            match action {
                Action::Send(send) => {
                    let from = (sender, first.delivery.trace);
                    sent.push(self.send(&mut tx, from, send, cause).await?);
                }
                Action::Report(report) => {
                    let report = self.redactor.redact(report.get()).into_owned();
                    tx.append(report_entry(first, mailbox, &report, cause));
                }
            }
        }
        self.store.commit(tx).await?;
        Ok(sent)
    }

    /// Adds a message of an attempt to `tx`.
    pub(super) async fn send(
        &self,
        tx: &mut Batch,
        (sender, trace): (&Sender, TraceId),
        send: SendAction,
        cause: EntryRef,
    ) -> Result<Sent, SettleError> {
        let message = send.into_message(sender, trace, self.clock.wall())?;
        let (id, trace) = (message.id(), message.trace());
        let posted = self.post.post(tx, message, Origin::Minted, cause).await?;
        match posted.admission {
            Admission::Refused(why) if why.is_transient() => Err(later(&why)),
            admission => Ok(Sent {
                id,
                trace,
                admission,
            }),
        }
    }

    /// Says that an attempt failed.
    pub(crate) async fn nack(
        &self,
        mailbox: &Mailbox,
        claimed: &Claimed,
        delay: Option<Duration>,
        reason: &str,
    ) -> Result<Nacked, SettleError> {
        let mut tx = Batch::new();
        let nacked = mailbox.nack(&mut tx, claimed, delay, reason)?;
        self.store.commit(tx).await?;
        Ok(nacked)
    }

    /// Says that no further attempt would do better: a person decides.
    pub(crate) async fn park(
        &self,
        mailbox: &Mailbox,
        claimed: &Claimed,
        reason: &str,
    ) -> Result<Nacked, SettleError> {
        let mut tx = Batch::new();
        mailbox.park(&mut tx, claimed, reason)?;
        self.store.commit(tx).await?;
        Ok(Nacked::Parked)
    }
}

/// What a refusal that passes means for an attempt.
fn later(why: &Refusal) -> SettleError {
    match why {
        Refusal::RateLimited { retry_after } => SettleError::Limited {
            words: why.to_string(),
            retry_after: *retry_after,
        },
        other => SettleError::Later(other.to_string()),
    }
}

fn report_entry(claimed: &Claimed, mailbox: &Mailbox, report: &str, cause: EntryRef) -> Entry {
    // A redacted report need not be JSON any more (a secret may have been a number): then it is kept as text.
    let report =
        serde_json::from_str::<serde_json::Value>(report).unwrap_or_else(|_| json!(report));
    let body = json!({"v": 1, "delivery": claimed.delivery.id, "report": report}).to_string();
    Entry::new(REPORT, mailbox.tenant().clone(), Bytes::from(body))
        .agent(mailbox.name().clone())
        .trace(claimed.delivery.trace)
        .cause(cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_large_for_the_store_is_not_turned_back_for_now() {
        let error = StoreError::TooLarge {
            what: "batch",
            size: 70_000_000,
            limit: 60_000_000,
        };
        let settled = SettleError::from(error);
        assert!(matches!(settled, SettleError::TooLarge(_)), "{settled:?}");
        let words = settled.to_string();
        assert!(words.contains("70000000 bytes"), "{words}");
        assert!(!words.contains("for now"), "{words}");
    }
}
