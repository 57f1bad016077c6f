//! `volary up` with the shipped first fleet and small fleets of its own: start, work, look, stop, nothing left.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::Value;
use volary_testkit::{CliEnv, Output, Running, eventually};

/// Long enough for a slow machine; conditions are awaited, not times.
const SOON: Duration = Duration::from_secs(20);

fn env() -> CliEnv {
    CliEnv::new(env!("CARGO_BIN_EXE_volary"))
}

/// The shipped fleet, copied, for its notes and its output are written to.
fn first_fleet(env: &CliEnv) -> PathBuf {
    let target = env.root().join("fleet");
    copy(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/first-fleet"),
        &target,
    );
    target
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_name().to_str().unwrap() {
            "output" | ".volary" => {}
            _ if entry.file_type().unwrap().is_dir() => copy(&entry.path(), &target),
            _ => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// `up` in the foreground, ready.
fn up(env: &CliEnv) -> Running {
    let mut node = env.start(["up", "fleet"]);
    let ready = eventually(SOON, || {
        node.stdout().contains("is ready") || node.wait(Duration::ZERO).is_some()
    });
    assert!(
        ready && node.stdout().contains("is ready"),
        "{}\n{}",
        node.stdout(),
        node.stderr()
    );
    node
}

fn interrupt(mut node: Running) -> (Option<i32>, String) {
    let signalled = Command::new("kill")
        .args(["-INT", &node.pid().to_string()])
        .status()
        .unwrap();
    assert!(signalled.success());
    let status = node
        .wait(SOON)
        .unwrap_or_else(|| panic!("it does not end\n{}", node.stderr()));
    (status.code(), node.stderr())
}

/// Nothing of a stopped fleet is left: no process, no socket, no card, no held lock.
fn assert_gone(env: &CliEnv) {
    assert!(
        eventually(Duration::from_secs(2), || env.survivors().is_empty()),
        "{}",
        env.survivors_shown()
    );
    let sockets: Vec<PathBuf> = files(&env.state())
        .into_iter()
        .filter(|path| is_socket(path))
        .collect();
    assert!(sockets.is_empty(), "{sockets:?}");
    assert!(!env.state().join("node.json").exists());
    let lock = fs::File::open(env.state().join("node.lock")).unwrap();
    assert!(lock.try_lock().is_ok(), "the lock is held");
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| {
            if path.is_dir() {
                files(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

fn lines(output: &Output) -> Vec<Value> {
    output
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

fn events(env: &CliEnv, arguments: &[&str]) -> Vec<Value> {
    lines(&env.run(["events", "--json"].iter().chain(arguments)).ok())
}

fn micros(event: &Value) -> i64 {
    let at: volary_kernel::Timestamp = event["at"].as_str().unwrap().parse().unwrap();
    at.as_micros()
}

/// The events of the trace that began with the change of a note.
fn chain(env: &CliEnv, note: &str) -> Vec<Value> {
    let changed = events(env, &["--kind", "page.changed"]);
    let Some(change) = changed
        .iter()
        .rev()
        .find(|event| event["body"].to_string().contains(note))
    else {
        return Vec::new();
    };
    events(env, &["--trace", change["trace"].as_str().unwrap()])
}

fn has(events: &[Value], kind: &str, agent: &str) -> bool {
    events
        .iter()
        .any(|event| event["kind"] == kind && event["agent"] == agent)
}

#[test]
fn a_written_note_goes_through_every_layer_under_one_trace_and_ctrl_c_leaves_nothing() {
    let env = env();
    let fleet = first_fleet(&env);
    let node = up(&env);
    let digest = fleet.join("output/digest.txt");
    let digested = |note: &str| fs::read_to_string(&digest).is_ok_and(|text| text.contains(note));
    assert!(
        eventually(SOON, || digested("welcome.md") && digested("ideas.md")),
        "{}",
        node.stdout()
    );

    fs::write(fleet.join("notes/hello.md"), "# Hello\n\nTwo words.\n").unwrap();
    let whole = || {
        let chain = chain(&env, "hello.md");
        has(&chain, "delivery.acked", "digest") && has(&chain, "delivery.acked", "flaky")
    };
    assert!(eventually(SOON, whole), "{:#?}", chain(&env, "hello.md"));
    assert!(digested("hello.md"));

    let chain = chain(&env, "hello.md");
    assert!(has(&chain, "delivery.acked", "indexer"), "{chain:#?}");
    let acked = chain
        .iter()
        .find(|event| event["kind"] == "delivery.acked" && event["agent"] == "digest")
        .unwrap();
    let took = micros(acked) - micros(&chain[0]);
    assert!(
        took < 1_000_000,
        "page change to the last ack took {took} us"
    );
    for event in &chain {
        for key in ["seq", "at", "kind", "tenant", "agent", "trace", "cause"] {
            assert!(event.get(key).is_some(), "{key} is missing in {event}");
        }
        assert_eq!(event["trace"], chain[0]["trace"]);
    }
    assert!(
        node.stdout().contains("page.changed"),
        "the feed shows it: {}",
        node.stdout()
    );

    let (code, stderr) = interrupt(node);
    assert_eq!(code, Some(130), "{stderr}");
    assert_gone(&env);
    env.run(["journal", "verify"]).ok();
}

#[test]
fn what_runs_can_be_looked_at() {
    let env = env();
    first_fleet(&env);
    let node = up(&env);
    let replicas: Vec<Value> =
        serde_json::from_str(&env.run(["ps", "--json"]).ok().stdout).unwrap();
    let names: Vec<&str> = replicas
        .iter()
        .map(|replica| replica["replica"].as_str().unwrap())
        .collect();
    assert_eq!(names.len(), 3, "{names:?}");
    for replica in &replicas {
        for key in [
            "agent",
            "replica",
            "backend",
            "state",
            "ready",
            "pid",
            "restarts",
            "started_at",
            "ports",
        ] {
            assert!(replica.get(key).is_some(), "{key} is missing in {replica}");
        }
        assert_eq!(replica["ready"], true, "{replica}");
        assert_eq!(
            replica["pid"].is_null(),
            replica["agent"] != "digest",
            "an idle handler has no process: {replica}"
        );
    }
    let table = env.run(["ps"]).ok().stdout;
    assert!(
        table.starts_with("AGENT     REPLICA     BACKEND   STATE"),
        "{table}"
    );
    assert_eq!(env.run(["ps", "-q"]).ok().stdout.lines().count(), 3);

    env.run(["health"]).ok();
    let agent: Value =
        serde_json::from_str(&env.run(["inspect", "indexer", "--json"]).ok().stdout).unwrap();
    assert_eq!(agent["agent"]["name"], "indexer");
    let replica: Value =
        serde_json::from_str(&env.run(["inspect", "digest-0"]).ok().stdout).unwrap();
    assert_eq!(replica["replica"], "digest-0");
    assert!(
        env.run(["inspect", "nobody"])
            .code(1)
            .stderr
            .contains("V8016")
    );

    assert!(eventually(SOON, || env
        .run(["logs", "indexer"])
        .ok()
        .stdout
        .contains("welcome.md")));
    assert!(
        env.run(["logs", "-n", "1", "indexer"])
            .ok()
            .stdout
            .lines()
            .count()
            == 1
    );
    let all = env.run(["logs", "--json"]).ok();
    assert!(
        lines(&all)
            .iter()
            .any(|line| line["replica"] == "indexer-0"),
        "{}",
        all.stdout
    );
    assert_eq!(node.stop(SOON).code, Some(0), "SIGTERM is a good end");
    assert_gone(&env);
}

#[test]
fn a_fleet_in_the_background_is_started_once_and_stopped_once() {
    let env = env();
    let fleet = first_fleet(&env);
    let started = env.run(["up", "-d", "fleet", "--json"]).ok();
    let ready: Value = serde_json::from_str(&started.stdout).unwrap();
    assert_eq!(ready["ready"], true);
    let again = env.run(["up", "-d", "fleet", "--json"]).ok();
    let same: Value = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!(same["pid"], ready["pid"], "a second up changes nothing");
    assert!(again.stderr.contains("no change"), "{}", again.stderr);
    env.run(["up", "fleet"]).ok();
    let mut inside = env.command(["up"]);
    inside.current_dir(&fleet);
    let inside = env.run_within(SOON, inside).ok();
    assert!(inside.stderr.contains("no change"), "{}", inside.stderr);

    let manifest = fleet.join("flaky/agent.yaml");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("maxAttempts: 3", "maxAttempts: 4")).unwrap();
    let refused = env.run(["up", "fleet"]).code(1);
    assert!(
        refused.stderr.contains("V8005") && refused.stderr.contains("flaky"),
        "{}",
        refused.stderr
    );

    env.run(["down"]).ok();
    assert_gone(&env);
    assert!(env.run(["down"]).ok().stderr.contains("nothing to stop"));
    assert!(env.run(["ps"]).code(69).stderr.contains("V8003"));
}

/// Whether nothing waits for an agent or is being worked on by it.
fn is_idle(env: &CliEnv, agent: &str) -> bool {
    let view: Value =
        serde_json::from_str(&env.run(["inspect", agent, "--json"]).ok().stdout).unwrap();
    ["ready", "delayed", "claimed"]
        .iter()
        .all(|figure| view["inbox"][figure] == 0)
}

#[test]
fn what_fails_every_time_is_parked_and_can_be_tried_again() {
    let env = env();
    let fleet = first_fleet(&env);
    let node = up(&env);
    fs::write(fleet.join("notes/bad.md"), "# Bad\n\nfail-always\n").unwrap();
    let parked = || -> Vec<Value> {
        serde_json::from_str(&env.run(["parked", "list", "--json"]).ok().stdout).unwrap()
    };
    assert!(eventually(SOON, || parked().len() == 1), "{:?}", parked());
    let item = parked().remove(0);
    assert_eq!(
        (item["agent"].as_str(), item["attempts"].as_u64()),
        (Some("flaky"), Some(3))
    );
    let id = item["id"].as_str().unwrap();
    assert!(
        env.run(["parked", "show", id])
            .ok()
            .stdout
            .contains("bad.md")
    );

    fs::write(
        fleet.join("notes/bad.md"),
        "# Good\n\nnow it is fine again\n",
    )
    .unwrap();
    env.run(["parked", "retry", id]).ok();
    assert!(eventually(SOON, || parked().is_empty()), "{:?}", parked());
    // The change of the note is work of its own, which must not meet the next content.
    let changes = || {
        let changed = events(&env, &["--kind", "page.changed"]);
        let of_it = |event: &&Value| event["body"].to_string().contains("bad.md");
        changed.iter().filter(of_it).count()
    };
    assert!(eventually(SOON, || changes() == 2 && is_idle(&env, "flaky")));
    fs::write(
        fleet.join("notes/bad.md"),
        "# Bad\n\nfail-always, and more\n",
    )
    .unwrap();
    assert!(eventually(SOON, || parked().len() == 1), "{:?}", parked());
    env.run(["parked", "drop", "--all"]).ok();
    assert!(parked().is_empty());
    assert_eq!(env.run(["parked", "drop", id]).code, Some(1));
    drop(node.stop(SOON));
}

#[test]
fn what_changed_while_it_was_down_is_seen_at_the_next_start() {
    let env = env();
    let fleet = first_fleet(&env);
    let node = up(&env);
    let digest = fleet.join("output/digest.txt");
    let text = || fs::read_to_string(&digest).unwrap_or_default();
    assert!(eventually(SOON, || text().contains("welcome.md")
        && text().contains("ideas.md")));
    assert_eq!(node.stop(SOON).code, Some(0));
    fs::write(fleet.join("notes/later.md"), "# Later\n").unwrap();
    fs::remove_file(fleet.join("notes/ideas.md")).unwrap();
    let node = up(&env);
    assert!(
        eventually(SOON, || text().contains("later.md")
            && !text().contains("ideas.md")),
        "{}",
        text()
    );
    assert_eq!(node.stop(SOON).code, Some(0));
    assert_gone(&env);
}

#[test]
fn the_journal_is_proved_where_it_is_and_where_it_is_taken() {
    let env = env();
    first_fleet(&env);
    let node = up(&env);
    env.run(["journal", "verify"]).ok();
    assert_eq!(node.stop(SOON).code, Some(0));
    let report: Value =
        serde_json::from_str(&env.run(["journal", "verify", "--json"]).ok().stdout).unwrap();
    assert_eq!(
        (&report["ok"], &report["first_bad"]),
        (&true.into(), &Value::Null)
    );

    env.run(["journal", "export", "-o", "journal.jsonl"]).ok();
    env.run(["journal", "export", "-o", "journal.jsonl"])
        .code(1);
    env.run(["journal", "verify", "journal.jsonl"]).ok();
    assert_eq!(
        env.run(["journal", "export"]).ok().stdout.lines().count(),
        env.read("journal.jsonl").lines().count()
    );
    let exported = env.read("journal.jsonl");
    let before = exported.split("node.started").next().unwrap();
    let line = format!("line {}", before.lines().count());
    let edited = exported.replacen("node.started", "node.stopped", 1);
    env.write("edited.jsonl", edited);
    let found = env.run(["journal", "verify", "edited.jsonl"]).code(65);
    assert!(
        found.stderr.contains("V8021") && found.stderr.contains(&line),
        "{}",
        found.stderr
    );
}

const FLEET: &str =
    "apiVersion: volary.dev/v1\nkind: Fleet\nmetadata: {name: f}\nspec:\n  agents: [./a]\n";

fn agent(spec: &str) -> String {
    format!("apiVersion: agent.dev/v1\nkind: Agent\nmetadata: {{name: a}}\nspec:\n{spec}")
}

#[test]
fn an_agent_that_never_gets_ready_is_told_and_nothing_is_left() {
    let env = env();
    env.write("fleet/fleet.yaml", FLEET);
    env.write(
        "fleet/a/agent.yaml",
        agent(
            "  command: [sleep, '1000']\n  healthCheck: {command: ['false'], startPeriod: 60s}\n",
        ),
    );
    for arguments in [
        &["up", "fleet", "--wait-timeout", "2s"][..],
        &["up", "-d", "fleet", "--wait-timeout", "2s"],
    ] {
        let output = env.run(arguments).code(124);
        assert!(
            output.stderr.contains("V8010") && output.stderr.contains("health check: exit code 1"),
            "{}",
            output.stderr
        );
        assert_gone(&env);
    }
    assert!(env.run(["health"]).code(69).stderr.contains("V8003"));
}

#[test]
fn an_agent_that_always_crashes_is_shown_as_such_and_never_as_ready() {
    let env = env();
    env.write("fleet/fleet.yaml", FLEET);
    env.write(
        "fleet/a/agent.yaml",
        agent(
            "  command: [sh, -c, 'exit 3']\n  restart: {backoff: {base: 10ms, max: 10ms, jitter: 0}}\n",
        ),
    );
    let late = env
        .run(["up", "-d", "fleet", "--wait-timeout", "3s"])
        .code(124);
    assert!(
        late.stderr.contains("crash-loop") && late.stdout.is_empty(),
        "{}{}",
        late.stdout,
        late.stderr
    );
    assert_gone(&env);

    let node = env.start(["up", "fleet"]);
    assert!(
        eventually(SOON, || node.stdout().contains("not all of it ready")),
        "{}\n{}",
        node.stdout(),
        node.stderr()
    );
    let shown = || env.run(["ps"]).ok().stdout.contains("crash-loop");
    assert!(eventually(SOON, shown), "{}", env.run(["ps"]).stdout);
    assert!(!events(&env, &["--kind", "replica.*"]).is_empty());
    let again = env.run(["up", "-d", "fleet", "--json"]).code(1);
    assert!(
        again.stdout.contains("\"ready\":false") && again.stderr.contains("V8026"),
        "{}{}",
        again.stdout,
        again.stderr
    );
    assert_eq!(node.stop(SOON).code, Some(0));
    assert_gone(&env);
}

#[test]
fn a_taken_port_is_found_before_anything_starts() {
    let env = env();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    env.write("fleet/fleet.yaml", FLEET);
    env.write(
        "fleet/a/agent.yaml",
        agent(&format!(
            "  command: [sleep, '60']\n  ports: ['127.0.0.1:{port}:{port}']\n"
        )),
    );
    let output = env.run(["up", "fleet"]).code(65);
    assert!(
        output
            .stderr
            .contains(&format!("port {port} is already in use")),
        "{}",
        output.stderr
    );
    assert!(!env.state().exists());
    let ops = env.write("ops/fleet.yaml", FLEET);
    env.write(
        "ops/a/agent.yaml",
        agent("  handler: [sh, -c, 'exit 0']\n  topics: [t]\n"),
    );
    let folder = ops.parent().unwrap().to_str().unwrap();
    let output = env.run(["up", "-d", folder, "--ops", &format!("127.0.0.1:{port}")]);
    assert_ne!(output.code, Some(0));
    assert!(output.stderr.contains("V6102"), "{}", output.stderr);
    assert!(
        eventually(SOON, || env.survivors().is_empty()),
        "{}",
        env.survivors_shown()
    );
}

#[test]
fn a_message_is_followed_to_its_outcome() {
    let env = env();
    env.write(
        "fleet/fleet.yaml",
        format!("{FLEET}  messaging: {{maxPayload: 3MiB}}\n"),
    );
    env.write(
        "fleet/a/agent.yaml",
        agent("  handler: [sh, ./a.sh]\n  topics: [work]\n  delivery: {maxAttempts: 1}\n"),
    );
    env.write(
        "fleet/a/a.sh",
        "document=$(cat)\ncase $document in *unworkable*) exit 1 ;; esac\n",
    );
    let node = up(&env);
    let send = |arguments: &[&str]| env.run(["send", "--json"].iter().chain(arguments));
    let reply: Value = serde_json::from_str(
        &send(&["--topic", "work", "{}", "--wait", "20s"])
            .ok()
            .stdout,
    )
    .unwrap();
    assert_eq!(reply["outcome"], "done", "{reply}");
    assert!(
        reply["id"].is_string() && reply["trace"].is_string() && reply["admission"].is_string(),
        "{reply}"
    );
    let failed = send(&["--to", "a", "\"unworkable\"", "--wait", "20s"]).code(1);
    assert!(failed.stderr.contains("V8019"), "{}", failed.stderr);
    // A payload may be as large as the fleet says, and no larger.
    env.write("large.json", format!("\"{}\"", "x".repeat(2 << 20)));
    send(&["--to", "a", "@large.json", "--wait", "20s"]).ok();
    env.write("huge.json", format!("\"{}\"", "x".repeat(4 << 20)));
    let refused = send(&["--to", "a", "@huge.json"]);
    assert_ne!(refused.code, Some(0), "{}", refused.stdout);
    let nobody = send(&["--topic", "nobody/listens", "{}"]).code(1);
    assert!(nobody.stderr.contains("V8018"), "{}", nobody.stderr);
    let plan = env.run(["replay", "--dry-run", "--json"]).ok();
    assert!(
        plan.stdout.contains(reply["id"].as_str().unwrap()),
        "{}",
        plan.stdout
    );
    assert_eq!(node.stop(SOON).code, Some(0));
}

#[test]
fn a_shell_script_is_an_agent() {
    let env = env();
    env.write("fleet/fleet.yaml", FLEET);
    env.write(
        "fleet/a/agent.yaml",
        agent("  command: [sh, ./a.sh]\n  topics: [work]\n"),
    );
    env.write(
        "fleet/a/a.sh",
        r#"set -u
id_of() { sed 's/^{"id":"\([^"]*\)".*/\1/'; }
"$VOLARY_BIN" link next --wait 10ms; echo "empty $?" >> ../out
first=$("$VOLARY_BIN" link next --wait 30s); printf '%s\n' "$first" >> ../out
"$VOLARY_BIN" link nack "$(printf '%s\n' "$first" | id_of)" --delay 1ms --reason again; echo "nack $?" >> ../out
second=$("$VOLARY_BIN" link next --wait 30s); printf '%s\n' "$second" >> ../out
id=$(printf '%s\n' "$second" | id_of)
printf '%s\n' '{"report":{"seen":true}}' | "$VOLARY_BIN" link ack "$id" --send 'results={"n":2}' --actions; echo "ack $?" >> ../out
"$VOLARY_BIN" link ack "$id" 2>/dev/null; echo "late $?" >> ../out
"$VOLARY_BIN" ps > /dev/null 2>&1; echo "ps $?" >> ../out
echo end >> ../out
exec sleep 1000
"#,
    );
    let node = up(&env);
    let out = || fs::read_to_string(env.root().join("fleet/out")).unwrap_or_default();
    assert!(
        eventually(SOON, || out().contains("empty 75")),
        "{}\n{}",
        out(),
        node.stderr()
    );
    env.run(["send", "--topic", "work", "{\"n\":1}"]).ok();
    assert!(
        eventually(SOON, || out().ends_with("end\n")),
        "{}\n{}",
        out(),
        env.run(["logs"]).stdout
    );
    let out = out();
    let documents: Vec<Value> = out
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    assert_eq!(documents.len(), 2, "{out}");
    assert_eq!(
        (&documents[0]["attempt"], &documents[1]["attempt"]),
        (&1.into(), &2.into()),
        "{out}"
    );
    assert_eq!(
        documents[0]["idempotency_key"],
        documents[1]["idempotency_key"]
    );
    assert_eq!(documents[0]["payload"]["n"], 1);
    assert!(out.contains("nack 0") && out.contains("ack 0"), "{out}");
    assert!(
        !out.contains("late 0") && !out.contains("ps 0"),
        "a claim ends with its ack, and an agent is no operator: {out}"
    );
    assert_eq!(node.stop(SOON).code, Some(0));
    assert_gone(&env);
}
