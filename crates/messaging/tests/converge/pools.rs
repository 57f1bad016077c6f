//! Pools and discovery: who is in, who gets what is sent to a pool, who is there.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use volary_kernel::{
    ManualClock,
    id::{Name, Tenant},
    metric::Metrics,
    secret::{Redactor, Secret},
};
use volary_messaging::{
    Admission, AgentId, Capability, Descriptor, Identity, Message, Sender, SignedDescriptor, Topic,
    discovery::{DescriptorQuery, Discovery, DiscoveryError, LEASE},
    inbox::{InboxSpec, Inboxes, Mailbox},
    pool::{Admit, Created, PoolError, PoolManager, Via},
    post::{Origin, Post, PostConfig},
};
use volary_store::{Batch, MemoryConfig, MemoryStore, Queues, SharedStore};

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn tenant() -> Tenant {
    Tenant::default()
}

fn store(clock: &ManualClock) -> SharedStore {
    Arc::new(MemoryStore::new(
        MemoryConfig::new(name("node")),
        clock.shared(),
    ))
}

async fn pools(store: &SharedStore) -> PoolManager {
    PoolManager::open(store.clone(), None, &Metrics::default())
        .await
        .unwrap()
}

fn members(pools: &PoolManager, pool: &str) -> Vec<String> {
    let pool = pools.get(&tenant(), &name(pool)).unwrap();
    pool.members.keys().map(ToString::to_string).collect()
}

/// Pools (improve): creating a pool again keeps its members; another admission under its name is refused.
#[tokio::test]
async fn creating_a_pool_again_wipes_nothing() {
    let store = store(&ManualClock::default());
    let pools = pools(&store).await;
    let (p, by) = (name("p"), name("boss"));
    assert_eq!(
        pools.create(&tenant(), &p, Admit::Open, &by).await.unwrap(),
        Created::Now
    );
    assert!(pools.join(&tenant(), &p, &name("a"), None).await.unwrap());
    assert!(!pools.join(&tenant(), &p, &name("a"), None).await.unwrap());
    assert_eq!(
        pools.create(&tenant(), &p, Admit::Open, &by).await.unwrap(),
        Created::Before
    );
    let other = Admit::AllowList([name("b")].into());
    let refused = pools.create(&tenant(), &p, other, &by).await;
    assert!(
        matches!(refused, Err(PoolError::Conflict(_))),
        "{refused:?}"
    );
    assert_eq!(members(&pools, "p"), ["a"]);
}

/// Pools (improve): two managers on one store lose no member, and a new one knows all.
#[tokio::test]
async fn two_managers_lose_no_member() {
    let store = store(&ManualClock::default());
    let (one, two) = (pools(&store).await, pools(&store).await);
    let p = name("p");
    one.create(&tenant(), &p, Admit::Open, &name("boss"))
        .await
        .unwrap();
    let (of, names): (_, Vec<Name>) = (tenant(), (0..20).map(|n| name(&format!("a{n}"))).collect());
    let joins = names.iter().enumerate().map(|(index, agent)| {
        let pools = if index % 2 == 0 { &one } else { &two };
        pools.join(&of, &p, agent, None)
    });
    for joined in futures_util::future::join_all(joins).await {
        assert!(joined.unwrap());
    }
    assert_eq!(members(&pools(&store).await, "p").len(), 20);
}

/// Pools: open, list and token decide who joins; the token is not kept.
#[tokio::test]
async fn admission_decides_who_joins() {
    let store = store(&ManualClock::default());
    let pools = pools(&store).await;
    let (listed, closed, by) = (name("listed"), name("closed"), name("boss"));
    let list = Admit::AllowList([name("a")].into());
    pools.create(&tenant(), &listed, list, &by).await.unwrap();
    assert!(
        pools
            .join(&tenant(), &listed, &name("a"), None)
            .await
            .unwrap()
    );
    let refused = pools
        .join(&tenant(), &listed, &name("b"), None)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("not on the list"), "{refused}");

    let word = "correct horse battery";
    let short = pools
        .create(&tenant(), &closed, Admit::Token(Secret::new("short")), &by)
        .await;
    assert!(matches!(short, Err(PoolError::ShortToken(5))));
    let token = || Admit::Token(Secret::new(word));
    pools
        .create(&tenant(), &closed, token(), &by)
        .await
        .unwrap();
    assert_eq!(
        pools
            .create(&tenant(), &closed, token(), &by)
            .await
            .unwrap(),
        Created::Before
    );
    for (shown, joins) in [
        (None, false),
        (Some("correct horse batterz"), false),
        (Some(word), true),
    ] {
        let joined = pools.join(&tenant(), &closed, &name("a"), shown).await;
        assert_eq!(joined.is_ok(), joins, "{shown:?}: {joined:?}");
    }
    let kept = store.scan("pool/", None, 9).await.unwrap();
    assert!(
        kept.iter()
            .all(|record| !String::from_utf8_lossy(&record.value).contains(word))
    );
    assert!(
        pools
            .leave(&tenant(), &closed, &name("a"), &by)
            .await
            .unwrap()
    );
    assert!(
        !pools
            .leave(&tenant(), &closed, &name("a"), &by)
            .await
            .unwrap()
    );
    let elsewhere: Tenant = "other".parse().unwrap();
    let unknown = pools.join(&elsewhere, &listed, &name("a"), None).await;
    assert!(
        matches!(unknown, Err(PoolError::Unknown(_))),
        "another tenant has no such pool"
    );
}

/// Pools: who is a member by its manifest leaves when the manifest no longer says so; who joined stays.
#[tokio::test]
async fn manifests_are_followed() {
    let store = store(&ManualClock::default());
    let pools = pools(&store).await;
    let by = name("node");
    let wanted = |agents: &[&str]| {
        let agents: BTreeSet<Name> = agents.iter().map(|agent| name(agent)).collect();
        [((tenant(), name("p")), agents)].into()
    };
    pools
        .follow_manifests(&wanted(&["a", "b"]), &by)
        .await
        .unwrap();
    pools
        .join(&tenant(), &name("p"), &name("c"), None)
        .await
        .unwrap();
    pools.follow_manifests(&wanted(&["b"]), &by).await.unwrap();
    assert_eq!(members(&pools, "p"), ["b", "c"]);
    assert_eq!(
        pools.get(&tenant(), &name("p")).unwrap().members[&name("b")],
        Via::Manifest
    );
}

struct Mail {
    store: SharedStore,
    post: Post,
    pools: PoolManager,
    boxes: Vec<Mailbox>,
}

async fn mail(room: usize) -> Mail {
    let clock = ManualClock::default();
    let (store, metrics) = (store(&clock), Metrics::default());
    let queues = Queues::open(store.clone()).await.unwrap();
    let inboxes = Inboxes::new(queues, store.clone(), Redactor::default(), &metrics);
    let boxes = ["a", "b", "c"].map(|agent| {
        let spec = InboxSpec::new(tenant(), name(agent), Vec::new());
        inboxes
            .open(InboxSpec {
                max_items: room,
                ..spec
            })
            .unwrap()
    });
    let pools = PoolManager::open(store.clone(), Some(inboxes.clone()), &metrics)
        .await
        .unwrap();
    let config = PostConfig::default();
    let post = Post::open(inboxes, store.clone(), config, clock.shared(), &metrics)
        .await
        .unwrap();
    Mail {
        store,
        post,
        pools,
        boxes: boxes.into(),
    }
}

impl Mail {
    async fn send(&self, from: &str) -> (Admission, Vec<String>) {
        let sender = Sender::new(AgentId::from_bytes([7; 32]), name(from), tenant());
        let now = self.store.clock().wall();
        let message = Message::builder(sender)
            .pool(name("p"))
            .json("work")
            .unwrap();
        let message = message.build(now).unwrap();
        let (posted, _) = self.post.send(message, Origin::Minted).await.unwrap();
        let to = posted.deliveries.iter().map(|(agent, _)| agent.to_string());
        (posted.admission, to.collect())
    }
}

/// Pools: a message to a pool goes to one member, in turn, and to the one with the least to do first.
#[tokio::test]
async fn a_message_to_a_pool_goes_to_one_member_fairly() {
    let mail = mail(10).await;
    let p = name("p");
    assert_eq!(
        mail.send("x").await,
        (Admission::NoRoute, vec![]),
        "there is no such pool"
    );
    mail.pools
        .create(&tenant(), &p, Admit::Open, &name("boss"))
        .await
        .unwrap();
    assert_eq!(
        mail.send("x").await.0,
        Admission::NoRoute,
        "nobody is in it"
    );
    for agent in ["a", "b", "c", "elsewhere"] {
        mail.pools
            .join(&tenant(), &p, &name(agent), None)
            .await
            .unwrap();
    }
    let mut got = BTreeSet::new();
    for _ in 0..3 {
        let (admission, to) = mail.send("x").await;
        assert_eq!((admission, to.len()), (Admission::Queued, 1));
        got.extend(to);
    }
    assert_eq!(got.len(), 3, "each got one: {got:?}");
    // `b` has done its work and gets the next.
    let claimed = mail.boxes[1]
        .claim("b", 1, Duration::ZERO)
        .await
        .unwrap()
        .remove(0);
    let mut tx = Batch::new();
    mail.boxes[1].ack(&mut tx, &claimed, 0).unwrap();
    mail.store.commit(tx).await.unwrap();
    assert_eq!(mail.send("x").await.1, ["b"]);
    for _ in 0..6 {
        assert_ne!(mail.send("a").await.1, ["a"], "not to its sender");
    }
}

/// Pools: a full member is passed over; only when all are full the sender is refused.
#[tokio::test]
async fn a_full_member_is_passed_over() {
    let mail = mail(2).await;
    let p = name("p");
    mail.pools
        .create(&tenant(), &p, Admit::Open, &name("boss"))
        .await
        .unwrap();
    for agent in ["a", "b", "c"] {
        mail.pools
            .join(&tenant(), &p, &name(agent), None)
            .await
            .unwrap();
    }
    for _ in 0..6 {
        assert_eq!(mail.send("x").await.0, Admission::Queued);
    }
    assert!(matches!(mail.send("x").await.0, Admission::Refused(_)));
    mail.pools
        .leave(&tenant(), &p, &name("a"), &name("boss"))
        .await
        .unwrap();
    mail.pools
        .delete(&tenant(), &p, &name("boss"))
        .await
        .unwrap();
    assert_eq!(mail.send("x").await.0, Admission::NoRoute);
}

fn signed(identity: &Identity, clock: &ManualClock, agent: &str, can: &[&str]) -> SignedDescriptor {
    use volary_kernel::clock::Clock;
    let now = clock.wall();
    let said = Descriptor {
        tenant: tenant(),
        name: name(agent),
        key: identity.public(),
        topics: vec![
            Topic::new("notes").unwrap(),
            Topic::new(&format!("to/{agent}")).unwrap(),
        ],
        capabilities: can
            .iter()
            .map(|can| Capability::new(can).unwrap())
            .collect(),
        pools: vec![name("crew")],
        issued_at: now,
        expires_at: now + Duration::from_secs(3600),
        succession: None,
    };
    SignedDescriptor::sign(said, identity).unwrap()
}

fn found(discovery: &Discovery, query: &DescriptorQuery) -> Vec<String> {
    let found = discovery.query(&tenant(), query);
    found
        .into_iter()
        .map(|descriptor| descriptor.name.to_string())
        .collect()
}

/// T9 (task claim TTL): a registration is gone when its agent says so, and lapses when it can no longer say anything.
#[tokio::test]
async fn a_registration_ends_with_its_agent() {
    let clock = ManualClock::default();
    let store = store(&clock);
    let discovery = Discovery::open(store.clone()).await.unwrap();
    let keys = [(); 3].map(|()| Identity::generate().unwrap());
    let all = [
        signed(&keys[0], &clock, "a", &["read", "write"]),
        signed(&keys[1], &clock, "b", &["read"]),
        signed(&keys[2], &clock, "c", &[]),
    ];
    discovery.register(&all).await.unwrap();
    let can = |word: &str| Capability::new(word).unwrap();
    let query = |topics: &[&str], words: &[&str], pool: Option<&str>| DescriptorQuery {
        topics: topics
            .iter()
            .map(|topic| Topic::new(topic).unwrap())
            .collect(),
        capabilities: words.iter().map(|word| can(word)).collect(),
        pool: pool.map(name),
    };
    assert_eq!(found(&discovery, &query(&[], &[], None)), ["a", "b", "c"]);
    assert_eq!(
        found(&discovery, &query(&["to/a", "to/c"], &[], None)),
        ["a", "c"]
    );
    assert_eq!(
        found(
            &discovery,
            &query(&["notes"], &["read", "write"], Some("crew"))
        ),
        ["a"]
    );
    assert_eq!(found(&discovery, &query(&[], &[], Some("none"))), [""; 0]);
    assert!(
        discovery
            .query(&"other".parse().unwrap(), &query(&[], &[], None))
            .is_empty()
    );

    discovery.unregister(&tenant(), &name("c")).await.unwrap();
    clock.advance(LEASE / 2);
    discovery.register(&all[..1]).await.unwrap();
    clock.advance(LEASE / 2 + Duration::from_secs(1));
    assert_eq!(
        found(&discovery, &query(&[], &[], None)),
        ["a"],
        "b was not renewed"
    );
    let again = Discovery::open(store).await.unwrap();
    assert_eq!(
        found(&again, &query(&[], &[], None)),
        ["a"],
        "and so a new one sees it"
    );
}

/// Discovery (improve): nobody registers under a name that another key holds, and nobody for somebody else.
#[tokio::test]
async fn a_name_belongs_to_its_key() {
    let clock = ManualClock::default();
    let discovery = Discovery::open(store(&clock)).await.unwrap();
    let (one, two) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    discovery
        .register(&[signed(&one, &clock, "a", &[])])
        .await
        .unwrap();
    let thief = discovery.register(&[signed(&two, &clock, "a", &[])]).await;
    assert!(matches!(thief, Err(DiscoveryError::Taken(_))), "{thief:?}");
    let mut said = signed(&two, &clock, "a", &[])
        .open(clock.shared().wall())
        .unwrap();
    said.succession = Some(one.hand_over(&two, clock.shared().wall()));
    let successor = SignedDescriptor::sign(said, &two).unwrap();
    discovery.register(&[successor]).await.unwrap();
}
