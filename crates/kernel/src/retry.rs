//! Back-off arithmetic. Pure: the caller supplies the attempt and the random number.

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use crate::random::random_unit;

/// Exponential back-off with jitter: attempt `n` waits `base * factor^(n-1)`, at most `max`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Backoff {
    /// Wait after the first failure.
    pub base: Duration,
    /// Growth per failure; below 1 counts as 1.
    pub factor: f64,
    /// Longest wait before jitter.
    pub max: Duration,
    /// Share of the wait that is random, 0 to 1: a wait `w` becomes something in `w * (1 - jitter) ..= w`.
    pub jitter: f64,
}

/// 200 ms, doubling, at most 30 s, a fifth of it random: quick for a hiccup, gentle on a dead peer.
impl Default for Backoff {
    fn default() -> Self {
        Self {
            base: Duration::from_millis(200),
            factor: 2.0,
            max: Duration::from_secs(30),
            jitter: 0.2,
        }
    }
}

impl Backoff {
    /// The wait before the attempt that follows failure number `failures` (1 is the first).
    ///
    /// `random` is in `0.0..=1.0`; see [`random_unit`].
    pub fn delay(&self, failures: u32, random: f64) -> Duration {
        let exponent = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX);
        let grown = self.base.as_secs_f64() * self.factor.max(1.0).powi(exponent);
        let capped = grown.min(self.max.as_secs_f64());
        let share = self.jitter.clamp(0.0, 1.0) * random.clamp(0.0, 1.0);
        Duration::try_from_secs_f64(capped * (1.0 - share)).unwrap_or(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn waits_double_up_to_the_maximum() {
        let backoff = Backoff {
            jitter: 0.0,
            ..Backoff::default()
        };
        let waits: Vec<_> = (1..=10)
            .map(|n| backoff.delay(n, 0.5).as_millis())
            .collect();
        assert_eq!(
            waits,
            [
                200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000
            ]
        );
    }

    proptest! {
        #[test]
        fn every_wait_stays_within_its_bounds(failures: u32, random in 0.0..=1.0, jitter in 0.0..=1.0) {
            let backoff = Backoff { jitter, ..Backoff::default() };
            let wait = backoff.delay(failures, random);
            prop_assert!(wait <= backoff.max);
            let least = backoff.base.as_secs_f64() * (1.0 - jitter);
            prop_assert!(wait.as_secs_f64() >= least - 1e-9);
        }

        #[test]
        fn random_numbers_stay_in_the_unit_interval(_round in 0..100u8) {
            prop_assert!((0.0..1.0).contains(&random_unit()));
        }
    }
}
