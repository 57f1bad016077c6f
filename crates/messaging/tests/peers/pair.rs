//! Two nodes with a database each, over TLS on real sockets: cut, killed and opened again, nothing is lost or done twice.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::watch;
use volary_kernel::{
    clock::{SharedClock, SystemClock},
    metric::Metrics,
    testing::eventually,
};
use volary_messaging::{
    Admission,
    event::{message_in, sealed_in},
    frame::Trust,
    transport::tcp::{Link, LinkConfig, ListenConfig, Listener, ListenerConfig, Net, PeerBook},
};
use volary_store::{Batch, SharedStore, SqliteConfig, SqliteStore};

use crate::node::{Node, Setup, Who, is_full, text_of};

fn clock() -> SharedClock {
    SystemClock::shared()
}

async fn open(dir: &Path, who: &Who) -> SqliteStore {
    let path: PathBuf = dir.join(format!("{}.db", who.name));
    let config = SqliteConfig {
        min_free_disk: 0,
        reserve: 0,
        ..SqliteConfig::new(path, who.name.clone(), who.key.signing_key())
    };
    SqliteStore::open(config, clock()).await.unwrap()
}

struct Pair {
    dir: tempfile::TempDir,
    a: Who,
    b: Who,
    book: PeerBook,
    address: std::net::SocketAddr,
    lives: u64,
}

struct Life {
    node: Node,
    database: SqliteStore,
    listener: Option<Listener>,
}

impl Life {
    /// Ends at the next point where anything waits, and lets go of the database.
    async fn crash(self) {
        self.node.crash().await;
        drop(self.listener);
        self.database.close().await;
    }
}

impl Pair {
    async fn start_b(&mut self) -> Life {
        let database = open(self.dir.path(), &self.b).await;
        let store: SharedStore = Arc::new(database.clone());
        let node = Node::start(&self.b, &self.a, store, &Setup::default()).await;
        self.lives += 1;
        let config = ListenerConfig {
            listen: ListenConfig::new(self.address.to_string()),
            me: self.b.key.clone(),
            name: self.b.name.clone(),
            incarnation: self.lives,
            peers: self.book.clone(),
            reception: node.reception(),
            net: Net::tokio(),
            clock: clock(),
            tasks: node.tasks.clone(),
            metrics: Metrics::default(),
        };
        let listener = loop {
            // The address of the life before is free a moment after its end.
            match Listener::bind(config.clone()).await {
                Ok(listener) => break listener,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        self.address = listener.address();
        Life {
            node,
            database,
            listener: Some(listener),
        }
    }

    async fn start_a(&mut self) -> Life {
        let database = open(self.dir.path(), &self.a).await;
        let store: SharedStore = Arc::new(database.clone());
        let node = Node::start(&self.a, &self.b, store, &Setup::default()).await;
        self.lives += 1;
        let peer = self.b.spec().at(self.address.to_string());
        let config = LinkConfig {
            introduction: watch::channel(self.a.introduction(&clock())).1,
            incarnation: self.lives,
            ..LinkConfig::new(
                self.a.key.clone(),
                self.a.name.clone(),
                peer,
                node.tasks.clone(),
            )
        };
        let connected = node
            .peers
            .connect(&self.b.name, Link::new(config).into(), &node.tasks);
        connected.unwrap();
        Life {
            node,
            database,
            listener: None,
        }
    }

    /// Closes the live connections; the dialer comes again.
    fn cut(&self) {
        self.book.remove(&self.a.name);
        self.book.insert(self.a.spec()).unwrap();
    }
}

async fn until(what: &str, done: impl FnMut() -> bool) {
    let held = eventually(Duration::from_secs(120), done).await;
    assert!(held, "never: {what}");
}

/// Posts messages of two senders, many at a time.
async fn post(node: &Node, range: std::ops::Range<usize>) {
    const AT_ONCE: usize = 64;
    let numbers: Vec<usize> = range.collect();
    for some in numbers.chunks(AT_ONCE) {
        let mut tx = Batch::new();
        for number in some {
            let sender = ["s1", "s2"][number % 2];
            let message = node.message(sender, "work", &format!("{number:06}"));
            let posted = node.post.post(
                &mut tx,
                message,
                volary_messaging::Origin::Minted,
                volary_store::Cause::None,
            );
            assert_eq!(posted.await.unwrap().admission, Admission::Queued);
        }
        node.store.commit(tx).await.unwrap();
    }
}

async fn pair() -> Pair {
    let a = Who::new("a", &[("s1", &[]), ("s2", &[])]);
    let b = Who::new("b", &[("sink", &["work"])]);
    Pair {
        dir: tempfile::tempdir().unwrap(),
        book: PeerBook::new([a.spec()]).unwrap(),
        address: "127.0.0.1:0".parse().unwrap(),
        a,
        b,
        lives: 0,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_with_cuts_and_crashes_of_either_side_each_message_arrives_once() {
    let (rounds, each) = if is_full() { (40, 5_000) } else { (10, 2_000) };
    let mut pair = pair().await;
    let mut b = pair.start_b().await;
    let mut a = pair.start_a().await;
    until("the routes are known", || {
        !a.node.peers.status()[0].routes.is_empty()
    })
    .await;
    for round in 0..rounds {
        post(&a.node, round * each..(round + 1) * each).await;
        match round % 5 {
            0 | 2 => pair.cut(),
            1 => {
                a.crash().await;
                a = pair.start_a().await;
            }
            3 => {
                b.crash().await;
                b = pair.start_b().await;
            }
            _ => {}
        }
    }
    let waits = |life: &Life| {
        let outbox = &life.node.peers.status()[0].outbox;
        outbox.ready + outbox.delayed + outbox.claimed + outbox.pending
    };
    until("the outbox is empty", || waits(&a) == 0).await;
    let rows = b.node.journal("message.accepted").await;
    let mut texts: Vec<String> = Vec::with_capacity(rows.len());
    for row in &rows {
        texts.push(text_of(&message_in(&row.body).unwrap()));
    }
    let unique: BTreeSet<&String> = texts.iter().collect();
    assert_eq!(texts.len(), rounds * each, "taken in twice or lost");
    assert_eq!(unique.len(), rounds * each);
    for sender in 0..2 {
        let own = texts
            .iter()
            .map(|text| text.parse::<usize>().unwrap())
            .filter(|number| number % 2 == sender);
        assert!(own.is_sorted(), "a sender's order was lost");
    }
    assert_eq!(a.node.peers.status()[0].outbox.parked, 0);
    // What is stored proves itself, alone.
    let sealed = sealed_in(&rows[rows.len() / 2].body).unwrap().unwrap();
    assert!(sealed.open(Trust::Registry(&b.node.identities)).is_ok());
    let stats = b.node.mailbox("sink").stats();
    assert_eq!(stats.ready, rounds * each);
    a.crash().await;
    b.crash().await;
}
