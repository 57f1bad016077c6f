//! Messages between agents: who speaks, what is said, how it travels, and how it stays until it is handled.
//!
//! | module | what it owns |
//! |---|---|
//! | [`identity`] | Ed25519 identities, key files, the register of known ones |
//! | [`message`], [`topic`] | the immutable message and its limits |
//! | [`codec`], [`frame`] | the canonical bytes of a message; sealed frames and single sealed messages |
//! | [`discovery`] | what agents say about themselves, signed by their own keys |
//! | [`hook`] | middleware in order, and the hooks shipped here |
//! | [`rate`] | token buckets for everything, each sender and each topic |
//! | [`transport`] | at-most-once ways into inboxes in memory, and the links between nodes ([`transport::tcp`]) |
//! | [`admission`] | the answer to every send |
//! | [`agent`] | the agent as code: trait, decisions, tools, policy, and the runtime that keeps it going |
//! | [`delivery`], [`action`] | what an agent is shown, and what it asks for |
//! | [`inbox`], [`post`] | durable inboxes, and durable sends in the caller's commit |
//! | [`peer`] | the same between nodes: outboxes, couriers, receiving, routes |
//! | `compat` (feature `converge-compat`) | messages of other systems |
//! | [`webhook`] | what other systems say and are told over HTTP, without the HTTP |
//! | [`event`], [`replay`] | everything that happens, as journal entries, and what can be replayed from them |

pub mod action;
pub mod admission;
pub mod agent;
pub mod codec;
#[cfg(feature = "converge-compat")]
pub mod compat;
pub mod delivery;
pub mod discovery;
pub mod event;
pub mod frame;
pub mod hook;
pub mod identity;
pub mod inbox;
pub mod message;
mod metrics;
pub mod peer;
pub mod pool;
pub mod post;
pub mod rate;
pub mod replay;
mod route;
mod seen;
pub mod task;
pub mod topic;
pub mod transport;
pub mod webhook;
mod wire;

#[cfg(test)]
mod test_util;

pub use self::{
    action::{Action, SendAction},
    admission::{Admission, Refusal},
    delivery::{Delivery, DeliveryKind, Parcel},
    discovery::{Capability, Descriptor, Introduction, SignedDescriptor},
    event::{Event, Outcome},
    hook::{HookChain, MessageHook},
    identity::{AgentId, Identity, IdentityRegistry, Keyring},
    inbox::{Claimed, InboxError, InboxSpec, Inboxes, Mailbox, PutOptions},
    message::{
        Audience, BuildError, ContentType, Headers, Message, MessageBuilder, Payload, Priority,
        Sender,
    },
    peer::{PeerConfig, PeerStatus, Peers, PeersConfig},
    post::{Origin, Post, PostConfig, Posted},
    rate::{RateLimitHook, RateLimiter, RateLimiterConfig, TokenBucketConfig},
    replay::{Direction, Recording, Replay, ReplayLog, ReplayPlan, ReplayQuery, ReplayRunner},
    seen::SeenConfig,
    topic::{Topic, TopicError},
    transport::{Endpoint, EndpointSpec, HookedTransport, Local, Transport},
};
