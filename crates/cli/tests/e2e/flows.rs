//! Flows of agents, as operators see them.

use std::time::Duration;

use serde_json::{Value, json};
use volary::ops::client::{Client, ClientError, read_token};
use volary_testkit::process::{eventually, kill9};

use crate::support::{Agent, Fleet, PATIENCE};

/// A replica that hands its token out and idles.
const IDLE: &str =
    "cp \"$VOLARY_TOKEN_FILE\" ../token.tmp && mv ../token.tmp ../token\nsleep 600\n";

/// Speaks the link API for the replica that idles.
struct Link {
    client: Client,
    runtime: tokio::runtime::Runtime,
}

impl Link {
    fn of(fleet: &Fleet) -> Self {
        let token = fleet.path("token");
        assert!(
            eventually(PATIENCE, || token.exists()),
            "{}",
            fleet.node_log()
        );
        let socket = fleet.env.state().join("link/link.sock");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        Self {
            client: Client::unix(socket).token(read_token(&token).unwrap()),
            runtime: runtime.unwrap(),
        }
    }

    fn post(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        self.runtime.block_on(self.client.post(path, body))
    }
}

fn description(flow: &str) -> Value {
    let node = |name: &str| json!({"name": name, "kind": "node", "input": "Order", "output": "Order", "queue": 64});
    json!({"flows": [{"name": flow, "description": {
        "version": 1, "flow": flow, "nodes": [node("check"), node("charge")],
        "edges": [{"from": "check", "to": "charge"}], "ingress": ["check"], "egress": ["charge"],
    }}]})
}

fn document(fleet: &Fleet, arguments: &[&str]) -> Value {
    let arguments = [arguments, &["--json", "-C", "fleet"]].concat();
    serde_json::from_str(&fleet.run(&arguments).ok().stdout).unwrap()
}

/// What an agent of any language says of its flows is listed, drawn and counted; and gone with its process.
#[test]
fn what_an_agent_says_of_its_flows_lives_as_long_as_its_process() {
    let desk = Agent {
        name: "desk",
        spec: "command: [sh, ./run.sh]\nstopGracePeriod: 100ms\n",
        script: IDLE,
    };
    let fleet = Fleet::new(&[desk], "");
    fleet.up();
    let nothing = fleet.run(&["flow", "list", "-C", "fleet"]).ok();
    assert_eq!(nothing.stdout.lines().count(), 1, "{}", nothing.stdout);

    let link = Link::of(&fleet);
    let run = link.post("/v1/flows", &description("orders")).unwrap()["run"].clone();
    let labels = json!({"flow": "orders", "node": "charge"});
    let report = json!({"run": run, "series": [
        {"name": "flow_node_failed", "labels": labels, "value": {"counter": 2}},
        {"name": "flow_traces_ended", "labels": {"flow": "orders", "outcome": "done"}, "value": {"counter": 7}},
        {"name": "flow_traces_inflight", "labels": {"flow": "orders"}, "value": {"gauge": 3}},
    ]});
    for _again in 0..2 {
        link.post("/v1/flows/report", &report).unwrap();
    }
    let metrics = fleet.api().request("GET", "/metrics", "").unwrap().1;
    let failed = "volary_flow_node_failed_total{agent=\"desk\",flow=\"orders\",node=\"charge\"} 2";
    assert!(metrics.contains(failed), "{metrics}");
    let list = document(&fleet, &["flow", "list"]);
    assert_eq!(
        (
            &list[0]["name"],
            &list[0]["agent"],
            &list[0]["done"],
            &list[0]["in_flight"]
        ),
        (&json!("orders"), &json!("desk"), &json!(7), &json!(3))
    );

    let drawn = fleet
        .run(&["flow", "graph", "orders", "-C", "fleet"])
        .ok()
        .stdout;
    insta::assert_snapshot!("flow-graph-mermaid", drawn);
    let dot = [
        "flow",
        "graph",
        "orders",
        "--format",
        "dot",
        "--direction",
        "TB",
        "-C",
        "fleet",
    ];
    insta::assert_snapshot!("flow-graph-dot", fleet.run(&dot).ok().stdout);
    let unknown = fleet.run(&["flow", "graph", "order", "-C", "fleet"]);
    assert_eq!(unknown.code, Some(1));
    insta::assert_snapshot!("flow-graph-unknown", unknown.stderr);

    // What was not registered is refused, and so is a report of a run that has ended.
    let refused = link.post(
        "/v1/flows",
        &json!({"flows": [{"name": "a", "description": {}}]}),
    );
    assert_eq!(refused.unwrap_err().status(), Some(400));
    link.post("/v1/flows", &description("orders")).unwrap();
    let ended = link.post("/v1/flows/report", &report).unwrap_err();
    assert_eq!(ended.status(), Some(409), "{ended}");

    let pid = document(&fleet, &["ps"])[0]["pid"].as_u64().unwrap();
    kill9(u32::try_from(pid).unwrap());
    let gone = || document(&fleet, &["flow", "list"]) == json!([]);
    assert!(eventually(PATIENCE, gone), "{}", fleet.node_log());
    fleet.down();
}

/// An event of a flow is shown to whoever follows, with tenant, agent and trace.
#[test]
fn events_of_flows_are_in_the_live_feed() {
    let desk = Agent {
        name: "desk",
        spec: "command: [sh, ./run.sh]\nstopGracePeriod: 100ms\n",
        script: IDLE,
    };
    let fleet = Fleet::new(&[desk], "");
    fleet.up();
    let link = Link::of(&fleet);
    let run = link.post("/v1/flows", &description("orders")).unwrap()["run"].clone();
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let event = json!({"at": "2026-11-21T09:26:13.042Z", "kind": "node_failed", "flow": "orders", "node": "charge",
        "trace": trace, "attempt": 3, "details": {"code": "node_error", "reason": "card refused"}});
    let report = json!({"run": run, "events": [event]});
    let arguments = ["events", "-f", "--json", "--kind", "flow.*", "-C", "fleet"];
    let mut follower = fleet.command(&arguments);
    let mut follower = follower
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let out = follower.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut line = String::new();
        let mut out = std::io::BufReader::new(out);
        let _read = std::io::BufRead::read_line(&mut out, &mut line);
        tell.send(line).unwrap();
    });
    let mut line = String::new();
    // A signal is for who looks when it comes: it is told until the follower is connected.
    let heard = eventually(PATIENCE, || {
        link.post("/v1/flows/report", &report).unwrap();
        line = told
            .recv_timeout(Duration::from_millis(200))
            .unwrap_or_default();
        !line.is_empty()
    });
    follower.kill().unwrap();
    follower.wait().unwrap();
    reader.join().unwrap();
    assert!(heard, "{}", fleet.node_log());
    let event: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        (
            &event["seq"],
            &event["kind"],
            &event["agent"],
            &event["tenant"],
            &event["trace"]
        ),
        (
            &json!(null),
            &json!("flow.node_failed"),
            &json!("desk"),
            &json!("default"),
            &json!(trace)
        )
    );
    assert_eq!(event["body"]["reason"], "card refused");
    fleet.down();
}
