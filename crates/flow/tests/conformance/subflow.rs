//! Flows in flows: what goes down to the sub-flow, and what comes back up (beside cases 25 to 28).

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use serde_json::json;
use volary_flow::{
    Context, Envelope, Flow, FlowBuilder, FlowError, FlowErrorCode, Headers, Item, Meta, NodeError,
    Outcome, RunConfig, policy::NodePolicy, testkit::run_one,
};
use volary_kernel::{TraceId, clock};

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// A flow of one node.
fn single<F, Fut>(name: &str, code: F) -> Flow<u64, u64>
where
    F: Fn(u64, Context) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<u64, NodeError>> + Send + 'static,
{
    let mut b = FlowBuilder::new(name);
    let node = b.node("work", code);
    b.ingress(node).egress(node);
    b.build().expect("it is a good graph")
}

/// A flow around a sub-flow, with a policy for its node.
fn around(child: Flow<u64, u64>, policy: NodePolicy) -> Flow<u64, u64> {
    let mut b = FlowBuilder::new("outer");
    let sub = b.subflow("sub", child);
    b.policy(sub, policy).ingress(sub).egress(sub);
    b.build().expect("it is a good graph")
}

/// Counts itself while it lives.
struct Alive(Arc<AtomicUsize>);

impl Alive {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count.clone())
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A flow whose node waits for ever, and how many attempts of it live.
fn stuck() -> (Flow<u64, u64>, Arc<AtomicUsize>) {
    let alive = Arc::new(AtomicUsize::new(0));
    let count = alive.clone();
    let flow = single("stuck", move |n, _| {
        let alive = Alive::new(&count);
        async move {
            std::future::pending::<()>().await;
            drop(alive);
            Ok(n)
        }
    });
    (flow, alive)
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let asked = async {
        while !done() {
            clock::sleep(ms(1)).await;
        }
    };
    let in_time = clock::timeout(Duration::from_secs(60), asked).await;
    assert!(in_time.is_ok(), "it does not happen: {what}");
}

#[tokio::test(start_paused = true)]
async fn headers_and_facts_go_down_and_the_trace_is_another() {
    type SeenBelow = Arc<Mutex<Option<(Headers, Meta, TraceId, Option<Duration>)>>>;
    let seen = SeenBelow::default();
    let below = seen.clone();
    let child = single("child", move |n, context| {
        *below.lock() = Some((
            context.headers().clone(),
            context.meta().clone(),
            context.trace_id(),
            context.remaining(),
        ));
        async move { Ok(n + 1) }
    });
    let flow = around(child, NodePolicy::default());
    let facts: Meta = Arc::new([("who".to_owned(), json!(7))].into());
    let tenant = "acme".parse().expect("it is a name");
    let envelope = Envelope::new(1)
        .tenant(tenant)
        .priority(9)
        .meta(facts.clone());
    let envelope = envelope.deadline(Duration::from_secs(10));
    let sent = envelope.clone();
    let run = run_one(&flow, envelope).await.expect("it is accepted");
    assert_eq!(run.values, [2]);
    let (headers, meta, trace, left) = seen.lock().take().expect("the child ran");
    assert_eq!((headers, meta), (sent.headers, facts));
    assert_ne!(trace, sent.trace_id);
    assert!(left.is_some_and(|left| left <= Duration::from_secs(10)));
}

#[tokio::test(start_paused = true)]
async fn the_failure_of_a_sub_flow_is_the_nodes_with_the_error_inside() {
    let child = single("child", |_, _| async {
        Err(NodeError::permanent("no such page"))
    });
    let run = run_one(&around(child, NodePolicy::default()), Envelope::new(1)).await;
    let Outcome::Failed(error) = run.expect("it is accepted").outcome else {
        panic!("it fails");
    };
    assert_eq!(
        (error.code, error.node.as_str()),
        (FlowErrorCode::NodeError, "sub")
    );
    assert!(error.message.contains("no such page"), "{}", error.message);
    let source = error.source.expect("it has a source");
    assert!(!source.retryable, "it would fail again");
    let inner = source.source.expect("it has an error");
    let inner = inner
        .downcast_ref::<FlowError>()
        .expect("it is that of the sub-flow");
    assert_eq!(
        (inner.node.as_str(), inner.code),
        ("work", FlowErrorCode::NodeError)
    );
}

#[tokio::test(start_paused = true)]
async fn a_sub_flow_that_may_be_tried_again_is_by_the_nodes_policy() {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = calls.clone();
    let child = single("child", move |n, _| {
        let call = count.fetch_add(1, Ordering::SeqCst);
        async move {
            match call {
                0 => Err(NodeError::retryable("busy")),
                _ => Ok(n),
            }
        }
    });
    let policy = NodePolicy {
        max_retries: 1,
        ..NodePolicy::default()
    };
    let run = run_one(&around(child, policy), Envelope::new(4))
        .await
        .expect("it is accepted");
    assert_eq!(
        (run.values.as_slice(), run.attempts_of("sub")),
        (&[4][..], 2)
    );
}

#[tokio::test(start_paused = true)]
async fn a_cancel_goes_down_and_the_next_request_works() {
    let (child, alive) = stuck();
    let mut b = FlowBuilder::new("outer");
    let sub = b.subflow("sub", child);
    let pass = b.node("pass", |n: u64, _| async move { Ok(n) });
    let choose = b.route("choose", move |n: &u64, _| match n {
        0 => volary_flow::graph::Route::to(sub),
        _ => volary_flow::graph::Route::to(pass),
    });
    b.connect(choose, sub).connect(choose, pass);
    b.ingress(choose).egress(sub).egress(pass);
    let flow = b
        .build()
        .expect("it is a good graph")
        .start(RunConfig::default());
    let handle = flow.emit(Envelope::new(0)).await.expect("it is accepted");
    until("the child runs", || alive.load(Ordering::SeqCst) == 1).await;
    let report = flow.cancel(handle.trace_id(), &"default".parse().expect("it is a name"));
    assert!(report.cancelled);
    assert!(matches!(handle.outcome().await, Outcome::Cancelled));
    until("the child is stopped", || alive.load(Ordering::SeqCst) == 0).await;
    assert_eq!(flow.call(Envelope::new(5)).await.ok(), Some(5));
    assert!(flow.stop(ms(100)).await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_timeout_of_the_node_and_the_deadline_end_the_sub_flow() {
    let (child, alive) = stuck();
    let policy = NodePolicy {
        timeout: Some(ms(50)),
        ..NodePolicy::default()
    };
    let run = run_one(&around(child, policy), Envelope::new(0))
        .await
        .expect("it is accepted");
    let Outcome::Failed(error) = run.outcome else {
        panic!("it fails");
    };
    assert_eq!(error.code, FlowErrorCode::NodeTimeout);
    until("the child is stopped", || alive.load(Ordering::SeqCst) == 0).await;

    let (child, alive) = stuck();
    let envelope = Envelope::new(0).deadline(ms(50));
    let run = run_one(&around(child, NodePolicy::default()), envelope).await;
    assert!(matches!(
        run.expect("it is accepted").outcome,
        Outcome::DeadlineExceeded
    ));
    until("the child is stopped", || alive.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test(start_paused = true)]
async fn all_values_and_chunks_of_a_sub_flow_come_up_in_order() {
    let mut b = FlowBuilder::new("child");
    let count = b.flat_map("count", |n: u64, context: Context| async move {
        for number in 0..n {
            context.chunk(number.to_string()).await?;
        }
        Ok((0..n).collect::<Vec<_>>())
    });
    b.ingress(count).egress(count);
    let flow = around(
        b.build().expect("it is a good graph"),
        NodePolicy::default(),
    );
    let flow = flow.start(RunConfig::default());
    let envelope = Envelope::new(3);
    let id = envelope.trace_id;
    let mut handle = flow.emit(envelope).await.expect("it is accepted");
    let (mut values, mut chunks) = (Vec::new(), Vec::new());
    while let Some(item) = handle.next().await {
        match item {
            Item::Value(value) => values.push(value),
            Item::Chunk(chunk) => chunks.push((chunk.stream_id, chunk.seq, chunk.text)),
        }
    }
    assert_eq!(values, [0, 1, 2]);
    let expected = [0, 1, 2].map(|n: u64| (id.to_string(), n, n.to_string()));
    assert_eq!(chunks, expected);
}

#[tokio::test(start_paused = true)]
async fn a_sub_flow_without_a_value_ends_the_branch() {
    let mut b = FlowBuilder::<u64, u64>::new("child");
    let none = b.filter_map("none", |_: u64, _| async { Ok(None) });
    b.ingress(none).egress(none);
    let flow = around(
        b.build().expect("it is a good graph"),
        NodePolicy::default(),
    );
    let run = run_one(&flow, Envelope::new(3))
        .await
        .expect("it is accepted");
    assert!(run.outcome.is_done() && run.values.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_stop_drains_through_the_sub_flow_and_names_what_did_not_drain() {
    let slow = single("slow", |n, _| async move {
        clock::sleep(ms(30)).await;
        Ok(n)
    });
    let flow = around(around(slow, NodePolicy::default()), NodePolicy::default());
    let running = flow.start(RunConfig::default());
    let handle = running
        .emit(Envelope::new(3))
        .await
        .expect("it is accepted");
    let report = running.stop(ms(100)).await;
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(handle.result().await.ok(), Some(3));

    let (child, alive) = stuck();
    let running = around(child, NodePolicy::default()).start(RunConfig::default());
    let handle = running
        .emit(Envelope::new(3))
        .await
        .expect("it is accepted");
    until("the child runs", || alive.load(Ordering::SeqCst) == 1).await;
    let report = running.stop(ms(100)).await;
    assert!(report.unfinished.contains(&handle.trace_id()), "{report:?}");
    assert!(matches!(handle.outcome().await, Outcome::Dropped { .. }));
    until("the child is stopped", || alive.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_calls_a_running_flow_and_a_dropped_call_cancels_it() {
    let child = single("child", |n, _| async move { Ok(n * 2) }).start(RunConfig::default());
    let (stuck, alive) = stuck();
    let stuck = stuck.start(RunConfig::default());
    let flow = single("caller", move |n, context| {
        let (child, stuck) = (child.clone(), stuck.clone());
        async move {
            let doubled = context.call(&child, n).await?;
            match clock::timeout(ms(20), context.call(&stuck, n)).await {
                Ok(_) => Err(NodeError::permanent("it cannot return")),
                Err(_) => Ok(doubled),
            }
        }
    });
    let run = run_one(&flow, Envelope::new(21))
        .await
        .expect("it is accepted");
    assert_eq!(run.values, [42]);
    until("the child is stopped", || alive.load(Ordering::SeqCst) == 0).await;
}
