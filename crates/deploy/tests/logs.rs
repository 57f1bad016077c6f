//! Logs of replicas: rotation, tail, follow, floods.

mod common;

use std::time::Duration;

use volary_deploy::backend::{Backend, ReplicaSpec};
use volary_deploy::log::{LogQuery, Stream};
use volary_kernel::clock;

use common::Fixture;

#[tokio::test]
async fn a_follower_sees_every_line_across_rotations() {
    let fixture = Fixture::new().await;
    let mut program = fixture.sh("i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; done");
    program.log.max_file = 16 << 10;
    program.log.files = 20;
    let spec = ReplicaSpec::new(fixture.id("talker", 0), program);
    fixture.backend.start(&spec).await.unwrap();
    assert!(fixture.log_contains("talker", 0, "line 1").await);
    let query = LogQuery {
        tail: None,
        follow: true,
    };
    let mut reader = fixture.backend.logs(&spec.id, query).await.unwrap();
    let read = async {
        for number in 1..=3000 {
            let line = reader.next().await.unwrap().unwrap();
            assert_eq!(line.text, format!("line {number}"));
            assert_eq!(line.stream, Stream::Stdout);
        }
    };
    clock::timeout(Duration::from_secs(10), read).await.unwrap();
    assert!(fixture.state().join("logs/talker-0.log.1").exists());
}

#[tokio::test]
async fn a_tail_gives_the_last_lines_also_from_before_a_rotation() {
    let fixture = Fixture::new().await;
    let mut program = fixture.sh("i=0; while [ $i -lt 500 ]; do i=$((i+1)); echo line $i; done");
    program.log.max_file = 4 << 10;
    program.log.files = 10;
    let spec = ReplicaSpec::new(fixture.id("talker", 0), program);
    fixture.backend.start(&spec).await.unwrap();
    fixture.backend.wait(&spec.id).await.unwrap();
    for tail in [0, 1, 5, 200, 100_000] {
        let query = LogQuery {
            tail: Some(tail),
            follow: false,
        };
        let mut reader = fixture.backend.logs(&spec.id, query).await.unwrap();
        let mut lines = Vec::new();
        while let Some(line) = reader.next().await.unwrap() {
            lines.push(line.text);
        }
        let wanted: Vec<_> = (501 - tail.min(500)..=500)
            .map(|number| format!("line {number}"))
            .collect();
        assert_eq!(lines, wanted, "tail {tail}");
    }
}

#[tokio::test]
async fn a_flood_neither_blocks_the_replica_nor_fills_the_disk_and_is_told() {
    let fixture = Fixture::new().await;
    let script = "yes 0123456789012345678901234567890123456789 | head -c 60000000; echo; sleep 0.3; echo after";
    let mut program = fixture.sh(script);
    program.log.rate = 1 << 20;
    program.log.max_file = 1 << 20;
    let spec = ReplicaSpec::new(fixture.id("flood", 0), program);
    fixture.backend.start(&spec).await.unwrap();
    let exit = clock::timeout(Duration::from_secs(20), fixture.backend.wait(&spec.id)).await;
    assert!(exit.unwrap().unwrap().is_success());
    let text = fixture.log("flood", 0).await;
    assert!(
        text.contains("dropped: more than 1MiB per second"),
        "{}",
        &text[text.len() - 300..]
    );
    assert!(text.ends_with("after\n"));
    let logs = std::fs::read_dir(fixture.state().join("logs"))
        .unwrap()
        .flatten();
    let total: u64 = logs.map(|entry| entry.metadata().unwrap().len()).sum();
    assert!(total < 4 << 20, "{total}");
}
