//! A retry storm.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use volary_flow::{
    NodeError, Outcome,
    policy::{Breaker, NodePolicy, RetryBudget},
};
use volary_kernel::{Clock as _, SystemClock, retry::Backoff};

use crate::{
    desk::{ANN, Desk, single},
    support::{ms, of, trace},
};

const TRACES: u64 = 200;

/// What came of a flood while the other side is down.
struct Storm {
    /// Calls of the other side.
    calls: u64,
    /// Most of them in one second.
    peak: u64,
    desk: Desk,
}

/// Policies of the time before: a bound that is none, and a short back-off.
fn careless() -> NodePolicy {
    NodePolicy {
        concurrency: 16,
        max_retries: 8,
        backoff: Backoff {
            base: ms(10),
            max: ms(20),
            ..Backoff::default()
        },
        retry_budget: RetryBudget {
            ratio: 100.0,
            reserve: 10_000,
        },
        ..NodePolicy::default()
    }
}

async fn storm(policy: NodePolicy, error: fn() -> NodeError) -> Storm {
    let calls: Arc<Mutex<BTreeMap<u64, u64>>> = Arc::default();
    let told = calls.clone();
    let flow = single(policy, move |_, _| {
        let second = SystemClock.mono().as_nanos() / 1_000_000_000;
        *told.lock().entry(second).or_default() += 1;
        async move { Err(error()) }
    });
    let desk = Desk::start(&flow);
    let outcomes = desk.flood(TRACES, |envelope| envelope).await;
    let failed = |outcome: &Outcome| matches!(outcome, Outcome::Failed(_));
    assert!(outcomes.iter().all(failed), "the other side is down");
    let calls = calls.lock();
    Storm {
        calls: calls.values().sum(),
        peak: calls.values().copied().max().unwrap_or_default(),
        desk,
    }
}

fn down() -> NodeError {
    NodeError::retryable("the other side is down")
}

#[tokio::test(start_paused = true)]
async fn retries_storm() {
    let before = storm(careless(), down).await;
    assert_eq!(before.calls, TRACES * 9);
    let of_node = ["node=\"node\""];
    let retries = before.desk.metric("node_retry_total", &of_node);
    let successes = before.desk.metric("node_success_total", &of_node);
    assert_eq!(retries, 1_600.0);
    assert!(retries > 0.5 * successes, "what the alert asks");
    assert!(before.desk.seen.count("node_retry") > 0);

    // The budget that a policy has unless it says otherwise: 100, and a fifth of the first attempts.
    let policy = NodePolicy {
        retry_budget: RetryBudget::default(),
        ..careless()
    };
    let bounded = storm(policy, down).await;
    assert!(bounded.calls <= TRACES + 140, "{} calls", bounded.calls);

    // Fewer retries.
    let policy = NodePolicy {
        max_retries: 1,
        ..careless()
    };
    assert_eq!(storm(policy, down).await.calls, 2 * TRACES);

    // A longer back-off: as many calls, and far fewer at once.
    let mut policy = careless();
    policy.backoff.base = ms(200);
    policy.backoff.max = ms(5_000);
    let spread = storm(policy, down).await;
    assert_eq!(spread.calls, before.calls);
    assert!(
        spread.peak * 2 < before.peak,
        "{} in a second, {} before",
        spread.peak,
        before.peak
    );

    // What another attempt cannot mend says so.
    let permanent = storm(careless(), || NodeError::permanent("there is no such card")).await;
    assert_eq!(permanent.calls, TRACES);
    assert_eq!(permanent.desk.metric("node_retry_total", &of_node), 0.0);

    // A breaker leaves the other side alone for a while.
    let policy = NodePolicy {
        breaker: Some(Breaker {
            failures: 5,
            open_for: ms(60_000),
        }),
        ..careless()
    };
    let spared = storm(policy, down).await;
    assert!(spared.calls <= 5 + 16, "{} calls", spared.calls);
    spared.desk.seen.wait("breaker_opened", 1).await;
}

#[tokio::test(start_paused = true)]
async fn deliveries_multiply_retries() {
    // A message comes back by the agent's own back-off, here three times, each time as the same trace.
    let calls = async |max_retries| {
        let policy = NodePolicy {
            max_retries,
            ..NodePolicy::default()
        };
        let count: Arc<Mutex<u64>> = Arc::default();
        let counts = count.clone();
        let flow = single(policy, move |_, _| {
            *counts.lock() += 1;
            async move { Err(down()) }
        });
        let desk = Desk::start(&flow);
        for _delivery in 0..3 {
            desk.outcome(of(ANN, 1).trace(trace(1))).await;
        }
        let count = *count.lock();
        let told = desk.metric("node_error_total", &["node=\"node\""]);
        assert_eq!(told, count as f64);
        count
    };
    assert_eq!(calls(4).await, 15);
    assert_eq!(calls(0).await, 3, "one of both is small");
}
