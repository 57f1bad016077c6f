//! Replay from outside: taken away, refused when edited, taken in elsewhere, planned, fed again, and verified.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;
use volary_kernel::Uid;

use crate::support::{Agent, Fleet, of_kind};

const SPEC: &str = "handler: [sh, ./run.sh]\ntopics: [work]\n";

/// Answers each message with its number doubled, and keeps the key of each run: the sink that counts an effect once.
const DOUBLES: &str = "document=$(cat)\n\
    n=$(printf '%s' \"$document\" | sed 's/.*\"n\":\\([0-9]*\\).*/\\1/')\n\
    test -n \"${VOLARY_REPLAY:-}\" || printf '%s\\n' \"$document\" >> ../seen\n\
    printf '{\"send\":{\"to\":\"sink\",\"payload\":{\"doubled\":%s,\"seed\":\"%s\",\"now\":\"%s\"}}}\\n' \
    $((n * 2)) \"$VOLARY_SEED\" \"$VOLARY_NOW\"\n";

fn fleet() -> Fleet {
    let worker = Agent {
        name: "worker",
        spec: SPEC,
        script: DOUBLES,
    };
    let sink = Agent {
        name: "sink",
        spec: "handler: [sh, -c, 'cat >/dev/null']\n",
        script: "",
    };
    Fleet::new(&[worker, sink], "")
}

/// Runs some messages through and waits until all are handled.
fn work(fleet: &Fleet, messages: u64) {
    fleet.up();
    for n in 0..messages {
        assert!(fleet.api().send("work", n));
    }
    await_acks(fleet, "worker", messages);
}

fn await_acks(fleet: &Fleet, agent: &str, count: u64) {
    fleet.await_events("acknowledgements", |events| {
        let acked = of_kind(events, "delivery.acked").into_iter();
        acked.filter(|event| event["agent"] == agent).count() as u64 == count
    });
}

fn document(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// What the worker was shown, one document per run.
fn seen(fleet: &Fleet) -> Vec<Value> {
    fleet.env.read("fleet/seen").lines().map(document).collect()
}

fn key(text: &str) -> String {
    text.split_whitespace().last().unwrap().to_owned()
}

/// An archive that was edited or cut off is refused.
fn check_refusals(fleet: &Fleet) {
    // One byte edited is refused, and nothing is left of it.
    let edited = fleet
        .env
        .read("archive")
        .replacen("message.accepted", "message.acceptee", 1);
    fleet.env.write("edited", edited);
    let refused = fleet
        .env
        .run(["journal", "import", "-C", "fleet", "edited"])
        .code(65);
    assert!(refused.stderr.contains("V8042"), "{}", refused.stderr);
    let cut: String = fleet
        .env
        .read("archive")
        .lines()
        .take(3)
        .map(|line| format!("{line}\n"))
        .collect();
    fleet.env.write("cut", cut);
    fleet
        .env
        .run(["journal", "import", "-C", "fleet", "cut"])
        .code(65);
}

/// What was fed again is what it was, but for its mark.
fn check_marked(first: &[Value], again: &[Value]) {
    assert_eq!(first.len(), again.len());
    for (before, after) in first.iter().zip(again) {
        for same in ["idempotency_key", "message_id", "payload", "trace"] {
            assert_eq!(before[same], after[same]);
        }
        assert_eq!(
            (&after["replayed"], &after["recorded"]["node"]),
            (&true.into(), &"e2e".into())
        );
        assert!(before.get("replayed").is_none());
        assert!(after["message_id"].as_str().unwrap().parse::<Uid>().is_ok());
    }
}

/// What is chosen by number and by time is what is written, and what cannot be chosen is said in words.
fn check_choices(fleet: &Fleet) {
    let whole = fleet.env.read("archive");
    let rows: Vec<Value> = whole.lines().map(document).collect();
    let rows: Vec<&Value> = rows.iter().filter(|row| row["seq"].is_u64()).collect();
    let at = |row: usize| rows[row]["at"].as_str().unwrap();
    let chosen = |more: &[&str]| -> Vec<Value> {
        let export = ["journal", "export", "-C", "fleet", "--agent", "worker"];
        let out = fleet.env.run([&export[..], more].concat()).ok().stdout;
        let lines = out.lines().map(document);
        lines.filter(|row| row["seq"].is_u64()).collect()
    };
    // Both ends belong to it.
    let wanted: Vec<_> = rows
        .iter()
        .filter(|row| (at(1)..=at(3)).contains(&row["at"].as_str().unwrap()))
        .map(|row| &row["seq"])
        .collect();
    let found = chosen(&["--from", at(1), "--to", at(3)]);
    let found: Vec<_> = found.iter().map(|row| &row["seq"]).collect();
    assert_eq!(found, wanted);
    let third = rows[2]["seq"].as_u64().unwrap();
    assert_eq!(
        chosen(&["--from-seq", &third.to_string()]).len(),
        rows.len() - 2
    );
    let past = chosen(&["--from-seq", "18446744073709551615"]);
    assert_eq!(past.len(), 0);
    for (arguments, words) in [
        (
            &["--from", at(3), "--to", "2001-01-01T00:00:00Z"][..],
            "is after --to",
        ),
        (
            &["--from-seq", "9223372036854775808"],
            "the journal ends with",
        ),
        (&["--from-seq", "1000000"], "the journal ends with"),
    ] {
        let export = ["journal", "export", "-C", "fleet"];
        let refused = fleet.env.run([&export[..], arguments].concat()).code(64);
        assert!(refused.stderr.contains(words), "{}", refused.stderr);
        assert_eq!(refused.stdout, "");
    }
}

#[test]
fn messages_are_taken_away_taken_in_elsewhere_and_fed_again_under_their_own_keys() {
    let fleet = fleet();
    work(&fleet, 3);
    fleet.down();
    let first = seen(&fleet);
    let run = |words: &[&str]| fleet.env.run(words.iter().copied());

    // Without a node: plan, export, verify.
    let plan = run(&[
        "replay",
        "-C",
        "fleet",
        "--agent",
        "worker",
        "--direction",
        "inbound",
        "--json",
    ])
    .ok();
    let plan = document(&plan.stdout);
    assert_eq!(plan["messages"].as_array().unwrap().len(), 3);
    let export = [
        "journal", "export", "-C", "fleet", "--agent", "worker", "-o", "archive",
    ];
    let told = run(&export).ok();
    assert!(
        told.stderr
            .contains("6 of them with their senders' signatures"),
        "{}",
        told.stderr
    );
    let signer = key(&told.stderr);
    let mode = fleet
        .env
        .root()
        .join("archive")
        .metadata()
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o400);
    run(&export).code(1);
    run(&["journal", "verify", "-C", "fleet", "archive"]).ok();

    check_refusals(&fleet);
    check_choices(&fleet);

    // Elsewhere: another key, unless it is accepted; then a plan, and messages into an inbox.
    let other = self::fleet();
    other.env.write("archive", fleet.env.read("archive"));
    other.up();
    let elsewhere = |words: &[&str]| other.env.run(words.iter().copied());
    let foreign = elsewhere(&["journal", "import", "-C", "fleet", "archive"]).code(65);
    assert!(
        foreign.stderr.contains("V8043") && foreign.stderr.contains(&signer),
        "{}",
        foreign.stderr
    );
    let import = [
        "journal", "import", "-C", "fleet", "archive", "--key", &signer, "--json",
    ];
    assert_eq!(document(&elsewhere(&import).ok().stdout)["entries"], 6);
    let filtered = ["--agent", "worker", "--direction", "inbound"];
    let from = [
        &[
            "replay",
            "-C",
            "fleet",
            "--from-export",
            "archive",
            "--key",
            &signer,
        ],
        &filtered[..],
    ]
    .concat();
    let dry = elsewhere(&[&from[..], &["--json"]].concat()).ok();
    let dry = document(&dry.stdout);
    assert_eq!(dry["messages"].as_array().unwrap().len(), 3);
    assert!(dry["messages"][0]["sealed"].as_bool().unwrap());
    assert!(of_kind(&other.events(), "message.replayed").is_empty());
    elsewhere(&[&from[..], &["--into", "worker", "--speed", "10x"]].concat()).ok();
    await_acks(&other, "worker", 3);
    let again = seen(&other);
    check_marked(&first, &again);
    let events = other.events();
    let replayed = of_kind(&events, "message.replayed");
    assert_eq!(replayed.len(), 3);
    assert_eq!(replayed[0]["body"]["into"], "worker");
    let nobody = elsewhere(&[&from[..], &["--into", "nobody"]].concat()).code(1);
    assert!(nobody.stderr.contains("nobody"), "{}", nobody.stderr);
    assert!(other.verify().0, "{}", other.verify().1);
    other.down();
}

#[test]
fn what_was_said_under_keys_that_were_replaced_since_leaves_with_its_signatures() {
    let fleet = fleet();
    let run = |words: &[&str]| fleet.env.run(words.iter().copied());
    fleet.up();
    // Three keys of the worker, and three of the node, in whose name operators send.
    for n in 0..3 {
        if n > 0 {
            run(&["identity", "rotate", "-C", "fleet", "worker"]).ok();
            fleet.down();
            run(&["identity", "rotate", "-C", "fleet", "--node"]).ok();
            fleet.up();
        }
        assert!(fleet.api().send("work", n));
        await_acks(&fleet, "sink", n + 1);
    }
    fleet.down();
    let export = ["journal", "export", "-C", "fleet", "--messages"];
    let told = run(&[&export[..], &["-o", "archive"]].concat()).ok();
    assert!(
        told.stderr
            .contains("6 of them with their senders' signatures"),
        "{}",
        told.stderr
    );
    run(&["journal", "verify", "-C", "fleet", "archive"]).ok();
    let import = ["journal", "import", "-C", "fleet", "archive", "--json"];
    assert_eq!(document(&run(&import).ok().stdout)["entries"], 6);
}

#[test]
fn a_handler_that_does_what_it_did_verifies_and_a_changed_one_is_told_apart() {
    let fleet = fleet();
    work(&fleet, 3);
    let verify = ["replay", "-C", "fleet", "--verify", "--agent", "worker"];
    let clean = fleet.env.run(verify).ok();
    assert!(
        clean.stdout.contains("3 deliveries, 3 actions, 0 skipped"),
        "{}",
        clean.stdout
    );
    // Nothing of it was carried out or recorded as done.
    assert_eq!(seen(&fleet).len(), 3);
    let events = fleet.events();
    assert_eq!(of_kind(&events, "message.accepted").len(), 6);

    fleet.env.write(
        "fleet/worker/run.sh",
        DOUBLES.replace("n * 2", "n * 2 + n / 2"),
    );
    let found = fleet.env.run(verify).code(1);
    let expected = "expected: send agent:sink {\"doubled\":4,";
    let actual = "actual:   send agent:sink {\"doubled\":5,";
    assert!(
        found.stdout.contains(expected) && found.stdout.contains(actual),
        "{}",
        found.stdout
    );
    let table: Vec<&str> = found
        .stdout
        .lines()
        .filter(|line| line.contains("payload/"))
        .collect();
    assert_eq!(table.len(), 1, "{}", found.stdout);
    let row: Vec<&str> = table[0].split_whitespace().collect();
    assert_eq!(row, ["payload/doubled", "4", "5"]);
    assert!(
        found.stderr.contains("V8041") && found.stderr.contains("delivery 3"),
        "{}",
        found.stderr
    );
    let machine = fleet.env.run([&verify[..], &["--json"]].concat()).code(1);
    let report = document(&machine.stdout);
    assert_eq!(
        report["divergence"]["differences"][0]["at"],
        "payload/doubled"
    );
    assert_eq!(
        (&report["ok"], &report["checked"]),
        (&false.into(), &3.into())
    );
    fleet.down();
}
