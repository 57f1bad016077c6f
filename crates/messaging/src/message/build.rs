//! Building a message: every limit is checked here, once.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use smallvec::SmallVec;
use volary_kernel::{
    clock::Timestamp,
    id::{Name, SpanId, TraceId, Uid},
};

use super::{
    ContentType, HEADER_BYTES_MAX, HEADERS_MAX, Headers, Message, Parts, Payload, Priority, Sender,
    TOPICS_MAX,
};
use crate::topic::Topic;

/// Why a message can not be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// Neither recipient nor pool nor topic nor broadcast was given.
    #[error(
        "a message needs a recipient, a pool or a topic; to reach every agent, ask for broadcast"
    )]
    NoAddress,
    /// More topics than [`TOPICS_MAX`].
    #[error("{found} topics are more than {TOPICS_MAX}")]
    Topics {
        /// Topics given.
        found: usize,
    },
    /// A header's name or value is not allowed.
    #[error("header `{name}` is refused: {problem}")]
    Header {
        /// The name, at most 80 characters.
        name: String,
        /// The rule it breaks.
        problem: &'static str,
    },
    /// Too many headers, or too large.
    #[error(
        "{count} headers of {bytes} bytes are more than {HEADERS_MAX} headers or {HEADER_BYTES_MAX} bytes"
    )]
    Headers {
        /// Headers there would be.
        count: usize,
        /// Bytes they would have.
        bytes: usize,
    },
    /// The content type is not a media type.
    #[error("content type must look like `type/subtype`, found `{found}`")]
    ContentType {
        /// The text, at most 80 characters.
        found: String,
    },
    /// The payload is larger than allowed.
    #[error("payload of {found} bytes is larger than {limit}")]
    PayloadTooLarge {
        /// Bytes given.
        found: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The value has no JSON form.
    #[error("payload has no JSON form: {problem}")]
    Json {
        /// The serializer's words.
        problem: String,
    },
    /// The deadline lies before the time of sending.
    #[error("deadline {deadline} is not after {sent_at}, when it is sent")]
    Deadline {
        /// The deadline given.
        deadline: Timestamp,
        /// When the message would be sent.
        sent_at: Timestamp,
    },
}

/// Collects the fields of a message; [`MessageBuilder::build`] checks them together.
///
/// It holds the message to be, in its final place, so that building copies nothing.
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `build`"]
pub struct MessageBuilder {
    parts: Arc<Parts>,
    has_id: bool,
    has_trace: bool,
    has_sent_at: bool,
}

/// Stands where [`MessageBuilder::build`] will put a trace.
const NO_TRACE: TraceId = match TraceId::from_bytes([0xff; 16]) {
    Some(trace) => trace,
    None => panic!("not all zero"),
};

impl MessageBuilder {
    #[inline]
    pub(super) fn new(sender: Sender) -> Self {
        let parts = Parts {
            id: Uid::from_bytes([0; 16]),
            sender,
            recipient: None,
            pool: None,
            broadcast: false,
            topics: SmallVec::new(),
            task_id: None,
            trace: NO_TRACE,
            span: None,
            sent_at: Timestamp::default(),
            deadline: None,
            priority: Priority::NORMAL,
            headers: Headers::new(),
            payload: Payload::default(),
        };
        Self {
            parts: Arc::new(parts),
            has_id: false,
            has_trace: false,
            has_sent_at: false,
        }
    }

    pub(super) fn from_parts(parts: Arc<Parts>) -> Self {
        Self {
            parts,
            has_id: true,
            has_trace: true,
            has_sent_at: true,
        }
    }

    /// The parts to be changed; a copy of them if a message or another builder shares them.
    #[inline]
    fn parts(&mut self) -> &mut Parts {
        Arc::make_mut(&mut self.parts)
    }

    /// Keeps this id instead of making one: for a message that was given its id elsewhere.
    #[inline]
    pub fn id(mut self, id: Uid) -> Self {
        self.parts().id = id;
        self.has_id = true;
        self
    }

    /// For this agent only.
    #[inline]
    pub fn to(mut self, recipient: Name) -> Self {
        self.parts().recipient = Some(recipient);
        self
    }

    /// For one member of this pool: the one with the least to do. A recipient goes before it.
    #[inline]
    pub fn pool(mut self, pool: Name) -> Self {
        self.parts().pool = Some(pool);
        self
    }

    /// For the subscribers of `topic`, too. A repeat changes nothing.
    #[inline]
    pub fn topic(mut self, topic: Topic) -> Self {
        let topics = &mut self.parts().topics;
        if !topics.contains(&topic) {
            topics.push(topic);
        }
        self
    }

    /// For every agent of the tenant but the sender.
    pub fn broadcast(mut self) -> Self {
        self.parts().broadcast = true;
        self
    }

    /// Belongs to this task.
    pub fn task(mut self, task: Uid) -> Self {
        self.parts().task_id = Some(task);
        self
    }

    /// Part of this request; without it a new trace begins.
    #[inline]
    pub fn trace(mut self, trace: TraceId) -> Self {
        self.parts().trace = trace;
        self.has_trace = true;
        self
    }

    /// Sent by this step of the trace.
    pub fn span(mut self, span: SpanId) -> Self {
        self.parts().span = Some(span);
        self
    }

    /// Worthless after this time.
    pub fn deadline(mut self, deadline: Timestamp) -> Self {
        self.parts().deadline = Some(deadline);
        self
    }

    /// How urgent; default [`Priority::NORMAL`].
    pub fn priority(mut self, priority: Priority) -> Self {
        self.parts().priority = priority;
        self
    }

    /// Sets one header.
    ///
    /// # Errors
    /// As [`Headers::set`].
    pub fn header(mut self, name: &str, value: &str) -> Result<Self, BuildError> {
        self.parts().headers.set(name, value)?;
        Ok(self)
    }

    /// Replaces all headers.
    pub fn headers(mut self, headers: Headers) -> Self {
        self.parts().headers = headers;
        self
    }

    /// The content.
    #[inline]
    pub fn payload(mut self, payload: Payload) -> Self {
        self.parts().payload = payload;
        self
    }

    /// `bytes` of a content type as the content.
    ///
    /// # Errors
    /// [`BuildError::PayloadTooLarge`].
    #[inline]
    pub fn bytes(
        self,
        content_type: ContentType,
        bytes: impl Into<Bytes>,
    ) -> Result<Self, BuildError> {
        Ok(self.payload(Payload::new(content_type, bytes)?))
    }

    /// `value` as JSON as the content.
    ///
    /// # Errors
    /// As [`Payload::json`].
    pub fn json(self, value: &(impl Serialize + ?Sized)) -> Result<Self, BuildError> {
        Ok(self.payload(Payload::json(value)?))
    }

    /// Checks everything together and makes the message, sent at `now` (or, for an edited message, when it was).
    ///
    /// # Errors
    /// [`BuildError::NoAddress`], [`BuildError::Topics`], [`BuildError::Deadline`].
    #[inline]
    pub fn build(mut self, now: Timestamp) -> Result<Message, BuildError> {
        let (has_id, has_trace, has_sent_at) = (self.has_id, self.has_trace, self.has_sent_at);
        if !(has_id && has_trace && has_sent_at) {
            let parts = self.parts();
            if !has_id {
                parts.id = Uid::generate_near(now);
            }
            if !has_trace {
                parts.trace = TraceId::generate();
            }
            if !has_sent_at {
                parts.sent_at = now;
            }
        }
        check(&self.parts)?;
        Ok(Message(self.parts))
    }
}

fn check(parts: &Parts) -> Result<(), BuildError> {
    let named = parts.recipient.is_some() || parts.pool.is_some();
    if !named && parts.topics.is_empty() && !parts.broadcast {
        return Err(BuildError::NoAddress);
    }
    let found = parts.topics.len();
    if found > TOPICS_MAX {
        return Err(BuildError::Topics { found });
    }
    let sent_at = parts.sent_at;
    match parts.deadline {
        Some(deadline) if deadline <= sent_at => Err(BuildError::Deadline { deadline, sent_at }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{sender, topic};

    const NOW: Timestamp = Timestamp::from_micros(1_000_000);

    #[test]
    fn a_message_without_any_address_is_refused() {
        assert_eq!(
            Message::builder(sender("a")).build(NOW),
            Err(BuildError::NoAddress)
        );
        assert!(Message::builder(sender("a")).broadcast().build(NOW).is_ok());
    }

    #[test]
    fn too_many_topics_are_refused_and_repeats_do_not_count() {
        let mut builder = Message::builder(sender("a"));
        for index in 0..TOPICS_MAX {
            builder = builder
                .topic(topic(&format!("t{index}")))
                .topic(topic("t0"));
        }
        assert!(builder.clone().build(NOW).is_ok());
        assert_eq!(
            builder.topic(topic("more")).build(NOW),
            Err(BuildError::Topics {
                found: TOPICS_MAX + 1
            })
        );
    }

    #[test]
    fn a_deadline_must_lie_after_sending() {
        let build = |deadline| {
            Message::builder(sender("a"))
                .broadcast()
                .deadline(deadline)
                .build(NOW)
        };
        assert!(matches!(build(NOW), Err(BuildError::Deadline { .. })));
        assert!(build(Timestamp::from_micros(1_000_001)).is_ok());
    }

    #[test]
    fn an_edited_copy_keeps_id_trace_and_time() {
        let message = Message::builder(sender("a"))
            .topic(topic("t"))
            .build(NOW)
            .unwrap();
        let copy = message
            .edit()
            .header("x", "1")
            .unwrap()
            .build(Timestamp::from_micros(9))
            .unwrap();
        assert_eq!(
            (copy.id(), copy.trace(), copy.sent_at()),
            (message.id(), message.trace(), NOW)
        );
        assert_eq!(copy.headers().get("x"), Some("1"));
        assert!(message.headers().is_empty());
    }

    #[test]
    fn debug_output_does_not_show_content() {
        let message = Message::builder(sender("a"))
            .broadcast()
            .json("canary")
            .unwrap()
            .build(NOW)
            .unwrap();
        assert!(!format!("{message:?} {:?}", message.payload()).contains("canary"));
    }
}
