//! `tcp.tls_unsealed`, `tcp.tls_sealed64`, `tcp.idle`: messages over one TLS connection on loopback, on a runtime of two
//! workers.
//!
//! | figure | ours | limit |
//! |---|---|---|
//! | `tls_unsealed` | 304 B messages in batches of 64, answered one by one | the same bytes, one way, nobody answers ([`raw`]) |
//! | `tls_sealed64` | real messages, sealed in frames of 64, verified, decoded, answered | the slower of [`raw`] and the bare crypto and codec of `sign` |
//! | `idle` | one message there, its answer back | twice the raw round trip |
//!
//! The raw side has the same TLS (raw public keys, the same ciphers) and flushes where ours does: after 64 messages, or
//! after each when idle. It has no window, no answers, no time limits, no reconnecting.

mod ours;
mod raw;

use std::future::Future;
use std::time::Duration;

use volary_kernel::clock::{Clock as _, Mono, SystemClock};

use crate::figure::{Figure, rounded};
use crate::rounds::interleaved;
use crate::{Failure, Plan};

/// Bytes of one message on the wire.
pub const MESSAGE: usize = 304;
/// Messages between two flushes.
pub const BATCH: usize = 64;

pub fn measure(plan: &Plan) -> Result<Vec<Figure>, Failure> {
    let batches = if plan.quick { 4_000 } else { 40_000 };
    let time = Duration::from_millis(if plan.quick { 300 } else { 2_000 });
    let trips = if plan.quick { 3_000 } else { 20_000 };
    let [unsealed, sealed, limit, bare] = interleaved([
        &mut || rate(batches, ours::unsealed),
        &mut || rate(batches / 4, ours::sealed),
        &mut || rate(batches, raw::one_way),
        &mut || crate::sign::bare_rate(time),
    ])?;
    let slower = if bare.median() < limit.median() {
        &bare
    } else {
        &limit
    };
    let [idle, idle_sealed, raw_idle] = interleaved([
        &mut || run(ours::round_trips(trips)),
        &mut || run(ours::sealed_round_trips(trips)),
        &mut || run(raw::round_trips(trips)),
    ])?;
    Ok(vec![
        Figure::rate("tcp.tls_unsealed", "msg/s", 0.8, &unsealed).against_limit(&limit),
        Figure::rate("tcp.tls_sealed64", "msg/s", 0.8, &sealed)
            .against_limit(slower)
            .with("raw_tls", rounded(limit.median()))
            .with("bare_crypto", rounded(bare.median())),
        Figure::cost("tcp.idle", "µs", 2.0 * raw_idle.median(), &idle)
            .with("raw", rounded(raw_idle.median()))
            .with("sealed", rounded(idle_sealed.median())),
    ])
}

/// Messages per second of a run of that many batches.
fn rate<F>(batches: usize, measured: impl FnOnce(usize) -> F) -> Result<f64, Failure>
where
    F: Future<Output = Result<Duration, Failure>> + Send + 'static,
{
    let passed = run(measured(batches))?;
    Ok((batches * BATCH) as f64 / passed)
}

/// Seconds (or whatever the run says) on a fresh runtime.
fn run<F, T>(measured: F) -> Result<f64, Failure>
where
    F: Future<Output = Result<T, Failure>> + Send + 'static,
    T: Into<Value> + Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let value = runtime.block_on(async { crate::bus::background(measured).await? })?;
    runtime.shutdown_timeout(Duration::from_secs(2));
    Ok(value.into().0)
}

/// What a run gives, as a number.
struct Value(f64);

impl From<Duration> for Value {
    fn from(duration: Duration) -> Self {
        Self(duration.as_secs_f64())
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self(value)
    }
}

/// How long round trips took.
struct Trips(Vec<Duration>);

impl Trips {
    fn new(trips: usize) -> Self {
        Self(Vec::with_capacity(trips))
    }

    fn start() -> Mono {
        SystemClock.mono()
    }

    fn end(&mut self, start: Mono) {
        self.0.push(SystemClock.mono() - start);
    }

    /// The middle one, in microseconds.
    fn middle(mut self) -> Result<f64, Failure> {
        self.0.sort_unstable();
        let middle = self.0.get(self.0.len() / 2).ok_or("no trips")?;
        Ok(middle.as_secs_f64() * 1e6)
    }
}
