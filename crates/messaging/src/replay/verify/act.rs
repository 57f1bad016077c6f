//! What an agent asked for, in the form in which it is compared (pure).

use std::collections::BTreeMap;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use volary_kernel::{
    clock::Timestamp,
    id::{Name, Tenant, TraceId},
};

use super::Divergence;
use crate::{
    action::Action,
    identity::AgentId,
    message::{Audience, Message, Priority, Sender},
};

/// Differences of one action that are told; more are left out.
const TOLD: usize = 20;
/// Longest value that is told, in characters.
const VALUE: usize = 200;

/// What kind of action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActKind {
    /// A message.
    Send,
    /// A report.
    Report,
}

/// An action of an agent. What the record does not hold (the content of a message that was turned back) is `None` and is
/// not compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Act {
    /// What kind.
    pub kind: ActKind,
    /// For whom: `agent:NAME`, `pool:NAME`, `topic:NAME`, `everyone`; empty for a report.
    pub target: String,
    /// The content: JSON as it is, anything else as `{"base64": …}`.
    pub payload: Option<Value>,
    /// What the content is.
    pub content_type: Option<String>,
    /// Labels.
    pub headers: Option<BTreeMap<String, String>>,
    /// How urgent.
    pub priority: Option<Priority>,
    /// Whether it had a deadline. When it was is not compared: it may be relative to the time of sending.
    pub has_deadline: Option<bool>,
}

/// One difference between two actions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// What: a field, or a place inside the payload like `payload/words`.
    pub at: String,
    /// What it was; `-` if it was not there.
    pub expected: String,
    /// What it is now; `-` if it is not there.
    pub actual: String,
}

/// Whether hooks may have changed what was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    /// No hook changes messages: headers and priorities must be the same.
    Refused,
    /// A hook sets, tidies or removes headers: headers and priorities are not compared, for the record has them as they
    /// were after it.
    Allowed,
}

impl Act {
    /// What a recorded message was.
    pub fn of_message(message: &Message) -> Self {
        let target = match message.audience() {
            Audience::Agent(name) => format!("agent:{name}"),
            Audience::Everyone => "everyone".to_owned(),
            Audience::Pool(pool) => format!("pool:{pool}"),
            Audience::Topics(topics) => topics_target(topics),
        };
        let payload = message.payload();
        let json = payload
            .content_type()
            .is_json()
            .then(|| serde_json::from_slice(payload.bytes()).ok())
            .flatten();
        let encoded = || serde_json::json!({"base64": BASE64_STANDARD.encode(payload.bytes())});
        let headers = message.headers().iter();
        Self {
            kind: ActKind::Send,
            target,
            payload: Some(json.unwrap_or_else(encoded)),
            content_type: Some(payload.content_type().as_str().to_owned()),
            headers: Some(
                headers
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .collect(),
            ),
            priority: Some(message.priority()),
            has_deadline: Some(message.deadline().is_some()),
        }
    }

    /// A report.
    pub const fn of_report(report: Value) -> Self {
        Self {
            kind: ActKind::Report,
            target: String::new(),
            payload: Some(report),
            content_type: None,
            headers: None,
            priority: None,
            has_deadline: None,
        }
    }

    /// What an action asks for at `now`.
    ///
    /// # Errors
    /// What is wrong with the action.
    pub fn of_action(action: &Action, now: Timestamp) -> Result<Self, String> {
        match action {
            Action::Send(send) => {
                // Sender and trace are the node's: not compared.
                let nobody = Name::new("nobody").map_err(|error| error.to_string())?;
                let sender = Sender::new(AgentId::from_bytes([0; 32]), nobody, Tenant::default());
                let message = send
                    .clone()
                    .into_message(&sender, TraceId::generate(), now)
                    .map_err(|error| error.to_string())?;
                Ok(Self::of_message(&message))
            }
            Action::Report(report) => serde_json::from_str(report.get())
                .map(Self::of_report)
                .map_err(|error| error.to_string()),
        }
    }

    /// A message that was turned back, of which the record holds no content.
    pub(super) fn of_refused(body: &Value) -> Self {
        let text = |name: &str| body.get(name)?.as_str().map(str::to_owned);
        let target = match (text("to"), text("pool"), body.get("topics")) {
            (Some(to), _, _) => format!("agent:{to}"),
            (None, Some(pool), _) => format!("pool:{pool}"),
            (None, None, Some(Value::Array(topics))) => {
                topics_target(topics.iter().filter_map(Value::as_str))
            }
            _ => String::new(),
        };
        Self {
            kind: ActKind::Send,
            target,
            payload: None,
            content_type: text("content_type"),
            headers: None,
            priority: None,
            has_deadline: None,
        }
    }
}

fn topics_target(topics: impl IntoIterator<Item = impl ToString>) -> String {
    let topics: Vec<_> = topics.into_iter().map(|topic| topic.to_string()).collect();
    format!("topic:{}", topics.join(","))
}

/// The first action that is not the same, with what is different about it. Its place is left to the caller.
pub fn compare(expected: &[Act], actual: &[Act], added: Added) -> Option<Divergence> {
    for index in 0..expected.len().max(actual.len()) {
        let (then, now) = (expected.get(index), actual.get(index));
        let differences = match (then, now) {
            (Some(then), Some(now)) => differences(then, now, added),
            _ => Vec::new(),
        };
        if then.is_none() || now.is_none() || !differences.is_empty() {
            return Some(Divergence {
                differences,
                ..Divergence::of(index + 1, then.cloned(), now.cloned())
            });
        }
    }
    None
}

fn differences(then: &Act, now: &Act, added: Added) -> Vec<Difference> {
    let mut found = Vec::new();
    let word = |kind: ActKind| match kind {
        ActKind::Send => "send",
        ActKind::Report => "report",
    };
    differ(
        &mut found,
        "kind",
        Some(word(then.kind)),
        Some(word(now.kind)),
    );
    if then.kind != now.kind {
        return found;
    }
    // A record without a target (what held a secret) says nothing about it.
    if !then.target.is_empty() {
        differ(
            &mut found,
            "target",
            Some(&*then.target),
            Some(&*now.target),
        );
    }
    if let (Some(then), Some(now)) = (&then.content_type, &now.content_type) {
        differ(&mut found, "content_type", Some(then), Some(now));
    }
    if let (Some(then), Some(now)) = (&then.payload, &now.payload) {
        json(&mut found, "payload", Some(then), Some(now));
    }
    if let (Some(then), Some(now), Added::Refused) = (&then.headers, &now.headers, added) {
        let names = then.keys().chain(now.keys());
        let names: std::collections::BTreeSet<_> = names.collect();
        for name in names {
            let at = format!("headers/{name}");
            differ(&mut found, &at, then.get(name), now.get(name));
        }
    }
    if let (Some(then), Some(now), Added::Refused) = (then.priority, now.priority, added) {
        differ(&mut found, "priority", Some(then.0), Some(now.0));
    }
    if let (Some(then), Some(now)) = (then.has_deadline, now.has_deadline) {
        differ(&mut found, "has_deadline", Some(then), Some(now));
    }
    found
}

fn differ<T: PartialEq + ToString>(
    found: &mut Vec<Difference>,
    at: &str,
    then: Option<T>,
    now: Option<T>,
) {
    if then == now || found.len() >= TOLD {
        return;
    }
    let told = |value: Option<T>| match value {
        Some(value) => short(&value.to_string()),
        None => "-".to_owned(),
    };
    found.push(Difference {
        at: at.to_owned(),
        expected: told(then),
        actual: told(now),
    });
}

fn short(text: &str) -> String {
    let mut told: String = text.chars().take(VALUE).collect();
    if told.len() < text.len() {
        told.push('…');
    }
    told
}

/// Differences inside JSON, each at its own place. Nesting is bounded by the parser.
fn json(found: &mut Vec<Difference>, at: &str, then: Option<&Value>, now: Option<&Value>) {
    match (then, now) {
        (Some(Value::Object(then)), Some(Value::Object(now))) => {
            let names: std::collections::BTreeSet<_> = then.keys().chain(now.keys()).collect();
            for name in names {
                json(
                    found,
                    &format!("{at}/{name}"),
                    then.get(name),
                    now.get(name),
                );
            }
        }
        (Some(Value::Array(then)), Some(Value::Array(now))) => {
            for index in 0..then.len().max(now.len()) {
                json(
                    found,
                    &format!("{at}/{index}"),
                    then.get(index),
                    now.get(index),
                );
            }
        }
        (then, now) => differ(found, at, then, now),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::action::{ActionLimits, ActionParser};

    fn acts(output: &str) -> Vec<Act> {
        let mut parser = ActionParser::new(ActionLimits::default());
        parser.push(output.as_bytes()).unwrap();
        let actions = parser.finish().unwrap();
        let act = |action: &Action| Act::of_action(action, Timestamp::default()).unwrap();
        actions.iter().map(act).collect()
    }

    /// Where, what was expected, what came.
    type Told = (String, String, String);

    fn difference(then: &str, now: &str) -> Option<(usize, Vec<Told>)> {
        let found = compare(&acts(then), &acts(now), Added::Refused)?;
        let told = found.differences.into_iter();
        let told = told.map(|one| (one.at, one.expected, one.actual));
        Some((found.action, told.collect()))
    }

    #[test]
    fn the_same_actions_in_another_layout_are_the_same() {
        let then =
            "{\"send\":{\"topic\":\"t\",\"payload\":{\"a\":1,\"b\":[1,2]}}}\n{\"report\":{}}\n";
        let now =
            "{\"send\":{\"payload\":{\"b\":[1, 2], \"a\":1},\"topic\":\"t\"}}\n{\"report\": {}}";
        assert_eq!(difference(then, now), None);
    }

    #[test]
    fn a_difference_is_told_with_its_place_inside_the_payload() {
        let then =
            "{\"report\":1}\n{\"send\":{\"to\":\"a\",\"payload\":{\"words\":12,\"list\":[1,2]}}}";
        let now =
            "{\"report\":1}\n{\"send\":{\"to\":\"b\",\"payload\":{\"words\":13,\"list\":[1]}}}";
        let told = |at: &str, then: &str, now: &str| (at.into(), then.into(), now.into());
        assert_eq!(
            difference(then, now),
            Some((
                2,
                vec![
                    told("target", "agent:a", "agent:b"),
                    told("payload/list/1", "2", "-"),
                    told("payload/words", "12", "13"),
                ]
            ))
        );
    }

    #[test]
    fn an_action_too_many_or_too_few_or_of_another_kind_is_a_difference() {
        let one = "{\"report\":1}\n";
        assert_eq!(difference(one, ""), Some((1, Vec::new())));
        assert_eq!(difference("", one), Some((1, Vec::new())));
        let (action, told) = difference(one, "{\"send\":{\"to\":\"a\"}}").unwrap();
        assert_eq!((action, told[0].0.as_str()), (1, "kind"));
    }

    #[test]
    fn a_message_that_was_turned_back_is_compared_by_what_is_recorded() {
        let refused = Act::of_refused(
            &json!({"to": null, "topics": ["t"], "content_type": "application/json"}),
        );
        let now = acts("{\"send\":{\"topic\":\"t\",\"payload\":7}}");
        assert_eq!(
            compare(std::slice::from_ref(&refused), &now, Added::Refused),
            None
        );
        let other = acts("{\"send\":{\"topic\":\"u\",\"payload\":7}}");
        assert!(compare(&[refused], &other, Added::Refused).is_some());
    }
}
