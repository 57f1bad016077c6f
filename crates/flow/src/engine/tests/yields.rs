//! Chunks, pauses, contexts, and nodes that misbehave.

use volary_kernel::{Tenant, clock};

use super::*;
use crate::{
    ChunkSpec, Context,
    engine::{Read, testing::*},
    error::EmitError,
    graph::plan::{Payload, Step},
    outcome::{DropReason, Outcome},
};

/// Streams `n` chunks, then passes on.
fn streams() -> TestPlan {
    let mut plan = TestPlan::new();
    let node = plan.call("stream", |n: u64, context: Context| async move {
        for at in 0..n {
            let text = at.to_string();
            let done = at == 2;
            context
                .chunk_of(ChunkSpec {
                    text,
                    done,
                    ..ChunkSpec::default()
                })
                .await?;
        }
        Ok(next(n))
    });
    plan.chain(&[node]);
    plan
}

#[tokio::test(start_paused = true)]
async fn chunks_come_in_order_and_are_numbered_anew_after_the_last() {
    let engine = start(streams());
    let mut reader = engine.emit(envelope(5)).await.unwrap();
    let mut seen = Vec::new();
    while let Read::Chunk(chunk) = reader.next().await {
        assert_eq!(chunk.stream_id, reader.trace_id().to_string());
        seen.push((chunk.text, chunk.seq));
    }
    let seen: Vec<_> = seen
        .iter()
        .map(|(text, seq)| (text.as_str(), *seq))
        .collect();
    assert_eq!(seen, [("0", 0), ("1", 1), ("2", 2), ("3", 0), ("4", 1)]);
    assert!(read(reader).await.1.is_done());
    assert_empty(&engine);
}

#[tokio::test(start_paused = true)]
async fn a_stream_waits_for_its_reader_and_not_for_one_that_is_gone() {
    let mut config = RunConfig::default();
    config.limits.chunks_per_trace = 2;
    let engine = Engine::start(Arc::new(streams().build()), config);
    let reader = engine.emit(envelope(10)).await.unwrap();
    settle().await;
    assert_eq!(reader_chunks(&engine, reader.trace_id()), 2);
    assert_eq!(read(reader).await.0, [10]);

    let gone = engine.emit(envelope(10)).await.unwrap();
    let id = gone.trace_id();
    drop(gone);
    let next = engine.emit(of_tenant("other", 1)).await.unwrap();
    assert!(read(next).await.1.is_done(), "it is not held up");
    let (_, outcome) = read(engine.fetch(id, &Tenant::default()).unwrap()).await;
    let reason = DropReason::Abandoned;
    assert!(matches!(outcome, Outcome::Dropped { reason: r } if r == reason));
    settle().await;
    assert_empty(&engine);
}

fn reader_chunks(engine: &Engine, id: volary_kernel::TraceId) -> u32 {
    let trace = engine.handle.shared.index.get(id).unwrap();
    trace.cell.lock().chunks
}

#[tokio::test(start_paused = true)]
async fn a_paused_trace_holds_before_its_next_step_and_others_go_on() {
    let second = Count::default();
    let counted = second.clone();
    let mut plan = TestPlan::new();
    let a = plan.call("a", |n, context: Context| async move {
        if n == 1 {
            context.pause();
        }
        Ok(next(n))
    });
    let b = plan.call("b", move |n, _| {
        counted.up();
        async move { Ok(next(n)) }
    });
    plan.chain(&[a, b]);
    let engine = start(plan);
    let tenant = Tenant::default();
    let paused = engine.emit(envelope(1)).await.unwrap();
    let id = paused.trace_id();
    assert_eq!(read(engine.emit(envelope(2)).await.unwrap()).await.0, [2]);
    clock::sleep(3600 * S).await;
    assert_eq!(second.get(), 1);
    assert!(!engine.pause(id, &tenant), "it is paused already");
    assert!(!engine.resume(id, &"other".parse().unwrap()), "not theirs");
    assert!(engine.resume(id, &tenant) && !engine.resume(id, &tenant));
    assert_eq!(read(paused).await.0, [1]);

    let paused = engine.emit(envelope(1)).await.unwrap();
    settle().await;
    assert!(engine.cancel(paused.trace_id(), &tenant).cancelled);
    assert!(matches!(read(paused).await.1, Outcome::Cancelled));
    settle().await;
    assert_empty(&engine);
}

#[tokio::test(start_paused = true)]
async fn keys_of_steps_are_the_same_in_every_attempt_and_differ_between_branches() {
    let keys = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let seen = keys.clone();
    let mut plan = TestPlan::new();
    let each = plan.call("each", |n, _| async move {
        let values = (0..n).map(Payload::new);
        Ok(Step::Each(values.collect()))
    });
    let last = plan.call("last", move |n, context: Context| {
        seen.lock().push(context.idempotency_key());
        async move {
            if context.attempt() == 1 {
                return Err(crate::NodeError::retryable("once more"));
            }
            Ok(next(n))
        }
    });
    plan.policy(last).max_retries = 1;
    plan.chain(&[each, last]);
    let engine = start(plan);
    let reader = engine.emit(envelope(1)).await.unwrap();
    let id = reader.trace_id();
    read(reader).await;
    assert_eq!(*keys.lock(), vec![format!("{id}/last/0"); 2]);
    keys.lock().clear();
    read(engine.emit(envelope(8)).await.unwrap()).await;
    let mut all = std::mem::take(&mut *keys.lock());
    assert_eq!(all.len(), 16);
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 8);
    assert_empty(&engine);
}

#[tokio::test(start_paused = true)]
async fn a_flow_that_calls_itself_without_end_is_refused() {
    let engine = start(streams());
    let mut parent: Option<Arc<crate::engine::Trace>> = None;
    let mut readers = Vec::new();
    let refused = loop {
        let mut accepted = envelope(0);
        accepted.parent = parent.clone();
        accepted.deadline = Some(std::time::Duration::from_secs(60));
        match engine.emit_nowait(accepted) {
            Ok(reader) => {
                parent = engine.handle.shared.index.get(reader.trace_id());
                readers.push(reader);
            }
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused, EmitError::TooDeep(16));
    assert_eq!(readers.len(), 17);
    let mut unbounded = envelope(0);
    unbounded.parent = engine.handle.shared.index.get(readers[0].trace_id());
    let refused = engine.emit_nowait(unbounded).err();
    assert_eq!(refused, Some(EmitError::CallsItself));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_blocks_its_thread_delays_no_outcome_and_is_named() {
    let (free, held) = std::sync::mpsc::channel::<()>();
    let held = parking_lot::Mutex::new(held);
    let mut plan = TestPlan::new();
    let node = plan.call("block", move |n, _| {
        if n == 0 {
            let _until_freed = held.lock().recv();
        }
        async move { Ok(next(n)) }
    });
    plan.chain(&[node]);
    let mut config = RunConfig::default();
    config.limits.blocked_after = 5 * MS;
    let metrics = config.metrics.clone();
    let engine = Engine::start(Arc::new(plan.build()), config);
    let reader = engine.emit(within(30 * MS, 0)).await.unwrap();
    let (_, outcome) = read(reader).await;
    assert!(matches!(outcome, Outcome::DeadlineExceeded));
    let blocked = volary_kernel::testing::eventually(10 * S, || {
        engine
            .blocked()
            .iter()
            .any(|(node, _)| node.as_str() == "block")
    });
    assert!(blocked.await);
    let queued = engine.emit(within(30 * MS, 1)).await.unwrap();
    assert!(matches!(read(queued).await.1, Outcome::DeadlineExceeded));
    let late = engine.emit(envelope(2)).await.unwrap();
    free.send(()).unwrap();
    assert_eq!(read(late).await.0, [2]);
    let count = |line: &str| metrics.encode_text().contains(line);
    let text = || metrics.encode_text();
    assert!(
        count("volary_flow_late_results_total{flow=\"test\"} 1"),
        "{}",
        text()
    );
    assert!(
        count("volary_flow_node_blocked_total{flow=\"test\",node=\"block\"}"),
        "{}",
        text()
    );
    let report = engine.stop(S).await;
    assert!(report.is_clean(), "{report:?}");
    assert_empty(&engine);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_names_the_node_that_holds_its_thread() {
    let (free, held) = std::sync::mpsc::channel::<()>();
    let held = parking_lot::Mutex::new(held);
    let mut plan = TestPlan::new();
    let node = plan.call("block", move |n, _| {
        let _until_freed = held.lock().recv();
        async move { Ok(next(n)) }
    });
    plan.chain(&[node]);
    let engine = start(plan);
    let reader = engine.emit(envelope(0)).await.unwrap();
    let report = engine.stop(10 * MS).await;
    assert_eq!(report.unfinished, [reader.trace_id()]);
    assert_eq!(report.blocked, ["block"]);
    drop(free);
    assert!(matches!(read(reader).await.1, Outcome::Dropped { .. }));
}
