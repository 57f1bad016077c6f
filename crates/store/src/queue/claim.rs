//! Handing items out.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use volary_kernel::clock;

use super::{
    Claim, Deed, Inner, ItemId, Queue, QueueError,
    format::{self, Header, StateRecord},
    index::{Index, Picked, State},
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
            let claims = self
                .try_claim(owner, |index| index.pick(max), Chain::Yes)
                .await?;
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
            let _ = clock::timeout(next - now, self.inner.news.one.notified()).await;
        }
    }

    /// As [`Queue::claim`], but only items of the lanes that `lanes` means: priority first, then age. Whoever waits is
    /// woken by whatever becomes claimable.
    ///
    /// # Errors
    /// As [`Queue::claim`].
    pub async fn claim_where(
        &self,
        owner: &str,
        max: usize,
        wait: Duration,
        lanes: impl Fn(&str) -> bool + Send + Sync,
    ) -> Result<Vec<Claim>, QueueError> {
        let clock = &self.inner.shared.clock;
        let until = clock.mono() + wait;
        let mut news = self.inner.news.all.subscribe();
        loop {
            news.borrow_and_update();
            self.inner.sweep().await?;
            let pick = |index: &mut Index| index.pick_where(max, &lanes);
            let claims = self.try_claim(owner, pick, Chain::No).await?;
            let now = clock.mono();
            if !claims.is_empty() || max == 0 || now >= until {
                return Ok(claims);
            }
            let next = self.inner.index.lock().next_timer();
            let next = next.map_or(until, |next| next.min(until));
            let _ = clock::timeout(next - now, news.changed()).await;
        }
    }

    /// Claims this item, if it may be claimed now.
    ///
    /// # Errors
    /// As [`Queue::claim`].
    pub async fn claim_item(&self, owner: &str, id: ItemId) -> Result<Option<Claim>, QueueError> {
        self.inner.sweep().await?;
        let pick = |index: &mut Index| index.pick_item(id).into_iter().collect();
        Ok(self.try_claim(owner, pick, Chain::No).await?.pop())
    }

    async fn try_claim(
        &self,
        owner: &str,
        pick: impl Fn(&mut Index) -> Vec<Picked> + Send,
        chain: Chain,
    ) -> Result<Vec<Claim>, QueueError> {
        loop {
            let picked = {
                let mut index = self.inner.index.lock();
                let picked = pick(&mut index);
                if matches!(chain, Chain::Yes) && index.has_ready() {
                    self.inner.news.more();
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
            let header = Header { cause, ..header };
            if self.inner.config.journal_claims {
                let attempt = picked.attempt;
                let deed = Deed::Claimed { attempt, owner };
                self.inner
                    .tell(&mut tx, picked.id, &header, &payload, deed)?;
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
            let max_attempts = self.inner.config.max_attempts;
            claims.push(claim_of(picked, header, payload, reason, max_attempts));
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
    last_reason: Option<String>,
    max_attempts: u32,
) -> Claim {
    Claim {
        id: picked.id,
        queue: header.queue,
        payload,
        attempt: picked.attempt,
        epoch: 0,
        tenant: header.tenant,
        trace: header.trace,
        cause: header.cause,
        enqueued_at: header.at,
        deadline: header.deadline,
        priority: header.priority,
        coalesce: header.coalesce,
        base: header.base,
        last_reason,
        max_attempts: header.max_attempts.unwrap_or(max_attempts),
        lane: header.lane,
        own_attempts: header.max_attempts,
        visibility_ms: header.visibility_ms,
    }
}

/// Whether the next of those who take whatever comes is told when something is left.
#[derive(Clone, Copy)]
enum Chain {
    Yes,
    No,
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
        let now = self.inner.shared.clock.mono();
        let mut until = now + self.inner.config.visibility;
        let mut phase = self.phase.lock();
        let mut index = self.inner.index.lock();
        for picked in &self.picked {
            let Some(committed) = committed else {
                index.set(picked.id, State::Ready);
                continue;
            };
            index.wrote(picked.id, committed.version, picked.attempt);
            let abandoned = matches!(*phase, Phase::Abandoned);
            let own = index.get(picked.id).and_then(|(meta, _)| meta.visibility);
            let lapses = now + own.unwrap_or(self.inner.config.visibility);
            until = until.min(lapses);
            index.set(
                picked.id,
                if abandoned {
                    State::Ready
                } else {
                    State::Claimed(lapses)
                },
            );
        }
        drop(index);
        if committed.is_some() && matches!(*phase, Phase::Open) {
            *phase = Phase::Committed;
            self.inner.shared.wake_at(until);
        } else {
            self.inner.news.fresh();
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
            let _nobody_saw_the_claim = index.advance(now);
        }
        *phase = Phase::Abandoned;
        drop(phase);
        self.inner.news.fresh();
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
