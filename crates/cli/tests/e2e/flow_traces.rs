//! Traces of an agent's flow, as operators see, pause, resume and cancel them.

use serde_json::{Value, json};
use volary_testkit::process::{eventually, kill9};

use crate::{
    flows::{IDLE, Link, description, document, kinds, orders_within},
    support::{Agent, Fleet, PATIENCE},
};

/// Sends an order that takes ten minutes; returns the trace of the message.
fn slow_order(fleet: &Fleet, amount: u32) -> String {
    let order = format!(r#"{{"amount": {amount}, "slow": true}}"#);
    let sent = document(fleet, &["send", "--to", "desk", &order]);
    sent["trace"].as_str().unwrap().to_owned()
}

fn traces(fleet: &Fleet) -> Value {
    document(fleet, &["flow", "traces", "orders"])
}

/// The one trace of a message, once there is one in this state.
fn trace_in(fleet: &Fleet, message: &str, state: &str) -> Value {
    let mut found = Value::Null;
    let there = eventually(PATIENCE, || {
        let listed = fleet.run(&["flow", "traces", "orders", "--json", "-C", "fleet"]);
        let listed: Value = serde_json::from_str(&listed.stdout).unwrap_or_default();
        let traces = listed.as_array().into_iter().flatten();
        let mine = |trace: &&Value| trace["message_trace"] == message && trace["state"] == state;
        found = traces.clone().find(mine).cloned().unwrap_or_default();
        !found.is_null()
    });
    assert!(there, "no {state} trace of {message}: {}", fleet.node_log());
    found
}

/// What a command says, on both streams, with ids and times that differ from run to run named.
fn said(fleet: &Fleet, arguments: &[&str], names: &[(&str, &str)]) -> String {
    let output = fleet.run(&[arguments, &["-C", "fleet"]].concat());
    let mut said = format!(
        "exit code {}\n{}{}",
        output.code.unwrap(),
        output.stdout,
        output.stderr
    );
    for (id, name) in names {
        said = said.replace(id, name);
    }
    said
}

/// An operator looks at a trace, holds it, lets it go on, and ends it, by its own id or by that of its message.
#[test]
fn an_operator_sees_pauses_resumes_and_cancels_traces() {
    let fleet = orders_within("120s");
    let (first, second) = (slow_order(&fleet, 7), slow_order(&fleet, 8));
    let running = trace_in(&fleet, &first, "running");
    let other = trace_in(&fleet, &second, "running");
    assert_eq!(
        (&running["agent"], &running["tenant"], &running["nodes"]),
        (&json!("desk"), &json!("default"), &json!(["check"]))
    );
    let (trace, kept) = (
        running["trace"].as_str().unwrap(),
        other["trace"].as_str().unwrap(),
    );
    assert_ne!(trace, first, "a message is a trace of its own");
    let names = [
        (trace, "[trace of the flow.............]"),
        (&*first, "[trace of its message..........]"),
        (kept, "[another trace.................]"),
        (&*second, "[trace of the other message....]"),
    ];
    insta::with_settings!({filters => vec![(r" {3}\d+[sm]( ago)?( *)   ", "   [age]   ")]}, {
        insta::assert_snapshot!("flow-traces", said(&fleet, &["flow", "traces", "orders"], &names));
    });

    let one = |act: &str, id: &str| said(&fleet, &["flow", act, id], &names);
    insta::assert_snapshot!("flow-pause", one("pause", trace));
    trace_in(&fleet, &first, "paused");
    insta::assert_snapshot!("flow-pause-again", one("pause", &first));
    insta::assert_snapshot!("flow-resume", one("resume", &first));
    trace_in(&fleet, &first, "running");
    insta::assert_snapshot!("flow-resume-again", one("resume", trace));

    // Another tenant's trace looks like none.
    let foreign = ["flow", "cancel", trace, "--tenant", "another"];
    insta::assert_snapshot!("flow-cancel-unknown", said(&fleet, &foreign, &names));
    let nobody = ["flow", "traces", "orders", "--tenant", "another"];
    assert_eq!(
        fleet.run(&[&nobody[..], &["-C", "fleet"]].concat()).code,
        Some(1)
    );
    trace_in(&fleet, &first, "running");

    insta::assert_snapshot!("flow-cancel", one("cancel", &first));
    let cancelled = trace_in(&fleet, &first, "cancelled");
    assert!(cancelled["ended_at"].is_string(), "{cancelled}");
    insta::assert_snapshot!("flow-cancel-again", one("cancel", trace));
    // Its message does not come again by itself.
    let told = json!(first);
    let parked = || {
        kinds(&fleet, &told)
            .iter()
            .any(|kind| kind == "delivery.parked")
    };
    assert!(eventually(PATIENCE, parked), "{:?}", kinds(&fleet, &told));
    // Nobody else was touched.
    let quiet = fleet
        .run(&["flow", "traces", "orders", "--quiet", "-C", "fleet"])
        .ok();
    assert_eq!(quiet.stdout.trim_end(), kept);
    assert_eq!(traces(&fleet).as_array().unwrap().len(), 2);
    let ended = document(&fleet, &["flow", "cancel", kept]);
    assert_eq!(
        (&ended[0]["flow"], &ended[0]["trace"]),
        (&json!("orders"), &json!(kept))
    );
    fleet.down();
}

/// A process that does not answer is named, and one that is gone is nobody's.
#[test]
fn who_does_not_answer_is_named() {
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
    std::thread::scope(|scope| {
        let listed = scope.spawn(|| said(&fleet, &["flow", "traces", "orders"], &[]));
        let cancelled = scope.spawn(|| said(&fleet, &["flow", "cancel", trace], &[]));
        insta::assert_snapshot!("flow-traces-silent", listed.join().unwrap());
        insta::assert_snapshot!("flow-cancel-silent", cancelled.join().unwrap());
    });

    // An agent in any language answers the same way.
    let answered = std::thread::scope(|scope| {
        let listed = scope.spawn(|| traces(&fleet));
        let ask = json!({"run": run, "wait": "20s"});
        let orders = link.post("/v1/flows/control", &ask).unwrap()["orders"].clone();
        assert_eq!(orders[0]["ask"]["traces"]["flow"], "orders", "{orders}");
        assert_eq!(orders[0]["tenant"], "default");
        let mine = json!({"trace": trace, "tenant": "default", "state": "running", "age": "3s", "nodes": ["charge"]});
        let said = json!({"traces": {"traces": [mine], "more": false}});
        let answer = json!({"run": run, "answers": [{"id": orders[0]["id"], "said": said}]});
        let next = link.post("/v1/flows/control", &answer).unwrap();
        assert_eq!(
            next["orders"],
            json!([]),
            "nothing more, and it did not ask to wait"
        );
        listed.join().unwrap()
    });
    assert_eq!(
        (&answered[0]["replica"], &answered[0]["trace"]),
        (&json!("desk-0"), &json!(trace))
    );
    let stale = json!({"run": "0"});
    let refused = link.post("/v1/flows/control", &stale).unwrap_err();
    assert_eq!(refused.status(), Some(409), "{refused}");

    let pid = document(&fleet, &["ps"])[0]["pid"].as_u64().unwrap();
    kill9(u32::try_from(pid).unwrap());
    let gone = || document(&fleet, &["flow", "list"]) == json!([]);
    assert!(eventually(PATIENCE, gone), "{}", fleet.node_log());
    insta::assert_snapshot!(
        "flow-traces-gone",
        said(&fleet, &["flow", "traces", "orders"], &[])
    );
    insta::assert_snapshot!(
        "flow-cancel-gone",
        said(&fleet, &["flow", "cancel", trace], &[])
    );
    fleet.down();
}
