//! A process that is killed while it runs durable traces: each accepted trace ends once, and its effect happens once.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use volary_flow::{
    Context, EmitError, Envelope, NodeError, RunConfig,
    graph::{Flow, FlowBuilder, RunningFlow},
    policy::NodePolicy,
    state::{DurableConfig, Once},
};
use volary_kernel::{Name, SystemClock, Tenant, sign::SigningKey};
use volary_store::{Filter, Queues, Seq, SharedStore, SqliteConfig, SqliteStore, Store as _};

const DIRECTORY: &str = "VOLARY_TEST_FLOW_DIRECTORY";
const DRAIN: &str = "VOLARY_TEST_FLOW_DRAIN";
pub const KEY: &str = "key.pk8";
const EFFECTS: &str = "effects";

#[expect(
    clippy::disallowed_methods,
    reason = "tests are told by the environment what to do and how much"
)]
pub fn told(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from)
}

async fn open(directory: &Path) -> SqliteStore {
    let key = SigningKey::from_pkcs8(&std::fs::read(directory.join(KEY)).unwrap()).unwrap();
    let name = Name::new("node").unwrap();
    let config = SqliteConfig {
        min_free_disk: 0,
        reserve: 0,
        ..SqliteConfig::new(directory.join("volary.db"), name, Arc::new(key))
    };
    SqliteStore::open(config, SystemClock::shared())
        .await
        .unwrap()
}

/// Writes the key of an effect; one write call, so a line is there whole or not at all.
fn effect(directory: &Path, key: &str) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .append(true)
        .create(true)
        .open(directory.join(EFFECTS))?;
    file.write_all(format!("{key}\n").as_bytes())
}

fn effects(directory: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(directory.join(EFFECTS)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Splits, has an effect per part, and gathers.
fn orders(directory: PathBuf) -> Flow<u64, Vec<u64>> {
    let mut b = FlowBuilder::new("orders");
    let read = b.durable_node("read", |n: u64, _| async move { Ok(n + 1) });
    let probed = directory.clone();
    let once = Once::probe(move |key: String| {
        let done = effects(&probed).contains(&key);
        async move { Ok(done.then_some(1)) }
    });
    let charge = b.once_node("charge", once, move |_: u64, context: Context| {
        let directory = directory.clone();
        async move {
            tokio::task::yield_now().await;
            effect(&directory, &context.idempotency_key())?;
            tokio::task::yield_now().await;
            Ok::<_, NodeError>(1)
        }
    });
    let other = b.durable_node("other", |n: u64, _| async move { Ok(n) });
    let both = b.join_all("both");
    for node in [read, charge, other] {
        let policy = NodePolicy {
            concurrency: 8,
            ..NodePolicy::default()
        };
        b.policy(node, policy);
    }
    b.connect(read, charge).connect(read, other);
    b.connect(charge, both).connect(other, both);
    b.ingress(read).egress(both);
    b.build_durable().unwrap()
}

pub fn say(line: String) {
    // One write call, so a line is there whole or not at all.
    std::io::stdout()
        .write_all(format!("{line}\n").as_bytes())
        .unwrap();
    std::io::stdout().flush().unwrap();
}

async fn emits(flow: &RunningFlow<u64, Vec<u64>>, from: u64) {
    let tenants: Vec<Tenant> = ["a", "b", "c"].map(|name| name.parse().unwrap()).to_vec();
    for n in from.. {
        let tenant = tenants[usize::try_from(n % 3).unwrap()].clone();
        let handle = match flow.emit(Envelope::new(n).tenant(tenant)).await {
            Ok(handle) => handle,
            Err(EmitError::Stopped) => return,
            Err(error) => panic!("{error}"),
        };
        let id = handle.trace_id();
        say(format!("accepted {id}"));
        // Some are read, some are left for later lives.
        if n % 4 == 0 {
            drop(handle);
        } else {
            let outcome = handle.outcome().await;
            say(format!("ended {id} {}", outcome.as_str()));
        }
    }
}

/// Not a test by itself: what the process does that is killed. Run by name, with a directory in the environment.
#[test]
fn runs_orders_until_it_is_killed() {
    let Some(directory) = told(DIRECTORY) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async move {
        let store = open(&directory).await;
        let shared: SharedStore = Arc::new(store.clone());
        let config = RunConfig {
            durable: Some(DurableConfig::new(Queues::open(shared).await.unwrap())),
            ..RunConfig::default()
        };
        let flow = orders(directory).start(config);
        flow.ready().await.unwrap();
        say("ready".into());
        if told(DRAIN).is_some() {
            // A stop takes up nothing more: first, all that was left ends.
            while flow.depths().traces > 0 {
                tokio::task::yield_now().await;
            }
            let report = flow.stop(Duration::from_secs(20)).await;
            assert!(report.is_clean(), "{report:?}");
            drop(flow);
            store.close().await;
            return;
        }
        let writers = (0..16).map(|writer| emits(&flow, writer * 1_000_000));
        futures_util::future::join_all(writers).await;
    });
}

fn start(directory: &Path, drain: bool) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([
        "--exact",
        "crash::runs_orders_until_it_is_killed",
        "--nocapture",
        "--test-threads=1",
    ]);
    if drain {
        command.env(DRAIN, "1");
    }
    command
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

/// Numbers that look random and are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

#[tokio::test]
async fn a_process_killed_at_any_point_ends_each_accepted_trace_once_with_one_effect() {
    let full = told("VOLARY_TEST_FULL").is_some();
    let rounds = if full { 200 } else { 20 };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let key = SigningKey::generate().unwrap();
    std::fs::write(path.join(KEY), key.to_pkcs8().unwrap()).unwrap();
    let mut numbers = Numbers(0x5eed_1234_dead_beef);
    let mut accepted: HashMap<String, u32> = HashMap::new();
    let mut cut_short = 0;
    for round in 0..rounds {
        let mut child = start(path, false);
        let lines = BufReader::new(child.stdout.take().unwrap());
        // Some are killed while they take up what was left.
        let mut left = if round % 5 == 0 {
            1
        } else {
            1 + numbers.below(60)
        };
        let mut ready = false;
        for line in lines.lines().map_while(Result::ok) {
            // The first line begins with the name of the test.
            ready |= line.ends_with("ready");
            if let Some(id) = line.strip_prefix("accepted ") {
                accepted.entry(id.to_owned()).or_default();
            }
            if let Some((id, outcome)) = line.strip_prefix("ended ").and_then(|l| l.split_once(' '))
            {
                assert_eq!(outcome, "done", "trace {id}");
                *accepted.entry(id.to_owned()).or_default() += 1;
            }
            left = left.saturating_sub(u64::from(ready));
            if left == 0 {
                // What is in the pipe already was said before, and is read on.
                child.kill().unwrap();
            }
        }
        assert!(
            !child.wait().unwrap().success(),
            "round {round}: it ended by itself"
        );
        cut_short += u32::from(ready);
    }
    assert_eq!(cut_short, rounds, "every life began");
    let end = start(path, true).wait_with_output().unwrap();
    assert!(end.status.success(), "{end:?}");

    let store = open(path).await;
    let mut begun: HashMap<String, (u32, u32)> = HashMap::new();
    let mut from = Seq(0);
    loop {
        let page = store
            .read(from, &Filter::kind("flow."), 4096)
            .await
            .unwrap();
        for row in &page.rows {
            let entry = begun.entry(row.trace.unwrap().to_string()).or_default();
            match row.kind.as_str() {
                "flow.accepted" => entry.0 += 1,
                "flow.ended" => {
                    let body = String::from_utf8_lossy(&row.body);
                    assert!(body.contains("\"done\""), "{body}");
                    entry.1 += 1;
                }
                other => panic!("{other}"),
            }
        }
        if page.end {
            break;
        }
        from = page.next;
    }
    for (id, said) in &accepted {
        assert!(*said <= 1, "trace {id} was told to have ended {said} times");
        assert!(
            begun.contains_key(id),
            "trace {id} was accepted and is not in the journal"
        );
    }
    for (id, counts) in &begun {
        assert_eq!(*counts, (1, 1), "trace {id}: accepted and ended once");
    }
    let mut happened: HashMap<String, u32> = HashMap::new();
    for key in effects(path) {
        *happened.entry(key).or_default() += 1;
    }
    assert_eq!(happened.len(), begun.len(), "one effect each");
    for (key, times) in &happened {
        assert_eq!(*times, 1, "effect {key}");
    }
    for prefix in ["flow.live/", "flow.step/", "flow.pause/"] {
        let left = store.scan(prefix, None, 10).await.unwrap();
        assert!(left.is_empty(), "{left:?}");
    }
    assert!(accepted.len() > rounds as usize);
    store.close().await;
}
