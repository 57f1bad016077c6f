//! Durable sends: hooks, routing, one delivery in every receiver's inbox, and the journal entry, in the caller's batch.
//!
//! Because everything goes into the caller's batch, "acknowledge this delivery and send these messages" is one commit:
//! an attempt that does not end sends nothing.
//!
//! ```text
//! post ─▶ hooks (pre_send, post_receive) ─▶ seen before? ─▶ routes ─▶ every inbox and outbox has room ─▶ message.accepted
//!            │ Dropped, Refused                │ first result   │ NoRoute     │ Refused{Full}: nothing was added
//!            └──────── message.refused / message.dropped, unless the refusal passes by itself ┘
//! ```
//! What is for agents of a peer goes into the outbox to that peer, in the same batch, or (topics that are at most once)
//! to the link once the batch is committed. What a peer sends comes in by `Post::receive`, in `receive`, and is for
//! agents here only: nothing is passed on from peer to peer.

mod receive;

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
    frame::SealedMessage,
    hook::{
        HookChain, HookContext, MessageHook, MessageLimits, SecretGuard, Stage, ValidateHook,
        Verdict,
    },
    inbox::{InboxError, Inboxes, Mailbox},
    message::{Audience, Message},
    metrics::AdmissionCounters,
    peer::{RemoteRoutes, RemoteTarget, RemoteTargets},
    route::Targets,
    seen::{Before, Kept, Seen, SeenConfig, SeenId, content_hash},
};

pub(crate) use self::receive::{FromPeer, Received};

/// At the sender's side.
const BEFORE: HookContext<'static> = HookContext {
    stage: Stage::PreSend,
    receiver: None,
};
/// At the receiver's side. Inside one node both are the same place: both stages run in the send, so that what a hook
/// decides at either side reaches the sender.
const AFTER: HookContext<'static> = HookContext {
    stage: Stage::PostReceive,
    receiver: None,
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
    /// Hooks before the secret guard, in order. Unless one of them is called `validate`, validation comes first.
    pub hooks: Vec<Arc<dyn MessageHook>>,
    /// Declared secrets: a message that contains one is refused.
    pub secrets: Redactor,
    /// How many ids of foreign messages are remembered, and how long.
    pub seen: SeenConfig,
    /// Who is reachable at peers: [`crate::Peers::routes`].
    pub remote: Option<RemoteRoutes>,
}

/// The durable way of messages, inside one node and out of it. Clones share it.
#[derive(Clone)]
pub struct Post {
    inboxes: Inboxes,
    hooks: HookChain,
    store: SharedStore,
    seen: Arc<Seen>,
    remote: Option<RemoteRoutes>,
    counters: AdmissionCounters,
}

/// How a message of a peer came.
struct Came<'a> {
    peer: &'a Name,
    sealed: &'a SealedMessage,
    /// Whether no hook has changed it.
    unchanged: bool,
}

/// Everybody a message is for.
struct Receivers {
    here: Targets<Mailbox>,
    peers: RemoteTargets,
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
        let mut hooks = config.hooks;
        if !hooks.iter().any(|hook| hook.name() == "validate") {
            hooks.insert(0, Arc::new(ValidateHook::new(config.limits, clock)));
        }
        // Last, so that what other hooks add is looked at too.
        hooks.push(Arc::new(SecretGuard::new(config.secrets)));
        let seen = Arc::new(Seen::open(&store, config.seen, metrics).await?);
        let hooks = HookChain::new(hooks, metrics);
        Ok(Self {
            inboxes,
            hooks,
            store,
            seen,
            remote: config.remote,
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
        let message = match self.hooks.run(message.clone(), BEFORE).await {
            Verdict::Pass(message) => message,
            Verdict::Stop(admission) => return Ok(self.turn_back(tx, &message, admission, cause)),
        };
        let mut to = self.receivers(&message);
        let message = if to.here.is_empty() && !to.peers.is_empty() {
            // The receiver's side is elsewhere.
            message
        } else {
            match self.hooks.run(message.clone(), AFTER).await {
                Verdict::Pass(passed) => {
                    if passed != message {
                        to = self.receivers(&passed);
                    }
                    passed
                }
                Verdict::Stop(admission) => {
                    return Ok(self.turn_back(tx, &message, admission, cause));
                }
            }
        };
        if origin == Origin::Foreign {
            let hash = || content_hash(&message);
            match self
                .seen
                .before(&self.store, SeenId::of(&message), hash)
                .await?
            {
                // The commit of the later one will conflict.
                Before::Never | Before::Pending => {}
                Before::Same(first) => return Ok(first),
                Before::Other => {
                    let replay = Admission::Refused(Refusal::Replay);
                    return Ok(self.turn_back(tx, &message, replay, cause));
                }
            }
        }
        if to.here.is_empty() && to.peers.is_empty() {
            return Ok(self.turn_back(tx, &message, Admission::NoRoute, cause));
        }
        let start = tx.savepoint();
        match self.take_in(tx, &message, &to, None, cause) {
            Ok(posted) => {
                if origin == Origin::Foreign {
                    let (id, hash) = (SeenId::of(&message), content_hash(&message));
                    self.seen.remember(tx, id, hash, &posted, Kept::Loose);
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

    fn receivers(&self, message: &Message) -> Receivers {
        let is_here = |tenant: &_, name: &_| self.inboxes.mailbox(tenant, name).is_some();
        let here = self.inboxes.targets(message);
        let peers = match (&self.remote, message.audience()) {
            (None, _) => RemoteTargets::new(),
            // Ours wins.
            (Some(_), Audience::Agent(_)) if !here.is_empty() => RemoteTargets::new(),
            (Some(remote), _) => remote.targets(message, is_here),
        };
        Receivers { here, peers }
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

    fn take_in(
        &self,
        tx: &mut Batch,
        message: &Message,
        to: &Receivers,
        from: Option<&Came<'_>>,
        cause: Cause,
    ) -> Result<Posted, InboxError> {
        let names = |mailboxes: &Targets<Mailbox>| -> Vec<Name> {
            mailboxes
                .iter()
                .map(|mailbox| mailbox.name().clone())
                .collect()
        };
        let (names, peers) = (names(&to.here), to.peers.iter());
        let peers: Vec<Name> = peers.map(|peer| peer.name().clone()).collect();
        let is_once = |peer: &RemoteTarget| peer.is_once();
        if names.is_empty() && to.peers.iter().all(is_once) {
            // Nothing is stored, so nothing is told: it may never arrive.
            to.peers.iter().for_each(|peer| peer.offer(tx, message));
            return Ok(Posted::not_taken(Admission::Sent, None));
        }
        let encoded = match from {
            Some(came) if came.unchanged => came.sealed.bytes().clone(),
            _ => codec::encode(message),
        };
        let event = Event::Accepted {
            message,
            encoded: &encoded,
            targets: &names,
            peers: &peers,
            from: from.map(|came| (came.peer, came.sealed)),
        };
        let entry = tx.append(event.record().cause(cause));
        let mut deliveries = Vec::with_capacity(names.len() + peers.len());
        for (mailbox, name) in to.here.iter().zip(names) {
            let stored = encode_message(message, &encoded, &name);
            deliveries.push((name, mailbox.enqueue(tx, message, stored, entry.into())?));
        }
        for peer in &to.peers {
            if peer.is_once() {
                peer.offer(tx, message);
            } else {
                let item = peer.enqueue(tx, message, &encoded, entry.into())?;
                deliveries.push((peer.name().clone(), item));
            }
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
