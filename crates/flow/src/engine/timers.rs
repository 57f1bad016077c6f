//! Points of time with something to do, the earliest first; each can be taken back. Pure.
//!
//! A binary heap whose entries know their place, so that what is taken back leaves nothing behind: a deadline of an hour on
//! a trace that ends in a millisecond costs a millisecond of memory.

use volary_kernel::Mono;

/// An empty heap keeps room for so many.
const KEPT_ROOM: usize = 1024;

/// Names an entry until it is taken back or due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    slot: u32,
    stamp: u32,
}

impl Key {
    /// As one number, for an atomic.
    pub(crate) const fn to_bits(self) -> u64 {
        (self.slot as u64) << 32 | self.stamp as u64
    }

    /// From that number.
    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self {
            slot: (bits >> 32) as u32,
            stamp: bits as u32,
        }
    }
}

#[derive(Debug)]
struct Slot<T> {
    at: Mono,
    order: u64,
    /// Place in the heap.
    place: u32,
    stamp: u32,
    item: Option<T>,
}

/// Points of time with something to do.
#[derive(Debug)]
pub(crate) struct Timers<T> {
    heap: Vec<u32>,
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    order: u64,
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Self {
            heap: Vec::new(),
            slots: Vec::new(),
            free: Vec::new(),
            order: 0,
        }
    }
}

impl<T> Timers<T> {
    /// How many there are.
    #[cfg(test)]
    pub(crate) const fn len(&self) -> usize {
        self.heap.len()
    }

    /// The earliest point.
    pub(crate) fn next(&self) -> Option<Mono> {
        self.heap.first().map(|slot| self.slots[*slot as usize].at)
    }

    /// Adds something to do at `at`; what was added first is due first at the same point.
    pub(crate) fn insert(&mut self, at: Mono, item: T) -> Key {
        self.order += 1;
        let place = u32::try_from(self.heap.len()).unwrap_or(u32::MAX);
        // Unique but for one in four billion, and of the right slot besides.
        let (order, stamp, item) = (self.order, self.order as u32, Some(item));
        let slot = if let Some(slot) = self.free.pop() {
            let old = &mut self.slots[slot as usize];
            (old.at, old.order, old.place, old.stamp, old.item) = (at, order, place, stamp, item);
            slot
        } else {
            self.slots.push(Slot {
                at,
                order,
                place,
                stamp,
                item,
            });
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        };
        self.heap.push(slot);
        self.rise(place as usize);
        Key { slot, stamp }
    }

    /// Takes it back; `None` if it was due or taken back before.
    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        let slot = self.slots.get(key.slot as usize)?;
        if slot.stamp != key.stamp || slot.item.is_none() {
            return None;
        }
        self.take_at(slot.place as usize)
    }

    /// The earliest, if it is due.
    pub(crate) fn pop_due(&mut self, now: Mono) -> Option<T> {
        if self.next()? > now {
            return None;
        }
        self.take_at(0)
    }

    fn take_at(&mut self, place: usize) -> Option<T> {
        let slot = self.heap.swap_remove(place);
        if place < self.heap.len() {
            self.settle(place);
            let place = self.rise(place);
            self.sink(place);
        }
        let item = self.slots[slot as usize].item.take();
        self.free.push(slot);
        if self.heap.is_empty() && self.slots.len() > KEPT_ROOM {
            self.slots = Vec::new();
            self.free = Vec::new();
            self.heap = Vec::new();
        }
        item
    }

    fn before(&self, a: usize, b: usize) -> bool {
        let key = |place: usize| {
            let slot = &self.slots[self.heap[place] as usize];
            (slot.at, slot.order)
        };
        key(a) < key(b)
    }

    fn settle(&mut self, place: usize) {
        let slot = self.heap[place] as usize;
        self.slots[slot].place = u32::try_from(place).unwrap_or(u32::MAX);
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.settle(a);
        self.settle(b);
    }

    fn rise(&mut self, mut place: usize) -> usize {
        while place > 0 {
            let parent = (place - 1) / 2;
            if !self.before(place, parent) {
                break;
            }
            self.swap(place, parent);
            place = parent;
        }
        place
    }

    fn sink(&mut self, mut place: usize) {
        loop {
            let (left, right) = (2 * place + 1, 2 * place + 2);
            if left >= self.heap.len() {
                return;
            }
            let child = if right < self.heap.len() && self.before(right, left) {
                right
            } else {
                left
            };
            if !self.before(child, place) {
                return;
            }
            self.swap(place, child);
            place = child;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(nanos: u64) -> Mono {
        Mono::from_nanos(nanos)
    }

    #[test]
    fn what_is_due_at_the_same_point_comes_in_the_order_it_was_added() {
        let mut timers = Timers::default();
        for item in 0..5 {
            timers.insert(at(7), item);
        }
        timers.insert(at(3), 9);
        let due: Vec<_> = std::iter::from_fn(|| timers.pop_due(at(7))).collect();
        assert_eq!(due, [9, 0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_key_that_was_used_names_nothing_else() {
        let mut timers = Timers::default();
        let old = timers.insert(at(1), 'a');
        assert_eq!(timers.remove(Key::from_bits(old.to_bits())), Some('a'));
        let new = timers.insert(at(1), 'b');
        assert_eq!(timers.remove(old), None);
        assert_eq!(timers.remove(new), Some('b'));
        assert_eq!((timers.len(), timers.next()), (0, None));
    }

    proptest! {
        /// Against a sorted list: the same come out in the same order, and what was taken back never does.
        #[test]
        fn it_agrees_with_a_sorted_list(ops in prop::collection::vec((0..50u64, 0..4u8), 0..300)) {
            let mut timers = Timers::default();
            let mut model: Vec<(u64, usize, Key)> = Vec::new();
            for (count, (time, op)) in ops.into_iter().enumerate() {
                match op {
                    0 | 1 => model.push((time, count, timers.insert(at(time), count))),
                    2 => if !model.is_empty() {
                        let (_, item, key) = model.swap_remove(count % model.len());
                        prop_assert_eq!(timers.remove(key), Some(item));
                    },
                    _ => {
                        model.sort_by_key(|(time, item, _)| (*time, *item));
                        let due = model.first().is_some_and(|(first, ..)| *first <= time);
                        let expected = due.then(|| model.remove(0).1);
                        prop_assert_eq!(timers.pop_due(at(time)), expected);
                    }
                }
                prop_assert_eq!(timers.len(), model.len());
                prop_assert_eq!(timers.next(), model.iter().map(|(time, ..)| at(*time)).min());
            }
        }
    }
}
