//! A delivery: what waits in an agent's inbox and what the agent is shown of it.
//!
//! The stored form (one queue item's payload):
//! ```text
//! u8 version = 1 │ u8 kind │ str8 idempotency key │ then
//!   message:        u32 length, message as in `codec`
//!   replayed (kind 16): i64 recorded at │ i64 recorded seq │ str8 recording node │ u32 length, message as in `codec`
//!   dispatch, task: u8 has topic [str16 topic] │ str16 sender │ 16 trace │ str8 content type │ u32 length, payload
//! ```
//! The shown form is the JSON document of the handler protocol and of the link API's inbox.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Serialize, Serializer, ser::SerializeMap};
use serde_json::value::RawValue;
use volary_kernel::{
    clock::Timestamp,
    id::{Name, Tenant, TraceId, Uid},
};
use volary_store::Seq;

use crate::{
    codec::{self, DecodeError},
    message::{ContentType, Headers, Message, PAYLOAD_MAX, Payload},
    topic::Topic,
    wire::{Reader, invalid, put_bytes32, put_str8, put_str16},
};

/// Version of the stored form.
const VERSION: u8 = 1;
/// The kind byte of a replayed message.
const REPLAYED: u8 = 16;
/// Longest idempotency key, in bytes.
pub const IDEMPOTENCY_KEY_MAX: usize = 255;
/// Longest sender text, in bytes: `agent:` or `source:` and a name fit many times.
pub const SENDER_MAX: usize = 256;

/// What a delivery is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryKind {
    /// A message of another agent or an operator.
    Message,
    /// A change of context to which the agent subscribed.
    Dispatch,
    /// A task to be done.
    Task,
}

impl DeliveryKind {
    /// The word in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::Dispatch => "dispatch",
            Self::Task => "task",
        }
    }
}

/// What goes into an inbox that is not a message: made by the node for other domains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parcel {
    /// [`DeliveryKind::Dispatch`] or [`DeliveryKind::Task`].
    pub kind: DeliveryKind,
    /// What it is about, if it has a topic.
    pub topic: Option<Topic>,
    /// Where it comes from, as the agent is shown it: `source:notes`. At most [`SENDER_MAX`] bytes.
    pub sender: String,
    /// The request it is part of.
    pub trace: TraceId,
    /// The same for every attempt, and for the same work enqueued again. At most [`IDEMPOTENCY_KEY_MAX`] bytes.
    pub idempotency_key: String,
    /// The content.
    pub payload: Payload,
}

/// Why a parcel can not be stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParcelError {
    /// A text is empty or too long.
    #[error("{what} of {found} bytes must have 1 to {limit}")]
    Length {
        /// The field.
        what: &'static str,
        /// Bytes found.
        found: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// A message is no parcel; it is posted.
    #[error("a message is not put into an inbox as a parcel; post it")]
    Message,
}

impl Parcel {
    /// The stored form.
    ///
    /// # Errors
    /// [`ParcelError`].
    pub fn encode(&self) -> Result<Bytes, ParcelError> {
        check_length(
            "idempotency key",
            &self.idempotency_key,
            IDEMPOTENCY_KEY_MAX,
        )?;
        check_length("sender", &self.sender, SENDER_MAX)?;
        let kind = match self.kind {
            DeliveryKind::Message => return Err(ParcelError::Message),
            DeliveryKind::Dispatch => 1,
            DeliveryKind::Task => 2,
        };
        let mut out = Vec::with_capacity(128 + self.payload.bytes().len());
        out.extend_from_slice(&[VERSION, kind]);
        put_str8(&mut out, &self.idempotency_key);
        out.push(u8::from(self.topic.is_some()));
        if let Some(topic) = &self.topic {
            put_str16(&mut out, topic.as_str());
        }
        put_str16(&mut out, &self.sender);
        out.extend_from_slice(&self.trace.to_bytes());
        put_str8(&mut out, self.payload.content_type().as_str());
        put_bytes32(&mut out, self.payload.bytes());
        Ok(out.into())
    }
}

fn check_length(what: &'static str, text: &str, limit: usize) -> Result<(), ParcelError> {
    let found = text.len();
    if (1..=limit).contains(&found) {
        Ok(())
    } else {
        Err(ParcelError::Length { what, found, limit })
    }
}

/// The idempotency key of a message at one of its receivers: the same after a replay or a retry.
pub fn message_key(message: &Message, receiver: &Name) -> String {
    format!("{}/{receiver}", message.id())
}

/// The stored form of `message` for `receiver`. `encoded` is its binary form, so that it is made once for all receivers.
pub(crate) fn encode_message(message: &Message, encoded: &[u8], receiver: &Name) -> Bytes {
    let mut out = Vec::with_capacity(112 + encoded.len());
    out.extend_from_slice(&[VERSION, 0]);
    put_str8(&mut out, &message_key(message, receiver));
    put_bytes32(&mut out, encoded);
    out.into()
}

/// The stored form of a message that is delivered again from a recording.
pub(crate) fn encode_replayed(encoded: &[u8], key: &str, mark: &Replayed) -> Bytes {
    let mut out = Vec::with_capacity(192 + encoded.len());
    out.extend_from_slice(&[VERSION, REPLAYED]);
    put_str8(&mut out, key);
    out.extend_from_slice(&mark.at.as_micros().to_be_bytes());
    out.extend_from_slice(&mark.seq.0.cast_signed().to_be_bytes());
    put_str8(&mut out, mark.node.as_str());
    put_bytes32(&mut out, encoded);
    out.into()
}

/// Says that a delivery comes from a recording, and from where in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replayed {
    /// The node that recorded it.
    pub node: Name,
    /// Its entry in that node's journal.
    pub seq: Seq,
    /// When it was accepted then.
    pub at: Timestamp,
}

/// The message in what [`encode_message`] made.
pub(crate) fn stored_message(stored: &Bytes) -> Result<Bytes, DecodeError> {
    let mut reader = Reader::new(stored);
    reader.version("delivery", VERSION)?;
    match reader.u8("kind")? {
        0 => {}
        other => return Err(invalid("kind", format!("{other} is no message"))),
    }
    let _receiver = reader.str8("idempotency key")?;
    let message = reader.bytes32("message", codec::ENCODED_MAX)?;
    reader.end()?;
    Ok(message)
}

/// Something an agent is to handle: one attempt at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Id of the delivery: the same in every attempt, different for each receiver.
    pub id: Uid,
    /// What it is.
    pub kind: DeliveryKind,
    /// What it is about: of a message, its first topic.
    pub topic: Option<Topic>,
    /// Who it is from: an agent's name, or what a parcel says.
    pub sender: String,
    /// Whose it is.
    pub tenant: Tenant,
    /// The request it is part of.
    pub trace: TraceId,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// The same in every attempt; effects carry it.
    pub idempotency_key: String,
    /// The message's id, if it is one.
    pub message: Option<Uid>,
    /// The message's task, if it has one.
    pub task: Option<Uid>,
    /// The message's headers.
    pub headers: Headers,
    /// When it is no longer wanted.
    pub deadline: Option<Timestamp>,
    /// Set if it is a recorded message that is delivered again.
    pub replayed: Option<Replayed>,
    /// The content.
    pub payload: Payload,
}

impl Delivery {
    /// Reads the stored form. `id`, `attempt` and `tenant` are the queue's.
    ///
    /// # Errors
    /// [`DecodeError`] naming the first field that is wrong.
    pub fn decode(
        stored: &Bytes,
        id: Uid,
        attempt: u32,
        tenant: &Tenant,
    ) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(stored);
        reader.version("delivery", VERSION)?;
        let kind = reader.u8("kind")?;
        let idempotency_key = reader.str8("idempotency key")?.to_owned();
        let delivery = match kind {
            0 => {
                let message = codec::decode(&reader.bytes32("message", codec::ENCODED_MAX)?)?;
                Self::of_message(&message, id, attempt, idempotency_key)
            }
            REPLAYED => Self::of_replayed(&mut reader, id, attempt, idempotency_key)?,
            1 => Self::of_parcel(
                &mut reader,
                DeliveryKind::Dispatch,
                (id, attempt, tenant, idempotency_key),
            )?,
            2 => Self::of_parcel(
                &mut reader,
                DeliveryKind::Task,
                (id, attempt, tenant, idempotency_key),
            )?,
            other => return Err(invalid("kind", format!("{other} is not known"))),
        };
        reader.end()?;
        if delivery.tenant != *tenant {
            return Err(invalid("tenant", "the message's is not the queue's"));
        }
        Ok(delivery)
    }

    fn of_message(message: &Message, id: Uid, attempt: u32, idempotency_key: String) -> Self {
        Self {
            id,
            kind: DeliveryKind::Message,
            topic: message.topics().first().cloned(),
            sender: message.sender().name().to_string(),
            tenant: message.tenant().clone(),
            trace: message.trace(),
            attempt,
            idempotency_key,
            message: Some(message.id()),
            task: message.task_id(),
            headers: message.headers().clone(),
            deadline: message.deadline(),
            replayed: None,
            payload: message.payload().clone(),
        }
    }

    fn of_replayed(
        reader: &mut Reader<'_>,
        id: Uid,
        attempt: u32,
        idempotency_key: String,
    ) -> Result<Self, DecodeError> {
        let at = Timestamp::from_micros(reader.i64("recorded at")?);
        let seq = Seq(reader.i64("recorded seq")?.cast_unsigned());
        let node =
            Name::new(reader.str8("node")?).map_err(|error| invalid("recording node", error))?;
        let message = codec::decode(&reader.bytes32("message", codec::ENCODED_MAX)?)?;
        Ok(Self {
            // The recorded deadline has passed.
            deadline: None,
            replayed: Some(Replayed { node, seq, at }),
            ..Self::of_message(&message, id, attempt, idempotency_key)
        })
    }

    fn of_parcel(
        reader: &mut Reader<'_>,
        kind: DeliveryKind,
        (id, attempt, tenant, idempotency_key): (Uid, u32, &Tenant, String),
    ) -> Result<Self, DecodeError> {
        let topic = match reader.u8("has topic")? {
            0 => None,
            1 => Some(Topic::new(reader.str16("topic")?).map_err(|error| invalid("topic", error))?),
            _ => return Err(DecodeError::NotCanonical { what: "has topic" }),
        };
        let sender = reader.str16("sender")?.to_owned();
        let trace = TraceId::from_bytes(reader.array("trace")?)
            .ok_or_else(|| invalid("trace", "all zero"))?;
        let content_type = ContentType::new(reader.str8("content type")?)
            .map_err(|error| invalid("content type", error))?;
        let payload = Payload::new(content_type, reader.bytes32("payload", PAYLOAD_MAX)?)
            .map_err(|error| invalid("payload", error))?;
        Ok(Self {
            id,
            kind,
            topic,
            sender,
            tenant: tenant.clone(),
            trace,
            attempt,
            idempotency_key,
            message: None,
            task: None,
            headers: Headers::new(),
            deadline: None,
            replayed: None,
            payload,
        })
    }

    /// The JSON document that a handler reads and the link API shows.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self)
            .expect("texts, numbers and checked JSON always have a JSON form")
    }

    /// The payload as JSON, if that is what it is.
    fn json_payload(&self) -> Option<&RawValue> {
        let json = self.payload.content_type().is_json();
        json.then(|| serde_json::from_slice(self.payload.bytes()).ok())
            .flatten()
    }
}

/// `{id, kind, topic, sender, tenant, trace, attempt, idempotency_key, payload | payload_base64}` and, where there is
/// something to say, `redelivered, message_id, task_id, headers, deadline, replayed, recorded, content_type`.
impl Serialize for Delivery {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("id", &self.id)?;
        map.serialize_entry("kind", &self.kind)?;
        map.serialize_entry("topic", &self.topic)?;
        map.serialize_entry("sender", &self.sender)?;
        map.serialize_entry("tenant", &self.tenant)?;
        map.serialize_entry("trace", &self.trace)?;
        map.serialize_entry("attempt", &self.attempt)?;
        map.serialize_entry("redelivered", &(self.attempt > 1))?;
        map.serialize_entry("idempotency_key", &self.idempotency_key)?;
        if let Some(message) = &self.message {
            map.serialize_entry("message_id", message)?;
        }
        if let Some(task) = &self.task {
            map.serialize_entry("task_id", task)?;
        }
        if !self.headers.is_empty() {
            map.serialize_entry("headers", &HeaderMap(&self.headers))?;
        }
        if let Some(deadline) = &self.deadline {
            map.serialize_entry("deadline", deadline)?;
        }
        if let Some(replayed) = &self.replayed {
            map.serialize_entry("replayed", &true)?;
            map.serialize_entry("recorded", replayed)?;
        }
        map.serialize_entry("content_type", self.payload.content_type().as_str())?;
        match self.json_payload() {
            Some(json) => map.serialize_entry("payload", json)?,
            None => map.serialize_entry(
                "payload_base64",
                &BASE64_STANDARD.encode(self.payload.bytes()),
            )?,
        }
        map.end()
    }
}

struct HeaderMap<'a>(&'a Headers);

impl Serialize for HeaderMap<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::test_util::{NOW, message, name, topic};

    fn parcel(payload: Payload) -> Parcel {
        Parcel {
            kind: DeliveryKind::Dispatch,
            topic: Some(topic("notes")),
            sender: "source:notes".into(),
            trace: TraceId::generate(),
            idempotency_key: "change-1".into(),
            payload,
        }
    }

    fn read(stored: &Bytes, attempt: u32) -> Delivery {
        Delivery::decode(stored, Uid::generate(), attempt, &Tenant::default()).unwrap()
    }

    fn shown(delivery: &Delivery) -> Value {
        serde_json::from_str(&delivery.to_json()).unwrap()
    }

    #[test]
    fn a_message_is_shown_with_its_json_inside() {
        let message = message("a", "t", "hello")
            .edit()
            .header("x", "1")
            .unwrap()
            .build(NOW)
            .unwrap();
        let delivery = read(
            &encode_message(&message, &codec::encode(&message), &name("b")),
            2,
        );
        let id = delivery.id.to_string();
        assert_eq!(
            shown(&delivery),
            json!({
                "id": id, "kind": "message", "topic": "t", "sender": "a", "tenant": "default",
                "trace": message.trace().to_string(), "attempt": 2, "redelivered": true,
                "idempotency_key": format!("{}/b", message.id()), "message_id": message.id().to_string(),
                "headers": {"x": "1"}, "content_type": "application/json", "payload": "hello",
            })
        );
    }

    #[test]
    fn bytes_and_false_json_are_shown_in_base64() {
        for (content_type, bytes) in [
            (ContentType::BYTES, &b"\xff\0"[..]),
            (ContentType::JSON, b"{\"a\":"),
        ] {
            let delivery = read(
                &parcel(Payload::new(content_type, bytes).unwrap())
                    .encode()
                    .unwrap(),
                1,
            );
            let shown = shown(&delivery);
            assert_eq!(
                shown["payload_base64"],
                json!(BASE64_STANDARD.encode(bytes))
            );
            assert!(shown.get("payload").is_none());
        }
    }

    #[test]
    fn a_json_payload_keeps_its_digits() {
        let payload =
            Payload::new(ContentType::JSON, &b"{\"n\":12345678901234567890123}"[..]).unwrap();
        let delivery = read(&parcel(payload).encode().unwrap(), 1);
        assert!(
            delivery
                .to_json()
                .contains("\"payload\":{\"n\":12345678901234567890123}")
        );
    }

    #[test]
    fn a_parcel_reads_back_and_its_texts_are_bounded() {
        let parcel = parcel(Payload::json(&json!({"page": "a.md"})).unwrap());
        let delivery = read(&parcel.encode().unwrap(), 1);
        assert_eq!(
            (&delivery.sender, delivery.kind),
            (&parcel.sender, DeliveryKind::Dispatch)
        );
        assert_eq!(
            (&delivery.topic, delivery.trace),
            (&parcel.topic, parcel.trace)
        );
        assert_eq!(
            (&delivery.payload, &delivery.idempotency_key),
            (&parcel.payload, &parcel.idempotency_key)
        );
        let long = Parcel {
            idempotency_key: "k".repeat(IDEMPOTENCY_KEY_MAX + 1),
            ..parcel.clone()
        };
        assert!(matches!(long.encode(), Err(ParcelError::Length { .. })));
        let message = Parcel {
            kind: DeliveryKind::Message,
            ..parcel
        };
        assert_eq!(message.encode(), Err(ParcelError::Message));
    }

    #[test]
    fn a_message_of_another_tenant_than_its_queue_is_refused() {
        let message = message("a", "t", "");
        let stored = encode_message(&message, &codec::encode(&message), &name("b"));
        assert!(Delivery::decode(&stored, Uid::generate(), 1, &"other".parse().unwrap()).is_err());
    }

    proptest! {
        #[test]
        fn damaged_items_never_panic(mut cut in 0usize..200, flip in any::<u8>()) {
            let stored = parcel(Payload::json("text").unwrap()).encode().unwrap();
            cut %= stored.len();
            let mut bytes = stored.to_vec();
            bytes[cut] ^= flip;
            let _refused_or_read = Delivery::decode(&bytes.into(), Uid::generate(), 1, &Tenant::default());
            let shorter = Delivery::decode(&stored.slice(..cut), Uid::generate(), 1, &Tenant::default());
            prop_assert!(shorter.is_err());
        }
    }
}
