//! The message: one addressed datum from one sender, immutable once built.
//!
//! A [`Message`] is one pointer; cloning it copies nothing. Everything in it was checked when it was built (or decoded),
//! so no later stage checks lengths again. To change one, build another from it ([`Message::edit`]).

mod build;
mod content;
mod headers;

use std::{fmt, sync::Arc};

use bytes::Bytes;
use smallvec::SmallVec;
use volary_kernel::{
    clock::Timestamp,
    id::{Name, SpanId, Tenant, TraceId, Uid},
};

pub use self::{
    build::{BuildError, MessageBuilder},
    content::{CONTENT_TYPE_MAX, ContentType, Payload},
    headers::{HEADER_NAME_MAX, Headers},
};
use crate::{identity::AgentId, topic::Topic};

/// Most topics of one message: fan-out is the routing table's work, not the sender's.
pub const TOPICS_MAX: usize = 16;
/// Most headers of one message.
pub const HEADERS_MAX: usize = 32;
/// Most bytes of all header names and values of one message.
pub const HEADER_BYTES_MAX: usize = 8 * 1024;
/// Most bytes of one payload. Bigger things are stored elsewhere and referred to.
pub const PAYLOAD_MAX: usize = 8 * 1024 * 1024;

/// Who sends: the identity, the agent's name, and on whose behalf. The node stamps it; agents never choose it.
#[derive(Clone, PartialEq, Eq)]
pub struct Sender(Arc<SenderParts>);

#[derive(PartialEq, Eq)]
struct SenderParts {
    id: AgentId,
    name: Name,
    tenant: Tenant,
}

impl Sender {
    /// A sender. Make it once per agent and clone it: messages share it.
    pub fn new(id: AgentId, name: Name, tenant: Tenant) -> Self {
        Self(Arc::new(SenderParts { id, name, tenant }))
    }

    /// Fingerprint of the key that speaks for the sender.
    #[inline]
    pub fn id(&self) -> AgentId {
        self.0.id
    }

    /// The agent's name.
    #[inline]
    pub fn name(&self) -> &Name {
        &self.0.name
    }

    /// The tenant the sender belongs to, and so the message.
    #[inline]
    pub fn tenant(&self) -> &Tenant {
        &self.0.tenant
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} ({})", self.0.tenant, self.0.name, self.0.id)
    }
}

/// How urgent: 0 (least) to 255. Waiting deliveries of a higher priority are claimed first.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct Priority(pub u8);

impl Priority {
    /// The middle, for messages that say nothing.
    pub const NORMAL: Self = Self(128);
}

impl Default for Priority {
    fn default() -> Self {
        Self::NORMAL
    }
}

/// Whom a message is for, in the order in which routing looks: one agent, one of a pool, all agents of the tenant, or
/// topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience<'a> {
    /// Exactly this agent; topics are then only a label.
    Agent(&'a Name),
    /// One member of this pool, but not the sender; topics are then only a label.
    Pool(&'a Name),
    /// Every agent of the tenant but the sender. Never a fallback: only if the sender asked for it.
    Everyone,
    /// Every subscriber of any of these topics, once each, but not the sender.
    Topics(&'a [Topic]),
}

/// An immutable message. Cloning copies a pointer.
///
/// ```
/// use volary_kernel::{clock::Timestamp, id::{Name, Tenant}};
/// use volary_messaging::{Identity, Message, Sender};
/// let identity = Identity::generate()?;
/// let sender = Sender::new(identity.id(), Name::new("indexer")?, Tenant::default());
/// let message = Message::builder(sender)
///     .topic("notes/indexed".parse()?)
///     .json(&serde_json::json!({"words": 12}))?
///     .build(Timestamp::from_micros(1_700_000_000_000_000))?;
/// assert_eq!(message.payload().content_type().as_str(), "application/json");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Message(Arc<Parts>);

/// All fields of a message. Only [`MessageBuilder`] and the decoder make one, and both check it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parts {
    pub id: Uid,
    pub sender: Sender,
    pub recipient: Option<Name>,
    pub pool: Option<Name>,
    pub broadcast: bool,
    pub topics: SmallVec<[Topic; 1]>,
    pub task_id: Option<Uid>,
    pub trace: TraceId,
    pub span: Option<SpanId>,
    pub sent_at: Timestamp,
    pub deadline: Option<Timestamp>,
    pub priority: Priority,
    pub headers: Headers,
    pub payload: Payload,
}

impl Message {
    /// Starts a message from `sender`.
    #[inline]
    pub fn builder(sender: Sender) -> MessageBuilder {
        MessageBuilder::new(sender)
    }

    /// A builder that holds a copy of this message, id included: for hooks that change what they pass on.
    pub fn edit(&self) -> MessageBuilder {
        MessageBuilder::from_parts(self.0.clone())
    }

    #[inline]
    pub(crate) fn from_parts(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// Unique id, ordered by time of making.
    #[inline]
    pub fn id(&self) -> Uid {
        self.0.id
    }

    /// Who sent it.
    #[inline]
    pub fn sender(&self) -> &Sender {
        &self.0.sender
    }

    /// On whose behalf: the sender's tenant.
    #[inline]
    pub fn tenant(&self) -> &Tenant {
        self.0.sender.tenant()
    }

    /// The one agent it is for, if any.
    #[inline]
    pub fn recipient(&self) -> Option<&Name> {
        self.0.recipient.as_ref()
    }

    /// The pool one of whose members it is for, if any.
    #[inline]
    pub fn pool(&self) -> Option<&Name> {
        self.0.pool.as_ref()
    }

    /// Its topics, in the sender's order, without repeats.
    #[inline]
    pub fn topics(&self) -> &[Topic] {
        &self.0.topics
    }

    /// Whom it is for.
    #[inline]
    pub fn audience(&self) -> Audience<'_> {
        match (&self.0.recipient, &self.0.pool) {
            (Some(name), _) => Audience::Agent(name),
            (None, Some(pool)) => Audience::Pool(pool),
            (None, None) if self.0.broadcast => Audience::Everyone,
            (None, None) => Audience::Topics(&self.0.topics),
        }
    }

    /// The task it belongs to, if any.
    pub fn task_id(&self) -> Option<Uid> {
        self.0.task_id
    }

    /// The request it is part of.
    #[inline]
    pub fn trace(&self) -> TraceId {
        self.0.trace
    }

    /// The step of the trace that sent it, if known.
    pub fn span(&self) -> Option<SpanId> {
        self.0.span
    }

    /// When the sender's node made it (wall clock).
    #[inline]
    pub fn sent_at(&self) -> Timestamp {
        self.0.sent_at
    }

    /// After this time nobody wants it any more; it then ends `DeadlineExceeded`.
    #[inline]
    pub fn deadline(&self) -> Option<Timestamp> {
        self.0.deadline
    }

    /// How urgent it is.
    #[inline]
    pub fn priority(&self) -> Priority {
        self.0.priority
    }

    /// Small labels.
    #[inline]
    pub fn headers(&self) -> &Headers {
        &self.0.headers
    }

    /// The content.
    #[inline]
    pub fn payload(&self) -> &Payload {
        &self.0.payload
    }

    /// Bytes of the payload.
    #[inline]
    pub fn body(&self) -> &Bytes {
        self.0.payload.bytes()
    }

    /// Bytes this message holds in memory, nearly: what a bounded inbox counts.
    #[inline]
    pub fn weight(&self) -> usize {
        std::mem::size_of::<Parts>() + self.0.headers.bytes() + self.0.payload.bytes().len()
    }

    pub(crate) fn parts(&self) -> &Parts {
        &self.0
    }
}

impl PartialEq for Message {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl Eq for Message {}

impl fmt::Debug for Message {
    /// Shows where it goes, never what is in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("id", &self.id())
            .field("sender", self.sender())
            .field("audience", &self.audience())
            .field("trace", &self.trace())
            .field("payload_bytes", &self.body().len())
            .finish_non_exhaustive()
    }
}

impl volary_kernel::queue::Weigh for Message {
    #[inline]
    fn weight(&self) -> usize {
        Self::weight(self)
    }
}
