//! What an agent receives and how: subscriptions, outputs, delivery settings.

use std::time::Duration;

use serde::Serialize;
use volary_kernel::{id::Name, retry::Backoff};

use super::text;

/// How an agent's inbox is served.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeliverySpec {
    /// Items being worked on at once, over all replicas' handlers; per replica for a `command` agent.
    pub concurrency: u32,
    /// Longest one attempt may take: a handler still running is killed, a claim not acknowledged is given to another.
    #[serde(serialize_with = "text::duration")]
    pub timeout: Duration,
    /// Attempts before an item is parked.
    pub max_attempts: u32,
    /// Waits between attempts.
    #[serde(serialize_with = "text::backoff")]
    pub backoff: Backoff,
}

/// A predicate over context changes; serialises to the JSON form that the context engine reads.
///
/// Every field that is set must hold. Without any, every change of every source matches.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SubscriptionSpec {
    /// The source the page belongs to; one of the fleet's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Name>,
    /// A glob over the page's path, `*` within a segment and `**` over segments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The page's data type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_type: Option<String>,
    /// The page is one of these, each `source:path`; empty means any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pages: Vec<String>,
    /// Kinds of change; empty means all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<ChangeKind>,
    /// All of these hold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub all: Vec<SubscriptionSpec>,
    /// At least one of these holds, unless empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub any: Vec<SubscriptionSpec>,
    /// This does not hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not: Option<Box<SubscriptionSpec>>,
}

/// What happened to a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// It has new content.
    Replaced,
    /// It is gone.
    Invalidated,
}

/// A source an agent writes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OutputSpec {
    /// One of the fleet's sources.
    pub source: Name,
    /// Which pages of it; `None` means any.
    pub path: Option<String>,
}
