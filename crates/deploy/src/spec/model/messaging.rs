//! Messaging of a fleet, resolved: inboxes, hooks, and the links to other nodes.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use serde::{Serialize, Serializer};
use volary_kernel::{
    id::{Name, Tenant},
    sign::PublicKey,
};

use super::{WebhooksSpec, text};

/// Bounds of every agent's inbox and message, what looks at messages, and which nodes this one talks with.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MessagingSpec {
    /// Items one inbox holds; a further one is refused.
    pub inbox_items: u64,
    /// Bytes of payload one inbox holds; a further item is refused.
    pub inbox_bytes: u64,
    /// Bytes of payload one message may have.
    pub max_payload: u64,
    /// Hooks in order. The guard of secrets comes after them in any case.
    pub hooks: Vec<HookSpec>,
    /// Where other nodes may connect; port 0 takes a free one. `None`: nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Whether links are in the clear and prove nothing. Only ever within this machine.
    pub insecure: bool,
    /// Other nodes, with names and keys of their own each.
    pub peers: Vec<PeerSpec>,
    /// Topics that travel to other nodes at most once.
    pub at_most_once: Vec<String>,
    /// Bounds of the links.
    pub limits: LinkLimits,
    /// What other systems say over HTTP, and what is said to them.
    #[serde(skip_serializing_if = "WebhooksSpec::is_empty")]
    pub webhooks: WebhooksSpec,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerSpec {
    /// What this node calls it.
    pub name: Name,
    /// Its public key.
    #[serde(serialize_with = "shown")]
    pub key: PublicKey,
    /// Where it listens, `host:port`; `None`: it calls here and is not called.
    pub address: Option<String>,
    /// Tenants whose messages go to it and are taken from it; never empty.
    pub tenants: Vec<Tenant>,
    /// A message that could not be delivered to it for this long is parked; `None`: it waits for ever.
    #[serde(serialize_with = "text::optional_duration")]
    pub give_up_after: Option<Duration>,
}

fn shown<S: Serializer>(key: &PublicKey, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(key)
}

/// One hook with its settings.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum HookSpec {
    /// Refuses what is no proper message.
    Validate {
        /// How far in the future a message may have been sent.
        #[serde(serialize_with = "text::duration")]
        max_skew: Duration,
    },
    /// Refuses what comes too fast.
    RateLimit(RateLimitSpec),
    /// Sets and tidies headers.
    Enrich(EnrichSpec),
    /// Makes every send and receive a journal entry.
    Record {},
    /// Says who may send what.
    Policy {
        /// What happens to messages that no rule matches.
        default: Effect,
        /// The first that matches decides.
        rules: Vec<PolicyRule>,
    },
}

impl HookSpec {
    /// Its key in `fleet.yaml`.
    pub const fn key(&self) -> &'static str {
        match self {
            Self::Validate { .. } => "validate",
            Self::RateLimit(_) => "rateLimit",
            Self::Enrich(_) => "enrich",
            Self::Record {} => "record",
            Self::Policy { .. } => "policy",
        }
    }
}

/// What becomes of headers, in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EnrichSpec {
    /// Header and the value it gets.
    pub headers: BTreeMap<String, String>,
    /// Header and the value it gets if its sender gave none.
    pub defaults: BTreeMap<String, String>,
    /// Headers that lose the white space around their values.
    pub trim: Vec<String>,
    /// Headers whose values become lower case.
    pub lowercase: Vec<String>,
    /// Headers that go.
    pub remove: Vec<String>,
    /// The header that gets the time of receipt.
    pub received_at: Option<String>,
}

/// Token buckets; at least one is there.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RateLimitSpec {
    /// Of all messages of one direction.
    pub global: Option<BucketSpec>,
    /// Of each sender.
    pub sender: Option<BucketSpec>,
    /// Of each topic.
    pub topic: Option<BucketSpec>,
    /// Senders, and topics, remembered in each direction.
    pub max_keys: u32,
    /// Whether all nodes on one store share the global bucket.
    pub shared: bool,
}

/// One token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BucketSpec {
    /// Messages at once.
    pub capacity: f64,
    /// Messages that come back in a second.
    pub refill_per_second: f64,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// The message goes on.
    Allow,
    /// The message is taken out.
    Deny,
}

/// One rule; what is `None` matches everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRule {
    /// What it does.
    pub effect: Effect,
    /// Name of the sender, in which `*` stands for any text, or its id.
    pub sender: Option<String>,
    /// The topic, in which `*` stands for any text within a segment and `**` for any segments.
    pub topic: Option<String>,
    /// The tenant, in which `*` stands for any text.
    pub tenant: Option<String>,
    /// The direction.
    pub way: Option<Way>,
}

/// Direction of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// As it is sent.
    Egress,
    /// As it is received.
    Ingress,
}

/// Bounds of the links to other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkLimits {
    /// Connections taken at once.
    pub connections: u32,
    /// Of one peer.
    pub per_peer: u32,
    /// Connections whose other end is not known yet.
    pub handshaking: u32,
    /// Time to say who it is.
    #[serde(serialize_with = "text::duration")]
    pub handshake_time: Duration,
    /// Silence after which a connection is closed.
    #[serde(serialize_with = "text::duration")]
    pub idle: Duration,
    /// How long a read or write may make no progress.
    #[serde(serialize_with = "text::duration")]
    pub stall: Duration,
    /// Bytes of one frame of messages; at least a message of the largest payload.
    pub frame_bytes: u64,
    /// Frames on their way without an answer.
    pub window_frames: u32,
    /// Bytes on their way without an answer; at least one frame.
    pub window_bytes: u64,
}
