//! `sign.frame64`: frames of 64 messages sealed and opened again on one core.
//!
//! `bare_ed25519` and `ratio_bare_ed25519` stand beside it: the same with nothing but the signature scheme, which is given
//! the batch's bytes themselves, and whose own hash is slower than BLAKE3.
//!
//! The limit does the least that binds the same bytes to the same key: every message encoded once, one hash over all of
//! them, one signature, one strict verification, every message decoded. It has no hash tree, so no message of it can be
//! verified alone, and checks no senders.

use std::time::Duration;

use bytes::Bytes;
use volary_kernel::clock::{Clock as _, SystemClock};
use volary_kernel::sign::{PublicKey, SigningKey};
use volary_messaging::codec::{self, Decoder};
use volary_messaging::frame::{self, Trust};
use volary_messaging::{AgentId, ContentType, Identity, Message, Sender, Topic};

use crate::figure::Figure;
use crate::rounds::interleaved;
use crate::{Failure, Plan};

/// Messages of one frame.
const FRAME: usize = 64;
/// Bytes of one payload.
const BODY: usize = 150;

pub fn measure(plan: &Plan) -> Result<Vec<Figure>, Failure> {
    let time = Duration::from_millis(if plan.quick { 300 } else { 2_000 });
    let key = SigningKey::generate()?;
    let identity = Identity::from_key(SigningKey::from_pkcs8(&key.to_pkcs8()?)?);
    let messages = messages(AgentId::of(&identity.public()))?;
    let public = key.public();
    let [ours, limit, scheme] = interleaved([
        &mut || rate(time, || seal_and_open(&identity, &messages)),
        &mut || rate(time, || bare(&key, &public, &messages, Bound::ByHash)),
        &mut || rate(time, || bare(&key, &public, &messages, Bound::Whole)),
    ])?;
    let figure = Figure::rate("sign.frame64", "msg/s", 0.9, &ours)
        .against_limit(&limit)
        .with("bare_ed25519", crate::figure::rounded(scheme.median()))
        .with(
            "ratio_bare_ed25519",
            crate::figure::rounded(ours.median() / scheme.median()),
        );
    Ok(vec![figure.with("note", "one core, 150 B payloads")])
}

fn messages(sender: AgentId) -> Result<Vec<Message>, Failure> {
    let sender = Sender::new(sender, "sender".parse()?, Default::default());
    let topic = Topic::new("work")?;
    let message = |_| {
        let builder = Message::builder(sender.clone()).topic(topic.clone());
        let builder = builder.bytes(ContentType::BYTES, Bytes::from_static(&[7; BODY]))?;
        Ok(builder.build(SystemClock.wall())?)
    };
    (0..FRAME).map(message).collect()
}

fn seal_and_open(identity: &Identity, messages: &[Message]) -> Result<(), Failure> {
    let sealed = frame::seal(identity, messages)?;
    let opened = frame::open(&sealed, Trust::Key(&identity.public()))?;
    std::hint::black_box(opened.messages());
    Ok(())
}

/// What the bare signature is over.
#[derive(Clone, Copy)]
enum Bound {
    /// One BLAKE3 hash of the batch.
    ByHash,
    /// The batch itself.
    Whole,
}

fn bare(
    key: &SigningKey,
    public: &PublicKey,
    messages: &[Message],
    bound: Bound,
) -> Result<(), Failure> {
    let mut encoded = Vec::with_capacity(FRAME * (BODY + 200));
    let mut ends = Vec::with_capacity(FRAME);
    for message in messages {
        codec::encode_into(message, &mut encoded);
        ends.push(encoded.len());
    }
    let signature = match bound {
        Bound::ByHash => key.sign(blake3::hash(&encoded).as_bytes()),
        Bound::Whole => key.sign(&encoded),
    };
    let mut received = Bytes::from(encoded);
    match bound {
        Bound::ByHash => {
            public.verify_strict(blake3::hash(&received).as_bytes(), &signature)?;
        }
        Bound::Whole => public.verify_strict(&received, &signature)?,
    }
    let mut decoder = Decoder::default();
    let mut opened = Vec::with_capacity(FRAME);
    let mut start = 0;
    for end in ends {
        opened.push(decoder.decode(&received.split_to(end - start))?);
        start = end;
    }
    std::hint::black_box(opened);
    Ok(())
}

/// Messages per second of repeating one frame's work for that long.
fn rate(time: Duration, mut frame: impl FnMut() -> Result<(), Failure>) -> Result<f64, Failure> {
    let start = SystemClock.mono();
    let mut frames = 0;
    loop {
        frame()?;
        frames += 1;
        let passed = SystemClock.mono() - start;
        if passed >= time {
            return Ok((frames * FRAME) as f64 / passed.as_secs_f64());
        }
    }
}
