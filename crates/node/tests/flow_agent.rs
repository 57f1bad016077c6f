//! An agent embedded with a runtime whose work is a flow.

#![expect(clippy::unwrap_used, reason = "a test whose setup fails has failed")]

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use volary::{
    FlowAgent,
    flow::{Context, Flow, FlowBuilder, NodeError, RunConfig, policy::NodePolicy},
    kernel::{
        Name, Tenant, TraceId,
        clock::{self, Clock as _, SystemClock},
        collector::MetricsCollector,
        testing::eventually,
    },
    link::Origin,
    messaging::{
        Admission, Identity, Local, Message, Priority, Sender, Transport,
        agent::{AgentRuntime, RuntimeLimits},
        transport::EndpointSpec,
    },
};

const LONG: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Question {
    n: u64,
}

/// What a node saw of its trace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Seen {
    n: u64,
    message_trace: TraceId,
    priority: u8,
    seconds_left: u64,
    key: String,
}

async fn look(question: Question, context: Context) -> Result<Seen, NodeError> {
    if question.n == 13 {
        return Err(NodeError::permanent("not that one"));
    }
    clock::sleep(Duration::from_secs(1)).await;
    let origin = Origin::of(context.meta());
    let origin = origin.ok_or_else(|| NodeError::permanent("no message led here"))?;
    Ok(Seen {
        n: question.n,
        message_trace: origin.trace,
        priority: context.headers().priority,
        seconds_left: context.remaining().unwrap_or_default().as_secs(),
        key: context.idempotency_key(),
    })
}

fn graph() -> Flow<Question, Seen> {
    let mut b = FlowBuilder::new("look");
    let node = b.node("look", look);
    let policy = NodePolicy {
        concurrency: 64,
        ..NodePolicy::default()
    };
    b.policy(node, policy).ingress(node).egress(node);
    b.build().unwrap()
}

/// Whoever asks, and gets answers.
struct Asker {
    bus: Local,
    sender: Sender,
    inbox: volary::messaging::transport::Endpoint,
}

impl Asker {
    fn new(bus: &Local) -> Self {
        let name: Name = "asker".parse().unwrap();
        let identity = Identity::generate().unwrap();
        let spec = EndpointSpec::new(Tenant::default(), name.clone(), Vec::new());
        Self {
            bus: bus.clone(),
            sender: Sender::new(identity.id(), name, Tenant::default()),
            inbox: bus.open(spec).unwrap(),
        }
    }

    async fn ask(&self, n: u64, trace: TraceId, deadline: Duration) {
        let now = SystemClock.wall();
        let draft = Message::builder(self.sender.clone()).to("look".parse().unwrap());
        let draft = draft
            .trace(trace)
            .priority(Priority(200))
            .deadline(now + deadline);
        let message = draft.json(&Question { n }).unwrap().build(now).unwrap();
        assert_eq!(self.bus.send(message).await, Admission::Delivered);
    }

    async fn answer(&mut self) -> (TraceId, Seen) {
        let message = clock::timeout(LONG, self.inbox.recv())
            .await
            .unwrap()
            .unwrap();
        (message.trace(), message.payload().parse_json().unwrap())
    }
}

/// Tenant, trace, priority and time left go into the flow; its values come back as answers in the message's trace.
#[tokio::test(start_paused = true)]
async fn messages_are_answered_by_a_flow() {
    let metrics = MetricsCollector::new();
    let bus = Local::new(SystemClock::shared(), metrics.parts());
    let config = RunConfig {
        metrics: metrics.parts().clone(),
        ..RunConfig::default()
    };
    let failed = Arc::new(Mutex::new(Vec::new()));
    let told = failed.clone();
    let agent = FlowAgent::start(Identity::generate().unwrap(), &graph(), config).on_failure(
        move |message, reason, _| {
            told.lock().push((message.trace(), reason.to_owned()));
            Vec::new()
        },
    );
    let running = agent.running().clone();
    let runtime = AgentRuntime::builder(agent, bus.clone())
        .name("look".parse().unwrap())
        .metrics_collector(metrics.clone())
        .build()
        .unwrap();
    runtime.start().await.unwrap();
    let mut asker = Asker::new(&bus);

    // Messages of one trace are worked on together, and have keys of their own.
    let trace = TraceId::generate();
    let begun = tokio::time::Instant::now();
    for n in 0..10 {
        asker.ask(n, trace, Duration::from_secs(10)).await;
    }
    let mut seen = Vec::new();
    for _ in 0..10 {
        let (of, answer) = asker.answer().await;
        assert_eq!(
            (of, answer.message_trace, answer.priority),
            (trace, trace, 200)
        );
        assert!((7..=10).contains(&answer.seconds_left), "{answer:?}");
        seen.push(answer);
    }
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    seen.sort_by_key(|answer| answer.n);
    assert_eq!(
        seen.iter().map(|answer| answer.n).collect::<Vec<_>>(),
        (0..10).collect::<Vec<_>>()
    );
    let mut keys: Vec<&String> = seen.iter().map(|answer| &answer.key).collect();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), 10, "{keys:?}");

    // A failure is told, and costs the others nothing.
    let bad = TraceId::generate();
    asker.ask(13, bad, Duration::from_secs(10)).await;
    asker.ask(14, trace, Duration::from_secs(10)).await;
    assert_eq!(asker.answer().await.1.n, 14);
    assert!(eventually(LONG, || failed.lock().len() == 1).await);
    let (of, reason) = failed.lock()[0].clone();
    assert!(of == bad && reason.contains("node look"), "{reason}");

    // The registry is the runtime's own.
    let text = metrics.parts().encode_text();
    let done = r#"volary_flow_items_total{flow="look",outcome="acked"} 11"#;
    assert!(
        text.contains(done) && text.contains("volary_flow_node_failed_total"),
        "{text}"
    );

    let report = runtime.stop().await;
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.handled, 12);
    let late = volary::flow::Envelope::new(Question { n: 1 });
    assert!(
        running.emit(late).await.is_err(),
        "the flow has stopped with its agent"
    );
}

/// A trace that would take longer than a decide may is ended, and the agent goes on.
#[tokio::test(start_paused = true)]
async fn a_trace_ends_before_its_decide_does() {
    let mut b = FlowBuilder::<Question, Question>::new("slow");
    let node = b.node("slow", |question: Question, _: Context| async move {
        if question.n == 0 {
            clock::sleep(Duration::from_secs(3_600)).await;
        }
        Ok(question)
    });
    let policy = NodePolicy {
        concurrency: 2,
        ..NodePolicy::default()
    };
    b.policy(node, policy).ingress(node).egress(node);
    let bus = Local::new(SystemClock::shared(), MetricsCollector::new().parts());
    let identity = Identity::generate().unwrap();
    let agent = FlowAgent::start(identity, &b.build().unwrap(), RunConfig::default());
    let limits = RuntimeLimits {
        decide: Duration::from_secs(10),
        ..RuntimeLimits::default()
    };
    let runtime = AgentRuntime::builder(agent.limit(Duration::from_secs(5)), bus.clone());
    let runtime = runtime
        .name("look".parse().unwrap())
        .limits(limits)
        .build()
        .unwrap();
    runtime.start().await.unwrap();
    let asker = Asker::new(&bus);
    let begun = tokio::time::Instant::now();
    asker.ask(0, TraceId::generate(), LONG).await;
    asker.ask(1, TraceId::generate(), LONG).await;
    let mut inbox = asker.inbox;
    let answer = clock::timeout(LONG, inbox.recv()).await.unwrap().unwrap();
    assert_eq!(answer.payload().parse_json::<Question>().unwrap().n, 1);
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "{:?}",
        begun.elapsed()
    );
    let report = runtime.stop().await;
    assert!(report.is_clean() && report.handled == 2, "{report:?}");
}
