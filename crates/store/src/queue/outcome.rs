//! Who waits for an item's end, and how items ended lately. Both bounded.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{ItemId, Outcome, QueueError, Queues};

/// Most callers that wait for outcomes at a time.
pub const MAX_WAITERS: usize = 65_536;
/// Ended items whose outcome is still known, for those who ask a little late.
const RECENT: usize = 8192;

#[derive(Default)]
struct State {
    waiting: HashMap<ItemId, Vec<oneshot::Sender<Outcome>>>,
    waiters: usize,
    recent: HashMap<ItemId, Outcome>,
    order: VecDeque<ItemId>,
}

enum Asked {
    Ended(Outcome),
    Waits(oneshot::Receiver<Outcome>),
}

#[derive(Default)]
pub(super) struct Outcomes {
    state: Mutex<State>,
}

impl Outcomes {
    pub(super) fn settle(&self, id: ItemId, outcome: Outcome) {
        let mut state = self.state.lock();
        if let Some(waiting) = state.waiting.remove(&id) {
            state.waiters -= waiting.len();
            for waiter in waiting {
                // One who no longer waits needs no answer.
                let _ = waiter.send(outcome.clone());
            }
        }
        if state.recent.insert(id, outcome).is_none() {
            state.order.push_back(id);
        }
        if state.order.len() > RECENT
            && let Some(oldest) = state.order.pop_front()
        {
            state.recent.remove(&oldest);
        }
    }

    /// Forgets how an item ended, because it begins anew.
    pub(super) fn forget(&self, id: ItemId) {
        let mut state = self.state.lock();
        if state.recent.remove(&id).is_some() {
            state.order.retain(|other| *other != id);
        }
    }

    fn recent(&self, id: ItemId) -> Option<Outcome> {
        self.state.lock().recent.get(&id).cloned()
    }

    /// How an item ended, or where that will be told. One look, so that an end in between is not missed.
    fn ask(&self, id: ItemId) -> Result<Asked, QueueError> {
        let mut state = self.state.lock();
        if let Some(outcome) = state.recent.get(&id) {
            return Ok(Asked::Ended(outcome.clone()));
        }
        let (send, receive) = oneshot::channel();
        if state.waiters >= MAX_WAITERS {
            state.drop_gone();
        }
        if state.waiters >= MAX_WAITERS {
            return Err(QueueError::TooManyWaiters(MAX_WAITERS));
        }
        let waiting = state.waiting.entry(id).or_default();
        let before = waiting.len();
        waiting.retain(|waiter| !waiter.is_closed());
        waiting.push(send);
        let after = waiting.len();
        state.waiters = state.waiters + after - before;
        Ok(Asked::Waits(receive))
    }
}

impl State {
    fn drop_gone(&mut self) {
        for waiting in self.waiting.values_mut() {
            waiting.retain(|waiter| !waiter.is_closed());
        }
        self.waiting.retain(|_, waiting| !waiting.is_empty());
        self.waiters = self.waiting.values().map(Vec::len).sum();
    }
}

impl Queues {
    /// How an item ends: waits for it if it has not yet. Cancel-safe.
    ///
    /// # Errors
    /// [`QueueError::UnknownItem`] for an item that no open queue holds and that did not end among the last few
    /// thousand; [`QueueError::TooManyWaiters`].
    pub async fn outcome(&self, id: ItemId) -> Result<Outcome, QueueError> {
        let outcomes = &self.shared.outcomes;
        let receive = match outcomes.ask(id)? {
            Asked::Ended(outcome) => return Ok(outcome),
            Asked::Waits(receive) => receive,
        };
        let live = self
            .shelf
            .lock()
            .open
            .values()
            .any(|queue| queue.inner.index.lock().get(id).is_some());
        if !live {
            return outcomes.recent(id).ok_or(QueueError::UnknownItem(id));
        }
        receive.await.map_err(|_| QueueError::UnknownItem(id))
    }
}

#[cfg(test)]
mod tests {
    use volary_kernel::Uid;

    use super::*;

    #[test]
    fn an_end_is_told_whether_it_comes_before_or_after_the_question() {
        let outcomes = Outcomes::default();
        let id = ItemId(Uid::generate());
        let Ok(Asked::Waits(mut receive)) = outcomes.ask(id) else {
            panic!("it has not ended");
        };
        outcomes.settle(id, Outcome::Done);
        assert_eq!(receive.try_recv(), Ok(Outcome::Done));
        assert!(matches!(outcomes.ask(id), Ok(Asked::Ended(Outcome::Done))));
        assert_eq!(
            outcomes.state.lock().waiters,
            0,
            "whoever was told waits no more"
        );
    }
}
