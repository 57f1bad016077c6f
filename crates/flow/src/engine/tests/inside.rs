//! What a node does to the flow that it is part of: stops it, calls it.

use std::sync::OnceLock;

use volary_kernel::clock;

use super::*;
use crate::{
    CallError, Context, EmitError, Envelope, FlowBuilder, NodeError, Outcome, RunningFlow,
    outcome::DropReason, policy::NodePolicy,
};

/// A flow that its own nodes know.
type Own = Arc<OnceLock<RunningFlow<u64, u64>>>;

/// Two nodes, of which the second knows the flow, run by one stage or by two.
fn knows_itself<F, Fut>(fuse: bool, concurrency: usize, code: F) -> Own
where
    F: Fn(u64, RunningFlow<u64, u64>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<u64, NodeError>> + Send + 'static,
{
    let own = Own::default();
    let known = own.clone();
    let mut b = FlowBuilder::new("own");
    let first = b.node("first", |n: u64, _| async move { Ok(n) });
    let second = b.node("second", move |n: u64, _: Context| {
        let (known, code) = (known.clone(), code.clone());
        async move {
            let flow = known.get().expect("it was started").clone();
            code(n, flow).await
        }
    });
    let policy = NodePolicy {
        concurrency,
        ..NodePolicy::default()
    };
    b.policy(second, policy);
    b.connect(first, second).ingress(first).egress(second);
    let flow = b.build().unwrap().start(RunConfig {
        fuse,
        ..RunConfig::default()
    });
    assert!(own.set(flow).is_ok());
    own
}

#[tokio::test(start_paused = true)]
async fn a_node_that_stops_its_own_flow_does_so_within_the_limit() {
    for (fuse, limit) in [
        (true, S),
        (false, S),
        (true, Duration::ZERO),
        (false, Duration::ZERO),
    ] {
        let own = knows_itself(fuse, 1, move |n, flow| async move {
            flow.stop(limit).await;
            Ok(n)
        });
        let flow = own.get().unwrap();
        let handle = flow.emit(Envelope::new(1)).await.unwrap();
        let from = tokio::time::Instant::now();
        let outcome = clock::timeout(60 * S, handle.outcome()).await;
        let reason = DropReason::Stopped;
        let outcome = outcome.expect("it ends");
        assert!(matches!(outcome, Outcome::Dropped { reason: why } if why == reason));
        assert!(from.elapsed() <= limit + 10 * MS, "{:?}", from.elapsed());
        // Whoever stops it from outside finds it stopped.
        let report = clock::timeout(S, flow.stop(60 * S)).await.expect("it ends");
        assert!(report.is_clean(), "{report:?}");
    }
}

/// What a node got that calls its own flow, for the first value of a trace.
async fn refused(own: &Own) -> NodeError {
    let flow = own.get().unwrap();
    let called = clock::timeout(60 * S, flow.call(Envelope::new(2))).await;
    match called.expect("it ends") {
        Err(CallError::Ended(Outcome::Failed(error))) => error.source.expect("it has a source"),
        other => panic!("it is not refused: {other:?}"),
    }
}

fn assert_calls_itself(error: &NodeError) {
    let expected = EmitError::CallsItself.to_string();
    assert_eq!(error.message, expected, "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_calls_its_own_flow_without_a_deadline_is_refused() {
    for (fuse, waits) in [(true, false), (true, true), (false, false), (false, true)] {
        let own = knows_itself(fuse, 1, move |n, flow| async move {
            if waits {
                clock::sleep(MS).await;
            }
            match n {
                0 => Ok(0),
                n => Ok(flow.call(Envelope::new(n - 1)).await?),
            }
        });
        assert_calls_itself(&refused(&own).await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_calls_its_own_flow_through_another_is_refused() {
    let own = knows_itself(true, 1, |n, flow| async move {
        let mut b = FlowBuilder::new("other");
        let back = b.node("back", move |n: u64, _: Context| {
            let flow = flow.clone();
            async move { Ok(flow.call(Envelope::new(n)).await?) }
        });
        b.ingress(back).egress(back);
        let other = b.build().unwrap().start(RunConfig::default());
        Ok(other.call(Envelope::new(n)).await?)
    });
    let error = refused(&own).await;
    let inner = error.source.as_ref().expect("it has a source").to_string();
    assert!(inner.contains("the flow calls itself"), "{inner}");
}

#[tokio::test(start_paused = true)]
async fn a_node_may_call_its_own_flow_within_a_deadline_and_emit_into_it() {
    let own = knows_itself(true, 1, |n, flow| async move {
        match n {
            // It waits for the slot that it holds, until the deadline passes.
            2 => match flow.call(Envelope::new(1).deadline(S)).await {
                Err(CallError::Ended(Outcome::DeadlineExceeded)) => Ok(20),
                other => panic!("it ends otherwise: {other:?}"),
            },
            3 => {
                flow.emit(Envelope::new(1)).await?;
                Ok(30)
            }
            n => Ok(n),
        }
    });
    let flow = own.get().unwrap();
    for n in [2, 3] {
        let called = clock::timeout(60 * S, flow.call(Envelope::new(n))).await;
        assert_eq!(called.expect("it ends").ok(), Some(n * 10));
    }
}

#[tokio::test(start_paused = true)]
async fn calls_of_nodes_that_call_their_own_flow_are_bounded_in_depth() {
    let own = knows_itself(true, 64, |n, flow| async move {
        match flow.call(Envelope::new(n + 1).deadline(S)).await {
            Err(CallError::Refused(EmitError::TooDeep(_))) => Ok(n),
            called => Ok(called?),
        }
    });
    let called = own.get().unwrap().call(Envelope::new(0)).await;
    assert_eq!(called.ok(), Some(16));
}
