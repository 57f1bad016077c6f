//! Everything that happens to messages and deliveries: one closed list, from which journal entries are made.
//!
//! A record goes into the batch of the change it tells of. Bodies are versioned JSON. A body holds the whole message
//! (base64 of its one binary form) where replay needs it, and nothing of its content elsewhere; the messages in it have
//! passed the secret guard.

use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use volary_kernel::{
    clock::Timestamp,
    id::{Name, Tenant, TraceId, Uid},
    text,
};
use volary_store::{Entry, queue};

use crate::{
    admission::{Admission, Refusal},
    codec::{self, DecodeError},
    delivery::{Delivery, DeliveryKind, Replayed},
    frame::SealedMessage,
    identity::{AgentId, Known, Voucher},
    message::Message,
    wire::invalid,
};

/// Version of the bodies.
pub const BODY_VERSION: u64 = 1;

/// Kinds of journal entries that this crate writes.
pub mod kind {
    /// A message was stored for everybody it is for.
    pub const ACCEPTED: &str = "message.accepted";
    /// A message was turned back.
    pub const REFUSED: &str = "message.refused";
    /// A message was taken out by a hook.
    pub const DROPPED: &str = "message.dropped";
    /// A recorded at-most-once send.
    pub const SENT: &str = "message.sent";
    /// A recorded at-most-once receive.
    pub const RECEIVED: &str = "message.received";
    /// A recorded message was put into an inbox again.
    pub const REPLAYED: &str = "message.replayed";
    /// A delivery was handed to a handler or agent.
    pub const CLAIMED: &str = "delivery.claimed";
    /// A delivery was handled.
    pub const ACKED: &str = "delivery.acked";
    /// An attempt failed; another will follow.
    pub const FAILED: &str = "delivery.failed";
    /// A delivery waits for a person.
    pub const PARKED: &str = "delivery.parked";
    /// A delivery's deadline passed before it was handled.
    pub const EXPIRED: &str = "delivery.expired";
    /// A peer has taken a message over.
    pub const FORWARDED: &str = "message.forwarded";
    /// A peer turned a message back for good.
    pub const RETURNED: &str = "message.returned";
    /// Messages of a peer that could not be believed were thrown away.
    pub const UNVERIFIED: &str = "message.unverified";
    /// Messages of a peer were turned back faster than each of them is told.
    pub const LEFT_OUT: &str = "message.refused_more";
    /// A key is believed from now on.
    pub const REGISTERED: &str = "identity.registered";
    /// A key is not believed any more.
    pub const REVOKED: &str = "identity.revoked";
    /// A key took the place of another.
    pub const SUCCEEDED: &str = "identity.succeeded";
    /// A peer does not vouch for an agent any more.
    pub const WITHDRAWN: &str = "identity.withdrawn";
    /// A peer said which agents it has.
    pub const INTRODUCED: &str = "peer.introduced";
    /// Something that a peer said of its agents was not taken.
    pub const OBJECTED: &str = "peer.objected";
    /// A peer knows of a later life of this node than the present one: the clock or the state of this node was set back.
    pub const BEHIND: &str = "peer.behind";
}

/// Which delivery an event is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryRef {
    /// Id of the delivery.
    pub id: Uid,
    /// The message it carries, if it carries one.
    pub message: Option<Uid>,
    /// The agent it is for.
    pub agent: Name,
    /// Whose it is.
    pub tenant: Tenant,
    /// The request it belongs to.
    pub trace: TraceId,
    /// Which attempt, from 1; 0 before the first.
    pub attempt: u32,
    /// What it is.
    pub kind: DeliveryKind,
    /// Whether it is a recorded message that was delivered again.
    pub is_replayed: bool,
}

impl DeliveryRef {
    /// The delivery that `agent` got.
    pub fn of(delivery: &Delivery, agent: Name) -> Self {
        Self {
            id: delivery.id,
            message: delivery.message,
            agent,
            tenant: delivery.tenant.clone(),
            trace: delivery.trace,
            attempt: delivery.attempt,
            kind: delivery.kind,
            is_replayed: delivery.replayed.is_some(),
        }
    }
}

/// What happened to an identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentityChange {
    /// It is believed from now on.
    Registered(AgentId, Known),
    /// It is not believed any more.
    Revoked(AgentId, Known),
    /// The first was followed by the second.
    Succeeded(AgentId, AgentId, Known),
    /// Its peer does not vouch for it any more.
    Withdrawn(AgentId, Known),
}

/// What happened. The names are those of [`kind`].
///
/// What an inbox's queue does by itself (`delivery.claimed`, `.parked`, `.expired`, `.retried`, `.dropped`) it tells
/// itself, in the commit that does it.
#[derive(Debug, Clone)]
pub enum Event<'a> {
    /// Stored for these agents.
    Accepted {
        /// The message.
        message: &'a Message,
        /// Its binary form.
        encoded: &'a [u8],
        /// Who will get it here.
        targets: &'a [Name],
        /// The peers it goes to.
        peers: &'a [Name],
        /// Where it came from, if from a peer: the peer, and what proves the message alone.
        from: Option<(&'a Name, &'a SealedMessage)>,
    },
    /// A peer gave its last word on a message in its outbox.
    Answered {
        /// The peer.
        peer: &'a Name,
        /// Whose it is.
        tenant: &'a Tenant,
        /// The request it belongs to.
        trace: Option<TraceId>,
        /// The message's sender, if it could be read.
        sender: Option<&'a Name>,
        /// The message.
        message: Option<Uid>,
        /// The peer's answer.
        admission: &'a Admission,
    },
    /// Messages that a peer sent could not be believed.
    Unverified {
        /// The peer.
        peer: &'a Name,
        /// How many since the last such entry.
        count: u64,
        /// Why the last of them was not.
        problem: &'a str,
    },
    /// Messages that a peer sent were turned back, more than are told one by one.
    LeftOut {
        /// The peer.
        peer: &'a Name,
        /// How many since the last such entry.
        count: u64,
        /// What the last of them was answered.
        admission: &'a Admission,
    },
    /// An identity changed.
    Identity(&'a IdentityChange),
    /// A peer said which agents it has.
    Introduced {
        /// The peer.
        peer: &'a Name,
        /// How many agents of it were taken.
        taken: usize,
        /// Those that were not, and why.
        objections: &'a [(String, String)],
    },
    /// A peer takes new messages for old ones, since it knows of a later life of this node; they go again under later
    /// numbers.
    Behind {
        /// The peer.
        peer: &'a Name,
        /// When that life began, by the clock of then.
        known: Timestamp,
    },
    /// Turned back. Nothing of its content is told.
    Refused {
        /// The message.
        message: &'a Message,
        /// The answer to its sender.
        admission: &'a Admission,
    },
    /// Sent at most once, with a recorder set.
    Sent {
        /// The message.
        message: &'a Message,
    },
    /// Received at most once, with a recorder set.
    Received {
        /// The message.
        message: &'a Message,
        /// By whom, if known.
        receiver: Option<&'a Name>,
    },
    /// Put into an inbox again, from a recording.
    Replayed {
        /// The message.
        message: &'a Message,
        /// Its binary form.
        encoded: &'a [u8],
        /// Whose inbox.
        into: &'a Name,
        /// Where it was recorded.
        from: &'a Replayed,
        /// Its idempotency key.
        key: &'a str,
    },
    /// Handled.
    Acked {
        /// The delivery.
        delivery: &'a DeliveryRef,
        /// Actions that were committed with the ack.
        actions: usize,
        /// When the attempt began: what the agent was told as the time.
        began: Timestamp,
        /// The document that the agent was shown, where the journal does not hold it in another entry.
        input: Option<&'a Delivery>,
    },
    /// An attempt failed.
    Failed {
        /// The delivery.
        delivery: &'a DeliveryRef,
        /// Why, without content.
        reason: &'a str,
        /// How long until the next attempt may begin; `None` if there is none.
        retry_in: Option<Duration>,
    },
}

impl Event<'_> {
    /// The kind of its journal entry.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Accepted { .. } => kind::ACCEPTED,
            Self::Refused {
                admission: Admission::Dropped { .. },
                ..
            } => kind::DROPPED,
            Self::Refused { .. } => kind::REFUSED,
            Self::Sent { .. } => kind::SENT,
            Self::Received { .. } => kind::RECEIVED,
            Self::Replayed { .. } => kind::REPLAYED,
            Self::Acked { .. } => kind::ACKED,
            Self::Failed { .. } => kind::FAILED,
            Self::Answered { admission, .. } if admission.is_taken() => kind::FORWARDED,
            Self::Answered { .. } => kind::RETURNED,
            Self::Unverified { .. } => kind::UNVERIFIED,
            Self::LeftOut { .. } => kind::LEFT_OUT,
            Self::Identity(change) => change.kind(),
            Self::Introduced { objections: [], .. } => kind::INTRODUCED,
            Self::Introduced { .. } => kind::OBJECTED,
            Self::Behind { .. } => kind::BEHIND,
        }
    }

    /// Its journal entry. The cause is left to the caller.
    pub fn record(&self) -> Entry {
        match self {
            Self::Accepted {
                message,
                encoded,
                targets,
                peers,
                from,
            } => {
                let mut body = about_message(message);
                body["targets"] = json!(targets);
                if !peers.is_empty() {
                    body["peers"] = json!(peers);
                }
                let Some((peer, sealed)) = from else {
                    return self.of_message(message, with_bytes(body, encoded));
                };
                body["from"] = json!(peer);
                body["sealed"] = Value::String(BASE64_STANDARD.encode(sealed.encode()));
                // What a hook has changed is not what was sealed; both are told then.
                if *sealed.bytes() != **encoded {
                    body = with_bytes(body, encoded);
                }
                self.of_message(message, body)
            }
            Self::Refused { message, admission } => {
                let mut body = match admission {
                    // Whatever its sender wrote may be the secret.
                    Admission::Refused(Refusal::Secret) => bare(message),
                    _ => about_message(message),
                };
                body["admission"] = json!(admission);
                self.of_message(message, body)
            }
            Self::Sent { message } => self.of_message(
                message,
                with_bytes(about_message(message), &codec::encode(message)),
            ),
            Self::Received { message, receiver } => {
                let mut body = about_message(message);
                body["receiver"] = json!(receiver);
                let entry = self.of_message(message, with_bytes(body, &codec::encode(message)));
                entry.agent(
                    (*receiver)
                        .cloned()
                        .unwrap_or_else(|| message.sender().name().clone()),
                )
            }
            Self::Replayed {
                message,
                encoded,
                into,
                from,
                key,
            } => {
                let mut body = about_message(message);
                body["into"] = json!(into);
                body["recorded"] = json!(from);
                body["idempotency_key"] = json!(key);
                self.of_message(message, with_bytes(body, encoded))
                    .agent((*into).clone())
            }
            Self::Acked {
                delivery,
                actions,
                began,
                input,
            } => {
                let mut body = json!({"actions": actions, "began": began});
                if let Some(input) = input {
                    body["input"] = json!(input);
                }
                self.of_delivery(delivery, body)
            }
            Self::Failed {
                delivery,
                reason,
                retry_in,
            } => {
                // Nobody reads the nanoseconds that jitter leaves.
                let whole = |delay: Duration| {
                    delay - Duration::from_nanos(u64::from(delay.subsec_nanos() % 1_000_000))
                };
                let retry_in = retry_in.map(|delay| text::format_duration(whole(delay)));
                self.of_delivery(delivery, json!({"reason": reason, "retry_in": retry_in}))
            }
            Self::Answered { .. }
            | Self::Unverified { .. }
            | Self::LeftOut { .. }
            | Self::Identity(_)
            | Self::Behind { .. }
            | Self::Introduced { .. } => self.of_peer(),
        }
    }

    /// The entry of what is between nodes.
    fn of_peer(&self) -> Entry {
        let plain = |tenant: Tenant, body: Value| Entry::new(self.kind(), tenant, body.to_string());
        match self {
            Self::Answered {
                peer,
                tenant,
                trace,
                sender,
                message,
                admission,
            } => {
                let body = json!({"v": BODY_VERSION, "id": message, "peer": peer, "sender": sender, "admission": admission});
                plain((*tenant).clone(), body)
                    .agent((*sender).cloned())
                    .trace(*trace)
            }
            Self::Unverified {
                peer,
                count,
                problem,
            } => plain(
                Tenant::default(),
                json!({"v": BODY_VERSION, "peer": peer, "count": count, "problem": problem}),
            ),
            Self::LeftOut {
                peer,
                count,
                admission,
            } => plain(
                Tenant::default(),
                json!({"v": BODY_VERSION, "peer": peer, "count": count, "admission": admission}),
            ),
            Self::Introduced {
                peer,
                taken,
                objections,
            } => plain(
                Tenant::default(),
                json!({"v": BODY_VERSION, "peer": peer, "taken": taken, "objections": objections}),
            ),
            Self::Behind { peer, known } => plain(
                Tenant::default(),
                json!({
                    "v": BODY_VERSION,
                    "peer": peer,
                    "known": known,
                    "reason": "the clock or the state of this node was set back",
                }),
            ),
            Self::Identity(change) => {
                let (id, known, followed) = change.parts();
                let voucher = match &known.voucher {
                    Voucher::Here => None,
                    Voucher::Peer(peer) => Some(peer),
                };
                let mut body =
                    json!({"v": BODY_VERSION, "id": id, "name": known.name, "peer": voucher});
                if let Some(followed) = followed {
                    body["followed"] = json!(followed);
                }
                plain(known.tenant.clone(), body).agent(known.name.clone())
            }
            _ => plain(Tenant::default(), json!({"v": BODY_VERSION})),
        }
    }

    fn of_message(&self, message: &Message, body: Value) -> Entry {
        Entry::new(self.kind(), message.tenant().clone(), body.to_string())
            .agent(message.sender().name().clone())
            .trace(message.trace())
    }

    fn of_delivery(&self, delivery: &DeliveryRef, mut body: Value) -> Entry {
        body["v"] = json!(BODY_VERSION);
        body["id"] = json!(delivery.id);
        body["message"] = json!(delivery.message);
        body["kind"] = json!(delivery.kind);
        body["attempt"] = json!(delivery.attempt);
        if delivery.is_replayed {
            body["replayed"] = json!(true);
        }
        Entry::new(self.kind(), delivery.tenant.clone(), body.to_string())
            .agent(delivery.agent.clone())
            .trace(delivery.trace)
    }
}

impl IdentityChange {
    const fn kind(&self) -> &'static str {
        match self {
            Self::Registered(..) => kind::REGISTERED,
            Self::Revoked(..) => kind::REVOKED,
            Self::Succeeded(..) => kind::SUCCEEDED,
            Self::Withdrawn(..) => kind::WITHDRAWN,
        }
    }

    /// The id it is about, what is known of it now, and the id that it followed.
    const fn parts(&self) -> (AgentId, &Known, Option<AgentId>) {
        match self {
            Self::Registered(id, known) | Self::Revoked(id, known) | Self::Withdrawn(id, known) => {
                (*id, known, None)
            }
            Self::Succeeded(old, new, known) => (*new, known, Some(*old)),
        }
    }
}

/// What the node stamped and measured.
fn bare(message: &Message) -> Value {
    json!({
        "v": BODY_VERSION,
        "id": message.id(),
        "sender": message.sender().name(),
        "sender_id": message.sender().id(),
        "sent_at": message.sent_at(),
        "bytes": message.body().len(),
    })
}

fn about_message(message: &Message) -> Value {
    json!({
        "v": BODY_VERSION,
        "id": message.id(),
        "sender": message.sender().name(),
        "sender_id": message.sender().id(),
        "to": message.recipient(),
        "pool": message.pool(),
        "topics": message.topics(),
        "task": message.task_id(),
        "priority": message.priority(),
        "sent_at": message.sent_at(),
        "content_type": message.payload().content_type().as_str(),
        "bytes": message.body().len(),
    })
}

fn with_bytes(mut body: Value, encoded: &[u8]) -> Value {
    body["message"] = Value::String(BASE64_STANDARD.encode(encoded));
    body
}

/// An entry that holds a message, with the seal that proves it.
pub(crate) fn with_seal(mut entry: Entry, sealed: &[u8]) -> Entry {
    if let Ok(mut body) = serde_json::from_slice::<Value>(&entry.body) {
        body["sealed"] = Value::String(BASE64_STANDARD.encode(sealed));
        entry.body = Bytes::from(body.to_string());
    }
    entry
}

/// The part of a body that holds the message.
#[derive(Deserialize)]
struct Carrier {
    v: u64,
    message: Option<String>,
    sealed: Option<String>,
    from: Option<serde::de::IgnoredAny>,
}

fn base64(text: &str, what: &'static str) -> Result<Bytes, DecodeError> {
    let bytes = BASE64_STANDARD.decode(text);
    bytes.map(Bytes::from).map_err(|error| invalid(what, error))
}

/// Whether the message in the body of an `accepted` entry came from a peer.
pub(crate) fn is_from_peer(body: &[u8]) -> bool {
    serde_json::from_slice::<Carrier>(body).is_ok_and(|carrier| carrier.from.is_some())
}

/// What proves the message in the body of an `accepted` entry alone, if it came from a peer.
///
/// # Errors
/// [`DecodeError`] for a body or a sealed message that does not decode.
pub fn sealed_in(body: &[u8]) -> Result<Option<SealedMessage>, DecodeError> {
    let carrier: Carrier =
        serde_json::from_slice(body).map_err(|error| invalid("journal body", error))?;
    let sealed = carrier.sealed.map(|sealed| base64(&sealed, "sealed"));
    sealed
        .transpose()?
        .map(|bytes| SealedMessage::decode(&bytes))
        .transpose()
}

/// The message in the body of an `accepted`, `sent` or `received` entry.
///
/// # Errors
/// [`DecodeError`] for another version of the body, or a message that does not decode.
pub fn message_in(body: &[u8]) -> Result<Message, DecodeError> {
    let carrier: Carrier =
        serde_json::from_slice(body).map_err(|error| invalid("journal body", error))?;
    if carrier.v != BODY_VERSION {
        let found = u8::try_from(carrier.v).unwrap_or(u8::MAX);
        return Err(DecodeError::Version {
            what: "journal body",
            found,
            known: 1,
        });
    }
    if let Some(message) = carrier.message {
        return codec::decode(&base64(&message, "message")?);
    }
    let sealed = carrier
        .sealed
        .ok_or_else(|| invalid("journal body", "it holds no message"))?;
    codec::decode(SealedMessage::decode(&base64(&sealed, "sealed")?)?.bytes())
}

/// Who got the message in the body of an `accepted` or `received` entry.
pub(crate) fn receivers_in(body: &[u8]) -> Vec<Name> {
    #[derive(Deserialize)]
    struct Receivers {
        #[serde(default)]
        targets: Vec<Name>,
        receiver: Option<Name>,
    }
    let found = serde_json::from_slice::<Receivers>(body);
    found.map_or_else(
        |_| Vec::new(),
        |found| found.targets.into_iter().chain(found.receiver).collect(),
    )
}

/// What a message or delivery came to, in the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Everybody it was for has handled it.
    Done,
    /// Its deadline passed first.
    DeadlineExceeded,
    /// It was taken out or turned back.
    Dropped {
        /// Why.
        reason: String,
    },
    /// It was given up.
    Failed {
        /// Why.
        reason: String,
    },
    /// It waits for a person, who may yet let it go on.
    Parked {
        /// Why.
        reason: String,
    },
}

impl Outcome {
    /// The outcome of a message that was not taken; `None` if it was.
    pub fn of_admission(admission: &Admission) -> Option<Self> {
        match admission {
            Admission::Delivered
            | Admission::Queued
            | Admission::Sent
            | Admission::Partial { .. } => None,
            Admission::Refused(Refusal::Expired) => Some(Self::DeadlineExceeded),
            turned_back => Some(Self::Dropped {
                reason: turned_back.to_string(),
            }),
        }
    }

    const fn severity(&self) -> u8 {
        match self {
            Self::Done => 0,
            Self::DeadlineExceeded => 1,
            Self::Dropped { .. } => 2,
            Self::Failed { .. } => 3,
            Self::Parked { .. } => 4,
        }
    }

    /// The worse of two: what a message to several comes to.
    #[must_use]
    pub fn or_worse(self, other: Self) -> Self {
        if other.severity() > self.severity() {
            other
        } else {
            self
        }
    }
}

impl From<queue::Outcome> for Outcome {
    fn from(outcome: queue::Outcome) -> Self {
        match outcome {
            queue::Outcome::Done => Self::Done,
            queue::Outcome::Failed(reason) => Self::Failed { reason },
            queue::Outcome::Parked(reason) => Self::Parked { reason },
            queue::Outcome::DeadlineExceeded => Self::DeadlineExceeded,
            queue::Outcome::Dropped(reason) => Self::Dropped { reason },
        }
    }
}

#[cfg(test)]
#[path = "event_tests.rs"]
mod tests;
