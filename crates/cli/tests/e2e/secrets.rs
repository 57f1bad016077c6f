//! A declared secret's value appears nowhere: not in logs, events, journal, state files, arguments, errors, `inspect`.

use std::path::Path;

use volary_testkit::process::{arguments, descendants, eventually};

use crate::support::{Agent, Fleet, PATIENCE, of_kind};

const CANARY: &str = "canary-7f3a9-do-not-show";

/// Tries to leak its secret every way it has: output, error output, a message, a report, an error.
const LEAKER: &str = r#"cat >/dev/null
secret=$(cat "$API_KEY_FILE")
echo "stderr $secret" >&2
printf '{"send":{"topic":"out","payload":{"leak":"%s"}}}\n' "$secret"
printf '{"report":{"leak":"%s"}}\n' "$secret"
"#;

/// Prints its secret and then fails with it.
const SHOUTER: &str = "secret=$(cat \"$API_KEY_FILE\")\necho \"up with $secret\"\necho \"$secret\" > ./copy\nexec sleep 600\n";

fn fleet() -> Fleet {
    let secret = "secrets:\n  - {name: api-key, from: file, path: ../key.txt}\n";
    let fleet = Fleet::new(
        &[
            Agent {
                name: "leaker",
                spec: &format!(
                    "handler: [sh, ./run.sh]\ntopics: [work]\ndelivery: {{maxAttempts: 1}}\n{secret}"
                ),
                script: LEAKER,
            },
            Agent {
                name: "shouter",
                spec: &format!("command: [sh, ./run.sh]\n{secret}"),
                script: SHOUTER,
            },
            Agent {
                name: "listener",
                spec: "handler: [sh, -c, 'cat >/dev/null']\ntopics: [out]\n",
                script: "",
            },
        ],
        "",
    );
    fleet.env.write("fleet/key.txt", format!("{CANARY}\n"));
    fleet
}

/// Files below `folder` that hold the canary.
fn holders(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                let bytes = std::fs::read(entry.path()).unwrap_or_default();
                if bytes
                    .windows(CANARY.len())
                    .any(|window| window == CANARY.as_bytes())
                {
                    found.push(entry.path().display().to_string());
                }
            }
        }
    }
    found
}

#[test]
fn a_declared_secret_is_found_nowhere_but_in_the_agents_own_file() {
    let fleet = fleet();
    fleet.up();
    let api = fleet.api();
    assert!(api.send("work", 1));
    let events = fleet.await_events("outcome", |events| {
        !of_kind(events, "delivery.acked").is_empty()
            || !of_kind(events, "delivery.parked").is_empty()
    });
    assert!(
        events
            .iter()
            .all(|event| !event.to_string().contains(CANARY))
    );
    assert!(
        events
            .iter()
            .any(|event| event.to_string().contains("secret")),
        "the leak was not told"
    );
    let leak = api
        .request(
            "POST",
            "/v1/messages",
            &format!("{{\"topic\":\"out\",\"payload\":\"{CANARY}\"}}"),
        )
        .unwrap();
    assert!(
        !leak.1.contains(CANARY) && leak.1.contains("secret"),
        "{leak:?}"
    );
    let shown = |arguments: &[&str]| {
        let output = fleet.env.run(arguments);
        format!("{}{}", output.stdout, output.stderr)
    };
    assert!(eventually(PATIENCE, || shown(&["logs", "-C", "fleet"])
        .contains("up with")));
    for arguments in [
        &["logs", "-C", "fleet"][..],
        &["inspect", "leaker", "--json", "-C", "fleet"],
        &["inspect", "shouter", "-C", "fleet"],
    ] {
        assert!(
            !shown(arguments).contains(CANARY),
            "{arguments:?} shows the secret"
        );
    }
    for pid in descendants(fleet.pid()) {
        assert!(!arguments(pid).contains(CANARY), "{}", arguments(pid));
    }
    let outside_replicas: Vec<_> = holders(&fleet.env.state())
        .into_iter()
        .filter(|path| !path.contains("/replicas/"))
        .collect();
    assert_eq!(
        outside_replicas,
        Vec::<String>::new(),
        "state files hold the secret"
    );
    fleet.down();
    assert_eq!(
        holders(&fleet.env.state()),
        Vec::<String>::new(),
        "secret files outlive their replicas"
    );
}

#[test]
fn an_error_about_a_manifest_with_a_secret_does_not_show_it() {
    let fleet = fleet();
    let manifest = fleet.env.read("fleet/leaker/agent.yaml");
    fleet.env.write(
        "fleet/leaker/agent.yaml",
        format!("{manifest}  unknownKey: 1\n"),
    );
    let output = fleet.env.run(["validate", "fleet"]).code(65);
    assert!(!output.stderr.contains(CANARY) && !output.stdout.contains(CANARY));
}
