//! From an inbox item to the trace of a flow: which id, tenant, priority and time it gets, and what its nodes can know of
//! where it comes from. Pure.
//!
//! The flow's trace is not the message's: several messages of one trace may be in work at once, and each needs idempotency
//! keys of its own. It is made from the item's idempotency key, so that a redelivered item is the same trace again: its nodes
//! see the same keys, and while an earlier attempt still runs in this process a second one is refused. The message's trace
//! travels beside it, as the parent.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use volary_flow::{Envelope, Headers, Meta};
use volary_kernel::{Tenant, Timestamp, TraceId};

/// Under which key of [`Meta`] the origin stands.
pub const ORIGIN: &str = "origin";
/// Under which key the W3C trace context stands.
pub const TRACEPARENT: &str = "traceparent";

/// Where a trace of a flow comes from: nodes find it in their context's meta.
///
/// # Examples
/// ```
/// use volary::link::Origin;
/// # let meta = volary_flow::Meta::default();
/// assert!(Origin::of(&meta).is_none(), "this trace was not made from a message");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The item's idempotency key: the same in every attempt.
    pub idempotency_key: String,
    /// The trace of the message, that `volary events --trace` knows.
    pub trace: TraceId,
    /// Who sent it.
    pub sender: String,
    /// Which attempt at the item this is, from 1.
    pub attempt: u32,
    /// Headers of the message.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
}

impl Origin {
    /// The origin of a trace, if it was made from a message.
    pub fn of(meta: &Meta) -> Option<Self> {
        Self::deserialize(meta.get(ORIGIN)?).ok()
    }

    /// The trace that a flow gives it: always the same for the same idempotency key.
    pub fn flow_trace(&self) -> TraceId {
        flow_trace(&self.idempotency_key)
    }

    fn meta(&self) -> Meta {
        let (_, span) = ids(&self.idempotency_key);
        let traceparent = json!(format!("00-{}-{span:016x}-01", self.trace));
        let origin = json!(self);
        let meta: BTreeMap<String, Value> = [
            (ORIGIN.to_owned(), origin),
            (TRACEPARENT.to_owned(), traceparent),
        ]
        .into();
        Meta::from(meta)
    }
}

/// The trace that a flow gives to work with this idempotency key.
pub fn flow_trace(idempotency_key: &str) -> TraceId {
    ids(idempotency_key).0
}

/// A trace and a span, neither of them zero.
fn ids(idempotency_key: &str) -> (TraceId, u64) {
    let mut hash = blake3::Hasher::new_derive_key("volary flow v1 trace");
    hash.update(idempotency_key.as_bytes());
    let (mut trace, mut span) = ([0; 16], [0; 8]);
    let mut stream = hash.finalize_xof();
    stream.fill(&mut trace);
    stream.fill(&mut span);
    // An odd number is not zero.
    trace[15] |= 1;
    let trace = TraceId::from_bytes(trace).expect("it is odd");
    (trace, u64::from_be_bytes(span) | 1)
}

/// How a message is to be treated.
#[derive(Debug, Clone, Default)]
pub(crate) struct Treatment {
    pub tenant: Tenant,
    pub topic: Option<String>,
    pub priority: u8,
    /// The message's own deadline.
    pub deadline: Option<Timestamp>,
    /// How long whoever waits for the outcome does so from now on.
    pub limit: Option<Duration>,
}

/// The envelope of a message; `None` when its time is over already.
pub(crate) fn envelope<I>(
    origin: &Origin,
    treatment: Treatment,
    payload: I,
    now: Timestamp,
) -> Option<Envelope<I>> {
    let left = match treatment.deadline {
        Some(deadline) if deadline <= now => return None,
        Some(deadline) => Some(deadline.since(now)),
        None => None,
    };
    Some(Envelope {
        payload,
        headers: Headers {
            tenant: treatment.tenant,
            topic: treatment.topic,
            priority: treatment.priority,
        },
        trace_id: origin.flow_trace(),
        deadline: left.into_iter().chain(treatment.limit).min(),
        meta: origin.meta(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(key: &str) -> Origin {
        Origin {
            idempotency_key: key.to_owned(),
            trace: TraceId::generate(),
            sender: "clerk".to_owned(),
            attempt: 2,
            headers: BTreeMap::new(),
        }
    }

    #[test]
    fn the_same_item_is_the_same_trace_and_another_of_its_message_trace_is_not() {
        let (first, again) = (origin("m1/desk"), origin("m1/desk"));
        let other = Origin {
            trace: first.trace,
            ..origin("m2/desk")
        };
        assert_eq!(first.flow_trace(), again.flow_trace());
        assert_ne!(first.flow_trace(), other.flow_trace());
        assert_eq!(flow_trace("m1/desk"), first.flow_trace());
    }

    #[test]
    fn nodes_find_the_message_in_their_meta() {
        let origin = origin("m1/desk");
        let envelope = envelope(&origin, Treatment::default(), (), Timestamp::default()).unwrap();
        assert_eq!(Origin::of(&envelope.meta), Some(origin.clone()));
        let traceparent = envelope.meta[TRACEPARENT].as_str().unwrap();
        assert!(
            traceparent.starts_with(&format!("00-{}-", origin.trace)),
            "{traceparent}"
        );
        assert_eq!(traceparent.len(), 55);
    }

    #[test]
    fn the_shorter_of_deadline_and_claim_bounds_the_trace() {
        let now = Timestamp::from_micros(1_000_000);
        let seconds = Duration::from_secs;
        let deadline = |own: Option<u64>, limit: Option<u64>| {
            let treatment = Treatment {
                deadline: own.map(|own| now + seconds(own)),
                limit: limit.map(seconds),
                ..Treatment::default()
            };
            envelope(&origin("k"), treatment, (), now).map(|envelope| envelope.deadline)
        };
        assert_eq!(deadline(Some(5), Some(29)), Some(Some(seconds(5))));
        assert_eq!(deadline(Some(50), Some(29)), Some(Some(seconds(29))));
        assert_eq!(deadline(None, None), Some(None));
        assert_eq!(deadline(Some(0), None), None, "nobody wants it any more");
    }
}
