//! A node as far as messaging goes: store, inboxes, peers, agents. One life of it; the store outlives it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::watch;
use volary_kernel::{
    clock::SharedClock,
    id::{Name, Tenant},
    metric::Metrics,
    secret::Redactor,
    task::Supervisor,
};
use volary_messaging::{
    Identity, IdentityRegistry, InboxSpec, Inboxes, Keyring, Mailbox, Message, Origin, PeerConfig,
    Peers, PeersConfig, Post, PostConfig, Posted, Sender, Topic,
    discovery::{Descriptor, Introduction, SignedDescriptor},
    peer::PeerParts,
    transport::tcp::{PeerSpec, Reception},
};
use volary_store::{Filter, JournalRow, Queues, Seq, SharedStore};

pub fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub fn topic(text: &str) -> Topic {
    text.parse().unwrap()
}

/// What outlives a node: who it is.
#[derive(Clone)]
pub struct Who {
    pub name: Name,
    pub key: Identity,
    /// Agents: name, identity, topics.
    pub agents: Vec<(Name, Identity, Vec<Topic>)>,
}

impl Who {
    pub fn new(node: &str, agents: &[(&str, &[&str])]) -> Self {
        let agent = |(agent, topics): &(&str, &[&str])| {
            let topics = topics.iter().map(|text| topic(text)).collect();
            (name(agent), Identity::generate().unwrap(), topics)
        };
        Self {
            name: name(node),
            key: Identity::generate().unwrap(),
            agents: agents.iter().map(agent).collect(),
        }
    }

    pub fn spec(&self) -> PeerSpec {
        PeerSpec::new(self.name.clone(), self.key.public())
    }

    /// What it says of its agents.
    pub fn introduction(&self, clock: &SharedClock) -> Bytes {
        let now = clock.wall();
        let descriptor = |(name, identity, topics): &(Name, Identity, Vec<Topic>)| {
            let descriptor = Descriptor {
                tenant: Tenant::default(),
                name: name.clone(),
                key: identity.public(),
                topics: topics.clone(),
                capabilities: Vec::new(),
                pools: Vec::new(),
                issued_at: now,
                expires_at: now + Duration::from_secs(86_400),
                succession: None,
            };
            SignedDescriptor::sign(descriptor, identity).unwrap()
        };
        let all = self.agents.iter().map(descriptor).collect();
        Introduction::new(all).unwrap().encode()
    }

    pub fn sender(&self, agent: &str) -> Sender {
        let found = self.agents.iter().find(|(name, ..)| name.as_str() == agent);
        let (name, identity, _) = found.unwrap();
        Sender::new(identity.id(), name.clone(), Tenant::default())
    }
}

/// One life.
pub struct Node {
    pub who: Who,
    pub store: SharedStore,
    pub queues: Queues,
    pub inboxes: Inboxes,
    pub identities: IdentityRegistry,
    pub peers: Peers,
    pub post: Post,
    pub tasks: Supervisor,
    pub clock: SharedClock,
}

/// What a test may want otherwise.
#[derive(Clone)]
pub struct Setup {
    pub inbox_items: usize,
    pub at_most_once: Vec<Topic>,
    pub give_up: Option<Duration>,
    pub outbox_items: usize,
    /// Tenants that are agreed with the peer; the default one if none is named.
    pub tenants: Vec<Tenant>,
    pub post: PostConfig,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            inbox_items: 1_000_000,
            at_most_once: vec![topic("tick")],
            give_up: None,
            outbox_items: 1_000_000,
            tenants: vec![Tenant::default()],
            post: PostConfig::default(),
        }
    }
}

impl Node {
    pub async fn start(who: &Who, peer: &Who, store: SharedStore, setup: &Setup) -> Self {
        let clock = store.clock().clone();
        let metrics = Metrics::default();
        let queues = Queues::open(store.clone()).await.unwrap();
        let inboxes = Inboxes::new(queues.clone(), store.clone(), Redactor::default(), &metrics);
        let identities = IdentityRegistry::open(store.clone()).await.unwrap();
        let keys = Keyring::default();
        for (name, identity, topics) in &who.agents {
            keys.insert(identity.clone());
            let (id, public) = (identity.id(), identity.public());
            let registered = identities.register(id, public, name.clone(), Tenant::default());
            registered.await.unwrap();
            let spec = InboxSpec {
                max_items: setup.inbox_items,
                ..InboxSpec::new(Tenant::default(), name.clone(), topics.clone())
            };
            inboxes.open(spec).unwrap();
        }
        let config = PeersConfig {
            peers: vec![PeerConfig {
                give_up: setup.give_up,
                max_items: setup.outbox_items,
                ..PeerConfig::new(PeerSpec {
                    tenants: setup.tenants.clone(),
                    ..peer.spec()
                })
            }],
            at_most_once: setup.at_most_once.iter().cloned().collect(),
        };
        let parts = PeerParts {
            store: store.clone(),
            queues: queues.clone(),
            identities: identities.clone(),
            keys,
            clock: clock.clone(),
            metrics: metrics.clone(),
        };
        let peers = Peers::open(config, parts).await.unwrap();
        let config = PostConfig {
            remote: Some(peers.routes()),
            ..setup.post.clone()
        };
        let post = Post::open(
            inboxes.clone(),
            store.clone(),
            config,
            clock.clone(),
            &metrics,
        );
        Self {
            who: who.clone(),
            post: post.await.unwrap(),
            store,
            queues,
            inboxes,
            identities,
            peers,
            tasks: Supervisor::new(),
            clock,
        }
    }

    pub fn reception(&self) -> Reception {
        let introduction = watch::channel(self.who.introduction(&self.clock)).1;
        self.peers.reception(&self.post, introduction, &self.tasks)
    }

    pub fn mailbox(&self, agent: &str) -> Mailbox {
        let mailbox = self.inboxes.mailbox(&Tenant::default(), &name(agent));
        mailbox.unwrap()
    }

    pub fn message(&self, from: &str, about: &str, body: &str) -> Message {
        let draft = Message::builder(self.who.sender(from)).topic(topic(about));
        draft.json(body).unwrap().build(self.clock.wall()).unwrap()
    }

    pub async fn send(&self, message: Message) -> Posted {
        self.post.send(message, Origin::Minted).await.unwrap().0
    }

    /// Everything in the journal of these kinds.
    pub async fn journal(&self, kind: &str) -> Vec<JournalRow> {
        self.rows(&Filter::kind(kind)).await
    }

    /// Everything in the journal that passes.
    pub async fn rows(&self, filter: &Filter) -> Vec<JournalRow> {
        let (mut rows, mut from) = (Vec::new(), Seq::FIRST);
        loop {
            let page = self.store.read(from, filter, 4096).await.unwrap();
            rows.extend(page.rows);
            if page.end {
                return rows;
            }
            from = page.next;
        }
    }

    /// Ends this life at the next point where anything waits.
    pub async fn crash(self) -> (SharedStore, Peers) {
        self.tasks.drain(Duration::ZERO).await;
        (self.store.clone(), self.peers.clone())
    }
}

/// The text of a message.
pub fn text_of(message: &Message) -> String {
    message.payload().parse_json().unwrap()
}

/// A store that may be shared by lives.
pub fn memory(node: &str, clock: SharedClock) -> SharedStore {
    let config = volary_store::MemoryConfig {
        node: name(node),
        max_record_bytes: 1 << 30,
        max_journal_bytes: 1 << 30,
    };
    Arc::new(volary_store::MemoryStore::new(config, clock))
}

/// Whether the full size of the tests is asked for: `VOLARY_TEST_FULL=1`.
pub fn is_full() -> bool {
    told("VOLARY_TEST_FULL").is_some()
}

/// What a test is told by whoever runs it.
#[expect(
    clippy::disallowed_methods,
    reason = "tests may be asked for another size"
)]
pub fn told(what: &str) -> Option<String> {
    std::env::var(what).ok()
}

/// Says how far a long test is, or how to run it again.
#[expect(clippy::print_stderr, reason = "a long test shows how far it is")]
pub fn say(what: std::fmt::Arguments<'_>) {
    eprintln!("{what}");
}
