//! Peers whose key has changed: the statements that were accepted, `peer-key/<peer>` in the store.

use serde_json::json;
use volary_kernel::{Name, Tenant, sign::PublicKey};
use volary_messaging::{AgentId, identity::Succession};
use volary_store::{Batch, Entry, Expect, Key, SharedStore, StoreError};

/// A person has accepted that a peer's key was replaced.
const SUCCEEDED: &str = "peer.succeeded";

/// Statements that are remembered of one peer; older ones have been put into its manifest by then.
const STATEMENTS_MAX: usize = 16;

fn key(peer: &Name) -> Key {
    Key::new(format!("peer-key/{peer}")).expect("a prefix and a name make a key")
}

async fn statements(store: &SharedStore, peer: &Name) -> Result<Vec<Succession>, StoreError> {
    let Some(record) = store.get(&key(peer)).await? else {
        return Ok(Vec::new());
    };
    let text = String::from_utf8_lossy(&record.value);
    let read = text.lines().map(str::parse).collect::<Result<_, _>>();
    read.map_err(|error| StoreError::Corrupt {
        what: format!("record `{}`: {error}", record.key),
        seq: None,
    })
}

/// The key of a peer today: the one in the manifest, or what it was replaced by since.
pub(super) async fn followed(
    store: &SharedStore,
    peer: &Name,
    mut key: PublicKey,
) -> Result<PublicKey, StoreError> {
    for statement in statements(store, peer).await? {
        if *statement.old() == key && statement.verify().is_ok() {
            key = *statement.new_key();
        }
    }
    Ok(key)
}

/// Remembers a statement that was accepted, and says so in the journal.
pub(super) async fn remember(
    store: &SharedStore,
    (tenant, peer): (&Tenant, &Name),
    statement: &Succession,
) -> Result<(), StoreError> {
    let mut all = statements(store, peer).await?;
    all.push(statement.clone());
    let first = all.len().saturating_sub(STATEMENTS_MAX);
    let lines: Vec<String> = all[first..].iter().map(ToString::to_string).collect();
    let mut tx = Batch::new();
    tx.put(key(peer), lines.join("\n").into_bytes(), Expect::Any);
    let body = json!({
        "v": 1,
        "peer": peer,
        "old": AgentId::of(statement.old()),
        "id": AgentId::of(statement.new_key()),
    });
    tx.append(Entry::new(SUCCEEDED, tenant.clone(), body.to_string()));
    store.commit(tx).await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use volary_kernel::{SystemClock, Timestamp};
    use volary_messaging::Identity;
    use volary_store::{MemoryConfig, MemoryStore};

    use super::*;

    #[tokio::test]
    async fn a_key_is_followed_from_statement_to_statement_and_no_others() {
        let name = |name: &str| Name::new(name).unwrap();
        let store = MemoryStore::new(MemoryConfig::new(name("f")), SystemClock::shared());
        let store: SharedStore = Arc::new(store);
        let keys: Vec<Identity> = (0..20).map(|_| Identity::generate().unwrap()).collect();
        for pair in keys.windows(2) {
            let statement = pair[0].hand_over(&pair[1], Timestamp::from_micros(1));
            let peer = (&Tenant::default(), &name("east"));
            remember(&store, peer, &statement).await.unwrap();
        }
        let last = keys[19].public();
        let followed = async |peer: &str, at: usize| {
            followed(&store, &name(peer), keys[at].public())
                .await
                .unwrap()
        };
        assert_eq!(followed("east", 10).await, last);
        assert_eq!(followed("east", 19).await, last);
        assert_eq!(followed("east", 0).await, keys[0].public(), "bounded");
        assert_eq!(followed("west", 10).await, keys[10].public());
    }
}
