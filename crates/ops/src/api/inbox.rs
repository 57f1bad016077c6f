//! The inbox of a replica: `GET /v1/inbox`, `POST /v1/inbox/ack` and `/nack`, and the actions that go with an ack.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use volary_kernel::{Tenant, Timestamp, TraceId};

use super::{DurationText, Send, payload::present};
use crate::ApiError;

/// Query of `GET /v1/inbox`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InboxQuery {
    /// Most items to claim; 1 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    /// Wait this long for the first item, at most [`super::MAX_WAIT`]; no wait when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<DurationText>,
}

/// What was claimed.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct InboxReply {
    /// The items, oldest first; empty if nothing came within the wait.
    pub items: Vec<InboxItem>,
}

/// What kind of work an item is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ItemKind {
    /// A message of an agent or an operator.
    Message,
    /// A change of context.
    Dispatch,
    /// A task.
    Task,
}

/// One claimed item. The same document is the standard input of a handler.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct InboxItem {
    /// Names this claim in ack and nack; it ends with the visibility timeout.
    pub id: String,
    /// What kind of work it is.
    pub kind: ItemKind,
    /// Topic it was sent to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// Who sent it, as stamped by the node.
    pub sender: String,
    /// Tenant it belongs to.
    #[schemars(with = "String")]
    pub tenant: Tenant,
    /// Trace it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub trace: Option<TraceId>,
    /// Number of this attempt, 1 first.
    pub attempt: u32,
    /// The same in every attempt: what a side effect deduplicates by.
    pub idempotency_key: String,
    /// Whether an earlier attempt was made.
    pub redelivered: bool,
    /// Headers of the message.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// From when on nobody wants it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub deadline: Option<Timestamp>,
    /// How urgent, 0 to 255; 128 is usual. Only over the link API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// How long this claim holds from the answer on: then the item comes again. Only over the link API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holds_for: Option<DurationText>,
    /// Payload as JSON, or else see `payload_base64`.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<serde_json::Value>")]
    pub payload: Option<Box<RawValue>>,
    /// Payload as base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_base64: Option<String>,
}

/// Body of `POST /v1/inbox/ack`: these items are done, and their actions happen in the same commit.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AckRequest {
    /// One claim. `id`, `ids` or both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Several claims.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<String>,
    /// What the work led to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub actions: Vec<Action>,
}

impl AckRequest {
    /// All claims named, each once, in order.
    ///
    /// # Errors
    /// 400 when none is named.
    pub fn claims(&self) -> Result<Vec<String>, ApiError> {
        let mut claims: Vec<String> = Vec::with_capacity(self.ids.len() + 1);
        for id in self.id.iter().chain(&self.ids) {
            if !claims.contains(id) {
                claims.push(id.clone());
            }
        }
        if claims.is_empty() {
            return Err(ApiError::bad_request("no claim is named")
                .hint("give `id` or `ids` as GET /v1/inbox gave them"));
        }
        Ok(claims)
    }
}

/// One thing that work leads to: a line of a handler's standard output, or an element of an ack's `actions`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Send a message.
    Send(Send),
    /// Put a report into the journal.
    #[schemars(with = "serde_json::Value")]
    Report(Box<RawValue>),
}

/// The answer to an [`AckRequest`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AckReply {
    /// How many claims were acknowledged: all that were named.
    pub acked: usize,
    /// What became of each `send`, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sent: Vec<super::SendReply>,
}

/// Body of `POST /v1/inbox/nack`: the item was not done and comes again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NackRequest {
    /// The claim.
    pub id: String,
    /// When it comes again; by the agent's back-off when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<DurationText>,
    /// Why, for the journal and for whoever looks at parked items.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether no further attempt would do better: the item is parked at once.
    #[serde(default)]
    pub give_up: bool,
}

/// The answer to a [`NackRequest`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NackReply {
    /// Whether that was the last attempt: the item is parked now.
    pub parked: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ack_names_its_claims_once() {
        let ack: AckRequest = serde_json::from_str(
            r#"{"id":"a","ids":["b","a"],"actions":[{"send":{"topic":"t","payload":{"n":1}}},{"report":"done"}]}"#,
        )
        .unwrap();
        assert_eq!(ack.claims().unwrap(), ["a", "b"]);
        let [Action::Send(send), Action::Report(report)] = ack.actions.as_slice() else {
            panic!("actions are {:?}", ack.actions);
        };
        assert_eq!(
            (send.content().unwrap().1.as_ref(), report.get()),
            (b"{\"n\":1}".as_slice(), "\"done\"")
        );
        assert!(AckRequest::default().claims().is_err());
    }

    #[test]
    fn an_unknown_action_names_those_there_are() {
        let error = serde_json::from_str::<Action>(r#"{"sned":{}}"#)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("send") && error.contains("report"),
            "{error}"
        );
    }
}
