//! Commands that need no node, with the real program on real files.

use std::{process::Stdio, time::Duration};

use volary_testkit::CliEnv;

fn env() -> CliEnv {
    CliEnv::new(env!("CARGO_BIN_EXE_volary"))
}

#[test]
fn what_init_writes_is_valid_and_is_not_written_twice() {
    let env = env();
    let written = env.run(["init", "my fleet"]).ok();
    assert!(
        written.stdout.contains("my fleet/fleet.yaml"),
        "{}",
        written.stdout
    );
    let valid = env.run(["validate", "my fleet"]).ok();
    assert_eq!(
        (valid.stdout.as_str(), valid.stderr.as_str()),
        ("my-fleet is valid: 1 agent, 1 source\n", "")
    );
    let before = env.read("my fleet/fleet.yaml");
    env.run(["init", "my fleet"]).code(1);
    assert_eq!(env.read("my fleet/fleet.yaml"), before);
    assert!(
        !env.root().join("my fleet/.volary").exists(),
        "validating starts nothing"
    );
}

#[test]
fn init_tells_what_it_wrote_as_a_document() {
    let env = env();
    let output = env.run(["init", "fleet", "--json"]).ok();
    let document: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(document["name"], "fleet");
    for file in document["files"].as_array().unwrap() {
        assert!(env.root().join(file.as_str().unwrap()).is_file(), "{file}");
    }
}

#[test]
fn validate_shows_every_problem_with_its_place() {
    let env = env();
    env.write("fleet/fleet.yaml", "apiVersion: volary.dev/v1\nkind: Fleet\nmetadata:\n  name: f\nspec:\n  agents: [./a]\n  soucres: {}\n");
    env.write("fleet/a/agent.yaml", "apiVersion: agent.dev/v1\nkind: Agent\nmetadata:\n  name: a\nspec:\n  handler: [sh]\n  stopGracePeriod: 30\n");
    let output = env.run(["validate", "fleet"]).code(65);
    assert_eq!(output.stdout, "");
    insta::assert_snapshot!(
        "validate-problems",
        output
            .stderr
            .replace(&env.root().display().to_string(), "[ROOT]")
    );
    let output = env.run(["validate", "fleet", "--json"]).code(65);
    let document: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(document["valid"], false);
    let places: Vec<(u64, &str)> = document["problems"]
        .as_array()
        .unwrap()
        .iter()
        .map(|problem| {
            (
                problem["line"].as_u64().unwrap(),
                problem["code"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(places, [(7, "E0101"), (7, "E0202")]);
    assert_eq!(output.stderr, "");
}

#[test]
fn a_folder_without_a_manifest_is_bad_configuration() {
    let env = env();
    env.write("empty/readme", "");
    for command in ["validate", "up"] {
        let output = env.run([command, "empty"]).code(65);
        assert!(output.stderr.contains("E0011"), "{}", output.stderr);
    }
    assert!(
        !env.state().exists(),
        "nothing is made for a fleet that cannot run"
    );
}

#[test]
fn the_shipped_examples_are_valid() {
    let env = env();
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples");
    for example in ["first-fleet", "repo-watch"] {
        let output = env.run(["validate", &format!("{examples}/{example}")]).ok();
        assert_eq!(output.stderr, "", "{example} has warnings");
    }
}

#[test]
fn a_fleet_is_found_by_dir_option_too() {
    let env = env();
    env.run(["init", "fleet"]).ok();
    env.run(["-C", "fleet", "validate"]).ok();
    env.run(["validate", "-C", "fleet"]).ok();
    env.run(["validate", "fleet/fleet.yaml"]).ok();
    env.run(["validate", "fleet/greeter"]).code(65);
}

#[test]
fn completions_are_made_for_every_shell() {
    let env = env();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let output = env.run(["completions", shell]).ok();
        assert!(
            output.stdout.contains("volary") && output.stdout.contains("validate"),
            "{shell}"
        );
    }
    let bash = env.write("volary.bash", env.run(["completions", "bash"]).ok().stdout);
    let check = std::process::Command::new("bash")
        .arg("-n")
        .arg(bash)
        .status();
    assert!(
        check.is_err() || check.unwrap().success(),
        "the script is bash"
    );
    env.run(["completions", "tcsh"]).code(64);
}

#[test]
fn schemas_are_json_schema() {
    let env = env();
    for manifest in ["agent", "fleet"] {
        let output = env.run(["schema", manifest]).ok();
        let schema: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
        assert!(
            schema["$schema"]
                .as_str()
                .unwrap()
                .contains("json-schema.org"),
            "{manifest}"
        );
        assert!(
            env.run(["schema", manifest, "--json"])
                .ok()
                .stdout
                .lines()
                .count()
                == 1
        );
    }
}

#[test]
fn doctor_looks_at_everything_and_leaves_nothing() {
    let env = env();
    let output = env.run(["doctor", "--json"]);
    let checks: Vec<serde_json::Value> = serde_json::from_str(&output.stdout).unwrap();
    let names: Vec<&str> = checks
        .iter()
        .map(|check| check["name"].as_str().unwrap())
        .collect();
    for name in [
        "kernel",
        "isolation",
        "docker",
        "inotify watches",
        "open files",
        "free disk",
    ] {
        assert!(names.contains(&name), "{name} is not among {names:?}");
    }
    let bad = checks.iter().any(|check| check["status"] == "bad");
    assert_eq!(output.code, Some(if bad { 69 } else { 0 }));
    let left: Vec<_> = std::fs::read_dir(env.root().join("tmp")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn stopping_what_does_not_run_is_fine() {
    let env = env();
    let output = env.run(["down"]).ok();
    assert!(
        output.stderr.contains("nothing to stop"),
        "{}",
        output.stderr
    );
    let output = env.run(["down", "--json"]).ok();
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&output.stdout).unwrap()["stopped"],
        false
    );
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let env = env();
    let mut child = env
        .command(["schema", "agent"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Nobody reads: the pipe is closed before anything is written, or while.
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn a_full_disk_is_told() {
    let env = env();
    let mut command = env.command(["schema", "agent"]);
    let Ok(full) = std::fs::OpenOptions::new().write(true).open("/dev/full") else {
        return;
    };
    command.stdout(full).stderr(Stdio::piped());
    let output = command.spawn().unwrap().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("V8025"));
}

#[test]
fn a_folder_that_is_no_state_is_not_taken_for_one() {
    let env = env();
    env.run(["init", "fleet"]).ok();
    env.write("documents/letter.txt", "dear");
    let mut command = env.command(["up", "fleet", "--state", "documents"]);
    command.env_remove("VOLARY_STATE");
    let output = env.run_within(Duration::from_secs(30), command).code(1);
    assert!(output.stderr.contains("V8002"), "{}", output.stderr);
    assert_eq!(
        std::fs::read_dir(env.root().join("documents"))
            .unwrap()
            .count(),
        1
    );
}

#[test]
fn a_journal_that_cannot_be_looked_at_is_not_called_absent() {
    let env = env();
    let nothing = env
        .run(["journal", "verify", "--state", "nowhere"])
        .code(69);
    assert!(nothing.stderr.contains("V8028"), "{}", nothing.stderr);
    // A file where a folder should be fails for root too, other than missing permissions.
    env.write("file", "");
    let unseen = env.run(["journal", "verify", "--state", "file"]).code(1);
    assert!(unseen.stderr.contains("V8002"), "{}", unseen.stderr);
}

/// Another node that is given a name which this one does not have would turn its messages away, and nobody knew why.
#[test]
fn a_node_whose_manifest_cannot_be_read_has_no_entry_for_its_peers() {
    let env = env();
    env.write("fleet/fleet.yaml", "kind: Fleet\nspec: {agents: [./a]");
    let refused = env
        .run(["identity", "peer", "fleet", "--address", "east:7400"])
        .code(65);
    assert_eq!(refused.stdout, "");
    assert!(refused.stderr.contains("V8007"), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("volary validate"),
        "{}",
        refused.stderr
    );
    // The key alone can be had.
    env.run(["identity", "show", "fleet"]).ok();
}
