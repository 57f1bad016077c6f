//! Quick figures of this crate alone: `cargo run --release -p volary-messaging --example figures`.
//!
//! The figures that are claimed, beside their limits and peers, are those of `volary-bench`.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a measuring program"
)]

use std::{hint::black_box, sync::Arc, time::Duration};

use bytes::Bytes;
use volary_kernel::{
    clock::{Clock, SystemClock},
    id::{Name, Tenant, TraceId},
    metric::Metrics,
    queue::{QueueConfig, WhenFull},
    secret::{Redactor, Secret},
    sign::SigningKey,
};
use volary_messaging::{
    Admission, ContentType, EndpointSpec, HookChain, HookedTransport, Identity, Local, Message,
    MessageHook, Sender, Topic, Transport,
    codec::{self, Decoder},
    frame::{self, Trust},
    hook::{HookContext, SecretGuard, Step, ValidateHook},
};

const MESSAGES: u32 = 1_000_000;

/// A hook that looks at one field and passes on.
struct Look(&'static str);

impl MessageHook for Look {
    fn name(&self) -> &'static str {
        self.0
    }
    fn pre_send<'a>(&'a self, message: Message, _: HookContext<'a>) -> Step<'a> {
        if message.topics().is_empty() {
            Step::drop("no topic")
        } else {
            Step::pass(message)
        }
    }
}

fn sender(identity: &Identity) -> Sender {
    Sender::new(
        identity.id(),
        Name::new("producer").unwrap(),
        Tenant::default(),
    )
}

/// About 300 bytes encoded.
fn message(sender: &Sender, topic: &Topic, trace: TraceId, body: &Bytes) -> Message {
    let draft = Message::builder(sender.clone())
        .topic(topic.clone())
        .trace(trace);
    let draft = draft.bytes(ContentType::BYTES, body.clone()).unwrap();
    draft.build(SystemClock.wall()).unwrap()
}

async fn bus(hooks: Vec<Arc<dyn MessageHook>>, fresh: bool) -> f64 {
    let metrics = Metrics::default();
    let local = Local::new(SystemClock::shared(), &metrics);
    let bus = HookedTransport::new(local, HookChain::new(hooks, &metrics));
    let topic: Topic = "work".parse().unwrap();
    let mut spec = EndpointSpec::new(
        Tenant::default(),
        Name::new("consumer").unwrap(),
        vec![topic.clone()],
    );
    spec.inbox = QueueConfig {
        max_items: 1024,
        max_bytes: 1 << 26,
        when_full: WhenFull::Block,
    };
    let mut endpoint = bus.open(spec).unwrap();
    let identity = Identity::generate().unwrap();
    let (sender, body, trace) = (
        sender(&identity),
        Bytes::from(vec![7u8; 150]),
        TraceId::generate(),
    );
    let ready = message(&sender, &topic, trace, &body);
    let start = SystemClock.mono();
    let send = async move {
        for _ in 0..MESSAGES {
            let next = if fresh {
                message(&sender, &topic, trace, &body)
            } else {
                ready.clone()
            };
            assert_eq!(bus.send(next).await, Admission::Delivered);
        }
    };
    let receive = async move {
        let (mut got, mut batch) = (0, Vec::with_capacity(256));
        while got < MESSAGES {
            got += u32::try_from(endpoint.recv_many(&mut batch, 256).await).unwrap();
            batch.clear();
        }
    };
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(send);
    tasks.spawn(receive);
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    f64::from(MESSAGES) / (SystemClock.mono() - start).as_secs_f64()
}

fn four(secrets: Redactor) -> Vec<Arc<dyn MessageHook>> {
    let validate = ValidateHook::new(Default::default(), SystemClock::shared());
    vec![
        Arc::new(validate),
        Arc::new(SecretGuard::new(secrets)),
        Arc::new(Look("a")),
        Arc::new(Look("b")),
    ]
}

fn look_only() -> Vec<Arc<dyn MessageHook>> {
    ["a", "b", "c", "d"]
        .map(|name| Arc::new(Look(name)) as Arc<dyn MessageHook>)
        .into()
}

fn per_second(count: u32, mut work: impl FnMut()) -> f64 {
    let start = SystemClock.mono();
    let mut rounds = 0u32;
    while SystemClock.mono() - start < Duration::from_millis(700) {
        work();
        rounds += 1;
    }
    f64::from(rounds) * f64::from(count) / (SystemClock.mono() - start).as_secs_f64()
}

/// The same work without frames: encode, one hash and signature over it all, verify strictly, decode.
fn bare(key: &SigningKey, messages: &[Message], each: bool) {
    let mut out = Vec::with_capacity(32 * 1024);
    let mut ends = Vec::with_capacity(messages.len());
    let mut digest = blake3::Hasher::new();
    for message in messages {
        let start = out.len();
        codec::encode_into(message, &mut out);
        ends.push(out.len());
        if each {
            digest.update(blake3::hash(&out[start..]).as_bytes());
        }
    }
    if !each {
        digest.update(&out);
    }
    let signature = key.sign(digest.finalize().as_bytes());
    let received = Bytes::from(out);
    let mut digest = blake3::Hasher::new();
    if !each {
        digest.update(&received);
    }
    let mut start = 0;
    let mut decoder = Decoder::default();
    let mut all = Vec::with_capacity(messages.len());
    for end in ends {
        if each {
            digest.update(blake3::hash(&received[start..end]).as_bytes());
        }
        all.push(decoder.decode(&received.slice(start..end)).unwrap());
        start = end;
    }
    key.public()
        .verify_strict(digest.finalize().as_bytes(), &signature)
        .unwrap();
    black_box(all);
}

fn signing() {
    let identity = Identity::generate().unwrap();
    let sender = sender(&identity);
    let (topic, body): (Topic, _) = ("work".parse().unwrap(), Bytes::from(vec![7u8; 150]));
    let messages: Vec<_> = (0..64)
        .map(|_| message(&sender, &topic, TraceId::generate(), &body))
        .collect();
    let encoded: Vec<_> = messages.iter().map(codec::encode).collect();
    println!("encoded size {} bytes", encoded[0].len());
    let mut out = Vec::with_capacity(32 * 1024);
    let rate = per_second(64, || {
        out.clear();
        messages
            .iter()
            .for_each(|message| codec::encode_into(message, &mut out));
        black_box(&out);
    });
    println!("encode {:.2} M/s", rate / 1e6);
    let rate = per_second(64, || {
        let mut decoder = Decoder::default();
        encoded
            .iter()
            .for_each(|bytes| drop(black_box(decoder.decode(bytes).unwrap())));
    });
    println!("decode {:.2} M/s", rate / 1e6);
    let key = SigningKey::generate().unwrap();
    let public = identity.public();
    for round in 0..3 {
        let whole = per_second(64, || bare(&key, &messages, false));
        let each = per_second(64, || bare(&key, &messages, true));
        let ours = per_second(64, || {
            let frame = frame::seal(&identity, &messages).unwrap();
            black_box(frame::open(&frame, Trust::Key(&public)).unwrap());
        });
        let (whole_ratio, each_ratio) = (ours / whole, ours / each);
        println!(
            "{round}: frame64 {:.0} k/s; bare, one hash {:.0} k/s ({whole_ratio:.2}); bare, a hash each {:.0} k/s ({each_ratio:.2})",
            ours / 1e3,
            whole / 1e3,
            each / 1e3,
        );
    }
}

fn one_thread() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    for (what, hooks) in [("no hooks", Vec::new()), ("four light hooks", look_only())] {
        let metrics = Metrics::default();
        let local = Local::new(SystemClock::shared(), &metrics);
        let bus = HookedTransport::new(local, HookChain::new(hooks, &metrics));
        let topic: Topic = "work".parse().unwrap();
        let name = Name::new("consumer").unwrap();
        let mut endpoint = bus
            .open(EndpointSpec::new(
                Tenant::default(),
                name,
                vec![topic.clone()],
            ))
            .unwrap();
        let identity = Identity::generate().unwrap();
        let (sender, body, trace) = (
            sender(&identity),
            Bytes::from(vec![7u8; 150]),
            TraceId::generate(),
        );
        let built = per_second(1, || {
            drop(black_box(message(&sender, &topic, trace, &body)))
        });
        let ready = message(&sender, &topic, trace, &body);
        let mut batch = Vec::new();
        let rate = per_second(512, || {
            runtime.block_on(async {
                for _ in 0..512 {
                    bus.send(ready.clone()).await;
                }
                batch.clear();
                endpoint.recv_many(&mut batch, 512).await;
            });
        });
        println!(
            "one thread, {what}: build {:.0} ns, send and receive {:.0} ns",
            1e9 / built,
            1e9 / rate
        );
    }
}

fn main() {
    if std::env::args().nth(1).as_deref() == Some("one") {
        return one_thread();
    }
    if std::env::args().nth(1).as_deref() == Some("seal") {
        return signing();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    for round in 0..3 {
        let secrets = Redactor::default();
        let none = runtime.block_on(bus(Vec::new(), false));
        let look = runtime.block_on(bus(look_only(), false));
        let shipped = runtime.block_on(bus(four(secrets.clone()), false));
        secrets.add(&Secret::new("canary-4711")).unwrap();
        let secret = runtime.block_on(bus(four(secrets), false));
        let fresh = runtime.block_on(bus(look_only(), true));
        println!(
            "{round}: bus no hooks {:.2}, four light hooks {:.2}, four with validate and guard {:.2}, and a secret {:.2}, four light on fresh messages {:.2} M/s",
            none / 1e6,
            look / 1e6,
            shipped / 1e6,
            secret / 1e6,
            fresh / 1e6,
        );
    }
    signing();
}
