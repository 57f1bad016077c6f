//! Handing items out.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use volary_kernel::clock;

use super::{
    Claim, Inner, Queue, QueueError,
    format::{self, Header, StateRecord},
    index::{Picked, State},
};
use crate::{
    batch::{Batch, Committed, Expect},
    error::StoreError,
    key::{Key, Record},
};

impl Queue {
    /// Claims up to `max` items; waits up to `wait` for the first. Nothing after that time is no error.
    ///
    /// The attempt is on disk before an item is returned. Order: tenants in turn, then priority, then age.
    /// Cancel-safe: if the future is dropped, what it had claimed is free again at once, with the attempt counted if
    /// it was committed.
    ///
    /// # Errors
    /// Errors of the store; what was picked is free again.
    pub async fn claim(
        &self,
        owner: &str,
        max: usize,
        wait: Duration,
    ) -> Result<Vec<Claim>, QueueError> {
        let clock = &self.inner.shared.clock;
        let until = clock.mono() + wait;
        loop {
            self.inner.sweep().await?;
            let claims = self.try_claim(owner, max).await?;
            let now = clock.mono();
            if !claims.is_empty() || max == 0 || now >= until {
                return Ok(claims);
            }
            let next = self
                .inner
                .index
                .lock()
                .next_timer()
                .map_or(until, |next| next.min(until));
            // Whether news came or time passed, the loop looks again.
            let _ = clock::timeout(next - now, self.inner.news.notified()).await;
        }
    }

    async fn try_claim(&self, owner: &str, max: usize) -> Result<Vec<Claim>, QueueError> {
        loop {
            let picked = {
                let mut index = self.inner.index.lock();
                let picked = index.pick(max);
                if index.has_ready() {
                    self.inner.news.notify_one();
                }
                picked
            };
            if picked.is_empty() {
                return Ok(Vec::new());
            }
            let ticket = Arc::new(Ticket {
                inner: self.inner.clone(),
                picked,
                phase: Mutex::new(Phase::Open),
            });
            let mut holder = Holder(Some(ticket.clone()));
            match self.commit_claim(owner, &ticket).await {
                Ok(claims) if claims.is_empty() => {}
                Ok(claims) => {
                    holder.0 = None;
                    return Ok(claims);
                }
                Err(QueueError::Store(StoreError::Conflict { key, .. })) => {
                    self.reread(&key).await?
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads what was picked, commits the claims, and returns those that are there.
    async fn commit_claim(
        &self,
        owner: &str,
        ticket: &Arc<Ticket>,
    ) -> Result<Vec<Claim>, QueueError> {
        let shared = &self.inner.shared;
        let mut tx = Batch::new();
        let hook = ticket.clone();
        tx.on_end(move |committed| hook.end(committed));
        let mut claims = Vec::with_capacity(ticket.picked.len());
        let records = self.fetch(&ticket.picked).await?;
        for (picked, (item, state)) in ticket.picked.iter().zip(records) {
            let Some(item) = item else {
                self.inner.vanished(picked.id).await?;
                continue;
            };
            let (header, payload) = format::decode(&item.key, &item.value)?;
            let last = state
                .map(|state| format::state_of(&state.key, &state.value))
                .transpose()?;
            let cause = self
                .inner
                .index
                .lock()
                .get(picked.id)
                .and_then(|(meta, _)| meta.cause)
                .or(header.cause);
            let reason = last.and_then(|last| last.reason);
            if self.inner.config.journal_claims {
                let entry =
                    self.inner
                        .entry("claimed", picked.id, &header, Some(picked.attempt), None)?;
                tx.append(entry.cause(cause));
            }
            let record = StateRecord {
                v: 1,
                attempts: picked.attempt,
                owner: Some(owner.into()),
                incarnation: Some(shared.incarnation),
                not_before: None,
                cause,
                reason: reason.clone(),
            };
            let expect = picked.version.map_or(Expect::Absent, Expect::Version);
            tx.put(
                format::state_key(picked.id),
                format::to_json(&record)?,
                expect,
            );
            claims.push(claim_of(picked, header, payload, cause, reason));
        }
        let committed = shared.store.commit(tx).await?;
        for claim in &mut claims {
            claim.epoch = committed.version;
        }
        Ok(claims)
    }

    /// The item and state records of what was picked.
    async fn fetch(
        &self,
        picked: &[Picked],
    ) -> Result<Vec<(Option<Record>, Option<Record>)>, QueueError> {
        let mut keys: Vec<Key> = picked
            .iter()
            .map(|picked| format::item_key(picked.id))
            .collect();
        keys.extend(
            picked
                .iter()
                .filter(|picked| picked.version.is_some())
                .map(|picked| format::state_key(picked.id)),
        );
        let mut items = self.inner.shared.store.get_many(&keys).await?;
        let mut states = items.split_off(picked.len()).into_iter();
        let pair = |(picked, item): (&Picked, _)| {
            (item, picked.version.and_then(|_| states.next().flatten()))
        };
        Ok(picked.iter().zip(items).map(pair).collect())
    }

    /// A state record is not what the index thought: somebody else changed it. Believe the store.
    async fn reread(&self, key: &Key) -> Result<(), QueueError> {
        let id = format::id_of(key)?;
        let record = self.inner.shared.store.get(key).await?;
        let state = record
            .as_ref()
            .map(|record| format::state_of(&record.key, &record.value))
            .transpose()?;
        let item = self.inner.shared.store.get(&format::item_key(id)).await?;
        tracing::warn!(queue = %self.inner.name, item = %id, "state of a queue item was changed by somebody else");
        match (item, record, state) {
            (None, ..) => self.inner.vanished(id).await?,
            (Some(_), Some(record), Some(state)) => {
                self.inner
                    .index
                    .lock()
                    .wrote(id, record.version, state.attempts);
            }
            (Some(_), ..) => self.inner.index.lock().unwrote(id),
        }
        Ok(())
    }
}

fn claim_of(
    picked: &Picked,
    header: Header,
    payload: bytes::Bytes,
    cause: Option<crate::entry::Seq>,
    last_reason: Option<String>,
) -> Claim {
    Claim {
        id: picked.id,
        queue: header.queue,
        payload,
        attempt: picked.attempt,
        epoch: 0,
        tenant: header.tenant,
        trace: header.trace,
        cause,
        enqueued_at: header.at,
        deadline: header.deadline,
        priority: header.priority,
        coalesce: header.coalesce,
        base: header.base,
        last_reason,
    }
}

/// How far a claim got.
enum Phase {
    /// Its commit is on the way.
    Open,
    /// The claims hold.
    Committed,
    /// Whoever asked is gone.
    Abandoned,
}

/// What a claim has picked, seen by the one who claims and by the batch that commits it. Whoever of the two ends last
/// knows what became of it.
struct Ticket {
    inner: Arc<Inner>,
    picked: Vec<Picked>,
    phase: Mutex<Phase>,
}

impl Ticket {
    /// The batch was committed, or not.
    fn end(&self, committed: Option<&Committed>) {
        let until = self.inner.shared.clock.mono() + self.inner.config.visibility;
        let mut phase = self.phase.lock();
        let mut index = self.inner.index.lock();
        for picked in &self.picked {
            let Some(committed) = committed else {
                index.set(picked.id, State::Ready);
                continue;
            };
            index.wrote(picked.id, committed.version, picked.attempt);
            let abandoned = matches!(*phase, Phase::Abandoned);
            index.set(
                picked.id,
                if abandoned {
                    State::Ready
                } else {
                    State::Claimed(until)
                },
            );
        }
        drop(index);
        if committed.is_some() && matches!(*phase, Phase::Open) {
            *phase = Phase::Committed;
            self.inner.shared.wake_at(until);
        } else {
            self.inner.news.notify_one();
        }
    }

    /// Whoever asked is gone before it got the claims.
    fn abandon(&self) {
        let mut phase = self.phase.lock();
        if matches!(*phase, Phase::Committed) {
            let now = self.inner.shared.clock.mono();
            let mut index = self.inner.index.lock();
            for picked in &self.picked {
                if matches!(index.get(picked.id), Some((_, State::Claimed(_)))) {
                    index.set(picked.id, State::Claimed(now));
                }
            }
            index.advance(now);
        }
        *phase = Phase::Abandoned;
        drop(phase);
        self.inner.news.notify_one();
    }
}

/// The claiming side of a ticket.
struct Holder(Option<Arc<Ticket>>);

impl Drop for Holder {
    fn drop(&mut self) {
        if let Some(ticket) = self.0.take() {
            ticket.abandon();
        }
    }
}
