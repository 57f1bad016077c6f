//! The store in memory does what every store must.

use std::sync::Arc;

use volary_kernel::{ManualClock, Name};
use volary_store::{
    MemoryConfig, MemoryStore,
    conformance::{self, Fixture},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_in_memory_conforms() {
    let clock = ManualClock::default();
    let config = MemoryConfig::new(Name::new("node").unwrap());
    let store = Arc::new(MemoryStore::new(config, clock.shared()));
    conformance::all(&Fixture { store, clock }).await;
}
