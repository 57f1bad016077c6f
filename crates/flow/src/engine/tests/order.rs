//! Order, bounds and fairness.

use std::sync::Arc;

use parking_lot::Mutex;
use volary_kernel::clock;

use super::*;
use crate::{Context, engine::testing::*, error::EmitError, outcome::Outcome};

#[tokio::test(start_paused = true)]
async fn a_queue_of_one_blocks_the_third_and_keeps_order() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let seen_ = seen.clone();
    let mut plan = TestPlan::new();
    let node = plan.call("slow", move |n, _| {
        seen_.lock().push(n);
        async move {
            clock::sleep(10 * MS).await;
            Ok(next(n))
        }
    });
    plan.node(node).queue = 1;
    plan.chain(&[node]);
    let engine = start(plan);
    let mut readers = vec![engine.emit(envelope(0)).await.unwrap()];
    settle().await;
    readers.push(engine.emit(envelope(1)).await.unwrap());
    assert_eq!(engine.emit_nowait(envelope(9)).err(), Some(EmitError::Full));
    let before = tokio::time::Instant::now();
    for n in 2..8 {
        readers.push(engine.emit(envelope(n)).await.unwrap());
        let depths = engine.depths();
        assert!(depths.nodes[0].queued <= 1, "{depths:?}");
    }
    assert!(before.elapsed() >= 55 * MS, "each waited for one to end");
    for (n, reader) in (0..).zip(readers) {
        assert_eq!(read(reader).await.0, [n]);
    }
    assert_eq!(*seen.lock(), (0..8).collect::<Vec<_>>());
    assert_empty(&engine);
}

#[tokio::test(start_paused = true)]
async fn bounds_hold_at_every_step_of_a_chain_whose_end_is_slow() {
    for fuse in [true, false] {
        let mut plan = TestPlan::new();
        let (a, b) = (plan.call("a", pass), plan.call("b", pass));
        let slow = plan.call("slow", |n, _| async move {
            clock::sleep(MS).await;
            Ok(next(n))
        });
        plan.ingress(a);
        plan.node(a).queue = 2;
        plan.edge(a, b, 3);
        plan.edge(b, slow, 1);
        plan.egress(slow);
        let config = RunConfig {
            fuse,
            ..RunConfig::default()
        };
        let engine = Engine::start(Arc::new(plan.build()), config);
        let mut readers = Vec::new();
        for n in 0..100 {
            readers.push(engine.emit(envelope(n)).await.unwrap());
            let depths = engine.depths();
            for (node, bound) in depths.nodes.iter().zip([2, 3, 1]) {
                assert!(node.queued <= bound && node.waiting <= 1, "{depths:?}");
            }
        }
        for (n, reader) in (0..).zip(readers) {
            assert_eq!(read(reader).await.0, [n]);
        }
        assert_empty(&engine);
    }
}

#[tokio::test(start_paused = true)]
async fn a_tenant_whose_outputs_find_no_room_does_not_stop_another() {
    for fuse in [true, false] {
        let mut plan = TestPlan::new();
        let a = plan.call("a", pass);
        let b = plan.call("b", |n, _| async move {
            if n > 0 {
                clock::sleep(Duration::from_secs(n)).await;
            }
            Ok(next(n))
        });
        plan.policy(b).concurrency = 2;
        plan.ingress(a);
        plan.edge(a, b, 1);
        plan.egress(b);
        let config = RunConfig {
            fuse,
            ..RunConfig::default()
        };
        let engine = Engine::start(Arc::new(plan.build()), config);
        let slow = engine.emit(of_tenant("a", 100)).await.unwrap();
        settle().await;
        let mut flood = Vec::new();
        let before = tokio::time::Instant::now();
        for _ in 0..20 {
            flood.push(engine.emit(of_tenant("a", 1)).await.unwrap());
        }
        for n in 0..20 {
            let reader = engine.emit(of_tenant("b", 0)).await.unwrap();
            assert!(read(reader).await.1.is_done(), "{n}");
        }
        assert!(before.elapsed() <= 21 * S, "{:?}", before.elapsed());
        for reader in flood {
            read(reader).await;
        }
        read(slow).await;
        assert_empty(&engine);
    }
}

#[tokio::test(start_paused = true)]
async fn higher_priority_goes_first_within_its_tenant() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let seen_ = seen.clone();
    let mut plan = TestPlan::new();
    let node = plan.call("slow", move |n, _: Context| {
        seen_.lock().push(n);
        async move {
            clock::sleep(MS).await;
            Ok(next(n))
        }
    });
    plan.chain(&[node]);
    let engine = start(plan);
    let mut readers = Vec::new();
    for (n, priority) in [(0, 0), (1, 0), (2, 9), (3, 0), (4, 9)] {
        let mut accepted = envelope(n);
        accepted.headers.priority = priority;
        readers.push(engine.emit(accepted).await.unwrap());
        if n == 0 {
            settle().await;
        }
    }
    for reader in readers {
        read(reader).await;
    }
    assert_eq!(*seen.lock(), [0, 2, 4, 1, 3]);
}

#[tokio::test(start_paused = true)]
async fn concurrency_is_used_and_never_exceeded() {
    let running = Count::default();
    let most = Arc::new(Mutex::new(0));
    let (running_, most_) = (running.clone(), most.clone());
    let mut plan = TestPlan::new();
    let node = plan.call("io", move |n, _: Context| {
        let (running, most) = (running_.clone(), most_.clone());
        async move {
            let now = running.up();
            let old = *most.lock();
            *most.lock() = old.max(now);
            clock::sleep(10 * MS).await;
            running.down();
            Ok(next(n))
        }
    });
    plan.policy(node).concurrency = 10;
    plan.chain(&[node]);
    let engine = start(plan);
    let before = tokio::time::Instant::now();
    let mut readers = Vec::new();
    for n in 0..100 {
        readers.push(engine.emit(envelope(n)).await.unwrap());
    }
    for reader in readers {
        read(reader).await;
    }
    assert_eq!(*most.lock(), 10);
    assert!(before.elapsed() < 150 * MS, "{:?}", before.elapsed());
    assert_empty(&engine);
}

#[tokio::test(start_paused = true)]
async fn more_traces_than_allowed_wait_and_a_breaker_refuses() {
    let mut plan = TestPlan::new();
    let node = plan.call("bad", |n, _| async move {
        clock::sleep(MS).await;
        if n == 0 {
            return Err(crate::NodeError::retryable("no"));
        }
        Ok(next(n))
    });
    plan.policy(node).breaker = Some(crate::policy::Breaker {
        failures: 2,
        open_for: S,
    });
    plan.chain(&[node]);
    let mut config = RunConfig::default();
    config.limits.traces = 2;
    let engine = Engine::start(Arc::new(plan.build()), config);
    let mut codes = Vec::new();
    let first = engine.emit(envelope(0)).await.unwrap();
    let second = engine.emit(envelope(0)).await.unwrap();
    assert_eq!(engine.emit_nowait(envelope(0)).err(), Some(EmitError::Full));
    let third = engine.emit(envelope(0)).await.unwrap();
    for reader in [first, second, third] {
        if let Outcome::Failed(error) = read(reader).await.1 {
            codes.push(error.code.as_str());
        }
    }
    assert_eq!(codes, ["node_error", "node_error", "breaker_open"]);
    let other = engine.emit(of_tenant("other", 1)).await.unwrap();
    assert!(read(other).await.1.is_done(), "it is open for one tenant");
    clock::sleep(S).await;
    let probe = engine.emit(envelope(1)).await.unwrap();
    assert!(read(probe).await.1.is_done());
    settle().await;
    assert_empty(&engine);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_traces_from_many_tasks_all_end_and_leave_nothing() {
    let rounds = 2_500;
    let mut plan = TestPlan::new();
    let a = plan.call("a", pass);
    let b = plan.call("b", |n, _| async move {
        if n % 7 == 0 {
            tokio::task::yield_now().await;
        }
        Ok(next(n))
    });
    plan.chain(&[a, b]);
    let engine = start(plan);
    let tasks: Vec<_> = (0..4u64)
        .map(|task| {
            let engine = engine.clone();
            async move {
                for n in 0..rounds {
                    let tenant = format!("t{}", (n + task) % 3);
                    let mut accepted = of_tenant(&tenant, n);
                    accepted.deadline = Some(60 * S);
                    let reader = engine.emit(accepted).await.unwrap();
                    if n % 11 == 0 {
                        let tenant = tenant.parse().unwrap();
                        engine.cancel(reader.trace_id(), &tenant);
                        read(reader).await;
                    } else {
                        assert_eq!(read(reader).await.0, [n]);
                    }
                }
            }
        })
        .collect();
    let supervisor = volary_kernel::task::Supervisor::new();
    for task in tasks {
        let task = async move {
            task.await;
            Ok(())
        };
        supervisor.spawn(volary_kernel::task::TaskKind::new("load"), task);
    }
    let report = supervisor.drain(600 * S).await;
    assert_eq!(report.failures, 0);
    let report = engine.stop(S).await;
    assert!(report.is_clean(), "{report:?}");
    assert_empty(&engine);
}
