//! Nodes that misbehave: each is bounded and named, and others are unharmed.
//!
//! | the node | bounded by | named by |
//! |---|---|---|
//! | blocks its thread | the trace's deadline; only its own stage stands still | event `node_blocked`, `StopReport::blocked` |
//! | ignores cancel in a task of its own | what it calls is refused | outcome `cancelled`, errors of its `Context` |
//! | panics | the attempt | outcome `failed` with `node_panic` and the node |
//! | panics when it is dropped | the attempt | outcome `cancelled`; the stage goes on |
//! | returns late | the deadline | event `late_result`, its counter |
//! | chooses a target that is not there | the trace | outcome `failed` with `no_such_target` and both names |
//! | calls its own flow, directly or through another | refused; with a deadline, by that and `Limits::depth` | outcome `failed`, the error of `call` |
//! | goes round without end | `Limits::hops` | outcome `failed` with `hop_budget_exhausted` |
//! | holds its slot for ever | the node's timeout | outcome `failed` with `node_timeout`, gauge `running` |
//! | floods its outputs | `Limits::messages_per_trace` | outcome `failed` with `too_many_messages` |
//! | streams to a reader that never reads | `Limits::chunks_per_trace`, the deadline | outcome `deadline_exceeded` |
//! | streams to a reader that is gone | `Limits::chunks_per_trace` | outcome `dropped`, `abandoned` |

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicUsize, Ordering},
    mpsc,
};

use parking_lot::Mutex;
use volary_flow::{
    Context, DropReason, Emit, Flow, FlowBuilder, FlowError, FlowErrorCode, Item, Limits,
    NodeError, Outcome,
    graph::{Route, RunningFlow, TraceHandle},
    policy::NodePolicy,
};
use volary_kernel::{clock, task::TaskKind};

use crate::support::{MS, Seen, WANTED, config, hush, ms, of, soon, tenant, trace, until};

type Builder = FlowBuilder<u64, u64>;
type Running = RunningFlow<u64, u64>;

async fn emit(flow: &Running, payload: u64) -> TraceHandle<u64> {
    let envelope = of("ann", payload).trace(trace(payload));
    let emitted = soon("emit", flow.emit(envelope)).await;
    emitted.expect("it is accepted")
}

async fn read(mut handle: TraceHandle<u64>) -> (Vec<u64>, Outcome) {
    let mut values = Vec::new();
    while let Some(item) = soon("an item", handle.next()).await {
        if let Item::Value(value) = item {
            values.push(value);
        }
    }
    (values, handle.outcome().await)
}

/// A trace of another tenant goes through as if nothing were.
async fn others_are_unharmed(flow: &Running) {
    let emitted = flow.emit(of("bob", 1_000)).await;
    let handle = emitted.expect("it is accepted");
    let (values, outcome) = read(handle).await;
    assert!(outcome.is_done(), "{outcome:?}");
    assert_eq!(values, [1_000]);
}

async fn failure(flow: &Running, payload: u64) -> FlowError {
    let handle = emit(flow, payload).await;
    match read(handle).await.1 {
        Outcome::Failed(error) => *error,
        other => panic!("it is {other:?}"),
    }
}

async fn rests(flow: &Running) {
    until("rest", || {
        let depths = flow.depths();
        let mut nodes = depths.nodes.iter();
        depths.traces == 0 && nodes.all(|node| node.queued + node.running + node.waiting == 0)
    })
    .await;
}

fn single<F, Fut>(policy: NodePolicy, code: F) -> Flow<u64, u64>
where
    F: Fn(u64, Context) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<u64, NodeError>> + Send + 'static,
{
    let mut b = Builder::new("single");
    let node = b.node("rogue", code);
    b.policy(node, policy);
    b.ingress(node).egress(node);
    b.build().expect("it is a good graph")
}

fn wide() -> NodePolicy {
    NodePolicy {
        concurrency: 64,
        ..NodePolicy::default()
    }
}

/// Stays where it is, with its thread, until the other end is dropped.
fn block(until: &Mutex<mpsc::Receiver<()>>) {
    let _closed = until.lock().recv();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_blocks_its_thread_is_named_and_its_trace_ends_by_its_deadline() {
    let (release, blocked) = mpsc::channel::<()>();
    let blocked = Arc::new(Mutex::new(blocked));
    let mut b = Builder::new("blocked");
    let choose = b.route("choose", |n: &u64, _: &Context| {
        Route::named(if *n < 10 { "rogue" } else { "good" })
    });
    let rogue = b.node("rogue", move |n: u64, _: Context| {
        block(&blocked);
        async move { Ok(n) }
    });
    let good = b.node("good", |n: u64, _: Context| async move { Ok(n) });
    b.connect(choose, rogue).connect(choose, good);
    b.ingress(choose).egress(rogue).egress(good);
    let (seen, mut config) = Seen::config();
    config.limits.blocked_after = ms(50);
    config.fuse = false;
    let flow = b.build().expect("it is a good graph").start(config);
    let envelope = of("ann", 1).trace(trace(1)).deadline(ms(200));
    let handle = flow.emit(envelope).await.expect("it is accepted");
    assert!(matches!(read(handle).await.1, Outcome::DeadlineExceeded));
    others_are_unharmed(&flow).await;
    seen.wait("node_blocked", 1).await;
    let events = seen.of(trace(1));
    let named = events
        .iter()
        .find(|event| event.kind.as_str() == "node_blocked");
    let named = named.and_then(|event| event.node.as_ref());
    assert_eq!(named.map(|name| name.as_str()), Some("rogue"));
    let report = flow.stop(ms(200)).await;
    assert_eq!(report.blocked, ["rogue"]);
    assert!(!report.is_clean());
    drop(release);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_ignores_cancel_gets_nothing_more_from_its_context() {
    const KIND: TaskKind = TaskKind::new("ignores-cancel");
    let errors = Arc::new(AtomicUsize::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let settings = config();
    let tasks = settings.supervisor.clone();
    let (counts, stops) = (errors.clone(), stop.clone());
    let flow = single(wide(), move |n: u64, context: Context| {
        let (counts, stops) = (counts.clone(), stops.clone());
        if n == 1 {
            tasks.spawn(KIND, async move {
                while !stops.load(Ordering::SeqCst) {
                    if context.chunk("more").await.is_err() {
                        assert!(context.is_cancelled());
                        counts.fetch_add(1, Ordering::SeqCst);
                    }
                    clock::sleep(MS).await;
                }
                Ok(())
            });
        }
        async move {
            if n == 1 {
                std::future::pending::<()>().await;
            }
            Ok(n)
        }
    });
    let flow = flow.start(settings);
    let mut handle = emit(&flow, 1).await;
    assert!(matches!(
        soon("a piece", handle.next()).await,
        Some(Item::Chunk(_))
    ));
    assert!(flow.cancel(trace(1), &tenant("ann")).cancelled);
    assert!(matches!(read(handle).await.1, Outcome::Cancelled));
    until("it is refused", || errors.load(Ordering::SeqCst) > 3).await;
    rests(&flow).await;
    others_are_unharmed(&flow).await;
    stop.store(true, Ordering::SeqCst);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_panics_fails_its_trace_and_is_named() {
    hush();
    let mut settings = config();
    settings.metric_tenants = vec![tenant("ann")];
    let metrics = settings.metrics.clone();
    let policy = NodePolicy {
        max_retries: 3,
        ..NodePolicy::default()
    };
    let flow = single(policy, |n: u64, _: Context| {
        assert!(n != 1, "{WANTED}: before its future");
        async move {
            assert!(n != 2, "{WANTED}: at its first poll");
            clock::sleep(MS).await;
            assert!(n != 3, "{WANTED}: after it waited");
            Ok(n)
        }
    });
    let flow = flow.start(settings);
    for n in 1..=3 {
        let error = failure(&flow, n).await;
        assert_eq!(error.code, FlowErrorCode::NodePanic);
        assert_eq!((error.node.as_str(), error.attempts), ("rogue", 1));
        assert!(error.message.contains(WANTED), "{}", error.message);
        others_are_unharmed(&flow).await;
    }
    rests(&flow).await;
    until("its counter", || {
        let text = metrics.encode_text();
        let line = text.lines().find(|line| {
            line.starts_with("volary_flow_node_failed_total")
                && line.contains("rogue")
                && line.contains("ann")
        });
        line.is_some_and(|line| line.ends_with(" 3"))
    })
    .await;
}

/// Panics when it is dropped before its end.
struct Bomb(bool);

impl Drop for Bomb {
    fn drop(&mut self) {
        if self.0 && !std::thread::panicking() {
            panic!("{WANTED}: as it is dropped");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_panics_as_it_is_dropped_harms_nobody() {
    hush();
    let flow = single(wide(), |n: u64, _: Context| async move {
        let mut bomb = Bomb(n == 1);
        if n == 1 {
            std::future::pending::<()>().await;
        }
        bomb.0 = false;
        Ok(n)
    });
    let flow = flow.start(config());
    let handle = emit(&flow, 1).await;
    until("it runs", || {
        flow.depths().nodes.iter().any(|node| node.running == 1)
    })
    .await;
    clock::sleep(ms(10)).await;
    assert!(flow.cancel(trace(1), &tenant("ann")).cancelled);
    assert!(matches!(read(handle).await.1, Outcome::Cancelled));
    others_are_unharmed(&flow).await;
    rests(&flow).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_returns_late_goes_nowhere_and_is_told_of() {
    let (_keep, blocked) = mpsc::channel::<()>();
    let blocked = Arc::new(Mutex::new(blocked));
    let (seen, settings) = Seen::config();
    let flow = single(NodePolicy::default(), move |n: u64, _: Context| {
        if n == 1 {
            let _timed_out = blocked.lock().recv_timeout(ms(150));
        }
        async move { Ok(n) }
    });
    let flow = flow.start(settings);
    let envelope = of("ann", 1).trace(trace(1)).deadline(ms(30));
    let handle = flow.emit(envelope).await.expect("it is accepted");
    let (values, outcome) = read(handle).await;
    assert!(matches!(outcome, Outcome::DeadlineExceeded));
    assert_eq!(values, [0; 0]);
    seen.wait("late_result", 1).await;
    others_are_unharmed(&flow).await;
}

#[tokio::test(start_paused = true)]
async fn a_target_that_is_not_there_fails_the_trace_and_both_are_named() {
    let mut b = Builder::new("lost");
    let choose = b.route("choose", |n: &u64, _: &Context| match n {
        1 => Route::named("nowhere"),
        _ => Route::egress(),
    });
    b.ingress(choose).egress(choose);
    let flow = b.build().expect("it is a good graph").start(config());
    let error = failure(&flow, 1).await;
    assert_eq!(error.code, FlowErrorCode::NoSuchTarget);
    assert_eq!((error.node.as_str(), error.attempts), ("choose", 1));
    assert!(error.message.contains("nowhere"), "{}", error.message);
    others_are_unharmed(&flow).await;
    rests(&flow).await;
}

/// A flow that calls itself, or the other one, without end for a payload below 10.
fn calling(policy: NodePolicy) -> (Flow<u64, u64>, Arc<OnceLock<Running>>) {
    let called: Arc<OnceLock<Running>> = Arc::default();
    let calls = called.clone();
    let flow = single(policy, move |n: u64, context: Context| {
        let flow = calls.get().cloned();
        async move {
            match flow {
                Some(flow) if n < 10 => context.call(&flow, n).await,
                _ => Ok(n),
            }
        }
    });
    (flow, called)
}

#[tokio::test(start_paused = true)]
async fn a_flow_that_calls_itself_is_refused() {
    for concurrency in [1, 64] {
        let mut policy = wide();
        policy.concurrency = concurrency;
        let (flow, called) = calling(policy);
        let flow = flow.start(config());
        let _first = called.set(flow.clone());
        let error = failure(&flow, 1).await;
        assert_eq!(error.code, FlowErrorCode::NodeError);
        assert!(error.message.contains("calls itself"), "{}", error.message);
        others_are_unharmed(&flow).await;
        rests(&flow).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_flow_that_waits_for_its_own_slot_ends_by_its_deadline() {
    let (flow, called) = calling(NodePolicy::default());
    let flow = flow.start(config());
    let _first = called.set(flow.clone());
    let envelope = of("ann", 1).deadline(ms(100));
    let handle = flow.emit(envelope).await.expect("it is accepted");
    assert!(matches!(read(handle).await.1, Outcome::DeadlineExceeded));
    others_are_unharmed(&flow).await;
    rests(&flow).await;
}

#[tokio::test(start_paused = true)]
async fn flows_that_call_one_another_in_a_circle_are_refused() {
    let (one, calls_two) = calling(wide());
    let (two, calls_one) = calling(wide());
    let (one, two) = (one.start(config()), two.start(config()));
    let _first = calls_two.set(two.clone());
    let _first = calls_one.set(one.clone());
    let error = failure(&one, 1).await;
    assert!(error.message.contains("calls itself"), "{}", error.message);
    for flow in [&one, &two] {
        others_are_unharmed(flow).await;
        rests(flow).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_trace_that_goes_round_without_end_is_ended_and_named() {
    let mut b = Builder::new("round");
    let count = Arc::new(AtomicUsize::new(0));
    let counts = count.clone();
    let step = b.step("again", move |n: u64, _: Context| {
        counts.fetch_add(1, Ordering::SeqCst);
        async move {
            Ok(if n < 10 {
                Emit::Next(n)
            } else {
                Emit::Finish(n)
            })
        }
    });
    let out = b.sink("out", |_: u64, _: Context| async move { Ok(()) });
    b.connect(step, out).connect_back(step, step).ingress(step);
    let mut settings = config();
    settings.limits.hops = 16;
    let built = b.build();
    let flow = built.expect("it is a good graph").start(settings);
    let error = failure(&flow, 1).await;
    assert_eq!(error.code, FlowErrorCode::HopBudgetExhausted);
    assert_eq!(error.node.as_str(), "again");
    assert_eq!(count.load(Ordering::SeqCst), 17, "the first and 16 rounds");
    others_are_unharmed(&flow).await;
    rests(&flow).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_holds_its_slot_for_ever_loses_it_by_its_timeout() {
    let policy = NodePolicy {
        timeout: Some(ms(500)),
        ..NodePolicy::default()
    };
    let flow = single(policy, |n: u64, _: Context| async move {
        if n == 1 {
            std::future::pending::<()>().await;
        }
        Ok(n)
    });
    let flow = flow.start(config());
    let held = emit(&flow, 1).await;
    until("it is seen to run", || {
        let depths = flow.depths();
        let mut nodes = depths.nodes.iter();
        nodes.any(|node| node.node.as_str() == "rogue" && node.running == 1)
    })
    .await;
    others_are_unharmed(&flow).await;
    match read(held).await.1 {
        Outcome::Failed(error) => {
            assert_eq!(error.code, FlowErrorCode::NodeTimeout);
            assert_eq!(error.node.as_str(), "rogue");
        }
        other => panic!("it is {other:?}"),
    }
    rests(&flow).await;
}

/// Without a timeout a cancel frees the slot.
#[tokio::test(start_paused = true)]
async fn a_slot_that_is_held_for_ever_is_freed_by_a_cancel() {
    let flow = single(NodePolicy::default(), |n: u64, _: Context| async move {
        if n == 1 {
            std::future::pending::<()>().await;
        }
        Ok(n)
    });
    let flow = flow.start(config());
    let held = emit(&flow, 1).await;
    let emitted = flow.emit(of("bob", 5).deadline(ms(100))).await;
    let waits = emitted.expect("it is accepted");
    assert!(matches!(read(waits).await.1, Outcome::DeadlineExceeded));
    assert!(flow.cancel(trace(1), &tenant("ann")).cancelled);
    assert!(matches!(read(held).await.1, Outcome::Cancelled));
    others_are_unharmed(&flow).await;
    rests(&flow).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_floods_its_outputs_fails_its_trace_and_is_named() {
    let mut b = Builder::new("flood");
    let flood = b.flat_map("flood", |n: u64, _: Context| async move {
        let count = if n < 10 { 10_000 } else { 1 };
        Ok(vec![n; count])
    });
    let pass = b.node("pass", |n: u64, _: Context| async move { Ok(n) });
    b.queue(pass, 4).connect(flood, pass);
    b.ingress(flood).egress(pass);
    let flow = b.build().expect("it is a good graph").start(config());
    let error = failure(&flow, 1).await;
    assert_eq!(error.code, FlowErrorCode::TooManyMessages);
    assert_eq!(error.node.as_str(), "flood");
    others_are_unharmed(&flow).await;
    rests(&flow).await;
}

/// A node that streams without end; how many pieces it got rid of.
fn streams(limit: usize) -> (Running, Arc<AtomicUsize>) {
    let sent = Arc::new(AtomicUsize::new(0));
    let counts = sent.clone();
    let flow = single(wide(), move |n: u64, context: Context| {
        let counts = counts.clone();
        async move {
            if n >= 10 {
                return Ok(n);
            }
            loop {
                context.chunk("more").await?;
                counts.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    let mut settings = config();
    settings.limits = Limits {
        chunks_per_trace: limit,
        ..Limits::default()
    };
    (flow.start(settings), sent)
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_nobody_reads_waits_at_its_bound_until_the_deadline() {
    let (flow, sent) = streams(8);
    let envelope = of("ann", 1).deadline(ms(1_000));
    let mut handle = flow.emit(envelope).await.expect("it is accepted");
    others_are_unharmed(&flow).await;
    clock::sleep(ms(500)).await;
    assert_eq!(sent.load(Ordering::SeqCst), 8, "the bound");
    for _ in 0..3 {
        assert!(matches!(handle.next().await, Some(Item::Chunk(_))));
    }
    clock::sleep(ms(100)).await;
    assert_eq!(sent.load(Ordering::SeqCst), 11, "as many as were read");
    clock::sleep(ms(1_000)).await;
    assert!(matches!(read(handle).await.1, Outcome::DeadlineExceeded));
    rests(&flow).await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_reader_is_gone_ends_as_abandoned_at_its_bound() {
    let (flow, sent) = streams(8);
    drop(emit(&flow, 1).await);
    until("it is given up", || flow.depths().traces == 0).await;
    assert_eq!(sent.load(Ordering::SeqCst), 8, "the bound");
    let fetched = flow.fetch(trace(1), &tenant("ann"));
    let mut handle = fetched.expect("what it yielded is kept");
    let mut pieces = 0;
    while let Some(Item::Chunk(chunk)) = handle.next().await {
        assert_eq!(chunk.seq, pieces);
        pieces += 1;
    }
    assert_eq!(pieces, 8);
    let reason = DropReason::Abandoned;
    let outcome = handle.outcome().await;
    assert!(matches!(outcome, Outcome::Dropped { reason: r } if r == reason));
    rests(&flow).await;
    others_are_unharmed(&flow).await;
}
