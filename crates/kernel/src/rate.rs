//! Rate limiting arithmetic: a token bucket that refills steadily, kept as one number (GCRA). Pure: the caller gives the
//! time.
//!
//! A [`Quota`] says how many tokens a bucket holds and how fast they come back; a [`Cell`] is one bucket. Asking
//! ([`Cell::check`]) and taking ([`Cell::take`]) are two steps, so that several buckets can be asked before any gives a
//! token. Over any span of time a cell gives at most `capacity + refill × span` tokens; rounding is always towards fewer.
//! A clock that steps back never brings a token: a small step is waited out, a large one empties the bucket, which refills
//! from there.

use std::{fmt, time::Duration};

use crate::{clock::Mono, text};

/// Fractions of a nanosecond that a cell counts in, as a power of two: a million tokens per second stay exact to nine digits.
pub const FRACTION: u32 = 32;
/// Slowest refill that is told apart from none, as the time of one token: about 9,000 years.
const LONGEST: u128 = 1 << 100;
/// A clock that goes back by less is waited out.
const STEP: u128 = 1_000_000_000 << FRACTION;
/// Most tokens of a bucket: what a double holds exactly.
pub const CAPACITY_MAX: f64 = 9_007_199_254_740_992.0;

/// Why a quota was not made.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum QuotaError {
    /// The capacity is no number of tokens.
    #[error("capacity must be a number from 0 to {CAPACITY_MAX}, found {0}")]
    Capacity(f64),
    /// The refill is no rate.
    #[error("refill per second must be a number from 0 on (0: tokens never come back), found {0}")]
    Refill(f64),
}

/// How many tokens a bucket holds, and how fast they come back.
///
/// A capacity below 1 never gives a token; a refill of 0 gives what the bucket holds and never again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quota {
    capacity: f64,
    refill_per_sec: f64,
    /// Time of one token.
    interval: u128,
    /// Time of a full bucket.
    burst: u128,
    /// Whether time brings tokens.
    runs: bool,
}

impl Quota {
    /// A quota; a new bucket is full.
    ///
    /// # Errors
    /// [`QuotaError`] for what is negative, infinite or not a number, and a capacity above [`CAPACITY_MAX`].
    pub fn new(capacity: f64, refill_per_sec: f64) -> Result<Self, QuotaError> {
        if !(0.0..=CAPACITY_MAX).contains(&capacity) {
            return Err(QuotaError::Capacity(capacity));
        }
        if !refill_per_sec.is_finite() || refill_per_sec < 0.0 {
            return Err(QuotaError::Refill(refill_per_sec));
        }
        let runs = refill_per_sec > 0.0;
        let interval = if runs {
            // A little longer than the quotient, which is rounded: never more tokens than asked for.
            let exact = 1e9 * f64::from(2u32).powi(FRACTION.cast_signed()) / refill_per_sec;
            ((exact * (1.0 + 4.0 * f64::EPSILON)).ceil() as u128).clamp(1, LONGEST)
        } else {
            1 << FRACTION
        };
        let whole = interval.saturating_mul(capacity.floor() as u128);
        let part = (capacity.fract() * interval as f64) as u128;
        Ok(Self {
            capacity,
            refill_per_sec,
            interval,
            burst: whole.saturating_add(part).min(1 << 126),
            runs,
        })
    }

    /// Tokens of a full bucket.
    pub const fn capacity(&self) -> f64 {
        self.capacity
    }

    /// Tokens that come back in a second.
    pub const fn refill_per_sec(&self) -> f64 {
        self.refill_per_sec
    }

    /// The time of so many tokens, in the unit of [`Cell::to_raw`].
    pub const fn time_of(&self, tokens: u32) -> u128 {
        self.interval.saturating_mul(tokens as u128)
    }

    #[inline]
    fn at(&self, now: Mono) -> u128 {
        if self.runs {
            u128::from(now.as_nanos()) << FRACTION
        } else {
            0
        }
    }
}

/// When a token will be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// After this time, if nobody else takes it.
    For(Duration),
    /// Never: the bucket is too small, or does not refill.
    Forever,
}

impl Wait {
    /// The time as a duration, [`Duration::MAX`] for ever.
    pub const fn duration(self) -> Duration {
        match self {
            Self::For(wait) => wait,
            Self::Forever => Duration::MAX,
        }
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::For(wait) => f.write_str(&text::brief_duration(*wait)),
            Self::Forever => f.write_str("never"),
        }
    }
}

/// One bucket: the time at which it will be full again, in fractions of a nanosecond. A new one is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Cell(u128);

impl Cell {
    /// The cell that was stored as this number.
    pub const fn from_raw(raw: u128) -> Self {
        Self(raw)
    }

    /// The cell as a number that can be stored, of use with the same clock and quota only.
    pub const fn to_raw(self) -> u128 {
        self.0
    }

    /// Whether `tokens` are there, without taking them.
    ///
    /// # Errors
    /// When they will be.
    #[inline]
    pub fn check(&mut self, quota: &Quota, now: Mono, tokens: u32) -> Result<(), Wait> {
        let at = quota.at(now);
        let limit = at + quota.burst;
        let full = self.0.max(at);
        let after = full.saturating_add(quota.interval.saturating_mul(u128::from(tokens)));
        if after <= limit {
            return Ok(());
        }
        Err(self.wait(quota, at, after))
    }

    #[cold]
    fn wait(&mut self, quota: &Quota, at: u128, after: u128) -> Wait {
        let limit = at + quota.burst;
        let need = after - self.0.max(at);
        if !quota.runs || need > quota.burst {
            return Wait::Forever;
        }
        // Emptier than empty: the clock went back.
        if self.0 > limit + STEP {
            self.0 = limit;
        }
        let after = self.0.max(at).saturating_add(need);
        let nanos = (after - limit).div_ceil(1 << FRACTION);
        Wait::For(Duration::from_nanos(
            u64::try_from(nanos).unwrap_or(u64::MAX),
        ))
    }

    /// Takes `tokens`. Only after [`Cell::check`] said that they are there, with the same time.
    #[inline]
    pub fn take(&mut self, quota: &Quota, now: Mono, tokens: u32) {
        let cost = quota.interval.saturating_mul(u128::from(tokens));
        self.0 = self.0.max(quota.at(now)).saturating_add(cost);
    }

    /// Puts back `tokens` that were taken and not used.
    pub fn give_back(&mut self, quota: &Quota, tokens: u32) {
        let cost = quota.interval.saturating_mul(u128::from(tokens));
        self.0 = self.0.saturating_sub(cost);
    }

    /// Lets the bucket hold at most its capacity less `tokens`, for what was lent and may still be used.
    pub fn keep_free(&mut self, quota: &Quota, now: Mono, tokens: u32) {
        let cost = quota.interval.saturating_mul(u128::from(tokens));
        self.0 = self.0.max(quota.at(now).saturating_add(cost));
    }

    /// The same bucket by another clock: what `from` is there is `to` here.
    #[must_use]
    pub fn moved(self, quota: &Quota, from: Mono, to: Mono) -> Self {
        let missing = self.0.saturating_sub(quota.at(from));
        Self(quota.at(to).saturating_add(missing))
    }

    /// Whole tokens that are there.
    pub fn available(&self, quota: &Quota, now: Mono) -> u64 {
        let at = quota.at(now);
        let room = (at + quota.burst).saturating_sub(self.0.max(at));
        u64::try_from(room / quota.interval).unwrap_or(u64::MAX)
    }

    /// When the bucket will be full, if nothing is taken.
    pub fn full_after(&self, quota: &Quota, now: Mono) -> Wait {
        let missing = self.0.saturating_sub(quota.at(now));
        if missing > 0 && !quota.runs {
            return Wait::Forever;
        }
        let nanos = missing.div_ceil(1 << FRACTION);
        Wait::For(Duration::from_nanos(
            u64::try_from(nanos).unwrap_or(u64::MAX),
        ))
    }

    /// Whether the bucket is full: as good as new.
    #[inline]
    pub fn is_full(&self, quota: &Quota, now: Mono) -> bool {
        self.0 <= quota.at(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    fn at(nanos: u64) -> Mono {
        Mono::from_nanos(nanos)
    }

    fn quota(capacity: f64, refill: f64) -> Quota {
        Quota::new(capacity, refill).unwrap()
    }

    fn try_take(cell: &mut Cell, quota: &Quota, now: Mono) -> Result<(), Wait> {
        cell.check(quota, now, 1)?;
        cell.take(quota, now, 1);
        Ok(())
    }

    #[test]
    fn a_full_bucket_gives_its_capacity_and_then_one_per_interval() {
        let (quota, mut cell) = (quota(3.0, 10.0), Cell::default());
        for _ in 0..3 {
            assert_eq!(try_take(&mut cell, &quota, at(SECOND)), Ok(()));
        }
        let Err(Wait::For(wait)) = try_take(&mut cell, &quota, at(SECOND)) else {
            panic!("it is empty")
        };
        assert_eq!(wait, Duration::from_nanos(100_000_001), "rounded up");
        let then = at(SECOND) + wait;
        assert_eq!(try_take(&mut cell, &quota, then), Ok(()));
        assert!(try_take(&mut cell, &quota, then).is_err());
    }

    #[test]
    fn the_wait_is_exact() {
        let (quota, mut cell) = (quota(7.0, 333.0), Cell::default());
        let mut now = at(5);
        for _ in 0..200 {
            match try_take(&mut cell, &quota, now) {
                Ok(()) => {}
                Err(Wait::For(wait)) => {
                    let early = now + (wait - Duration::from_nanos(1));
                    assert!(cell.check(&quota, early, 1).is_err(), "one too early");
                    now = now + wait;
                    assert_eq!(cell.check(&quota, now, 1), Ok(()));
                }
                Err(Wait::Forever) => panic!("it refills"),
            }
        }
    }

    #[test]
    fn checking_costs_nothing() {
        let (quota, mut cell) = (quota(1.0, 1.0), Cell::default());
        for _ in 0..10 {
            assert_eq!(cell.check(&quota, at(SECOND), 1), Ok(()));
        }
        assert_eq!(cell, Cell::default());
    }

    #[test]
    fn no_capacity_is_never_and_no_refill_is_never_again() {
        let mut cell = Cell::default();
        for capacity in [0.0, 0.999] {
            let none = quota(capacity, 1e6);
            assert_eq!(try_take(&mut cell, &none, at(u64::MAX)), Err(Wait::Forever));
        }
        let once = quota(2.0, 0.0);
        assert_eq!(try_take(&mut cell, &once, at(0)), Ok(()));
        assert_eq!(try_take(&mut cell, &once, at(9)), Ok(()));
        assert_eq!(try_take(&mut cell, &once, at(u64::MAX)), Err(Wait::Forever));
        cell.give_back(&once, 1);
        assert_eq!(try_take(&mut cell, &once, at(1)), Ok(()));
    }

    #[test]
    fn quotas_that_mean_nothing_are_refused() {
        for bad in [f64::NAN, -1.0, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(matches!(Quota::new(bad, 1.0), Err(QuotaError::Capacity(_))));
            assert!(matches!(Quota::new(1.0, bad), Err(QuotaError::Refill(_))));
        }
        assert!(Quota::new(CAPACITY_MAX, f64::MAX).is_ok());
        assert!(Quota::new(1e300, 1.0).is_err());
    }

    #[test]
    fn a_large_step_back_empties_the_bucket_and_does_not_stop_it() {
        let (quota, mut cell) = (quota(5.0, 1.0), Cell::default());
        let late = at(3600 * SECOND);
        assert_eq!(try_take(&mut cell, &quota, late), Ok(()));
        let Err(Wait::For(wait)) = try_take(&mut cell, &quota, at(0)) else {
            panic!("it must not give more than it had")
        };
        assert!(wait <= Duration::from_millis(1001), "{wait:?}");
        assert_eq!(try_take(&mut cell, &quota, at(0) + wait), Ok(()));
    }

    #[test]
    fn what_is_kept_free_does_not_refill() {
        let (quota, mut cell) = (quota(10.0, 1.0), Cell::default());
        cell.keep_free(&quota, at(SECOND), 4);
        assert_eq!(cell.available(&quota, at(SECOND)), 6);
        cell.keep_free(&quota, at(100 * SECOND), 4);
        assert_eq!(cell.available(&quota, at(100 * SECOND)), 6);
        assert_eq!(cell.available(&quota, at(105 * SECOND)), 10);
    }

    proptest! {
        /// Every window between two takes is checked, each against the whole.
        #[test]
        fn never_more_than_capacity_and_refill_over_any_window(
            capacity in 0.0..50.0f64,
            refill in prop_oneof![Just(0.0), 0.001..10.0f64, 10.0..1e7],
            gaps in prop::collection::vec(prop_oneof![Just(0u64), 1..1000u64, 1..SECOND, 1..SECOND * 100], 1..200),
        ) {
            let (quota, mut cell) = (quota(capacity, refill), Cell::default());
            let mut now = 0u64;
            let mut taken = Vec::new();
            for gap in gaps {
                now += gap;
                for _ in 0..60 {
                    if try_take(&mut cell, &quota, at(now)).is_ok() { taken.push(now) } else { break }
                }
            }
            for (first, start) in taken.iter().enumerate() {
                for (last, end) in taken.iter().enumerate().skip(first) {
                    let span = (end - start) as f64 / 1e9;
                    let most = capacity + refill * span;
                    prop_assert!((last - first + 1) as f64 <= most, "{} in {span} s", last - first + 1);
                }
            }
        }

        /// With a clock that jumps either way, only time that went forward brings tokens.
        #[test]
        fn any_clock_is_safe(
            capacity in 0.0..20.0f64,
            refill in prop_oneof![Just(0.0), 0.1..1000.0f64],
            times in prop::collection::vec(prop_oneof![any::<u64>(), 0..SECOND * 10, Just(0), Just(u64::MAX)], 1..60),
        ) {
            let (quota, mut cell) = (quota(capacity, refill), Cell::default());
            let (mut taken, mut forward, mut before) = (0u32, 0.0, times[0]);
            for now in times {
                forward += now.saturating_sub(before) as f64 / 1e9;
                before = now;
                for _ in 0..25 {
                    taken += u32::from(try_take(&mut cell, &quota, at(now)).is_ok());
                }
            }
            prop_assert!(f64::from(taken) <= capacity + refill * forward + 1e-6);
        }

        #[test]
        fn no_number_makes_it_panic(
            capacity in prop_oneof![any::<f64>(), 0.0..CAPACITY_MAX],
            refill in any::<f64>(),
            raw in any::<u128>(), now in any::<u64>(), tokens in any::<u32>(),
        ) {
            if let Ok(quota) = Quota::new(capacity, refill) {
                let mut cell = Cell::from_raw(raw);
                let _ = cell.check(&quota, at(now), tokens);
                cell.keep_free(&quota, at(now), tokens);
                cell.take(&quota, at(now), tokens);
                cell.give_back(&quota, tokens);
                let _ = (cell.available(&quota, at(now)), cell.is_full(&quota, at(now)), cell.full_after(&quota, at(now)));
                let _ = cell.check(&quota, at(now), tokens).map_err(|wait| wait.to_string());
            }
        }
    }
}
