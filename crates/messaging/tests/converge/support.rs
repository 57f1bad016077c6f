//! Agents, buses and messages for these tests.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use volary_kernel::{
    clock::{Clock, SystemClock, Timestamp},
    id::{Name, Tenant},
    metric::Metrics,
};
use volary_messaging::{
    AgentId, Endpoint, EndpointSpec, Identity, Local, Message, Sender, Topic, Transport,
    agent::{Agent, AgentError, AgentRuntime, AgentRuntimeBuilder, Cx, Decision},
    task::Task,
};

/// Far more than anything here takes.
pub const LONG: Duration = Duration::from_secs(3600);

pub fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub fn topic(text: &str) -> Topic {
    text.parse().unwrap()
}

pub fn now() -> Timestamp {
    SystemClock.wall()
}

pub fn local() -> Local {
    Local::new(SystemClock::shared(), &Metrics::default())
}

/// A sender whose id is made up.
pub fn sender(who: &str) -> Sender {
    Sender::new(AgentId::from_bytes([7; 32]), name(who), Tenant::default())
}

/// A message with a JSON text to the agent `to`.
pub fn to(from: &Sender, to: &str, text: &str) -> Message {
    let draft = Message::builder(from.clone()).to(name(to));
    draft.json(text).unwrap().build(now()).unwrap()
}

/// A message with a JSON text about a topic.
pub fn about(from: &Sender, about: &str, text: &str) -> Message {
    let draft = Message::builder(from.clone()).topic(topic(about));
    draft.json(text).unwrap().build(now()).unwrap()
}

pub fn text(message: &Message) -> String {
    message.payload().parse_json().unwrap()
}

pub fn open<T: Transport>(bus: &T, who: &str, topics: &[&str]) -> Endpoint {
    let topics = topics.iter().map(|text| topic(text)).collect();
    bus.open(EndpointSpec::new(Tenant::default(), name(who), topics))
        .unwrap()
}

/// Waits up to five (usually paused) seconds for a message.
pub async fn receive(endpoint: &mut Endpoint) -> Option<Message> {
    volary_kernel::clock::timeout(Duration::from_secs(5), endpoint.recv())
        .await
        .ok()
        .flatten()
}

type Script =
    Box<dyn FnMut(&[Message], &[Task], &Cx<'_>) -> Result<Vec<Decision>, AgentError> + Send>;

/// An agent that does what its script says, and remembers the texts of each call.
pub struct Scripted {
    identity: Identity,
    script: Script,
    seen: Seen,
}

/// The texts of the messages of each call that had any.
#[derive(Clone, Default)]
pub struct Seen(Arc<Mutex<Vec<Vec<String>>>>);

impl Seen {
    pub fn calls(&self) -> Vec<Vec<String>> {
        self.0.lock().clone()
    }

    pub fn count(&self) -> usize {
        self.0.lock().iter().map(Vec::len).sum()
    }

    pub fn sizes(&self) -> Vec<usize> {
        self.0.lock().iter().map(Vec::len).collect()
    }
}

impl Agent for Scripted {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    async fn decide(
        &mut self,
        messages: &[Message],
        tasks: &[Task],
        cx: &Cx<'_>,
    ) -> Result<Vec<Decision>, AgentError> {
        if !messages.is_empty() {
            self.seen.0.lock().push(messages.iter().map(text).collect());
        }
        (self.script)(messages, tasks, cx)
    }
}

/// A runtime named `agent` on `bus` whose agent follows `script`.
pub fn scripted<T: Transport>(
    bus: T,
    script: impl FnMut(&[Message], &[Task], &Cx<'_>) -> Result<Vec<Decision>, AgentError>
    + Send
    + 'static,
) -> (AgentRuntimeBuilder<Scripted, T>, Seen) {
    let seen = Seen::default();
    let agent = Scripted {
        identity: Identity::generate().unwrap(),
        script: Box::new(script),
        seen: seen.clone(),
    };
    let builder = AgentRuntime::builder(agent, bus).name(name("agent"));
    (builder, seen)
}

/// The same, deciding nothing.
pub fn quiet<T: Transport>(bus: T) -> (AgentRuntimeBuilder<Scripted, T>, Seen) {
    scripted(bus, |_, _, _| Ok(Vec::new()))
}
