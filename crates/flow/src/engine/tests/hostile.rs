//! Payloads that panic, bounds at their extremes, calls that are given up: what a flow must outlive.

use std::sync::Arc;

use volary_kernel::{Tenant, clock};

use super::*;
use crate::{
    Limits,
    engine::{Keep, testing::*},
    graph::plan::{Payload, Step},
    outcome::Outcome,
};

/// Panics when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("on purpose: dropped");
        }
    }
}

fn bomb() -> Done {
    Ok(Step::Next(Payload::new(Bomb)))
}

async fn works(engine: &Engine) {
    let reader = engine.emit(of_tenant("other", 1_000_000)).await;
    let reader = reader.expect("the flow runs");
    let read = clock::timeout(60 * S, read(reader)).await;
    assert!(read.expect("it ends").1.is_done());
}

#[tokio::test(start_paused = true)]
async fn a_value_that_panics_when_it_expires_ends_nothing_else() {
    let mut plan = TestPlan::new();
    let node = plan.call("node", |n, _| async move {
        if n == 0 { bomb() } else { Ok(next(n)) }
    });
    plan.chain(&[node]);
    let engine = start(plan);
    drop(engine.emit(envelope(0)).await.unwrap());
    clock::sleep(120 * S).await;
    works(&engine).await;
    assert_empty(&engine);
}

#[tokio::test(start_paused = true)]
async fn a_value_that_panics_when_it_is_dropped_from_a_join_ends_nothing_else() {
    let mut plan = TestPlan::new();
    let a = plan.call("a", |n, _| async move {
        if n == 0 { bomb() } else { Ok(next(n)) }
    });
    let b = plan.call("b", |n, _| async move {
        if n == 0 {
            clock::sleep(MS).await;
            return Err(crate::NodeError::permanent("no"));
        }
        Ok(next(n))
    });
    let join = plan.join("join", None, false);
    plan.ingress(a);
    plan.ingress(b);
    plan.edge(a, join, 64);
    plan.edge(b, join, 64);
    plan.egress(join);
    let engine = start(plan);
    let reader = engine.emit(envelope(0)).await.unwrap();
    let (_, outcome) = clock::timeout(60 * S, read(reader)).await.expect("ends");
    assert!(matches!(outcome, Outcome::Failed(_)), "{outcome:?}");
    works(&engine).await;
    assert_empty(&engine);
}

#[tokio::test(start_paused = true)]
async fn a_value_that_panics_when_it_is_dropped_while_it_is_held_ends_nothing_else() {
    let mut plan = TestPlan::new();
    let a = plan.call("a", |n, context: crate::Context| async move {
        if n < 2 {
            context.pause();
            return bomb();
        }
        Ok(next(n))
    });
    let b = plan.call("b", |n, _| async move { Ok(next(n)) });
    plan.chain(&[a, b]);
    let engine = start(plan);
    let reader = engine.emit(within(S, 0)).await.unwrap();
    let outcome = clock::timeout(60 * S, read(reader)).await.expect("ends").1;
    assert!(matches!(outcome, Outcome::DeadlineExceeded), "{outcome:?}");
    works(&engine).await;
    let reader = engine.emit(envelope(1)).await.unwrap();
    settle().await;
    assert!(
        engine
            .cancel(reader.trace_id(), &Tenant::default())
            .cancelled
    );
    works(&engine).await;
    drop(reader);
    clock::sleep(120 * S).await;
    assert_empty(&engine);
}

#[tokio::test(start_paused = true)]
async fn no_bound_of_messages_is_a_bound_like_any_other() {
    let mut plan = TestPlan::new();
    let node = plan.call("node", |n, _| async move {
        let values = (0..n).map(Payload::new);
        Ok(Step::Each(values.collect()))
    });
    plan.chain(&[node]);
    let config = RunConfig {
        limits: Limits {
            messages_per_trace: usize::MAX,
            ..Limits::default()
        },
        ..RunConfig::default()
    };
    let engine = Engine::start(Arc::new(plan.build()), config);
    let reader = engine.emit(envelope(3)).await.unwrap();
    let (values, outcome) = read(reader).await;
    assert!(outcome.is_done(), "{outcome:?}");
    assert_eq!(values, [0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_clone_that_panics_when_it_is_emitted_leaves_nothing_behind() {
    let mut plan = TestPlan::new();
    let (a, b) = (plan.call("a", pass), plan.call("b", pass));
    for node in [a, b] {
        plan.ingress(node);
        plan.egress(node);
    }
    let mut plan = plan.build();
    plan.clone_input = |payload| {
        let n = *payload.get::<u64>().unwrap();
        assert!(n != 0, "on purpose: cloned");
        Payload::new(n)
    };
    let engine = Engine::start(Arc::new(plan), RunConfig::default());
    let emitting = engine.clone();
    #[expect(clippy::disallowed_methods, reason = "a test awaits it itself")]
    let emitted = tokio::spawn(async move { emitting.emit(envelope(0)).await.map(drop) });
    assert!(emitted.await.is_err(), "the panic is the caller's");
    works(&engine).await;
    clock::sleep(120 * S).await;
    assert_empty(&engine);
}

#[tokio::test(start_paused = true)]
async fn the_wait_of_a_join_does_not_run_out_while_the_trace_is_paused() {
    let mut plan = TestPlan::new();
    let a = plan.call("a", pass);
    let b = plan.call("b", |n, _| async move {
        clock::sleep(MS).await;
        Ok(next(n))
    });
    let c = plan.call("c", pass);
    let join = plan.join("join", None, false);
    plan.join_within(join, S);
    plan.ingress(a);
    plan.ingress(b);
    plan.edge(a, join, 64);
    plan.edge(b, c, 64);
    plan.edge(c, join, 64);
    plan.egress(join);
    let engine = start(plan);
    let reader = engine.emit(envelope(2)).await.unwrap();
    settle().await;
    assert!(engine.pause(reader.trace_id(), &Tenant::default()));
    clock::sleep(10 * S).await;
    assert!(engine.resume(reader.trace_id(), &Tenant::default()));
    let (values, outcome) = clock::timeout(60 * S, read(reader)).await.expect("ends");
    assert!(outcome.is_done(), "{outcome:?}");
    assert_eq!(values, [4]);
    assert_empty(&engine);
}

#[tokio::test(start_paused = true)]
async fn one_tenant_that_waits_to_emit_takes_no_room_from_others() {
    let mut plan = TestPlan::new();
    let node = plan.call("node", |n, _| async move {
        clock::sleep(MS).await;
        Ok(next(n))
    });
    plan.ingress(node);
    plan.egress(node);
    plan.node(node).queue = 4;
    let config = RunConfig {
        limits: Limits {
            traces: 20,
            ..Limits::default()
        },
        ..RunConfig::default()
    };
    let engine = Engine::start(Arc::new(plan.build()), config);
    let mut flood = Vec::new();
    for n in 0..500 {
        let engine = engine.clone();
        #[expect(clippy::disallowed_methods, reason = "a test awaits it itself")]
        flood.push(tokio::spawn(async move {
            let reader = engine.emit(of_tenant("loud", n)).await.unwrap();
            read(reader).await
        }));
    }
    clock::sleep(10 * MS).await;
    let from = tokio::time::Instant::now();
    let reader = engine.emit(of_tenant("quiet", 1)).await.unwrap();
    read(reader).await;
    let took = tokio::time::Instant::now() - from;
    assert!(took <= 10 * MS, "it took {took:?}");
    for one in flood {
        one.await.unwrap();
    }
}

fn deep(levels: usize) -> TestPlan {
    let mut plan = TestPlan::new();
    let nodes: Vec<_> = (0..levels)
        .map(|n| {
            plan.call(&format!("n{n}"), |n, _| async move {
                let values = [n, n].map(Payload::new);
                Ok(Step::Each(values.into()))
            })
        })
        .collect();
    plan.chain(&nodes);
    plan
}

#[tokio::test(start_paused = true)]
async fn a_deep_chain_of_nodes_that_yield_several_is_no_deep_stack() {
    let engine = start(deep(1_000));
    let reader = engine.emit(envelope(1)).await.unwrap();
    let (_, outcome) = read(reader).await;
    assert!(matches!(outcome, Outcome::Failed(_)), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn values_that_panic_when_they_are_dropped_end_no_stage() {
    let mut plan = TestPlan::new();
    let a = plan.call("a", |n, _| async move {
        match n {
            0 | 1 => bomb(),
            2 => {
                let many = (0..3_000).map(|_| Payload::new(Bomb));
                Ok(Step::Each(many.collect()))
            }
            _ => Ok(next(n)),
        }
    });
    let b = plan.call("b", |n, _| async move { Ok(next(n)) });
    plan.chain(&[a, b]);
    // What is kept for another attempt.
    plan.policy(b).max_retries = 1;
    plan.node(b).clone_in = |payload| match payload.get::<u64>() {
        Some(n) => Payload::new(*n),
        None => Payload::new(Bomb),
    };
    let engine = start(plan);
    for n in 0..3 {
        let reader = engine.emit(envelope(n)).await.unwrap();
        let outcome = clock::timeout(60 * S, read(reader)).await.expect("ends").1;
        assert!(matches!(outcome, Outcome::Failed(_)), "{outcome:?}");
        works(&engine).await;
    }
    assert_empty(&engine);
}

#[tokio::test(start_paused = true)]
async fn the_first_value_is_not_lost_by_who_waits_for_it_in_vain() {
    let mut plan = TestPlan::new();
    let fast = plan.call("fast", pass);
    let slow = plan.call("slow", |n, _| async move {
        clock::sleep(S).await;
        Ok(next(n + 1))
    });
    for node in [fast, slow] {
        plan.ingress(node);
        plan.egress(node);
    }
    let engine = start(plan);
    let mut reader = engine.emit(envelope(1)).await.unwrap();
    let id = reader.trace_id();
    let waited = std::future::poll_fn(|cx| reader.poll_end(Keep::First, cx));
    assert!(clock::timeout(MS, waited).await.is_err());
    drop(reader);
    let again = engine.fetch(id, &Tenant::default()).unwrap();
    assert_eq!(read(again).await.0, [1, 2]);
    assert_empty(&engine);
}

#[tokio::test(start_paused = true)]
async fn no_value_is_lost_by_who_waits_for_all_in_vain() {
    let mut b = crate::FlowBuilder::new("values");
    let some = b.flat_map("some", |n: u64, _| async move {
        clock::sleep(S * n as u32).await;
        Ok(vec![n, n + 10, n + 20])
    });
    let late = b.node("late", |n: u64, _| async move {
        clock::sleep(S * (3 + n as u32)).await;
        Ok(n + 100)
    });
    b.ingress(some).ingress(late).egress(some).egress(late);
    let flow = b.build().unwrap().start(RunConfig::default());
    let mut handle = flow.emit(crate::Envelope::new(1)).await.unwrap();
    let (id, tenant) = (handle.trace_id(), Tenant::default());
    for _ in 0..2 {
        let waited = clock::timeout(S + MS, handle.values()).await;
        assert!(waited.is_err(), "{waited:?}");
        handle = flow.fetch(id, &tenant).unwrap();
    }
    let mut again = handle;
    let first = again.next().await;
    assert!(matches!(first, Some(crate::Item::Value(1))), "{first:?}");
    assert_eq!(again.values().await.unwrap(), [11, 21, 101]);
    assert_empty(&flow.core.engine);
}

#[tokio::test(start_paused = true)]
async fn no_tenant_finds_the_breaker_that_another_opened() {
    let mut plan = TestPlan::new();
    let node = plan.call("node", |n, _| async move {
        if n == 0 {
            return Err(crate::NodeError::retryable("down"));
        }
        Ok(next(n))
    });
    plan.chain(&[node]);
    plan.policy(node).breaker = Some(crate::policy::Breaker {
        failures: 1,
        open_for: 3600 * S,
    });
    let engine = start(plan);
    for n in 0..100 {
        let bad = engine.emit(of_tenant(&format!("bad-{n}"), 0)).await;
        assert!(matches!(read(bad.unwrap()).await.1, Outcome::Failed(_)));
    }
    // So many that numbers of tenants are given on.
    for n in 0..4_000 {
        let good = engine.emit(of_tenant(&format!("good-{n}"), 1)).await;
        let outcome = read(good.unwrap()).await.1;
        assert!(outcome.is_done(), "tenant {n}: {outcome:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_result_that_is_fetched_again_and_again_pushes_no_other_out() {
    let mut plan = TestPlan::new();
    let node = plan.call("node", pass);
    plan.chain(&[node]);
    let config = RunConfig {
        limits: Limits {
            results: 10,
            ..Limits::default()
        },
        ..RunConfig::default()
    };
    let engine = Engine::start(Arc::new(plan.build()), config);
    let ids = ["quiet", "loud"].map(|name| {
        let reader = engine.emit_nowait(of_tenant(name, 1)).unwrap();
        reader.trace_id()
    });
    settle().await;
    for _ in 0..100 {
        assert!(engine.fetch(ids[1], &"loud".parse().unwrap()).is_some());
    }
    let kept = engine.fetch(ids[0], &"quiet".parse().unwrap());
    assert_eq!(read(kept.expect("it is kept")).await.0, [1]);
    clock::sleep(120 * S).await;
    assert_empty(&engine);
}

/// Cancels a trace when it is dropped.
struct Cancels(Engine, volary_kernel::TraceId);

impl Drop for Cancels {
    fn drop(&mut self) {
        self.0.cancel(self.1, &Tenant::default());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_cancels_another_trace_when_it_is_dropped_stops_nothing() {
    let slot = Arc::new(std::sync::OnceLock::<(Engine, volary_kernel::TraceId)>::new());
    let given = slot.clone();
    let mut plan = TestPlan::new();
    let a = plan.call("a", move |n, context: crate::Context| {
        let given = given.clone();
        async move {
            if n > 1 {
                return Ok(next(n));
            }
            context.pause();
            Ok(match given.get() {
                Some((engine, other)) => Step::Next(Payload::new(Cancels(engine.clone(), *other))),
                None => next(n),
            })
        }
    });
    let b = plan.call("b", pass);
    plan.chain(&[a, b]);
    let engine = start(plan);
    let other = engine.emit(envelope(0)).await.unwrap();
    assert!(slot.set((engine.clone(), other.trace_id())).is_ok());
    let one = engine.emit(within(20 * MS, 1)).await.unwrap();
    let ends = clock::timeout(10 * S, read(one)).await.expect("it ends");
    assert!(matches!(ends.1, Outcome::DeadlineExceeded), "{:?}", ends.1);
    // The keeper drops what was held, and goes on.
    let other = clock::timeout(10 * S, read(other)).await.expect("it ends");
    assert!(matches!(other.1, Outcome::Cancelled), "{:?}", other.1);
    works(&engine).await;
    assert!(engine.stop(S).await.is_clean());
}
