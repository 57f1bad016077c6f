//! Short words for tests.

use volary_kernel::{
    clock::Timestamp,
    id::{Name, Tenant},
};

use crate::{AgentId, Message, Sender, Topic};

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

/// When test messages are sent.
pub(crate) const NOW: Timestamp = Timestamp::from_micros(1_767_225_600_000_000);

/// A message with a JSON text.
pub(crate) fn message(from: &str, about: &str, text: &str) -> Message {
    Message::builder(sender(from))
        .topic(topic(about))
        .json(text)
        .unwrap()
        .build(NOW)
        .unwrap()
}

/// The JSON text of a message.
pub(crate) fn text_of(message: &Message) -> String {
    message.payload().parse_json().unwrap()
}
