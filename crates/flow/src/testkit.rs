//! For tests of flows: run one envelope, look at the nodes it went through, inject failures.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context as Poller, Poll},
    time::Duration,
};

use futures_util::future::{Either, Ready, ready};
use parking_lot::Mutex;
use volary_kernel::{Name, TraceId};

use crate::{
    config::RunConfig,
    context::Context,
    envelope::{Envelope, Headers, Meta},
    error::{EmitError, NodeError},
    graph::{
        Flow,
        plan::{Call, Payload, Returned, Slot},
    },
    node::Node,
    outcome::{Item, Outcome},
    stream::StreamChunk,
};

/// How long a flow of a test may take to stop.
const PATIENCE: Duration = Duration::from_secs(5);

/// What became of one envelope.
#[derive(Debug, Clone)]
pub struct RunOutcome<Out> {
    /// Its values, in order.
    pub values: Vec<Out>,
    /// Its chunks, in order.
    pub chunks: Vec<StreamChunk>,
    /// How it ended.
    pub outcome: Outcome,
    /// Every attempt of a node, in the order they began. Joins run no code and do not stand here, nodes of sub-flows neither.
    pub attempts: Vec<Attempt>,
    /// What was emitted, apart from the payload.
    pub sent: Sent,
}

/// An attempt of a node, as it began.
#[derive(Debug, Clone, PartialEq)]
pub struct Attempt {
    /// The node.
    pub node: Name,
    /// From 1.
    pub attempt: u32,
    /// What the node saw of the envelope.
    pub seen: Sent,
}

/// An envelope without its payload.
#[derive(Debug, Clone, PartialEq)]
pub struct Sent {
    /// Whose it is.
    pub headers: Headers,
    /// The trace.
    pub trace_id: TraceId,
    /// Facts.
    pub meta: Meta,
}

impl<Out> RunOutcome<Out> {
    /// The nodes it went through, in the order they began, further attempts left out.
    pub fn nodes(&self) -> Vec<&str> {
        let first = self.attempts.iter().filter(|attempt| attempt.attempt == 1);
        first.map(|attempt| attempt.node.as_str()).collect()
    }

    /// How many attempts a node made.
    pub fn attempts_of(&self, node: &str) -> usize {
        let of = |attempt: &&Attempt| attempt.node.as_str() == node;
        self.attempts.iter().filter(of).count()
    }
}

/// Starts the flow, runs one envelope to its end, and stops the flow.
///
/// # Errors
/// When it was not accepted.
///
/// # Examples
/// ```
/// use volary_flow::{Envelope, graph::FlowBuilder, testkit::{assert_node_sequence, run_one}};
/// # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
/// # runtime.block_on(async {
/// let mut b = FlowBuilder::new("greeting");
/// let trim = b.node("trim", |name: String, _| async move { Ok(name.trim().to_owned()) });
/// let greet = b.node("greet", |name: String, _| async move { Ok(format!("Hello, {name}!")) });
/// b.connect(trim, greet).ingress(trim).egress(greet);
///
/// let run = run_one(&b.build()?, Envelope::new(" Ada ".to_owned())).await?;
/// assert_eq!(run.values, ["Hello, Ada!"]);
/// assert_node_sequence(&run, ["trim", "greet"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub async fn run_one<In, Out>(
    flow: &Flow<In, Out>,
    envelope: Envelope<In>,
) -> Result<RunOutcome<Out>, EmitError>
where
    In: Send + 'static,
    Out: Send + 'static,
{
    run_one_with(flow, envelope, RunConfig::default()).await
}

/// As [`run_one`], with a configuration.
///
/// # Errors
/// When it was not accepted.
pub async fn run_one_with<In, Out>(
    flow: &Flow<In, Out>,
    envelope: Envelope<In>,
    config: RunConfig,
) -> Result<RunOutcome<Out>, EmitError>
where
    In: Send + 'static,
    Out: Send + 'static,
{
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let running = flow.start_with(config, |node, call| {
        Arc::new(Recorded {
            node: node.clone(),
            call,
            attempts: attempts.clone(),
        })
    });
    let sent = Sent {
        headers: envelope.headers.clone(),
        trace_id: envelope.trace_id,
        meta: envelope.meta.clone(),
    };
    let mut handle = running.emit(envelope).await?;
    let (mut values, mut chunks) = (Vec::new(), Vec::new());
    while let Some(item) = handle.next().await {
        match item {
            Item::Value(value) => values.push(value),
            Item::Chunk(chunk) => chunks.push(chunk),
        }
    }
    let outcome = handle.outcome().await;
    running.stop(PATIENCE).await;
    let attempts = std::mem::take(&mut *attempts.lock());
    Ok(RunOutcome {
        values,
        chunks,
        outcome,
        attempts,
        sent,
    })
}

/// Code that is noted when it begins.
struct Recorded {
    node: Name,
    call: Arc<dyn Call>,
    attempts: Arc<Mutex<Vec<Attempt>>>,
}

impl Call for Recorded {
    fn slot(self: Arc<Self>) -> Box<dyn Slot> {
        let slot = self.call.clone().slot();
        Box::new(RecordedSlot { code: self, slot })
    }
}

/// Where attempts of such code live.
struct RecordedSlot {
    code: Arc<Recorded>,
    slot: Box<dyn Slot>,
}

impl Slot for RecordedSlot {
    fn start(&mut self, input: Payload, context: Context, cx: &mut Poller<'_>) -> Poll<Returned> {
        self.code.note(&context);
        self.slot.start(input, context, cx)
    }

    fn poll(&mut self, cx: &mut Poller<'_>) -> Poll<Returned> {
        self.slot.poll(cx)
    }
}

impl Recorded {
    fn note(&self, context: &Context) {
        self.attempts.lock().push(Attempt {
            node: self.node.clone(),
            attempt: context.attempt(),
            seen: Sent {
                headers: context.headers().clone(),
                trace_id: context.trace_id(),
                meta: context.meta().clone(),
            },
        });
    }
}

/// Asserts which nodes an envelope went through, further attempts left out.
///
/// # Panics
/// When it went another way; the message shows both.
#[track_caller]
pub fn assert_node_sequence<'a, Out>(
    run: &RunOutcome<Out>,
    expected: impl IntoIterator<Item = &'a str>,
) {
    let expected: Vec<&str> = expected.into_iter().collect();
    let nodes = run.nodes();
    assert!(
        nodes == expected,
        "the trace went {} instead of {}, and ended as {}",
        Way(&nodes),
        Way(&expected),
        run.outcome.as_str()
    );
}

struct Way<'a>(&'a [&'a str]);

impl fmt::Display for Way<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => f.write_str("nowhere"),
            nodes => f.write_str(&nodes.join(" → ")),
        }
    }
}

/// Asserts that every attempt saw the headers, the trace and the facts of the envelope that was emitted.
///
/// # Panics
/// When one did not, or nothing ran.
#[track_caller]
pub fn assert_envelope_preserved<Out>(run: &RunOutcome<Out>) {
    assert!(
        !run.attempts.is_empty(),
        "no node ran, so none saw anything"
    );
    for attempt in &run.attempts {
        assert!(
            attempt.seen == run.sent,
            "node {} saw {:?} instead of {:?}",
            attempt.node,
            attempt.seen,
            run.sent
        );
    }
}

/// A node whose first `fail_times` attempts, over all traces, fail with this error, and that then works.
///
/// # Panics
/// When `fail_times` is 0: that simulates nothing.
///
/// # Examples
/// ```
/// use volary_flow::{NodeError, graph::FlowBuilder, testkit::simulate_error};
/// let mut b = FlowBuilder::new("fetch");
/// let fetch = |url: String, _| async move { Ok(url.len()) };
/// let fetch = b.node("fetch", simulate_error(fetch, 2, NodeError::retryable("connection reset")));
/// b.ingress(fetch).egress(fetch);
/// let flow = b.build()?;
/// # Ok::<(), volary_flow::graph::BuildErrors>(())
/// ```
#[track_caller]
pub fn simulate_error<I, O, N>(
    node: N,
    fail_times: u32,
    error: NodeError,
) -> impl Fn(I, Context) -> Either<Ready<Result<O, NodeError>>, N::Future> + Send + Sync + 'static
where
    I: Send + 'static,
    O: Send + 'static,
    N: Node<I, Out = O>,
{
    assert!(
        fail_times > 0,
        "simulate_error: fail_times must be at least 1"
    );
    let left = AtomicU32::new(fail_times);
    move |input, context| {
        let taken = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(1)
        });
        match taken {
            Ok(_) => Either::Left(ready(Err(error.clone()))),
            Err(_) => Either::Right(node.call(input, context)),
        }
    }
}
