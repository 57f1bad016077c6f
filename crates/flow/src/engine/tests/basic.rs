//! Traces through chains, branches, cycles and joins.

use std::{sync::Arc, time::Duration};

use volary_kernel::clock;

use super::*;
use crate::{
    Context,
    engine::testing::*,
    error::{EmitError, FlowErrorCode},
    graph::plan::{Payload, Step},
    outcome::Outcome,
};

#[tokio::test(start_paused = true)]
async fn a_value_passes_through_a_chain_fused_or_not() {
    for fuse in [true, false] {
        let mut plan = TestPlan::new();
        let add = |n, _| std::future::ready(Ok(next(n + 1)));
        let nodes: Vec<_> = (0..3).map(|n| plan.call(&format!("n{n}"), add)).collect();
        plan.chain(&nodes);
        let config = RunConfig {
            fuse,
            ..RunConfig::default()
        };
        let engine = Engine::start(Arc::new(plan.build()), config);
        let reader = engine.emit(envelope(5)).await.unwrap();
        let (values, outcome) = read(reader).await;
        assert_eq!(values, [8]);
        assert!(matches!(outcome, Outcome::Done));
        assert_empty(&engine);
        let report = engine.stop(S).await;
        assert!(report.is_clean(), "{report:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn concurrent_traces_get_their_own_results() {
    let mut plan = TestPlan::new();
    let wait = |n: u64, _: Context| async move {
        clock::sleep(Duration::from_millis(n)).await;
        Ok(next(n))
    };
    let node = plan.call("wait", wait);
    plan.policy(node).concurrency = 8;
    plan.chain(&[node]);
    let engine = start(plan);
    let slow = engine.emit(envelope(50)).await.unwrap();
    let fast = engine.emit(envelope(1)).await.unwrap();
    assert_eq!(read(fast).await.0, [1]);
    assert_eq!(read(slow).await.0, [50]);
    assert_empty(&engine);
}

#[tokio::test(start_paused = true)]
async fn an_id_in_use_is_refused_at_once_where_there_is_no_place() {
    let mut plan = TestPlan::new();
    let node = plan.call("stuck", |_, _| std::future::pending());
    plan.chain(&[node]);
    plan.node(node).queue = 1;
    let engine = start(plan);
    let first = engine.emit(envelope(1)).await.unwrap();
    let id = first.trace_id();
    // One runs, one has the place, one waits for it: no emit can be done but by an answer at once.
    let _second = engine.emit(envelope(2)).await.unwrap();
    let mut third = std::pin::pin!(engine.emit(envelope(3)));
    let waits = clock::timeout(S, third.as_mut()).await;
    assert!(waits.is_err());
    let mut again = envelope(4);
    again.trace_id = id;
    let refused = clock::timeout(S, engine.emit(again)).await.unwrap();
    assert_eq!(refused.err(), Some(EmitError::TraceInUse(id)));
    engine.stop(Duration::ZERO).await;
}

#[tokio::test(start_paused = true)]
async fn an_id_in_use_is_refused_until_its_end_is_read() {
    let mut plan = TestPlan::new();
    let node = plan.call("pass", pass);
    plan.chain(&[node]);
    let engine = start(plan);
    let id = volary_kernel::TraceId::generate();
    let with_id = |n| {
        let mut accepted = envelope(n);
        accepted.trace_id = id;
        accepted
    };
    let first = engine.emit(with_id(1)).await.unwrap();
    let second = engine.emit(with_id(2)).await;
    assert_eq!(second.err(), Some(EmitError::TraceInUse(id)));
    assert_eq!(read(first).await.0, [1]);
    let third = engine.emit(with_id(3)).await.unwrap();
    assert_eq!(read(third).await.0, [3]);
    assert_empty(&engine);
}

#[tokio::test(start_paused = true)]
async fn branches_get_each_value_and_a_join_gathers_them() {
    let mut plan = TestPlan::new();
    let a = plan.call("a", pass);
    let times = |k: u64| move |n: u64, _: Context| async move { Ok(next(n * k)) };
    let b = plan.call("b", times(10));
    let c = plan.call("c", times(100));
    let join = plan.join("join", None, false);
    plan.ingress(a);
    for (from, to) in [(a, b), (a, c), (b, join), (c, join)] {
        plan.edge(from, to, 1);
    }
    plan.egress(join);
    let engine = start(plan);
    let mut readers = Vec::new();
    for n in 0..20 {
        readers.push((n, engine.emit(envelope(n)).await.unwrap()));
    }
    for (n, reader) in readers {
        let (values, outcome) = read(reader).await;
        assert_eq!(values, [n * 110]);
        assert!(outcome.is_done());
    }
    assert_empty(&engine);
}

fn each_to_join(count: usize, partial: bool) -> TestPlan {
    let mut plan = TestPlan::new();
    let each = |n: u64, _: Context| async move {
        let values = (1..=n).map(Payload::new);
        Ok(Step::Each(values.collect()))
    };
    let each = plan.call("each", each);
    let join = plan.join("join", Some(count), partial);
    plan.ingress(each);
    plan.edge(each, join, 4);
    plan.egress(join);
    plan
}

#[tokio::test(start_paused = true)]
async fn a_join_by_count_goes_on_with_each_round_and_never_hangs() {
    let engine = start(each_to_join(3, false));
    let (values, outcome) = read(engine.emit(envelope(7)).await.unwrap()).await;
    assert_eq!(values, [6, 15], "the seventh is left over");
    assert!(outcome.is_done());
    let (values, outcome) = read(engine.emit(envelope(2)).await.unwrap()).await;
    assert_eq!(values, Vec::<u64>::new());
    let Outcome::Failed(error) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(error.code, FlowErrorCode::JoinIncomplete);
    settle().await;
    assert_empty(&engine);

    let engine = start(each_to_join(3, true));
    let (values, outcome) = read(engine.emit(envelope(5)).await.unwrap()).await;
    assert_eq!(values, [6, 9]);
    assert!(outcome.is_done());
    assert_empty(&engine);
}

#[tokio::test(start_paused = true)]
async fn a_join_whose_wait_is_over_goes_on_with_what_it_has_or_fails() {
    for partial in [true, false] {
        let mut plan = TestPlan::new();
        let (a, b) = (plan.call("a", pass), plan.call("b", pass));
        let slow = plan.call("slow", |n, _| async move {
            clock::sleep(100 * S).await;
            Ok(next(n))
        });
        let join = plan.join("join", None, partial);
        plan.join_within(join, S);
        plan.ingress(a);
        for (from, to) in [(a, b), (a, slow), (b, join), (slow, join)] {
            plan.edge(from, to, 64);
        }
        plan.egress(join);
        let engine = start(plan);
        let before = tokio::time::Instant::now();
        let mut reader = engine.emit(envelope(4)).await.unwrap();
        if partial {
            assert!(matches!(reader.next().await, crate::engine::Read::Value(_)));
            assert_eq!(before.elapsed().as_secs(), 1);
            let (values, outcome) = read(reader).await;
            assert_eq!(
                (values, outcome.is_done()),
                (Vec::<u64>::new(), true),
                "the late one is left over"
            );
        } else {
            let (_, outcome) = read(reader).await;
            assert_eq!(before.elapsed().as_secs(), 1);
            assert!(
                matches!(outcome, Outcome::Failed(error) if error.code == FlowErrorCode::JoinIncomplete)
            );
        }
        settle().await;
        assert_empty(&engine);
    }
}

fn cycle(times: u64) -> TestPlan {
    let mut plan = TestPlan::new();
    let a = plan.call("a", pass);
    let b = plan.call("b", move |n, _| async move {
        let edge = u16::from(n < times);
        Ok(Step::To(
            [(edge, Payload::new(n + 1))].into_iter().collect(),
        ))
    });
    plan.ingress(a);
    plan.edge(a, b, 1);
    plan.egress(b);
    plan.back(b, a);
    plan
}

#[tokio::test(start_paused = true)]
async fn a_cycle_with_queues_of_one_does_not_deadlock() {
    let engine = start(cycle(50));
    let engine_ = engine.clone();
    let mut readers = Vec::new();
    for _ in 0..100 {
        readers.push(engine_.emit(envelope(0)).await.unwrap());
    }
    for reader in readers {
        let (values, outcome) = read(reader).await;
        assert_eq!((values, outcome.is_done()), (vec![51], true));
    }
    assert_empty(&engine);
}

#[tokio::test(start_paused = true)]
async fn a_trace_that_goes_round_for_ever_fails() {
    let engine = start(cycle(u64::MAX));
    let (_, outcome) = read(engine.emit(envelope(0)).await.unwrap()).await;
    assert!(
        matches!(outcome, Outcome::Failed(error) if error.code == FlowErrorCode::HopBudgetExhausted)
    );
    settle().await;
    assert_empty(&engine);
}

#[tokio::test(start_paused = true)]
async fn a_final_answer_ends_its_trace_and_is_executed_once() {
    let runs = Count::default();
    let counted = runs.clone();
    let mut plan = TestPlan::new();
    let node = plan.call("answer", move |n, _| {
        counted.up();
        async move { Ok(Step::Finish(Payload::new(n))) }
    });
    let never = plan.call("never", pass);
    plan.chain(&[node, never]);
    let engine = start(plan);
    for n in 0..5 {
        let (values, outcome) = read(engine.emit(envelope(n)).await.unwrap()).await;
        assert_eq!((values, outcome.is_done()), (vec![n], true));
    }
    settle().await;
    assert_eq!(runs.get(), 5);
    assert_empty(&engine);
}

#[tokio::test(start_paused = true)]
async fn a_trace_that_multiplies_without_end_fails() {
    let mut plan = TestPlan::new();
    let node = plan.call("double", |n, _| async move {
        let both = [(0, Payload::new(n)), (0, Payload::new(n))];
        Ok(Step::To(both.into_iter().collect()))
    });
    let after = plan.call("after", |n, _| async move {
        Ok(Step::To([(0, Payload::new(n))].into_iter().collect()))
    });
    plan.ingress(node);
    plan.edge(node, after, 1);
    plan.back(after, node);
    let mut config = RunConfig::default();
    config.limits.hops = u32::MAX;
    let engine = Engine::start(Arc::new(plan.build()), config);
    let (_, outcome) = read(engine.emit(envelope(0)).await.unwrap()).await;
    assert!(
        matches!(&outcome, Outcome::Failed(error) if error.code == FlowErrorCode::TooManyMessages),
        "{outcome:?}"
    );
    settle().await;
    assert_empty(&engine);
}
