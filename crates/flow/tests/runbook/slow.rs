//! Slow, or timing out.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use volary_flow::{Flow, FlowBuilder, FlowErrorCode, Outcome, policy::NodePolicy};
use volary_kernel::{Clock as _, SystemClock, clock};

use crate::{
    desk::{ANN, Desk, done, single},
    support::{MS, ms, of, soon, until},
};

/// A quick node behind one that takes so long.
fn chain(policy: NodePolicy, takes: Duration) -> Flow<u64, u64> {
    let mut b = FlowBuilder::new("desk");
    let slow = b.node("slow", move |n: u64, _| async move {
        clock::sleep(takes).await;
        Ok(n)
    });
    let quick = b.node("quick", |n: u64, _| async move { Ok(n) });
    b.policy(slow, policy).connect(slow, quick);
    b.ingress(slow).egress(quick);
    b.build().unwrap()
}

fn depth(desk: &Desk, node: &str) -> f64 {
    let node = format!("node=\"{node}\"");
    desk.metric("queue_depth", &[&node, "direction=\"in\""])
}

/// How long it takes until so many traces have ended, and how.
async fn time_of(desk: &Desk, traces: u64) -> (Duration, Vec<Outcome>) {
    let from = SystemClock.mono();
    let outcomes = desk.flood(traces, |envelope| envelope).await;
    (SystemClock.mono() - from, outcomes)
}

fn is_timeout(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Failed(error) if error.code == FlowErrorCode::NodeTimeout)
}

#[tokio::test(start_paused = true)]
async fn what_a_node_calls_has_become_slow() {
    let policy = |timeout, max_retries| NodePolicy {
        timeout: Some(timeout),
        max_retries,
        ..NodePolicy::default()
    };
    // What took 10 ms takes a minute now, and each trace waits for it four times.
    let minute = ms(60_000);
    let slow = Desk::start(&chain(policy(ms(1_000), 3), minute));
    let waiting = slow.flood(8, |envelope| envelope);
    let (gave_up_late, _) = tokio::join!(waiting, async {
        until("a queue that stands", || depth(&slow, "slow") >= 4.0).await;
        assert_eq!(depth(&slow, "quick"), 0.0, "those behind it are idle");
    });
    assert!(gave_up_late.iter().all(is_timeout), "{gave_up_late:?}");
    let timeouts = ["node=\"slow\""];
    assert_eq!(slow.metric("node_timeout_total", &timeouts), 32.0);
    slow.seen.wait("node_timeout", 32).await;
    let timed = ["node=\"slow\"", "outcome=\"timeout\""];
    assert_eq!(slow.metric("node_seconds_count", &timed), 32.0);
    assert!(slow.metric("node_seconds_sum", &timed) >= 32.0);
    let (late, _) = time_of(&slow, 8).await;
    assert!(late >= ms(8 * 4 * 1_000), "{late:?}");

    // A tight timeout and no retries: it fails at once, and does not stand in anybody's way.
    let tight = Desk::start(&chain(policy(ms(50), 0), minute));
    let (early, outcomes) = time_of(&tight, 8).await;
    assert!(outcomes.iter().all(is_timeout), "{outcomes:?}");
    assert!(early < ms(8 * 50 + 20), "{early:?}");
    until("an empty queue", || depth(&tight, "slow") == 0.0).await;
    // What it calls is as quick as it was: the timeout is no hindrance.
    let well = Desk::start(&chain(policy(ms(50), 0), ms(10)));
    assert_eq!(done(&time_of(&well, 8).await.1), 8);
}

#[tokio::test(start_paused = true)]
async fn the_queue_before_a_node_stands() {
    let at_once = |concurrency| NodePolicy {
        concurrency,
        ..NodePolicy::default()
    };
    let narrow = Desk::start(&chain(at_once(1), ms(100)));
    let flood = narrow.flood(20, |envelope| envelope.deadline(ms(500)));
    let (outcomes, ()) = tokio::join!(flood, async {
        until("a queue that stands", || depth(&narrow, "slow") >= 10.0).await;
        assert_eq!(depth(&narrow, "quick"), 0.0);
    });
    assert!(done(&outcomes) <= 5, "{outcomes:?}");

    // What it calls can take more: the node may ask for more at once.
    let wide = Desk::start(&chain(at_once(8), ms(100)));
    let outcomes = wide.flood(20, |envelope| envelope.deadline(ms(500))).await;
    assert_eq!(done(&outcomes), 20);
    until("an empty queue", || depth(&wide, "slow") == 0.0).await;
}

/// Takes the longer the more call it at once, as a database does whose locks are fought for.
#[derive(Default)]
struct Contended(AtomicU64);

struct Calling<'a>(&'a Contended);

impl Contended {
    async fn call(&self) {
        let callers = self.0.fetch_add(1, Ordering::SeqCst) + 1;
        let _until_dropped = Calling(self);
        clock::sleep(40 * MS * u32::try_from(callers).unwrap()).await;
    }
}

impl Drop for Calling<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Timeouts of 32 traces, over so many replicas of this concurrency with one dependency.
async fn timeouts(replicas: usize, concurrency: usize) -> f64 {
    let shared = Arc::new(Contended::default());
    let policy = NodePolicy {
        concurrency,
        timeout: Some(ms(200)),
        ..NodePolicy::default()
    };
    let replica = || {
        let shared = shared.clone();
        let flow = single(policy.clone(), move |n, _| {
            let shared = shared.clone();
            async move {
                shared.call().await;
                Ok(n)
            }
        });
        Desk::start(&flow)
    };
    let desks: Vec<Desk> = (0..replicas).map(|_| replica()).collect();
    let mut handles = Vec::new();
    for n in 0..32 {
        let desk = &desks[usize::try_from(n).unwrap() % replicas];
        handles.push(desk.emit(of(ANN, n)).await);
    }
    let mut late = 0;
    for handle in handles {
        late += u32::from(is_timeout(&soon("an outcome", handle.outcome()).await));
    }
    let told = |desk: &Desk| desk.metric("node_timeout_total", &["node=\"node\""]);
    let told = desks.iter().map(told).sum();
    assert_eq!(f64::from(late), told, "the metric tells each");
    told
}

#[tokio::test(start_paused = true)]
async fn more_callers_make_a_slow_dependency_slower() {
    let late = timeouts(1, 8).await;
    assert!(late > 0.0, "more than five at once are too many");
    // Fewer at once: all come through.
    assert_eq!(timeouts(1, 4).await, 0.0);
    // Replicas come last: they are more callers.
    let late = timeouts(2, 4).await;
    assert!(
        late > 0.0,
        "eight at once are too many, wherever they come from"
    );
    assert_eq!(timeouts(2, 2).await, 0.0);
}
