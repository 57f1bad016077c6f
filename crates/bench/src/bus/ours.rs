//! The local bus with four hooks, as a node has it: each message is built and checked, has its own id, trace and time,
//! passes four hooks on its way out and four on its way in, is routed by topic within its tenant, admitted by count and
//! bytes, and counted; its sender learns what became of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use volary_kernel::clock::{Clock as _, SystemClock};
use volary_kernel::metric::Metrics;
use volary_kernel::queue::{QueueConfig, WhenFull};
use volary_messaging::hook::{
    HookChain, HookContext, MessageHook, MessageLimits, Step, ValidateHook,
};
use volary_messaging::transport::{EndpointSpec, HookedTransport, Local, Transport as _};
use volary_messaging::{
    Admission, AgentId, ContentType, Message, Payload, Priority, Sender, Topic,
};

use super::peers::Count;
use super::{BODY, CAPACITY};

/// Messages taken from the inbox at once, at most.
const TAKEN: usize = 256;

/// Counts bytes per direction: a stand-in for the rate limiter, which keeps a level for each, too.
#[derive(Default)]
struct Meter {
    sent: Level,
    received: Level,
}

/// A number of its own cache line: the two directions run on different cores.
#[derive(Default)]
#[repr(align(128))]
struct Level(AtomicU64);

impl Level {
    fn take<'a>(&self, message: Message) -> Step<'a> {
        let bytes = message.body().len() as u64;
        self.0.fetch_add(bytes, Ordering::Relaxed);
        Step::pass(message)
    }
}

impl MessageHook for Meter {
    fn name(&self) -> &'static str {
        "meter"
    }

    fn pre_send<'a>(&'a self, message: Message, _: HookContext<'a>) -> Step<'a> {
        self.sent.take(message)
    }

    fn post_receive<'a>(&'a self, message: Message, _: HookContext<'a>) -> Step<'a> {
        self.received.take(message)
    }
}

/// Passes messages that need no change, as almost all do.
struct Normalise;

impl Normalise {
    fn look<'a>(message: Message) -> Step<'a> {
        if message.body().is_empty() && message.payload().content_type().is_json() {
            return Step::drop("an empty document");
        }
        Step::pass(message)
    }
}

impl MessageHook for Normalise {
    fn name(&self) -> &'static str {
        "normalise"
    }

    fn pre_send<'a>(&'a self, message: Message, _: HookContext<'a>) -> Step<'a> {
        Self::look(message)
    }

    fn post_receive<'a>(&'a self, message: Message, _: HookContext<'a>) -> Step<'a> {
        Self::look(message)
    }
}

/// Lets one topic through.
struct Policy(Topic);

impl Policy {
    fn look(&self, message: Message) -> Step<'_> {
        let allowed = message.topics().iter().all(|topic| *topic == self.0);
        if !allowed || message.priority() < Priority::NORMAL {
            return Step::drop("not allowed");
        }
        Step::pass(message)
    }
}

impl MessageHook for Policy {
    fn name(&self) -> &'static str {
        "policy"
    }

    fn pre_send<'a>(&'a self, message: Message, _: HookContext<'a>) -> Step<'a> {
        self.look(message)
    }

    fn post_receive<'a>(&'a self, message: Message, _: HookContext<'a>) -> Step<'a> {
        self.look(message)
    }
}

/// One run: a sender and a receiver on the bus.
pub async fn local_bus(messages: u64) {
    let (clock, metrics) = (SystemClock::shared(), Metrics::default());
    let topic = Topic::new("work").expect("it is a good topic");
    let hooks: Vec<Arc<dyn MessageHook>> = vec![
        Arc::new(ValidateHook::new(MessageLimits::default(), clock.clone())),
        Arc::new(Meter::default()),
        Arc::new(Normalise),
        Arc::new(Policy(topic.clone())),
    ];
    let bus = HookedTransport::new(Local::new(clock, &metrics), HookChain::new(hooks, &metrics));
    let name = "receiver".parse().expect("it is a good name");
    let mut spec = EndpointSpec::new(Default::default(), name, vec![topic.clone()]);
    spec.inbox = QueueConfig {
        max_items: CAPACITY,
        max_bytes: 16 << 20,
        when_full: WhenFull::Block,
    };
    let mut endpoint = bus.open(spec).expect("the name is free");
    let (mut count, answer) = Count::new(messages);
    let receiving = super::background(async move {
        let mut taken = Vec::with_capacity(TAKEN);
        let mut more = true;
        while more && endpoint.recv_many(&mut taken, TAKEN).await > 0 {
            for message in taken.drain(..) {
                let topic = message.topics().first().map_or("", Topic::as_str);
                more = count.take(message.sender().name().as_str(), topic, message.body());
            }
        }
    });
    let sender = "sender".parse().expect("it is a good name");
    let sender = Sender::new(AgentId::from_bytes([7; 32]), sender, Default::default());
    let payload = Payload::new(ContentType::BYTES, Bytes::from_static(&BODY));
    let payload = payload.expect("it is small");
    for _ in 0..messages {
        let builder = Message::builder(sender.clone()).topic(topic.clone());
        let message = builder.payload(payload.clone()).build(SystemClock.wall());
        let admission = bus.send(message.expect("it is complete")).await;
        assert_eq!(admission, Admission::Delivered);
    }
    answer.await.expect("the receiver answers");
    receiving.await.expect("the receiver does not panic");
}
