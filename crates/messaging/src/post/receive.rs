//! What a peer sends: looked at, taken in once, and answered.
//!
//! ```text
//! receive ─▶ tenant agreed? ─▶ seen before? ─▶ hooks (post_receive) ─▶ routes here ─▶ every inbox has room
//!               │ Refused          │ first result   │ Dropped, Refused     │ NoRoute       │ Refused{Full}
//!                                                          inbox items + message.accepted + seen record: one batch ◀┘
//! ```
//! Seen comes first: a message that was taken and whose answer was lost gets that answer, whatever a hook would say now.

use volary_kernel::id::{Name, Tenant};
use volary_store::{Batch, Cause};

use super::{AFTER, Before, Came, Kept, Post, Receivers, RemoteTargets, SeenId, Verdict};
use crate::{
    admission::{Admission, FULL_RETRY, Refusal},
    frame::SealedMessage,
    inbox::InboxError,
    message::Message,
    seen::{Pin, sealed_hash},
};

/// The peer that sends.
#[derive(Debug, Clone)]
pub(crate) struct FromPeer<'a> {
    pub(crate) peer: &'a Name,
    pub(crate) tenants: &'a [Tenant],
    /// Its number in the peer's outbox, if it is sent until it is taken.
    pub(crate) order: Option<u64>,
    /// Whether it is told in the journal if it is turned back.
    pub(crate) tell: bool,
}

/// What became of it.
#[derive(Debug)]
pub(crate) enum Received {
    /// This is the answer, once the batch is committed; and for how many agents it is stored.
    Answer(Admission, usize),
    /// It was taken in before; this was the answer.
    Again(Admission),
    /// The same message is in a batch that is not committed yet: ask again when it is.
    Wait,
}

impl Post {
    /// Adds a verified message of a peer to `tx`, for the agents here that it is for.
    ///
    /// # Errors
    /// As [`Post::post`].
    pub(crate) async fn receive(
        &self,
        tx: &mut Batch,
        message: Message,
        sealed: &SealedMessage,
        from: &FromPeer<'_>,
    ) -> Result<Received, InboxError> {
        let answer =
            |posted: super::Posted| Received::Answer(posted.admission, posted.deliveries.len());
        let turn_back = |tx: &mut Batch, message: &Message, admission: Admission| {
            if from.tell {
                return answer(self.turn_back(tx, message, admission, Cause::None));
            }
            self.counters.count(&admission);
            Received::Answer(admission, 0)
        };
        let refuse =
            |tx: &mut Batch, why: Refusal| turn_back(tx, &message, Admission::Refused(why));
        if !from.tenants.contains(message.tenant()) {
            let problem = format!(
                "tenant `{}` is not agreed with peer `{}`",
                message.tenant(),
                from.peer
            );
            return Ok(refuse(
                tx,
                Refusal::Invalid {
                    problem: problem.into(),
                },
            ));
        }
        let id = SeenId::of(&message);
        let hash = || sealed_hash(sealed.bytes());
        match self.seen.before(&self.store, id, hash).await? {
            Before::Never => {}
            Before::Pending => return Ok(Received::Wait),
            Before::Same(first) => return Ok(Received::Again(first.admission)),
            Before::Other => return Ok(refuse(tx, Refusal::Replay)),
        }
        let kept = match self.keep(from) {
            Ok(kept) => kept,
            Err(why) => return Ok(refuse(tx, why)),
        };
        let passed = match self.hooks.run(message.clone(), AFTER).await {
            Verdict::Pass(passed) => passed,
            Verdict::Stop(admission) => {
                return Ok(turn_back(tx, &message, admission));
            }
        };
        let came = Came {
            peer: from.peer,
            sealed,
            unchanged: passed == message,
        };
        let message = passed;
        let to = Receivers {
            here: self.inboxes.targets(&message),
            peers: RemoteTargets::new(),
        };
        if to.here.is_empty() {
            return Ok(turn_back(tx, &message, Admission::NoRoute));
        }
        let start = tx.savepoint();
        match self.take_in(tx, &message, &to, Some(&came), Cause::None) {
            Ok(posted) => {
                self.seen.remember(tx, id, hash(), &posted, kept);
                self.count_on_commit(tx, &posted.admission);
                Ok(answer(posted))
            }
            Err(error) => {
                tx.roll_back(start);
                let why = error.refusal().ok_or(error)?;
                let refused = Admission::Refused(why);
                Ok(turn_back(tx, &message, refused))
            }
        }
    }

    /// Where it would be remembered, if it may be.
    fn keep(&self, from: &FromPeer<'_>) -> Result<Kept, Refusal> {
        let Some(order) = from.order else {
            return Ok(Kept::Once(from.peer.clone()));
        };
        let pin = Pin {
            peer: from.peer.clone(),
            order,
        };
        if let Some(below) = self.seen.is_below(&pin) {
            // Its sender was done with it: somebody plays an old frame again, or its numbers have begun again too low.
            return Err(Refusal::Settled { below });
        }
        if !self.seen.has_room(from.peer) {
            return Err(Refusal::Full {
                what: format!("what peer `{}` has not confirmed", from.peer).into(),
                retry_after: FULL_RETRY,
            });
        }
        Ok(Kept::Pinned(pin))
    }

    /// The names of the agents here that `message` is for.
    pub(crate) fn names_here(&self, message: &Message) -> Vec<Name> {
        let here = self.inboxes.targets(message);
        here.iter().map(|mailbox| mailbox.name().clone()).collect()
    }

    /// Adds to `tx` that a peer is done with every number below `low`.
    pub(crate) fn confirm(&self, tx: &mut Batch, peer: &Name, low: u64) {
        self.seen.confirm(tx, peer, low);
    }

    /// How many messages of a peer it has not confirmed.
    pub(crate) fn unconfirmed(&self, peer: &Name) -> usize {
        self.seen.pinned(peer)
    }
}
