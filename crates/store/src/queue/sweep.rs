//! What queues do by themselves: let time pass, and settle items that nobody else will.

use std::sync::Arc;

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;
use volary_kernel::{Mono, clock};

use super::{
    Deed, Inner, ItemId, Outcome, Queue, QueueError, Queues,
    format::{self, ParkedInfo},
    index::Doom,
    settle,
};
use crate::{batch::Batch, error::StoreError};

/// Wait after a sweep that failed, so that a full disk is not asked all the time.
const RETRY: std::time::Duration = std::time::Duration::from_secs(1);
/// Items settled at a time: their commits share a sync, and those who wait to claim do not wait for thousands.
const AT_ONCE: usize = 64;
/// Why an item whose last claim lapsed is parked.
const EXHAUSTED: &str = "the last attempt ended without an answer";

impl Inner {
    /// Lets time pass for this queue: frees what lapsed and what was delayed, parks what used up its attempts, ends
    /// what passed its deadline. Only one sweeps at a time; another returns at once.
    pub(super) async fn sweep(self: &Arc<Self>) -> Result<(), QueueError> {
        let (doomed, lapsed) = {
            let mut index = self.index.lock();
            let passed = index.advance(self.shared.clock.mono());
            if passed.freed {
                self.news.fresh();
            } else if index.has_ready() {
                self.news.more();
            }
            (index.doomed(), passed.lapsed)
        };
        if self.config.follow.is_some() && !lapsed.is_empty() {
            self.tell_lapsed(&lapsed).await?;
        }
        if doomed.is_empty() {
            return Ok(());
        }
        let Ok(_sweeping) = self.sweeping.try_lock() else {
            return Ok(());
        };
        for some in doomed.chunks(AT_ONCE) {
            let settling = some.iter().map(|&(id, doom, version, attempts)| {
                self.settle_doomed(id, doom, version, attempts)
            });
            for end in join_all(settling).await {
                match end {
                    // Settled by somebody in the meantime.
                    Ok(()) | Err(QueueError::Store(StoreError::Conflict { .. })) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Tells the follower of claims that ended without an answer. The items are free already: this only says so.
    async fn tell_lapsed(self: &Arc<Self>, lapsed: &[(ItemId, u32)]) -> Result<(), QueueError> {
        for some in lapsed.chunks(AT_ONCE) {
            let keys: Vec<_> = some.iter().map(|(id, _)| format::item_key(*id)).collect();
            let records = self.shared.store.get_many(&keys).await?;
            let mut tx = Batch::new();
            for ((id, attempt), record) in some.iter().zip(records) {
                let Some(record) = record else { continue };
                let (header, payload) = format::decode(&record.key, &record.value)?;
                let deed = Deed::Lapsed { attempt: *attempt };
                self.tell(&mut tx, *id, &header, &payload, deed)?;
            }
            if !tx.is_empty() {
                self.shared.store.commit(tx).await?;
            }
        }
        Ok(())
    }

    async fn settle_doomed(
        self: &Arc<Self>,
        id: ItemId,
        doom: Doom,
        version: Option<u64>,
        attempts: u32,
    ) -> Result<(), QueueError> {
        let Some(record) = self.shared.store.get(&format::item_key(id)).await? else {
            return self.vanished(id).await;
        };
        let (mut header, payload) = format::decode(&record.key, &record.value)?;
        let mut tx = Batch::new();
        match doom {
            Doom::Deadline => {
                settle::remove(&mut tx, id, version);
                self.tell(&mut tx, id, &header, &payload, Deed::Expired { attempts })?;
                let inner = self.clone();
                tx.on_commit(move |_| inner.finish(id, Outcome::DeadlineExceeded));
            }
            Doom::Exhausted => {
                let at = self.shared.clock.wall();
                header.parked = Some(ParkedInfo {
                    at,
                    attempts,
                    reason: EXHAUSTED.into(),
                });
                self.add_park(&mut tx, id, version, &header, &payload)?;
            }
        }
        self.shared.store.commit(tx).await?;
        Ok(())
    }
}

impl Queues {
    /// Lets time pass for every open queue, once. [`Queues::run`] does this when it is due.
    ///
    /// # Errors
    /// Errors of the store; the rest is done at the next sweep.
    pub async fn sweep(&self) -> Result<(), QueueError> {
        let open: Vec<_> = self.shelf.lock().open.values().cloned().collect();
        for queue in open {
            queue.inner.sweep().await?;
        }
        Ok(())
    }

    /// Sweeps whenever it is due, until `stop`. Without it, time passes for a queue only when somebody claims from it.
    pub async fn run(&self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            // Whoever needs a wake-up while this looks around leaves word, because nobody is asleep to be woken.
            *self.shared.alarm.lock() = None;
            let failed = self
                .sweep()
                .await
                .inspect_err(|error| tracing::warn!(%error, "queue sweep failed"))
                .is_err();
            let now = self.shared.clock.mono();
            let next = if failed {
                Some(now + RETRY)
            } else {
                self.next_due(now)
            };
            *self.shared.alarm.lock() = next;
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.shared.alarm_news.notified() => {}
                () = sleep_until(next.map(|next| next - now)) => {}
            }
        }
    }
}

impl Queues {
    /// When the next sweep is due. What should have left and is still there (whoever was at it has given up) is tried
    /// again after a while.
    fn next_due(&self, now: Mono) -> Option<Mono> {
        let shelf = self.shelf.lock();
        let due = |queue: &Queue| {
            let index = queue.inner.index.lock();
            let again = index.has_doomed().then_some(now + RETRY);
            again.into_iter().chain(index.next_timer()).min()
        };
        shelf.open.values().filter_map(due).min()
    }
}

async fn sleep_until(wait: Option<std::time::Duration>) {
    match wait {
        Some(wait) => clock::sleep(wait).await,
        None => std::future::pending().await,
    }
}
