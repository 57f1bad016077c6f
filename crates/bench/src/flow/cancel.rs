//! `flow.cancel10k.one`: one cancel of a trace that waits among 10,000 of others; `flow.cancel10k.all`: all of them
//! cancelled, one after the other, per second, each one's end awaited.
//!
//! Allowed for one: a fiftieth of what PenguiFlow takes for it; all: 100 times as fast as it.

use std::sync::Arc;

use tokio::sync::Semaphore;
use volary_flow::graph::{Flow, FlowBuilder, TraceHandle};
use volary_flow::{Context, NodeError, Outcome};
use volary_kernel::Tenant;
use volary_kernel::clock::{Clock as _, SystemClock};

use super::load::Envelopes;
use super::ours;
use super::recorded::CANCEL;
use crate::figure::{Figure, rounded};
use crate::rounds::{ROUNDS, Samples};
use crate::{Failure, Plan};

/// Traces that wait.
const QUEUED: usize = 10_000;
/// Cancels that are timed one by one, spread over the queue.
const SINGLE: usize = 100;

pub fn measure(_: &Plan) -> Result<Vec<Figure>, Failure> {
    let (mut one, mut all) = (Vec::new(), Vec::new());
    for index in 0..=ROUNDS {
        let round = round()?;
        // The first round only warms up.
        if index > 0 {
            one.push(round.0);
            all.push(round.1);
        }
    }
    let (one, all): (Samples, Samples) = (one.into_iter().collect(), all.into_iter().collect());
    Ok(vec![
        Figure::cost("flow.cancel10k.one", "µs", CANCEL / 50.0, &one).recorded(CANCEL),
        Figure::rate("flow.cancel10k.all", "cancel/s", 100.0, &all)
            .against_recorded(1e6 / CANCEL)
            .with("each_us", rounded(1e6 / all.median())),
    ])
}

/// A node that lets nobody through.
fn flow(gate: &Arc<Semaphore>) -> Result<Flow<u64, u64>, Failure> {
    let gate = gate.clone();
    let mut builder = FlowBuilder::<u64, u64>::new("cancelled");
    let node = builder.node("gate", move |number: u64, _: Context| {
        let gate = gate.clone();
        async move {
            let _open = gate.acquire().await?;
            Ok::<u64, NodeError>(number)
        }
    });
    builder.queue(node, 2 * QUEUED);
    builder.ingress(node);
    builder.egress(node);
    Ok(builder.build()?)
}

/// Microseconds of one cancel (the median), and cancels per second of all.
fn round() -> Result<(f64, f64), Failure> {
    let gate = Arc::new(Semaphore::new(0));
    let flow = flow(&gate)?;
    crate::store::runtime()?.block_on(async {
        let running = flow.start(ours::observed(true).0);
        let (envelopes, tenant) = (Envelopes::new(), Tenant::default());
        let mut handles = Vec::with_capacity(QUEUED + SINGLE);
        for number in 0..QUEUED + SINGLE {
            handles.push(running.emit(envelopes.make(number as u64)).await?);
        }
        let mut micros = Vec::with_capacity(SINGLE);
        for index in 0..SINGLE {
            // From all over the queue, and never the one that runs.
            let at = 1 + (index * 97) % (handles.len() - 1);
            let handle = handles.swap_remove(at);
            let start = SystemClock.mono();
            let report = running.cancel(handle.trace_id(), &tenant);
            micros.push((SystemClock.mono() - start).as_secs_f64() * 1e6);
            if !report.cancelled {
                return Err("a trace that waits was not cancelled".into());
            }
            cancelled(handle).await?;
        }
        let start = SystemClock.mono();
        for handle in &handles {
            running.cancel(handle.trace_id(), &tenant);
        }
        for handle in handles {
            cancelled(handle).await?;
        }
        let passed = (SystemClock.mono() - start).as_secs_f64();
        ours::stop(&running).await?;
        let micros: Samples = micros.into_iter().collect();
        Ok((micros.median(), QUEUED as f64 / passed))
    })
}

/// Waits for the end of a trace that was cancelled.
async fn cancelled(handle: TraceHandle<u64>) -> Result<(), Failure> {
    match handle.outcome().await {
        Outcome::Cancelled => Ok(()),
        other => Err(format!("a cancelled trace ended as {}", other.as_str()).into()),
    }
}
