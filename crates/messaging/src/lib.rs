//! Messages between agents: who speaks, what is said, how it travels, and how it stays until it is handled.
//!
//! | module | what it owns |
//! |---|---|
//! | [`identity`] | Ed25519 identities, key files, the register of known ones |
//! | [`message`], [`topic`] | the immutable message and its limits |
//! | [`codec`], [`frame`] | the canonical bytes of a message; sealed frames and single sealed messages |
//! | [`hook`] | middleware in order, and the hooks shipped here |
//! | [`transport`] | at-most-once ways into inboxes in memory |
//! | [`admission`] | the answer to every send |
//! | [`delivery`], [`action`] | what an agent is shown, and what it asks for |
//! | [`inbox`], [`post`] | durable inboxes, and durable sends in the caller's commit |
//! | [`event`], [`replay`] | everything that happens, as journal entries, and what can be replayed from them |

pub mod action;
pub mod admission;
pub mod codec;
pub mod delivery;
pub mod event;
pub mod frame;
pub mod hook;
pub mod identity;
pub mod inbox;
pub mod message;
mod metrics;
pub mod post;
pub mod replay;
mod route;
mod seen;
pub mod topic;
pub mod transport;
mod wire;

#[cfg(test)]
mod test_util;

pub use self::{
    action::{Action, SendAction},
    admission::{Admission, Refusal},
    delivery::{Delivery, DeliveryKind, Parcel},
    event::{Event, Outcome},
    hook::{HookChain, MessageHook},
    identity::{AgentId, Identity, IdentityRegistry},
    inbox::{Claimed, InboxError, InboxSpec, Inboxes, Mailbox, PutOptions},
    message::{
        Audience, BuildError, ContentType, Headers, Message, MessageBuilder, Payload, Priority,
        Sender,
    },
    post::{Origin, Post, PostConfig, Posted},
    replay::{Direction, ReplayPlan, ReplayQuery, ReplayRunner},
    seen::SeenConfig,
    topic::{Topic, TopicError},
    transport::{Endpoint, EndpointSpec, HookedTransport, Local, Transport},
};
