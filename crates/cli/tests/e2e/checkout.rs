//! Real input: a repository of 2,000 files, and a checkout between two far-apart commits. Each changed file is
//! dispatched with the right kind, once, and none is missing.

use std::collections::BTreeMap;

use serde_json::Value;
use volary_testkit::git::{Difference, git_repo};

use crate::support::{Agent, Fleet, of_kind};

/// Kind by path of the `page.changed` entries.
fn changes(events: &[Value]) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    of_kind(events, "page.changed")
        .iter()
        .map(|event| {
            let id = text(&event["body"]["page"]["id"]);
            let path = id.strip_prefix("notes:").unwrap_or(&id).to_owned();
            (path, text(&event["body"]["kind"]))
        })
        .collect()
}

#[test]
fn a_checkout_of_many_files_is_dispatched_once_per_file_with_the_right_kind() {
    let agent = Agent {
        name: "watcher",
        spec: "command: [sh, -c, 'exec sleep 600']\nsubscriptions:\n  - {source: notes}\n",
        script: "",
    };
    let fleet = Fleet::new(&[agent], "");
    let repo = git_repo(&fleet.path("notes"), 2000, 6);
    repo.checkout(0);
    fleet.up();
    let first = fleet.await_events("page for each file", |events| changes(events).len() >= 2000);
    let last = first.last().unwrap()["seq"].as_u64().unwrap();
    repo.checkout(5);
    let wanted: BTreeMap<String, &str> = repo
        .difference(0, 5)
        .into_iter()
        .map(|difference| match difference {
            Difference::Added(path) => (path, "added"),
            Difference::Changed(path) => (path, "replaced"),
            Difference::Removed(path) => (path, "invalidated"),
        })
        .collect();
    assert!(
        wanted.len() > 500,
        "the commits are far apart: {}",
        wanted.len()
    );
    let since = |events: &[Value]| -> Vec<Value> {
        events
            .iter()
            .filter(|event| event["seq"].as_u64() > Some(last))
            .cloned()
            .collect()
    };
    let events = fleet.await_events("all changes", |events| {
        changes(&since(events)).len() >= wanted.len()
    });
    let seen = changes(&since(&events));
    let by_path: BTreeMap<_, _> = seen
        .iter()
        .map(|(path, kind)| (path.clone(), kind.as_str()))
        .collect();
    assert_eq!(by_path, wanted);
    assert_eq!(seen.len(), wanted.len(), "a file was dispatched twice");
    let dispatched = of_kind(&since(&events), "dispatch.enqueued").len();
    assert_eq!(
        dispatched,
        wanted.len(),
        "each change reaches the subscriber once"
    );
    fleet.down();
}
