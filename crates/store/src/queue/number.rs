//! Numbers of items: growing over all lives of the process, whatever its clock does.
//!
//! ```text
//! number = life, 32 bits │ count in that life, 32 bits        a life is named by the second in which it begins
//! ```
//! A life is named by more than the one before it in any case. So the numbers also grow over what the store does not know
//! of: a life after it was restored from an older copy, or was begun anew. Whoever has been told of a low mark would take
//! lower numbers for something that was settled long ago. Where the clock was behind as well, they are lower: then the life
//! gets a later name, and its items keep their counts in it ([`Queue::outgrow`]).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use volary_kernel::clock::Timestamp;

use super::{Queue, QueueConfig, QueueError, Queues, format};
use crate::{
    batch::{Batch, Expect},
    error::StoreError,
    key::{Key, Record},
};

/// Bits of a number that count within one life of the process; those above say which life it is.
const LIFE_SHIFT: u32 = 32;
/// The last life that another may tell us of: the year 2096. A later one is made up, and would leave no room for others.
const LIFE_MAX: u64 = 4_000_000_000;
/// Most lives whose later names are remembered; the oldest is forgotten first.
const RENAMED_MAX: usize = 64;

/// The numbers of one queue.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    /// Those of all items, and of those that come back from parking just now.
    taken: BTreeSet<u64>,
    next: u64,
    /// Lives that go by another name now, in the order in which that happened.
    renamed: Vec<(u64, u64)>,
}

impl Numbers {
    pub(super) fn begin(life: u64, renamed: Vec<(u64, u64)>) -> Self {
        Self {
            taken: BTreeSet::new(),
            next: life << LIFE_SHIFT,
            renamed,
        }
    }

    /// The next number. It counts as not settled until it is released.
    pub(super) fn take(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        self.taken.insert(number);
        number
    }

    /// Counts the number of an item as not settled; says what it is now.
    pub(super) fn hold(&mut self, number: u64) -> u64 {
        let number = self.current(number);
        self.taken.insert(number);
        number
    }

    pub(super) fn release(&mut self, number: u64) {
        let number = self.current(number);
        self.taken.remove(&number);
    }

    /// Every number below this one is settled.
    pub(super) fn low(&self) -> u64 {
        self.taken.first().copied().unwrap_or(self.next)
    }

    /// What a number is now that may have been given before its life got another name.
    pub(super) fn current(&self, number: u64) -> u64 {
        self.renamed.iter().fold(number, |number, (from, to)| {
            if number >> LIFE_SHIFT == *from {
                number - (from << LIFE_SHIFT) + (to << LIFE_SHIFT)
            } else {
                number
            }
        })
    }

    const fn life(&self) -> u64 {
        self.next >> LIFE_SHIFT
    }

    /// Whether whoever counts everything below `low` as settled knows of a later life than this one, of which a number is.
    fn is_behind(&self, number: u64, low: u64) -> bool {
        let (its, known) = (number >> LIFE_SHIFT, low >> LIFE_SHIFT);
        its < known && known < LIFE_MAX && self.current(number) >> LIFE_SHIFT == self.life()
    }

    /// Calls the present life, if it is `from`, by the later name `to`.
    pub(super) fn rename(&mut self, from: u64, to: u64) {
        if self.life() != from || to <= from {
            return;
        }
        remember(&mut self.renamed, (from, to));
        self.next = self.current(self.next);
        let taken = std::mem::take(&mut self.taken);
        self.taken = taken
            .into_iter()
            .map(|number| self.current(number))
            .collect();
    }
}

fn remember(renamed: &mut Vec<(u64, u64)>, names: (u64, u64)) {
    if renamed.len() >= RENAMED_MAX {
        renamed.remove(0);
    }
    renamed.push(names);
}

/// `queue.life/<queue>`: which life of the process a numbered queue was opened in last.
#[derive(Serialize, Deserialize)]
struct LifeRecord {
    v: u8,
    life: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    renamed: Vec<(u64, u64)>,
}

fn life_key(queue: &str) -> Result<Key, QueueError> {
    Ok(Key::new(format!("queue.life/{queue}"))?)
}

fn read(record: &Record) -> Result<LifeRecord, StoreError> {
    serde_json::from_slice(&record.value).map_err(|error| {
        let what = format!("record `{}` can not be read: {error}", record.key);
        StoreError::corrupt(what, None)
    })
}

impl Queues {
    /// As [`Queues::queue`], with a number for each item, growing over all lives of the process. Commits once.
    ///
    /// # Errors
    /// As [`Queues::queue`], and errors of the store.
    pub async fn numbered(&self, config: QueueConfig) -> Result<Queue, QueueError> {
        if let Some(queue) = self.shelf.lock().open.get(config.name.as_str()) {
            return Ok(queue.clone());
        }
        let store = &self.shared.store;
        let key = life_key(&config.name)?;
        let found = store.get(&key).await?;
        let (last, renamed) = match found.as_ref().map(read).transpose()? {
            Some(LifeRecord { life, renamed, .. }) => (life, renamed),
            None => (0, Vec::new()),
        };
        let second = self.shared.clock.wall().as_micros() / 1_000_000;
        let second = u64::try_from(second).unwrap_or(0).min(LIFE_MAX);
        let record = LifeRecord {
            v: 1,
            life: (last + 1).max(second),
            renamed,
        };
        let expect = found.map_or(Expect::Absent, |record| Expect::Version(record.version));
        let mut tx = Batch::new();
        tx.put(key, format::to_json(&record)?, expect);
        store.commit(tx).await?;
        self.shelve(config, Some(Numbers::begin(record.life, record.renamed)))
    }
}

impl Queue {
    /// Every number below this one is settled for good, or parked: an item that comes back from there gets a new number.
    pub fn low(&self) -> u64 {
        self.inner.index.lock().low()
    }

    /// Whether an item of this `number` was taken for settled only because whoever says that everything below `low` is
    /// settled knows of a later life: of one that this store was not in, and that began by a later clock. The item is of
    /// the present life, so it is not one of those that were settled then, and [`Queue::outgrow`] helps.
    pub fn is_behind(&self, number: u64, low: u64) -> bool {
        self.inner.index.lock().numbers().is_behind(number, low)
    }

    /// When the life began that a number is of, by the clock of then.
    pub fn begun(number: u64) -> Timestamp {
        let micros = (number >> LIFE_SHIFT) * 1_000_000;
        Timestamp::from_micros(micros.cast_signed())
    }

    /// Adds to `tx` that the present life goes by a later name from its commit on, so that all numbers of its items are
    /// above `low`; their order stays. Nothing is added, and `false` is said, if they are above it already.
    ///
    /// # Errors
    /// [`QueueError::Invalid`] for a `low` that no clock can have led to; errors of the store.
    pub async fn outgrow(&self, tx: &mut Batch, low: u64) -> Result<bool, QueueError> {
        let known = low >> LIFE_SHIFT;
        let life = self.inner.index.lock().numbers().life();
        if known < life {
            return Ok(false);
        }
        if known >= LIFE_MAX {
            return Err(QueueError::Invalid(format!(
                "queue `{}` can not go on above {low}: no life has such numbers",
                self.inner.name
            )));
        }
        let key = life_key(&self.inner.name)?;
        let found = self.inner.shared.store.get(&key).await?;
        let found = found.ok_or_else(|| {
            StoreError::corrupt(format!("record `{key}` is not there any more"), None)
        })?;
        let mut record = read(&found)?;
        let to = known + 1;
        remember(&mut record.renamed, (life, to));
        record.life = to;
        let value = format::to_json(&record)?;
        tx.put(key, value, Expect::Version(found.version));
        let inner = self.inner.clone();
        tx.on_commit(move |_| inner.index.lock().rename(life, to));
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use volary_kernel::{Name, Tenant, clock::ManualClock};

    use super::*;
    use crate::{
        memory::{MemoryConfig, MemoryStore},
        queue::{Loan, NewItem},
        store::SharedStore,
    };

    async fn open(store: &SharedStore) -> Queue {
        let queues = Queues::open(store.clone()).await.unwrap();
        queues.numbered(QueueConfig::new("q")).await.unwrap()
    }

    async fn put(store: &SharedStore, queue: &Queue, what: &'static str) {
        let mut tx = Batch::new();
        let item = NewItem::new(Tenant::default(), what);
        queue.enqueue(&mut tx, item).unwrap();
        store.commit(tx).await.unwrap();
    }

    async fn lend(queue: &Queue) -> Vec<Loan> {
        queue.lend(10, Duration::ZERO).await.unwrap()
    }

    fn numbers(loans: &[Loan]) -> Vec<u64> {
        loans.iter().map(Loan::number).collect()
    }

    #[tokio::test]
    async fn a_life_that_is_behind_goes_on_above_and_its_items_keep_their_order_over_restarts() {
        let config = MemoryConfig::new(Name::new("n").unwrap());
        let store: SharedStore =
            Arc::new(MemoryStore::new(config, ManualClock::default().shared()));
        let queue = open(&store).await;
        put(&store, &queue, "earlier").await;
        let queue = open(&store).await;
        for what in ["a", "b"] {
            put(&store, &queue, what).await;
        }
        let [earlier, a, b]: [u64; 3] = numbers(&lend(&queue).await).try_into().unwrap();
        let known = (1_800_000_000 << LIFE_SHIFT) + 77;
        assert!(queue.is_behind(a, known) && queue.is_behind(b, known));
        // That one may be settled: it is of a life that the other may have known.
        assert!(!queue.is_behind(earlier, known));
        // An open batch gets its number before, and is stored after.
        let mut open_batch = Batch::new();
        let item = NewItem::new(Tenant::default(), "c");
        queue.enqueue(&mut open_batch, item).unwrap();
        let mut tx = Batch::new();
        assert!(queue.outgrow(&mut tx, known).await.unwrap());
        store.commit(tx).await.unwrap();
        store.commit(open_batch).await.unwrap();
        put(&store, &queue, "d").await;

        let loans = lend(&queue).await;
        let after = numbers(&loans);
        let words: Vec<_> = loans.iter().map(|loan| loan.payload().clone()).collect();
        assert_eq!(words, ["earlier", "a", "b", "c", "d"]);
        assert!(
            after.is_sorted() && after[0] == earlier && after[1] > known,
            "{after:?}"
        );
        assert!(
            queue.is_behind(a, known),
            "what was sent before is known again"
        );
        assert!(!queue.outgrow(&mut Batch::new(), known).await.unwrap());
        assert_eq!(queue.low(), earlier);

        // They are the same in the next life, and nothing holds the low mark that was settled.
        drop(loans);
        let queue = open(&store).await;
        let loans = lend(&queue).await;
        assert_eq!(numbers(&loans), after);
        let mut tx = Batch::new();
        loans.iter().for_each(|loan| queue.settle(&mut tx, loan));
        store.commit(tx).await.unwrap();
        assert!(queue.low() > after[4]);
    }

    #[tokio::test]
    async fn what_no_clock_can_have_led_to_is_not_believed() {
        let config = MemoryConfig::new(Name::new("n").unwrap());
        let store: SharedStore =
            Arc::new(MemoryStore::new(config, ManualClock::default().shared()));
        let queue = open(&store).await;
        put(&store, &queue, "a").await;
        let number = numbers(&lend(&queue).await)[0];
        for made_up in [u64::MAX, LIFE_MAX << LIFE_SHIFT] {
            assert!(!queue.is_behind(number, made_up));
            let grown = queue.outgrow(&mut Batch::new(), made_up).await;
            assert!(matches!(grown, Err(QueueError::Invalid(_))));
        }
        assert_eq!(numbers(&lend(&queue).await), [number]);
    }
}
