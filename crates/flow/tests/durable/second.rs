//! Pausing and resuming from a second process: one runs the flow, another has only the store's file.
//!
//! ```text
//!   this process ──(pause records, orders)─▶ one SQLite file ─▶ the child: queues, flow
//!                ◀──────────────(lines on its standard output)─┘
//! ```

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    sync::watch,
};
use volary_flow::{
    Context, Envelope, NodeError, RunConfig,
    graph::{Flow, FlowBuilder, RunningFlow},
    observe::{FlowEvent, FlowEventKind, Observer},
    policy::NodePolicy,
    state::{DurableConfig, PauseError, pause, resume},
};
use volary_kernel::{Name, SystemClock, TraceId, clock, sign::SigningKey};
use volary_store::{
    Batch, Expect, Key, Queues, SharedStore, Sharing, SqliteConfig, SqliteStore, WatchEvent,
};

use crate::{
    crash::{KEY, say, told},
    world::demo,
};

const DIRECTORY: &str = "VOLARY_TEST_FLOW_SHARED";
/// Orders to the child: `order/<number>`, each with a word and perhaps a trace.
const ORDERS: &str = "order/";
/// Longest wait for anything the child says.
const PATIENCE: Duration = Duration::from_secs(20);

async fn open(directory: &Path) -> SqliteStore {
    let key = SigningKey::from_pkcs8(&std::fs::read(directory.join(KEY)).unwrap()).unwrap();
    let config = SqliteConfig {
        min_free_disk: 0,
        reserve: 0,
        sharing: Sharing::Shared,
        ..SqliteConfig::new(
            directory.join("volary.db"),
            Name::new("node").unwrap(),
            Arc::new(key),
        )
    };
    let opened = SqliteStore::open(config, SystemClock::shared()).await;
    opened.unwrap()
}

fn name() -> Name {
    Name::new("shared").unwrap()
}

// --- the child -------------------------------------------------------------------------------

/// Three nodes; the second waits at the gate. Each says which trace it runs.
fn flow(gate: &watch::Sender<bool>) -> Flow<u64, u64> {
    let mut b = FlowBuilder::new("shared");
    let gate = gate.clone();
    let nodes = ["first", "second", "third"].map(|node| {
        let gate = gate.clone();
        b.durable_node(node, move |n: u64, context: Context| {
            let mut gate = gate.subscribe();
            async move {
                say(format!("{node} {}", context.trace_id()));
                if node == "second" {
                    gate.wait_for(|open| *open).await?;
                }
                Ok::<_, NodeError>(n + 1)
            }
        })
    });
    for node in nodes {
        let policy = NodePolicy {
            concurrency: 8,
            ..NodePolicy::default()
        };
        b.policy(node, policy);
    }
    b.connect(nodes[0], nodes[1]).connect(nodes[1], nodes[2]);
    b.ingress(nodes[0]).egress(nodes[2]);
    b.build_durable().unwrap()
}

/// Says what happens to traces as wholes.
struct Says;

impl Observer for Says {
    fn observe(&self, events: &[FlowEvent]) {
        for event in events {
            match &event.kind {
                FlowEventKind::Paused => say(format!("paused {}", event.trace_id)),
                FlowEventKind::Resumed => say(format!("resumed {}", event.trace_id)),
                _ => {}
            }
        }
    }
}

/// Does one order; false to stop.
async fn obey(order: &str, flow: &RunningFlow<u64, u64>, gate: &watch::Sender<bool>) -> bool {
    match order.split_once(' ').unwrap_or((order, "")) {
        ("open", _) => drop(gate.send_replace(true)),
        ("emit", number) => {
            let envelope = Envelope::new(number.parse().unwrap()).tenant(demo());
            let handle = flow.emit(envelope).await.unwrap();
            say(format!("emitted {}", handle.trace_id()));
        }
        ("read", id) => {
            let id: TraceId = id.parse().unwrap();
            let handle = flow.fetch(id, &demo()).unwrap();
            say(format!("read {id} {}", handle.result().await.unwrap()));
        }
        ("drain", _) => {
            while flow.depths().traces > 0 {
                tokio::task::yield_now().await;
            }
            return false;
        }
        (other, _) => panic!("{other}"),
    }
    true
}

/// Not a test by itself: the process that runs the flow. Run by name, with a directory in the environment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_a_flow_that_another_process_pauses() {
    let Some(directory) = told(DIRECTORY) else {
        return;
    };
    let store = open(&directory).await;
    let shared: SharedStore = Arc::new(store.clone());
    let mut orders = shared.watch(ORDERS);
    let config = RunConfig {
        durable: Some(DurableConfig::new(
            Queues::open(shared.clone()).await.unwrap(),
        )),
        observers: vec![Arc::new(Says)],
        ..RunConfig::default()
    };
    let gate = watch::channel(false).0;
    let flow = flow(&gate).start(config);
    flow.ready().await.unwrap();
    say("\nready".into());
    loop {
        let WatchEvent::Changed(change) = orders.next().await.unwrap() else {
            panic!("few orders are given");
        };
        let order = shared.get(&change.key).await.unwrap().unwrap();
        let order = String::from_utf8(order.value.to_vec()).unwrap();
        if !obey(&order, &flow, &gate).await {
            break;
        }
    }
    let report = flow.stop(Duration::from_secs(10)).await;
    assert!(report.is_clean(), "{report:?}");
    drop(flow);
    store.close().await;
}

// --- this process ----------------------------------------------------------------------------

/// The process that runs the flow, as another sees it.
struct Runner {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// What it said and nobody waited for.
    said: Vec<String>,
}

impl Runner {
    async fn start(directory: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "second::runs_a_flow_that_another_process_pauses",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(DIRECTORY, directory)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let said = Vec::new();
        let mut this = Self { child, lines, said };
        this.hears("ready").await;
        this
    }

    /// Waits until it says something that begins so; the rest of the line.
    async fn hears(&mut self, start: &str) -> String {
        let said = |line: &String| line.strip_prefix(start).map(|rest| rest.trim().to_owned());
        let at = self.said.iter().position(|line| said(line).is_some());
        if let Some(line) = at.map(|at| self.said.remove(at)) {
            return said(&line).unwrap_or_default();
        }
        loop {
            let line = clock::timeout(PATIENCE, self.lines.next_line()).await;
            let line = line.unwrap_or_else(|_| panic!("`{start}` was not said: {:?}", self.said));
            let line = line.unwrap().expect("the child lives");
            match said(&line) {
                Some(rest) => return rest,
                None => self.said.push(line),
            }
        }
    }

    fn has_said(&self, line: &str) -> bool {
        self.said.iter().any(|said| said == line)
    }

    async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    async fn ends(mut self) {
        let end = clock::timeout(PATIENCE, self.child.wait()).await;
        assert!(end.unwrap().unwrap().success(), "{:?}", self.said);
    }
}

/// Gives orders by way of the store.
struct Orders<'a>(&'a SharedStore, u32);

impl Orders<'_> {
    async fn give(&mut self, order: String) {
        self.1 += 1;
        let mut tx = Batch::new();
        let key = Key::new(format!("{ORDERS}{}", self.1)).unwrap();
        tx.put(key, order, Expect::Absent);
        self.0.commit(tx).await.unwrap();
    }

    /// Has a trace emitted.
    async fn emit(&mut self, runner: &mut Runner, number: u64) -> TraceId {
        self.give(format!("emit {number}")).await;
        runner.hears("emitted ").await.parse().unwrap()
    }
}

fn database() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let key = SigningKey::generate().unwrap();
    std::fs::write(directory.path().join(KEY), key.to_pkcs8().unwrap()).unwrap();
    let path = directory.path().to_owned();
    (directory, path)
}

async fn left(store: &SharedStore) -> Vec<String> {
    let records = store.scan("flow.", None, 1000).await.unwrap();
    let keys = records.iter().map(|record| record.key.to_string());
    keys.collect()
}

#[tokio::test]
async fn a_second_process_pauses_and_resumes_what_the_first_runs_and_a_kill_changes_nothing() {
    let (_directory, path) = database();
    let store = open(&path).await;
    let shared: SharedStore = Arc::new(store.clone());
    let mut orders = Orders(&shared, 0);
    let mut runner = Runner::start(&path).await;
    let id = orders.emit(&mut runner, 1).await;
    runner.hears(&format!("second {id}")).await;

    let other = "other".parse().unwrap();
    let refused = pause(&shared, &name(), id, &other).await;
    assert!(matches!(refused, Err(PauseError::Unknown(trace)) if trace == id));
    pause(&shared, &name(), id, &demo()).await.unwrap();
    runner.hears(&format!("paused {id}")).await;
    orders.give("open".into()).await;
    let free = orders.emit(&mut runner, 10).await;
    orders.give(format!("read {free}")).await;
    assert_eq!(runner.hears(&format!("read {free}")).await, "13");
    let third = format!("third {id}");
    assert!(!runner.has_said(&third), "{:?}", runner.said);

    // The pause is in the store, not in who ran the flow.
    runner.kill().await;
    let mut runner = Runner::start(&path).await;
    orders.give("open".into()).await;
    let free = orders.emit(&mut runner, 20).await;
    orders.give(format!("read {free}")).await;
    assert_eq!(runner.hears(&format!("read {free}")).await, "23");
    assert!(!runner.has_said(&third), "{:?}", runner.said);

    let refused = resume(&shared, &name(), id, &other).await;
    assert!(matches!(refused, Err(PauseError::Unknown(trace)) if trace == id));
    resume(&shared, &name(), id, &demo()).await.unwrap();
    runner.hears(&format!("resumed {id}")).await;
    runner.hears(&third).await;
    orders.give(format!("read {id}")).await;
    assert_eq!(runner.hears(&format!("read {id}")).await, "4");
    orders.give("drain".into()).await;
    runner.ends().await;
    let ended = pause(&shared, &name(), id, &demo()).await;
    assert!(matches!(ended, Err(PauseError::Unknown(_))), "it has ended");
    let mut left = left(&shared).await;
    // That an end was read may be forgotten by a kill: then it may be read again.
    left.retain(|key| !key.starts_with("flow.kept/"));
    assert_eq!(left, [""; 0]);
    store.close().await;
}

#[tokio::test]
async fn what_is_paused_and_resumed_while_nobody_runs_it_goes_on_from_where_it_was() {
    let (_directory, path) = database();
    let store = open(&path).await;
    let shared: SharedStore = Arc::new(store.clone());
    let mut orders = Orders(&shared, 0);
    let mut runner = Runner::start(&path).await;
    let (held, freed) = (
        orders.emit(&mut runner, 1).await,
        orders.emit(&mut runner, 2).await,
    );
    for id in [held, freed] {
        runner.hears(&format!("second {id}")).await;
    }
    runner.kill().await;
    for id in [held, freed] {
        pause(&shared, &name(), id, &demo()).await.unwrap();
    }
    resume(&shared, &name(), freed, &demo()).await.unwrap();
    let mut runner = Runner::start(&path).await;
    orders.give("open".into()).await;
    orders.give(format!("read {freed}")).await;
    assert_eq!(runner.hears(&format!("read {freed}")).await, "5");
    let ran = |node: &str, id: TraceId| runner.has_said(&format!("{node} {id}"));
    assert!(!ran("first", freed), "it answered from its receipt");
    assert!(!ran("second", held), "it is paused");
    resume(&shared, &name(), held, &demo()).await.unwrap();
    orders.give(format!("read {held}")).await;
    assert_eq!(runner.hears(&format!("read {held}")).await, "4");
    orders.give("drain".into()).await;
    runner.ends().await;
    assert_eq!(left(&shared).await, [""; 0]);
    store.close().await;
}

#[tokio::test]
async fn pauses_that_race_with_the_ends_of_their_traces_leave_nothing_behind() {
    let (_directory, path) = database();
    let store = open(&path).await;
    let shared: SharedStore = Arc::new(store.clone());
    let mut orders = Orders(&shared, 0);
    let mut runner = Runner::start(&path).await;
    orders.give("open".into()).await;
    let (mut met, mut ids) = (0, Vec::new());
    for number in 0..40 {
        let id = orders.emit(&mut runner, number).await;
        match pause(&shared, &name(), id, &demo()).await {
            Ok(()) => met += 1,
            Err(PauseError::Unknown(_)) => {}
            Err(error) => panic!("{error}"),
        }
        ids.push(id);
    }
    for id in &ids {
        match resume(&shared, &name(), *id, &demo()).await {
            Ok(()) | Err(PauseError::Unknown(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    for (id, number) in ids.iter().zip(0..) {
        orders.give(format!("read {id}")).await;
        let read = runner.hears(&format!("read {id}")).await;
        assert_eq!(read, format!("{}", number + 3));
    }
    orders.give("drain".into()).await;
    runner.ends().await;
    assert!(met > 0, "some were paused while they lived");
    // Whoever runs the flow next removes what the last could not see any more.
    let runner = Runner::start(&path).await;
    orders.give("drain".into()).await;
    runner.ends().await;
    assert_eq!(left(&shared).await, [""; 0]);
    store.close().await;
}
