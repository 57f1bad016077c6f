//! The conformance table is whole: every case of the reference has a row, and every test that a row names exists.

use crate::tree::{Finding, Tree};

/// The table.
const TABLE: &str = "docs/reference/conformance-runtime-operations.md";

/// Every area of the reference with its cases: asserted by its tests, derived from its behaviour.
const CASES: &[(&str, &[u8], &[u8])] = &[
    ("Hooks", &[1, 2, 3, 4], &[5, 6, 7, 8, 9, 10]),
    ("Rate limiting", &[1, 2, 3], &[4, 5, 6, 7, 8, 9, 10]),
    (
        "Ops server",
        &[1, 2, 3, 4, 5, 6, 7, 8],
        &[9, 10, 11, 12, 13, 14],
    ),
    ("Metrics", &[1, 2], &[]),
    ("Replay", &[1, 2, 3, 4, 5, 6, 7], &[8, 9, 10, 11]),
    ("TCP", &[1, 2, 3, 4, 5, 6, 7, 8, 9], &[10, 11, 12, 13]),
    ("Local", &[1, 2, 3, 4, 5, 6, 7], &[]),
    ("Verified receive", &[1, 2, 3, 4, 5, 6, 7, 8, 9], &[10, 11]),
    (
        "Task claim TTL",
        &[1, 2, 3, 4, 5, 6, 7, 8, 9],
        &[10, 11, 12, 13],
    ),
    ("Webhooks", &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], &[]),
    ("Runtime", &[1, 2, 3, 4, 5, 6, 7], &[]),
];

pub fn check(tree: &Tree) -> Vec<Finding> {
    let Some(text) = tree.text_of(TABLE) else {
        return vec![Finding::new(TABLE, 1, "the table is missing")];
    };
    let mut missing: Vec<(&str, String)> = CASES
        .iter()
        .flat_map(|(area, asserted, derived)| {
            let asserted = asserted.iter().map(|n| format!("T{n}"));
            let cases = asserted.chain(derived.iter().map(|n| format!("D{n}")));
            cases.map(|case| (*area, case))
        })
        .collect();
    let (mut findings, mut area) = (Vec::new(), "");
    for (index, line) in text.lines().enumerate() {
        if let Some(title) = line.strip_prefix("## ") {
            area = title;
        }
        let cells: Vec<&str> = line.split(" | ").collect();
        let [case, _, tests, we] = cells[..] else {
            continue;
        };
        let case = case.trim_start_matches("| ");
        if case == "case" {
            continue;
        }
        let mut here = |message: String| findings.push(Finding::new(TABLE, index + 1, message));
        let known = missing
            .iter()
            .position(|row| *row == (area, case.to_owned()));
        match known {
            Some(place) => drop(missing.remove(place)),
            None => here(format!(
                "{area} has no case {case}, or it stands there twice"
            )),
        }
        let judged = ["same", "better", "differs: "];
        if !judged.iter().any(|word| we.starts_with(word)) {
            here("how we stand to it is not said: same, better, or differs and why".to_owned());
        }
        for test in tests.split(", ") {
            if let Some(problem) = problem_of(tree, test.trim_matches('`')) {
                here(problem);
            }
        }
    }
    let lost = missing.into_iter().map(|(area, case)| {
        let message = format!("case {case} of {area} has no row");
        Finding::new(TABLE, 1, message)
    });
    findings.extend(lost);
    findings
}

/// What is wrong with a test that is named as `path::name`.
fn problem_of(tree: &Tree, test: &str) -> Option<String> {
    let Some((path, name)) = test.split_once("::") else {
        return Some(format!("`{test}` is not `path::name`"));
    };
    let Some(text) = tree.text_of(path) else {
        return Some(format!("`{path}` does not exist"));
    };
    let function = format!("fn {name}(");
    let before = text.find(&function).map(|at| &text[..at]);
    match before.and_then(|before| before.rfind("#[").map(|at| &before[at..])) {
        None => Some(format!("`{path}` has no test `{name}`")),
        Some(attribute) if !attribute.contains("test") => {
            Some(format!("`{name}` of `{path}` is no test"))
        }
        Some(_) => None,
    }
}

#[test]
fn a_lost_case_a_lost_test_and_a_missing_judgement_are_found() {
    let row = |case: &str, test: &str, we: &str| {
        format!("## Metrics\n\n| {case} | says | `crates/a/tests/t.rs::{test}` | {we} |\n")
    };
    let tests =
        "//! A.\n/// T1.\n#[tokio::test]\nasync fn counts() {}\n#[cfg(unix)]\nfn helper() {}\n";
    let check_row = |table: &str| {
        let tree = Tree::fixture(&[(TABLE, table), ("crates/a/tests/t.rs", tests)]);
        let all: usize = CASES.iter().map(|(_, t, d)| t.len() + d.len()).sum();
        check(&tree).len() + 1 - all
    };
    assert_eq!(check_row(&row("T1", "counts", "same")), 0);
    assert_eq!(check_row(&row("T1", "gone", "same")), 1);
    assert_eq!(check_row(&row("T1", "helper", "same")), 1);
    assert_eq!(check_row(&row("T1", "counts", "perhaps")), 1);
    assert_eq!(check_row(&row("T9", "counts", "same")), 2);
    assert_eq!(check(&Tree::fixture(&[])).len(), 1);
}
