//! Transports: how a message gets from its sender into inboxes in memory, at most once.
//!
//! What must not be lost goes through [`crate::post`] instead, which stores it.

#[cfg(any(test, feature = "test-util"))]
pub mod conformance;
mod endpoint;
mod hooked;
mod local;
pub mod tcp;

use std::future::Future;

use volary_kernel::{
    id::{Name, Tenant},
    queue::{QueueConfig, WhenFull},
};

pub use self::{
    endpoint::{Closer, Endpoint},
    hooked::HookedTransport,
    local::Local,
};
use crate::{
    admission::{Admission, Refusal},
    message::Message,
    topic::Topic,
};

/// Bounds of an endpoint's inbox if nothing is said: 1024 messages or 16 MiB, and the sender is told when it is full.
pub const DEFAULT_INBOX: QueueConfig = QueueConfig {
    max_items: 1024,
    max_bytes: 16 * 1024 * 1024,
    when_full: WhenFull::Reject,
};

/// A receiver to be registered.
#[derive(Debug, Clone)]
pub struct EndpointSpec {
    /// Whose it is. Messages of other tenants never reach it.
    pub tenant: Tenant,
    /// Its name: what a message's recipient is compared with.
    pub name: Name,
    /// The topics it gets, matched exactly.
    pub topics: Vec<Topic>,
    /// Bounds of its inbox; default [`DEFAULT_INBOX`].
    pub inbox: QueueConfig,
}

impl EndpointSpec {
    /// An endpoint of this name for these topics, with the default inbox.
    pub const fn new(tenant: Tenant, name: Name, topics: Vec<Topic>) -> Self {
        Self {
            tenant,
            name,
            topics,
            inbox: DEFAULT_INBOX,
        }
    }
}

/// Why an endpoint can not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// There is one of this name already; it keeps its inbox.
    #[error("endpoint `{name}` of tenant `{tenant}` is open already")]
    Taken {
        /// The tenant.
        tenant: Tenant,
        /// The name.
        name: Name,
    },
    /// The transport was shut down.
    #[error("the transport is shut down")]
    Closed,
}

/// A way for messages.
///
/// Contract, checked by `transport::conformance`:
/// - **Every send is answered** with what became of it; the answer never claims more than happened.
/// - **Routing**: a recipient alone decides if there is one; else everyone of the tenant if the sender asked for
///   broadcast; else the subscribers of any of the topics, once each. The sender itself is left out unless it is the
///   recipient. Nobody there is [`Admission::NoRoute`], never a broadcast. Tenants never reach each other.
/// - **Order**: messages of one sender to one endpoint arrive in the order in which their sends returned.
/// - **Bounds**: each inbox has its own; a full one never delays another endpoint's messages except under
///   [`WhenFull::Block`], where the sender waits.
/// - **At most once**: an endpoint gets a message once or not at all; dropping the endpoint drops its inbox.
/// - **Names are not stolen**: opening a name that is open fails. Dropping an endpoint frees its name.
/// - `send` is cancel-safe: dropped before it returned, each endpoint has the message or has not.
pub trait Transport: Send + Sync + 'static {
    /// Sends one message.
    fn send(&self, message: Message) -> impl Future<Output = Admission> + Send;

    /// Registers a receiver; it is reachable from this node when this returns, from others once they have heard of it.
    ///
    /// # Errors
    /// [`EndpointError`].
    fn open(&self, spec: EndpointSpec) -> Result<Endpoint, EndpointError>;
}

/// What the answers of several inboxes, or groups of inboxes, come to. Where nobody was is left out, unless nobody was
/// anywhere.
fn together(answers: impl IntoIterator<Item = Admission>) -> Admission {
    let (mut reached, mut refused, mut first) = (0, 0, None);
    for answer in answers {
        match answer {
            Admission::NoRoute => {}
            Admission::Delivered | Admission::Queued | Admission::Sent => reached += 1,
            Admission::Partial {
                reached: some,
                refused: others,
                why,
            } => {
                reached += some;
                refused += others;
                first.get_or_insert(Admission::Refused(why));
            }
            other @ (Admission::Refused(_) | Admission::Dropped { .. }) => {
                refused += 1;
                first.get_or_insert(other);
            }
        }
    }
    match first {
        None if reached > 0 => Admission::Delivered,
        None => Admission::NoRoute,
        Some(first) if reached == 0 => first,
        Some(Admission::Refused(why)) => Admission::Partial {
            reached,
            refused,
            why,
        },
        Some(other) => Admission::Partial {
            reached,
            refused,
            why: Refusal::Invalid {
                problem: other.to_string().into(),
            },
        },
    }
}
