//! A circuit breaker: a target that keeps failing is left alone for a while (pure).

use std::time::Duration;

use volary_kernel::clock::Timestamp;

/// When a breaker opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerConfig {
    /// Failures in a row that open it. Default 5.
    pub failures: u32,
    /// How long it stays open. Default 30 s.
    pub open_for: Duration,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            failures: 5,
            open_for: Duration::from_secs(30),
        }
    }
}

/// The state for one target. While it is open nothing is sent; then one request goes through, and decides.
#[derive(Debug, Clone)]
pub struct Breaker {
    config: BreakerConfig,
    failures: u32,
    open_until: Option<Timestamp>,
}

impl Breaker {
    /// A closed breaker.
    pub const fn new(config: BreakerConfig) -> Self {
        Self {
            config,
            failures: 0,
            open_until: None,
        }
    }

    /// Whether a request may be sent now; else how long not. The first that may after an open time holds back the others.
    ///
    /// # Errors
    /// The time until the next request may be tried.
    pub fn enter(&mut self, now: Timestamp) -> Result<(), Duration> {
        match self.open_until {
            Some(until) if now < until => Err(until.since(now)),
            Some(_) => {
                self.open_until = Some(now + self.config.open_for);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Takes in how a request ended. Returns whether this opened the breaker.
    pub fn ended(&mut self, good: bool, now: Timestamp) -> bool {
        if good {
            self.failures = 0;
            self.open_until = None;
            return false;
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures < self.config.failures {
            return false;
        }
        let opened = self.failures == self.config.failures;
        self.open_until = Some(now + self.config.open_for);
        opened
    }

    /// Whether it is open.
    pub const fn is_open(&self) -> bool {
        self.open_until.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn it_opens_at_the_limit_lets_one_through_later_and_closes_when_that_is_good() {
        let mut breaker = Breaker::new(BreakerConfig::default());
        for second in 0..5 {
            assert_eq!(breaker.enter(at(second)), Ok(()));
            assert_eq!(breaker.ended(false, at(second)), second == 4);
        }
        assert_eq!(breaker.enter(at(5)), Err(Duration::from_secs(29)));
        assert_eq!(breaker.enter(at(34)), Ok(()));
        assert_eq!(breaker.enter(at(34)), Err(Duration::from_secs(30)));
        breaker.ended(false, at(35));
        assert_eq!(breaker.enter(at(36)), Err(Duration::from_secs(29)));
        assert_eq!(breaker.enter(at(65)), Ok(()));
        breaker.ended(true, at(65));
        assert!(!breaker.is_open());
        assert_eq!(breaker.enter(at(65)), Ok(()));
    }

    #[test]
    fn a_success_between_failures_begins_the_count_again() {
        let mut breaker = Breaker::new(BreakerConfig::default());
        for second in 0..40 {
            assert!(!breaker.ended(second % 5 == 4, at(second)));
        }
        assert_eq!(breaker.enter(at(40)), Ok(()));
    }
}
