//! `flow.neighbour.{flooding,failing}`: a quiet tenant that sends one trace at a time through three nodes of 1 ms each, one
//! at a time each, in real time: alone, beside a tenant that has 2,000 traces there all the time, and beside one whose
//! traces fail and are tried again.
//!
//! Allowed: the 99th of 100 of the quiet tenant alone, one service time for each node (what runs there is not thrown out),
//! and a fifth more. The service time is the quiet tenant's own middle latency alone ÷ 3: a timer of 1 ms takes up to 2 ms.
//! Beside it, what PenguiFlow's quiet tenant waited, in milliseconds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use volary_flow::graph::{Flow, FlowBuilder, RunningFlow};
use volary_flow::policy::NodePolicy;
use volary_flow::{Context, NodeError};
use volary_kernel::Tenant;
use volary_kernel::clock::{self, Clock as _, SystemClock};
use volary_kernel::retry::Backoff;

use super::latency::quantile;
use super::load::{Envelopes, Service as _};
use super::ours;
use super::recorded::NEIGHBOUR;
use crate::bus::background;
use crate::figure::{Figure, rounded};
use crate::rounds::{Samples, interleaved};
use crate::{Failure, Plan};

/// How long a node works.
const SERVICE: Duration = Duration::from_millis(1);
/// Nodes in a row.
const NODES: usize = 3;
/// Traces of the loud tenant at once.
const LOUD: usize = 2_000;
/// Traces of the failing tenant at once.
const FAILING: usize = 20;

/// Who is beside the quiet tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beside {
    Nobody,
    Flooding,
    Failing,
}

pub fn measure(plan: &Plan) -> Result<Vec<Figure>, Failure> {
    let traces = if plan.quick { 40 } else { 200 };
    let (mut alone, mut flooded, mut failing) = (Vec::new(), Vec::new(), Vec::new());
    let [_, _, _] = interleaved([
        &mut || round(Beside::Nobody, traces, &mut alone),
        &mut || round(Beside::Flooding, traces, &mut flooded),
        &mut || round(Beside::Failing, traces, &mut failing),
    ])?;
    let service = median_of(&alone, 0.5) / NODES as f64;
    let alone = median_of(&alone, 0.99);
    let allowed = (alone + NODES as f64 * service) * 1.2;
    let figure = |name: &str, rounds: &[Vec<f64>], recorded: f64| {
        let ours: Samples = rounds[1..]
            .iter()
            .map(|round| quantile(round, 0.99))
            .collect();
        Figure::cost(format!("flow.neighbour.{name}"), "ms", allowed, &ours)
            .with("alone", rounded(alone))
            .with("service", rounded(service))
            .recorded(recorded * 1_000.0)
    };
    Ok(vec![
        figure("flooding", &flooded, NEIGHBOUR.0),
        figure("failing", &failing, NEIGHBOUR.1),
    ])
}

/// The median over the rounds, the first left out, of each one's value at that share.
fn median_of(rounds: &[Vec<f64>], share: f64) -> f64 {
    let values: Samples = rounds[1..]
        .iter()
        .map(|round| quantile(round, share))
        .collect();
    values.median()
}

/// Works for a while; fails for the tenant that fails.
async fn work(number: u64, context: Context) -> Result<u64, NodeError> {
    clock::sleep(SERVICE).await;
    if context.tenant().as_str() == "failing" {
        return Err(NodeError::retryable("the other side is down"));
    }
    Ok(number)
}

fn flow() -> Result<Flow<u64, u64>, Failure> {
    let policy = NodePolicy {
        max_retries: 3,
        backoff: Backoff {
            base: Duration::from_millis(20),
            ..Backoff::default()
        },
        ..NodePolicy::default()
    };
    let mut builder = FlowBuilder::<u64, u64>::new("neighbours");
    let mut last = builder.node("node-0", work);
    builder.ingress(last);
    builder.policy(last, policy.clone());
    for index in 1..NODES {
        let next = builder.node(format!("node-{index}"), work);
        builder.policy(next, policy.clone());
        builder.connect(last, next);
        last = next;
    }
    builder.egress(last);
    Ok(builder.build()?)
}

/// One round: its latencies in milliseconds, sorted, go to `rounds`; what is returned is its 99th of 100.
fn round(beside: Beside, traces: usize, rounds: &mut Vec<Vec<f64>>) -> Result<f64, Failure> {
    let flow = flow()?;
    let mut millis = crate::store::runtime()?.block_on(async {
        let running = flow.start(ours::observed(true).0);
        let over = Arc::new(AtomicBool::new(false));
        let tasks = match beside {
            Beside::Nobody => Vec::new(),
            Beside::Flooding => keep_busy(&running, "flooding", LOUD, &over)?,
            Beside::Failing => keep_busy(&running, "failing", FAILING, &over)?,
        };
        let quiet = Envelopes::of("quiet".parse()?);
        let mut millis = Vec::with_capacity(traces);
        for number in 0..traces as u64 {
            let start = SystemClock.mono();
            let pending = running.emit(quiet.make(number)).await?;
            RunningFlow::<u64, u64>::answer(pending).await;
            millis.push((SystemClock.mono() - start).as_secs_f64() * 1e3);
        }
        over.store(true, Ordering::Relaxed);
        // What the loud tenant has left is not waited for.
        running.stop(Duration::ZERO).await;
        for task in tasks {
            task.await?;
        }
        Ok::<_, Failure>(millis)
    })?;
    millis.sort_by(f64::total_cmp);
    let p99 = quantile(&millis, 0.99);
    rounds.push(millis);
    Ok(p99)
}

/// Tasks that keep one trace each there until it is over.
fn keep_busy(
    running: &RunningFlow<u64, u64>,
    tenant: &str,
    count: usize,
    over: &Arc<AtomicBool>,
) -> Result<Vec<tokio::task::JoinHandle<()>>, Failure> {
    let tenant: Tenant = tenant.parse()?;
    let task = |_| {
        let (running, envelopes) = (running.clone(), Envelopes::of(tenant.clone()));
        let over = over.clone();
        background(async move {
            while !over.load(Ordering::Relaxed) {
                let Ok(pending) = running.emit(envelopes.make(0)).await else {
                    return;
                };
                // It may well fail: it is only there to be in the way.
                let _ = pending.result().await;
            }
        })
    };
    Ok((0..count).map(task).collect())
}
