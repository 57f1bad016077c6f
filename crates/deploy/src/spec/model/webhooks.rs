//! Webhooks of a fleet, resolved.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::{Serialize, Serializer};
use volary_kernel::{
    id::Name,
    secret::{REDACTED, Secret},
};

use super::{environment::redacted, text};

/// Who posts here and where is posted to.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WebhooksSpec {
    /// Senders, with names of their own each.
    pub inbound: Vec<InboundSpec>,
    /// Targets, with names of their own each, that no agent has.
    pub outbound: Vec<OutboundSpec>,
}

impl WebhooksSpec {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.inbound.is_empty() && self.outbound.is_empty()
    }

    /// Every secret in it: what the redactor must know.
    pub fn secret_values(&self) -> impl Iterator<Item = &Secret> {
        let outbound = self.outbound.iter();
        let outbound =
            outbound.flat_map(|target| target.secret.iter().chain(&target.authorization));
        self.inbound
            .iter()
            .map(|sender| &sender.secret)
            .chain(outbound)
    }
}

/// How a sender proves itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ProfileKind {
    /// `x-webhook-signature` over time and body.
    Signed,
    /// Standard Webhooks.
    Standard,
    /// GitHub.
    Github,
    /// Gitea and Forgejo.
    Gitea,
    /// GitLab.
    Gitlab,
}

/// What an event from outside becomes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "emitAs", rename_all = "camelCase")]
pub enum EmitSpec {
    /// A message on a topic.
    Message {
        /// The topic.
        topic: String,
    },
    /// A task. One of both says who may claim it.
    Task {
        /// Only who gets this topic.
        topic: Option<String>,
        /// Only members of this pool.
        pool: Option<Name>,
    },
}

/// One sender of webhooks. `None` is what its profile says.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InboundSpec {
    /// Its name, the last part of the route.
    pub name: Name,
    /// How it proves itself.
    pub profile: ProfileKind,
    /// What it shares with this node.
    #[serde(serialize_with = "redacted")]
    pub secret: Secret,
    /// What its events become.
    #[serde(flatten)]
    pub emit: EmitSpec,
    /// Fields that the body must have.
    pub required_fields: Vec<String>,
    /// The field that names an event.
    pub event_id: Option<String>,
    /// Bytes of one body.
    pub max_bytes: u64,
    /// How far a signed time may be from now.
    #[serde(serialize_with = "text::optional_duration")]
    pub max_skew: Option<Duration>,
    /// How long an event is known again.
    #[serde(serialize_with = "text::optional_duration")]
    pub remember_for: Option<Duration>,
    /// Whether an event that was accepted before is answered as if it were new.
    pub accept_duplicates: Option<bool>,
}

/// One target.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OutboundSpec {
    /// Its name, and that of its inbox.
    pub name: Name,
    /// What goes to it.
    pub topics: Vec<String>,
    /// The URL as written.
    pub url: String,
    /// Whether it is `https`.
    #[serde(skip)]
    pub tls: bool,
    /// Its host.
    #[serde(skip)]
    pub host: String,
    /// Its port.
    #[serde(skip)]
    pub port: u16,
    /// Its path and query.
    #[serde(skip)]
    pub path: String,
    /// What requests are signed with.
    #[serde(serialize_with = "hidden")]
    pub secret: Option<Secret>,
    /// The Authorization header.
    #[serde(serialize_with = "hidden")]
    pub authorization: Option<Secret>,
    /// More headers.
    pub headers: BTreeMap<String, String>,
    /// Time for one request.
    #[serde(serialize_with = "text::duration")]
    pub timeout: Duration,
    /// Attempts before a message is parked.
    pub max_attempts: u32,
    /// Requests at a time.
    pub concurrency: u32,
    /// When it is left alone.
    pub breaker: BreakerSpec,
    /// Whether it may be on this machine or in a private network.
    pub allow_private: bool,
    /// Certificates to believe in place of the machine's.
    pub ca_file: Option<PathBuf>,
}

/// When a target is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BreakerSpec {
    /// Failures in a row.
    pub failures: u32,
    /// For how long.
    #[serde(serialize_with = "text::duration")]
    pub open_for: Duration,
}

fn hidden<S: Serializer>(secret: &Option<Secret>, serializer: S) -> Result<S::Ok, S::Error> {
    match secret {
        Some(_) => serializer.serialize_some(REDACTED),
        None => serializer.serialize_none(),
    }
}
