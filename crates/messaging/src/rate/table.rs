//! A bounded table of token buckets by key. Pure.
//!
//! A key that is not in the table has a full bucket, so a bucket that has refilled may be forgotten at no cost. When the
//! table is full, the key that refills first makes room if it has refilled; if none has, [`WhenBusy`] decides.

use std::{cmp::Reverse, collections::BinaryHeap};

use hashbrown::HashTable;
use volary_kernel::{
    Mono,
    rate::{Cell, Quota, Wait},
};

/// What happens to a new key when every bucket of a full table is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum WhenBusy {
    /// It is refused until a bucket has refilled: the limits hold, newcomers wait.
    #[default]
    Refuse,
    /// The bucket that refills first is forgotten, which gives its owner at most one bucket more: newcomers never wait.
    ForgetSoonest,
}

/// A bucket with its key.
struct Slot<K> {
    key: K,
    hash: u64,
    cell: Cell,
    /// The last call that asked for it: what one message needs is not forgotten for its own sake.
    call: u64,
}

/// Buckets of one quota by key.
pub(super) struct Table<K> {
    quota: Quota,
    max: usize,
    when_busy: WhenBusy,
    index: HashTable<u32>,
    slots: Vec<Slot<K>>,
    /// Who refills when, as it was when it was entered here: buckets only get emptier, so the least is a lower bound.
    soonest: BinaryHeap<Reverse<(Cell, u32)>>,
}

impl<K> Table<K> {
    pub(super) fn new(quota: Quota, max: usize, when_busy: WhenBusy) -> Self {
        Self {
            quota,
            max: max.clamp(1, u32::MAX as usize),
            when_busy,
            index: HashTable::new(),
            slots: Vec::new(),
            soonest: BinaryHeap::new(),
        }
    }

    /// Keys that are remembered.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    #[inline]
    fn find(&self, hash: u64, same: impl Fn(&K) -> bool) -> Option<u32> {
        let slots = &self.slots;
        self.index
            .find(hash, |place| {
                let slot = &slots[*place as usize];
                slot.hash == hash && same(&slot.key)
            })
            .copied()
    }

    /// Whether the key's bucket has a token; where it is, for [`Table::take`] in the same call.
    #[inline]
    pub(super) fn check(
        &mut self,
        (hash, call): (u64, u64),
        same: impl Fn(&K) -> bool,
        key: impl FnOnce() -> K,
        now: Mono,
    ) -> Result<u32, Wait> {
        if let Some(place) = self.find(hash, same) {
            let slot = &mut self.slots[place as usize];
            slot.call = call;
            return slot.cell.check(&self.quota, now, 1).map(|()| place);
        }
        self.enter(hash, call, key, now)
    }

    /// When the key's bucket has a token; nothing changes.
    pub(super) fn wait(&self, hash: u64, same: impl Fn(&K) -> bool, now: Mono) -> Option<Wait> {
        let place = self.find(hash, same)?;
        let mut cell = self.slots[place as usize].cell;
        cell.check(&self.quota, now, 1).err()
    }

    /// Takes the token that was found.
    #[inline]
    pub(super) fn take(&mut self, place: u32, now: Mono) {
        self.slots[place as usize].cell.take(&self.quota, now, 1);
    }

    #[cold]
    fn enter(
        &mut self,
        hash: u64,
        call: u64,
        key: impl FnOnce() -> K,
        now: Mono,
    ) -> Result<u32, Wait> {
        let mut cell = Cell::default();
        // What never gives a token needs no place.
        cell.check(&self.quota, now, 1)?;
        let place = if self.slots.len() < self.max {
            self.slots.len()
        } else {
            self.make_room(call, now)? as usize
        };
        let slot = Slot {
            key: key(),
            hash,
            cell,
            call,
        };
        if let Some(old) = self.slots.get_mut(place) {
            *old = slot;
        } else {
            self.slots.push(slot);
        }
        let place = u32::try_from(place).unwrap_or(u32::MAX);
        let slots = &self.slots;
        self.index
            .insert_unique(hash, place, |place| slots[*place as usize].hash);
        self.soonest.push(Reverse((cell, place)));
        Ok(place)
    }

    /// Forgets the bucket that refills first and says where it was.
    fn make_room(&mut self, call: u64, now: Mono) -> Result<u32, Wait> {
        // At most the keys of one message.
        let mut needed = Vec::new();
        let found = loop {
            let Some(Reverse((known, place))) = self.soonest.pop() else {
                break None;
            };
            let slot = &self.slots[place as usize];
            if slot.cell > known {
                self.soonest.push(Reverse((slot.cell, place)));
            } else if slot.call == call {
                needed.push(Reverse((known, place)));
            } else {
                break Some((known, place));
            }
        };
        self.soonest.extend(needed);
        let Some((cell, place)) = found else {
            return Err(Wait::Forever);
        };
        if self.when_busy == WhenBusy::Refuse && !cell.is_full(&self.quota, now) {
            self.soonest.push(Reverse((cell, place)));
            return Err(cell.full_after(&self.quota, now));
        }
        let hash = self.slots[place as usize].hash;
        if let Ok(entry) = self.index.find_entry(hash, |other| *other == place) {
            entry.remove();
        }
        Ok(place)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const START: Mono = Mono::from_nanos(1_000_000_000);

    struct World {
        table: Table<u64>,
        call: u64,
    }

    impl World {
        fn new(capacity: f64, refill: f64, max: usize, when_busy: WhenBusy) -> Self {
            let quota = Quota::new(capacity, refill).unwrap();
            Self {
                table: Table::new(quota, max, when_busy),
                call: 0,
            }
        }

        fn take(&mut self, key: u64, now: Mono) -> Result<(), Wait> {
            self.call += 1;
            // Few hashes, so that keys collide.
            let at = (key % 3, self.call);
            let place = self.table.check(at, |known| *known == key, || key, now)?;
            self.table.take(place, now);
            Ok(())
        }
    }

    #[test]
    fn idle_keys_make_room_and_busy_ones_do_not() {
        let mut world = World::new(1.0, 1.0, 2, WhenBusy::Refuse);
        assert_eq!(world.take(1, START), Ok(()));
        let later = START + Duration::from_millis(500);
        assert_eq!(world.take(2, later), Ok(()));
        let Err(Wait::For(wait)) = world.take(3, later) else {
            panic!("both are in use")
        };
        assert_eq!(
            wait,
            Duration::from_nanos(500_000_001),
            "until 1 is full, rounded up"
        );
        let then = later + wait;
        assert_eq!(world.take(3, then), Ok(()), "1 makes room");
        assert!(world.take(2, then).is_err(), "2 is still remembered");
        assert_eq!(world.table.len(), 2);
    }

    #[test]
    fn when_all_are_busy_the_soonest_may_be_forgotten() {
        let mut world = World::new(2.0, 1.0, 2, WhenBusy::ForgetSoonest);
        for key in [1, 1, 2, 3] {
            assert_eq!(world.take(key, START), Ok(()));
        }
        assert!(world.take(1, START).is_err(), "1 was emptier than 2");
        assert_eq!(world.take(2, START), Ok(()), "2 was forgotten");
    }

    #[test]
    fn what_one_message_needs_is_not_forgotten_for_itself() {
        let mut world = World::new(1.0, 1.0, 1, WhenBusy::ForgetSoonest);
        let check = |world: &mut World, key: u64| {
            world
                .table
                .check((key, 9), |known| *known == key, || key, START)
        };
        assert!(check(&mut world, 1).is_ok());
        assert_eq!(check(&mut world, 2), Err(Wait::Forever));
    }

    proptest! {
        /// The bounded table decides as one without bounds does, as long as no busy key was refused its place.
        #[test]
        fn forgetting_idle_keys_changes_no_decision(
            steps in prop::collection::vec((0..12u64, 0..700u64), 1..300),
        ) {
            let mut bounded = World::new(3.0, 10.0, 6, WhenBusy::Refuse);
            let mut free = World::new(3.0, 10.0, 1000, WhenBusy::Refuse);
            let mut now = START;
            for (key, gap) in steps {
                now = now + Duration::from_millis(gap);
                let known = bounded.table.find(key % 3, |other| *other == key).is_some();
                let end = bounded.take(key, now);
                prop_assert!(bounded.table.len() <= 6);
                prop_assert_eq!(bounded.table.index.len(), bounded.table.len());
                prop_assert_eq!(bounded.table.soonest.len(), bounded.table.len());
                if known || end.is_ok() {
                    prop_assert_eq!(free.take(key, now), end);
                }
            }
        }
    }
}
