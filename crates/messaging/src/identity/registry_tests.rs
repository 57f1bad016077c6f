//! Tests of the register of identities.

use std::sync::Arc;

use volary_kernel::clock::ManualClock;
use volary_store::{Filter, MemoryConfig, MemoryStore, Seq};

use super::*;
use crate::identity::table::REGISTRY_PEER_MAX;
use crate::{identity::Identity, test_util::name};

const AT: Timestamp = Timestamp::from_micros(7);

async fn register(
    registry: &IdentityRegistry,
    identity: &Identity,
    agent: &str,
) -> Result<(), RegistryError> {
    registry
        .register(
            identity.id(),
            identity.public(),
            name(agent),
            Tenant::default(),
        )
        .await
}

#[tokio::test]
async fn an_id_that_is_not_the_hash_of_its_key_is_refused() {
    let registry = IdentityRegistry::default();
    let (one, two) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let refused = registry
        .register(one.id(), two.public(), name("a"), Tenant::default())
        .await;
    assert_eq!(
        refused,
        Err(RegistryError::Mismatch {
            claimed: one.id(),
            actual: two.id()
        })
    );
    assert!(registry.is_empty());
}

#[tokio::test]
async fn a_revoked_key_is_not_believed_and_can_not_be_registered_again() {
    let registry = IdentityRegistry::default();
    let identity = Identity::generate().unwrap();
    register(&registry, &identity, "a").await.unwrap();
    assert_eq!(
        registry.trusted(&identity.id()).unwrap().key,
        identity.public()
    );
    registry.revoke(identity.id(), AT).await.unwrap();
    let revoked = RegistryError::Revoked {
        id: identity.id(),
        at: AT,
    };
    assert_eq!(registry.trusted(&identity.id()), Err(revoked.clone()));
    assert_eq!(register(&registry, &identity, "a").await, Err(revoked));
}

#[tokio::test]
async fn one_key_speaks_for_one_agent() {
    let registry = IdentityRegistry::default();
    let identity = Identity::generate().unwrap();
    register(&registry, &identity, "a").await.unwrap();
    assert_eq!(register(&registry, &identity, "a").await, Ok(()));
    assert!(matches!(
        register(&registry, &identity, "b").await,
        Err(RegistryError::Taken { .. })
    ));
}

#[tokio::test]
async fn a_successor_takes_the_name_and_the_old_key_is_revoked() {
    let registry = IdentityRegistry::default();
    let (old, new) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    register(&registry, &old, "a").await.unwrap();
    let statement = old.hand_over(&new, AT);
    assert_eq!(registry.succeed(&statement).await, Ok(new.id()));
    assert_eq!(registry.trusted(&new.id()).unwrap().name, name("a"));
    assert!(matches!(
        registry.trusted(&old.id()),
        Err(RegistryError::Revoked { .. })
    ));
    assert!(matches!(
        registry.succeed(&statement).await,
        Err(RegistryError::Revoked { .. })
    ));
}

fn store() -> SharedStore {
    Arc::new(MemoryStore::new(
        MemoryConfig::new(name("b")),
        ManualClock::default().shared(),
    ))
}

fn introduced(identity: &Identity, agent: &str) -> Introduced {
    Introduced {
        id: identity.id(),
        key: identity.public(),
        name: name(agent),
        tenant: Tenant::default(),
    }
}

async fn introduce(
    registry: &IdentityRegistry,
    peer: &str,
    agents: &[Introduced],
) -> Vec<Result<(), RegistryError>> {
    registry
        .introduce(&name(peer), (agents, &[]), AT, |_, _, _| {})
        .await
        .unwrap()
}

fn new() -> Identity {
    Identity::generate().unwrap()
}

#[tokio::test]
async fn what_was_registered_revoked_and_succeeded_is_so_after_a_restart() {
    let store = store();
    let (kept, gone, old, next) = (new(), new(), new(), new());
    let registry = IdentityRegistry::open(store.clone()).await.unwrap();
    for (identity, agent) in [(&kept, "kept"), (&gone, "gone"), (&old, "turned")] {
        register(&registry, identity, agent).await.unwrap();
    }
    registry.revoke(gone.id(), AT).await.unwrap();
    registry.succeed(&old.hand_over(&next, AT)).await.unwrap();
    let again = IdentityRegistry::open(store.clone()).await.unwrap();
    assert_eq!(again.all(), registry.all());
    assert!(again.trusted(&kept.id()).is_ok());
    assert_eq!(again.trusted(&next.id()).unwrap().name, name("turned"));
    for revoked in [&gone, &old] {
        assert!(matches!(
            again.trusted(&revoked.id()),
            Err(RegistryError::Revoked { .. })
        ));
    }
    let page = store
        .read(Seq::FIRST, &Filter::kind("identity."), 100)
        .await;
    let kinds: Vec<_> = page.unwrap().rows.into_iter().map(|row| row.kind).collect();
    let registered = "identity.registered";
    assert_eq!(
        kinds,
        [
            registered,
            registered,
            registered,
            "identity.revoked",
            "identity.succeeded"
        ]
    );
}

#[tokio::test]
async fn a_peers_agents_are_those_of_its_last_introduction() {
    let registry = IdentityRegistry::open(store()).await.unwrap();
    let (a, b) = (new(), new());
    let both = [introduced(&a, "a"), introduced(&b, "b")];
    assert_eq!(introduce(&registry, "p", &both).await, [Ok(()), Ok(())]);
    assert_eq!(
        registry.trusted(&a.id()).unwrap().voucher,
        Voucher::Peer(name("p"))
    );
    assert_eq!(introduce(&registry, "p", &both[1..]).await, [Ok(())]);
    assert_eq!(
        registry.trusted(&a.id()),
        Err(RegistryError::Unknown(a.id()))
    );
    assert!(registry.trusted(&b.id()).is_ok());
}

#[tokio::test]
async fn a_new_key_of_a_peers_agent_takes_the_place_of_the_old_one_for_good() {
    let registry = IdentityRegistry::open(store()).await.unwrap();
    let (old, next) = (new(), new());
    introduce(&registry, "p", &[introduced(&old, "a")]).await;
    introduce(&registry, "p", &[introduced(&next, "a")]).await;
    assert!(registry.trusted(&next.id()).is_ok());
    let back = introduce(&registry, "p", &[introduced(&old, "a")]).await;
    assert!(matches!(back[..], [Err(RegistryError::Revoked { .. })]));
}

#[tokio::test]
async fn a_peer_can_not_introduce_what_belongs_to_us_or_to_another_peer() {
    let registry = IdentityRegistry::open(store()).await.unwrap();
    let (ours, theirs, thief) = (new(), new(), new());
    register(&registry, &ours, "ours").await.unwrap();
    introduce(&registry, "p", &[introduced(&theirs, "theirs")]).await;
    let tried = [
        introduced(&thief, "ours"),
        introduced(&ours, "x"),
        introduced(&theirs, "theirs"),
        introduced(&theirs, "y"),
        introduced(&thief, "free"),
        introduced(&thief, "free"),
    ];
    let results = introduce(&registry, "q", &tried).await;
    let taken: Vec<_> = results.iter().map(Result::is_ok).collect();
    assert_eq!(taken, [false, false, false, false, false, false]);
    let honest = introduce(&registry, "q", &[introduced(&thief, "free")]).await;
    assert_eq!(honest, [Ok(())]);
    assert_eq!(registry.trusted(&ours.id()).unwrap().name, name("ours"));
    assert_eq!(
        registry.trusted(&theirs.id()).unwrap().voucher,
        Voucher::Peer(name("p"))
    );
}

#[tokio::test]
async fn a_peer_that_shows_anothers_agents_as_its_own_does_not_keep_them() {
    let registry = IdentityRegistry::open(store()).await.unwrap();
    let agent = new();
    // `thief`, who is asked after `p`, repeats what the agent said of itself to it.
    let shown = introduce(&registry, "thief", &[introduced(&agent, "a")]).await;
    assert_eq!(shown, [Ok(())]);
    let outranked = [name("thief")];
    let own = [introduced(&agent, "a")];
    let own = registry
        .introduce(&name("p"), (&own, &outranked), AT, |_, _, _| {})
        .await;
    assert_eq!(own.unwrap(), [Ok(())]);
    let known = registry.trusted(&agent.id()).unwrap();
    assert_eq!(known.voucher, Voucher::Peer(name("p")));
    let again = introduce(&registry, "thief", &[introduced(&agent, "a")]).await;
    assert!(matches!(again[..], [Err(RegistryError::NameTaken { .. })]));
    // Under another name it is not the thief's either, and that name is nobody's.
    let again = introduce(&registry, "thief", &[introduced(&agent, "b")]).await;
    assert!(matches!(again[..], [Err(RegistryError::Taken { .. })]));
    assert_eq!(registry.named(&Tenant::default(), &name("b")), None);
    assert_eq!(
        registry.trusted(&agent.id()).unwrap().voucher,
        known.voucher
    );
}

#[tokio::test]
async fn a_peer_can_not_fill_the_register_with_keys() {
    let registry = IdentityRegistry::in_memory();
    let voucher = Voucher::Peer(name("flood"));
    let key = new().public();
    let revoked = |index: u32| {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&index.to_be_bytes());
        let known = Known {
            key,
            name: name("a"),
            tenant: Tenant::default(),
            status: Status::Revoked(AT),
            voucher: voucher.clone(),
        };
        Step::Enter(AgentId::from_bytes(id), Box::new(known))
    };
    let most = u32::try_from(REGISTRY_PEER_MAX).unwrap();
    {
        let mut table = registry.shelf.table.write();
        (0..most).for_each(|index| table.apply(revoked(index)));
    }
    let one_more = introduce(&registry, "flood", &[introduced(&new(), "a")]).await;
    assert_eq!(one_more, [Err(RegistryError::PeerFull)]);
    // Others have their room.
    let other = introduce(&registry, "p", &[introduced(&new(), "b")]).await;
    assert_eq!(other, [Ok(())]);
    {
        let mut table = registry.shelf.table.write();
        (most..90_000).for_each(|index| table.apply(revoked(index)));
    }
    let full = introduce(&registry, "q", &[introduced(&new(), "c")]).await;
    assert_eq!(full, [Err(RegistryError::Full)]);
    assert_eq!(register(&registry, &new(), "ours").await, Ok(()));
}
