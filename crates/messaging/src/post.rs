//! Durable sends: hooks, routing, one delivery in every receiver's inbox, and the journal entry, in the caller's batch.
//!
//! Because everything goes into the caller's batch, "acknowledge this delivery and send these messages" is one commit:
//! an attempt that does not end sends nothing.
//!
//! ```text
//! post ─▶ hooks (pre_send, post_receive) ─▶ seen before? ─▶ routes ─▶ every inbox has room ─▶ message.accepted
//!            │ Dropped, Refused                │ first result   │ NoRoute     │ Refused{Full}: nothing was added
//!            └──────── message.refused / message.dropped, unless the refusal passes by itself ┘
//! ```

use std::sync::Arc;

use volary_kernel::{clock::SharedClock, id::Name, metric::Metrics, secret::Redactor};
use volary_store::{
    Batch, Cause, Committed, EntryRef, ItemId, QueueError, SharedStore, StoreError,
};

use crate::{
    admission::{Admission, Refusal},
    codec,
    delivery::encode_message,
    event::Event,
    hook::{
        HookChain, HookContext, MessageHook, MessageLimits, SecretGuard, Stage, ValidateHook,
        Verdict,
    },
    inbox::{InboxError, Inboxes, Mailbox},
    message::Message,
    metrics::AdmissionCounters,
    route::Targets,
    seen::{Before, Seen, SeenConfig},
};

/// Where a message's id comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It was made just now, in this process: it can not be a repeat.
    Minted,
    /// It came with the message: the same message again gets the first result.
    Foreign,
}

/// What became of a post.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Posted {
    /// The answer to the sender. [`Admission::Queued`] holds once the batch is committed.
    pub admission: Admission,
    /// The deliveries it became, by receiver: what its outcome is asked by.
    pub deliveries: Vec<(Name, ItemId)>,
    /// Its journal entry in the batch, if it has one: the cause of what follows from it.
    pub entry: Option<EntryRef>,
}

impl Posted {
    const fn not_taken(admission: Admission, entry: Option<EntryRef>) -> Self {
        Self {
            admission,
            deliveries: Vec::new(),
            entry,
        }
    }

    /// The ids of the deliveries.
    pub fn items(&self) -> Vec<ItemId> {
        self.deliveries.iter().map(|(_, id)| *id).collect()
    }
}

/// What durable sends are made of.
#[derive(Clone, Default)]
pub struct PostConfig {
    /// What a message may be.
    pub limits: MessageLimits,
    /// Hooks between validation and the secret guard, in order.
    pub hooks: Vec<Arc<dyn MessageHook>>,
    /// Declared secrets: a message that contains one is refused.
    pub secrets: Redactor,
    /// How many ids of foreign messages are remembered, and how long.
    pub seen: SeenConfig,
}

/// The durable way of messages inside one node. Clones share it.
#[derive(Clone)]
pub struct Post {
    inboxes: Inboxes,
    hooks: HookChain,
    store: SharedStore,
    seen: Arc<Seen>,
    counters: AdmissionCounters,
}

impl Post {
    /// The post over these inboxes. Reads which ids were seen lately.
    ///
    /// # Errors
    /// Errors of reading the store.
    pub async fn open(
        inboxes: Inboxes,
        store: SharedStore,
        config: PostConfig,
        clock: SharedClock,
        metrics: &Metrics,
    ) -> Result<Self, StoreError> {
        let mut hooks: Vec<Arc<dyn MessageHook>> =
            vec![Arc::new(ValidateHook::new(config.limits, clock))];
        hooks.extend(config.hooks);
        // Last, so that what other hooks add is looked at too.
        hooks.push(Arc::new(SecretGuard::new(config.secrets)));
        let seen = Arc::new(Seen::open(&store, config.seen, metrics).await?);
        let hooks = HookChain::new(hooks, metrics);
        Ok(Self {
            inboxes,
            hooks,
            store,
            seen,
            counters: AdmissionCounters::new(metrics, "durable"),
        })
    }

    /// Adds a message to `tx`: a delivery for everybody it is for, or nothing, and the journal entry that tells which.
    ///
    /// All receivers have it or none: an inbox without room refuses the message as a whole. Every other answer than a
    /// transient refusal is journaled too, so that a message an agent sent into nowhere can be found.
    ///
    /// # Errors
    /// Only when the store can not be read, or an inbox fails in another way than by refusing. Nothing was added then.
    pub async fn post(
        &self,
        tx: &mut Batch,
        message: Message,
        origin: Origin,
        cause: impl Into<Cause> + Send,
    ) -> Result<Posted, InboxError> {
        let cause = cause.into();
        let message = match self.through_hooks(message.clone()).await {
            Verdict::Pass(message) => message,
            Verdict::Stop(admission) => return Ok(self.turn_back(tx, &message, admission, cause)),
        };
        if origin == Origin::Foreign {
            match self.seen.before(&self.store, &message).await? {
                Before::Never => {}
                Before::Same(first) => return Ok(first),
                Before::Other => {
                    return Ok(self.turn_back(
                        tx,
                        &message,
                        Admission::Refused(Refusal::Replay),
                        cause,
                    ));
                }
            }
        }
        let targets = self.inboxes.targets(&message);
        if targets.is_empty() {
            return Ok(self.turn_back(tx, &message, Admission::NoRoute, cause));
        }
        let start = tx.savepoint();
        match self.take_in(tx, &message, &targets, cause) {
            Ok(posted) => {
                if origin == Origin::Foreign {
                    self.seen.remember(tx, &message, &posted);
                }
                self.count_on_commit(tx, &posted.admission);
                Ok(posted)
            }
            Err(error) => {
                tx.roll_back(start);
                let why = error.refusal().ok_or(error)?;
                Ok(self.turn_back(tx, &message, Admission::Refused(why), cause))
            }
        }
    }

    /// Posts one message in a batch of its own and commits it. A refusal by the store is an answer, too.
    ///
    /// # Errors
    /// As [`Post::post`], and errors of the commit that are no refusal.
    pub async fn send(
        &self,
        message: Message,
        origin: Origin,
    ) -> Result<(Posted, Option<Committed>), InboxError> {
        let mut raced = false;
        loop {
            let mut tx = Batch::new();
            let posted = self
                .post(&mut tx, message.clone(), origin, Cause::None)
                .await?;
            if tx.is_empty() {
                return Ok((posted, None));
            }
            match self.store.commit(tx).await {
                Ok(committed) => return Ok((posted, Some(committed))),
                // The same message was posted by somebody else at the same time: its result is there now.
                Err(StoreError::Conflict { .. }) if origin == Origin::Foreign && !raced => {
                    raced = true
                }
                Err(error) => {
                    let Some(why) = Refusal::of_store(&error) else {
                        return Err(QueueError::from(error).into());
                    };
                    let admission = Admission::Refused(why);
                    self.counters.count(&admission);
                    return Ok((Posted::not_taken(admission, None), None));
                }
            }
        }
    }

    /// Inside one node the sender's and the receiver's side are the same place: both stages run here, so that what a
    /// hook decides at either side reaches the sender.
    async fn through_hooks(&self, message: Message) -> Verdict {
        let context = |stage| HookContext {
            stage,
            receiver: None,
        };
        match self.hooks.run(message, context(Stage::PreSend)).await {
            Verdict::Pass(message) => self.hooks.run(message, context(Stage::PostReceive)).await,
            stop @ Verdict::Stop(_) => stop,
        }
    }

    fn take_in(
        &self,
        tx: &mut Batch,
        message: &Message,
        targets: &Targets<Mailbox>,
        cause: Cause,
    ) -> Result<Posted, InboxError> {
        let names: Vec<Name> = targets
            .iter()
            .map(|mailbox| mailbox.name().clone())
            .collect();
        let encoded = codec::encode(message);
        let event = Event::Accepted {
            message,
            encoded: &encoded,
            targets: &names,
        };
        let entry = tx.append(event.record().cause(cause));
        let mut deliveries = Vec::with_capacity(names.len());
        for (mailbox, name) in targets.iter().zip(names) {
            let stored = encode_message(message, &encoded, &name);
            deliveries.push((name, mailbox.enqueue(tx, message, stored, entry.into())?));
        }
        tx.intake();
        Ok(Posted {
            admission: Admission::Queued,
            deliveries,
            entry: Some(entry),
        })
    }

    fn turn_back(
        &self,
        tx: &mut Batch,
        message: &Message,
        admission: Admission,
        cause: Cause,
    ) -> Posted {
        self.counters.count(&admission);
        let passing = matches!(&admission, Admission::Refused(why) if why.is_transient());
        let entry = (!passing).then(|| {
            let event = Event::Refused {
                message,
                admission: &admission,
            };
            tx.append(event.record().cause(cause))
        });
        Posted::not_taken(admission, entry)
    }

    fn count_on_commit(&self, tx: &mut Batch, admission: &Admission) {
        let (counters, admission) = (self.counters.clone(), admission.clone());
        tx.on_commit(move |_| counters.count(&admission));
    }
}
