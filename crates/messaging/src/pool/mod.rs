//! Pools: groups of agents, one of which gets each message sent to the pool, and all of which see its tasks.
//!
//! ```text
//! create ─▶ Pool{admission, members} ◀── join (open, on the list, or with the token), leave: compare and set
//!                    │ on commit
//!                    ▼
//!              routes of the inboxes: a message to the pool goes to the member with the least to do
//! ```
//! One record for each, `pool/<tenant>/<name>`. Who joins is who the node says it is; the token is kept as a salted hash and
//! compared in constant time.

mod manager;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use volary_kernel::{
    clock::Timestamp,
    id::{Name, Tenant},
    secret::Secret,
};
use volary_store::StoreError;

pub use self::manager::{Created, PoolEvent, PoolManager};

/// Most members of one pool.
pub const MEMBERS_MAX: usize = 10_000;
/// Most pools of one tenant.
pub const POOLS_MAX: usize = 1_000;
/// Fewest bytes of a pool's token: shorter ones are guessed.
pub const TOKEN_MIN: usize = 16;

/// Whom a new pool lets in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Admit {
    /// Every agent of the tenant.
    #[default]
    Open,
    /// These agents.
    AllowList(BTreeSet<Name>),
    /// Whoever shows this token; at least [`TOKEN_MIN`] bytes.
    Token(Secret),
}

/// Whom a pool lets in, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolAdmission {
    /// Every agent of the tenant.
    Open,
    /// These agents.
    AllowList(BTreeSet<Name>),
    /// Whoever shows the token with this hash.
    Token(TokenHash),
}

impl PoolAdmission {
    /// The word in JSON and in the journal.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::AllowList(_) => "allow_list",
            Self::Token(_) => "token",
        }
    }
}

/// A salted hash of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenHash {
    salt: String,
    hash: String,
}

impl TokenHash {
    /// The hash of `token` with a new salt.
    fn of(token: &Secret) -> Self {
        let salt = hex::encode(volary_kernel::Uid::generate().as_bytes());
        let hash = digest(&salt, token.expose()).to_hex().to_string();
        Self { salt, hash }
    }

    /// Whether `token` is the one. Takes the same time for every wrong one.
    fn is(&self, token: &str) -> bool {
        let stored = blake3::Hash::from_hex(&self.hash);
        // Comparing two hashes takes constant time.
        stored.is_ok_and(|stored| stored == digest(&self.salt, token))
    }
}

fn digest(salt: &str, token: &str) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_derive_key("volary pool token v1");
    hasher
        .update(salt.as_bytes())
        .update(b"\0")
        .update(token.as_bytes());
    hasher.finalize()
}

/// How a member came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Via {
    /// Its manifest says so; it leaves when the manifest no longer does.
    Manifest,
    /// It joined, or an operator let it in.
    Joined,
}

/// A pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Whose it is.
    pub tenant: Tenant,
    /// Its name.
    pub name: Name,
    /// Whom it lets in.
    pub admission: PoolAdmission,
    /// Its members.
    pub members: BTreeMap<Name, Via>,
    /// Who created it.
    pub created_by: Name,
    /// When.
    pub created_at: Timestamp,
}

impl Pool {
    /// Whether `agent` may join, showing `token`.
    fn admits(&self, agent: &Name, token: Option<&str>) -> bool {
        match &self.admission {
            PoolAdmission::Open => true,
            PoolAdmission::AllowList(list) => list.contains(agent),
            PoolAdmission::Token(hash) => token.is_some_and(|token| hash.is(token)),
        }
    }

    /// Whether `admit` says the same as was said when it was created.
    fn is_like(&self, admit: &Admit) -> bool {
        match (&self.admission, admit) {
            (PoolAdmission::Open, Admit::Open) => true,
            (PoolAdmission::AllowList(had), Admit::AllowList(list)) => had == list,
            (PoolAdmission::Token(had), Admit::Token(token)) => had.is(token.expose()),
            _ => false,
        }
    }
}

/// Why something about a pool is refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PoolError {
    /// No such pool.
    #[error("pool `{0}` is not known")]
    Unknown(Name),
    /// There is one of that name that lets others in.
    #[error("pool `{0}` exists with another admission; its members are kept")]
    Conflict(Name),
    /// The agent may not join.
    #[error("pool `{pool}` does not let `{agent}` in: {why}")]
    NotAdmitted {
        /// The pool.
        pool: Name,
        /// Who asked.
        agent: Name,
        /// What is missing.
        why: &'static str,
    },
    /// A token that is too short.
    #[error("a pool's token must have at least {TOKEN_MIN} bytes, found {0}")]
    ShortToken(usize),
    /// No room.
    #[error("{limit} {what} are the limit")]
    Full {
        /// What there is too much of.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
    /// The store refused or failed, or others changed the pool all the time.
    #[error(transparent)]
    Store(#[from] StoreError),
}
