//! Time as a parameter.
//!
//! Decisions take `now`; only the outermost loop asks a [`Clock`]. Two readings exist and never mix:
//! [`Timestamp`] (wall clock, may jump, survives a restart) and [`Mono`] (never goes back, means nothing elsewhere).

use std::{
    fmt,
    future::Future,
    ops::{Add, Sub},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A point of wall-clock time in microseconds since 1970-01-01T00:00:00Z. Its text form is RFC 3339 in UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From microseconds since the epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since the epoch.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Time since `earlier`; zero if the clock went back.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// Saturating, and without the 128-bit division of [`Duration::as_micros`]: this is on the path of every message.
fn micros(duration: Duration) -> i64 {
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    seconds
        .saturating_mul(1_000_000)
        .saturating_add(i64::from(duration.subsec_micros()))
}

impl Add<Duration> for Timestamp {
    type Output = Self;
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(micros(duration)))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;
    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(micros(duration)))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(at) => write!(f, "{at:.6}"),
            Err(_) => write!(f, "{}us", self.0),
        }
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A text is not an RFC 3339 time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("time must be RFC 3339, like 2026-11-21T09:30:00Z, found `{0}`")]
pub struct TimestampError(String);

impl FromStr for Timestamp {
    type Err = TimestampError;
    fn from_str(text: &str) -> Result<Self, TimestampError> {
        let at: jiff::Timestamp = text
            .parse()
            .map_err(|_| TimestampError(text.chars().take(80).collect()))?;
        Ok(Self(at.as_microsecond()))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// A point of monotonic time of one process, in nanoseconds since an arbitrary start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mono(u64);

impl Mono {
    /// From nanoseconds since the arbitrary start (for tests and stored offsets).
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the arbitrary start.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }
}

impl Add<Duration> for Mono {
    type Output = Self;
    fn add(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

impl Sub for Mono {
    type Output = Duration;
    /// Time between two points; zero if `earlier` is later.
    fn sub(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A point of a machine's own time since it was started: all its processes read the same, and it never steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MachineTime {
    /// Which start of which machine; times of different ones mean nothing to each other.
    pub boot: [u8; 16],
    /// Time since then.
    pub at: Mono,
}

/// Where time comes from.
///
/// Contract: both readings are cheap (tens of nanoseconds) and never block; [`Clock::mono`] never decreases within a
/// process; [`Clock::wall`] may jump either way, so nothing may rely on it for order or for short waits.
pub trait Clock: Send + Sync + 'static {
    /// The wall clock.
    fn wall(&self) -> Timestamp;
    /// The monotonic clock.
    fn mono(&self) -> Mono;
    /// The clock that all processes of this machine share, if there is one.
    fn machine(&self) -> Option<MachineTime> {
        None
    }
}

/// A clock that many parts share.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's clock. Inside a paused tokio runtime its monotonic reading follows the paused time.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl SystemClock {
    /// This clock as a [`SharedClock`].
    pub fn shared() -> SharedClock {
        Arc::new(Self)
    }
}

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the wall clock"
    )]
    fn wall(&self) -> Timestamp {
        let since = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        Timestamp(micros(since))
    }

    fn mono(&self) -> Mono {
        static START: std::sync::OnceLock<tokio::time::Instant> = std::sync::OnceLock::new();
        // One second of head start keeps `now - short` above zero right after the start.
        let start = START.get_or_init(tokio::time::Instant::now);
        Mono::default() + Duration::from_secs(1) + start.elapsed()
    }

    fn machine(&self) -> Option<MachineTime> {
        static BOOT: std::sync::OnceLock<Option<[u8; 16]>> = std::sync::OnceLock::new();
        let boot = *BOOT.get_or_init(|| {
            let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
            let id: uuid::Uuid = text.trim().parse().ok()?;
            Some(id.into_bytes())
        });
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).ok()?;
        let nanos = u64::try_from(now.tv_nsec).ok()?;
        let at = seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
        Some(MachineTime {
            boot: boot?,
            at: Mono::from_nanos(at),
        })
    }
}

/// A clock that moves only when told to. Clones share the same time.
#[derive(Debug, Clone)]
pub struct ManualClock {
    at: Arc<Mutex<(Timestamp, Mono)>>,
}

impl ManualClock {
    /// A clock that starts at `wall`; its monotonic reading starts at one second.
    pub fn new(wall: Timestamp) -> Self {
        Self {
            at: Arc::new(Mutex::new((wall, Mono::from_nanos(1_000_000_000)))),
        }
    }

    /// Moves both readings on.
    pub fn advance(&self, by: Duration) {
        let mut at = self.at.lock();
        *at = (at.0 + by, at.1 + by);
    }

    /// Lets the wall clock jump, either way; the monotonic reading stays.
    pub fn jump_wall(&self, to: Timestamp) {
        self.at.lock().0 = to;
    }

    /// This clock as a [`SharedClock`].
    pub fn shared(&self) -> SharedClock {
        Arc::new(self.clone())
    }
}

/// Starts at 2026-01-01T00:00:00Z.
impl Default for ManualClock {
    fn default() -> Self {
        Self::new(Timestamp::from_micros(1_767_225_600_000_000))
    }
}

impl Clock for ManualClock {
    fn wall(&self) -> Timestamp {
        self.at.lock().0
    }

    fn mono(&self) -> Mono {
        self.at.lock().1
    }

    fn machine(&self) -> Option<MachineTime> {
        Some(MachineTime {
            boot: [1; 16],
            at: self.mono(),
        })
    }
}

/// Notices when somebody sets the wall clock: it has then run otherwise than the monotonic one.
#[derive(Debug, Clone)]
pub struct WallSteps {
    ahead: i64,
    least: Duration,
}

impl WallSteps {
    /// Notices steps of at least `least`, from now on.
    pub fn new(clock: &dyn Clock, least: Duration) -> Self {
        let ahead = Self::ahead(clock);
        Self { ahead, least }
    }

    /// Whether the wall clock was set since this was asked last.
    pub fn stepped(&mut self, clock: &dyn Clock) -> bool {
        let ahead = Self::ahead(clock);
        let step = Duration::from_micros(ahead.abs_diff(self.ahead));
        let is_step = step >= self.least;
        if is_step {
            self.ahead = ahead;
        }
        is_step
    }

    /// How far the wall clock is ahead of the monotonic one, in microseconds.
    fn ahead(clock: &dyn Clock) -> i64 {
        let mono = clock.mono().as_nanos() / 1000;
        clock.wall().as_micros().saturating_sub_unsigned(mono)
    }
}

/// Waits for `duration`. A paused tokio runtime skips the wait. Cancel-safe.
#[expect(clippy::disallowed_methods, reason = "the one wrapped sleep")]
pub async fn sleep(duration: Duration) {
    tokio::time::sleep(duration).await;
}

/// A future did not end within its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("did not finish within {}", crate::text::brief_duration(*.0))]
pub struct Elapsed(
    /// The limit that passed.
    pub Duration,
);

/// Runs `future` for at most `limit`; then drops it.
///
/// # Errors
/// [`Elapsed`] when the limit passed first.
pub async fn timeout<F: Future>(limit: Duration, future: F) -> Result<F::Output, Elapsed> {
    tokio::time::timeout(limit, future)
        .await
        .map_err(|_| Elapsed(limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_read_back_what_they_print() {
        let at = Timestamp::from_micros(1_767_225_600_123_456);
        assert_eq!(at.to_string(), "2026-01-01T00:00:00.123456Z");
        assert_eq!(at.to_string().parse(), Ok(at));
        assert!("yesterday".parse::<Timestamp>().is_err());
    }

    #[test]
    fn a_clock_that_is_set_is_noticed_once_and_time_that_passes_is_no_step() {
        let clock = ManualClock::new(Timestamp::from_micros(1_000_000_000_000));
        let mut steps = WallSteps::new(&clock, Duration::from_secs(10));
        clock.advance(Duration::from_secs(3600));
        assert!(!steps.stepped(&clock));
        for by in [-20_000_000, 20_000_000] {
            clock.jump_wall(Timestamp::from_micros(clock.wall().as_micros() + by));
            assert!(steps.stepped(&clock));
            assert!(!steps.stepped(&clock));
        }
        clock.jump_wall(clock.wall() + Duration::from_secs(9));
        assert!(!steps.stepped(&clock));
        clock.jump_wall(clock.wall() + Duration::from_secs(9));
        assert!(steps.stepped(&clock), "small steps add up");
    }

    #[test]
    fn a_clock_that_went_back_yields_zero_not_an_overflow() {
        let now = Timestamp::from_micros(5);
        assert_eq!(now.since(now + Duration::from_secs(9)), Duration::ZERO);
        assert_eq!(
            Timestamp::from_micros(i64::MAX) + Duration::MAX,
            Timestamp::from_micros(i64::MAX)
        );
    }

    #[test]
    fn a_manual_clock_moves_only_when_told() {
        let clock = ManualClock::default();
        let (wall, mono) = (clock.wall(), clock.mono());
        clock.advance(Duration::from_secs(3));
        assert_eq!(
            (clock.wall().since(wall), clock.mono() - mono),
            (Duration::from_secs(3), Duration::from_secs(3))
        );
        clock.jump_wall(wall);
        assert_eq!(
            (clock.wall(), clock.mono() - mono),
            (wall, Duration::from_secs(3))
        );
    }

    #[test]
    fn the_machines_time_goes_on_and_is_of_one_boot() {
        let (one, two) = (SystemClock.machine(), SystemClock.machine());
        let (one, two) = (one.unwrap(), two.unwrap());
        assert!(one.boot == two.boot && one.at <= two.at && one.at > Mono::default());
    }

    #[tokio::test(start_paused = true)]
    async fn the_system_clock_follows_a_paused_runtime() {
        let before = SystemClock.mono();
        sleep(Duration::from_secs(3600)).await;
        assert!(SystemClock.mono() - before >= Duration::from_secs(3600));
        assert_eq!(
            timeout(Duration::from_secs(1), std::future::pending::<()>()).await,
            Err(Elapsed(Duration::from_secs(1)))
        );
    }
}
