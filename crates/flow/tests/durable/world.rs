//! A store, its queues, and flows that are run on it one life after the other.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::watch;
use volary_flow::{
    NodeError, RunConfig,
    graph::{Flow, FlowBuilder, RunningFlow},
    state::{DurableConfig, Once},
};
use volary_kernel::{SharedClock, SystemClock, Tenant};
use volary_store::{Queues, SharedStore};

use crate::store::{Faulty, memory};

pub fn demo() -> Tenant {
    "demo".parse().unwrap()
}

/// A store and its queues; a life of a process is a flow that is started and stopped.
pub struct World {
    pub faulty: Arc<Faulty>,
    pub store: SharedStore,
    pub queues: Queues,
    pub clock: SharedClock,
}

impl World {
    pub async fn new() -> Self {
        Self::at(SystemClock::shared()).await
    }

    pub async fn at(clock: SharedClock) -> Self {
        let faulty = Faulty::over(memory(clock.clone()));
        let store: SharedStore = faulty.clone();
        let queues = Queues::open(store.clone()).await.unwrap();
        Self {
            faulty,
            store,
            queues,
            clock,
        }
    }

    pub fn config(&self) -> RunConfig {
        RunConfig {
            durable: Some(DurableConfig::new(self.queues.clone())),
            clock: self.clock.clone(),
            ..RunConfig::default()
        }
    }

    /// A life that has taken up what was left.
    pub async fn start<I, O>(&self, flow: &Flow<I, O>) -> RunningFlow<I, O>
    where
        I: Send + 'static,
        O: Send + 'static,
    {
        let running = flow.start(self.config());
        running.ready().await.unwrap();
        running
    }

    /// Keys of everything that flows keep in the store.
    pub async fn left(&self) -> Vec<String> {
        let records = self.store.scan("flow.", None, 1000).await.unwrap();
        records
            .iter()
            .map(|record| record.key.to_string())
            .collect()
    }

    /// Kinds of the journal's entries that tell of flows.
    pub async fn told(&self) -> Vec<String> {
        let filter = volary_store::Filter::kind("flow.");
        let page = self
            .store
            .read(volary_store::Seq(0), &filter, 1000)
            .await
            .unwrap();
        page.rows.into_iter().map(|row| row.kind).collect()
    }

    /// Waits until nothing of flows but this many records is left.
    pub async fn left_is(&self, count: usize) {
        for _ in 0..10_000 {
            if self.left().await.len() == count {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("{count} records expected, found {:?}", self.left().await);
    }
}

/// Stops a life in the middle of what it does, as a crash would.
pub async fn crash<I, O>(flow: RunningFlow<I, O>)
where
    I: Send + 'static,
    O: Send + 'static,
{
    flow.stop(Duration::ZERO).await;
}

/// What nodes of tests share: how often they ran, by which keys, and whether they may go on.
#[derive(Clone)]
pub struct Probe {
    pub first: Arc<AtomicU32>,
    pub second: Arc<AtomicU32>,
    pub keys: Arc<Mutex<Vec<String>>>,
    pub gate: watch::Sender<bool>,
}

impl Probe {
    pub fn new() -> Self {
        Self {
            first: Arc::default(),
            second: Arc::default(),
            keys: Arc::default(),
            gate: watch::channel(false).0,
        }
    }

    pub fn open(&self) {
        self.gate.send_replace(true);
    }

    pub async fn pass(&self) {
        let mut gate = self.gate.subscribe();
        // The sender lives as long as this.
        let _open = gate.wait_for(|open| *open).await;
    }

    pub fn counts(&self) -> (u32, u32) {
        (
            self.first.load(Ordering::SeqCst),
            self.second.load(Ordering::SeqCst),
        )
    }

    /// Waits until the second node ran so often.
    pub async fn second_ran(&self, times: u32) {
        for _ in 0..100_000 {
            if self.counts().1 >= times {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("the second node ran {:?}", self.counts());
    }
}

/// Two nodes: the first adds one; the second has an effect, waits at the gate, and doubles.
pub fn two(probe: &Probe, once: Option<Once<u64>>) -> Flow<u64, u64> {
    let mut b = FlowBuilder::new("two");
    let seen = probe.clone();
    let first = b.durable_node("first", move |n: u64, _| {
        seen.first.fetch_add(1, Ordering::SeqCst);
        async move { Ok(n + 1) }
    });
    let seen = probe.clone();
    let effect = move |n: u64, context: volary_flow::Context| {
        let seen = seen.clone();
        async move {
            seen.keys.lock().push(context.idempotency_key());
            seen.second.fetch_add(1, Ordering::SeqCst);
            seen.pass().await;
            Ok::<_, NodeError>(n * 2)
        }
    };
    let second = match once {
        Some(once) => b.once_node("second", once, effect),
        None => b.durable_node("second", effect),
    };
    b.connect(first, second).ingress(first).egress(second);
    b.build_durable().unwrap()
}
