//! `sign.frame64`: frames of 64 messages sealed and opened again on one core.
//!
//! The limit does the least that binds the same bytes to the same key: every message encoded once, one hash over all of
//! them, one signature, one strict verification, every message decoded. It has no hash tree, so no message of it can be
//! verified alone, and checks no senders. The bar is against this limit, which promises less than a frame does.
//!
//! Two more stand beside it. `bare_ed25519`: the same with nothing but the signature scheme, which is given the batch's
//! bytes themselves, and whose own hash is slower than BLAKE3. `bare_tree`: the same promise written by hand, a hash per
//! message and a binary tree over them, so that each message can be verified alone.

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
    let [ours, limit, scheme, tree] = interleaved([
        &mut || rate(time, || seal_and_open(&identity, &messages)),
        &mut || rate(time, || bare(&key, &public, &messages, Bound::ByHash)),
        &mut || rate(time, || bare(&key, &public, &messages, Bound::Whole)),
        &mut || rate(time, || bare(&key, &public, &messages, Bound::ByTree)),
    ])?;
    let figure = Figure::rate("sign.frame64", "msg/s", 0.9, &ours)
        .against_limit(&limit)
        .with("bare_ed25519", crate::figure::rounded(scheme.median()))
        .with(
            "ratio_bare_ed25519",
            crate::figure::rounded(ours.median() / scheme.median()),
        )
        .with("bare_tree", crate::figure::rounded(tree.median()))
        .with(
            "ratio_bare_tree",
            crate::figure::rounded(ours.median() / tree.median()),
        );
    Ok(vec![figure.with("note", "one core, 150 B payloads")])
}

pub fn messages(sender: AgentId) -> Result<Vec<Message>, Failure> {
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

/// Messages per second of the limit, for others to compare with.
pub fn bare_rate(time: Duration) -> Result<f64, Failure> {
    let key = SigningKey::generate()?;
    let public = key.public();
    let messages = messages(AgentId::of(&public))?;
    rate(time, || bare(&key, &public, &messages, Bound::ByHash))
}

/// What the bare signature is over.
#[derive(Clone, Copy)]
enum Bound {
    /// One BLAKE3 hash of the batch.
    ByHash,
    /// The batch itself.
    Whole,
    /// The root of a tree over one BLAKE3 hash per message.
    ByTree,
}

impl Bound {
    /// What is signed: the batch, or `root`, which is computed from it.
    fn of<'a>(self, encoded: &'a [u8], ends: &[usize], root: &'a mut [u8; 32]) -> &'a [u8] {
        match self {
            Self::Whole => return encoded,
            Self::ByHash => *root = *blake3::hash(encoded).as_bytes(),
            Self::ByTree => *root = tree(encoded, ends),
        }
        root
    }
}

fn tree(encoded: &[u8], ends: &[usize]) -> [u8; 32] {
    let mut start = 0;
    let mut level = Vec::with_capacity(ends.len());
    for end in ends {
        level.push(*blake3::hash(&encoded[start..*end]).as_bytes());
        start = *end;
    }
    while level.len() > 1 {
        level = level
            .chunks(2)
            .map(|pair| *blake3::hash(pair.as_flattened()).as_bytes())
            .collect();
    }
    level[0]
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
    let mut root = [0; 32];
    let signature = key.sign(bound.of(&encoded, &ends, &mut root));
    let mut received = Bytes::from(encoded);
    public.verify_strict(bound.of(&received, &ends, &mut root), &signature)?;
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
