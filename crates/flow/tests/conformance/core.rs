//! Round trips, bounds, attempts, cancels, deadlines, stops (cases 1–30 and 101–109).
//!
//! What was found wrong in the reference, and the test that would fail with it (here, or where named):
//!
//! | feature | test |
//! |---|---|
//! | final answer runs its node again | `a_final_answer_ends_its_trace_and_is_given_once`, `a_loop_runs_once_per_round_…` |
//! | one attempt per node at once | `a_node_runs_as_many_at_once_as_its_policy_says` |
//! | back-off in the worker; permanent errors retried; no `Retry-After` | `a_back_off_does_not_occupy_the_node`, `permanent_errors_are_not_retried_and_retry_after_is_kept` |
//! | fairness, priority | `proof/neighbour.rs`, `priority_goes_first_within_its_tenant` |
//! | unread results stall all; full cycles deadlock | `results_that_nobody_reads_stall_nobody_and_expire`, `a_full_cycle_does_not_deadlock` |
//! | scoped fetch: one item, hangs, leaks | `a_stream_comes_whole_to_its_own_reader`, `every_end_can_be_fetched_by_its_trace`, `a_read_that_is_given_up_loses_nothing_and_leaves_nothing`, `a_trace_id_is_in_use_until_its_end_was_read` |
//! | unscoped fetch steals | `traces_at_once_each_get_only_their_own_results`, `a_stream_comes_whole_to_its_own_reader` |
//! | cancel hangs fetches, loses others' messages, is anybody's | `a_cancel_…`, `proof/properties.rs` |
//! | a node that ends its worker | `proof/misbehaving.rs::a_node_that_panics_…` |
//! | timeouts wait for the node | `proof/misbehaving.rs::a_node_that_blocks_its_thread_…`, `what_a_node_returns_late_…` |
//! | partial output of attempts | `outputs_of_attempts_that_failed_go_nowhere` |
//! | joins leak and mix requests | `a_join_keeps_nothing_of_a_trace_that_failed` |
//! | deadlines at dequeue only | `a_deadline_interrupts_a_node_and_its_retries`, `attempts_that_time_out_end_with_the_deadline` |
//! | branches share what they change | `a_branch_that_changes_its_value_changes_no_other` |
//! | what grows without bound | `memory.rs`, `an_emit_that_is_given_up_or_refused_leaves_nothing` |
//! | stop strands and loses | `a_stop_drains_what_it_can_and_reports_the_rest` |
//! | a called flow's error hangs its caller | `what_the_called_flow_ends_with_comes_to_its_caller` |

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use volary_flow::{
    Context, DropReason, Emit, EmitError, Envelope, Flow, FlowBuilder, FlowErrorCode, Item, Limits,
    NodeError, Outcome, RunConfig,
    graph::{NodeRef, RunningFlow, TraceHandle},
    policy::NodePolicy,
};
use volary_kernel::{Clock as _, SystemClock, clock, retry::Backoff};

use crate::support::{HANGS, MS, Seen, config, ms, of, soon, tenant, trace, until};

type Builder = FlowBuilder<u64, u64>;

/// A flow of one node, with its policy and the bound of its queue.
fn single<F, Fut>(policy: NodePolicy, queue: usize, code: F) -> Flow<u64, u64>
where
    F: Fn(u64, Context) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<u64, NodeError>> + Send + 'static,
{
    let mut b = Builder::new("single");
    let node = b.node("node", code);
    b.policy(node, policy).queue(node, queue);
    b.ingress(node).egress(node);
    b.build().expect("it is a good graph")
}

fn retries(max_retries: u32) -> NodePolicy {
    NodePolicy {
        max_retries,
        backoff: Backoff {
            base: ms(10),
            jitter: 0.0,
            ..Backoff::default()
        },
        ..NodePolicy::default()
    }
}

fn slow(timeout: Duration, max_retries: u32) -> NodePolicy {
    NodePolicy {
        timeout: Some(timeout),
        ..retries(max_retries)
    }
}

async fn emit(flow: &RunningFlow<u64, u64>, envelope: Envelope<u64>) -> TraceHandle<u64> {
    let emitted = soon("emit", flow.emit(envelope)).await;
    emitted.expect("it is accepted")
}

/// All values of a trace, and how it ended.
async fn read(mut handle: TraceHandle<u64>) -> (Vec<u64>, Outcome) {
    let mut values = Vec::new();
    while let Some(item) = soon("an item", handle.next()).await {
        if let Item::Value(value) = item {
            values.push(value);
        }
    }
    (values, handle.outcome().await)
}

async fn values(flow: &RunningFlow<u64, u64>, envelope: Envelope<u64>) -> Vec<u64> {
    let handle = emit(flow, envelope).await;
    let (values, outcome) = read(handle).await;
    assert!(outcome.is_done(), "{outcome:?}");
    values
}

fn failed(outcome: Outcome) -> (FlowErrorCode, u32) {
    match outcome {
        Outcome::Failed(error) => (error.code, error.attempts),
        other => panic!("it is {other:?}"),
    }
}

fn at_rest(flow: &RunningFlow<u64, u64>) -> bool {
    let depths = flow.depths();
    let idle = depths.nodes.iter();
    let mut idle = idle.map(|node| node.queued + node.running + node.waiting);
    depths.traces == 0 && idle.all(|count| count == 0)
}

/// A gate at which attempts of a node wait.
#[derive(Clone)]
struct Gate {
    open: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    left: Arc<AtomicUsize>,
}

struct Leaves(Arc<AtomicUsize>);

impl Drop for Leaves {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Gate {
    fn new() -> Self {
        Self {
            open: Arc::new(Semaphore::new(0)),
            waiting: Arc::default(),
            left: Arc::default(),
        }
    }

    async fn pass(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let _leaves = Leaves(self.left.clone());
        let permit = self.open.acquire().await.expect("it is not closed");
        permit.forget();
    }

    fn let_through(&self, count: usize) {
        self.open.add_permits(count);
    }

    /// Attempts that came to it.
    fn came(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Attempts that passed it or were dropped at it.
    fn left(&self) -> usize {
        self.left.load(Ordering::SeqCst)
    }

    fn flow(&self, policy: NodePolicy, queue: usize) -> Flow<u64, u64> {
        let gate = self.clone();
        single(policy, queue, move |n: u64, _: Context| {
            let gate = gate.clone();
            async move {
                gate.pass().await;
                Ok(n)
            }
        })
    }
}

// --- Round trips and bounds: 1–6, 18, 19 --------------------------------------------------------

/// 1
#[tokio::test(start_paused = true)]
async fn a_node_that_passes_on_yields_what_was_emitted() {
    let flow = single(NodePolicy::default(), 64, |n: u64, _: Context| async move {
        Ok(n)
    });
    let flow = flow.start(config());
    assert_eq!(values(&flow, of("ann", 7)).await, [7]);
    assert!(flow.stop(HANGS).await.is_clean());
}

/// 2
#[tokio::test(start_paused = true)]
async fn traces_at_once_each_get_only_their_own_results() {
    let policy = NodePolicy {
        concurrency: 8,
        ..NodePolicy::default()
    };
    let flow = single(policy, 64, |n: u64, _: Context| async move {
        clock::sleep(ms(100 - n * 10)).await;
        Ok(n)
    });
    let flow = flow.start(config());
    let all = (0..8).map(|n| {
        let flow = flow.clone();
        async move { (n, values(&flow, of("ann", n)).await) }
    });
    for (n, values) in futures_util::future::join_all(all).await {
        assert_eq!(values, [n]);
    }
}

/// 3: an id is refused rather than made to wait; what is in use is said.
#[tokio::test(start_paused = true)]
async fn a_trace_id_is_in_use_until_its_end_was_read() {
    let gate = Gate::new();
    let flow = gate.flow(NodePolicy::default(), 64).start(config());
    let again = || of("ann", 1).trace(trace(1));
    let handle = emit(&flow, again()).await;
    let refused = EmitError::TraceInUse(trace(1));
    assert_eq!(flow.emit(again()).await.err(), Some(refused.clone()));
    gate.let_through(2);
    until("its end", || flow.depths().traces == 0).await;
    assert_eq!(flow.emit_nowait(again()).err(), Some(refused));
    assert_eq!(read(handle).await.0, [1]);
    assert_eq!(values(&flow, again()).await, [1]);
}

/// 4
#[tokio::test(start_paused = true)]
async fn what_a_node_hands_on_goes_to_all_successors() {
    let mut b = Builder::new("fan-out");
    let split = b.node("split", |n: u64, _: Context| async move { Ok(n) });
    b.ingress(split);
    for branch in 1..=3 {
        let times = move |n: u64, _: Context| async move { Ok(n * branch) };
        let node = b.node(format!("times-{branch}"), times);
        b.connect(split, node).egress(node);
    }
    let flow = b.build().expect("it is a good graph").start(config());
    let mut all = values(&flow, of("ann", 10)).await;
    all.sort_unstable();
    assert_eq!(all, [10, 20, 30]);
}

/// 5, 19
#[tokio::test(start_paused = true)]
async fn at_its_bound_emit_waits_and_emit_nowait_is_refused_and_order_is_kept() {
    let gate = Gate::new();
    let flow = gate.flow(NodePolicy::default(), 1).start(config());
    let mut handles = vec![emit(&flow, of("ann", 0)).await];
    until("the first runs", || gate.came() == 1).await;
    let mut next = 1;
    let full = loop {
        match flow.emit_nowait(of("ann", next)) {
            Ok(handle) => handles.push(handle),
            Err(error) => break error,
        }
        next += 1;
        assert!(next <= 2, "one runs and one waits");
    };
    assert_eq!(full, EmitError::Full);
    let mut waits = std::pin::pin!(flow.emit(of("ann", next)));
    assert!(clock::timeout(ms(500), waits.as_mut()).await.is_err());
    assert!(
        flow.emit_nowait(of("bob", 9)).is_ok(),
        "the bound is per tenant"
    );
    gate.let_through(10);
    handles.push(soon("room", waits).await.expect("it is accepted"));
    for (n, handle) in (0..).zip(handles) {
        assert_eq!(read(handle).await.0, [n]);
    }
    until("rest", || at_rest(&flow)).await;
}

/// 6
#[tokio::test(start_paused = true)]
async fn a_stop_drops_an_attempt_that_waits_for_ever_and_its_reader_learns_it() {
    let gate = Gate::new();
    let flow = gate.flow(NodePolicy::default(), 64).start(config());
    let handle = emit(&flow, of("ann", 1).trace(trace(5))).await;
    until("it runs", || gate.came() == 1).await;
    let report = soon("a stop", flow.stop(ms(100))).await;
    assert_eq!(report.unfinished, [trace(5)]);
    assert_eq!(gate.left(), 1, "its future was dropped");
    let (values, outcome) = read(handle).await;
    assert_eq!(values, [0; 0]);
    let reason = DropReason::Stopped;
    assert!(matches!(outcome, Outcome::Dropped { reason: r } if r == reason));
    let late = flow.emit(of("ann", 2)).await;
    assert_eq!(late.err(), Some(EmitError::Stopped));
}

/// 18
#[tokio::test(start_paused = true)]
async fn more_than_the_bound_are_all_processed_in_order() {
    let flow = single(NodePolicy::default(), 2, |n: u64, _: Context| async move {
        clock::sleep(MS).await;
        Ok(n)
    });
    let flow = flow.start(config());
    let mut handles = Vec::new();
    for n in 0..5 {
        handles.push(emit(&flow, of("ann", n)).await);
    }
    for (n, handle) in (0..).zip(handles) {
        assert_eq!(read(handle).await.0, [n]);
    }
}

// --- Attempts: 8–11 -------------------------------------------------------------------------

/// A node that fails so many times, then succeeds; and how often it ran.
fn flaky(policy: NodePolicy, failures: usize) -> (Flow<u64, u64>, Arc<AtomicUsize>) {
    let ran = Arc::new(AtomicUsize::new(0));
    let count = ran.clone();
    let flow = single(policy, 64, move |n: u64, _: Context| {
        let so_far = count.fetch_add(1, Ordering::SeqCst);
        async move {
            if so_far < failures {
                return Err(NodeError::retryable("not yet"));
            }
            Ok(n)
        }
    });
    (flow, ran)
}

/// 8
#[tokio::test(start_paused = true)]
async fn a_node_that_fails_once_is_tried_again_and_its_result_comes() {
    let (flow, ran) = flaky(retries(1), 1);
    let (seen, config) = Seen::config();
    let flow = flow.start(config);
    assert_eq!(values(&flow, of("ann", 3).trace(trace(8))).await, [3]);
    assert_eq!(ran.load(Ordering::SeqCst), 2);
    let names = seen.whole(trace(8)).await;
    let wanted = [
        "trace_start",
        "node_start",
        "node_error",
        "node_retry",
        "node_start",
        "node_success",
        "trace_end",
    ];
    assert_eq!(names, wanted);
}

/// A node of which the first attempts hang.
fn hanging(policy: NodePolicy, hang: usize) -> (Flow<u64, u64>, Arc<AtomicUsize>) {
    let ran = Arc::new(AtomicUsize::new(0));
    let count = ran.clone();
    let flow = single(policy, 64, move |n: u64, _: Context| {
        let so_far = count.fetch_add(1, Ordering::SeqCst);
        async move {
            if so_far < hang {
                std::future::pending::<()>().await;
            }
            Ok(n)
        }
    });
    (flow, ran)
}

/// 9
#[tokio::test(start_paused = true)]
async fn after_its_last_timeout_the_trace_fails_with_the_timeout_and_the_attempts() {
    let (flow, ran) = hanging(slow(ms(50), 1), usize::MAX);
    let (seen, config) = Seen::config();
    let flow = flow.start(config);
    let handle = emit(&flow, of("ann", 3).trace(trace(9))).await;
    let (values, outcome) = read(handle).await;
    assert_eq!(values, [0; 0]);
    let Outcome::Failed(error) = outcome else {
        panic!("it is {outcome:?}");
    };
    assert_eq!(
        (error.code, error.attempts),
        (FlowErrorCode::NodeTimeout, 2)
    );
    assert_eq!(error.timeout, Some(ms(50)));
    assert_eq!(ran.load(Ordering::SeqCst), 2);
    let names = seen.whole(trace(9)).await;
    let wanted = [
        "trace_start",
        "node_start",
        "node_timeout",
        "node_retry",
        "node_start",
        "node_timeout",
        "node_failed",
        "trace_end",
    ];
    assert_eq!(names, wanted);
}

/// 10
#[tokio::test(start_paused = true)]
async fn a_node_that_times_out_once_is_tried_again_and_its_result_comes() {
    let (flow, ran) = hanging(slow(ms(50), 1), 1);
    let flow = flow.start(config());
    assert_eq!(values(&flow, of("ann", 4)).await, [4]);
    assert_eq!(ran.load(Ordering::SeqCst), 2);
}

/// 11
#[tokio::test(start_paused = true)]
async fn two_retries_are_three_attempts() {
    let (flow, ran) = flaky(retries(2), usize::MAX);
    let flow = flow.start(config());
    let handle = emit(&flow, of("ann", 4)).await;
    let (_, outcome) = read(handle).await;
    assert_eq!(failed(outcome), (FlowErrorCode::NodeError, 3));
    assert_eq!(ran.load(Ordering::SeqCst), 3);
}

// --- Cancel: 24–28 --------------------------------------------------------------------------

/// 24
#[tokio::test(start_paused = true)]
async fn a_cancel_stops_its_trace_only_once_and_says_what_it_stopped() {
    let gate = Gate::new();
    let policy = NodePolicy {
        concurrency: 2,
        ..NodePolicy::default()
    };
    let (seen, config) = Seen::config();
    let flow = gate.flow(policy, 64).start(config);
    let one = emit(&flow, of("ann", 1).trace(trace(1))).await;
    let two = emit(&flow, of("ann", 2).trace(trace(2))).await;
    until("both run", || gate.came() == 2).await;
    let report = flow.cancel(trace(1), &tenant("ann"));
    assert!(report.cancelled);
    assert_eq!((report.queued, report.running), (0, 1));
    assert!(matches!(read(one).await.1, Outcome::Cancelled));
    assert!(!flow.cancel(trace(1), &tenant("ann")).cancelled, "once");
    until("its attempt is dropped", || gate.left() == 1).await;
    gate.let_through(1);
    assert_eq!(read(two).await.0, [2]);
    seen.wait("trace_cancel_finish", 1).await;
    assert_eq!(seen.count("trace_cancel_start"), 1);
    assert_eq!(seen.count("trace_cancel_finish"), 1);
    until("rest", || at_rest(&flow)).await;
    let names = seen.names(trace(2));
    assert!(
        !names.iter().any(|name| name.contains("cancel")),
        "{names:?}"
    );
}

/// A flow whose one node calls `child`.
fn caller(child: &RunningFlow<u64, u64>) -> Flow<u64, u64> {
    let child = child.clone();
    single(
        NodePolicy::default(),
        64,
        move |n: u64, context: Context| {
            let child = child.clone();
            async move { context.call(&child, n).await }
        },
    )
}

/// 25
#[tokio::test(start_paused = true)]
async fn a_cancel_goes_down_into_the_flow_that_a_node_called() {
    let gate = Gate::new();
    let mut b = Builder::new("child");
    let held = gate.clone();
    let first = b.node("first", move |n: u64, _: Context| {
        let held = held.clone();
        async move {
            held.pass().await;
            Ok(n)
        }
    });
    let saw = Arc::new(Mutex::new(Vec::new()));
    let sees = saw.clone();
    let second = b.node("second", move |n: u64, _: Context| {
        sees.lock().push(n);
        async move { Ok(n) }
    });
    b.connect(first, second).ingress(first).egress(second);
    let child = b.build().expect("it is a good graph").start(config());
    let flow = caller(&child).start(config());
    let handle = emit(&flow, of("ann", 1).trace(trace(1))).await;
    until("the child runs", || gate.came() == 1).await;
    assert!(flow.cancel(trace(1), &tenant("ann")).cancelled);
    assert!(matches!(read(handle).await.1, Outcome::Cancelled));
    until("the child's trace ends", || child.depths().traces == 0).await;
    until("its attempt is dropped", || gate.left() == 1).await;
    gate.let_through(5);
    assert_eq!(values(&flow, of("ann", 2)).await, [2]);
    assert_eq!(*saw.lock(), [2], "what was cancelled went no further");
}

/// 26
#[tokio::test(start_paused = true)]
async fn a_cancel_of_what_is_not_there_or_not_ones_own_does_nothing() {
    let gate = Gate::new();
    let flow = gate.flow(NodePolicy::default(), 64).start(config());
    assert!(!flow.cancel(trace(1), &tenant("ann")).cancelled);
    let handle = emit(&flow, of("ann", 1).trace(trace(1))).await;
    assert!(!flow.cancel(trace(1), &tenant("bob")).cancelled);
    assert!(flow.fetch(trace(1), &tenant("bob")).is_none());
    gate.let_through(1);
    assert_eq!(read(handle).await.0, [1]);
}

/// 27
#[tokio::test(start_paused = true)]
async fn a_trace_that_has_ended_starts_no_other_flow() {
    let (child, ran) = flaky(NodePolicy::default(), 0);
    let child = child.start(config());
    let kept = Arc::new(Mutex::new(None));
    let keeps = kept.clone();
    let flow = single(
        NodePolicy::default(),
        64,
        move |_: u64, context: Context| {
            *keeps.lock() = Some(context);
            std::future::pending()
        },
    );
    let flow = flow.start(config());
    let handle = emit(&flow, of("ann", 1).trace(trace(1))).await;
    until("it runs", || kept.lock().is_some()).await;
    assert!(flow.cancel(trace(1), &tenant("ann")).cancelled);
    assert!(matches!(read(handle).await.1, Outcome::Cancelled));
    let context = kept.lock().take().expect("it is kept");
    assert!(context.is_cancelled());
    soon("cancelled()", context.cancelled()).await;
    assert!(soon("a call", context.call(&child, 5)).await.is_err());
    until("rest", || child.depths().traces == 0).await;
    assert_eq!(ran.load(Ordering::SeqCst), 0);
}

/// 28
#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_ends_the_called_trace_and_leaves_nothing() {
    let gate = Gate::new();
    let child = gate.flow(NodePolicy::default(), 64).start(config());
    let called = child.clone();
    let flow = single(
        NodePolicy::default(),
        64,
        move |n: u64, context: Context| {
            let called = called.clone();
            async move {
                let call = clock::timeout(ms(20), context.call(&called, n)).await;
                Ok(u64::from(call.is_err()))
            }
        },
    );
    let flow = flow.start(config());
    assert_eq!(values(&flow, of("ann", 7)).await, [1], "the node gave up");
    until("the child rests", || at_rest(&child)).await;
    assert_eq!((gate.came(), gate.left()), (1, 1));
}

// --- Deadlines: 29, 30, 108 -----------------------------------------------------------------

/// 29
#[tokio::test(start_paused = true)]
async fn a_message_whose_deadline_passed_in_the_queue_is_not_run() {
    let gate = Gate::new();
    let (seen, config) = Seen::config();
    let flow = gate.flow(NodePolicy::default(), 64).start(config);
    let first = emit(&flow, of("ann", 1)).await;
    until("the first runs", || gate.came() == 1).await;
    let late = emit(&flow, of("ann", 2).trace(trace(2)).deadline(ms(30))).await;
    let (values, outcome) = read(late).await;
    assert_eq!(values, [0; 0]);
    assert!(matches!(outcome, Outcome::DeadlineExceeded));
    gate.let_through(5);
    assert_eq!(read(first).await.0, [1]);
    seen.wait("deadline_skip", 1).await;
    assert!(seen.names(trace(2)).contains(&"deadline_skip"));
    until("rest", || at_rest(&flow)).await;
    assert_eq!(gate.came(), 1, "the second never ran");
}

/// 30
#[tokio::test(start_paused = true)]
async fn what_comes_after_a_node_does_not_run_past_the_deadline() {
    let mut b = Builder::new("late");
    let first = b.node("first", |n: u64, _: Context| async move {
        clock::sleep(ms(100)).await;
        Ok(n)
    });
    let ran = Arc::new(AtomicBool::new(false));
    let runs = ran.clone();
    let second = b.node("second", move |n: u64, _: Context| {
        runs.store(true, Ordering::SeqCst);
        async move { Ok(n) }
    });
    b.connect(first, second).ingress(first).egress(second);
    let flow = b.build().expect("it is a good graph").start(config());
    let handle = emit(&flow, of("ann", 1).deadline(ms(50))).await;
    assert!(matches!(read(handle).await.1, Outcome::DeadlineExceeded));
    until("rest", || at_rest(&flow)).await;
    clock::sleep(ms(500)).await;
    assert!(!ran.load(Ordering::SeqCst));
}

/// 108: also of §3 "Deadlines": in a node, in a back-off, as what is left for an attempt, once for all branches.
#[tokio::test(start_paused = true)]
async fn a_deadline_interrupts_a_node_and_its_retries() {
    let began = SystemClock.mono();
    let (flow, _) = hanging(NodePolicy::default(), usize::MAX);
    let flow = flow.start(config());
    let handle = emit(&flow, of("ann", 1).deadline(ms(50))).await;
    assert!(matches!(read(handle).await.1, Outcome::DeadlineExceeded));
    let took = SystemClock.mono() - began;
    assert!(took >= ms(50) && took <= ms(53), "{took:?}");
    // A retry that would begin too late is not waited for: its failure is known at once.
    let mut patient = retries(3);
    patient.backoff.base = ms(10_000);
    let (flow, ran) = flaky(patient, usize::MAX);
    let flow = flow.start(config());
    let began = SystemClock.mono();
    let handle = emit(&flow, of("ann", 1).deadline(ms(50))).await;
    let (_, outcome) = read(handle).await;
    assert_eq!(failed(outcome), (FlowErrorCode::NodeError, 1));
    assert!(SystemClock.mono() - began <= ms(5));
    assert_eq!(ran.load(Ordering::SeqCst), 1);
}

/// 108: retries stop at the deadline, and what would begin after it is not waited for.
#[tokio::test(start_paused = true)]
async fn attempts_that_time_out_end_with_the_deadline() {
    for (deadline, attempts) in [(ms(85), None), (ms(100), Some(2)), (ms(1_000), Some(3))] {
        let (flow, ran) = hanging(slow(ms(40), 2), usize::MAX);
        let flow = flow.start(config());
        let began = SystemClock.mono();
        let handle = emit(&flow, of("ann", 1).deadline(deadline)).await;
        let (_, outcome) = read(handle).await;
        assert!(SystemClock.mono() - began <= deadline + 3 * MS);
        match attempts {
            None => assert!(matches!(outcome, Outcome::DeadlineExceeded), "{outcome:?}"),
            // 0 to 40, 50 to 90, and 110 would be too late for a deadline of 100.
            Some(made) => assert_eq!(failed(outcome), (FlowErrorCode::NodeTimeout, made)),
        }
        until("rest", || at_rest(&flow)).await;
        assert!(ran.load(Ordering::SeqCst) <= 3);
    }
}

// --- Ours: 101–109 --------------------------------------------------------------------------

/// 101
#[tokio::test(start_paused = true)]
async fn a_final_answer_ends_its_trace_and_is_given_once() {
    let ran = Arc::new(AtomicUsize::new(0));
    let count = ran.clone();
    let mut b = Builder::new("final");
    let answer: NodeRef<u64, u64> = b.step("answer", move |n: u64, _: Context| {
        count.fetch_add(1, Ordering::SeqCst);
        async move { Ok(Emit::Finish(n)) }
    });
    let slow = b.node("slow", |n: u64, _: Context| async move {
        clock::sleep(HANGS).await;
        Ok(n)
    });
    b.ingress(answer).ingress(slow).egress(answer).egress(slow);
    let flow = b.build().expect("it is a good graph").start(config());
    for n in 0..20 {
        assert_eq!(
            values(&flow, of("ann", n)).await,
            [n],
            "the other branch is dropped"
        );
    }
    until("rest", || at_rest(&flow)).await;
    assert_eq!(ran.load(Ordering::SeqCst), 20);
}

/// 101, as a loop: one execution per round and one final answer (case 35).
#[tokio::test(start_paused = true)]
async fn a_loop_runs_once_per_round_until_its_final_answer() {
    let ran = Arc::new(AtomicUsize::new(0));
    let count = ran.clone();
    let mut b = Builder::new("loop");
    let step = b.step("step", move |n: u64, _: Context| {
        count.fetch_add(1, Ordering::SeqCst);
        async move {
            Ok(if n < 2 {
                Emit::Next(n + 1)
            } else {
                Emit::Finish(n)
            })
        }
    });
    b.connect_back(step, step).ingress(step).egress(step);
    let flow = b.build().expect("it is a good graph").start(config());
    let all = values(&flow, of("ann", 0)).await;
    assert_eq!(all, [1, 2, 2], "what it handed on was yielded as well");
    assert_eq!(ran.load(Ordering::SeqCst), 3);
}

/// 102
#[tokio::test(start_paused = true)]
async fn every_end_can_be_fetched_by_its_trace() {
    let flow = single(retries(0), 64, |n: u64, _: Context| async move {
        match n {
            1 => Ok(n),
            2 => Err(NodeError::permanent("no")),
            _ => std::future::pending().await,
        }
    });
    let flow = flow.start(RunConfig::default());
    for n in 1..=4 {
        let envelope = of("ann", n).trace(trace(n));
        let envelope = if n == 3 {
            envelope.deadline(ms(20))
        } else {
            envelope
        };
        drop(emit(&flow, envelope).await);
        if n == 4 {
            assert!(flow.cancel(trace(4), &tenant("ann")).cancelled);
        }
        until("its end", || flow.depths().traces == 0).await;
    }
    let mut ends = Vec::new();
    for n in 1..=4 {
        let fetched = flow.fetch(trace(n), &tenant("ann"));
        let handle = fetched.expect("its result is kept");
        let (_, outcome) = read(handle).await;
        ends.push(outcome.as_str());
        assert!(
            flow.fetch(trace(n), &tenant("ann")).is_none(),
            "it was read"
        );
    }
    assert_eq!(ends, ["done", "failed", "deadline_exceeded", "cancelled"]);
}

/// 103
#[tokio::test(start_paused = true)]
async fn a_cancel_loses_no_message_of_another_trace() {
    let (_seen, config) = Seen::config();
    let flow = single(NodePolicy::default(), 4, |n: u64, _: Context| async move {
        clock::sleep(MS).await;
        Ok(n)
    });
    let flow = flow.start(config);
    let all = (0..100).map(|n| {
        let flow = flow.clone();
        async move {
            let handle = emit(&flow, of("ann", n).trace(trace(n))).await;
            let cancelled = n % 3 == 0 && flow.cancel(trace(n), &tenant("ann")).cancelled;
            let (values, outcome) = read(handle).await;
            assert_eq!(matches!(outcome, Outcome::Cancelled), cancelled);
            if !cancelled {
                assert_eq!(values, [n]);
            }
            usize::from(cancelled)
        }
    });
    let cancelled: usize = futures_util::future::join_all(all).await.iter().sum();
    assert_eq!(cancelled, 34);
    until("rest", || at_rest(&flow)).await;
}

/// 104
#[tokio::test(start_paused = true)]
async fn a_stop_drains_what_it_can_and_reports_the_rest() {
    let work = |n: u64, _: Context| async move {
        clock::sleep(ms(10)).await;
        Ok(n)
    };
    let start = || single(NodePolicy::default(), 64, work).start(config());
    let flow = start();
    let mut handles = Vec::new();
    for n in 0..20 {
        handles.push(emit(&flow, of("ann", n)).await);
    }
    assert!(flow.stop(ms(300)).await.is_clean());
    for (n, handle) in (0..).zip(handles) {
        assert_eq!(read(handle).await.0, [n]);
    }
    let flow = start();
    let mut handles = Vec::new();
    for n in 0..20 {
        handles.push(emit(&flow, of("ann", n).trace(trace(n))).await);
    }
    let report = flow.stop(ms(55)).await;
    let mut dropped = Vec::new();
    for handle in handles {
        let id = handle.trace_id();
        if matches!(read(handle).await.1, Outcome::Dropped { .. }) {
            dropped.push(id);
        }
    }
    let mut unfinished = report.unfinished;
    unfinished.sort();
    assert_eq!(unfinished, dropped, "each of them is told of");
    assert!((14..=16).contains(&dropped.len()), "{}", dropped.len());
}

/// 105
#[tokio::test(start_paused = true)]
async fn a_read_that_is_given_up_loses_nothing_and_leaves_nothing() {
    let flow = single(NodePolicy::default(), 64, |n: u64, _: Context| async move {
        clock::sleep(ms(100)).await;
        Ok(n)
    });
    let flow = flow.start(config());
    let mut handle = emit(&flow, of("ann", 5).trace(trace(5))).await;
    for _ in 0..5 {
        assert!(clock::timeout(ms(10), handle.next()).await.is_err());
    }
    assert_eq!(read(handle).await.0, [5]);
    for n in 0..1_000 {
        assert!(
            flow.fetch(trace(n), &tenant("ann")).is_none(),
            "unknown ids cost nothing"
        );
    }
    assert_eq!(values(&flow, of("ann", 6).trace(trace(5))).await, [6]);
    until("rest", || at_rest(&flow)).await;
}

/// 105: an emit that is given up did not happen.
#[tokio::test(start_paused = true)]
async fn an_emit_that_is_given_up_or_refused_leaves_nothing() {
    let gate = Gate::new();
    let flow = gate.flow(NodePolicy::default(), 1).start(config());
    let mut held = vec![emit(&flow, of("ann", 0)).await];
    until("it runs", || gate.came() == 1).await;
    while let Ok(handle) = flow.emit_nowait(of("ann", 1)) {
        held.push(handle);
    }
    for _ in 0..100 {
        let again = || of("ann", 2).trace(trace(2));
        assert!(clock::timeout(MS, flow.emit(again())).await.is_err());
        assert_eq!(flow.emit_nowait(again()).err(), Some(EmitError::Full));
        let late = flow.emit(again().deadline(MS)).await;
        assert_eq!(late.err(), Some(EmitError::DeadlineExceeded));
    }
    assert_eq!(flow.depths().traces, held.len());
    gate.let_through(100);
    let accepted = held.len();
    for handle in held {
        assert!(read(handle).await.1.is_done());
    }
    assert_eq!(values(&flow, of("ann", 3).trace(trace(2))).await, [3]);
    until("rest", || at_rest(&flow)).await;
    assert_eq!(gate.came(), accepted + 1);
}

/// 107
#[tokio::test(start_paused = true)]
async fn a_back_off_does_not_occupy_the_node() {
    let mut patient = retries(1);
    patient.backoff.base = Duration::from_secs(15);
    patient.backoff.max = Duration::from_secs(15);
    let flow = single(patient, 64, |n: u64, _: Context| async move {
        if n == 0 {
            return Err(NodeError::retryable("down"));
        }
        Ok(n)
    });
    let flow = flow.start(config());
    let mut bad = Vec::new();
    for _ in 0..20 {
        bad.push(emit(&flow, of("ann", 0)).await);
    }
    let began = SystemClock.mono();
    assert_eq!(values(&flow, of("bob", 7)).await, [7]);
    assert_eq!(
        values(&flow, of("ann", 8)).await,
        [8],
        "not even its own tenant"
    );
    assert!(SystemClock.mono() - began <= ms(5));
    for handle in bad {
        let (_, outcome) = read(handle).await;
        assert_eq!(failed(outcome), (FlowErrorCode::NodeError, 2));
    }
    assert!(
        SystemClock.mono() - began < Duration::from_secs(16),
        "together, not in a row"
    );
}

/// 109
#[tokio::test(start_paused = true)]
async fn results_that_nobody_reads_stall_nobody_and_expire() {
    let flow = single(NodePolicy::default(), 4, |n: u64, _: Context| async move {
        Ok(n)
    });
    let mut config = config();
    config.limits = Limits {
        results: 100,
        result_ttl: ms(5_000),
        ..Limits::default()
    };
    let flow = flow.start(config);
    for n in 0..300 {
        drop(emit(&flow, of("ann", n).trace(trace(n))).await);
    }
    let began = SystemClock.mono();
    assert_eq!(values(&flow, of("bob", 7)).await, [7]);
    assert!(SystemClock.mono() - began <= ms(50));
    until("all ended", || flow.depths().traces == 0).await;
    let kept = |flow: &RunningFlow<u64, u64>| {
        let there = (0..300).filter(|n| flow.fetch(trace(*n), &tenant("ann")).is_some());
        there.count()
    };
    assert_eq!(kept(&flow), 100, "the bound of what is kept");
    clock::sleep(ms(6_000)).await;
    assert_eq!(kept(&flow), 0, "they expired");
}

// --- What §3 of the reference found wrong, beyond the cases --------------------------------------

/// "Partial emit + retry": what an attempt hands on is committed when it succeeds, and only then.
#[tokio::test(start_paused = true)]
async fn outputs_of_attempts_that_failed_go_nowhere() {
    let mut b = Builder::new("commit");
    let split = b.flat_map("split", |n: u64, context: Context| async move {
        if context.attempt() < 3 {
            return Err(NodeError::retryable("half way"));
        }
        Ok(vec![n, n + 1])
    });
    b.policy(split, retries(2)).ingress(split).egress(split);
    let flow = b.build().expect("it is a good graph").start(config());
    assert_eq!(values(&flow, of("ann", 1)).await, [1, 2]);
}

/// "Retry back-off": a permanent error is not tried again, and who asks to be left alone is left alone.
#[tokio::test(start_paused = true)]
async fn permanent_errors_are_not_retried_and_retry_after_is_kept() {
    let ran = Arc::new(AtomicUsize::new(0));
    let count = ran.clone();
    let flow = single(retries(5), 64, move |n: u64, context: Context| {
        count.fetch_add(1, Ordering::SeqCst);
        async move {
            match (n, context.attempt()) {
                (0, _) => Err(NodeError::permanent("bad input")),
                (_, 1) => Err(NodeError::retryable("busy").after(ms(3_000))),
                _ => Ok(n),
            }
        }
    });
    let flow = flow.start(config());
    let handle = emit(&flow, of("ann", 0)).await;
    let (_, outcome) = read(handle).await;
    assert_eq!(failed(outcome), (FlowErrorCode::NodeError, 1));
    assert_eq!(ran.load(Ordering::SeqCst), 1);
    let began = SystemClock.mono();
    assert_eq!(values(&flow, of("ann", 1)).await, [1]);
    assert!(SystemClock.mono() - began >= ms(3_000));
}

/// "Fairness / priority": the higher goes first within its tenant.
#[tokio::test(start_paused = true)]
async fn priority_goes_first_within_its_tenant() {
    let gate = Gate::new();
    let order = Arc::new(Mutex::new(Vec::new()));
    let (held, orders) = (gate.clone(), order.clone());
    let flow = single(NodePolicy::default(), 64, move |n: u64, _: Context| {
        let held = held.clone();
        orders.lock().push(n);
        async move {
            held.pass().await;
            Ok(n)
        }
    });
    let flow = flow.start(config());
    let mut handles = vec![emit(&flow, of("ann", 0)).await];
    until("it runs", || gate.came() == 1).await;
    for (n, priority) in [(1, 0), (2, 5), (3, 9), (4, 5), (5, 0)] {
        handles.push(emit(&flow, of("ann", n).priority(priority)).await);
    }
    gate.let_through(10);
    for handle in handles {
        assert!(read(handle).await.1.is_done());
    }
    assert_eq!(*order.lock(), [0, 3, 2, 4, 1, 5]);
}

/// "Back-pressure": a declared cycle in which everything is full goes on all the same.
#[tokio::test(start_paused = true)]
async fn a_full_cycle_does_not_deadlock() {
    let mut b = Builder::new("round");
    let there = b.node("there", |n: u64, _: Context| async move { Ok(n) });
    let back = b.route("back", |n: &u64, context: &Context| {
        let _ = (n, context);
        volary_flow::graph::Route::all()
    });
    let count = b.step("count", |n: u64, _: Context| async move {
        Ok(if n == 0 {
            Emit::Finish(0)
        } else {
            Emit::Next(n - 1)
        })
    });
    b.queue(there, 2).queue(back, 2).queue(count, 2);
    b.connect(there, back).connect(back, count);
    b.connect_back(count, there).ingress(there).egress(count);
    let flow = b.build().expect("it is a good graph").start(config());
    let all = (0..72).map(|n| {
        let flow = flow.clone();
        async move {
            let handle = emit(&flow, of("ann", 10).trace(trace(n))).await;
            read(handle).await.1.is_done()
        }
    });
    let done = futures_util::future::join_all(all).await;
    assert!(done.iter().all(|done| *done));
}

/// "join_k": a branch that failed leaves nothing that a later trace of the same id could meet.
#[tokio::test(start_paused = true)]
async fn a_join_keeps_nothing_of_a_trace_that_failed() {
    let mut b = Builder::new("gather");
    let split = b.node("split", |n: u64, _: Context| async move { Ok(n) });
    let good = b.node("good", |n: u64, _: Context| async move { Ok(n) });
    let bad = b.node("bad", |n: u64, _: Context| async move {
        clock::sleep(ms(10)).await;
        if n == 1 {
            return Err(NodeError::permanent("no"));
        }
        Ok(n * 10)
    });
    let join = b.join_all("join");
    let sum = b.node("sum", |all: Vec<u64>, _: Context| async move {
        Ok(all.iter().sum())
    });
    b.connect(split, good).connect(split, bad);
    b.connect(good, join).connect(bad, join).connect(join, sum);
    b.ingress(split).egress(sum);
    let flow = b.build().expect("it is a good graph").start(config());
    for _ in 0..5 {
        let handle = emit(&flow, of("ann", 1).trace(trace(1))).await;
        let (_, outcome) = read(handle).await;
        assert_eq!(failed(outcome).0, FlowErrorCode::NodeError);
        until("rest", || at_rest(&flow)).await;
    }
    let again = of("ann", 2).trace(trace(1));
    assert_eq!(
        values(&flow, again).await,
        [22],
        "nothing of before is in it"
    );
}

/// "Isolation": branches do not share what they change.
#[tokio::test(start_paused = true)]
async fn a_branch_that_changes_its_value_changes_no_other() {
    let mut b = FlowBuilder::<Vec<u64>, Vec<u64>>::new("branches");
    let split = b.node("split", |all: Vec<u64>, _: Context| async move { Ok(all) });
    let one = b.node("one", |mut all: Vec<u64>, _: Context| async move {
        all.push(1);
        Ok(all)
    });
    let two = b.node("two", |mut all: Vec<u64>, _: Context| async move {
        clock::sleep(MS).await;
        all.push(2);
        Ok(all)
    });
    b.connect(split, one).connect(split, two);
    b.ingress(split).egress(one).egress(two);
    let flow = b.build().expect("it is a good graph").start(config());
    let emitted = flow.emit(of("ann", vec![0])).await;
    let mut handle = emitted.expect("it is accepted");
    let mut all = Vec::new();
    while let Some(Item::Value(value)) = soon("an item", handle.next()).await {
        all.push(value);
    }
    assert_eq!(all, [vec![0, 1], vec![0, 2]]);
}

/// "Scoped fetch": all items of a trace come to its reader, and to nobody else.
#[tokio::test(start_paused = true)]
async fn a_stream_comes_whole_to_its_own_reader() {
    let policy = NodePolicy {
        concurrency: 2,
        ..NodePolicy::default()
    };
    let flow = single(policy, 64, |n: u64, context: Context| async move {
        for piece in 0..5 {
            context.chunk(format!("{n}-{piece}")).await?;
            clock::sleep(MS).await;
        }
        Ok(n)
    });
    let flow = flow.start(config());
    let all = [("ann", 1), ("bob", 2)].map(|(name, n)| {
        let flow = flow.clone();
        async move {
            let mut handle = emit(&flow, of(name, n)).await;
            let mut pieces = Vec::new();
            while let Some(item) = soon("an item", handle.next()).await {
                if let Item::Chunk(chunk) = item {
                    pieces.push((chunk.seq, chunk.text));
                }
            }
            let wanted: Vec<_> = (0..5).map(|seq| (seq, format!("{n}-{seq}"))).collect();
            assert_eq!(pieces, wanted);
        }
    });
    futures_util::future::join_all(all).await;
}

/// "Node concurrency": as many at once as its policy says.
#[tokio::test(start_paused = true)]
async fn a_node_runs_as_many_at_once_as_its_policy_says() {
    let policy = NodePolicy {
        concurrency: 100,
        ..NodePolicy::default()
    };
    let flow = single(policy, 1_000, |n: u64, _: Context| async move {
        clock::sleep(ms(10)).await;
        Ok(n)
    });
    let flow = flow.start(config());
    let began = SystemClock.mono();
    let all = (0..1_000).map(|n| values(&flow, of("ann", n)).into_future());
    futures_util::future::join_all(all).await;
    let took = SystemClock.mono() - began;
    assert!(took >= ms(100) && took <= ms(130), "{took:?}");
}

/// "call_playbook": a failure of the called flow comes to the caller, and its deadline is the caller's.
#[tokio::test(start_paused = true)]
async fn what_the_called_flow_ends_with_comes_to_its_caller() {
    let child = single(NodePolicy::default(), 64, |n: u64, _: Context| async move {
        if n == 1 {
            return Err(NodeError::permanent("no"));
        }
        std::future::pending().await
    });
    let child = child.start(config());
    let flow = caller(&child).start(config());
    let handle = emit(&flow, of("ann", 1)).await;
    let (_, outcome) = read(handle).await;
    assert_eq!(failed(outcome).0, FlowErrorCode::NodeError);
    let handle = emit(&flow, of("ann", 2).deadline(ms(30))).await;
    assert!(matches!(read(handle).await.1, Outcome::DeadlineExceeded));
    until("the child rests", || at_rest(&child)).await;
}

/// Dropping the last handle of a flow stops it.
#[tokio::test(start_paused = true)]
async fn a_flow_that_is_dropped_ends_its_traces_and_its_tasks() {
    let gate = Gate::new();
    let config = config();
    let tasks = config.supervisor.clone();
    let flow = gate.flow(NodePolicy::default(), 64).start(config);
    let handle = emit(&flow, of("ann", 1)).await;
    until("it runs", || gate.came() == 1).await;
    drop(flow);
    assert!(matches!(read(handle).await.1, Outcome::Dropped { .. }));
    until("the end of all tasks", || tasks.running().is_empty()).await;
    assert_eq!(gate.left(), 1);
}
