//! Sending a message: `POST /v1/messages`, on the operator API and on the link API.

use std::collections::BTreeMap;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use volary_kernel::{Name, TraceId, Uid};

use super::{DurationText, decode_payload, payload::present};
use crate::ApiError;

/// A message to send: to a topic's subscribers, to one agent, or to one member of a pool. Also the `send` of an action,
/// which belongs to the trace of its delivery.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Send {
    /// Topic whose subscribers get it. Exactly one of `topic`, `to` and `pool`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// Agent that gets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub to: Option<Name>,
    /// Pool one of whose members gets it: the one with the least to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub pool: Option<Name>,
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
    /// Headers for the receiver (bounded by the node).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// How urgent, 0 to 255; 128 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// From when on nobody wants it: a time (RFC 3339) or a duration from now (`30s`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<String>,
}

/// Body of `POST /v1/messages`: a message, and what only its sender can say.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct SendRequest {
    /// The message.
    #[serde(flatten)]
    pub send: Send,
    /// Trace that the message belongs to; a new one when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub trace: Option<TraceId>,
    /// Wait this long for the outcome; no wait when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<DurationText>,
}

/// Most messages of one [`SendMany`].
pub const SENDS_MAX: usize = 1000;

/// Body of `POST /v1/messages/batch`: messages that are stored together, in one commit. Each has its own answer; a reply of
/// another kind than an error says that all that were accepted are durable.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SendMany {
    /// The messages, 1 to 1000.
    pub messages: Vec<Send>,
    /// Trace that they belong to; a new one for each when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub trace: Option<TraceId>,
}

/// The answer to a [`SendMany`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SendManyReply {
    /// What happened to each message, in their order.
    pub sent: Vec<SendReply>,
}

/// A [`SendRequest`] as it is read: flattened by hand, because serde's flattening forgets to refuse unknown keys.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename = "SendRequest")]
struct StrictRequest {
    topic: Option<String>,
    to: Option<Name>,
    pool: Option<Name>,
    #[serde(default, deserialize_with = "present")]
    payload: Option<Box<RawValue>>,
    payload_base64: Option<String>,
    content_type: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    priority: Option<u8>,
    deadline: Option<String>,
    trace: Option<TraceId>,
    wait: Option<DurationText>,
}

impl<'de> Deserialize<'de> for SendRequest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read = StrictRequest::deserialize(deserializer)?;
        Ok(Self {
            send: Send {
                topic: read.topic,
                to: read.to,
                pool: read.pool,
                payload: read.payload,
                payload_base64: read.payload_base64,
                content_type: read.content_type,
                headers: read.headers,
                priority: read.priority,
                deadline: read.deadline,
            },
            trace: read.trace,
            wait: read.wait,
        })
    }
}

/// Whom a message is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The subscribers of a topic.
    Topic(String),
    /// One agent.
    Agent(Name),
    /// One member of a pool.
    Pool(Name),
}

impl Send {
    /// Whom the message is for.
    ///
    /// # Errors
    /// 400 unless exactly one of `topic`, `to` and `pool` is given.
    pub fn target(&self) -> Result<Target, ApiError> {
        match (&self.topic, &self.to, &self.pool) {
            (Some(topic), None, None) => Ok(Target::Topic(topic.clone())),
            (None, Some(agent), None) => Ok(Target::Agent(agent.clone())),
            (None, None, Some(pool)) => Ok(Target::Pool(pool.clone())),
            (None, None, None) => Err(ApiError::bad_request("nobody is named as receiver")
                .hint("give `topic`, `to` (an agent's name) or `pool`")),
            _ => Err(
                ApiError::bad_request("more than one of topic, to and pool is given")
                    .hint("give one of them"),
            ),
        }
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

/// What happened to a message when it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Admission {
    /// A receiver has it.
    Delivered,
    /// It is durable in a receiver's inbox.
    Queued,
    /// It was handed to the link to a peer, once; what becomes of it is counted.
    Sent,
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
        assert_eq!(request.send.content().unwrap().1.as_ref(), b"null");
        assert_eq!(request.send.target().unwrap(), Target::Topic("work".into()));
    }

    #[test]
    fn unknown_keys_and_double_receivers_are_refused() {
        assert!(serde_json::from_str::<SendRequest>(r#"{"topic":"work","payloda":1}"#).is_err());
        let both: SendRequest =
            serde_json::from_str(r#"{"topic":"work","to":"a","payload":1}"#).unwrap();
        assert_eq!(both.send.target().unwrap_err().code, "V6005");
        let written = serde_json::to_string(&both).unwrap();
        assert_eq!(written, r#"{"topic":"work","to":"a","payload":1}"#);
    }
}
