//! One process per message: every way a handler can misbehave has a bounded, visible outcome.

mod common;

use std::time::Duration;

use common::Fixture;
use volary_deploy::backend::{Backend, HandlerExit, HandlerRun};

#[tokio::test]
async fn a_handler_gets_its_input_and_its_output_comes_back() {
    let fixture = Fixture::new().await;
    let run = HandlerRun::new(
        fixture.id("echo", 0),
        fixture.sh("cat; echo done >&2"),
        "hello\n",
    );
    let outcome = fixture.backend.run_handler(run).await;
    assert_eq!(outcome.exit, HandlerExit::Exited(0), "{outcome:?}");
    assert_eq!(&outcome.stdout[..], b"hello\n");
    assert!(fixture.log("echo", 0).await.contains("done"));
}

#[tokio::test]
async fn the_spawn_cost_is_small() {
    let fixture = Fixture::new().await;
    let mut took = Vec::new();
    for _round in 0..50 {
        let run = HandlerRun::new(fixture.id("true", 0), fixture.program(["/bin/true"]), "");
        let outcome = fixture.backend.run_handler(run).await;
        assert_eq!(outcome.exit, HandlerExit::Exited(0));
        took.push(outcome.duration);
    }
    took.sort_unstable();
    assert!(took[25] < Duration::from_millis(100));
}
