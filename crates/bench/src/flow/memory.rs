//! `flow.memory`: live bytes of each of 10,000 traces that wait in front of a node, its handle included; `flow.leak`: live
//! bytes that stay of each finished trace. Both as asked of the allocator, which counts (see [`super::alloc`]).
//!
//! For the leak, a flow is warmed up, then runs as many traces again and again; what the last of those added is divided by
//! their number. Tables that grow to a bound have grown by then; anything kept for each trace shows.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use volary_flow::graph::{FlowBuilder, RunningFlow};
use volary_flow::{Context, NodeError};
use volary_kernel::clock;

use super::alloc::Count;
use super::load::{Envelopes, Service as _};
use super::ours;
use super::recorded::{LEAKED_BYTES, QUEUED_BYTES};
use crate::figure::Figure;
use crate::rounds::{ROUNDS, Samples};
use crate::{Failure, Plan};

/// Traces that wait.
const QUEUED: usize = 10_000;
/// Most bytes of each.
const ALLOWED: f64 = 1_024.0;
/// Traces ahead of the one that is waited for, while the leak is looked for.
const AHEAD: usize = 64;

pub fn measure(plan: &Plan) -> Result<Vec<Figure>, Failure> {
    let queued = (0..ROUNDS)
        .map(|_| queued())
        .collect::<Result<Samples, _>>()?;
    let many = if plan.quick { 50_000 } else { 200_000 };
    let leaked = (0..ROUNDS)
        .map(|_| leaked(many))
        .collect::<Result<Samples, _>>()?;
    Ok(vec![
        Figure::cost("flow.memory", "B/trace", ALLOWED, &queued).recorded(QUEUED_BYTES),
        Figure::none("flow.leak", "B/trace", &leaked).recorded(LEAKED_BYTES),
    ])
}

/// Bytes of each trace that waits.
fn queued() -> Result<f64, Failure> {
    let gate = Arc::new(Semaphore::new(0));
    let closed = gate.clone();
    let mut builder = FlowBuilder::<u64, u64>::new("queued");
    let node = builder.node("gate", move |number: u64, _: Context| {
        let gate = closed.clone();
        async move {
            let _open = gate.acquire().await?;
            Ok::<u64, NodeError>(number)
        }
    });
    builder.queue(node, 2 * QUEUED);
    builder.ingress(node);
    builder.egress(node);
    let flow = builder.build()?;
    crate::store::runtime()?.block_on(async {
        let running = flow.start(ours::observed(true).0);
        let envelopes = Envelopes::new();
        let mut handles = Vec::with_capacity(QUEUED + 1);
        handles.push(running.emit(envelopes.make(0)).await?);
        settle().await;
        let count = Count::start();
        for number in 0..QUEUED {
            handles.push(running.emit(envelopes.make(number as u64)).await?);
        }
        settle().await;
        let live = count.live();
        drop(count);
        gate.add_permits(1);
        for handle in handles {
            RunningFlow::<u64, u64>::answer(handle).await;
        }
        ours::stop(&running).await?;
        Ok(live as f64 / QUEUED as f64)
    })
}

/// Bytes that stay of each finished trace.
fn leaked(many: u64) -> Result<f64, Failure> {
    let flow = ours::chain(3)?;
    crate::store::runtime()?.block_on(async {
        let running = flow.start(ours::observed(true).0);
        let count = Count::start();
        run(&running, many).await?;
        run(&running, many).await?;
        let before = count.live();
        run(&running, many).await?;
        let live = count.live() - before;
        drop(count);
        ours::stop(&running).await?;
        Ok(live as f64 / many as f64)
    })
}

/// Runs that many traces until each is answered.
async fn run(running: &RunningFlow<u64, u64>, many: u64) -> Result<(), Failure> {
    let envelopes = Envelopes::new();
    let mut waiting = VecDeque::with_capacity(AHEAD);
    for number in 0..many {
        if waiting.len() == AHEAD
            && let Some(oldest) = waiting.pop_front()
        {
            RunningFlow::<u64, u64>::answer(oldest).await;
        }
        waiting.push_back(running.emit(envelopes.make(number)).await?);
    }
    for pending in waiting {
        RunningFlow::<u64, u64>::answer(pending).await;
    }
    settle().await;
    Ok(())
}

/// Lets the flow's own tasks do what they have left: they look at their wheels within a few of their ticks.
async fn settle() {
    clock::sleep(Duration::from_millis(30)).await;
}
