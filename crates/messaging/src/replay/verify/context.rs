//! What an agent is told as time and randomness, the same in the recorded run and in its replay.

use std::sync::Arc;

use volary_kernel::clock::{ManualClock, SharedClock, Timestamp};

/// The seed of an attempt: the same whenever the same attempt at the same work is made. Handlers get it as
/// `VOLARY_SEED`, 16 hex digits.
pub fn seed(idempotency_key: &str, attempt: u32) -> u64 {
    let mut hash = blake3::Hasher::new_derive_key("volary replay v1 seed");
    hash.update(&attempt.to_be_bytes());
    hash.update(idempotency_key.as_bytes());
    let mut bytes = [0; 8];
    hash.finalize_xof().fill(&mut bytes);
    u64::from_be_bytes(bytes)
}

/// Recorded time and randomness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplayContext {
    now: Timestamp,
    seed: u64,
}

impl ReplayContext {
    /// For an attempt that began at `now`.
    pub fn new(now: Timestamp, idempotency_key: &str, attempt: u32) -> Self {
        Self {
            now,
            seed: seed(idempotency_key, attempt),
        }
    }

    /// The recorded time.
    pub const fn now(&self) -> Timestamp {
        self.now
    }

    /// The recorded seed.
    pub const fn seed(&self) -> u64 {
        self.seed
    }

    /// A clock that stands at the recorded time.
    pub fn clock(&self) -> SharedClock {
        Arc::new(ManualClock::new(self.now))
    }

    /// The recorded random numbers, from their beginning.
    pub const fn random(&self) -> ReplayRandom {
        ReplayRandom::new(self.seed)
    }
}

/// Random numbers that come again. Good for choices and jitter; never for keys.
#[derive(Debug, Clone)]
pub struct ReplayRandom(u64);

impl ReplayRandom {
    /// The numbers of `seed`, from their beginning.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number (SplitMix64).
    pub const fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_attempt_has_the_same_numbers_and_another_has_others() {
        let context = |key, attempt| ReplayContext::new(Timestamp::default(), key, attempt);
        let numbers = |context: ReplayContext| {
            let mut random = context.random();
            [random.next_u64(), random.next_u64()]
        };
        assert_eq!(numbers(context("a", 1)), numbers(context("a", 1)));
        assert_ne!(numbers(context("a", 1)), numbers(context("a", 2)));
        assert_ne!(numbers(context("a", 1)), numbers(context("b", 1)));
        assert_eq!(context("a", 1).clock().wall(), Timestamp::default());
    }
}
