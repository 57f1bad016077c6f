//! The store on SQLite does what every store must.

use std::sync::Arc;

use volary_kernel::{ManualClock, Name, sign::SigningKey};
use volary_store::{
    SqliteConfig, SqliteStore,
    conformance::{self, Fixture},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_on_sqlite_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let key = Arc::new(SigningKey::generate().unwrap());
    let config = SqliteConfig::new(
        dir.path().join("volary.db"),
        Name::new("node").unwrap(),
        key,
    );
    let clock = ManualClock::default();
    let store = SqliteStore::open(config, clock.shared()).await.unwrap();
    conformance::all(&Fixture {
        store: Arc::new(store.clone()),
        clock,
    })
    .await;
    store.close().await;
    let left: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|file| file.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 2, "only database and head are left: {left:?}");
}
