//! Subscriptions as they are written in an `agent.yaml`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use volary_kernel::Name;

use crate::{
    page::{KindName, PageId, Scope},
    pattern::PatternError,
};

/// Deepest nesting of `all`, `any` and `not`.
pub const DEPTH_MAX: usize = 16;
/// Most criteria in one subscription, nested ones and listed pages counted.
pub const PARTS_MAX: usize = 1000;

/// One entry of `subscriptions:`. All that is given must hold.
///
/// ```yaml
/// subscriptions:
///   - source: notes
///     path: "**/*.md"
///     kinds: [added, replaced]
///     not: { path: "drafts/**" }
///   - any:
///       - { dataType: requirement }
///       - { pages: ["code:src/lib.rs"] }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[doc(alias = "PageMetadataPredicate")]
pub struct Criteria {
    /// The page's source has this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Name>,
    /// The page's path matches this glob. See [`crate::pattern`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The page has this data type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_type: Option<Arc<str>>,
    /// The page's source is mapped into this scope.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
    /// The page is one of these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pages: Option<Vec<PageId>>,
    /// The change is of one of these kinds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kinds: Option<Vec<KindName>>,
    /// Each of these holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub all: Option<Vec<Criteria>>,
    /// At least one of these holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub any: Option<Vec<Criteria>>,
    /// This does not hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not: Option<Box<Criteria>>,
}

/// Criteria that make no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CriteriaError {
    /// Nothing is given.
    #[error(
        "a subscription says nothing about what it wants: give at least one of source, path, dataType, scope or pages"
    )]
    Empty,
    /// A list is empty.
    #[error("`{0}` is an empty list, which nothing can match")]
    EmptyList(&'static str),
    /// The path is no glob.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// `all`, `any` and `not` are nested too deep.
    #[error("subscription is nested deeper than {DEPTH_MAX} levels")]
    TooDeep,
    /// Too many criteria.
    #[error("subscription has more than {PARTS_MAX} criteria")]
    TooMany,
}
