//! When each message of a replay is due (pure).

use std::{fmt, str::FromStr, time::Duration};

use volary_kernel::clock::{Mono, Timestamp};

/// How fast recorded time goes by.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Speed {
    /// Without waiting. The default.
    #[default]
    Max,
    /// So many times as fast as it was recorded; above 0.
    Times(f64),
}

/// A text is no [`Speed`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a speed is `max` or a factor above 0 like `1x` or `10x`, found `{0}`")]
pub struct SpeedError(String);

impl FromStr for Speed {
    type Err = SpeedError;
    fn from_str(text: &str) -> Result<Self, SpeedError> {
        if text == "max" {
            return Ok(Self::Max);
        }
        let factor: Option<f64> = text.strip_suffix('x').unwrap_or(text).parse().ok();
        factor
            .filter(|factor| factor.is_finite() && *factor > 0.0)
            .map(Self::Times)
            .ok_or_else(|| SpeedError(text.chars().take(40).collect()))
    }
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Max => f.write_str("max"),
            Self::Times(factor) => write!(f, "{factor}x"),
        }
    }
}

/// Keeps the recorded distances. The first message is due at once; a later one when as much time has gone by since
/// then as was recorded, divided by the speed. So waits do not add up to a drift, and a slow receiver is caught up with.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    speed: Speed,
    start: Option<(Timestamp, Mono)>,
}

impl Pace {
    /// At this speed.
    pub const fn new(speed: Speed) -> Self {
        Self { speed, start: None }
    }

    /// How long to wait at `now` before the message recorded at `at` is fed. A clock that was set back costs no wait.
    pub fn wait(&mut self, at: Timestamp, now: Mono) -> Duration {
        let Speed::Times(factor) = self.speed else {
            return Duration::ZERO;
        };
        let (first, began) = *self.start.get_or_insert((at, now));
        let seconds = at.since(first).as_secs_f64() / factor;
        let due = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        due.saturating_sub(now - began)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn now(seconds: u64) -> Mono {
        Mono::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn waits_keep_the_recorded_distances_and_do_not_drift() {
        let mut pace = Pace::new(Speed::Times(10.0));
        assert_eq!(pace.wait(at(100), now(5)), Duration::ZERO);
        assert_eq!(pace.wait(at(130), now(5)), Duration::from_secs(3));
        assert_eq!(pace.wait(at(130), now(8)), Duration::ZERO);
        assert_eq!(pace.wait(at(140), now(8)), Duration::from_secs(1));
        assert_eq!(pace.wait(at(90), now(9)), Duration::ZERO, "clock set back");
        assert_eq!(pace.wait(at(150), now(60)), Duration::ZERO, "late");
        assert_eq!(Pace::new(Speed::Max).wait(at(1), now(0)), Duration::ZERO);
    }

    #[test]
    fn speeds_are_read_and_bad_ones_refused() {
        assert_eq!("max".parse(), Ok(Speed::Max));
        assert_eq!("10x".parse(), Ok(Speed::Times(10.0)));
        assert_eq!("0.5".parse(), Ok(Speed::Times(0.5)));
        for text in ["", "x", "0x", "-1x", "nan", "infx", "1e400"] {
            assert!(text.parse::<Speed>().is_err(), "{text}");
        }
    }
}
