//! Webhooks: what other systems say over HTTP, and what is said to them. No HTTP here: a server hands in headers and bytes, a
//! client is told what to send and what an answer means.
//!
//! ```text
//! in:  provider known ─▶ size ─▶ type ─▶ signature over the raw bytes ─▶ fresh ─▶ JSON, fields ─▶ event id
//!        ─▶ one commit: remembered as seen, and in the inboxes ─▶ accepted
//! out: topic ─▶ inbox of the target ─▶ breaker ─▶ POST with idempotency key and signature ─▶ ack │ again │ parked
//! ```

mod breaker;
mod egress;
mod inbound;
mod outbound;
mod profile;
mod sink;

pub use self::{
    breaker::{Breaker, BreakerConfig},
    egress::is_public,
    inbound::{Emit, Inbound, Received, TaskSink},
    outbound::{Outgoing, Target, Verdict, judge},
    profile::{Arrived, Duplicates, EventIn, ProviderProfile, Rejection, Scheme, WebhookEvent},
    sink::{SendProblem, Sending, Sink},
};

/// As whom events from outside are sent. They are for the node's own agents: no peer knows such a sender, and no agent of a
/// peer may be called so, else it could pass for a provider that has proven itself.
pub const SENDER: &str = "webhook";

/// Most bytes of a webhook's body, unless a profile says otherwise: what most senders keep to.
pub const BODY_MAX: usize = 1024 * 1024;
