//! [`FlowAgent`]: an agent as code, embedded with an `AgentRuntime`, whose work is a flow.

use std::{fmt, sync::Arc, time::Duration};

use futures_util::future::join_all;
use serde::{Serialize, de::DeserializeOwned};
use volary_flow::{EmitError, Flow, Outcome, RunConfig, RunningFlow, graph::Value};
use volary_kernel::metric::CounterFamily;
use volary_messaging::{
    Identity, Message,
    agent::{Agent, AgentError, Cx, DEFAULT_DECIDE, Decision},
    delivery::message_key,
    task::Task,
};

use crate::{
    flows::series::ITEMS,
    link::{Origin, Treatment, Verdict, ended, envelope},
};

/// Time that is left of a decide for its decisions.
const MARGIN: Duration = Duration::from_secs(5);

type Read<I> = Arc<dyn Fn(&Message) -> Result<I, String> + Send + Sync>;
type Answer<O> =
    Arc<dyn Fn(&Message, O, &Cx<'_>) -> Result<Vec<Decision>, AgentError> + Send + Sync>;
type OnFailure = Arc<dyn Fn(&Message, &str, &Cx<'_>) -> Vec<Decision> + Send + Sync>;

/// An agent that has a flow work on its messages.
///
/// Each message becomes a trace of the flow, as by [`crate::link::LinkFlow`]: of the message's tenant, with its priority, the
/// time left of its deadline, and an [`Origin`] in its meta. The messages of one `decide` (at most
/// `RuntimeLimits::batch`) are in work together; their traces end before it does, so
/// [`FlowAgent::limit`] must be shorter than `RuntimeLimits::decide`. The values of a trace become decisions, in the order
/// of the messages.
///
/// A runtime receives a message once and keeps it nowhere: what fails for good after the retries of the flow's own nodes is
/// told to [`FlowAgent::on_failure`], logged, and counted (`volary_flow_items_total`). For delivery that survives, run the
/// agent in a fleet.
///
/// # Examples
/// ```
/// use volary::{
///     FlowAgent,
///     flow::{Context, FlowBuilder, RunConfig},
///     kernel::{clock::SystemClock, metric::Metrics},
///     messaging::{Identity, Local, agent::AgentRuntime},
/// };
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut b = FlowBuilder::<u64, u64>::new("double");
/// let double = b.node("double", |n: u64, _: Context| async move { Ok(n * 2) });
/// b.ingress(double).egress(double);
///
/// let metrics = Metrics::default();
/// let config = RunConfig { metrics: metrics.clone(), ..RunConfig::default() };
/// let agent = FlowAgent::start(Identity::generate()?, &b.build()?, config);
/// let runtime = AgentRuntime::builder(agent, Local::new(SystemClock::shared(), &metrics)).build()?;
/// runtime.start().await?;
/// assert!(runtime.stop().await.is_clean());
/// # Ok(()) }
/// ```
pub struct FlowAgent<I, O> {
    identity: Identity,
    flow: RunningFlow<I, O>,
    name: String,
    read: Read<I>,
    answer: Answer<O>,
    on_failure: OnFailure,
    limit: Duration,
    drain: Duration,
    settled: CounterFamily,
}

impl<I, O> fmt::Debug for FlowAgent<I, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FlowAgent({})", self.name)
    }
}

impl<I: Value + DeserializeOwned, O: Value + Serialize> FlowAgent<I, O> {
    /// Starts the flow, in the current tokio runtime. Payloads are read as JSON, and each value is sent to the message's
    /// sender, until [`FlowAgent::answer`] says otherwise.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(identity: Identity, flow: &Flow<I, O>, config: RunConfig) -> Self {
        let read = |message: &Message| {
            let read = message.payload().parse_json();
            read.map_err(|error| error.to_string())
        };
        let answer = |message: &Message, value: O, cx: &Cx<'_>| {
            let reply = cx.reply(message).json(&value)?.build(cx.now())?;
            Ok(vec![Decision::SendMessage(reply)])
        };
        Self::start_with(identity, flow, config, read, answer)
    }
}

impl<I: Value, O: Value> FlowAgent<I, O> {
    /// Starts the flow; reads messages and makes decisions of values by functions of one's own.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start_with(
        identity: Identity,
        flow: &Flow<I, O>,
        config: RunConfig,
        read: impl Fn(&Message) -> Result<I, String> + Send + Sync + 'static,
        answer: impl Fn(&Message, O, &Cx<'_>) -> Result<Vec<Decision>, AgentError>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        let settled = config.metrics.counter_family(
            ITEMS,
            "Inbox items that a flow has worked on, by what became of them",
            &["flow", "outcome"],
        );
        Self {
            identity,
            name: flow.describe().flow.clone(),
            flow: flow.start(config),
            read: Arc::new(read),
            answer: Arc::new(answer),
            on_failure: Arc::new(|_, _, _| Vec::new()),
            limit: DEFAULT_DECIDE - MARGIN,
            drain: MARGIN,
            settled,
        }
    }

    /// What each value of a trace becomes.
    #[must_use]
    pub fn answer(
        mut self,
        answer: impl Fn(&Message, O, &Cx<'_>) -> Result<Vec<Decision>, AgentError>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        self.answer = Arc::new(answer);
        self
    }

    /// What is decided about a message whose trace did not end well; nothing by default.
    #[must_use]
    pub fn on_failure(
        mut self,
        decide: impl Fn(&Message, &str, &Cx<'_>) -> Vec<Decision> + Send + Sync + 'static,
    ) -> Self {
        self.on_failure = Arc::new(decide);
        self
    }

    /// Longest time of a trace; default 25 s, 5 s less than a decide has by default.
    #[must_use]
    pub const fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The flow: to cancel, pause or look at its traces.
    pub const fn running(&self) -> &RunningFlow<I, O> {
        &self.flow
    }

    /// What one message comes to.
    async fn handle(&self, message: &Message, cx: &Cx<'_>) -> Handled {
        let payload = match (self.read)(message) {
            Ok(payload) => payload,
            Err(problem) => return Handled::failed(Verdict::of_payload(&problem)),
        };
        let headers = message.headers().iter();
        let origin = Origin {
            idempotency_key: message_key(message, cx.name()),
            trace: message.trace(),
            sender: message.sender().name().to_string(),
            attempt: 1,
            headers: headers
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        };
        let treatment = Treatment {
            tenant: message.tenant().clone(),
            topic: message.topics().first().map(ToString::to_string),
            priority: message.priority().0,
            deadline: message.deadline(),
            limit: Some(self.limit),
        };
        let Some(envelope) = envelope(&origin, treatment, payload, cx.now()) else {
            return Handled::failed(Verdict::of(&Outcome::DeadlineExceeded));
        };
        let ended = match ended(&self.flow, envelope).await {
            Ok(ended) => ended,
            Err(EmitError::Stopped) => return Handled::Stopped,
            Err(error) => return Handled::failed(Verdict::of_refusal(&error)),
        };
        match &ended.outcome {
            Outcome::Done if ended.surplus > 0 => {
                Handled::failed(Verdict::of_answer("it has too many values"))
            }
            Outcome::Done => {
                let answers = ended.values.into_iter();
                let answers = answers.map(|value| (self.answer)(message, value, cx));
                match answers.collect::<Result<Vec<_>, _>>() {
                    Ok(decisions) => Handled::Done(decisions.into_iter().flatten().collect()),
                    Err(error) => Handled::failed(Verdict::of_answer(&error.to_string())),
                }
            }
            Outcome::Dropped { .. } => Handled::Stopped,
            other => Handled::failed(Verdict::of(other)),
        }
    }
}

/// What a message came to.
enum Handled {
    Done(Vec<Decision>),
    Failed(String),
    /// The flow stopped first.
    Stopped,
}

impl Handled {
    fn failed(verdict: Verdict) -> Self {
        Self::Failed(match verdict {
            Verdict::Ack => String::new(),
            Verdict::Again { reason, .. } | Verdict::GiveUp { reason } => reason,
        })
    }
}

impl<I: Value, O: Value> Agent for FlowAgent<I, O> {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    async fn decide(
        &mut self,
        messages: &[Message],
        _tasks: &[Task],
        cx: &Cx<'_>,
    ) -> Result<Vec<Decision>, AgentError> {
        let handling = messages.iter().map(|message| self.handle(message, cx));
        let handled = join_all(handling).await;
        let stopped = |handled: &Handled| matches!(handled, Handled::Stopped);
        if !handled.is_empty() && handled.iter().all(stopped) {
            // The runtime keeps the messages and tells of them.
            return Err("the flow has stopped".into());
        }
        let count = |word| {
            self.settled.with(&[&self.name, word]).inc();
        };
        let mut decisions = Vec::new();
        for (message, handled) in messages.iter().zip(handled) {
            let reason = match handled {
                Handled::Done(more) => {
                    count("acked");
                    decisions.extend(more);
                    continue;
                }
                Handled::Failed(reason) => reason,
                Handled::Stopped => "the flow stopped before it was done".to_owned(),
            };
            count("given_up");
            tracing::warn!(flow = self.name, message = %message.id(), trace = %message.trace(), reason, "a message was not handled");
            decisions.extend((self.on_failure)(message, &reason, cx));
        }
        Ok(decisions)
    }

    async fn on_stop(&mut self, _cx: &Cx<'_>) -> Result<(), AgentError> {
        let left = self.flow.stop(self.drain).await;
        if left.is_clean() {
            return Ok(());
        }
        let (traces, blocked) = (left.unfinished.len(), left.blocked.join(", "));
        Err(
            format!("the flow left {traces} traces; nodes that hold their thread: [{blocked}]")
                .into(),
        )
    }
}
