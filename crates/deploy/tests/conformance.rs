//! The process backend keeps the contract of the seam, and leaves nothing behind.

mod common;

use common::Fixture;
use volary_deploy::backend::{Backend, conformance};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_process_backend_keeps_the_contract() {
    let fixture = Fixture::new().await;
    conformance::all(&fixture.backend).await;
    fixture.backend.close().await;
    assert_eq!(
        std::fs::read_dir(fixture.state().join("replicas"))
            .unwrap()
            .count(),
        0
    );
}
