//! Whole manifests from disk: broken ones, each with its message held by a snapshot, and good ones.

use std::{collections::BTreeSet, fs, path::Path};

use volary_deploy::spec::{
    BACKENDS, LoadOptions, Loaded, Problems, files::Files, load_fleet, start_order, stop_order,
};

/// The environment of these tests, and nothing of the machine's.
fn env(name: &str) -> Option<String> {
    let value = match name {
        "PATH" => "/bin:/usr/bin",
        "CANARY" => "canary-5f0c2b",
        _ => return None,
    };
    Some(value.to_owned())
}

fn load(path: &str) -> Result<Loaded, Problems> {
    let options = LoadOptions {
        files: Files::disk(),
        env: &env,
        backends: BACKENDS,
        insecure_bind: false,
    };
    load_fleet(Path::new(path), &options)
}

/// Names of the folders in `tests/manifests/KIND`, sorted.
fn cases(kind: &str) -> BTreeSet<String> {
    let folder = fs::read_dir(format!("tests/manifests/{kind}")).expect("the folder is there");
    let names = folder.map(|entry| entry.expect("it can be read").file_name());
    names
        .map(|name| name.into_string().expect("it is UTF-8"))
        .collect()
}

fn hold(folder: &str, name: &str, text: &str) {
    insta::with_settings!({
        snapshot_path => format!("snapshots/{folder}"),
        prepend_module_to_snapshot => false,
        omit_expression => true,
    }, {
        insta::assert_snapshot!(name, text);
    });
}

#[test]
fn every_broken_manifest_gives_the_message_of_its_snapshot() {
    let cases = cases("broken");
    assert!(cases.len() >= 45, "{}", cases.len());
    for case in cases {
        let problems = load(&format!("tests/manifests/broken/{case}")).expect_err(&case);
        assert!(problems.has_errors(), "{case}");
        let end = format!("exit {}: {}\n", problems.exit_code(), problems.summary());
        hold("broken", &case, &format!("{problems}{end}"));
    }
}

#[test]
fn every_good_manifest_resolves_to_its_snapshot() {
    let here = std::env::current_dir().expect("tests run somewhere");
    for case in cases("good") {
        let loaded = load(&format!("tests/manifests/good/{case}"));
        let loaded = loaded.unwrap_or_else(|problems| panic!("{case}:\n{problems}"));
        let json = serde_json::to_string_pretty(&loaded.fleet).expect("it is JSON");
        let json = json.replace(&here.to_string_lossy().into_owned(), "[crate]");
        hold("good", &case, &format!("{}{json}\n", loaded.warnings));
    }
}

#[test]
fn agents_start_after_what_they_depend_on_and_stop_before_it() {
    let fleet = load("tests/manifests/good/fleet")
        .expect("it is good")
        .fleet;
    let names = |groups: Vec<Vec<&volary_deploy::spec::model::AgentSpec>>| -> Vec<Vec<String>> {
        let group = |group: Vec<&volary_deploy::spec::model::AgentSpec>| {
            group.iter().map(|agent| agent.name.to_string()).collect()
        };
        groups.into_iter().map(group).collect()
    };
    let start = names(start_order(&fleet.agents).expect("no cycle"));
    assert_eq!(start, [vec!["indexer"], vec!["digest", "second-digest"]]);
    let stop = names(stop_order(&fleet.agents).expect("no cycle"));
    assert_eq!(stop, [vec!["digest", "second-digest"], vec!["indexer"]]);
}
