//! The wall-clock time of events, from the monotonic one at which they were written down.

use std::time::Duration;

use volary_kernel::{Mono, SharedClock, Timestamp};

/// The clocks may have moved against each other by so much before the pair is read anew. Until then events of one trace are as
/// far apart as they were, whichever round they are told in.
const APART: Duration = Duration::from_millis(1);
/// A pair that took no longer to read is taken at once,
const SHORT: Duration = Duration::from_micros(5);
/// and the shortest of so many otherwise: the thread may be taken away between two readings.
const READINGS: usize = 8;

/// How the clocks stand to each other: the wall-clock time at which the monotonic one would have been at zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Times {
    zero: Timestamp,
}

impl Times {
    pub(super) fn read(clock: &SharedClock) -> Self {
        let (mut shortest, mut best) = Self::once(clock);
        for _ in 1..READINGS {
            if shortest <= SHORT {
                break;
            }
            let (took, times) = Self::once(clock);
            if took < shortest {
                (shortest, best) = (took, times);
            }
        }
        best
    }

    /// One reading, and how long it took.
    fn once(clock: &SharedClock) -> (Duration, Self) {
        let before = clock.mono();
        let wall = clock.wall();
        let took = clock.mono() - before;
        let mono = before + took / 2;
        let zero = wall - (mono - Mono::default());
        (took, Self { zero })
    }

    /// The same, or as they stand now if the wall clock was set or has drifted away.
    pub(super) fn renewed(self, clock: &SharedClock) -> Self {
        let fresh = Self::read(clock);
        let apart = fresh.zero.since(self.zero).max(self.zero.since(fresh.zero));
        if apart > APART { fresh } else { self }
    }

    /// The wall-clock time of a moment.
    #[inline]
    pub(super) fn wall(self, at: Mono) -> Timestamp {
        let micros = (at.as_nanos() / 1_000).cast_signed();
        Timestamp::from_micros(self.zero.as_micros().saturating_add(micros))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    };

    use volary_kernel::Clock;

    use super::*;

    /// Clocks that go on with each reading, and of which some readings take long.
    #[derive(Default)]
    struct Jumpy {
        nanos: AtomicU64,
        /// Nanoseconds that the wall clock is ahead.
        ahead: AtomicI64,
        /// So many readings of the wall clock take 3 ms from here on.
        slow: AtomicU64,
    }

    impl Clock for Jumpy {
        fn wall(&self) -> Timestamp {
            let now = self.nanos.load(Ordering::SeqCst).cast_signed();
            let wall = now + self.ahead.load(Ordering::SeqCst);
            if self.slow.load(Ordering::SeqCst) > 0 {
                self.slow.fetch_sub(1, Ordering::SeqCst);
                self.nanos.fetch_add(3_000_000, Ordering::SeqCst);
            }
            Timestamp::from_micros(1_000_000_000 + wall / 1_000)
        }

        fn mono(&self) -> Mono {
            Mono::from_nanos(self.nanos.fetch_add(100, Ordering::SeqCst))
        }
    }

    fn clock() -> (Arc<Jumpy>, SharedClock) {
        let clock = Arc::new(Jumpy::default());
        (clock.clone(), clock)
    }

    #[test]
    fn a_thread_that_is_taken_away_between_two_readings_moves_no_event() {
        let (jumpy, clock) = clock();
        jumpy.slow.store(READINGS as u64 - 1, Ordering::SeqCst);
        let times = Times::read(&clock);
        let at = times.wall(Mono::default());
        let expected = Timestamp::from_micros(1_000_000_000);
        assert!(at.since(expected).max(expected.since(at)) < Duration::from_micros(5));
        jumpy.slow.store(READINGS as u64 - 1, Ordering::SeqCst);
        assert_eq!(times.renewed(&clock), times);
    }

    #[test]
    fn what_is_told_in_two_rounds_is_as_far_apart_as_it_was() {
        let (jumpy, clock) = clock();
        let times = Times::read(&clock);
        jumpy.ahead.store(700_000, Ordering::SeqCst);
        assert_eq!(times.renewed(&clock), times, "it drifted by less than 1 ms");
    }

    #[test]
    fn a_wall_clock_that_was_set_is_followed_either_way() {
        for by in [-5_000_000_000, 5_000_000_000] {
            let (jumpy, clock) = clock();
            let times = Times::read(&clock);
            jumpy.ahead.store(by, Ordering::SeqCst);
            let moved = times.renewed(&clock).wall(Mono::default());
            let expected = Timestamp::from_micros(1_000_000_000 + by / 1_000);
            assert!(moved.since(expected).max(expected.since(moved)) < Duration::from_micros(5));
        }
    }
}
