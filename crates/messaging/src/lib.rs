//! Messages between agents: who speaks, what is said, how it travels, and how it stays until it is handled.
//!
//! | module | what it owns |
//! |---|---|
//! | [`identity`] | Ed25519 identities, key files, the register of known ones |
//! | [`message`], [`topic`] | the immutable message and its limits |
//! | [`codec`], [`frame`] | the canonical bytes of a message; sealed frames and single sealed messages |

pub mod codec;
pub mod frame;
pub mod identity;
pub mod message;
pub mod topic;
mod wire;

#[cfg(test)]
mod test_util;

pub use self::{
    identity::{AgentId, Identity, IdentityRegistry},
    message::{
        Audience, BuildError, ContentType, Headers, Message, MessageBuilder, Payload, Priority,
        Sender,
    },
    topic::{Topic, TopicError},
};
