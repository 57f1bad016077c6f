//! The durable flow, on a store as a node opens it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use volary_flow::graph::{Flow, FlowBuilder, RunningFlow};
use volary_flow::policy::NodePolicy;
use volary_flow::state::DurableConfig;
use volary_flow::{Context, Envelope, NodeError, RunConfig};
use volary_kernel::clock::{Clock as _, SystemClock};
use volary_kernel::sign::SigningKey;
use volary_store::{Queues, SharedStore, SqliteConfig, SqliteStore};

use crate::Failure;
use crate::bus::background;
use crate::flow::ours::{observed, stop};

/// More than a round can write: within a round nothing is to be removed.
const ROOM: u64 = 64 << 30;
/// Bytes of the payload as JSON.
const PAYLOAD: usize = 256;
const NODES: [&str; 3] = ["first", "second", "third"];

/// What is emitted.
pub fn payload() -> String {
    "x".repeat(PAYLOAD - r#""""#.len())
}

async fn pass(text: String, _: Context) -> Result<String, NodeError> {
    Ok(text)
}

/// Three no-op nodes in a row, with room for that many traces at once.
pub fn flow(traces: usize) -> Result<Flow<String, String>, Failure> {
    let mut builder = FlowBuilder::<String, String>::new("durable3");
    let nodes = NODES.map(|name| builder.durable_node(name, pass));
    for node in nodes {
        let policy = NodePolicy {
            concurrency: traces,
            ..NodePolicy::default()
        };
        builder.policy(node, policy).queue(node, traces);
    }
    let [first, second, third] = nodes;
    builder.connect(first, second).connect(second, third);
    builder.ingress(first).egress(third);
    Ok(builder.build_durable()?)
}

/// Starts the flow on a store.
pub async fn start(
    store: SharedStore,
    traces: usize,
) -> Result<RunningFlow<String, String>, Failure> {
    let config = RunConfig {
        durable: Some(DurableConfig::new(Queues::open(store).await?)),
        ..observed(true).0
    };
    let running = flow(traces)?.start(config);
    running.ready().await?;
    Ok(running)
}

/// Traces per second while that many are under way.
pub fn rate(disk: &Path, traces: usize, time: Duration) -> Result<f64, Failure> {
    let folder = tempfile::tempdir_in(disk)?;
    crate::store::runtime()?.block_on(async {
        let key = Arc::new(SigningKey::generate()?);
        let mut config = SqliteConfig::new(folder.path().join("ours.db"), "bench".parse()?, key);
        config.retention.max_bytes = ROOM;
        let store = SqliteStore::open(config, SystemClock::shared()).await?;
        let running = start(Arc::new(store.clone()), traces).await?;
        let start = SystemClock.mono();
        let tasks: Vec<_> = (0..traces)
            .map(|_| {
                let (running, payload) = (running.clone(), payload());
                background(async move {
                    let mut count = 0_u64;
                    while SystemClock.mono() - start < time {
                        let handle = running.emit(Envelope::new(payload.clone())).await?;
                        let answer = handle.result().await.map_err(|outcome| {
                            format!("a durable trace ended as {}", outcome.as_str())
                        })?;
                        assert_eq!(answer.len(), payload.len(), "nodes hand on what they got");
                        count += 1;
                    }
                    Ok::<u64, Failure>(count)
                })
            })
            .collect();
        let mut count = 0;
        for task in tasks {
            count += task.await??;
        }
        let passed = SystemClock.mono() - start;
        stop(&running).await?;
        store.close().await;
        Ok(count as f64 / passed.as_secs_f64())
    })
}
