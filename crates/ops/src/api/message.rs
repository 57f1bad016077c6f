//! Sending a message: `POST /v1/messages`, on the operator API and on the link API.

use std::collections::BTreeMap;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use volary_kernel::{Name, TraceId, Uid};

use super::{DurationText, decode_payload, payload::present};
use crate::ApiError;

/// A message to send: to a topic's subscribers or to one agent.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SendRequest {
    /// Topic whose subscribers get it. Exactly one of `topic` and `to`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// Agent that gets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub to: Option<Name>,
    /// Payload as JSON. Exactly one of `payload` and `payload_base64`.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<serde_json::Value>")]
    pub payload: Option<Box<RawValue>>,
    /// Payload as base64 (standard alphabet, padded).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_base64: Option<String>,
    /// Media type; `application/json` for `payload`, `application/octet-stream` for `payload_base64` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// Trace that the message belongs to; a new one when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub trace: Option<TraceId>,
    /// Headers for the receiver (bounded by the node).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Wait this long for the outcome; no wait when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<DurationText>,
}

/// Whom a message is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The subscribers of a topic.
    Topic(String),
    /// One agent.
    Agent(Name),
}

impl SendRequest {
    /// Whom the message is for.
    ///
    /// # Errors
    /// 400 unless exactly one of `topic` and `to` is given.
    pub fn target(&self) -> Result<Target, ApiError> {
        target(self.topic.as_deref(), self.to.as_ref())
    }

    /// `(content type, bytes)` of the payload.
    ///
    /// # Errors
    /// 400 as [`decode_payload`].
    pub fn content(&self) -> Result<(String, Bytes), ApiError> {
        decode_payload(
            self.payload.as_deref(),
            self.payload_base64.as_deref(),
            self.content_type.as_deref(),
        )
    }
}

/// See [`SendRequest::target`].
pub(super) fn target(topic: Option<&str>, to: Option<&Name>) -> Result<Target, ApiError> {
    match (topic, to) {
        (Some(topic), None) => Ok(Target::Topic(topic.to_owned())),
        (None, Some(agent)) => Ok(Target::Agent(agent.clone())),
        (Some(_), Some(_)) => {
            Err(ApiError::bad_request("topic and to are both given").hint("give one of them"))
        }
        (None, None) => Err(ApiError::bad_request("nobody is named as receiver")
            .hint("give `topic` or `to` (an agent's name)")),
    }
}

/// What happened to a message when it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Admission {
    /// A receiver has it.
    Delivered,
    /// It is durable in a receiver's inbox.
    Queued,
    /// Nobody subscribes.
    NoRoute,
    /// It was not taken; `reason` says why.
    Refused,
    /// A hook dropped it; `reason` says why.
    Dropped,
}

/// How a message ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Acknowledged.
    Done,
    /// Every attempt failed; it is parked.
    Failed,
    /// Cancelled.
    Cancelled,
    /// Its deadline passed.
    DeadlineExceeded,
    /// Dropped; `reason` says why.
    Dropped,
}

/// The answer to a [`SendRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SendReply {
    /// Id of the message.
    #[schemars(with = "String")]
    pub id: Uid,
    /// Trace it belongs to.
    #[schemars(with = "String")]
    pub trace: TraceId,
    /// What happened when it was sent.
    pub admission: Admission,
    /// How it ended, if `wait` was given and it ended within that time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Why it was refused, dropped or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_null_payload_is_a_payload() {
        let request: SendRequest =
            serde_json::from_str(r#"{"topic":"work","payload":null}"#).unwrap();
        assert_eq!(request.content().unwrap().1.as_ref(), b"null");
        assert_eq!(request.target().unwrap(), Target::Topic("work".into()));
    }

    #[test]
    fn unknown_keys_and_double_receivers_are_refused() {
        assert!(serde_json::from_str::<SendRequest>(r#"{"topic":"work","payloda":1}"#).is_err());
        let both: SendRequest =
            serde_json::from_str(r#"{"topic":"work","to":"a","payload":1}"#).unwrap();
        assert_eq!(both.target().unwrap_err().code, "V6005");
    }
}
