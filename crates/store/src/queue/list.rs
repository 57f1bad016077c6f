//! Looking at what is there, without claiming it.

use std::cmp::Reverse;

use bytes::Bytes;
use tokio::sync::watch;
use volary_kernel::clock::Timestamp;

use super::{ItemId, Queue, QueueError, format, index::State};

/// The place of a page's last item, for the page after it: its priority and the item.
pub type Place = (i16, ItemId);

/// Where an item stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It may be claimed.
    Ready,
    /// It waits for its time.
    Delayed,
    /// It is handed out (or about to be).
    Claimed,
    /// It is about to leave the queue: its deadline passed, or its attempts are used up.
    Leaving,
}

/// An item as it is.
#[derive(Debug, Clone)]
pub struct ItemView {
    /// The item.
    pub id: ItemId,
    /// Where it stands.
    pub standing: Standing,
    /// What it is.
    pub payload: Bytes,
    /// How urgent it is.
    pub priority: i16,
    /// Attempts made, the running one included.
    pub attempts: u32,
    /// Who has it, if it is claimed.
    pub owner: Option<String>,
    /// Epoch of the claim, if it is claimed.
    pub epoch: Option<u64>,
    /// Why the last attempt failed, if somebody said.
    pub last_reason: Option<String>,
    /// When it was enqueued.
    pub enqueued_at: Timestamp,
    /// Not to be claimed earlier.
    pub not_before: Option<Timestamp>,
}

impl Queue {
    /// Up to `limit` items of the lanes meant that may be claimed, in the order in which they would be, after `after`.
    /// Costs a look at each lane and each item returned, however many there are.
    pub fn list_ready(
        &self,
        after: Option<Place>,
        limit: usize,
        lanes: impl Fn(&str) -> bool,
    ) -> Vec<Place> {
        let index = self.inner.index.lock();
        let after = after.map(|(priority, id)| (Reverse(priority), id));
        let ranks = index.ready_where(after, limit, &lanes);
        ranks
            .into_iter()
            .map(|(Reverse(priority), id)| (priority, id))
            .collect()
    }

    /// Up to `limit` items with a lane that may not be claimed now (delayed, claimed, about to leave), oldest first, after
    /// `after`.
    pub fn list_held(&self, after: Option<ItemId>, limit: usize) -> Vec<ItemId> {
        self.inner.index.lock().held_after(after, limit)
    }

    /// News of what may be claimed. Whoever waits to choose looks again.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.inner.news.all.subscribe()
    }

    /// Lets time pass for this queue: what lapsed or was delayed until now is free, what is over leaves.
    /// [`super::Queues::run`] does this when it is due.
    ///
    /// # Errors
    /// Errors of the store; the rest is done at the next sweep.
    pub async fn sweep(&self) -> Result<(), QueueError> {
        self.inner.sweep().await
    }

    /// Where an item stands, if it is in this queue and its batch was committed.
    pub fn standing(&self, id: ItemId) -> Option<Standing> {
        let now = self.inner.shared.clock.mono();
        match self.inner.index.lock().get(id)?.1 {
            State::Pending(_) => None,
            State::Delayed(at) if at > now => Some(Standing::Delayed),
            State::Claimed(until) if until <= now => Some(Standing::Ready),
            State::Ready | State::Delayed(_) => Some(Standing::Ready),
            State::Claiming | State::Claimed(_) => Some(Standing::Claimed),
            State::Doomed(_) => Some(Standing::Leaving),
        }
    }

    /// These items as they are; nothing for one that is not in this queue.
    ///
    /// # Errors
    /// Errors of reading.
    pub async fn views(&self, ids: &[ItemId]) -> Result<Vec<Option<ItemView>>, QueueError> {
        let mut keys: Vec<_> = ids.iter().map(|id| format::item_key(*id)).collect();
        keys.extend(ids.iter().map(|id| format::state_key(*id)));
        let mut items = self.inner.shared.store.get_many(&keys).await?;
        let states = items.split_off(ids.len());
        let mut views = Vec::with_capacity(ids.len());
        for (id, (item, state)) in ids.iter().zip(items.into_iter().zip(states)) {
            let (Some(item), Some(standing)) = (item, self.standing(*id)) else {
                views.push(None);
                continue;
            };
            let (header, payload) = format::decode(&item.key, &item.value)?;
            let version = state.as_ref().map(|state| state.version);
            let state = state
                .map(|state| format::state_of(&state.key, &state.value))
                .transpose()?;
            let claimed = standing == Standing::Claimed;
            views.push(Some(ItemView {
                id: *id,
                standing,
                payload,
                priority: header.priority,
                attempts: state.as_ref().map_or(0, |state| state.attempts),
                owner: state
                    .as_ref()
                    .and_then(|state| state.owner.clone())
                    .filter(|_| claimed),
                epoch: version.filter(|_| claimed),
                last_reason: state.as_ref().and_then(|state| state.reason.clone()),
                enqueued_at: header.at,
                not_before: state
                    .and_then(|state| state.not_before)
                    .or(header.not_before),
            }));
        }
        Ok(views)
    }
}
