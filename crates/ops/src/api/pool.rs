//! Pools: `/v1/pools`, on the operator API and on the link API.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use volary_kernel::{Name, Tenant, Timestamp};

/// Body of `POST /v1/pools`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreatePool {
    /// Its name.
    #[schemars(with = "String")]
    pub name: Name,
    /// Only these agents may join.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<String>>")]
    pub allow: Option<Vec<Name>>,
    /// Only who shows this token may join; at least 16 bytes. Without `allow` and `token` every agent may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// Body of `POST /v1/pools/{name}/join`: an operator names the agent, an agent joins itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinPool {
    /// The agent; only for operators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub agent: Option<Name>,
    /// The pool's token, if it asks for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// What a change of a pool did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PoolReply {
    /// The pool.
    #[schemars(with = "String")]
    pub name: Name,
    /// Whether anything changed.
    pub changed: bool,
}

/// A pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PoolView {
    /// Its name.
    #[schemars(with = "String")]
    pub name: Name,
    /// Whose it is.
    #[schemars(with = "String")]
    pub tenant: Tenant,
    /// Whom it lets in: `open`, `allow_list` or `token`.
    pub admission: String,
    /// Its members.
    #[schemars(with = "Vec<String>")]
    pub members: Vec<Name>,
    /// Who created it.
    #[schemars(with = "String")]
    pub created_by: Name,
    /// When.
    #[schemars(with = "String")]
    pub created_at: Timestamp,
}

/// The answer to `GET /v1/pools`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PoolList {
    /// The pools, by name.
    pub pools: Vec<PoolView>,
}
