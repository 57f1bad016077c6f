//! Numbered queues, and items that are lent: for a queue with one consumer, which lives as long as the process.
//!
//! An outbox has one courier. What it has in hand need not be written down, because nobody else can take it: a loan costs
//! no commit, does not count as an attempt, and ends when it is dropped. Each item has a number, larger than those of all
//! items before it in any life of the process; [`Queue::low`] is the mark below which everything is settled.

use std::time::Duration;

use bytes::Bytes;
use volary_kernel::{
    Mono,
    clock::{self, Timestamp},
    id::{Tenant, TraceId},
};

use super::{
    Deed, ItemId, Outcome, Queue, QueueError,
    format::{self, Header, ParkedInfo},
    index::{Picked, State},
};
use crate::{
    batch::{Batch, Expect},
    entry::Seq,
    key::Key,
};

/// A lent item is handed out until it is given back.
const LENT: State = State::Claimed(Mono::from_nanos(u64::MAX));

/// An item in the hands of a queue's one consumer. Dropping it gives it back, to be lent again at once.
pub struct Loan {
    queue: Queue,
    id: ItemId,
    header: Header,
    payload: Bytes,
    version: Option<u64>,
    number: u64,
    cause: Option<Seq>,
    back: Option<State>,
}

impl std::fmt::Debug for Loan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Loan({} as {})", self.id, self.number)
    }
}

impl Loan {
    /// The item.
    pub const fn id(&self) -> ItemId {
        self.id
    }

    /// Its number: larger than those of all items that were enqueued before it.
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// What it is.
    pub const fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// Whose it is.
    pub const fn tenant(&self) -> &Tenant {
        &self.header.tenant
    }

    /// The request it belongs to.
    pub const fn trace(&self) -> Option<TraceId> {
        self.header.trace
    }

    /// The journal entry that brought it about.
    pub const fn cause(&self) -> Option<Seq> {
        self.cause
    }

    /// When it was enqueued.
    pub const fn enqueued_at(&self) -> Timestamp {
        self.header.at
    }

    /// When it is no longer wanted.
    pub const fn deadline(&self) -> Option<Timestamp> {
        self.header.deadline
    }

    /// Gives it back, not to be lent again before `delay` is over. Forgotten at a restart.
    pub fn give_back(self, delay: Duration) {
        let now = self.queue.inner.shared.clock.mono();
        self.give_back_at(now + delay);
    }

    /// As [`Loan::give_back`], not to be lent again before `at`: items given back for the same moment are lent together
    /// again, in their order.
    pub fn give_back_at(mut self, at: Mono) {
        let shared = &self.queue.inner.shared;
        if at > shared.clock.mono() {
            self.back = Some(State::Delayed(at));
            shared.wake_at(at);
        }
    }

    fn end(&self, tx: &mut Batch, outcome: Outcome) {
        tx.delete(format::item_key(self.id), Expect::Any);
        if self.version.is_some() {
            tx.delete(format::state_key(self.id), Expect::Any);
        }
        let (inner, id) = (self.queue.inner.clone(), self.id);
        tx.on_commit(move |_| inner.finish(id, outcome));
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let inner = &self.queue.inner;
        let mut index = inner.index.lock();
        // Settled items are gone from the index, and stay so.
        if index.get(self.id).is_some_and(|(_, state)| state == LENT) {
            index.set(self.id, self.back.unwrap_or(State::Ready));
            drop(index);
            inner.news.fresh();
        }
    }
}

/// A number that no item has yet: given back unless it is kept.
pub(super) struct Number {
    queue: Queue,
    number: u64,
    kept: bool,
}

impl Number {
    pub(super) fn of(queue: &Queue) -> Self {
        Self {
            number: queue.inner.index.lock().number(),
            queue: queue.clone(),
            kept: false,
        }
    }

    pub(super) const fn get(&self) -> u64 {
        self.number
    }

    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        if !self.kept {
            self.queue.inner.index.lock().unnumber(self.number);
        }
    }
}

impl Queue {
    /// Lends up to `max` items of a numbered queue; waits up to `wait` for the first. Nothing after that time is no error.
    ///
    /// Order: tenants in turn, then priority, then age. There may be one borrower only: what it holds is not written
    /// down. Cancel-safe.
    ///
    /// # Errors
    /// [`QueueError::Invalid`] for a queue without numbers; errors of the store.
    pub async fn lend(&self, max: usize, wait: Duration) -> Result<Vec<Loan>, QueueError> {
        if !self.inner.numbered {
            return Err(QueueError::Invalid(format!(
                "queue `{}` has no numbers, so it lends nothing",
                self.inner.name
            )));
        }
        let clock = &self.inner.shared.clock;
        let until = clock.mono() + wait;
        loop {
            self.inner.sweep().await?;
            let loans = self.try_lend(max).await?;
            let now = clock.mono();
            if !loans.is_empty() || max == 0 || now >= until {
                return Ok(loans);
            }
            let next = self.inner.index.lock().next_timer();
            let next = next.map_or(until, |next| next.min(until));
            // Whether news came or time passed, the loop looks again.
            let _ = clock::timeout(next - now, self.inner.news.one.notified()).await;
        }
    }

    async fn try_lend(&self, max: usize) -> Result<Vec<Loan>, QueueError> {
        loop {
            let mut lent = Lent(self, Vec::new());
            {
                let mut index = self.inner.index.lock();
                lent.1 = index.pick(max);
                for picked in &lent.1 {
                    index.set(picked.id, LENT);
                }
            }
            if lent.1.is_empty() {
                return Ok(Vec::new());
            }
            let keys: Vec<Key> = lent.1.iter().map(|one| format::item_key(one.id)).collect();
            let records = self.inner.shared.store.get_many(&keys).await?;
            let mut loans = Vec::with_capacity(records.len());
            let mut gone = Vec::new();
            for (picked, record) in lent.1.iter().zip(records) {
                match record {
                    Some(record) => {
                        let (header, payload) = format::decode(&record.key, &record.value)?;
                        loans.push(self.loan(picked, header, payload));
                    }
                    None => gone.push(picked.id),
                }
            }
            lent.1.clear();
            for id in gone {
                self.inner.vanished(id).await?;
            }
            if !loans.is_empty() {
                return Ok(loans);
            }
        }
    }

    fn loan(&self, picked: &Picked, header: Header, payload: Bytes) -> Loan {
        let index = self.inner.index.lock();
        let known = index
            .get(picked.id)
            .map(|(meta, _)| (meta.number, meta.cause));
        let (number, cause) = known.unwrap_or_default();
        Loan {
            queue: self.clone(),
            id: picked.id,
            payload,
            version: picked.version,
            number: number.or(header.number).unwrap_or_default(),
            cause: cause.or(header.cause),
            header,
            back: None,
        }
    }

    /// The lent item is done. It is gone when `tx` commits.
    pub fn settle(&self, tx: &mut Batch, loan: &Loan) {
        loan.end(tx, Outcome::Done);
    }

    /// Nobody wants the lent item any more: [`Outcome::DeadlineExceeded`], with the journal entry that tells of it.
    ///
    /// # Errors
    /// [`QueueError::Store`] if the entry can not be written as JSON.
    pub fn expire(&self, tx: &mut Batch, loan: &Loan) -> Result<(), QueueError> {
        loan.end(tx, Outcome::DeadlineExceeded);
        let header = Header {
            cause: loan.cause,
            ..loan.header.clone()
        };
        let deed = Deed::Expired { attempts: 0 };
        self.inner.tell(tx, loan.id, &header, &loan.payload, deed)?;
        Ok(())
    }

    /// Sets the lent item aside for a person to look at.
    ///
    /// # Errors
    /// As [`Queue::expire`].
    pub fn park_loan(&self, tx: &mut Batch, loan: &Loan, reason: &str) -> Result<(), QueueError> {
        let header = Header {
            cause: loan.cause,
            not_before: None,
            from: Seq(0),
            number: None,
            parked: Some(ParkedInfo {
                at: self.inner.shared.clock.wall(),
                attempts: 1,
                reason: super::settle::clip(reason),
            }),
            ..loan.header.clone()
        };
        self.inner
            .add_park(tx, loan.id, loan.version, &header, &loan.payload)
    }
}

/// What was picked and is not lent yet: free again when dropped.
struct Lent<'a>(&'a Queue, Vec<Picked>);

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if self.1.is_empty() {
            return;
        }
        let mut index = self.0.inner.index.lock();
        for picked in &self.1 {
            if index.get(picked.id).is_some_and(|(_, state)| state == LENT) {
                index.set(picked.id, State::Ready);
            }
        }
        drop(index);
        self.0.inner.news.fresh();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use volary_kernel::{Name, clock::ManualClock};

    use super::*;
    use crate::{
        memory::{MemoryConfig, MemoryStore},
        queue::{NewItem, QueueConfig, Queues},
        store::SharedStore,
    };

    fn store() -> SharedStore {
        let config = MemoryConfig::new(Name::new("n").unwrap());
        Arc::new(MemoryStore::new(config, ManualClock::default().shared()))
    }

    async fn open(store: &SharedStore) -> (Queues, Queue) {
        let queues = Queues::open(store.clone()).await.unwrap();
        let queue = queues.numbered(QueueConfig::new("q")).await.unwrap();
        (queues, queue)
    }

    async fn put(store: &SharedStore, queue: &Queue, what: &'static str) -> ItemId {
        let mut tx = Batch::new();
        let item = NewItem::new(Tenant::default(), what);
        let id = queue.enqueue(&mut tx, item).unwrap().id;
        store.commit(tx).await.unwrap();
        id
    }

    async fn lend(queue: &Queue) -> Vec<Loan> {
        queue.lend(10, Duration::ZERO).await.unwrap()
    }

    async fn settle(store: &SharedStore, queue: &Queue, loan: &Loan) {
        let mut tx = Batch::new();
        queue.settle(&mut tx, loan);
        store.commit(tx).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_lent_is_lent_once_and_comes_back_when_it_is_dropped() {
        let store = store();
        let (_, queue) = open(&store).await;
        for what in ["a", "b"] {
            put(&store, &queue, what).await;
        }
        let loans = lend(&queue).await;
        assert_eq!((loans.len(), lend(&queue).await.len()), (2, 0));
        settle(&store, &queue, &loans[0]).await;
        drop(loans);
        let again = lend(&queue).await;
        assert_eq!(again.len(), 1);
        assert_eq!(&again[0].payload()[..], b"b");
    }

    #[tokio::test]
    async fn the_low_mark_passes_what_is_settled_and_nothing_else() {
        let store = store();
        let (_, queue) = open(&store).await;
        let empty = queue.low();
        for what in ["a", "b", "c"] {
            put(&store, &queue, what).await;
        }
        let loans = lend(&queue).await;
        assert_eq!(queue.low(), loans[0].number());
        assert!(empty <= loans[0].number());
        settle(&store, &queue, &loans[1]).await;
        assert_eq!(queue.low(), loans[0].number());
        settle(&store, &queue, &loans[0]).await;
        assert_eq!(queue.low(), loans[2].number());
        // A batch that is open holds the mark, and one that is dropped lets it go.
        settle(&store, &queue, &loans[2]).await;
        let mut tx = Batch::new();
        let item = NewItem::new(Tenant::default(), "d");
        queue.enqueue(&mut tx, item).unwrap();
        let held = queue.low();
        put(&store, &queue, "e").await;
        assert_eq!(queue.low(), held);
        drop(tx);
        assert!(queue.low() > held);
    }

    #[tokio::test]
    async fn numbers_stay_with_their_items_and_grow_over_restarts() {
        let store = store();
        let (_, queue) = open(&store).await;
        put(&store, &queue, "a").await;
        let before = lend(&queue).await[0].number();
        let (_, queue) = open(&store).await;
        put(&store, &queue, "b").await;
        let loans = lend(&queue).await;
        assert_eq!(loans[0].number(), before);
        assert!(loans[1].number() > before);
        for loan in &loans {
            settle(&store, &queue, loan).await;
        }
        let last = loans[1].number();
        let (_, queue) = open(&store).await;
        assert!(queue.low() > last);
    }

    #[tokio::test]
    async fn what_comes_back_from_parking_has_a_number_above_the_low_mark() {
        let store = store();
        let (queues, queue) = open(&store).await;
        let id = put(&store, &queue, "a").await;
        let loan = lend(&queue).await.remove(0);
        let mut tx = Batch::new();
        queue.park_loan(&mut tx, &loan, "no").unwrap();
        store.commit(tx).await.unwrap();
        let low = queue.low();
        assert!(low > loan.number());
        queues.retry_parked(id).await.unwrap();
        let again = lend(&queue).await.remove(0);
        assert!(again.number() >= low);
        assert_eq!(queue.low(), again.number());
        let number = again.number();
        let (_, queue) = open(&store).await;
        assert_eq!(lend(&queue).await[0].number(), number);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_given_back_for_later_waits_its_time() {
        let config = MemoryConfig::new(Name::new("n").unwrap());
        let clock = volary_kernel::clock::SystemClock::shared();
        let store: SharedStore = Arc::new(MemoryStore::new(config, clock.clone()));
        let (_, queue) = open(&store).await;
        put(&store, &queue, "a").await;
        let start = clock.mono();
        lend(&queue)
            .await
            .remove(0)
            .give_back(Duration::from_secs(5));
        assert!(lend(&queue).await.is_empty());
        let loans = queue.lend(1, Duration::from_secs(60)).await.unwrap();
        assert_eq!(loans.len(), 1);
        assert_eq!((clock.mono() - start).as_secs(), 5);
    }
}
