//! An agent can neither read the node's state nor another replica's files, nor use the operators' API, nor touch the
//! node's process.

use crate::support::{Agent, Fleet, PATIENCE};
use volary_testkit::process::{eventually, is_alive};

/// Tries everything and writes down what worked.
const SPY: &str = r#"try() { if out=$(eval "$2" 2>/dev/null) && [ -n "$out" ]; then echo "$1: $out" | head -c 300 >> ../spoils.txt; fi; }
state=$(dirname "$(dirname "$(dirname "$VOLARY_TOKEN_FILE")")")
try state-list "ls $STATE | grep -v -e '^link$' -e '^replicas$'"
try operator-token "cat $STATE/operator.token"
try node-key "cat $STATE/keys/node.key"
try database "head -c 16 $STATE/volary.db"
try logs "cat $STATE/logs/victim-0.log"
try other-token "cat $STATE/replicas/victim-0/token"
try other-secret "find $STATE/replicas/victim-0 -type f"
try node-root "ls /proc/$NODE_PID/root$STATE/operator.token"
try node-environ "tr '\\0' ' ' < /proc/$NODE_PID/environ"
for p in /proc/[0-9]*; do try "root-of-$p" "cat $p/root$STATE/operator.token"; done
umount "$STATE" 2>/dev/null; umount -l "$STATE" 2>/dev/null; umount -l /proc 2>/dev/null
try after-umount "cat $STATE/operator.token"
try nsenter "nsenter -t 1 -m cat $STATE/operator.token"
mkdir -p /tmp/spy.$$ && mount --bind / /tmp/spy.$$ 2>/dev/null && try bind-mount "cat /tmp/spy.$$$STATE/operator.token"
rmdir /tmp/spy.$$ 2>/dev/null
kill -9 "$NODE_PID" 2>/dev/null
ops=$("$VOLARY_BIN" ps --state "$STATE" 2>/dev/null); [ -n "$ops" ] && echo "operator cli: $ops" >> ../spoils.txt
cat "$VOLARY_TOKEN_FILE" > ../spy-token && echo own-token-readable >> ../own.txt
"$VOLARY_BIN" link send --topic nobody '{}' >> ../own.txt 2>&1
echo finished >> ../own.txt
exec sleep 600
"#;

#[test]
fn an_agent_gets_nothing_that_is_not_its_own() {
    let secret = "secrets:\n  - {name: api-key, from: file, path: ../key.txt}\n";
    let spy = "command: [sh, ./run.sh]\ndependsOn: [victim]\nenvironment:\n  - {name: STATE, from: env}\n  - {name: NODE_PID, value: \"1\"}\n";
    let fleet = Fleet::new(
        &[
            Agent {
                name: "victim",
                spec: &format!("command: [sh, ./run.sh]\n{secret}"),
                script: "echo hello\nexec sleep 600\n",
            },
            Agent {
                name: "spy",
                spec: spy,
                script: SPY,
            },
        ],
        "",
    );
    fleet.env.write("fleet/key.txt", "victims-secret\n");
    let mut up = fleet.env.command(["up", "fleet", "-d"]);
    up.env("STATE", fleet.env.state());
    let _ready = fleet.env.run_within(PATIENCE, up).ok();
    let node = fleet.pid();
    let finished = eventually(PATIENCE, || {
        std::fs::read_to_string(fleet.path("own.txt"))
            .unwrap_or_default()
            .contains("finished")
    });
    assert!(
        finished,
        "the spy did not finish; log:\n{}",
        fleet.node_log()
    );
    let own = fleet.env.read("fleet/own.txt");
    assert!(
        own.contains("own-token-readable"),
        "it must read its own token: {own}"
    );
    assert!(
        own.contains("no_route") || own.contains("no route"),
        "it must reach the link API: {own}"
    );
    let spoils = std::fs::read_to_string(fleet.path("spoils.txt")).unwrap_or_default();
    assert_eq!(spoils, "", "the spy got away with\n{spoils}");
    assert!(is_alive(node), "the spy killed the node");
    link_tokens_open_no_operator_route(&fleet);
    fleet.down();
}

fn link_tokens_open_no_operator_route(fleet: &Fleet) {
    let token = fleet.env.read("fleet/spy-token");
    let api = fleet.api().with_token(token.trim());
    for (method, path) in [
        ("GET", "/v1/replicas"),
        ("GET", "/v1/events"),
        ("POST", "/v1/down"),
        ("GET", "/v1/logs"),
    ] {
        let (status, body) = api.request(method, path, "").unwrap();
        assert!(
            status == 401 || status == 403,
            "{method} {path} answered {status}: {body}"
        );
    }
    let (status, _) = fleet
        .api()
        .with_token("")
        .request("GET", "/v1/replicas", "")
        .unwrap();
    assert_eq!(status, 401);
}
