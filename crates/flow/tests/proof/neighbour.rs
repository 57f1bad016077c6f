//! A noisy neighbour: what one tenant does is not felt by another beyond one service time per node.

use std::time::Duration;

use futures_util::future;
use volary_flow::{Context, Flow, FlowBuilder, NodeError, graph::RunningFlow, policy::NodePolicy};
use volary_kernel::{Clock as _, SystemClock, clock};

use crate::support::{MS, config, ms, of, soon};

type Running = RunningFlow<u64, u64>;

/// Payload of which every attempt fails.
const BAD: u64 = 666;

/// What a node takes for one message.
const SERVICE: Duration = MS;

/// A chain of nodes that take a millisecond each.
fn chain(nodes: u32, policy: &NodePolicy) -> Flow<u64, u64> {
    let mut b = FlowBuilder::<u64, u64>::new("chain");
    let mut last = None;
    for at in 0..nodes {
        let node = b.node(format!("n{at}"), |n: u64, _: Context| async move {
            clock::sleep(SERVICE).await;
            if n == BAD {
                return Err(NodeError::retryable("down"));
            }
            Ok(n)
        });
        b.policy(node, policy.clone());
        match last {
            None => b.ingress(node),
            Some(last) => b.connect(last, node),
        };
        last = Some(node);
    }
    if let Some(last) = last {
        b.egress(last);
    }
    b.build().expect("it is a good graph")
}

/// Latencies of the quiet tenant: a request each 7 ms or so, sorted.
async fn quiet(flow: &Running) -> Vec<Duration> {
    let mut took = Vec::new();
    for n in 0..200 {
        clock::sleep(ms(5 + n % 5)).await;
        let began = SystemClock.mono();
        let emitted = soon("emit", flow.emit(of("bob", n))).await;
        let handle = emitted.expect("it is accepted");
        let outcome = soon("its end", handle.outcome()).await;
        assert!(outcome.is_done(), "{outcome:?}");
        took.push(SystemClock.mono() - began);
    }
    took.sort_unstable();
    took
}

/// 2,000 requests of the noisy tenant, all emitted at once, their ends read.
async fn noisy(flow: &Running, payload: u64) {
    let all = (0..2_000).map(|_| async {
        let emitted = flow.emit(of("ann", payload)).await;
        let handle = emitted.expect("it is accepted");
        handle.outcome().await.is_done()
    });
    let done = soon("the noisy tenant", future::join_all(all)).await;
    assert_eq!(done.iter().all(|done| *done), payload != BAD);
}

fn p99(sorted: &[Duration]) -> Duration {
    sorted[sorted.len() * 99 / 100]
}

/// The quiet tenant's p99 beside a noisy one stays within the bar.
async fn holds(nodes: u32, policy: NodePolicy, payload: u64, fuse: bool) {
    let start = || {
        let mut settings = config();
        settings.fuse = fuse;
        chain(nodes, &policy).start(settings)
    };
    let alone = p99(&quiet(&start()).await);
    let flow = start();
    let (beside, ()) = future::join(quiet(&flow), noisy(&flow, payload)).await;
    let beside = p99(&beside);
    // The clock of a paused runtime has steps of 1 ms: one of them is no more than that.
    let bar = (alone + SERVICE * nodes).mul_f64(1.2) + MS;
    assert!(
        beside <= bar,
        "{nodes} nodes: alone {alone:?}, beside {beside:?}, bar {bar:?}"
    );
    assert!(alone >= SERVICE * nodes, "{alone:?}");
}

#[tokio::test(start_paused = true)]
async fn a_tenant_that_floods_is_not_felt_by_another() {
    for fuse in [true, false] {
        holds(1, NodePolicy::default(), 1, fuse).await;
        holds(3, NodePolicy::default(), 1, fuse).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_tenant_whose_calls_fail_with_retries_is_not_felt_by_another() {
    let policy = NodePolicy {
        max_retries: 2,
        ..NodePolicy::default()
    };
    for fuse in [true, false] {
        holds(1, policy.clone(), BAD, fuse).await;
        holds(3, policy.clone(), BAD, fuse).await;
    }
}
