//! Real threads: everything at once, at random. Nothing hangs, nothing is left, and what is told of each trace is whole.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::task::JoinHandle;
use volary_kernel::{Tenant, TraceId, clock, retry::random_unit};

use super::*;
use crate::{
    Limits,
    engine::testing::*,
    error::EmitError,
    graph::plan::{Payload, Step},
    observe::{FlowEvent, Observer},
    outcome::{Outcome, StopReport},
};

const HANGS: Duration = Duration::from_secs(20);
/// Traces of each task.
const ROUNDS: u64 = 1_000;
/// Flows that are stopped.
const STOPS: usize = 1_000;

#[expect(clippy::disallowed_methods, reason = "a test awaits it itself")]
fn spawn<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(task)
}

/// A number below `end`.
fn below(end: u64) -> u64 {
    (random_unit() * end as f64) as u64
}

/// True so many times of a hundred.
fn chance(percent: u64) -> bool {
    below(100) < percent
}

/// Lets others run so often.
async fn turns(count: u64) {
    for _ in 0..count {
        tokio::task::yield_now().await;
    }
}

/// Kinds of events per trace, as they were told.
#[derive(Default)]
struct Told(Mutex<HashMap<TraceId, Vec<FlowEvent>>>);

impl Observer for Told {
    fn observe(&self, events: &[FlowEvent]) {
        let mut told = self.0.lock();
        for event in events {
            let of = told.entry(event.trace_id).or_default();
            of.push(event.clone());
        }
    }
}

/// A chain, branches of different speed, a join, and a chain again; every edge holds one or two.
fn plan() -> TestPlan {
    let mut plan = TestPlan::new();
    let quick = |n: u64, _| async move {
        if n % 13 == 5 {
            return Err(crate::NodeError::retryable("not now"));
        }
        if n % 7 == 3 {
            tokio::task::yield_now().await;
        }
        Ok(next(n))
    };
    let slow = |n: u64, _| async move {
        turns(n % 40).await;
        Ok(next(n))
    };
    let each = |n: u64, _| async move {
        let values = (0..n % 3).map(|_| Payload::new(n));
        Ok(Step::Each(values.collect()))
    };
    let a = plan.call("a", quick);
    let b = plan.call("b", quick);
    let (left, right) = (plan.call("left", slow), plan.call("right", each));
    let join = plan.join("join", None, true);
    plan.join_within(join, MS);
    let (c, d) = (plan.call("c", quick), plan.call("d", quick));
    plan.ingress(a);
    plan.edge(a, b, 2);
    plan.edge(b, left, 1);
    plan.edge(b, right, 2);
    plan.edge(left, join, 1);
    plan.edge(right, join, 1);
    plan.edge(join, c, 1);
    plan.edge(c, d, 1);
    plan.egress(d);
    plan.node(a).queue = 2;
    plan.policy(left).concurrency = 2;
    for node in [b, c] {
        let policy = plan.policy(node);
        policy.max_retries = 1;
        policy.backoff.base = MS;
        policy.timeout = Some(5 * MS);
    }
    plan
}

fn engine(told: &Arc<Told>) -> Engine {
    let config = RunConfig {
        limits: Limits {
            traces: 6,
            ..Limits::default()
        },
        observers: vec![told.clone()],
        ..RunConfig::default()
    };
    Engine::start(Arc::new(plan().build()), config)
}

async fn ends(reader: crate::engine::Reader) -> Outcome {
    let read = clock::timeout(HANGS, read(reader)).await;
    read.expect("its end is told").1
}

/// One trace, treated at random. Returns its id if it was accepted.
async fn one(engine: &Engine, n: u64) -> Option<TraceId> {
    let tenants = ["ann", "bob", "cid", "dan"];
    let tenant = tenants[below(4) as usize];
    let name: Tenant = tenant.parse().unwrap();
    let mut accepted = of_tenant(tenant, n);
    accepted.deadline = chance(30).then(|| Duration::from_micros(50 + below(3_000)));
    let emitted = if chance(30) {
        engine.emit_nowait(accepted)
    } else if chance(20) {
        let limit = Duration::from_micros(below(1_500));
        match clock::timeout(limit, engine.emit(accepted)).await {
            Ok(emitted) => emitted,
            Err(_given_up) => return None,
        }
    } else {
        clock::timeout(HANGS, engine.emit(accepted))
            .await
            .expect("there is room some time")
    };
    let reader = match emitted {
        Ok(reader) => reader,
        Err(EmitError::Full | EmitError::DeadlineExceeded | EmitError::Stopped) => return None,
        Err(other) => panic!("{other}"),
    };
    let id = reader.trace_id();
    match below(10) {
        0 => drop(reader),
        1 => {
            let given_up = clock::timeout(Duration::from_micros(below(500)), read(reader)).await;
            if given_up.is_err()
                && let Some(again) = engine.fetch(id, &name)
            {
                ends(again).await;
            }
        }
        2 | 3 => {
            let canceller = engine.clone();
            let cancelled = spawn(async move { canceller.cancel(id, &name) });
            ends(reader).await;
            cancelled.await.unwrap();
        }
        4 => {
            engine.pause(id, &name);
            tokio::task::yield_now().await;
            engine.resume(id, &name);
            ends(reader).await;
        }
        _ => {
            ends(reader).await;
        }
    }
    Some(id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_done_to_traces_each_ends_once_and_nothing_is_left() {
    let told = Arc::new(Told::default());
    let engine = engine(&told);
    let tasks: Vec<_> = (0..16u64)
        .map(|task| {
            let engine = engine.clone();
            spawn(async move {
                let mut ids = Vec::new();
                for n in 0..ROUNDS {
                    ids.extend(one(&engine, task * ROUNDS + n).await);
                }
                ids
            })
        })
        .collect();
    let mut accepted = Vec::new();
    for task in tasks {
        accepted.extend(task.await.unwrap());
    }
    let rest = async {
        while engine.handle.shared.live() > 0 {
            turns(1).await;
        }
    };
    clock::timeout(HANGS, rest).await.expect("all ended");
    let shared = engine.handle.shared.clone();
    assert!(engine.stop(S).await.is_clean());
    for (node, plan) in shared.nodes.iter().zip(&shared.plan.nodes) {
        let name = &plan.name;
        assert!(node.gate(|gate| gate.inbox.is_at_rest()), "inbox of {name}");
    }
    assert_eq!(shared.room.free(), 6);
    let told = told.0.lock();
    for id in &accepted {
        let events = told.get(id).expect("it is told of");
        let of = |kind| {
            let mut same = events
                .iter()
                .filter(move |event| event.kind.as_str() == kind);
            let (Some(one), None) = (same.next(), same.next()) else {
                panic!("not one {kind} in {events:?}");
            };
            one
        };
        let (start, _end) = (of("trace_start"), of("trace_end"));
        // By time: a stage whose thread is taken away for some milliseconds is told late.
        let first = events.iter().map(|event| event.at).min();
        assert_eq!(first, Some(start.at), "{events:?}");
    }
    assert_eq!(told.len(), accepted.len(), "nothing else is told of");
}
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_or_the_last_handle_in_the_middle_of_it_all_leaves_nothing() {
    for round in 0..STOPS {
        let told = Arc::new(Told::default());
        let engine = engine(&told);
        let shared = Arc::downgrade(&engine.handle.shared);
        let accepted = Arc::new(Mutex::new(Vec::new()));
        let tasks: Vec<_> = (0..6u64)
            .map(|task| {
                let (engine, accepted) = (engine.clone(), accepted.clone());
                spawn(async move {
                    for n in 0.. {
                        match engine.emit(of_tenant("ann", task + n)).await {
                            Ok(reader) => {
                                accepted.lock().push(reader.trace_id());
                                if chance(70) {
                                    ends(reader).await;
                                }
                            }
                            Err(EmitError::Stopped) => return,
                            Err(other) => panic!("{other}"),
                        }
                    }
                })
            })
            .collect();
        turns(below(1_500)).await;
        let limit = if round % 2 == 0 { Duration::ZERO } else { MS };
        let report: StopReport = clock::timeout(HANGS, engine.stop(limit))
            .await
            .expect("it stops");
        for task in tasks {
            clock::timeout(HANGS, task)
                .await
                .expect("no caller hangs")
                .unwrap();
        }
        {
            let accepted = accepted.lock();
            assert!(report.unfinished.iter().all(|id| accepted.contains(id)));
            let told = told.0.lock();
            assert!(
                told.keys().all(|id| accepted.contains(id)),
                "others are told of"
            );
        }
        drop(engine);
        let freed = async {
            while shared.strong_count() > 0 {
                turns(1).await;
            }
        };
        clock::timeout(HANGS, freed)
            .await
            .expect("nothing holds the flow");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_last_handle_is_dropped_every_reader_learns_it_and_the_flow_is_freed() {
    for round in 0..STOPS as u64 {
        let told = Arc::new(Told::default());
        let engine = engine(&told);
        let shared = Arc::downgrade(&engine.handle.shared);
        let mut readers = Vec::new();
        for n in 0..6 {
            let emitted = engine.emit_nowait(of_tenant("ann", round + n));
            readers.extend(emitted.ok());
            if chance(50) {
                tokio::task::yield_now().await;
            }
        }
        for _ in 0..below(2_000) {
            std::hint::spin_loop();
        }
        drop(engine);
        for reader in readers {
            ends(reader).await;
        }
        let freed = async {
            while shared.strong_count() > 0 {
                turns(1).await;
            }
        };
        let freed = clock::timeout(HANGS, freed).await;
        freed.expect("nothing holds the flow");
    }
}
