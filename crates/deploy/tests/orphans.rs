//! The node is killed with SIGKILL at random moments: within 2 s nothing of it lives, whatever its replicas do.
//!
//! Survivors are found by a marker that every process of a round has in its environment or arguments.
//! `VOLARY_TEST_FULL=1` runs 50 rounds of each kind instead of 8.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod common;

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::PROGRAM;
use volary_kernel::clock;
use volary_kernel::id::Uid;
use volary_kernel::retry::random_unit;
use volary_kernel::testing::eventually;

/// Ignores polite signals, leaves double-forked daemons behind, hops from fork to fork, attacks its helper.
const HOSTILE: &str = "trap '' TERM INT HUP
    ( setsid sh -c 'setsid sleep 1000 & setsid sleep 1001 & exec sleep 1002' & )
    ( setsid sh -c 'hop() { sh -c \"sleep 0.01; exit\" & }; while :; do hop; sleep 0.01; done' & )
    while :; do kill -9 1 $PPID; kill -STOP 1 $PPID; sleep 0.02; done 2>/dev/null";

/// The same without attacks on the helper, which succeed where there are no walls.
const WILD: &str = "trap '' TERM INT HUP
    ( setsid sh -c 'setsid sleep 1000 & setsid sleep 1001 & exec sleep 1002' & )
    ( setsid sh -c 'hop() { sh -c \"sleep 0.01; exit\" & }; while :; do hop; sleep 0.01; done' & )
    while :; do sleep 0.02; done";

#[tokio::test]
async fn nothing_outlives_a_killed_node() {
    for round in 0..rounds() {
        one_round(round, "namespace", HOSTILE, None).await;
    }
}

#[tokio::test]
async fn nothing_outlives_a_killed_node_of_an_ordinary_user() {
    if !common::is_root() {
        return; // the test above did exactly this
    }
    for round in 0..rounds() {
        one_round(round, "namespace", HOSTILE, Some(65_534)).await;
    }
}

#[tokio::test]
async fn nothing_outlives_a_killed_node_without_namespaces() {
    for round in 0..rounds() {
        one_round(round, "none", WILD, None).await;
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a test may be asked for more rounds"
)]
fn rounds() -> u32 {
    if std::env::var_os("VOLARY_TEST_FULL").is_some() {
        50
    } else {
        8
    }
}

async fn one_round(round: u32, isolation: &str, script: &str, user: Option<u32>) {
    let state = tempfile::tempdir().unwrap();
    let marker = format!("volary-orphan-{}", Uid::generate());
    if let Some(uid) = user {
        std::os::unix::fs::chown(state.path(), Some(uid), Some(uid)).unwrap();
        std::fs::set_permissions(state.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    }
    let mut node = Node(start(state.path(), &marker, isolation, script, user));
    // Every third round in the middle of the starts, the others a random while after them.
    let lines = if round.is_multiple_of(3) {
        1 + round as usize % 4
    } else {
        5
    };
    let mut read = BufReader::new(node.0.stdout.take().unwrap()).lines();
    let seen = tokio::task::spawn_blocking(move || {
        let seen: Vec<_> = read.by_ref().take(lines).map_while(Result::ok).collect();
        (seen, read)
    });
    // The pipe stays open, or the node would end by itself.
    let (seen, _open) = clock::timeout(Duration::from_secs(20), seen)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(seen.len(), lines, "the node ended early: {seen:?}");
    let pause = Duration::from_secs_f64(random_unit() * 0.03);
    let _a_random_moment = eventually(pause, || false).await;
    assert!(
        !survivors(&marker).is_empty(),
        "the marker finds nothing even while all runs"
    );
    node.0.kill().unwrap();
    node.0.wait().unwrap();
    let gone = eventually(Duration::from_secs(2), || survivors(&marker).is_empty()).await;
    let left = survivors(&marker);
    for (pid, _) in &left {
        let _cleaned_up = Command::new("kill").args(["-9", &pid.to_string()]).status();
    }
    assert!(gone, "round {round}: {left:?}");
    let swept = Command::new(PROGRAM)
        .arg("sweep")
        .arg(state.path())
        .stdout(Stdio::null())
        .status();
    assert!(swept.unwrap().success());
    assert_eq!(common::cgroups_of(state.path()), Vec::<String>::new());
}

/// Killed even if the test fails.
struct Node(Child);

impl Drop for Node {
    fn drop(&mut self) {
        let _may_have_ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn start(
    state: &std::path::Path,
    marker: &str,
    isolation: &str,
    script: &str,
    user: Option<u32>,
) -> Child {
    let mut command = match user {
        None => Command::new(PROGRAM),
        Some(uid) => {
            let mut command = Command::new("setpriv");
            command
                .arg(format!("--reuid={uid}"))
                .arg(format!("--regid={uid}"));
            command.arg("--clear-groups").arg(PROGRAM);
            command
        }
    };
    command
        .arg("node")
        .arg(state)
        .args(["4", marker, isolation, script]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Living processes with the marker in their environment or arguments.
fn survivors(marker: &str) -> Vec<(u32, String)> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| {
        let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let text = [read("cmdline"), read("environ")].concat();
        let found = text
            .windows(marker.len())
            .any(|window| window == marker.as_bytes());
        found.then(|| {
            (
                pid,
                String::from_utf8_lossy(&read("cmdline")).replace('\0', " "),
            )
        })
    })
    .collect()
}
