//! What a value of a flow asks for, in the words of the link API.

use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use volary_kernel::Name;
use volary_ops::api::{Action, InboxItem, Send};

use super::Actions;

fn json(value: &impl Serialize) -> Result<Box<RawValue>, String> {
    to_raw_value(value).map_err(|error| format!("it has no JSON form: {error}"))
}

/// Puts the value into the journal, under the trace of the message: `agent.report`.
///
/// # Errors
/// When it has no JSON form.
pub fn report(value: &impl Serialize) -> Actions {
    Ok(vec![Action::Report(json(value)?)])
}

/// Sends the value to the subscribers of a topic.
///
/// # Errors
/// When it has no JSON form.
pub fn publish(topic: impl Into<String>, value: &impl Serialize) -> Actions {
    let payload = Some(json(value)?);
    let topic = Some(topic.into());
    Ok(vec![Action::Send(Send {
        topic,
        payload,
        ..Send::default()
    })])
}

/// Sends the value to an agent.
///
/// # Errors
/// When it has no JSON form.
pub fn send(agent: Name, value: &impl Serialize) -> Actions {
    let payload = Some(json(value)?);
    Ok(vec![Action::Send(Send {
        to: Some(agent),
        payload,
        ..Send::default()
    })])
}

/// Sends the value to whoever sent the item, which must be an agent: operators and sources have no inbox.
///
/// # Errors
/// When it has no JSON form, or the sender's name is none of an agent.
pub fn reply(item: &InboxItem, value: &impl Serialize) -> Actions {
    let agent = Name::new(&item.sender);
    let agent = agent.map_err(|error| format!("sender `{}` is no agent: {error}", item.sender))?;
    send(agent, value)
}
