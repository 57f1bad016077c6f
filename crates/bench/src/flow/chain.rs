//! `flow.chain{1,3,10}.{producer,traces}.{fused,unfused}`: no-op nodes in a row, full envelopes, each trace answered.
//!
//! Events are on, to an observer that counts; `events` is how many of them reached it for each trace (they are signals: what
//! is too much for the observer's queue is dropped and counted). Peer: [`super::hand::Chain`], which promises an answer and
//! nothing else. `promised` and `promised_unfused` are the same runs against the hand-written chain that makes more of a
//! flow's promises ([`super::promised::Chain`]); `penguiflow` is the fused one against PenguiFlow.

use std::time::Duration;

use super::hand;
use super::load::{Load, Service};
use super::ours;
use super::promised;
use super::recorded::CHAINS;
use crate::figure::{Figure, rounded};
use crate::rounds::{Samples, interleaved};
use crate::{Failure, Plan};

/// Ratio to the hand-written chain that fused chains reach.
const FUSED: f64 = 1.0;
/// The same of chains with a task per node.
const UNFUSED: f64 = 0.5;

/// How many times as fast as PenguiFlow.
const fn times(nodes: usize) -> f64 {
    if nodes == 1 { 100.0 } else { 200.0 }
}

pub fn measure(plan: &Plan) -> Result<Vec<Figure>, Failure> {
    let time = Duration::from_millis(if plan.quick { 80 } else { 500 });
    let mut figures = Vec::new();
    for (nodes, recorded, _) in CHAINS {
        for load in Load::ALL {
            figures.extend(one(nodes, load, time, recorded)?);
        }
    }
    Ok(figures)
}

fn one(nodes: usize, load: Load, time: Duration, recorded: f64) -> Result<[Figure; 5], Failure> {
    let (mut seen_fused, mut seen_unfused) = (Vec::new(), Vec::new());
    let mut seen_promised = Vec::new();
    let [fused, unfused, peer, promised] = interleaved([
        &mut || flow_rate(nodes, true, load, time, &mut seen_fused),
        &mut || flow_rate(nodes, false, load, time, &mut seen_unfused),
        &mut || hand_rate(load, time, || hand::Chain::start(nodes)),
        &mut || promised_rate(nodes, load, time, &mut seen_promised),
    ])?;
    let name = format!("flow.chain{nodes}.{}", load.as_str());
    let figure = |way: &str, bar: f64, ours: &Samples, seen: Vec<f64>| {
        let seen: Samples = seen.into_iter().collect();
        Figure::rate(format!("{name}.{way}"), "trace/s", bar, ours)
            .against_peer(&peer)
            .with("events", rounded(seen.median()))
    };
    let pengui = Figure::rate(
        format!("{name}.penguiflow"),
        "trace/s",
        times(nodes),
        &fused,
    );
    let seen_promised: Samples = seen_promised.into_iter().collect();
    let kept = |way: &str, bar: f64, ours: &Samples| {
        Figure::rate(format!("{name}.{way}"), "trace/s", bar, ours)
            .against_peer(&promised)
            .with("peer_events", rounded(seen_promised.median()))
    };
    Ok([
        figure("fused", FUSED, &fused, seen_fused),
        figure("unfused", UNFUSED, &unfused, seen_unfused),
        kept("promised", FUSED, &fused),
        kept("promised_unfused", UNFUSED, &unfused),
        pengui.against_recorded(recorded),
    ])
}

/// Answers per second of a flow of ours on a fresh runtime, and the events that its observer saw of each trace.
fn flow_rate(
    nodes: usize,
    fuse: bool,
    load: Load,
    time: Duration,
    seen: &mut Vec<f64>,
) -> Result<f64, Failure> {
    let flow = ours::chain(nodes)?;
    crate::store::runtime()?.block_on(async {
        let (config, counting) = ours::observed(fuse);
        let running = flow.start(config);
        let rate = load.run(running.clone(), time).await?;
        ours::stop(&running).await?;
        seen.push(counting.seen() as f64 / (rate * time.as_secs_f64()));
        Ok(rate)
    })
}

/// The same of the hand-written chain that keeps more promises.
fn promised_rate(
    nodes: usize,
    load: Load,
    time: Duration,
    seen: &mut Vec<f64>,
) -> Result<f64, Failure> {
    crate::store::runtime()?.block_on(async {
        let chain = promised::Chain::start(nodes)?;
        let rate = load.run(chain.clone(), time).await?;
        seen.push(chain.seen() as f64 / (rate * time.as_secs_f64()));
        Ok(rate)
    })
}

/// Answers per second of something written by hand, on a fresh runtime.
pub fn hand_rate<S: Service>(
    load: Load,
    time: Duration,
    start: impl FnOnce() -> S,
) -> Result<f64, Failure> {
    crate::store::runtime()?.block_on(async { load.run(start(), time).await })
}
