//! Flows in flows: as a node of the graph, or called by a node.

use std::{future::ready, sync::Arc};

use volary_kernel::{Tenant, TraceId};

use super::{
    builder::{FlowBuilder, Pending},
    code::{Value, mismatch},
    describe::NodeKind,
    flow::Flow,
    plan::{Call, Payload, Slot, Step},
    refs::NodeRef,
    running::{Core, RunningFlow},
    slot,
};
use crate::{
    config::RunConfig,
    context::{ChunkSpec, Context},
    engine::{Accepted, Engine, Read},
    error::{EmitError, FlowErrorCode, NodeError},
    outcome::Outcome,
};

/// A flow whose types are erased, to be started with the flow that it is a node of.
pub(crate) type Child = Arc<dyn Fn(&RunConfig) -> (Arc<dyn Call>, Core) + Send + Sync>;

impl<In: Value, Out: Value> FlowBuilder<In, Out> {
    /// Adds another flow as a node: it is started with this flow and stopped with it.
    ///
    /// Each value runs as a trace of its own in the sub-flow, of the same tenant and priority and with the same facts, within
    /// what is left of the deadline; a cancel goes down. What the sub-flow yields is handed on once its trace is done, and
    /// its chunks are those of the outer trace. Its failure is the failure of this node's attempt, with the error of the
    /// sub-flow's node as its source, which may be tried again if that one may.
    ///
    /// # Examples
    /// ```
    /// use volary_flow::{Envelope, RunConfig, graph::FlowBuilder};
    /// let mut b = FlowBuilder::new("words");
    /// let split = b.flat_map("split", |text: String, _| async move {
    ///     Ok(text.split(' ').map(str::to_owned).collect::<Vec<_>>())
    /// });
    /// b.ingress(split).egress(split);
    /// let words = b.build()?;
    ///
    /// let mut b = FlowBuilder::new("lengths");
    /// let words = b.subflow("words", words);
    /// let length = b.node("length", |word: String, _| async move { Ok(word.len()) });
    /// b.connect(words, length).ingress(words).egress(length);
    /// let flow = b.build()?;
    ///
    /// # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    /// # runtime.block_on(async {
    /// let flow = flow.start(RunConfig::default());
    /// let lengths = flow.emit(Envelope::new("a typed flow".to_owned())).await?;
    /// assert_eq!(lengths.values().await.ok(), Some(vec![1, 5, 4]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "call_playbook")]
    pub fn subflow<I: Value, O: Value>(
        &mut self,
        name: impl Into<String>,
        flow: Flow<I, O>,
    ) -> NodeRef<I, O> {
        let description = flow.describe().clone();
        let start: Child = Arc::new(move |config| {
            // A sub-flow runs in memory: in a durable flow its node is one step.
            let config = RunConfig {
                durable: None,
                ..config.clone()
            };
            let running = flow.start(config);
            let core = running.core.clone();
            (Arc::new(Subflow { running }), core)
        });
        let node = self.add_part(name.into(), NodeKind::Subflow, Pending::Subflow(start));
        if let Some(sketch) = self.sketch.nodes.last_mut() {
            sketch.subflow = Some(Box::new(description));
        }
        node
    }
}

/// Where the call of a sub-flow will stand once it is started.
pub(crate) struct Unstarted;

impl Call for Unstarted {
    fn slot(self: Arc<Self>) -> Box<dyn Slot> {
        let error = || NodeError::permanent("the sub-flow was not started");
        slot::of(move |_, _| ready(Err(error().into())))
    }
}

/// A started flow as a node.
struct Subflow<I, O> {
    running: RunningFlow<I, O>,
}

impl<I: Value, O: Value> Call for Subflow<I, O> {
    fn slot(self: Arc<Self>) -> Box<dyn Slot> {
        slot::of(move |input, context| {
            let this = self.clone();
            async move {
                if input.get::<I>().is_none() {
                    return Err(mismatch::<I>().into());
                }
                let mut values = values(&context, &this.running.core.engine, input).await?;
                Ok(match values.len() {
                    0 => Step::Nothing,
                    1 => values.pop().map_or(Step::Nothing, Step::Next),
                    _ => Step::Each(values),
                })
            }
        })
    }
}

impl Context {
    /// Calls another running flow, and returns its first value once its trace is done.
    ///
    /// The call is a trace of its own there: of the same tenant and priority, with the same facts, within what is left of this
    /// trace's deadline. Its chunks become chunks of this trace. Dropping the call, which a cancel, a timeout and the deadline
    /// do, cancels it.
    ///
    /// # Errors
    /// When it was not accepted, or did not end as done with a value. A failure has the `FlowError` as its source, and may be
    /// tried again if what failed there may.
    #[doc(alias = "call_playbook")]
    pub async fn call<I, O>(&self, flow: &RunningFlow<I, O>, payload: I) -> Result<O, NodeError>
    where
        I: Send + 'static,
        O: Send + 'static,
    {
        let values = values(self, &flow.core.engine, Payload::new(payload)).await?;
        let first = values.into_iter().next();
        let first =
            first.ok_or_else(|| NodeError::permanent("the called flow yielded no value"))?;
        first.into_value().ok_or_else(mismatch::<O>)
    }
}

/// Cancels a called trace, unless its end was seen.
struct Called<'a> {
    engine: &'a Engine,
    trace: TraceId,
    tenant: &'a Tenant,
    ended: bool,
}

impl Drop for Called<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.engine.cancel(self.trace, self.tenant);
        }
    }
}

/// All values of a called trace, once it is done.
async fn values(
    context: &Context,
    engine: &Engine,
    payload: Payload,
) -> Result<Vec<Payload>, NodeError> {
    if context.is_cancelled() {
        return Err(NodeError::permanent(
            "the trace has ended: it calls nothing",
        ));
    }
    let accepted = Accepted {
        payload,
        headers: context.headers().clone(),
        trace_id: TraceId::generate(),
        deadline: context.remaining(),
        meta: context.meta().clone(),
        parent: Some(context.trace().clone()),
    };
    let mut reader = engine.emit(accepted).await.map_err(refused)?;
    let mut called = Called {
        engine,
        trace: reader.trace_id(),
        tenant: context.tenant(),
        ended: false,
    };
    let own_stream = called.trace.to_string();
    let mut values = Vec::new();
    loop {
        match reader.next().await {
            Read::Value(value) => values.push(value),
            Read::Chunk(chunk) => {
                let chunk = *chunk;
                let stream_id = (chunk.stream_id != own_stream).then_some(chunk.stream_id);
                let chunk = ChunkSpec {
                    stream_id,
                    text: chunk.text,
                    done: chunk.done,
                    meta: chunk.meta,
                };
                context.chunk_of(chunk).await?;
            }
            Read::End(outcome) => {
                called.ended = true;
                return match outcome {
                    Outcome::Done => Ok(values),
                    other => Err(failed(other)),
                };
            }
        }
    }
}

fn refused(error: EmitError) -> NodeError {
    let retryable = match error {
        EmitError::Full | EmitError::DeadlineExceeded | EmitError::Store(_) => true,
        EmitError::Stopped
        | EmitError::TraceInUse(_)
        | EmitError::TooDeep(_)
        | EmitError::CallsItself => false,
    };
    NodeError {
        retryable,
        ..NodeError::from(error)
    }
}

fn failed(outcome: Outcome) -> NodeError {
    let Outcome::Failed(error) = outcome else {
        let message = format!("the called trace ended as {}", outcome.as_str());
        return NodeError::permanent(message);
    };
    let (retryable, retry_after) = match &error.source {
        Some(source) => (source.retryable, source.retry_after),
        None => (may_pass(error.code), None),
    };
    NodeError {
        retryable,
        retry_after,
        ..NodeError::from(*error)
    }
}

/// Whether what failed without an error of its own may go better another time.
const fn may_pass(code: FlowErrorCode) -> bool {
    matches!(
        code,
        FlowErrorCode::NodeTimeout | FlowErrorCode::BreakerOpen
    )
}
