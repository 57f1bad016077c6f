//! What is told of a peer's messages that were not taken: all of them are counted, and few of them are told, so that no
//! peer fills the journal with what it sends in vain.

use std::time::Duration;

use parking_lot::Mutex;
use volary_kernel::{
    clock::{Mono, SharedClock},
    id::Name,
    metric::Counter,
};
use volary_store::{Batch, SharedStore};

use crate::{admission::Admission, event::Event};

/// Shortest time between two journal entries about messages that could not be believed.
const TELL: Duration = Duration::from_secs(60);
/// Entries about messages of a peer that were turned back: so many at once, each with what it is about.
const ENTRIES: u32 = 100;
/// And one in this time after that.
const ENTRY_EVERY: Duration = Duration::from_secs(1);
/// Shortest time between two entries that tell how many were left out.
const TELL_LEFT_OUT: Duration = Duration::from_secs(10);

/// Counts and tells what could not be believed.
pub(super) struct Unverified {
    pub(super) peer: Name,
    pub(super) counter: Counter,
    pub(super) store: SharedStore,
    pub(super) clock: SharedClock,
    pub(super) told: Mutex<(u64, Option<Mono>)>,
}

impl Unverified {
    /// Counts; says it in the journal at most once in a while.
    pub(super) async fn tell(&self, count: usize, problem: &str) {
        self.counter.inc_by(count as u64);
        let now = self.clock.mono();
        let count = {
            let mut told = self.told.lock();
            told.0 += count as u64;
            if told.1.is_some_and(|last| now - last < TELL) {
                return;
            }
            told.1 = Some(now);
            std::mem::take(&mut told.0)
        };
        tracing::warn!(peer = %self.peer, count, problem, "messages of a peer were not believed");
        let mut tx = Batch::new();
        let event = Event::Unverified {
            peer: &self.peer,
            count,
            problem,
        };
        tx.append(event.record());
        if let Err(error) = self.store.commit(tx).await {
            tracing::warn!(%error, "that messages were not believed could not be journaled");
        }
    }
}

/// How many entries there may be about messages of one peer that were turned back, and what was left out.
pub(super) struct Allowance {
    left: u32,
    /// Until when `left` is reckoned.
    at: Mono,
    left_out: u64,
    last: Option<Admission>,
    told: Option<Mono>,
}

impl Allowance {
    pub(super) const fn new(now: Mono) -> Self {
        Self {
            left: ENTRIES,
            at: now,
            left_out: 0,
            last: None,
            told: None,
        }
    }

    /// Whether the next message that is turned back is told.
    pub(super) fn may_tell(&mut self, now: Mono) -> bool {
        while self.left < ENTRIES && now - self.at >= ENTRY_EVERY {
            (self.left, self.at) = (self.left + 1, self.at + ENTRY_EVERY);
        }
        if self.left == ENTRIES {
            self.at = now;
        }
        self.left > 0
    }

    /// One was turned back; it was `told`, as [`Allowance::may_tell`] said.
    pub(super) fn turned_back(&mut self, admission: &Admission, told: bool) {
        if told {
            self.left = self.left.saturating_sub(1);
        } else {
            self.left_out += 1;
            self.last = Some(admission.clone());
        }
    }

    /// Whether something was left out that is not told yet.
    pub(super) const fn owes(&self) -> bool {
        self.left_out > 0
    }

    /// How many were left out and what the last of them was answered, when it is time to tell it.
    pub(super) fn due(&mut self, now: Mono) -> Option<(u64, Admission)> {
        if self.told.is_some_and(|told| now - told < TELL_LEFT_OUT) {
            return None;
        }
        let last = self.last.take()?;
        self.told = Some(now);
        Some((std::mem::take(&mut self.left_out), last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_told_by_a_few_entries_that_count_all() {
        let mut allowance = Allowance::new(Mono::default());
        let (mut told, mut sums, mut left_out) = (0, 0, 0);
        // 1,000 a second for a minute.
        for n in 0..60_000 {
            let now = Mono::default() + Duration::from_millis(n + 1_000_000);
            let tell = allowance.may_tell(now);
            told += u64::from(tell);
            allowance.turned_back(&Admission::NoRoute, tell);
            if let Some((count, last)) = allowance.due(now) {
                assert_eq!(last, Admission::NoRoute);
                (sums, left_out) = (sums + 1, left_out + count);
            }
        }
        let end = Mono::default() + Duration::from_secs(2_000);
        left_out += allowance.due(end).map_or(0, |(count, _)| count);
        assert_eq!(told + left_out, 60_000);
        assert!((100..=161).contains(&told), "{told}");
        assert!(sums <= 7, "{sums}");
        assert!(!allowance.owes());
    }
}
