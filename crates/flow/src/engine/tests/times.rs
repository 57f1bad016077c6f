//! How long attempts take, as metrics tell it.

use volary_kernel::{clock, metric::Metrics};

use super::*;
use crate::{Context, engine::testing::*, error::NodeError};

/// The value of a series of this test's flow; 0 if there is none.
fn series(metrics: &Metrics, name: &str, labels: &str) -> f64 {
    let text = metrics.encode_text();
    let start = format!("volary_flow_{name}{{flow=\"test\",{labels}}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&start));
    value.map_or(0.0, |value| value.parse().unwrap())
}

/// Attempts of a node that succeeded, as counted and as timed.
fn counted_and_timed(metrics: &Metrics, node: &str) -> (f64, f64) {
    let tenant = format!("node=\"{node}\",tenant=\"other\"");
    let counted = series(metrics, "node_success_total", &tenant);
    let outcome = format!("node=\"{node}\",outcome=\"success\"");
    (counted, series(metrics, "node_seconds_count", &outcome))
}

fn chain(lengths: usize, fuse: bool) -> (Engine, Metrics) {
    let mut plan = TestPlan::new();
    let nodes: Vec<_> = (0..lengths)
        .map(|n| plan.call(&format!("n{n}"), pass))
        .collect();
    plan.chain(&nodes);
    let config = RunConfig {
        fuse,
        ..RunConfig::default()
    };
    let metrics = config.metrics.clone();
    (Engine::start(Arc::new(plan.build()), config), metrics)
}

#[tokio::test(start_paused = true)]
async fn one_message_is_one_time_of_each_node() {
    for fuse in [true, false] {
        let (engine, metrics) = chain(2, fuse);
        for sent in 1..=3_u32 {
            read(engine.emit(envelope(1)).await.unwrap()).await;
            settle().await;
            let sent = f64::from(sent);
            for node in ["n0", "n1"] {
                assert_eq!(counted_and_timed(&metrics, node), (sent, sent), "{node}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn times_are_as_many_as_attempts_however_many_come_at_once() {
    for (nodes, fuse) in [(1, true), (2, true), (3, true), (2, false)] {
        let (engine, metrics) = chain(nodes, fuse);
        let mut readers = Vec::new();
        for n in 0..500 {
            readers.push(engine.emit(envelope(n)).await.unwrap());
        }
        for reader in readers {
            read(reader).await;
        }
        settle().await;
        for node in 0..nodes {
            let node = format!("n{node}");
            assert_eq!(counted_and_timed(&metrics, &node), (500.0, 500.0), "{node}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn attempts_that_wait_or_fail_are_each_timed_once_beside_those_that_do_not() {
    let mut plan = TestPlan::new();
    let node = plan.call("n0", |n: u64, _: Context| async move {
        match n % 3 {
            0 => clock::sleep(2 * S).await,
            1 => return Err(NodeError::permanent("no")),
            _ => {}
        }
        Ok(next(n))
    });
    plan.policy(node).concurrency = 8;
    plan.chain(&[node]);
    let config = RunConfig::default();
    let metrics = config.metrics.clone();
    let engine = Engine::start(Arc::new(plan.build()), config);
    let mut readers = Vec::new();
    for n in 0..30 {
        readers.push(engine.emit(envelope(n)).await.unwrap());
    }
    for reader in readers {
        read(reader).await;
    }
    settle().await;
    assert_eq!(counted_and_timed(&metrics, "n0"), (20.0, 20.0));
    let of = |what: &str, end: &str| {
        let labels = format!("node=\"n0\",outcome=\"{end}\"");
        series(&metrics, &format!("node_seconds_{what}"), &labels)
    };
    assert_eq!(of("count", "error"), 10.0);
    // Ten waited two seconds each; what did not wait took none.
    assert_eq!(of("sum", "success"), 20.0);
}
