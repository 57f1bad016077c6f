//! Which traces live, and where they are.

use volary_kernel::{Tenant, clock};

use super::*;
use crate::{Context, NodeError, TraceView, engine::testing::*};

fn names(view: &TraceView) -> Vec<&str> {
    view.nodes.iter().map(|node| node.as_str()).collect()
}

/// Payloads below 10 wait in `slow`, others fail there once and wait for their next attempt.
fn plan() -> TestPlan {
    let mut plan = TestPlan::new();
    let first = plan.call("first", pass);
    let slow = plan.call("slow", |n, context: Context| async move {
        if n >= 10 && context.attempt() == 1 {
            return Err(NodeError::retryable("not yet"));
        }
        clock::sleep(10 * S).await;
        Ok(next(n))
    });
    let policy = plan.policy(slow);
    (policy.concurrency, policy.max_retries) = (2, 1);
    (policy.backoff.base, policy.backoff.max) = (3600 * S, 3600 * S);
    plan.chain(&[first, slow]);
    plan
}

#[tokio::test(start_paused = true)]
async fn living_traces_are_listed_oldest_first_with_their_nodes() {
    let engine = start(plan());
    assert_eq!(engine.traces(10), []);
    let mut readers = vec![engine.emit(of_tenant("ann", 10)).await.unwrap()];
    settle().await;
    clock::sleep(S).await;
    for n in 1..=3 {
        readers.push(engine.emit(within(100 * S, n)).await.unwrap());
        settle().await;
        clock::sleep(MS).await;
    }
    let found = engine.traces(10);
    let ids: Vec<_> = found.iter().map(|view| view.trace_id).collect();
    let emitted: Vec<_> = readers.iter().map(|reader| reader.trace_id()).collect();
    assert_eq!(ids, emitted);
    // In back-off, two that run, one in the queue: all at the same node.
    for view in &found {
        assert_eq!((names(view), view.messages), (vec!["slow"], 1), "{view:?}");
        assert!(!view.paused);
    }
    assert_eq!(found[0].tenant.as_str(), "ann");
    assert_eq!((found[0].remaining, found[0].age), (None, S + 3 * MS));
    assert_eq!(found[3].age, MS);
    assert_eq!(found[3].remaining, Some(100 * S - MS));
    assert_eq!(
        engine.traces(1),
        found[..1],
        "the oldest of more than asked for"
    );

    // What ended is not among them, read or not.
    assert!(engine.cancel(emitted[0], &"ann".parse().unwrap()).cancelled);
    clock::sleep(11 * S).await;
    let left: Vec<_> = engine.traces(10).iter().map(|view| view.trace_id).collect();
    assert_eq!(left, emitted[3..]);
}

#[tokio::test(start_paused = true)]
async fn a_paused_trace_is_shown_at_the_node_before_which_it_is_held() {
    let engine = start(plan());
    let blocking = [1, 2].map(envelope);
    let mut readers = Vec::new();
    for envelope in blocking {
        readers.push(engine.emit(envelope).await.unwrap());
    }
    let paused = engine.emit(envelope(3)).await.unwrap();
    assert!(engine.pause(paused.trace_id(), &Tenant::default()));
    for _met in 0..2 {
        let found = engine.traces(10);
        let view = found.iter().find(|view| view.paused).unwrap();
        assert_eq!(view.trace_id, paused.trace_id());
        clock::sleep(11 * S).await;
    }
    let found = engine.traces(10);
    assert_eq!(found.len(), 1);
    assert_eq!((names(&found[0]), found[0].messages), (vec!["first"], 1));
}

#[tokio::test(start_paused = true)]
async fn a_trace_in_a_join_is_shown_there() {
    let mut plan = TestPlan::new();
    let (quick, slow) = (
        plan.call("quick", pass),
        plan.call("slow", |n, _| async move {
            clock::sleep(S).await;
            Ok(next(n))
        }),
    );
    let join = plan.join("join", None, false);
    for branch in [quick, slow] {
        plan.ingress(branch);
        plan.edge(branch, join, 4);
    }
    plan.egress(join);
    let engine = start(plan);
    let reader = engine.emit(envelope(1)).await.unwrap();
    settle().await;
    let found = engine.traces(10);
    assert_eq!(
        (names(&found[0]), found[0].messages),
        (vec!["slow", "join"], 2)
    );
    read(reader).await;
    assert_eq!(engine.traces(10), []);
}
