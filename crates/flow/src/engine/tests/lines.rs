//! Those who wait to emit, and give up: at every await point, at random, on real threads.

use std::{pin::pin, task::Poll};

use tokio::task::JoinHandle;
use volary_kernel::{TraceId, clock, retry::random_unit};

use super::*;
use crate::{
    Limits,
    engine::{gate::Gate, testing::*},
    error::EmitError,
};

const HANGS: Duration = Duration::from_secs(60);

#[expect(clippy::disallowed_methods, reason = "a test awaits it itself")]
fn spawn(task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    tokio::spawn(task)
}

/// A number below `end`.
fn below(end: u64) -> u64 {
    (random_unit() * end as f64) as u64
}

/// One way in or two, each of which holds one of a tenant.
fn ways_in(traces: usize, ways: usize) -> Engine {
    let mut plan = TestPlan::new();
    for name in ["a", "b"].iter().take(ways) {
        let node = plan.call(name, |n: u64, _| async move {
            for _ in 0..n % 5 {
                tokio::task::yield_now().await;
            }
            Ok(next(n))
        });
        plan.ingress(node);
        plan.egress(node);
        plan.node(node).queue = 1;
    }
    let config = RunConfig {
        limits: Limits {
            traces,
            ..Limits::default()
        },
        ..RunConfig::default()
    };
    Engine::start(Arc::new(plan.build()), config)
}

/// Polls it, woken or not, and gives up after so many times.
async fn polled<T>(future: impl Future<Output = T>, mut times: u64) -> Option<T> {
    let mut future = pin!(future);
    std::future::poll_fn(move |cx| {
        if let Poll::Ready(done) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(done));
        }
        if times == 0 {
            return Poll::Ready(None);
        }
        times -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

async fn all(tasks: Vec<JoinHandle<()>>) {
    for task in tasks {
        let done = clock::timeout(HANGS, task).await;
        done.expect("nobody hangs").unwrap();
    }
}

/// Waits until it is so.
async fn until(done: impl Fn() -> bool) {
    let waits = async {
        while !done() {
            tokio::task::yield_now().await;
        }
    };
    clock::timeout(HANGS, waits).await.expect("nothing is left");
}

/// Traces of one tenant after one another: some have a deadline, some an id that is in use, some are cancelled, and the
/// wait of many is given up.
async fn trouble(engine: Engine, tenant: String, ids: [TraceId; 4]) {
    for n in 0..500 {
        let mut accepted = of_tenant(&tenant, n);
        accepted.deadline = match below(8) {
            0..3 => Some(10 * S),
            3 => Some(Duration::from_micros(below(300) + 1)),
            _ => None,
        };
        if below(5) == 0 {
            accepted.trace_id = ids[below(4) as usize];
        }
        let emit = engine.emit(accepted);
        let emitted = match below(3) {
            0 => Some(emit.await),
            _ => polled(emit, below(12)).await,
        };
        match emitted {
            Some(Ok(reader)) => {
                if below(4) == 0 {
                    engine.cancel(reader.trace_id(), &tenant.parse().unwrap());
                }
                let ended = clock::timeout(HANGS, read(reader)).await;
                ended.expect("it ends");
            }
            Some(Err(EmitError::TraceInUse(_) | EmitError::DeadlineExceeded)) | None => {}
            Some(Err(other)) => panic!("{other:?}"),
        }
    }
}

async fn storm(traces: usize, ways: usize) {
    let engine = ways_in(traces, ways);
    let ids = [(); 4].map(|()| TraceId::generate());
    let task = |task: u64| spawn(trouble(engine.clone(), format!("t{}", task % 3), ids));
    all((0..12).map(task).collect()).await;
    let shared = &engine.handle.shared;
    let at_rest = |gate: &mut Gate| gate.inbox.is_at_rest() && !gate.has_line();
    let rests = || shared.nodes.iter().all(|node| node.gate(at_rest));
    until(|| shared.live() == 0 && rests()).await;
    assert_empty(&engine);
    assert_eq!(shared.room.free(), traces);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_gives_up_while_he_waits_to_emit_leaves_nothing() {
    for ways in [1, 2] {
        for traces in [2, 100] {
            storm(traces, ways).await;
        }
    }
}

/// Emits until the flow is stopped.
async fn until_stopped(engine: Engine, tenant: String) {
    loop {
        let mut accepted = of_tenant(&tenant, below(5));
        accepted.deadline = (below(2) == 0).then_some(10 * S);
        let emit = engine.emit(accepted);
        let emitted = match below(2) {
            0 => Some(emit.await),
            _ => polled(emit, below(6)).await,
        };
        match emitted {
            Some(Ok(reader)) => {
                let ended = clock::timeout(HANGS, read(reader)).await;
                ended.expect("it ends");
            }
            Some(Err(EmitError::Stopped)) => return,
            Some(Err(other)) => panic!("{other:?}"),
            None => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_sends_all_away_who_wait_to_emit_and_leaves_nothing() {
    for round in 0..200 {
        let engine = ways_in(3, 1 + round % 2);
        let task = |task: u64| spawn(until_stopped(engine.clone(), format!("t{}", task % 3)));
        let tasks = (0..8).map(task).collect();
        for _ in 0..below(200) {
            tokio::task::yield_now().await;
        }
        let limit = if round % 3 > 0 { S } else { Duration::ZERO };
        let stopped = clock::timeout(HANGS, engine.stop(limit)).await;
        stopped.expect("it stops");
        all(tasks).await;
        let shared = Arc::downgrade(&engine.handle.shared);
        assert_eq!(engine.handle.shared.room.free(), 3);
        drop(engine);
        until(|| shared.strong_count() == 0).await;
    }
}
