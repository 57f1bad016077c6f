//! Building a message: every limit is checked here, once.

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
    /// Neither recipient nor topic nor broadcast was given.
    #[error("a message needs a recipient or a topic; to reach every agent, ask for broadcast")]
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
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `build`"]
pub struct MessageBuilder {
    id: Option<Uid>,
    trace: Option<TraceId>,
    sent_at: Option<Timestamp>,
    parts: Draft,
}

#[derive(Debug, Clone)]
struct Draft {
    sender: Sender,
    recipient: Option<Name>,
    broadcast: bool,
    topics: SmallVec<[Topic; 1]>,
    task_id: Option<Uid>,
    span: Option<SpanId>,
    deadline: Option<Timestamp>,
    priority: Priority,
    headers: Headers,
    payload: Payload,
}

impl MessageBuilder {
    #[inline]
    pub(super) fn new(sender: Sender) -> Self {
        let parts = Draft {
            sender,
            recipient: None,
            broadcast: false,
            topics: SmallVec::new(),
            task_id: None,
            span: None,
            deadline: None,
            priority: Priority::NORMAL,
            headers: Headers::new(),
            payload: Payload::default(),
        };
        Self {
            id: None,
            trace: None,
            sent_at: None,
            parts,
        }
    }

    pub(super) fn from_parts(parts: Parts) -> Self {
        let Parts {
            id,
            sender,
            recipient,
            broadcast,
            topics,
            task_id,
            trace,
            ..
        } = parts;
        let Parts {
            span,
            sent_at,
            deadline,
            priority,
            headers,
            payload,
            ..
        } = parts;
        let parts = Draft {
            sender,
            recipient,
            broadcast,
            topics,
            task_id,
            span,
            deadline,
            priority,
            headers,
            payload,
        };
        Self {
            id: Some(id),
            trace: Some(trace),
            sent_at: Some(sent_at),
            parts,
        }
    }

    /// Keeps this id instead of making one: for a message that was given its id elsewhere.
    #[inline]
    pub fn id(mut self, id: Uid) -> Self {
        self.id = Some(id);
        self
    }

    /// For this agent only.
    #[inline]
    pub fn to(mut self, recipient: Name) -> Self {
        self.parts.recipient = Some(recipient);
        self
    }

    /// For the subscribers of `topic`, too. A repeat changes nothing.
    #[inline]
    pub fn topic(mut self, topic: Topic) -> Self {
        if !self.parts.topics.contains(&topic) {
            self.parts.topics.push(topic);
        }
        self
    }

    /// For every agent of the tenant but the sender.
    #[inline]
    pub fn broadcast(mut self) -> Self {
        self.parts.broadcast = true;
        self
    }

    /// Belongs to this task.
    #[inline]
    pub fn task(mut self, task: Uid) -> Self {
        self.parts.task_id = Some(task);
        self
    }

    /// Part of this request; without it a new trace begins.
    #[inline]
    pub fn trace(mut self, trace: TraceId) -> Self {
        self.trace = Some(trace);
        self
    }

    /// Sent by this step of the trace.
    #[inline]
    pub fn span(mut self, span: SpanId) -> Self {
        self.parts.span = Some(span);
        self
    }

    /// Worthless after this time.
    #[inline]
    pub fn deadline(mut self, deadline: Timestamp) -> Self {
        self.parts.deadline = Some(deadline);
        self
    }

    /// How urgent; default [`Priority::NORMAL`].
    #[inline]
    pub fn priority(mut self, priority: Priority) -> Self {
        self.parts.priority = priority;
        self
    }

    /// Sets one header.
    ///
    /// # Errors
    /// As [`Headers::set`].
    #[inline]
    pub fn header(mut self, name: &str, value: &str) -> Result<Self, BuildError> {
        self.parts.headers.set(name, value)?;
        Ok(self)
    }

    /// Replaces all headers.
    #[inline]
    pub fn headers(mut self, headers: Headers) -> Self {
        self.parts.headers = headers;
        self
    }

    /// The content.
    #[inline]
    pub fn payload(mut self, payload: Payload) -> Self {
        self.parts.payload = payload;
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
    #[inline]
    pub fn json(self, value: &(impl Serialize + ?Sized)) -> Result<Self, BuildError> {
        Ok(self.payload(Payload::json(value)?))
    }

    /// Checks everything together and makes the message, sent at `now` (or, for an edited message, when it was).
    ///
    /// # Errors
    /// [`BuildError::NoAddress`], [`BuildError::Topics`], [`BuildError::Deadline`].
    #[inline]
    pub fn build(self, now: Timestamp) -> Result<Message, BuildError> {
        let Draft {
            sender,
            recipient,
            broadcast,
            topics,
            task_id,
            span,
            deadline,
            priority,
            headers,
            payload,
        } = self.parts;
        if recipient.is_none() && topics.is_empty() && !broadcast {
            return Err(BuildError::NoAddress);
        }
        if topics.len() > TOPICS_MAX {
            return Err(BuildError::Topics {
                found: topics.len(),
            });
        }
        let sent_at = self.sent_at.unwrap_or(now);
        if let Some(deadline) = deadline.filter(|deadline| *deadline <= sent_at) {
            return Err(BuildError::Deadline { deadline, sent_at });
        }
        let id = self.id.unwrap_or_else(|| Uid::generate_near(now));
        let trace = self.trace.unwrap_or_else(TraceId::generate);
        Ok(Message::from_parts(Parts {
            id,
            sender,
            recipient,
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
