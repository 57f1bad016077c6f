//! Short words for tests.

use volary_kernel::id::{Name, Tenant};

use crate::{AgentId, Sender, Topic};

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(crate) fn topic(text: &str) -> Topic {
    Topic::new(text).unwrap()
}

/// A sender of the default tenant whose id is made up.
pub(crate) fn sender(text: &str) -> Sender {
    Sender::new(AgentId::from_bytes([7; 32]), name(text), Tenant::default())
}
