//! No sleeps in tests: a test pauses the clock or awaits a condition within a deadline.

use crate::tree::{Finding, RustFile, Tree};

/// Files that poll the outside world for tests, with the reason.
const ALLOWED: &[(&str, &str)] = &[
    (
        "crates/testkit/src/process.rs",
        "waits for other processes, which no clock of ours can pause",
    ),
    (
        "crates/deploy/src/backend/conformance.rs",
        "asks a real backend for its log again, until the line is there",
    ),
    (
        "crates/flow/tests/support/mod.rs",
        "its callers pause the clock; a condition is asked for each millisecond of it",
    ),
    (
        "crates/flow/tests/proof/build.rs",
        "a node that takes its time, on a clock that its callers pause",
    ),
    (
        "crates/flow/tests/proof/world.rs",
        "a node that takes its time, on a clock that its callers pause",
    ),
    (
        "crates/cli/tests/e2e/flows.rs",
        "a node of a real agent that takes longer than anybody waits",
    ),
];

/// What sleeps in real time.
const REAL: &[&str] = &[
    "thread::sleep",
    "tokio::time::sleep",
    "time::sleep",
    "tokio::time::sleep_until",
];

/// What sleeps on the clock that a test may pause.
const PAUSABLE: &[&str] = &["clock::sleep", "clock::sleep_until"];

pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in &tree.rust {
        if ALLOWED.iter().any(|(path, _)| *path == file.path) {
            continue;
        }
        let pauses = file.text.contains("start_paused") || file.text.contains("time::pause()");
        let in_tests = |fact: &crate::facts::Fact| fact.in_test || is_test_code(file);
        for (fact, named) in file.facts.paths().filter(|(fact, _)| in_tests(fact)) {
            let ends = |sleep: &str| named == sleep || named.ends_with(&format!("::{sleep}"));
            if REAL.iter().any(|sleep| ends(sleep))
                || (!pauses && PAUSABLE.iter().any(|sleep| ends(sleep)))
            {
                findings.push(Finding::new(
                    &file.path,
                    fact.line,
                    format!("a test sleeps by `{named}`"),
                ));
            }
        }
    }
    findings
}

/// Test files, and the helpers that only tests use.
fn is_test_code(file: &RustFile) -> bool {
    file.is_test() || file.krate() == Some("testkit")
}

#[test]
fn a_test_that_sleeps_is_found() {
    let text = "//! A.\nfn f() { clock::sleep(d); }\n#[cfg(test)]\nmod tests {\nuse std::thread::sleep;\n\
                #[tokio::test]\nasync fn g() {\nselect! { _ = tokio::time::sleep(d) => () }\nclock::sleep(d).await; }\n}";
    let lines = |text: &str| -> Vec<usize> {
        check(&Tree::fixture(&[("crates/a/src/lib.rs", text)]))
            .iter()
            .map(|f| f.line)
            .collect()
    };
    assert_eq!(lines(text), [5, 8, 9]);
    let paused = text.replace("#[tokio::test]", "#[tokio::test(start_paused = true)]");
    assert_eq!(lines(&paused), [5, 8]);
}

#[test]
fn the_allowed_files_exist() {
    let tree = Tree::of_workspace();
    assert!(
        ALLOWED.iter().all(|(path, _)| tree.has(path)),
        "an exception outlived its file"
    );
}
