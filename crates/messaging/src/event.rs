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
    id::{Name, Tenant, TraceId, Uid},
    text,
};
use volary_store::{Entry, queue};

use crate::{
    admission::{Admission, Refusal},
    codec::{self, DecodeError},
    delivery::{Delivery, DeliveryKind},
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
        }
    }
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
        /// Who will get it.
        targets: &'a [Name],
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
    /// Handled.
    Acked {
        /// The delivery.
        delivery: &'a DeliveryRef,
        /// Actions that were committed with the ack.
        actions: usize,
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
            Self::Acked { .. } => kind::ACKED,
            Self::Failed { .. } => kind::FAILED,
        }
    }

    /// Its journal entry. The cause is left to the caller.
    pub fn record(&self) -> Entry {
        match self {
            Self::Accepted {
                message,
                encoded,
                targets,
            } => {
                let mut body = about_message(message);
                body["targets"] = json!(targets);
                self.of_message(message, with_bytes(body, encoded))
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
            Self::Acked { delivery, actions } => {
                self.of_delivery(delivery, json!({"actions": actions}))
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
        Entry::new(self.kind(), delivery.tenant.clone(), body.to_string())
            .agent(delivery.agent.clone())
            .trace(delivery.trace)
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

/// The part of a body that holds the message.
#[derive(Deserialize)]
struct Carrier {
    v: u64,
    message: String,
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
    let bytes = BASE64_STANDARD
        .decode(carrier.message)
        .map_err(|error| invalid("message", error))?;
    codec::decode(&Bytes::from(bytes))
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
            Admission::Delivered | Admission::Queued | Admission::Partial { .. } => None,
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
mod tests {
    use super::*;
    use crate::test_util::{message, name};

    fn body(event: &Event<'_>) -> Value {
        serde_json::from_slice(&event.record().body).unwrap()
    }

    #[test]
    fn an_accepted_message_can_be_read_back_from_its_entry() {
        let message = message("a", "t", "hello");
        let targets = [name("b")];
        let entry = Event::Accepted {
            message: &message,
            encoded: &codec::encode(&message),
            targets: &targets,
        }
        .record();
        assert_eq!(
            (&*entry.kind, entry.agent, entry.trace),
            ("message.accepted", Some(name("a")), Some(message.trace()))
        );
        assert_eq!(message_in(&entry.body), Ok(message));
    }

    #[test]
    fn a_refused_message_leaves_no_content_behind() {
        let message = message("a", "t", "canary");
        let admission = Admission::Refused(Refusal::Secret);
        let body = body(&Event::Refused {
            message: &message,
            admission: &admission,
        });
        assert_eq!(body["admission"]["refused"]["why"], "secret");
        assert!(body.get("message").is_none() && !body.to_string().contains("canary"));
        let dropped = Admission::Dropped {
            hook: "h".into(),
            reason: "r".into(),
        };
        assert_eq!(
            Event::Refused {
                message: &message,
                admission: &dropped
            }
            .kind(),
            kind::DROPPED
        );
    }

    #[test]
    fn a_body_of_another_version_is_refused() {
        let found = message_in(br#"{"v":2,"message":""}"#);
        assert_eq!(
            found,
            Err(DecodeError::Version {
                what: "journal body",
                found: 2,
                known: 1
            })
        );
        assert!(message_in(b"[]").is_err());
    }

    #[test]
    fn a_delivery_event_names_the_delivery_and_its_attempt() {
        let delivery = DeliveryRef {
            id: Uid::generate(),
            message: None,
            agent: name("b"),
            tenant: Tenant::default(),
            trace: TraceId::generate(),
            attempt: 3,
            kind: DeliveryKind::Dispatch,
        };
        let event = Event::Failed {
            delivery: &delivery,
            reason: "exit status 1",
            retry_in: Some(Duration::from_nanos(190_834_555)),
        };
        let body = body(&event);
        assert_eq!(
            (&body["v"], &body["attempt"], &body["kind"]),
            (&json!(1), &json!(3), &json!("dispatch"))
        );
        assert_eq!(body["retry_in"], "190ms");
        assert_eq!(event.record().agent, Some(name("b")));
    }
}
