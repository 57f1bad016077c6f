//! Tasks from outside: workers that are killed, a node that is killed, handlers that work tasks of their pool.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use volary_testkit::process::{eventually, kill9};

use crate::support::{Agent, Fleet, PATIENCE, full, of_kind};

/// Claims one task and never answers; after it was killed, it only sleeps.
const STUCK: &str = r#"[ -e ../claimed.txt ] && exec sleep 600
"$VOLARY_BIN" tasks claim --wait 60s > ../claimed.tmp && mv ../claimed.tmp ../claimed.txt
sleep 600
"#;

/// Works tasks once it may begin.
const WORKER: &str = r#"while [ ! -e ../go ]; do sleep 0.05; done
while :; do
  doc=$("$VOLARY_BIN" tasks claim --wait 30s) || continue
  claim=$(printf '%s' "$doc" | sed -n 's/.*"claim":"\([^"]*\)".*/\1/p')
  "$VOLARY_BIN" tasks report "$claim" '"recovered"' >/dev/null
done
"#;

/// A handler that reports what it was asked for, and tells somebody.
const HANDLER: &str = r#"doc=$(cat)
n=$(printf '%s' "$doc" | sed -n 's/.*"objective":{"n":\([0-9]*\)}.*/\1/p')
printf '{"report":{"n":%s}}\n{"send":{"topic":"done","payload":{"n":%s}}}\n' "$n" "$n"
"#;

/// Writes down what it was told.
const SINK: &str = r#"doc=$(cat)
n=$(printf '%s' "$doc" | sed -n 's/.*"payload":{"n":\([0-9]*\)}.*/\1/p')
printf '%s\n' "$n" >> ../sink.txt
"#;

fn volary(fleet: &Fleet, arguments: &[&str]) -> String {
    let arguments = [arguments, &["-C", "fleet"]].concat();
    fleet
        .env
        .run_within(PATIENCE, fleet.env.command(arguments))
        .ok()
        .stdout
}

fn document(fleet: &Fleet, arguments: &[&str]) -> Value {
    let arguments = [arguments, &["--json"]].concat();
    serde_json::from_str(&volary(fleet, &arguments)).unwrap()
}

fn at(event: &Value) -> i64 {
    let at: volary_kernel::Timestamp = event["at"].as_str().unwrap().parse().unwrap();
    at.as_micros()
}

/// SIGKILLed workers' tasks are reclaimed within their TTL and a second, and completed by others.
#[test]
fn the_task_of_a_killed_worker_is_done_by_another_in_time() {
    let link = "command: [sh, ./run.sh]\npools: [crew]\nstopGracePeriod: 100ms\n";
    let agent = |name, script| Agent {
        name,
        spec: link,
        script,
    };
    let fleet = Fleet::new(&[agent("stuck", STUCK), agent("worker", WORKER)], "");
    fleet.up();
    let pools = document(&fleet, &["pools", "show", "crew"]);
    assert_eq!(pools["members"], json!(["stuck", "worker"]));
    let submit = [
        "tasks",
        "submit",
        r#"{"n":1}"#,
        "--pool",
        "crew",
        "--claim-ttl",
        "2s",
    ];
    let id = volary(&fleet, &submit).trim().to_owned();
    let claimed = fleet.path("claimed.txt");
    assert!(
        eventually(PATIENCE, || claimed.exists()),
        "{}",
        fleet.node_log()
    );
    let replicas = document(&fleet, &["ps"]);
    let stuck = replicas
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["agent"] == "stuck");
    kill9(u32::try_from(stuck.unwrap()["pid"].as_u64().unwrap()).unwrap());
    std::fs::write(fleet.path("go"), "").unwrap();

    let task = document(&fleet, &["tasks", "wait", &id, "--timeout", "15s"]);
    assert_eq!(
        (&task["state"], &task["result"]),
        (&json!("completed"), &json!("recovered"))
    );
    assert_eq!(
        (&task["attempts"], &task["assigned_to"]),
        (&json!(2), &json!("worker/worker-0"))
    );
    let events = fleet.events();
    let claims = of_kind(&events, "task.claimed");
    assert_eq!(
        (claims.len(), of_kind(&events, "task.lapsed").len()),
        (2, 1)
    );
    let waited = at(claims[1]) - at(claims[0]);
    assert!(
        (2_000_000..3_000_000).contains(&waited),
        "claimed again after {waited} µs"
    );
    fleet.down();
}

/// Tasks that were submitted survive `kill -9` of the node; the handler agent of their pool does each, and what follows
/// from each is sent once. 30 tasks; 1,000 with `VOLARY_TEST_FULL=1`.
#[test]
fn submitted_tasks_survive_the_node() {
    let count = if full() { 1_000 } else { 30 };
    let crew = "handler: [sh, ./run.sh]\npools: [crew]\ndelivery: {concurrency: 4, timeout: 10s}\n";
    let sink = "handler: [sh, ./run.sh]\ntopics: [done]\ndelivery: {concurrency: 1}\n";
    let fleet = Fleet::new(
        &[
            Agent {
                name: "crew",
                spec: crew,
                script: HANDLER,
            },
            Agent {
                name: "sink",
                spec: sink,
                script: SINK,
            },
        ],
        "",
    );
    fleet.up();
    let api = fleet.api();
    for n in 0..count {
        let body = json!({"pool": "crew", "objective": {"n": n}, "max_retries": 20});
        let (status, reply) = api.request("POST", "/v1/tasks", &body.to_string()).unwrap();
        assert_eq!(status, 200, "{reply}");
    }
    kill9(fleet.pid());
    assert!(eventually(PATIENCE, || fleet.env.survivors().is_empty()));
    fleet.up();
    let done = |fleet: &Fleet| {
        let limit = "1000";
        let list = [
            "tasks",
            "list",
            "--task-state",
            "completed",
            "--limit",
            limit,
        ];
        document(fleet, &list).as_array().unwrap().clone()
    };
    let all = eventually(PATIENCE * 3, || done(&fleet).len() == count);
    assert!(
        all,
        "{} of {count}\n{}",
        done(&fleet).len(),
        fleet.node_log()
    );
    for task in done(&fleet) {
        assert_eq!(task["result"]["n"], task["objective"]["n"]);
    }
    let lines = || std::fs::read_to_string(fleet.path("sink.txt")).unwrap_or_default();
    let told = eventually(PATIENCE, || {
        lines().lines().collect::<BTreeSet<_>>().len() == count
    });
    assert!(told, "{}", lines());
    let events = fleet.events();
    assert_eq!(
        of_kind(&events, "task.completed").len(),
        count,
        "each is completed once"
    );
    fleet.down();
}

/// What an operator asks of tasks and pools, and what the answers are.
#[test]
fn tasks_and_pools_from_the_command_line() {
    let link = "command: [sh, ./run.sh]\nstopGracePeriod: 100ms\n";
    let idle = Agent {
        name: "idle",
        spec: link,
        script: "sleep 600\n",
    };
    let fleet = Fleet::new(&[idle], "");
    fleet.up();
    let id = "018f8c2a-0000-7000-8000-000000000001";
    let submit = [
        "tasks",
        "submit",
        "1",
        "--id",
        id,
        "--pool",
        "p",
        "--max-retries",
        "0",
    ];
    assert_eq!(document(&fleet, &submit)["repeated"], json!(false));
    assert_eq!(document(&fleet, &submit)["repeated"], json!(true));
    let other = fleet
        .env
        .run(["tasks", "submit", "2", "--id", id, "-C", "fleet"]);
    assert!(
        other.code == Some(1) && other.stderr.contains("another content"),
        "{}",
        other.stderr
    );
    let wait = fleet
        .env
        .run(["tasks", "wait", id, "--timeout", "100ms", "-C", "fleet"]);
    assert_eq!(wait.code, Some(124), "{}", wait.stderr);
    assert!(volary(&fleet, &["tasks", "list"]).contains("pending"));
    assert_eq!(volary(&fleet, &["tasks", "cancel", id]).trim(), id);
    assert_eq!(
        document(&fleet, &["tasks", "show", id])["state"],
        "cancelled"
    );

    assert_eq!(
        document(&fleet, &["pools", "create", "p", "--allow", "x"])["changed"],
        json!(true)
    );
    assert_eq!(
        document(&fleet, &["pools", "join", "p", "idle"])["changed"],
        json!(true)
    );
    assert_eq!(
        document(&fleet, &["pools", "list"])[0]["members"],
        json!(["idle"])
    );
    let conflict = fleet.env.run(["pools", "create", "p", "-C", "fleet"]);
    assert!(
        conflict.stderr.contains("another admission"),
        "{}",
        conflict.stderr
    );
    let sent = document(&fleet, &["send", "--pool", "p", "1"]);
    assert_eq!(sent["admission"], "queued");
    assert_eq!(
        document(&fleet, &["pools", "leave", "p", "idle"])["changed"],
        json!(true)
    );
    assert_eq!(
        document(&fleet, &["pools", "delete", "p"])["changed"],
        json!(true)
    );
    fleet.down();
}
