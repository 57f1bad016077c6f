//! Both stores do what every store must.

use std::sync::Arc;

use volary_kernel::{ManualClock, Name};
use volary_store::{
    MemoryConfig, MemoryStore, StoreError,
    conformance::{self, Fixture},
};

use crate::common::Bench;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_in_memory_conforms() {
    let clock = ManualClock::default();
    let config = MemoryConfig::new(Name::new("node").unwrap());
    let store = Arc::new(MemoryStore::new(config, clock.shared()));
    conformance::all(&Fixture { store, clock }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_on_sqlite_conforms_and_leaves_a_tidy_proven_database() {
    let bench = Bench::new();
    let store = bench.open().await;
    conformance::all(&Fixture {
        store: Arc::new(store.clone()),
        clock: bench.clock.clone(),
    })
    .await;
    let report = bench.verify();
    assert!(
        report.is_ok() && report.entries > 100 && report.records > 100,
        "beside the running node: {report:?}"
    );
    store.close().await;
    assert!(matches!(store.housekeep().await, Err(StoreError::Closed)));
    let report = bench.verify();
    assert!(report.is_ok(), "{report:?}");
    let mut left: Vec<_> = std::fs::read_dir(bench.dir.path())
        .unwrap()
        .map(|file| file.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(
        left,
        ["volary.db", "volary.db.head"],
        "no lock, no log, no reserve"
    );
}

#[tokio::test]
async fn one_writer_at_a_time() {
    let bench = Bench::new();
    let first = bench.open().await;
    let second = bench.open_with(bench.config()).await;
    let Err(StoreError::InUse { path, pid }) = second.map(drop) else {
        panic!("it is in use")
    };
    assert_eq!((path, pid), (bench.database(), Some(std::process::id())));
    first.close().await;
    bench.open().await.close().await;
}

#[tokio::test]
async fn a_database_belongs_to_one_node() {
    let bench = Bench::new();
    bench.open().await.close().await;
    let mut config = bench.config();
    config.node = Name::new("other").unwrap();
    let end = bench.open_with(config).await.map(drop);
    assert!(
        matches!(
            end,
            Err(StoreError::Invalid(_) | StoreError::Corrupt { .. })
        ),
        "{end:?}"
    );
}
