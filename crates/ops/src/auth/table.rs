//! The link tokens in force: which replica each speaks for.

use std::{collections::HashMap, sync::Arc};

use parking_lot::RwLock;
use subtle::ConstantTimeEq as _;
use thiserror::Error;
use volary_kernel::secret::Secret;

use super::token::{LINK_PREFIX, link_id, random_hex};
use crate::LinkPeer;

/// Most link tokens in force at a time: far above the replicas one node can run.
const MAX_TOKENS: usize = 10_000;

/// No more link tokens can be issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{MAX_TOKENS} link tokens are in force, which is the limit")]
pub struct TableFull;

#[derive(Default)]
struct Tokens {
    /// By the public part of the token.
    by_id: HashMap<String, (Secret, LinkPeer)>,
    /// The public part of the one token that each replica has.
    by_peer: HashMap<LinkPeer, String>,
}

/// Issues and revokes link tokens; clones share the table.
///
/// A replica has one token at a time: issuing again revokes the one before. Tokens live in memory only and end with
/// the node.
#[derive(Clone, Default)]
pub struct TokenTable(Arc<RwLock<Tokens>>);

impl std::fmt::Debug for TokenTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TokenTable({} tokens)", self.len())
    }
}

impl TokenTable {
    /// A new token for `peer`; its earlier one is no longer valid.
    ///
    /// # Errors
    /// [`TableFull`] at 10,000 tokens.
    pub fn issue(&self, peer: LinkPeer) -> Result<Secret, TableFull> {
        let id = link_id();
        let token = Secret::new(format!("{LINK_PREFIX}{id}_{}", random_hex()));
        let mut tokens = self.0.write();
        if tokens.by_id.len() >= MAX_TOKENS && !tokens.by_peer.contains_key(&peer) {
            return Err(TableFull);
        }
        if let Some(earlier) = tokens.by_peer.insert(peer.clone(), id.clone()) {
            tokens.by_id.remove(&earlier);
        }
        tokens.by_id.insert(id, (token.clone(), peer));
        Ok(token)
    }

    /// Ends the token of `peer`; says whether there was one.
    pub fn revoke(&self, peer: &LinkPeer) -> bool {
        let mut tokens = self.0.write();
        let id = tokens.by_peer.remove(peer);
        id.is_some_and(|id| tokens.by_id.remove(&id).is_some())
    }

    /// Whom `token` speaks for. The secret part is compared in constant time.
    pub fn peer(&self, token: &str) -> Option<LinkPeer> {
        let (id, _) = token.strip_prefix(LINK_PREFIX)?.split_once('_')?;
        let tokens = self.0.read();
        let (known, peer) = tokens.by_id.get(id)?;
        bool::from(known.expose().as_bytes().ct_eq(token.as_bytes())).then(|| peer.clone())
    }

    /// Tokens in force.
    pub fn len(&self) -> usize {
        self.0.read().by_id.len()
    }

    /// Whether no token is in force.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(replica: &str) -> LinkPeer {
        let name = |text: &str| text.parse().unwrap();
        LinkPeer {
            tenant: volary_kernel::Tenant::default(),
            agent: name("indexer"),
            replica: name(replica),
        }
    }

    #[test]
    fn a_token_speaks_for_its_replica_until_revoked_or_replaced() {
        let table = TokenTable::default();
        let first = table.issue(peer("indexer-0")).unwrap();
        let other = table.issue(peer("indexer-1")).unwrap();
        assert_eq!(table.peer(first.expose()), Some(peer("indexer-0")));
        let second = table.issue(peer("indexer-0")).unwrap();
        assert_eq!(table.peer(first.expose()), None);
        assert_eq!(table.peer(second.expose()), Some(peer("indexer-0")));
        assert!(table.revoke(&peer("indexer-0")) && !table.revoke(&peer("indexer-0")));
        assert_eq!((table.peer(second.expose()), table.len()), (None, 1));
        assert_eq!(table.peer(other.expose()), Some(peer("indexer-1")));
    }

    #[test]
    fn a_token_with_a_wrong_digit_or_a_cut_end_is_nobody() {
        let table = TokenTable::default();
        let token = table.issue(peer("indexer-0")).unwrap();
        let last = if token.expose().ends_with('0') {
            "1"
        } else {
            "0"
        };
        let wrong = format!("{}{last}", &token.expose()[..token.expose().len() - 1]);
        for text in [wrong.as_str(), &token.expose()[..40], "vlk__", "vlk_", ""] {
            assert_eq!(table.peer(text), None, "{text}");
        }
        assert!(!format!("{table:?}").contains("vlk_"));
    }
}
