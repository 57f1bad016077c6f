//! Ending claims. Everything here adds to the caller's batch and is fenced by the claim's epoch: if the claim has
//! lapsed and somebody else holds the item, the batch conflicts as a whole.

use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use volary_kernel::{clock::Timestamp, id::Name, retry::random_unit};

use super::{
    Claim, Deed, Happening, Inner, ItemId, Nacked, Outcome, Queue, QueueError, REASON_MAX,
    format::{self, Header, ParkedInfo, StateRecord},
    index::State,
};
use crate::{
    batch::{Batch, Expect},
    entry::{Entry, Seq},
    error::StoreError,
};

impl Queue {
    /// The item is done.
    ///
    /// # Errors
    /// [`QueueError::Lapsed`]. The commit of `tx` may still end in a conflict for the same reason.
    pub fn ack(&self, tx: &mut Batch, claim: &Claim) -> Result<(), QueueError> {
        self.end(tx, claim, Outcome::Done)
    }

    /// The item is given up for good: whoever waits learns [`Outcome::Failed`].
    ///
    /// # Errors
    /// As [`Queue::ack`].
    pub fn fail(&self, tx: &mut Batch, claim: &Claim, reason: &str) -> Result<(), QueueError> {
        self.end(tx, claim, Outcome::Failed(clip(reason)))
    }

    fn end(&self, tx: &mut Batch, claim: &Claim, outcome: Outcome) -> Result<(), QueueError> {
        self.check(claim)?;
        remove(tx, claim.id, Some(claim.epoch));
        let (inner, id) = (self.inner.clone(), claim.id);
        tx.on_commit(move |_| inner.finish(id, outcome));
        Ok(())
    }

    /// The attempt failed: again after `delay`, or after the queue's back-off; parked if it was the last.
    ///
    /// # Errors
    /// As [`Queue::ack`].
    pub fn nack(
        &self,
        tx: &mut Batch,
        claim: &Claim,
        delay: Option<Duration>,
        reason: &str,
    ) -> Result<Nacked, QueueError> {
        if claim.attempt >= claim.max_attempts {
            self.park(tx, claim, reason)?;
            return Ok(Nacked::Parked);
        }
        let delay = delay.unwrap_or_else(|| {
            self.inner
                .config
                .backoff
                .delay(claim.attempt, random_unit())
        });
        self.again(tx, claim, claim.attempt, delay, Some(clip(reason)))?;
        Ok(Nacked::Retry(delay))
    }

    /// Gives the item back unused: the attempt does not count.
    ///
    /// # Errors
    /// As [`Queue::ack`].
    pub fn release(&self, tx: &mut Batch, claim: &Claim) -> Result<(), QueueError> {
        let attempts = claim.attempt.saturating_sub(1);
        self.again(
            tx,
            claim,
            attempts,
            Duration::ZERO,
            claim.last_reason.clone(),
        )
    }

    fn again(
        &self,
        tx: &mut Batch,
        claim: &Claim,
        attempts: u32,
        delay: Duration,
        reason: Option<String>,
    ) -> Result<(), QueueError> {
        self.check(claim)?;
        let not_before = (!delay.is_zero()).then(|| self.inner.shared.clock.wall() + delay);
        let state = StateRecord {
            v: 1,
            attempts,
            owner: None,
            incarnation: None,
            not_before,
            cause: claim.cause,
            reason,
        };
        let id = claim.id;
        tx.put(
            format::state_key(id),
            format::to_json(&state)?,
            Expect::Version(claim.epoch),
        );
        let inner = self.inner.clone();
        tx.on_commit(move |committed| {
            let now = inner.shared.clock.mono();
            let mut index = inner.index.lock();
            index.wrote(id, committed.version, attempts);
            index.set(
                id,
                if delay.is_zero() {
                    State::Ready
                } else {
                    State::Delayed(now + delay)
                },
            );
            drop(index);
            inner.news.fresh();
            inner.shared.wake_at(now + delay);
        });
        Ok(())
    }

    /// Sets the item aside for a person to look at.
    ///
    /// # Errors
    /// As [`Queue::ack`].
    pub fn park(&self, tx: &mut Batch, claim: &Claim, reason: &str) -> Result<(), QueueError> {
        self.check(claim)?;
        let header = Header {
            queue: claim.queue.clone(),
            tenant: claim.tenant.clone(),
            trace: claim.trace,
            cause: claim.cause,
            priority: claim.priority,
            coalesce: claim.coalesce.clone(),
            base: claim.base.clone(),
            deadline: claim.deadline,
            not_before: None,
            at: claim.enqueued_at,
            from: Seq(0),
            number: None,
            parked: Some(ParkedInfo {
                at: self.inner.shared.clock.wall(),
                attempts: claim.attempt,
                reason: clip(reason),
            }),
            lane: claim.lane.clone(),
            max_attempts: claim.own_attempts,
            visibility_ms: claim.visibility_ms,
        };
        self.inner
            .add_park(tx, claim.id, Some(claim.epoch), &header, &claim.payload)
    }

    /// Holds the claim for another visibility time from now.
    ///
    /// # Errors
    /// [`QueueError::Lapsed`].
    pub fn renew(&self, claim: &Claim) -> Result<(), QueueError> {
        let now = self.inner.shared.clock.mono();
        let mut index = self.inner.index.lock();
        if !index.holds_claim(claim.id, claim.epoch, now) {
            return Err(QueueError::Lapsed(claim.id));
        }
        let own = index.get(claim.id).and_then(|(meta, _)| meta.visibility);
        let until = now + own.unwrap_or(self.inner.config.visibility);
        index.set(claim.id, State::Claimed(until));
        drop(index);
        self.inner.shared.wake_at(until);
        Ok(())
    }

    /// Takes an item out that waits or is claimed, as `outcome`. Whoever has it can settle it no more. The commit of `tx`
    /// ends in a conflict if somebody claims or settles it meanwhile: then look again.
    ///
    /// # Errors
    /// [`QueueError::UnknownItem`] if it is not there.
    pub fn remove(&self, tx: &mut Batch, id: ItemId, outcome: Outcome) -> Result<(), QueueError> {
        let version = match self.inner.index.lock().get(id) {
            None | Some((_, State::Pending(_))) => return Err(QueueError::UnknownItem(id)),
            Some((meta, _)) => meta.version,
        };
        remove(tx, id, version);
        let inner = self.inner.clone();
        tx.on_commit(move |_| inner.finish(id, outcome));
        Ok(())
    }

    fn check(&self, claim: &Claim) -> Result<(), QueueError> {
        let now = self.inner.shared.clock.mono();
        let holds = self
            .inner
            .index
            .lock()
            .holds_claim(claim.id, claim.epoch, now);
        if holds {
            Ok(())
        } else {
            Err(QueueError::Lapsed(claim.id))
        }
    }
}

impl Inner {
    /// Adds parking an item to `tx`, with the journal entry that tells of it.
    pub(super) fn add_park(
        self: &std::sync::Arc<Self>,
        tx: &mut Batch,
        id: ItemId,
        version: Option<u64>,
        header: &Header,
        payload: &Bytes,
    ) -> Result<(), QueueError> {
        let parked = header.parked.as_ref();
        let reason = parked
            .map(|parked| parked.reason.clone())
            .unwrap_or_default();
        remove(tx, id, version);
        tx.put(
            format::parked_key(id),
            format::encode(header, payload)?,
            Expect::Any,
        );
        let attempts = parked.map_or(0, |parked| parked.attempts);
        let deed = Deed::Parked {
            attempts,
            reason: &reason,
        };
        self.tell(tx, id, header, payload, deed)?;
        let inner = self.clone();
        tx.on_commit(move |_| {
            inner.shared.count_parked(&inner.name, true);
            inner.finish(id, Outcome::Parked(reason));
        });
        Ok(())
    }

    /// Adds that the queue does something by itself: as its follower tells it, or as a journal entry of its own.
    pub(super) fn tell(
        &self,
        tx: &mut Batch,
        id: ItemId,
        header: &Header,
        payload: &Bytes,
        deed: Deed<'_>,
    ) -> Result<(), StoreError> {
        if let Some(follow) = &self.config.follow {
            return follow.tell(tx, &Happening::new(id, header, payload, deed));
        }
        let (verb, attempts, reason) = match deed {
            Deed::Claimed { attempt, .. } => ("claimed", Some(attempt), None),
            Deed::Parked { attempts, reason } => ("parked", Some(attempts), Some(reason)),
            Deed::Expired { attempts } => ("expired", Some(attempts), None),
            Deed::Retried => ("retried", None, None),
            Deed::Dropped { attempts, reason } => ("dropped", Some(attempts), Some(reason)),
            // The next claim tells of it.
            Deed::Lapsed { .. } => return Ok(()),
        };
        let subject = (self.config.subject, self.config.agent.clone());
        tx.append(entry(subject, verb, id, header, (attempts, reason))?);
        Ok(())
    }
}

#[derive(Serialize)]
struct EntryBody<'a> {
    v: u8,
    queue: &'a str,
    item: ItemId,
    enqueued_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

/// A journal entry `<subject>.<verb>` about an item, and about the agent whose queue it is in.
pub(super) fn entry(
    (subject, agent): (&'static str, Option<Name>),
    verb: &'static str,
    id: ItemId,
    header: &Header,
    (attempts, reason): (Option<u32>, Option<&str>),
) -> Result<Entry, StoreError> {
    let body = EntryBody {
        v: 1,
        queue: &header.queue,
        item: id,
        enqueued_at: header.at,
        attempts,
        reason,
    };
    let kind = format!("{subject}.{verb}");
    Ok(Entry::json(kind, header.tenant.clone(), &body)?
        .agent(agent)
        .trace(header.trace)
        .cause(header.cause))
}

/// Adds the removal of an item to `tx`; conflicts unless its state record is as `version` says.
pub(super) fn remove(tx: &mut Batch, id: ItemId, version: Option<u64>) {
    tx.delete(format::item_key(id), Expect::Any);
    match version {
        Some(version) => tx.delete(format::state_key(id), Expect::Version(version)),
        None => tx.check(format::state_key(id), Expect::Absent),
    };
}

/// The first [`REASON_MAX`] bytes.
pub(super) fn clip(reason: &str) -> String {
    let end = (0..=REASON_MAX.min(reason.len()))
        .rev()
        .find(|end| reason.is_char_boundary(*end));
    reason[..end.unwrap_or(0)].into()
}
