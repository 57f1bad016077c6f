//! Handlers that misbehave: each has a bounded, visible outcome, and the others go on.

use serde_json::Value;
use volary_testkit::process::eventually;

use crate::support::{Agent, Fleet, PATIENCE, of_kind};

const SPEC: &str = "handler: {command: [sh, ./run.sh], maxOutput: 64Ki}\ntopics: [work]\n\
    delivery: {timeout: 1s, maxAttempts: 2, backoff: {base: 50ms, max: 100ms}}\n";

/// Runs one handler on one message and returns the journal once the message is parked.
fn parked(script: &str) -> (Fleet, Vec<Value>) {
    let fleet = Fleet::new(
        &[Agent {
            name: "worker",
            spec: SPEC,
            script,
        }],
        "",
    );
    fleet.up();
    assert!(fleet.api().send("work", 1));
    let events = fleet.await_events("delivery.parked", |events| {
        !of_kind(events, "delivery.parked").is_empty()
    });
    (fleet, events)
}

fn check(script: &str, reason: &str) {
    let (fleet, events) = parked(script);
    let parked = of_kind(&events, "delivery.parked")[0].to_string();
    assert!(
        parked.contains(reason),
        "the reason does not say `{reason}`: {parked}"
    );
    assert_eq!(
        of_kind(&events, "delivery.claimed").len(),
        2,
        "two attempts"
    );
    assert_eq!(
        of_kind(&events, "message.accepted").len(),
        1,
        "a failed attempt sent something"
    );
    let list = fleet
        .env
        .run(["parked", "list", "--json", "-C", "fleet"])
        .ok()
        .stdout;
    assert!(list.contains("worker"), "{list}");
    assert!(
        eventually(PATIENCE, || fleet.env.survivors().len() == 1),
        "{}",
        fleet.env.survivors_shown()
    );
    fleet.down();
}

#[test]
fn a_handler_that_hangs_is_killed_at_its_timeout() {
    check(
        "echo '{\"send\":{\"topic\":\"work\",\"payload\":1}}'\nsleep 600\n",
        "timeout",
    );
}

#[test]
fn a_handler_that_exits_1_has_its_actions_discarded() {
    check(
        "echo '{\"send\":{\"topic\":\"work\",\"payload\":1}}'\nexit 1\n",
        "exit",
    );
}

#[test]
fn a_handler_that_prints_garbage_is_told_the_line() {
    check(
        "echo '{\"send\":{\"topic\":\"work\",\"payload\":1}}'\necho 'no json'\n",
        "line 2",
    );
}

#[test]
fn a_handler_that_prints_100_mb_is_stopped_at_its_bound() {
    check("yes x | head -c 100000000\n", "output");
}

#[test]
fn children_that_outlive_their_handler_die_with_it_and_its_work_counts() {
    let script = "(setsid sh -c 'sleep 600' >/dev/null 2>&1 </dev/null &)\nsleep 600 &\nexit 0\n";
    let fleet = Fleet::new(
        &[Agent {
            name: "worker",
            spec: SPEC,
            script,
        }],
        "",
    );
    fleet.up();
    assert!(fleet.api().send("work", 1));
    fleet.await_events("delivery.acked", |events| {
        !of_kind(events, "delivery.acked").is_empty()
    });
    assert!(
        eventually(PATIENCE, || fleet.env.survivors().len() == 1),
        "{}",
        fleet.env.survivors_shown()
    );
    fleet.down();
}

#[test]
fn a_parked_item_can_be_tried_again_and_dropped() {
    let (fleet, _) = parked("test -e ../fixed\n");
    let list = fleet
        .env
        .run(["parked", "list", "--json", "-C", "fleet"])
        .ok()
        .stdout;
    let list: Value = serde_json::from_str(&list).unwrap();
    let id = list[0]["id"].as_str().unwrap().to_owned();
    fleet.env.write("fleet/fixed", "");
    let _retried = fleet.env.run(["parked", "retry", &id, "-C", "fleet"]).ok();
    fleet.await_events("delivery.acked", |events| {
        !of_kind(events, "delivery.acked").is_empty()
    });
    fleet.down();
}
