//! A fleet's rate limit: who sends too fast is told when to come again, and a handler's sends wait instead of failing.

use serde_json::{Value, json};
use volary_testkit::process::eventually;

use crate::support::{Agent, Fleet, PATIENCE, of_kind};

/// Two messages for each one.
const DOUBLER: &str = r#"n=$(sed -n 's/.*"payload":{"n":\([0-9]*\)}.*/\1/p')
printf '{"send":{"topic":"out","payload":{"n":%s1}}}\n{"send":{"topic":"out","payload":{"n":%s2}}}\n' "$n" "$n"
"#;
const SINK: &str = r#"sed -n 's/.*"payload":{"n":\([0-9]*\)}.*/\1/p' >> ../sink.txt
"#;

fn fleet(limit: &str) -> Fleet {
    let handler = "handler: [sh, ./run.sh]\ndelivery: {timeout: 10s, maxAttempts: 2}\n";
    let extra = format!("messaging:\n  hooks:\n    - validate: {{}}\n    - rateLimit: {limit}\n");
    Fleet::new(
        &[
            Agent {
                name: "doubler",
                spec: &format!("{handler}topics: [in]\n"),
                script: DOUBLER,
            },
            Agent {
                name: "sink",
                spec: &format!("{handler}topics: [out]\n"),
                script: SINK,
            },
        ],
        &extra,
    )
}

#[test]
fn a_sender_over_the_limit_is_told_when_to_come_again() {
    let fleet = fleet("{topic: {capacity: 2, refillPerSecond: 0.01}}");
    fleet.up();
    let send = |topic: &str| {
        let body = json!({"topic": topic, "payload": 1}).to_string();
        let (status, reply) = fleet.api().request("POST", "/v1/messages", &body).unwrap();
        (status, serde_json::from_str::<Value>(&reply).unwrap())
    };
    assert_eq!([send("out").0, send("out").0], [200, 200]);
    let (status, reply) = send("out");
    assert_eq!(
        (status, &reply["error"]["code"]),
        (429, &json!("V7103")),
        "{reply}"
    );
    let told = fleet
        .run(&["send", "--topic", "out", "1", "-C", "fleet"])
        .code(75)
        .stderr;
    assert!(
        told.contains("V7103") && told.contains("try again in"),
        "{told}"
    );
    // Another topic has its own bucket; in a batch each message has its own answer.
    let other = json!({"topic": "in", "payload": {"n": 1}});
    let both = json!({"messages": [other, {"topic": "out", "payload": 1}]}).to_string();
    let (status, reply) = fleet
        .api()
        .request("POST", "/v1/messages/batch", &both)
        .unwrap();
    let reply: Value = serde_json::from_str(&reply).unwrap();
    let answers = [
        &reply["sent"][0]["admission"],
        &reply["sent"][1]["admission"],
    ];
    assert_eq!(
        (status, answers),
        (200, [&json!("queued"), &json!("refused")]),
        "{reply}"
    );
    let metrics = fleet.api().request("GET", "/metrics", "").unwrap().1;
    let counted = "volary_rate_limit_egress_dropped_total{bucket=\"topic\"}";
    assert!(
        metrics.lines().any(|line| line.starts_with(counted)),
        "{metrics}"
    );
}

#[test]
fn what_a_handler_sends_waits_for_the_limit_and_no_attempt_fails() {
    let fleet = fleet("{topic: {capacity: 4, refillPerSecond: 8}}");
    fleet.up();
    let messages: Vec<Value> = (1..=4)
        .map(|n| json!({"topic": "in", "payload": {"n": n}}))
        .collect();
    let body = json!({ "messages": messages }).to_string();
    fleet
        .api()
        .request("POST", "/v1/messages/batch", &body)
        .unwrap();
    let lines = || std::fs::read_to_string(fleet.path("sink.txt")).unwrap_or_default();
    let all = || lines().lines().count() == 8;
    assert!(
        eventually(PATIENCE, all),
        "{}\n{:#?}\n{}",
        lines(),
        fleet.events(),
        fleet.node_log()
    );
    let events = fleet.events();
    assert!(
        of_kind(&events, "delivery.failed").is_empty(),
        "{events:#?}"
    );
    let metrics = fleet.api().request("GET", "/metrics", "").unwrap().1;
    let counted = "volary_rate_limit_egress_dropped_total{bucket=\"topic\"}";
    let refused = || {
        metrics
            .lines()
            .find_map(|line| line.strip_prefix(counted)?.trim().parse::<f64>().ok())
    };
    assert!(
        refused() > Some(0.0),
        "the limit was never reached\n{metrics}"
    );
}
