//! `/health` tells the truth: a wedged store turns it to 503 within 5 s, a full inbox does not.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::FutureExt as _;
use tokio::sync::watch;
use volary::{
    Node, NodeConfig,
    deploy::{
        backend::process::InitCommand,
        spec::{self, LoadOptions, files::Files},
    },
    kernel::{Name, SharedClock, Tenant, TraceId, clock, clock::SystemClock, secret::Secret},
    messaging::{
        Payload,
        delivery::{DeliveryKind, Parcel},
        inbox::queue_name,
    },
    ops::{
        api::{Admission, HealthDocument, Send, SendReply, SendRequest},
        client::{Client, ClientError},
    },
    store::{
        Batch, Committed, Filter, JournalPage, Key, MemoryConfig, MemoryStore, NewItem,
        QueueConfig, Queues, Record, Seq, SharedStore, Store, StoreError, Watch,
    },
};

/// As many as wait, and as the inbox takes.
const MESSAGES: usize = 10_000;
/// What `/health` promises.
const PROMISE: Duration = Duration::from_secs(5);

/// Handlers cannot be run here, so what waits goes on waiting, and the worker is busy with it.
const AGENT: &str = "apiVersion: agent.dev/v1\nkind: Agent\nmetadata:\n  name: worker\nspec:\n  handler: [sh, -c, 'exit 1']\n  \
                     topics: [work]\n  delivery: {maxAttempts: 100, backoff: {base: 1h, max: 1h}}\n";

/// A store whose commits hang while it is wedged.
struct Wedgeable {
    store: MemoryStore,
    wedged: watch::Receiver<bool>,
}

#[async_trait]
impl Store for Wedgeable {
    async fn commit(&self, batch: Batch) -> Result<Committed, StoreError> {
        let mut wedged = self.wedged.clone();
        wedged
            .wait_for(|wedged| !wedged)
            .await
            .map_err(|_| StoreError::Closed)?;
        self.store.commit(batch).await
    }

    async fn get_many(&self, keys: &[Key]) -> Result<Vec<Option<Record>>, StoreError> {
        self.store.get_many(keys).await
    }

    async fn scan(
        &self,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<Record>, StoreError> {
        self.store.scan(prefix, after, limit).await
    }

    async fn read(
        &self,
        from: Seq,
        filter: &Filter,
        limit: usize,
    ) -> Result<JournalPage, StoreError> {
        self.store.read(from, filter, limit).await
    }

    fn watch(&self, prefix: &str) -> Watch {
        self.store.watch(prefix)
    }

    fn head(&self) -> watch::Receiver<Seq> {
        self.store.head()
    }

    fn node(&self) -> &Name {
        self.store.node()
    }

    fn clock(&self) -> &SharedClock {
        self.store.clock()
    }
}

/// Puts what waits into the agent's inbox, as a node before this one might have left it.
async fn fill(store: &SharedStore) {
    let (tenant, agent) = (Tenant::default(), Name::new("worker").unwrap());
    let queues = Queues::open(store.clone()).await.unwrap();
    let queue = queues.queue(QueueConfig {
        max_items: MESSAGES,
        ..QueueConfig::new(queue_name(&tenant, &agent))
    });
    let (queue, trace) = (queue.unwrap(), TraceId::generate());
    let parcel = Parcel {
        kind: DeliveryKind::Task,
        topic: None,
        sender: "test".to_owned(),
        trace,
        idempotency_key: "key".to_owned(),
        payload: Payload::json(&1).unwrap(),
    };
    let payload = parcel.encode().unwrap();
    for _ in 0..MESSAGES / 100 {
        let mut tx = Batch::new();
        for _ in 0..100 {
            let item = NewItem {
                trace: Some(trace),
                ..NewItem::new(tenant.clone(), payload.clone())
            };
            queue.enqueue(&mut tx, item).unwrap();
        }
        store.commit(tx).await.unwrap();
    }
    assert_eq!(queue.len(), MESSAGES);
}

async fn start(folder: &Path, wedged: watch::Receiver<bool>) -> Node {
    std::fs::write(folder.join("agent.yaml"), AGENT).unwrap();
    let options = LoadOptions {
        files: Files::disk(),
        env: &|_| None,
        backends: spec::BACKENDS,
        insecure_bind: false,
    };
    let mut fleet = spec::load_fleet(folder, &options).unwrap().fleet;
    fleet.messaging.inbox_items = MESSAGES as u64;
    let clock = SystemClock::shared();
    let memory = MemoryConfig::new(Name::new("test").unwrap());
    let store = MemoryStore::new(memory, clock.clone());
    fill(&(Arc::new(store.clone()) as SharedStore)).await;
    let store = Wedgeable { store, wedged };
    let config = NodeConfig {
        fleet,
        state_dir: folder.join("state"),
        init: InitCommand {
            program: "/nonexistent/init".into(),
            args: Vec::new(),
        },
        program: "/nonexistent/volary".into(),
        base_env: BTreeMap::new(),
        ops_bind: Some(([127, 0, 0, 1], 0).into()),
        insecure: false,
        clock,
        store: Some(Arc::new(store)),
    };
    Node::start(config).await.unwrap()
}

async fn send(operator: &Client) -> Result<Admission, ClientError> {
    let payload = serde_json::value::RawValue::from_string("{}".to_owned()).unwrap();
    let request = SendRequest {
        send: Send {
            to: Some(Name::new("worker").unwrap()),
            payload: Some(payload),
            ..Send::default()
        },
        ..SendRequest::default()
    };
    Ok(operator
        .post::<SendReply>("/v1/messages", &request)
        .await?
        .admission)
}

async fn health(operator: &Client) -> (bool, HealthDocument) {
    operator.probe("/health").await.unwrap()
}

/// Asks until the answer is `wanted`; says what it was at last and how long that took.
async fn health_becomes(wanted: bool, operator: &Client) -> (HealthDocument, Duration) {
    let begun = SystemClock::shared().mono();
    let asked = clock::timeout(2 * PROMISE, async {
        loop {
            let (healthy, document) = health(operator).await;
            if healthy == wanted {
                return document;
            }
            tokio::task::yield_now().await;
        }
    });
    let document = asked
        .await
        .unwrap_or_else(|_| panic!("/health did not become {wanted}"));
    (document, SystemClock::shared().mono() - begun)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wedged_store_turns_health_to_503_within_5_s_and_a_full_inbox_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let (wedge, wedged) = watch::channel(false);
    let node = start(folder.path(), wedged).await;
    let token = std::fs::read_to_string(node.state_dir().join("operator.token")).unwrap();
    let operator = Client::tcp(node.ops_addr()).token(Secret::new(token.trim()));

    let (healthy, document) = health(&operator).await;
    assert!(healthy, "{document:?}");
    assert_eq!(
        send(&operator).await.unwrap(),
        Admission::Refused,
        "the inbox is full"
    );

    wedge.send_replace(true);
    let stuck = send(&operator).then(|_never_answered| std::future::pending::<()>());
    let (document, took) = tokio::select! {
        told = health_becomes(false, &operator) => told,
        () = stuck => unreachable!(),
    };
    assert!(took < PROMISE, "{took:?}");
    let named: Vec<_> = document
        .checks
        .iter()
        .filter(|check| !check.ok)
        .map(|check| check.name.as_str())
        .collect();
    // Whoever is first past its limit: the store itself, or the worker whose settling waits for it.
    let stuck = ["store commits", "handler worker 0"];
    assert!(
        !named.is_empty() && named.iter().all(|name| stuck.contains(name)),
        "{named:?}"
    );

    wedge.send_replace(false);
    let (_, took) = health_becomes(true, &operator).await;
    assert!(took < PROMISE, "{took:?}");
    node.stop(PROMISE).await;
}
