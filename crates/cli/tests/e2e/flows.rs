//! Flows of agents, as operators see them.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use volary::{
    flow::{Context, FlowBuilder, NodeError, RunConfig},
    link::{Link as FlowLink, LinkFlow, Origin, answer},
    ops::client::{Client, ClientError, read_token},
};
use volary_testkit::process::{eventually, kill9};

use crate::support::{Agent, Fleet, PATIENCE};

/// A replica that hands its token out and idles.
pub const IDLE: &str =
    "cp \"$VOLARY_TOKEN_FILE\" ../token.tmp && mv ../token.tmp ../token\nsleep 600\n";

/// Speaks the link API for the replica that idles.
pub struct Link {
    client: Client,
    runtime: tokio::runtime::Runtime,
}

impl Link {
    pub fn of(fleet: &Fleet) -> Self {
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

    pub fn post(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        self.runtime.block_on(self.client.post(path, body))
    }
}

pub fn description(flow: &str) -> Value {
    let node = |name: &str| json!({"name": name, "kind": "node", "input": "Order", "output": "Order", "queue": 64});
    json!({"flows": [{"name": flow, "description": {
        "version": 1, "flow": flow, "nodes": [node("check"), node("charge")],
        "edges": [{"from": "check", "to": "charge"}], "ingress": ["check"], "egress": ["charge"],
    }}]})
}

pub fn document(fleet: &Fleet, arguments: &[&str]) -> Value {
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

// --- an agent in Rust whose work is a flow -----------------------------------------------------------

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Order {
    amount: u64,
    /// Fails the first attempt at it.
    #[serde(default)]
    flaky: bool,
    #[serde(default)]
    slow: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Receipt {
    charged: u64,
    trace: String,
}

async fn check(order: Order, _: Context) -> Result<Order, NodeError> {
    if order.amount == 0 {
        return Err(NodeError::permanent("an order of nothing"));
    }
    if order.slow {
        volary_kernel::clock::sleep(Duration::from_secs(600)).await;
    }
    Ok(order)
}

/// Writes down its key, as a payment service would that refuses to charge twice.
async fn charge(order: Order, context: Context) -> Result<Receipt, NodeError> {
    let (path, key) = ("../keys.txt", context.idempotency_key());
    let seen = std::fs::read_to_string(path).unwrap_or_default();
    std::fs::write(path, format!("{seen}{} {key}\n", order.amount))?;
    if order.flaky && !seen.contains(&key) {
        return Err(NodeError::retryable("the bank is closed"));
    }
    let origin = Origin::of(context.meta());
    let origin = origin.ok_or_else(|| NodeError::permanent("no message led here"))?;
    Ok(Receipt {
        charged: order.amount,
        trace: origin.trace.to_string(),
    })
}

/// The agent: this very program, run by the fleet of the test below.
#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "a replica finds its link in its environment"
)]
fn agent() {
    let Some(link) = std::env::var_os("VOLARY_LINK") else {
        return;
    };
    let token = std::env::var_os("VOLARY_TOKEN_FILE").unwrap();
    let link = FlowLink::open(link.to_str().unwrap(), token.as_ref()).unwrap();
    let mut flow = FlowBuilder::new("orders");
    let (check, charge) = (flow.node("check", check), flow.node("charge", charge));
    flow.connect(check, charge).ingress(check).egress(charge);
    let agent = LinkFlow::new(link, flow.build().unwrap()).answer(|_, receipt: Receipt| {
        let mut actions = answer::publish("receipts", &receipt)?;
        actions.extend(answer::report(&receipt)?);
        Ok(actions)
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let report = runtime.unwrap().block_on(async {
        let stop = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate()).unwrap();
        let stopping = async {
            terminate.recv().await;
            stop.cancel();
        };
        let served = agent.serve(RunConfig::default(), stop.clone());
        futures_util::join!(Box::pin(served), stopping).0
    });
    std::fs::write("../report.txt", format!("{report:?}")).unwrap();
}

fn orders() -> Fleet {
    orders_within("10s")
}

/// A fleet whose agent `desk` has a flow work on its orders; a claim holds so long.
pub fn orders_within(timeout: &str) -> Fleet {
    let program = std::env::current_exe().unwrap();
    let run = format!(
        "exec '{}' --exact flows::agent --nocapture\n",
        program.display()
    );
    let spec = format!(
        "command: [sh, ./run.sh]\nstopGracePeriod: 10s\ndelivery: {{timeout: {timeout}, maxAttempts: 3}}\n"
    );
    let desk = Agent {
        name: "desk",
        spec: &spec,
        script: &run,
    };
    let books = Agent {
        name: "books",
        spec: "handler: [sh, ./run.sh]\ntopics: [receipts]\n",
        script: "cat >> ../receipts.txt\n",
    };
    let fleet = Fleet::new(&[desk, books], "");
    fleet.up();
    fleet
}

/// Sends an order; what `send --wait` says, and its exit code.
fn order(fleet: &Fleet, order: &str, more: &[&str]) -> (Value, Option<i32>) {
    let arguments = [
        &[
            "send", "--to", "desk", order, "--wait", "20s", "--json", "-C", "fleet",
        ],
        more,
    ];
    let output = fleet.run(&arguments.concat());
    let reply = serde_json::from_str(&output.stdout);
    (
        reply.unwrap_or_else(|_| panic!("{}\n{}", output.stdout, output.stderr)),
        output.code,
    )
}

pub fn kinds(fleet: &Fleet, trace: &Value) -> Vec<String> {
    let trace = trace.as_str().unwrap();
    let events = fleet
        .events()
        .into_iter()
        .filter(|event| event["trace"] == trace);
    events
        .map(|event| event["kind"].as_str().unwrap().to_owned())
        .collect()
}

fn keys(fleet: &Fleet, amount: u64) -> Vec<String> {
    let keys = std::fs::read_to_string(fleet.path("keys.txt")).unwrap_or_default();
    let of = |line: &str| line.strip_prefix(&format!("{amount} ")).map(str::to_owned);
    keys.lines().filter_map(of).collect()
}

/// A message is handled by a flow: trace, deadline and tenant go in, sends and acknowledgement come out together.
#[test]
fn an_agent_handles_its_messages_by_a_flow() {
    let fleet = orders();
    let (done, code) = order(&fleet, r#"{"amount": 5}"#, &[]);
    assert_eq!(
        (&done["outcome"], code),
        (&json!("done"), Some(0)),
        "{}",
        fleet.node_log()
    );
    let kinds_of = kinds(&fleet, &done["trace"]);
    for kind in ["delivery.acked", "agent.report", "message.accepted"] {
        assert!(
            kinds_of.iter().any(|found| found == kind),
            "{kind}: {kinds_of:?}"
        );
    }
    let receipts = fleet.path("receipts.txt");
    let told = || std::fs::read_to_string(&receipts).unwrap_or_default();
    let trace = done["trace"].as_str().unwrap();
    let receipt = format!(r#""payload":{{"charged":5,"trace":"{trace}"}}"#);
    assert!(
        eventually(PATIENCE, || told().contains(&receipt)),
        "{}",
        told()
    );

    // What cannot be mended is parked, with the node that refused it.
    let (failed, code) = order(&fleet, r#"{"amount": 0}"#, &[]);
    assert_eq!((&failed["outcome"], code), (&json!("failed"), Some(1)));
    let reason = failed["reason"].as_str().unwrap();
    assert!(
        reason.contains("node check") && reason.contains("an order of nothing"),
        "{reason}"
    );
    let parked = kinds(&fleet, &failed["trace"]);
    assert!(
        parked.iter().any(|kind| kind == "delivery.parked"),
        "{parked:?}"
    );

    // What is redelivered has the keys it had; another message has others.
    let (again, _) = order(&fleet, r#"{"amount": 7, "flaky": true}"#, &[]);
    assert_eq!(again["outcome"], "done");
    let (seven, five) = (keys(&fleet, 7), keys(&fleet, 5));
    assert_eq!((seven.len(), five.len()), (2, 1), "{seven:?} {five:?}");
    assert!(
        seven[0] == seven[1] && seven[0] != five[0],
        "{seven:?} {five:?}"
    );

    // The message's deadline bounds the trace.
    let late = [r#"{"amount": 9, "slow": true}"#, "--deadline", "1s"];
    let (late, code) = order(&fleet, late[0], &late[1..]);
    assert_eq!(
        (&late["outcome"], code),
        (&json!("deadline_exceeded"), Some(124))
    );
    assert!(keys(&fleet, 9).is_empty());

    // A payload that the flow does not take.
    let (bad, _) = order(&fleet, r#"{"sum": 5}"#, &[]);
    assert_eq!(bad["outcome"], "failed");
    assert!(
        bad["reason"]
            .as_str()
            .unwrap()
            .contains("missing field `amount`"),
        "{bad}"
    );

    fleet.down();
    let report = std::fs::read_to_string(fleet.path("report.txt")).unwrap();
    assert!(
        report.contains("acked: 2") && report.contains("given_up: 2"),
        "{report}"
    );
    assert!(report.contains("unfinished: []"), "{report}");
}

/// Operators see the flow: drawn, counted, and its failures in the feed, under the trace of the message.
#[test]
fn operators_see_the_flow_of_an_agent() {
    let fleet = orders();
    let drawn = ["flow", "graph", "orders", "-C", "fleet"];
    let registered = || fleet.run(&drawn).code == Some(0);
    assert!(eventually(PATIENCE, registered), "{}", fleet.node_log());
    let graph = fleet.run(&drawn).ok().stdout;
    assert!(graph.contains("n_check --> n_charge"), "{graph}");

    let follow = ["events", "-f", "--json", "--kind", "flow.*", "-C", "fleet"];
    let mut follower = fleet.command(&follow);
    let mut follower = follower
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let out = std::io::BufReader::new(follower.stdout.take().unwrap());
    let reader = std::thread::spawn(move || {
        for line in std::io::BufRead::lines(out).map_while(Result::ok) {
            let _nobody_listens = tell.send(line);
        }
    });
    let (done, _) = order(&fleet, r#"{"amount": 5}"#, &[]);
    assert_eq!(done["outcome"], "done");
    // A signal is for who looks when it comes: an order fails until the follower is connected.
    let mut traces = Vec::new();
    let mut heard = Value::Null;
    let ended = eventually(PATIENCE, || {
        let (failed, _) = order(&fleet, r#"{"amount": 0}"#, &[]);
        traces.push(failed["trace"].clone());
        let line = told
            .recv_timeout(Duration::from_secs(2))
            .unwrap_or_default();
        heard = serde_json::from_str(&line).unwrap_or_default();
        !heard.is_null()
    });
    follower.kill().unwrap();
    follower.wait().unwrap();
    reader.join().unwrap();
    assert!(ended, "{}", fleet.node_log());
    assert!(
        traces.contains(&heard["trace"]),
        "{heard} is of none of {traces:?}"
    );
    assert_eq!(
        (&heard["agent"], &heard["tenant"]),
        (&json!("desk"), &json!("default"))
    );
    assert_eq!(heard["body"]["flow"], "orders");

    let mut metrics = String::new();
    let has = |metrics: &str, series: &str, labels: &str| {
        let line = format!("volary_{series}{{agent=\"desk\",flow=\"orders\",{labels}}} ");
        metrics
            .lines()
            .any(|found| found.strip_prefix(&line).is_some_and(|value| value != "0"))
    };
    let counted = eventually(PATIENCE, || {
        metrics = fleet.api().request("GET", "/metrics", "").unwrap().1;
        has(&metrics, "flow_node_success_total", "node=\"charge\"")
            && has(&metrics, "flow_node_failed_total", "node=\"check\"")
            && has(&metrics, "flow_traces_ended_total", "outcome=\"failed\"")
            && has(&metrics, "flow_items_total", "outcome=\"given_up\"")
    });
    assert!(counted, "{metrics}");
    let list = document(&fleet, &["flow", "list"]);
    assert_eq!(
        (&list[0]["done"], &list[0]["nodes"]),
        (&json!(1), &json!(2)),
        "{list}"
    );
    fleet.down();
}
