//! Every trace ends once, whoever is first.

use volary_kernel::clock;

use super::*;
use crate::{
    Context,
    engine::{Read, testing::*},
    error::{EmitError, FlowErrorCode, NodeError},
    outcome::{DropReason, Outcome},
};

/// One node that waits so many milliseconds.
fn waits() -> TestPlan {
    let mut plan = TestPlan::new();
    let node = plan.call("wait", |n: u64, _: Context| async move {
        clock::sleep(Duration::from_millis(n)).await;
        Ok(next(n))
    });
    plan.chain(&[node]);
    plan
}

#[tokio::test(start_paused = true)]
async fn a_cancel_ends_a_trace_at_once_and_touches_no_other() {
    let engine = start(waits());
    let tenant = volary_kernel::Tenant::default();
    let a = engine.emit(envelope(10_000)).await.unwrap();
    let b = engine.emit(envelope(20)).await.unwrap();
    settle().await;
    let other = "other".parse().unwrap();
    assert!(!engine.cancel(a.trace_id(), &other).cancelled, "not theirs");
    let id = a.trace_id();
    let report = engine.cancel(id, &tenant);
    assert_eq!(
        (report.cancelled, report.running, report.queued),
        (true, 1, 0)
    );
    assert!(!engine.cancel(id, &tenant).cancelled, "it is sticky");
    let before = tokio::time::Instant::now();
    assert!(matches!(read(a).await, (_, Outcome::Cancelled)));
    let (values, outcome) = read(b).await;
    assert_eq!((values, outcome.is_done()), (vec![20], true));
    assert!(before.elapsed() < 25 * MS);
    assert!(!engine.cancel(id, &tenant).cancelled, "unknown now");
    assert_empty(&engine);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_bounds_the_attempt_the_queue_and_the_wait_for_room() {
    let mut plan = waits();
    plan.node(0).queue = 1;
    let engine = start(plan);
    let before = tokio::time::Instant::now();
    let running = engine.emit(within(S, 60_000)).await.unwrap();
    settle().await;
    let queued = engine.emit(within(S, 1)).await.unwrap();
    let outside = engine.emit(within(S / 2, 1)).await;
    assert_eq!(outside.err(), Some(EmitError::DeadlineExceeded));
    for reader in [running, queued] {
        let (values, outcome) = read(reader).await;
        assert_eq!(values, Vec::<u64>::new());
        assert!(matches!(outcome, Outcome::DeadlineExceeded), "{outcome:?}");
    }
    assert!(before.elapsed() <= S + 5 * MS, "{:?}", before.elapsed());
    settle().await;
    assert_empty(&engine);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_bounds_back_off() {
    let mut plan = TestPlan::new();
    let node = plan.call("bad", |_, _| async {
        Err(NodeError::retryable("no").after(10 * S))
    });
    plan.policy(node).max_retries = 5;
    plan.chain(&[node]);
    let engine = start(plan);
    let before = tokio::time::Instant::now();
    let (_, outcome) = read(engine.emit(within(S, 1)).await.unwrap()).await;
    assert!(
        matches!(outcome, Outcome::Failed(_)),
        "the wait would be longer than the deadline"
    );
    let (_, outcome) = read(engine.emit(within(15 * S, 1)).await.unwrap()).await;
    assert!(matches!(outcome, Outcome::Failed(_)), "{outcome:?}");
    assert!(before.elapsed() < 16 * S);
    settle().await;
    assert_empty(&engine);
}

#[tokio::test(start_paused = true)]
async fn attempts_end_by_timeout_and_retries_have_their_number() {
    let runs = Count::default();
    let counted = runs.clone();
    let mut plan = TestPlan::new();
    let node = plan.call("slow", move |n, context: Context| {
        let attempt = counted.up();
        async move {
            assert_eq!(u64::from(context.attempt()), attempt);
            if attempt < 3 {
                clock::sleep(60 * S).await;
            }
            Ok(next(n))
        }
    });
    plan.policy(node).timeout = Some(S);
    plan.policy(node).max_retries = 2;
    plan.chain(&[node]);
    let engine = start(plan);
    let (values, outcome) = read(engine.emit(envelope(9)).await.unwrap()).await;
    assert_eq!((values, outcome.is_done(), runs.get()), (vec![9], true, 3));
    assert_empty(&engine);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_without_attempts_left_says_so() {
    let mut plan = waits();
    plan.policy(0).timeout = Some(S);
    let engine = start(plan);
    let (_, outcome) = read(engine.emit(envelope(9_000)).await.unwrap()).await;
    let Outcome::Failed(error) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(error.code, FlowErrorCode::NodeTimeout);
    assert_eq!((error.timeout, error.attempts), (Some(S), 1));
    assert!(error.latency.unwrap() >= S);
    assert_empty(&engine);
}

#[tokio::test(start_paused = true)]
async fn back_off_does_not_hold_the_slot() {
    let mut plan = TestPlan::new();
    let node = plan.call("fussy", |n, context: Context| async move {
        if n == 0 && context.attempt() < 3 {
            return Err(NodeError::retryable("not yet").after(10 * S));
        }
        Ok(next(n))
    });
    plan.policy(node).max_retries = 2;
    plan.chain(&[node]);
    let engine = start(plan);
    let bad = engine.emit(of_tenant("a", 0)).await.unwrap();
    settle().await;
    let before = tokio::time::Instant::now();
    for n in 1..20 {
        let good = engine.emit(of_tenant("b", n)).await.unwrap();
        assert_eq!(read(good).await.0, [n]);
    }
    assert!(before.elapsed() < S);
    assert_eq!(read(bad).await.0, [0]);
    assert!(before.elapsed() >= 20 * S);
    assert_empty(&engine);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_in_back_off_leaves_nothing() {
    let mut plan = TestPlan::new();
    let node = plan.call("bad", |_, _| async {
        Err(NodeError::retryable("no").after(1000 * S))
    });
    plan.policy(node).max_retries = 1;
    plan.chain(&[node]);
    let engine = start(plan);
    let reader = engine.emit(envelope(0)).await.unwrap();
    settle().await;
    let report = engine.cancel(reader.trace_id(), &volary_kernel::Tenant::default());
    assert_eq!((report.running, report.queued), (0, 1));
    assert!(matches!(read(reader).await.1, Outcome::Cancelled));
    settle().await;
    assert_empty(&engine);
}

#[tokio::test(start_paused = true)]
async fn a_panic_fails_its_trace_and_nothing_more() {
    let mut plan = TestPlan::new();
    let node = plan.call("brittle", |n, _| {
        assert_ne!(n, 1, "at the start");
        async move {
            tokio::task::yield_now().await;
            assert_ne!(n, 2, "later");
            Ok(next(n))
        }
    });
    plan.policy(node).max_retries = 3;
    plan.chain(&[node]);
    let engine = start(plan);
    for n in 0..5 {
        let (values, outcome) = read(engine.emit(envelope(n)).await.unwrap()).await;
        match outcome {
            Outcome::Done => assert_eq!(values, [n]),
            Outcome::Failed(error) => {
                assert!(n == 1 || n == 2);
                assert_eq!((error.code, error.attempts), (FlowErrorCode::NodePanic, 1));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_empty(&engine);
}

#[tokio::test(start_paused = true)]
async fn stop_drains_and_names_what_was_not_done_in_time() {
    let engine = start(waits());
    let mut readers = Vec::new();
    for n in [10, 20, 60_000, 5] {
        readers.push(engine.emit(envelope(n)).await.unwrap());
    }
    let left: Vec<_> = readers[2..]
        .iter()
        .map(|reader| reader.trace_id())
        .collect();
    let report = engine.stop(S).await;
    let mut unfinished = report.unfinished.clone();
    unfinished.sort();
    let mut expected = left;
    expected.sort();
    assert_eq!(unfinished, expected);
    assert_eq!(report.blocked, Vec::<String>::new());
    for (at, reader) in readers.into_iter().enumerate() {
        let (_, outcome) = read(reader).await;
        let stopped = Outcome::Dropped {
            reason: DropReason::Stopped,
        };
        assert_eq!(
            outcome.as_str(),
            if at < 2 { "done" } else { stopped.as_str() }
        );
    }
    assert_eq!(
        engine.emit(envelope(1)).await.err(),
        Some(EmitError::Stopped)
    );
    assert_eq!(engine.stop(S).await, crate::StopReport::default());
    assert_empty(&engine);
}

#[tokio::test(start_paused = true)]
async fn who_waits_to_emit_is_sent_away_by_a_stop() {
    let mut plan = waits();
    plan.node(0).queue = 1;
    let engine = start(plan);
    let _running = engine.emit(envelope(60_000)).await.unwrap();
    settle().await;
    let _queued = engine.emit(envelope(60_000)).await.unwrap();
    let (waiting, _report) = tokio::join!(engine.emit(envelope(1)), engine.stop(S));
    assert_eq!(waiting.err(), Some(EmitError::Stopped));
}

#[tokio::test(start_paused = true)]
async fn abandoned_results_can_be_fetched_for_a_while_and_then_are_gone() {
    let engine = start(waits());
    let tenant = volary_kernel::Tenant::default();
    let reader = engine.emit(envelope(5)).await.unwrap();
    let id = reader.trace_id();
    drop(reader);
    assert!(engine.fetch(id, &"other".parse().unwrap()).is_none());
    let reader = engine.fetch(id, &tenant).unwrap();
    assert!(engine.fetch(id, &tenant).is_none(), "it is being read");
    assert_eq!(read(reader).await.0, [5]);
    assert!(engine.fetch(id, &tenant).is_none(), "it was read");

    let reader = engine.emit(envelope(5)).await.unwrap();
    let id = reader.trace_id();
    drop(reader);
    clock::sleep(59 * S).await;
    assert!(engine.fetch(id, &tenant).is_some(), "and dropped again");
    clock::sleep(59 * S).await;
    assert_eq!(engine.handle.shared.index.len().0, 1);
    clock::sleep(2 * S).await;
    assert!(engine.fetch(id, &tenant).is_none());
    assert_empty(&engine);
}

#[tokio::test(start_paused = true)]
async fn abandoned_results_stall_nobody_and_are_bounded() {
    let mut plan = TestPlan::new();
    let node = plan.call("pass", pass);
    plan.chain(&[node]);
    let mut config = RunConfig::default();
    config.limits.results = 10;
    let engine = Engine::start(Arc::new(plan.build()), config);
    for n in 0..1_000 {
        drop(engine.emit(envelope(n)).await.unwrap());
    }
    let (values, _) = read(engine.emit(of_tenant("quiet", 7)).await.unwrap()).await;
    assert_eq!(values, [7]);
    settle().await;
    assert!(engine.handle.shared.index.len().0 <= 10);
    clock::sleep(61 * S).await;
    assert_empty(&engine);
}

#[tokio::test(start_paused = true)]
async fn a_tenant_that_abandons_results_pushes_out_its_own() {
    let mut plan = TestPlan::new();
    let node = plan.call("pass", pass);
    plan.chain(&[node]);
    let mut config = RunConfig::default();
    config.limits.results = 10;
    let engine = Engine::start(Arc::new(plan.build()), config);
    let mut quiet = Vec::new();
    for n in 0..3 {
        let reader = engine.emit(of_tenant("quiet", n)).await.unwrap();
        quiet.push(reader.trace_id());
        drop(reader);
        clock::sleep(MS).await;
    }
    let mut loud = Vec::new();
    for n in 0..100 {
        let reader = engine.emit(of_tenant("loud", n)).await.unwrap();
        loud.push(reader.trace_id());
        drop(reader);
        clock::sleep(MS).await;
    }
    let tenant = "loud".parse().unwrap();
    let kept = loud.iter().filter_map(|id| engine.fetch(*id, &tenant));
    let kept: Vec<_> = kept.map(|reader| reader.trace_id()).collect();
    assert_eq!(kept, loud[93..], "its last seven");
    for (n, id) in (0..).zip(quiet) {
        let kept = engine.fetch(id, &"quiet".parse().unwrap());
        assert_eq!(read(kept.expect("it is kept")).await.0, [n]);
    }
    clock::sleep(61 * S).await;
    assert_empty(&engine);
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_emitting_leaves_no_place_held() {
    let mut plan = waits();
    plan.node(0).queue = 1;
    let engine = start(plan);
    let running = engine.emit(envelope(100)).await.unwrap();
    settle().await;
    let queued = engine.emit(envelope(1)).await.unwrap();
    for _ in 0..100 {
        let emit = clock::timeout(MS / 10, engine.emit(envelope(1))).await;
        assert!(emit.is_err(), "there is no room");
    }
    assert_eq!(engine.emit_nowait(envelope(1)).err(), Some(EmitError::Full));
    let waiting = engine.emit(envelope(3));
    let (waited, running) = tokio::join!(waiting, read(running));
    assert_eq!(running.0, [100]);
    assert_eq!(read(waited.unwrap()).await.0, [3]);
    assert_eq!(read(queued).await.0, [1]);
    assert_empty(&engine);
}

#[tokio::test(start_paused = true)]
async fn exactly_one_outcome_whatever_races() {
    let engine = start(waits());
    for round in 0..200u64 {
        let mut reader = engine.emit(within(3 * MS, round % 6)).await.unwrap();
        let id = reader.trace_id();
        let engine_ = engine.clone();
        let cancel = async move {
            clock::sleep(Duration::from_millis(round % 5)).await;
            engine_
                .cancel(id, &volary_kernel::Tenant::default())
                .cancelled
        };
        let outcomes = async {
            loop {
                if let Read::End(first) = reader.next().await {
                    let Read::End(again) = reader.next().await else {
                        panic!("it yields after its end")
                    };
                    assert_eq!(first.as_str(), again.as_str());
                    return first;
                }
            }
        };
        let (cancelled, outcome) = tokio::join!(cancel, outcomes);
        assert_eq!(cancelled, matches!(outcome, Outcome::Cancelled));
    }
    settle().await;
    clock::sleep(MS * 10).await;
    assert_empty(&engine);
}
