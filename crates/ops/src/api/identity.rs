//! Who is known and who is talked with: `/v1/identities` and `/v1/peers`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use volary_kernel::{Name, Tenant, Timestamp};

use super::InboxStats;

/// One known identity: an agent of this node, or one that a peer has introduced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IdentityView {
    /// SHA-256 of its public key, 64 hex digits.
    pub id: String,
    /// Name of the agent.
    #[schemars(with = "String")]
    pub name: Name,
    /// Tenant it belongs to.
    #[schemars(with = "String")]
    pub tenant: Tenant,
    /// Whether its key is believed: `active` or `revoked`.
    pub status: IdentityStatus,
    /// Since when it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub revoked_at: Option<Timestamp>,
    /// Peer that vouches for it; null: this node.
    #[schemars(with = "Option<String>")]
    pub introduced_by: Option<Name>,
    /// Its public key, 64 hex digits.
    pub key: String,
}

/// Whether a key is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum IdentityStatus {
    /// It is.
    Active,
    /// It is not any more.
    Revoked,
}

/// `GET /v1/identities`: sorted by tenant and name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IdentityList {
    /// The identities.
    pub identities: Vec<IdentityView>,
}

/// Body of `POST /v1/identities/rotate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateRequest {
    /// Agent of this fleet that gets a new key.
    #[schemars(with = "String")]
    pub agent: Name,
}

/// One key took the place of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RotateReply {
    /// Whose key it is: an agent, or a peer.
    #[schemars(with = "String")]
    pub name: Name,
    /// Id of the key that is no longer used.
    pub old: String,
    /// Id of the new key.
    pub id: String,
    /// The new public key, 64 hex digits.
    pub key: String,
}

/// Body of `POST /v1/peers/accept`: the statement of a node that its key has changed, as `volary identity rotate --node`
/// wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AcceptRequest {
    /// The statement, base64.
    pub statement: String,
}

/// `GET /v1/peers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PeerList {
    /// This node, as its peers know it.
    pub node: NodeIdentity,
    /// The peers, in the order of the manifest.
    pub peers: Vec<PeerView>,
    /// Nodes that are no peers any more and that messages still wait for.
    #[serde(default)]
    pub stranded: Vec<StrandedView>,
}

/// Messages for a node that is not in `messaging.peers` any more: they go out once it is there again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StrandedView {
    /// What the peer was called.
    pub peer: String,
    /// How many messages wait.
    pub items: u64,
}

/// This node, as its peers know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeIdentity {
    /// Name of the node.
    #[schemars(with = "String")]
    pub name: Name,
    /// SHA-256 of its public key, 64 hex digits.
    pub id: String,
    /// Its public key, 64 hex digits.
    pub key: String,
    /// Where peers may connect; null: nowhere.
    pub listen: Option<String>,
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PeerView {
    /// What this node calls it.
    #[schemars(with = "String")]
    pub name: Name,
    /// SHA-256 of its public key, 64 hex digits.
    pub id: String,
    /// Where it is called; null: it calls here.
    pub address: Option<String>,
    /// Tenants whose messages go to it and are taken from it.
    #[schemars(with = "Vec<String>")]
    pub tenants: Vec<Tenant>,
    /// How the connection to it is: `connecting`, `connected`, `failed`, or `waits` for one that is not called.
    pub state: String,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub since: Option<Timestamp>,
    /// Why it is not connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// What waits to be sent to it.
    pub outbox: InboxStats,
    /// Its agents that are known here.
    pub agents: u64,
    /// What became of messages that were sent to it at most once, since this node started.
    pub once: OnceView,
    /// Messages of it that were taken in and that it has not confirmed yet.
    pub unconfirmed: u64,
}

/// Messages that were sent to a peer at most once: `offered` is the sum of the others and of those on their way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OnceView {
    /// Messages that were to be sent.
    pub offered: u64,
    /// The peer has them.
    pub delivered: u64,
    /// The peer turned them back.
    pub refused: u64,
    /// Dropped here, or never answered.
    pub dropped: u64,
}
