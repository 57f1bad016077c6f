//! When a page that was touched may be looked at. Pure: time is passed in.
//!
//! ```text
//!            mark                       due = min(last mark + rest, first mark + max wait)
//!   clean ─────────► dirty ──── due ────────────────────────────────► ripe: the worker looks at the file
//!                    ▲  │ mark: due moves, first mark stays
//!                    └──┘
//! ```
//!
//! Only *that* a page was touched is kept, never *how*: what happened follows from comparing the page table with the
//! file once it has come to rest. So created + written is one `Added`, created + deleted is nothing, deleted + created
//! is `Replaced` or nothing. A page whose last sign was that a writer is at work (created, written to, removed; not
//! yet closed) rests longer, because that is how programs begin to save.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use volary_kernel::Mono;

/// Least rest after the last sign of change: 20 ms, as watchman has it; longer than the pauses within one save.
pub const DEFAULT_REST: Duration = Duration::from_millis(20);
/// Longest wait from the first sign: 1 s, so that a file written to without end is still seen.
pub const DEFAULT_MAX_WAIT: Duration = Duration::from_secs(1);
/// A page in motion rests this many times longer. 100 ms by default: more than a busy machine delays a writer.
pub const MOVING_FACTOR: u32 = 5;
/// Most pages that may be dirty at once; beyond it a rescan takes the place of the single marks.
pub const MAX_DIRTY: usize = 65_536;

/// How long pages rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SettleConfig {
    /// Least rest after the last sign of change. Zero looks at once, at the price of seeing half-done saves.
    pub rest: Duration,
    /// Longest wait from the first sign. Less than `rest` counts as `rest`.
    pub max_wait: Duration,
}

impl Default for SettleConfig {
    fn default() -> Self {
        Self {
            rest: DEFAULT_REST,
            max_wait: DEFAULT_MAX_WAIT,
        }
    }
}

/// What the last sign of change says about the writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Motion {
    /// A writer is probably at work: created, written to, removed.
    Moving,
    /// A writer has finished: closed, renamed into place.
    Settled,
}

/// A page whose rest is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ripe {
    /// Its path.
    pub path: Arc<str>,
    /// The first sign of this round.
    pub first: Mono,
}

/// Too many pages are dirty: a rescan must take the place of the marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overflow;

#[derive(Debug, Clone, Copy)]
struct Dirty {
    first: Mono,
    due: Mono,
}

/// The dirty pages and when each is due.
#[derive(Debug)]
pub struct Settle {
    config: SettleConfig,
    max_dirty: usize,
    pages: HashMap<Arc<str>, Dirty>,
    due: BTreeSet<(Mono, Arc<str>)>,
}

impl Settle {
    /// Nothing dirty.
    pub fn new(config: SettleConfig, max_dirty: usize) -> Self {
        Self {
            config,
            max_dirty,
            pages: HashMap::new(),
            due: BTreeSet::new(),
        }
    }

    /// Notes a sign of change.
    ///
    /// # Errors
    /// [`Overflow`] when the page would be one too many; it is not noted.
    pub fn mark(&mut self, path: Arc<str>, motion: Motion, now: Mono) -> Result<(), Overflow> {
        let rest = match motion {
            Motion::Moving => self.config.rest * MOVING_FACTOR,
            Motion::Settled => self.config.rest,
        };
        let first = self.pages.get(&path).map_or(now, |dirty| dirty.first);
        self.put(path, first, (now + rest).min(self.latest(first)))
    }

    /// Makes a page due at once.
    ///
    /// # Errors
    /// [`Overflow`] as in [`Settle::mark`].
    pub fn mark_due(&mut self, path: Arc<str>, now: Mono) -> Result<(), Overflow> {
        let first = self.pages.get(&path).map_or(now, |dirty| dirty.first);
        self.put(path, first, now)
    }

    /// Puts a page that changed while it was looked at back to rest. `false`, and nothing is done, once its longest
    /// wait is over: then what was seen has to count.
    pub fn again(&mut self, ripe: &Ripe, now: Mono) -> bool {
        let latest = self.latest(ripe.first);
        if now >= latest {
            return false;
        }
        let due = (now + self.config.rest * MOVING_FACTOR).min(latest);
        let first = self
            .pages
            .get(&ripe.path)
            .map_or(ripe.first, |dirty| dirty.first.min(ripe.first));
        self.put(ripe.path.clone(), first, due).is_ok()
    }

    fn latest(&self, first: Mono) -> Mono {
        first + self.config.max_wait.max(self.config.rest)
    }

    fn put(&mut self, path: Arc<str>, first: Mono, due: Mono) -> Result<(), Overflow> {
        let full = self.pages.len() >= self.max_dirty;
        match self.pages.get_mut(&path) {
            Some(dirty) if dirty.due == due => return Ok(()),
            Some(dirty) => {
                let (_, path) = self
                    .due
                    .take(&(dirty.due, path))
                    .expect("every dirty page has one due entry");
                *dirty = Dirty { first, due };
                self.due.insert((due, path));
            }
            None if full => return Err(Overflow),
            None => {
                self.pages.insert(path.clone(), Dirty { first, due });
                self.due.insert((due, path));
            }
        }
        Ok(())
    }

    /// When the next page is due.
    pub fn next_due(&self) -> Option<Mono> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Takes up to `max` pages that are due, longest due first.
    pub fn take_due(&mut self, now: Mono, max: usize) -> Vec<Ripe> {
        let mut ripe = Vec::new();
        while ripe.len() < max && self.next_due().is_some_and(|due| due <= now) {
            let Some((_, path)) = self.due.pop_first() else {
                break;
            };
            if let Some(Dirty { first, .. }) = self.pages.remove(&path) {
                ripe.push(Ripe { path, first });
            }
        }
        ripe
    }

    /// Number of dirty pages.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Whether no page is dirty.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Forgets all marks, because a rescan is about to find what they stood for.
    pub fn clear(&mut self) {
        self.pages.clear();
        self.due.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REST: Duration = Duration::from_millis(20);
    const MAX: Duration = Duration::from_secs(1);

    fn at(ms: u64) -> Mono {
        Mono::from_nanos(ms * 1_000_000)
    }

    fn settle() -> Settle {
        Settle::new(
            SettleConfig {
                rest: REST,
                max_wait: MAX,
            },
            100,
        )
    }

    fn paths(ripe: &[Ripe]) -> Vec<&str> {
        ripe.iter().map(|ripe| &*ripe.path).collect()
    }

    #[test]
    fn a_closed_file_is_ripe_after_its_rest() {
        let mut settle = settle();
        settle.mark("a".into(), Motion::Settled, at(0)).unwrap();
        assert_eq!(settle.take_due(at(19), 9), []);
        assert_eq!(paths(&settle.take_due(at(20), 9)), ["a"]);
        assert_eq!((settle.len(), settle.next_due()), (0, None));
    }

    #[test]
    fn a_file_in_motion_rests_longer_until_it_is_closed() {
        let mut settle = settle();
        settle.mark("a".into(), Motion::Moving, at(0)).unwrap();
        assert_eq!(settle.next_due(), Some(at(100)));
        settle.mark("a".into(), Motion::Settled, at(5)).unwrap();
        assert_eq!(settle.next_due(), Some(at(25)));
    }

    #[test]
    fn a_file_touched_without_end_is_ripe_after_the_longest_wait() {
        let mut settle = settle();
        for ms in (0..1000).step_by(10) {
            settle.mark("a".into(), Motion::Settled, at(ms)).unwrap();
            assert_eq!(settle.take_due(at(ms), 9), []);
        }
        assert_eq!(
            settle.take_due(at(1000), 9),
            [Ripe {
                path: "a".into(),
                first: at(0)
            }]
        );
    }

    #[test]
    fn a_page_that_changed_under_the_eyes_rests_again_but_not_for_ever() {
        let mut settle = settle();
        let ripe = Ripe {
            path: "a".into(),
            first: at(0),
        };
        assert!(settle.again(&ripe, at(950)));
        assert_eq!(settle.take_due(at(1000), 9), std::slice::from_ref(&ripe));
        assert!(!settle.again(&ripe, at(1000)));
        assert_eq!(settle.len(), 0);
    }

    #[test]
    fn zero_rest_is_ripe_at_once() {
        let mut settle = Settle::new(
            SettleConfig {
                rest: Duration::ZERO,
                max_wait: Duration::ZERO,
            },
            9,
        );
        settle.mark("a".into(), Motion::Moving, at(3)).unwrap();
        assert_eq!(paths(&settle.take_due(at(3), 9)), ["a"]);
    }

    #[test]
    fn one_page_too_many_overflows_and_known_pages_still_mark() {
        let mut settle = Settle::new(SettleConfig::default(), 1);
        settle.mark("a".into(), Motion::Settled, at(0)).unwrap();
        assert_eq!(
            settle.mark("b".into(), Motion::Settled, at(0)),
            Err(Overflow)
        );
        assert_eq!(settle.mark("a".into(), Motion::Settled, at(1)), Ok(()));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Mark(u8, bool),
        Wait(u16),
    }

    proptest! {
        /// Against the definition: a page is handed out once per round, within [last + rest, first + max wait].
        #[test]
        fn every_mark_is_handed_out_once_within_its_bounds(
            steps in prop::collection::vec(prop_oneof![
                (0..5u8, any::<bool>()).prop_map(|(page, moving)| Step::Mark(page, moving)),
                (0..400u16).prop_map(Step::Wait),
            ], 1..200),
        ) {
            let mut settle = settle();
            let mut open: HashMap<Arc<str>, (Mono, Mono, Duration)> = HashMap::new();
            let mut now = at(1);
            for step in steps.into_iter().chain([Step::Wait(1000)]) {
                let until = match step {
                    Step::Mark(page, moving) => {
                        let path: Arc<str> = page.to_string().into();
                        let (motion, rest) =
                            if moving { (Motion::Moving, REST * MOVING_FACTOR) } else { (Motion::Settled, REST) };
                        settle.mark(path.clone(), motion, now).unwrap();
                        let first = open.get(&path).map_or(now, |(first, ..)| *first);
                        open.insert(path, (first, now, rest));
                        now
                    }
                    Step::Wait(ms) => now + Duration::from_millis(ms.into()),
                };
                while now <= until {
                    for ripe in settle.take_due(now, 2) {
                        let (first, last, rest) = open.remove(&ripe.path).expect("marked and not handed out since");
                        prop_assert_eq!(ripe.first, first);
                        prop_assert!(now >= (last + rest).min(first + MAX), "too early");
                        prop_assert!(now - first <= MAX, "too late");
                    }
                    now = now + Duration::from_millis(1);
                }
                prop_assert_eq!(settle.len(), open.len());
            }
            prop_assert!(open.is_empty());
        }
    }
}
