//! The one binary form of a message, version 1: canonical, versioned, length-prefixed.
//!
//! ```text
//! u8  version = 1        u8  flags (bits below; others 0)   u8  priority
//! 16  id                 32  sender id                      16  trace       i64 sent_at (µs)
//! 8   span  [SPAN]       i64 deadline [DEADLINE]            16  task [TASK]
//! str8 sender name       str8 tenant                        str8 recipient [RECIPIENT]
//! str8 pool [POOL]
//! u8  topics, each str16 u8  headers, each str8 name, str16 value, names strictly ascending
//! str8 content type      u32 payload length, payload
//! ```
//!
//! Decoding accepts exactly what [`encode`] writes: no trailing bytes, no other order, every limit of the message type.
//! The payload of a decoded message is a slice of the bytes it was decoded from.

use std::{cmp::Ordering, ops::Range};

use bytes::Bytes;
use smallvec::SmallVec;
use volary_kernel::{
    clock::Timestamp,
    id::{Name, SpanId, Tenant, TraceId, Uid},
};

pub use crate::wire::DecodeError;
use crate::{
    identity::AgentId,
    message::{
        ContentType, Headers, Message, PAYLOAD_MAX, Parts, Payload, Priority, Sender, TOPICS_MAX,
    },
    topic::Topic,
    wire::{Reader, invalid, put_bytes32, put_str8, put_str16},
};

/// Version this build writes and reads.
pub const VERSION: u8 = 1;
/// Most bytes of one encoded message: the largest payload, headers and topics, and room for the fixed fields.
pub const ENCODED_MAX: usize = PAYLOAD_MAX + 16 * 1024;

const RECIPIENT: u8 = 1;
const TASK: u8 = 1 << 1;
const DEADLINE: u8 = 1 << 2;
const SPAN: u8 = 1 << 3;
const BROADCAST: u8 = 1 << 4;
const POOL: u8 = 1 << 5;
const KNOWN_FLAGS: u8 = RECIPIENT | TASK | DEADLINE | SPAN | BROADCAST | POOL;

/// Appends the binary form of `message` to `out`.
pub fn encode_into(message: &Message, out: &mut Vec<u8>) {
    let parts = message.parts();
    out.reserve(encoded_estimate(parts));
    out.extend_from_slice(&[VERSION, flags(parts), parts.priority.0]);
    out.extend_from_slice(parts.id.as_bytes());
    out.extend_from_slice(parts.sender.id().as_bytes());
    out.extend_from_slice(&parts.trace.to_bytes());
    out.extend_from_slice(&parts.sent_at.as_micros().to_be_bytes());
    if let Some(span) = parts.span {
        out.extend_from_slice(&span.to_bytes());
    }
    if let Some(deadline) = parts.deadline {
        out.extend_from_slice(&deadline.as_micros().to_be_bytes());
    }
    if let Some(task) = &parts.task_id {
        out.extend_from_slice(task.as_bytes());
    }
    put_str8(out, parts.sender.name().as_str());
    put_str8(out, parts.sender.tenant().as_str());
    if let Some(recipient) = &parts.recipient {
        put_str8(out, recipient.as_str());
    }
    if let Some(pool) = &parts.pool {
        put_str8(out, pool.as_str());
    }
    out.push(count(parts.topics.len()));
    for topic in &parts.topics {
        put_str16(out, topic.as_str());
    }
    out.push(count(parts.headers.len()));
    for (name, value) in parts.headers.iter() {
        put_str8(out, name);
        put_str16(out, value);
    }
    put_str8(out, parts.payload.content_type().as_str());
    put_bytes32(out, parts.payload.bytes());
}

/// The binary form of `message`.
pub fn encode(message: &Message) -> Bytes {
    let mut out = Vec::new();
    encode_into(message, &mut out);
    out.into()
}

fn count(items: usize) -> u8 {
    u8::try_from(items).expect("topics and headers are at most 32 by type")
}

fn flags(parts: &Parts) -> u8 {
    let bit = |set: bool, bit: u8| if set { bit } else { 0 };
    bit(parts.recipient.is_some(), RECIPIENT)
        | bit(parts.task_id.is_some(), TASK)
        | bit(parts.deadline.is_some(), DEADLINE)
        | bit(parts.span.is_some(), SPAN)
        | bit(parts.broadcast, BROADCAST)
        | bit(parts.pool.is_some(), POOL)
}

fn encoded_estimate(parts: &Parts) -> usize {
    // Fixed fields and their lengths are below 300 bytes unless names are long; a wrong guess costs one reallocation.
    300 + parts.topics.len() * 32
        + parts.headers.bytes()
        + parts.headers.len() * 3
        + parts.payload.bytes().len()
}

/// Id and sender of an encoded message, without looking at the rest.
pub(crate) fn peek(bytes: &Bytes) -> Result<(Uid, AgentId), DecodeError> {
    let fixed = fixed(&mut Reader::new(bytes))?;
    Ok((fixed.id, fixed.sender))
}

/// Decodes one message from exactly `bytes`.
///
/// # Errors
/// [`DecodeError`] naming the first field that is wrong.
pub fn decode(bytes: &Bytes) -> Result<Message, DecodeError> {
    Decoder::default().decode(bytes)
}

/// A decoder for many messages that resemble each other, as those of one frame do.
///
/// It remembers the last sender, recipient, topic and content type, and shares them with the next message when the
/// bytes are the same, so that such a message costs one allocation.
#[derive(Default)]
pub struct Decoder {
    sender: Option<Sender>,
    recipient: Option<Name>,
    topic: Option<Topic>,
    content_type: Option<ContentType>,
}

struct Fixed {
    flags: u8,
    priority: Priority,
    id: Uid,
    sender: AgentId,
    trace: TraceId,
    sent_at: Timestamp,
    span: Option<SpanId>,
    deadline: Option<Timestamp>,
    task_id: Option<Uid>,
}

impl Decoder {
    /// Decodes one message from exactly `bytes`.
    ///
    /// # Errors
    /// [`DecodeError`] naming the first field that is wrong.
    pub fn decode(&mut self, bytes: &Bytes) -> Result<Message, DecodeError> {
        self.read(Reader::new(bytes))
    }

    /// Decodes one message from exactly that part of `bytes`, which it must have.
    pub(crate) fn decode_at(
        &mut self,
        bytes: &Bytes,
        part: Range<usize>,
    ) -> Result<Message, DecodeError> {
        self.read(Reader::within(bytes, part))
    }

    fn read(&mut self, mut reader: Reader<'_>) -> Result<Message, DecodeError> {
        let fixed = fixed(&mut reader)?;
        let sender = self.sender(&mut reader, fixed.sender)?;
        let recipient = match fixed.flags & RECIPIENT {
            0 => None,
            _ => Some(self.recipient(reader.str8("recipient")?)?),
        };
        let pool = match fixed.flags & POOL {
            0 => None,
            _ => Some(Name::new(reader.str8("pool")?).map_err(|error| invalid("pool", error))?),
        };
        let topics = self.topics(&mut reader)?;
        let headers = headers(&mut reader)?;
        let payload = self.payload(&mut reader)?;
        reader.end()?;
        let broadcast = fixed.flags & BROADCAST != 0;
        if recipient.is_none() && pool.is_none() && topics.is_empty() && !broadcast {
            return Err(invalid(
                "address",
                "neither recipient nor pool nor topic nor broadcast",
            ));
        }
        let Fixed {
            priority,
            id,
            trace,
            sent_at,
            span,
            deadline,
            task_id,
            ..
        } = fixed;
        if deadline.is_some_and(|deadline| deadline <= sent_at) {
            return Err(invalid("deadline", "not after the time of sending"));
        }
        Ok(Message::from_parts(Parts {
            id,
            sender,
            recipient,
            pool,
            broadcast,
            topics,
            task_id,
            trace,
            span,
            sent_at,
            deadline,
            priority,
            headers,
            payload,
        }))
    }

    fn sender(&mut self, reader: &mut Reader<'_>, id: AgentId) -> Result<Sender, DecodeError> {
        let name = reader.str8("sender")?;
        let tenant = reader.str8("tenant")?;
        if let Some(last) = &self.sender
            && last.id() == id
            && last.name().as_str() == name
            && last.tenant().as_str() == tenant
        {
            return Ok(last.clone());
        }
        let name = Name::new(name).map_err(|error| invalid("sender", error))?;
        let tenant: Tenant = tenant.parse().map_err(|error| invalid("tenant", error))?;
        Ok(self.sender.insert(Sender::new(id, name, tenant)).clone())
    }

    fn recipient(&mut self, text: &str) -> Result<Name, DecodeError> {
        match &self.recipient {
            Some(last) if last.as_str() == text => Ok(last.clone()),
            _ => {
                let name = Name::new(text).map_err(|error| invalid("recipient", error))?;
                Ok(self.recipient.insert(name).clone())
            }
        }
    }

    fn topics(&mut self, reader: &mut Reader<'_>) -> Result<SmallVec<[Topic; 1]>, DecodeError> {
        let found = usize::from(reader.u8("topics")?);
        if found > TOPICS_MAX {
            return Err(DecodeError::TooMuch {
                what: "topics",
                found,
                limit: TOPICS_MAX,
            });
        }
        let mut topics: SmallVec<[Topic; 1]> = SmallVec::with_capacity(found);
        for _ in 0..found {
            let text = reader.str16("topic")?;
            let topic = match &self.topic {
                Some(last) if last.as_str() == text => last.clone(),
                _ => {
                    let topic = Topic::new(text).map_err(|error| invalid("topic", error))?;
                    self.topic.insert(topic).clone()
                }
            };
            if topics.contains(&topic) {
                return Err(DecodeError::NotCanonical { what: "topics" });
            }
            topics.push(topic);
        }
        Ok(topics)
    }

    fn payload(&mut self, reader: &mut Reader<'_>) -> Result<Payload, DecodeError> {
        let text = reader.str8("content type")?;
        let content_type = match &self.content_type {
            Some(last) if last.as_str() == text => last.clone(),
            _ => {
                let content_type =
                    ContentType::new(text).map_err(|error| invalid("content type", error))?;
                self.content_type.insert(content_type).clone()
            }
        };
        let bytes = reader.bytes32("payload", PAYLOAD_MAX)?;
        Payload::new(content_type, bytes).map_err(|error| invalid("payload", error))
    }
}

fn fixed(reader: &mut Reader<'_>) -> Result<Fixed, DecodeError> {
    reader.version("message", VERSION)?;
    let flags = reader.u8("flags")?;
    if flags & !KNOWN_FLAGS != 0 {
        return Err(DecodeError::NotCanonical { what: "flags" });
    }
    let has = |bit: u8| flags & bit != 0;
    Ok(Fixed {
        flags,
        priority: Priority(reader.u8("priority")?),
        id: Uid::from_bytes(reader.array("id")?),
        sender: AgentId::from_bytes(reader.array("sender id")?),
        trace: TraceId::from_bytes(reader.array("trace")?)
            .ok_or_else(|| invalid("trace", "all zero"))?,
        sent_at: Timestamp::from_micros(reader.i64("sent_at")?),
        span: has(SPAN).then(|| span(reader)).transpose()?,
        deadline: has(DEADLINE)
            .then(|| reader.i64("deadline").map(Timestamp::from_micros))
            .transpose()?,
        task_id: has(TASK)
            .then(|| reader.array("task").map(Uid::from_bytes))
            .transpose()?,
    })
}

fn span(reader: &mut Reader<'_>) -> Result<SpanId, DecodeError> {
    SpanId::from_bytes(reader.array("span")?).ok_or_else(|| invalid("span", "all zero"))
}

fn headers(reader: &mut Reader<'_>) -> Result<Headers, DecodeError> {
    let mut headers = Headers::new();
    let mut last = "";
    for index in 0..reader.u8("headers")? {
        let name = reader.str8("header name")?;
        if index > 0 && last.cmp(name) != Ordering::Less {
            return Err(DecodeError::NotCanonical { what: "headers" });
        }
        last = name;
        headers
            .set(name, reader.str16("header value")?)
            .map_err(|error| invalid("header", error))?;
    }
    Ok(headers)
}
