//! Two nodes on one machine that were given each other's keys by `volary identity`: messages go both ways, what is refused
//! is seen, and keys can be replaced and revoked while they talk.

use std::{
    net::TcpListener,
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use serde_json::Value;
use volary_testkit::{Output, process::eventually};

use crate::support::{Agent, Fleet, PATIENCE, of_kind};

/// Writes down whom a delivery came from and what it was.
const SINK: &str = r#"doc=$(cat)
from=$(printf '%s' "$doc" | sed -n 's/.*"sender":"\([^"]*\)".*/\1/p')
n=$(printf '%s' "$doc" | sed -n 's/.*"payload":{"n":\([0-9]*\)}.*/\1/p')
printf '%s %s\n' "$from" "$n" >> ../sink.txt
"#;
/// Passes on what it gets to the other fleet's sink.
const RELAY: &str = r#"doc=$(cat)
n=$(printf '%s' "$doc" | sed -n 's/.*"payload":{"n":\([0-9]*\)}.*/\1/p')
printf '{"send":{"to":"%s","payload":{"n":%s}}}\n' "$TO" "$n"
"#;

/// One of the two.
struct Side {
    name: &'static str,
    other: &'static str,
    fleet: Fleet,
    port: u16,
    /// What the others put into their manifests.
    entry: String,
}

/// A port that nobody has now, and that the system gives to nobody who asks for any: each test and process has its own.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let own = u16::try_from(std::process::id() % 400).unwrap() * 25;
    loop {
        let port = 20_000 + own + NEXT.fetch_add(1, Ordering::Relaxed) % 25;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

impl Side {
    /// A fleet with keys, without peers.
    fn new(name: &'static str, other: &'static str) -> Self {
        let sink = format!("{name}-sink");
        let relay = format!("{name}-relay");
        let handler = "handler: [sh, ./run.sh]\ndelivery: {concurrency: 2, timeout: 10s}\n";
        let fleet = Fleet::named(
            name,
            &[
                Agent {
                    name: &sink,
                    spec: &format!("{handler}topics: [{name}/work, {name}/forbidden]\n"),
                    script: SINK,
                },
                Agent {
                    name: &relay,
                    spec: &format!(
                        "{handler}topics: [{name}/relay]\nenvironment: [{{name: TO, value: {other}-sink}}]\n"
                    ),
                    script: RELAY,
                },
            ],
            "",
        );
        let port = free_port();
        let address = format!("127.0.0.1:{port}");
        let entry = fleet
            .env
            .run(["identity", "peer", "fleet", "--address", &address])
            .ok()
            .stdout;
        Self {
            name,
            other,
            fleet,
            port,
            entry,
        }
    }

    /// Makes another one its peer.
    fn meet(&self, entry: &str) {
        let entry: String = entry.lines().map(|line| format!("    {line}\n")).collect();
        let messaging = format!(
            "messaging:\n  listen: 127.0.0.1:{}\n  peers:\n{entry}  hooks:\n    - validate: {{}}\n    - policy:\n        \
             default: allow\n        rules: [deny: {{topic: '*/forbidden', way: ingress}}]\n",
            self.port
        );
        let agents = [
            format!("{}-sink", self.name),
            format!("{}-relay", self.name),
        ];
        let agents: Vec<&str> = agents.iter().map(String::as_str).collect();
        self.fleet.manifest(self.name, &agents, &messaging);
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let with_fleet = arguments.iter().chain(&["-C", "fleet"]);
        self.fleet.env.run(with_fleet)
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let with_json: Vec<_> = arguments.iter().chain(&["--json"]).copied().collect();
        serde_json::from_str(&self.run(&with_json).ok().stdout).unwrap()
    }

    /// Sends from outside, and waits until the peer has it.
    fn send(&self, target: &[&str], n: u64) -> Value {
        let payload = format!("{{\"n\":{n}}}");
        let command = [&["send"], target, &[&payload, "--wait", "20s"]].concat();
        self.json(&command)
    }

    fn has(&self, line: &str) -> bool {
        let text = std::fs::read_to_string(self.fleet.path("sink.txt")).unwrap_or_default();
        text.lines().any(|found| found == line)
    }

    fn await_line(&self, line: &str) {
        assert!(
            eventually(PATIENCE, || self.has(line)),
            "{}: no `{line}` in\n{}\nlog:\n{}",
            self.name,
            std::fs::read_to_string(self.fleet.path("sink.txt")).unwrap_or_default(),
            self.fleet.node_log()
        );
    }

    fn await_connected(&self) {
        let connected = || {
            let peers = self.json(&["identity", "peers"]);
            peers["peers"].as_array().unwrap().iter().all(|peer| {
                // Of the two, one may be believed no longer; its operator is no agent.
                peer["state"] == "connected" && matches!(peer["agents"].as_u64(), Some(1 | 2))
            })
        };
        assert!(
            eventually(PATIENCE, connected),
            "{}: {:#}\nlog:\n{}",
            self.name,
            self.json(&["identity", "peers"]),
            self.fleet.node_log()
        );
    }

    /// The identity of one of the agents that the other side introduced, by its name and status.
    fn known(&self, name: &str, status: &str) -> Vec<String> {
        let all = self.json(&["identity", "list"]);
        let all = all.as_array().unwrap().iter();
        all.filter(|identity| identity["name"] == name && identity["status"] == status)
            .map(|identity| {
                assert_eq!(identity["introduced_by"], self.other);
                identity["id"].as_str().unwrap().to_owned()
            })
            .collect()
    }
}

fn pair() -> (Side, Side) {
    let (west, east) = (Side::new("west", "east"), Side::new("east", "west"));
    west.meet(&east.entry);
    east.meet(&west.entry);
    (west, east)
}

fn up(sides: [&Side; 2]) {
    sides.iter().for_each(|side| side.fleet.up());
    sides.iter().for_each(|side| side.await_connected());
}

#[test]
fn messages_go_both_ways_by_name_and_by_topic_and_what_is_refused_waits_for_a_person() {
    let (west, east) = pair();
    up([&west, &east]);
    for (from, to, n) in [(&west, &east, 10), (&east, &west, 20)] {
        let topic = format!("{}/work", to.name);
        let sent = from.send(&["--topic", &topic], n);
        assert_eq!(
            (&sent["admission"], &sent["outcome"]),
            (&"queued".into(), &"done".into()),
            "{sent}"
        );
        to.await_line(&format!("operator.{} {n}", from.name));
        from.send(&["--to", &format!("{}-sink", to.name)], n + 1);
        to.await_line(&format!("operator.{} {}", from.name, n + 1));
        // An agent's own message, under its own key.
        from.send(&["--topic", &format!("{}/relay", from.name)], n + 2);
        to.await_line(&format!("{}-relay {}", from.name, n + 2));
    }
    let nobody = west.run(&["send", "--to", "nobody", "{}"]).code(1);
    assert!(nobody.stderr.contains("V8018"), "{}", nobody.stderr);

    let refused = west
        .run(&["send", "--topic", "east/forbidden", "{\"n\":1}"])
        .ok();
    let parked = || west.json(&["parked", "list"]).as_array().unwrap().clone();
    assert!(
        eventually(PATIENCE, || parked().len() == 1),
        "{}\n{:?}",
        refused.stdout,
        parked()
    );
    let item = &parked()[0];
    assert!(
        item["reason"].as_str().unwrap().contains("policy"),
        "{item}"
    );
    assert!(item["queue"].as_str().unwrap().contains("east"), "{item}");
    let peers = west.json(&["identity", "peers"]);
    assert_eq!(peers["peers"][0]["outbox"]["parked"], 1);
    assert!(!east.has("operator.west 1"));

    for side in [&west, &east] {
        side.fleet.down();
        let (good, report) = side.fleet.verify();
        assert!(good, "{report}");
    }
}

#[test]
fn a_message_waits_for_a_peer_that_is_down_and_this_node_is_well_meanwhile() {
    let (west, east) = pair();
    up([&west, &east]);
    east.fleet.down();
    let sent = west.json(&["send", "--topic", "east/work", "{\"n\":7}"]);
    assert_eq!(sent["admission"], "queued", "{sent}");
    west.run(&["health"]).ok();
    let down = || {
        let peers = west.json(&["identity", "peers"]);
        peers["peers"][0]["state"] == "connecting" && !peers["peers"][0]["last_error"].is_null()
    };
    assert!(
        eventually(PATIENCE, down),
        "{:#}",
        west.json(&["identity", "peers"])
    );
    // What it knows of the peer survives its own restart.
    west.fleet.down();
    west.fleet.up();
    let sent = west.json(&["send", "--to", "east-sink", "{\"n\":8}"]);
    assert_eq!(sent["admission"], "queued", "{sent}");
    east.fleet.up();
    east.await_line("operator.west 7");
    east.await_line("operator.west 8");
}

#[test]
fn keys_are_replaced_and_revoked_while_nodes_talk() {
    let (west, east) = pair();
    up([&west, &east]);
    west.send(&["--topic", "west/relay"], 1);
    east.await_line("west-relay 1");

    // An agent's key: its node follows at once, the other one by introduction.
    let first = east.known("west-relay", "active");
    let rotated = west.json(&["identity", "rotate", "west-relay"]);
    assert_eq!(first, [rotated["old"].as_str().unwrap()]);
    let followed = || east.known("west-relay", "active") == [rotated["id"].as_str().unwrap()];
    assert!(
        eventually(PATIENCE, followed),
        "{:#}",
        east.json(&["identity", "list"])
    );
    assert_eq!(east.known("west-relay", "revoked"), first);
    west.send(&["--topic", "west/relay"], 2);
    east.await_line("west-relay 2");

    // The other side believes an agent no longer.
    east.run(&["identity", "revoke", rotated["id"].as_str().unwrap()])
        .ok();
    west.send(&["--topic", "west/relay"], 3);
    let parked = || west.json(&["parked", "list"]).as_array().unwrap().clone();
    assert!(
        eventually(PATIENCE, || parked().len() == 1),
        "{:?}",
        parked()
    );
    assert!(!east.has("west-relay 3"));

    // The node's own key: the other side accepts the statement; the journal of both is whole.
    west.fleet.down();
    let statement = west.run(&["identity", "rotate", "--node"]).ok().stdout;
    let file = east.fleet.env.write("statement.txt", &statement);
    let accepted = east.json(&["identity", "accept", file.to_str().unwrap()]);
    assert_eq!(accepted["name"], "west");
    assert_eq!(accepted["key"], west.json(&["identity", "show"])["key"]);
    let again = east
        .run(&["identity", "accept", file.to_str().unwrap()])
        .code(1);
    assert!(
        again.stderr.contains("no peer here has the key"),
        "{}",
        again.stderr
    );
    // It is remembered, whatever the manifest says.
    east.fleet.down();
    up([&east, &west]);
    west.send(&["--topic", "east/work"], 4);
    east.await_line("operator.west 4");
    for side in [&west, &east] {
        side.fleet.down();
        let (good, report) = side.fleet.verify();
        assert!(good, "{report}");
    }
}

#[test]
fn a_stranger_and_a_wrong_key_are_turned_away_counted_and_seen() {
    let (west, east) = pair();
    let stranger = Side::new("north", "east");
    stranger.meet(&east.entry);
    up([&west, &east]);
    // One that east does not know, and one that takes a third for west.
    let wrong = Side::new("south", "east");
    let (name, key) = ("- name: east", east.entry.lines().nth(1).unwrap());
    let other_key = stranger.entry.lines().nth(1).unwrap();
    assert_ne!(key, other_key);
    wrong.meet(&east.entry.replace(key, other_key));
    assert!(east.entry.starts_with(name));
    for caller in [&stranger, &wrong] {
        caller.fleet.up();
        let told = || {
            let peers = caller.json(&["identity", "peers"]);
            peers["peers"][0]["state"] != "connected" && !peers["peers"][0]["last_error"].is_null()
        };
        assert!(
            eventually(PATIENCE, told),
            "{:#}",
            caller.json(&["identity", "peers"])
        );
        caller.run(&["health"]).ok();
    }
    let seen = |events: &[Value]| !of_kind(events, "peer.refused").is_empty();
    let events = east.fleet.await_events("refused peer", seen);
    let refused = of_kind(&events, "peer.refused");
    let body = &refused[0]["body"];
    assert!(body["count"].as_u64().unwrap() >= 1, "{body}");
    assert!(
        body["remote"].as_str().unwrap().starts_with("127.0.0.1:"),
        "{body}"
    );
    let down = |events: &[Value]| !of_kind(events, "peer.down").is_empty();
    wrong.fleet.await_events("refused peer", down);
    let metrics = || east.fleet.api().request("GET", "/metrics", "").unwrap().1;
    let counted = || {
        metrics().lines().any(|line| {
            line.starts_with("volary_tcp_") && line.contains("refused") && !line.ends_with(" 0")
        })
    };
    assert!(eventually(Duration::from_secs(5), counted), "{}", metrics());
    // Others are unharmed.
    west.send(&["--topic", "east/work"], 5);
    east.await_line("operator.west 5");
}
