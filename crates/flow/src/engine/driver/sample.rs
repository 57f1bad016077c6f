//! Which attempts of a node are timed, and what is said of those between. Pure.
//!
//! Reading the clock costs about as much as a short attempt, so not all are timed. What was not timed counts as the one before
//! it that was: the number of times is that of the attempts, and each stands for what ran beside it.

use std::time::Duration;

use volary_kernel::Mono;

/// Of attempts that never wait, one in so many is timed,
const SAMPLED: u32 = 64;
/// and one after so long: seldom attempts are all timed.
const STALE_NANOS: u64 = 1_000_000;

/// The times of one node.
#[derive(Debug, Default)]
pub(super) struct Sampling {
    /// Attempts until the next that is timed.
    left: u32,
    /// When the last timed one ended,
    at: Mono,
    /// and how long it took.
    took: Duration,
    /// Attempts since then that were not timed.
    untimed: u32,
}

impl Sampling {
    /// Whether the coming attempt is to be timed. The first is, so that there is always one that the others can stand behind.
    pub(super) fn is_due(&mut self, now: Mono) -> bool {
        if self.left == 0 || now.as_nanos().saturating_sub(self.at.as_nanos()) >= STALE_NANOS {
            return true;
        }
        self.left -= 1;
        false
    }

    /// An attempt that was timed succeeded.
    pub(super) fn timed(&mut self, now: Mono, took: Duration) {
        (self.left, self.at, self.took) = (SAMPLED - 1, now, took);
    }

    /// One that was not timed succeeded.
    pub(super) fn untimed(&mut self) {
        self.untimed += 1;
    }

    /// How many attempts are not told of yet, and how long each counts to have taken.
    pub(super) fn take_untimed(&mut self) -> Option<(Duration, u32)> {
        let untimed = std::mem::take(&mut self.untimed);
        (untimed > 0).then_some((self.took, untimed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    /// Runs attempts at distances of `apart`; gives the numbers of those that were timed.
    fn timed(attempts: u32, apart: Duration) -> Vec<u32> {
        let (mut sampling, mut now) = (Sampling::default(), Mono::from_nanos(5));
        let mut timed = Vec::new();
        for attempt in 0..attempts {
            now = now + apart;
            if sampling.is_due(now) {
                timed.push(attempt);
                sampling.timed(now, apart);
            } else {
                sampling.untimed();
            }
        }
        timed
    }

    #[test]
    fn many_are_timed_one_in_64_and_few_all() {
        assert_eq!(timed(200, US), [0, 64, 128, 192]);
        assert_eq!(timed(5, 1000 * US), [0, 1, 2, 3, 4]);
        assert_eq!(timed(10, 400 * US), [0, 3, 6, 9]);
    }

    #[test]
    fn what_is_not_timed_counts_as_the_one_before() {
        let mut sampling = Sampling::default();
        assert!(sampling.is_due(Mono::default()));
        sampling.timed(Mono::default(), 7 * US);
        assert_eq!(sampling.take_untimed(), None);
        for _ in 0..3 {
            assert!(!sampling.is_due(Mono::default()));
            sampling.untimed();
        }
        assert_eq!(sampling.take_untimed(), Some((7 * US, 3)));
        assert_eq!(sampling.take_untimed(), None);
    }

    #[test]
    fn one_that_failed_or_waited_leaves_the_next_due() {
        let mut sampling = Sampling::default();
        assert!(sampling.is_due(Mono::default()));
        assert!(sampling.is_due(Mono::default()));
    }
}
