//! Large graphs: checked, built and run in time that grows with the graph, not with its square.

use volary_kernel::SystemClock;

use super::*;
use crate::{
    Envelope, FlowBuilder,
    graph::{NodeRef, ProblemCode},
};

const NODES: usize = 10_000;

/// What grows with the square of the nodes takes several times as long in a debug build, what does not a twentieth.
const LONG: Duration = S;

fn add(b: &mut FlowBuilder<u64, u64>, at: usize) -> NodeRef<u64, u64> {
    b.node(format!("n{at}"), |n: u64, _| async move { Ok(n + 1) })
}

/// Nodes, one after the other; added from the first to the last, or the other way round.
fn chain(forth: bool) -> FlowBuilder<u64, u64> {
    let mut b = FlowBuilder::new("long");
    let mut all: Vec<_> = (0..NODES).map(|at| add(&mut b, at)).collect();
    if !forth {
        all.reverse();
    }
    for pair in all.windows(2) {
        b.connect(pair[0], pair[1]);
    }
    b.ingress(all[0]).egress(all[NODES - 1]);
    b
}

/// What the fastest of some times took: others use the machine, too.
async fn fastest<T, F: Future<Output = T>>(mut act: impl FnMut() -> F) -> (T, Duration) {
    let clock = SystemClock::shared();
    let mut best = None;
    for _ in 0..3 {
        let from = clock.mono();
        let done = act().await;
        let took = clock.mono() - from;
        if best.as_ref().is_none_or(|(_, before)| took < *before) {
            best = Some((done, took));
        }
    }
    best.unwrap()
}

#[tokio::test]
async fn a_long_chain_is_built_and_run_in_time_that_grows_with_its_length() {
    for forth in [true, false] {
        let (flow, built) = fastest(async || chain(forth).build().unwrap()).await;
        assert!(built < LONG, "it was built in {built:?}");
        for fuse in [true, false] {
            let running = flow.start(RunConfig {
                fuse,
                ..RunConfig::default()
            });
            let (value, run) = fastest(async || running.call(Envelope::new(0)).await).await;
            assert_eq!(value.ok(), Some(NODES as u64));
            assert!(run < LONG, "a trace took {run:?}");
            assert!(running.stop(S).await.is_clean());
        }
    }
}

/// Pairs of nodes that go round, each a way in and out.
fn rounds() -> FlowBuilder<u64, u64> {
    let mut b = FlowBuilder::new("rounds");
    for at in 0..NODES / 2 {
        let (one, two) = (add(&mut b, 2 * at), add(&mut b, 2 * at + 1));
        b.connect(one, two).connect_back(two, one);
        b.ingress(one).egress(two);
    }
    b
}

/// Pairs of nodes that go round and that nothing leads to or from, beside nodes that stand alone.
fn lost() -> FlowBuilder<u64, u64> {
    let mut b = FlowBuilder::new("lost");
    for at in 0..NODES / 3 {
        let (one, two) = (add(&mut b, 3 * at), add(&mut b, 3 * at + 1));
        b.connect(one, two).connect_back(two, one);
        add(&mut b, 3 * at + 2);
    }
    let only = add(&mut b, NODES);
    b.ingress(only).egress(only);
    b
}

#[tokio::test]
async fn a_large_graph_is_checked_in_time_that_grows_with_its_size() {
    let (flow, built) = fastest(async || rounds().build()).await;
    assert!(flow.is_ok());
    assert!(built < LONG, "it was built in {built:?}");

    let (flow, checked) = fastest(async || lost().build()).await;
    let problems = flow.unwrap_err().problems;
    let count = |code| problems.iter().filter(|found| found.code == code).count();
    let thirds = NODES / 3;
    assert_eq!(count(ProblemCode::Unreachable), 2 * thirds);
    assert_eq!(count(ProblemCode::DeadEnd), thirds);
    assert_eq!(count(ProblemCode::Endless), thirds);
    assert!(checked < LONG, "it was checked in {checked:?}");
}
