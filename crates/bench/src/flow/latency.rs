//! `flow.latency.{100,half}.{p50,p99}`: a chain of three nodes under an open loop, 100 traces a second and half of what one
//! producer got through it just before.
//!
//! Traces are due by a fixed plan, whatever became of the earlier ones, and each one's latency counts from the moment it was
//! due: a late emission, a full queue and a late reader are all in it (no co-ordinated omission). A thread of its own keeps
//! the plan; it sleeps until shortly before the next is due, because a timer of tokio is a millisecond coarse. Where the next
//! is always due sooner than that it sleeps for as long and then emits all that became due, each late by up to that time: a
//! thread that spins all the time would take one of the two cores from what is measured.
//!
//! Allowed at 100 traces a second: what PenguiFlow took at the same rate. At half of the capacity, which is a hundred times
//! what it can do at all: 1 ms in the middle, 10 ms for the 99th of 100.

use std::time::Duration;

use tokio::sync::mpsc;
use volary_flow::graph::{RunningFlow, TraceHandle};
use volary_kernel::clock::{Clock as _, Mono, SystemClock};

use super::load::{Envelopes, Load, Service as _};
use super::ours;
use super::recorded::LATENCY;
use crate::bus::background;
use crate::figure::Figure;
use crate::rounds::{ROUNDS, Samples};
use crate::{Failure, Plan};

/// Traces that were emitted and that the reader has not come to: more than a second of them.
const UNREAD: usize = 1 << 21;
/// How early the thread wakes, as a sleeping thread is some ten microseconds late; and how long it sleeps at least.
const EARLY: Duration = Duration::from_micros(150);

pub fn measure(plan: &Plan) -> Result<Vec<Figure>, Failure> {
    let slow = Duration::from_millis(if plan.quick { 1_000 } else { 5_000 });
    let fast = Duration::from_millis(if plan.quick { 200 } else { 1_000 });
    let mut figures = figures("flow.latency.100", LATENCY, || round(Some(100.0), slow))?;
    figures[0] = figures[0].clone().with("allowance", "PenguiFlow, recorded");
    let [p50, p99] = [1_000.0, 10_000.0];
    figures.extend(self::figures("flow.latency.half", (p50, p99), || {
        round(None, fast)
    })?);
    Ok(figures)
}

/// Runs the rounds of one rate, and makes its two figures.
fn figures(
    name: &str,
    (allowed50, allowed99): (f64, f64),
    mut round: impl FnMut() -> Result<Round, Failure>,
) -> Result<Vec<Figure>, Failure> {
    let (mut p50, mut p99, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    for index in 0..=ROUNDS {
        let mut round = round()?;
        // The first round only warms up.
        if index > 0 {
            round.micros.sort_by(f64::total_cmp);
            p50.push(quantile(&round.micros, 0.5));
            p99.push(quantile(&round.micros, 0.99));
            rates.push(round.rate);
        }
    }
    let rate: Samples = rates.into_iter().collect();
    let rate = crate::figure::rounded(rate.median());
    let figure = |which: &str, allowed: f64, values: Vec<f64>| {
        let values: Samples = values.into_iter().collect();
        Figure::cost(format!("{name}.{which}"), "µs", allowed, &values).with("rate", rate.clone())
    };
    Ok(vec![
        figure("p50", allowed50, p50),
        figure("p99", allowed99, p99),
    ])
}

/// The value at a share of sorted ones.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let at = (last as f64 * share).ceil() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// What came of one round.
struct Round {
    /// Traces per second that were due.
    rate: f64,
    /// Latency of each, in microseconds.
    micros: Vec<f64>,
}

/// One round at that rate; half of the capacity without one.
fn round(rate: Option<f64>, time: Duration) -> Result<Round, Failure> {
    let flow = ours::chain(3)?;
    let runtime = crate::store::runtime()?;
    runtime.block_on(async {
        let (config, _) = ours::observed(true);
        let running = flow.start(config);
        let rate = match rate {
            Some(rate) => rate,
            None => Load::Producer.run(running.clone(), time / 2).await? / 2.0,
        };
        let (emitted, unread) = mpsc::channel(UNREAD);
        let reading = background(read(unread));
        let (handle, emitting) = (tokio::runtime::Handle::current(), running.clone());
        let plan =
            tokio::task::spawn_blocking(move || emit(&handle, &emitting, &emitted, rate, time));
        plan.await??;
        let micros = reading.await?;
        ours::stop(&running).await?;
        Ok(Round { rate, micros })
    })
}

type Emitted = (Mono, TraceHandle<u64>);

/// Keeps the plan: emits what is due, and nothing before.
fn emit(
    runtime: &tokio::runtime::Handle,
    running: &RunningFlow<u64, u64>,
    emitted: &mpsc::Sender<Emitted>,
    rate: f64,
    time: Duration,
) -> Result<(), Failure> {
    let (envelopes, start) = (Envelopes::new(), SystemClock.mono());
    let count = (rate * time.as_secs_f64()) as u64;
    for number in 0..count {
        let due = start + Duration::from_secs_f64(number as f64 / rate);
        wait_until(due, rate * EARLY.as_secs_f64() > 1.0);
        let pending = runtime.block_on(running.emit(envelopes.make(number)))?;
        let sent = emitted.try_send((due, pending));
        sent.map_err(|_| "the reader is more than a second late")?;
    }
    Ok(())
}

/// Sleeps for most of the time and spins for the rest; where traces are `dense` it sleeps on.
#[expect(
    clippy::disallowed_methods,
    reason = "this is no test: what is measured are microseconds of real time"
)]
fn wait_until(due: Mono, dense: bool) {
    let wait = due - SystemClock.mono();
    if dense && !wait.is_zero() {
        std::thread::sleep(EARLY);
        return;
    }
    if wait > EARLY {
        std::thread::sleep(wait - EARLY);
    }
    while SystemClock.mono() < due {
        std::hint::spin_loop();
    }
}

/// Waits for each in turn, and tells how long it took since it was due, in microseconds.
async fn read(mut unread: mpsc::Receiver<Emitted>) -> Vec<f64> {
    let mut micros = Vec::new();
    while let Some((due, pending)) = unread.recv().await {
        RunningFlow::<u64, u64>::answer(pending).await;
        micros.push((SystemClock.mono() - due).as_secs_f64() * 1e6);
    }
    micros
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(quantile(&values, 0.5), 51.0);
        assert_eq!(quantile(&values, 0.99), 100.0);
        assert_eq!(quantile(&[7.0], 0.99), 7.0);
        assert!(quantile(&[], 0.5).is_nan());
    }
}
