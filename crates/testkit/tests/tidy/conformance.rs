//! The conformance tables are whole: every case of a reference has a row, and every test that a row names exists.

use crate::tree::{Finding, Tree};

/// A table: its file, and every area of the reference with its cases.
struct Table {
    path: &'static str,
    areas: &'static [(&'static str, Cases)],
}

/// The cases of an area.
enum Cases {
    /// `T1`…, asserted by the reference's tests, and `D1`…, derived from its behaviour.
    Kinds(&'static [u8], &'static [u8]),
    /// Numbered through, first and last.
    Numbers(u8, u8),
}

/// The tables.
const TABLES: &[Table] = &[RUNTIME, FLOW];

/// What the test of a row says whose difference is the compiler's, so that no test can run it; only with `differs: `.
const NONE: &str = "none";

const RUNTIME: Table = Table {
    path: "docs/reference/conformance-runtime-operations.md",
    areas: &[
        ("Hooks", Cases::Kinds(&[1, 2, 3, 4], &[5, 6, 7, 8, 9, 10])),
        (
            "Rate limiting",
            Cases::Kinds(&[1, 2, 3], &[4, 5, 6, 7, 8, 9, 10]),
        ),
        (
            "Ops server",
            Cases::Kinds(&[1, 2, 3, 4, 5, 6, 7, 8], &[9, 10, 11, 12, 13, 14]),
        ),
        ("Metrics", Cases::Kinds(&[1, 2], &[])),
        (
            "Replay",
            Cases::Kinds(&[1, 2, 3, 4, 5, 6, 7], &[8, 9, 10, 11]),
        ),
        (
            "TCP",
            Cases::Kinds(&[1, 2, 3, 4, 5, 6, 7, 8, 9], &[10, 11, 12, 13]),
        ),
        ("Local", Cases::Kinds(&[1, 2, 3, 4, 5, 6, 7], &[])),
        (
            "Verified receive",
            Cases::Kinds(&[1, 2, 3, 4, 5, 6, 7, 8, 9], &[10, 11]),
        ),
        (
            "Task claim TTL",
            Cases::Kinds(&[1, 2, 3, 4, 5, 6, 7, 8, 9], &[10, 11, 12, 13]),
        ),
        (
            "Webhooks",
            Cases::Kinds(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], &[]),
        ),
        ("Runtime", Cases::Kinds(&[1, 2, 3, 4, 5, 6, 7], &[])),
    ],
};

const FLOW: Table = Table {
    path: "docs/reference/conformance-flow.md",
    areas: &[
        ("Core", Cases::Numbers(1, 23)),
        ("Cancel", Cases::Numbers(24, 28)),
        ("Deadlines", Cases::Numbers(29, 30)),
        ("Errors", Cases::Numbers(36, 39)),
        ("Patterns", Cases::Numbers(40, 50)),
        ("Streaming", Cases::Numbers(51, 59)),
        ("Types", Cases::Numbers(60, 64)),
        ("Observability", Cases::Numbers(65, 72)),
        ("State", Cases::Numbers(73, 80)),
        ("Testkit", Cases::Numbers(81, 83)),
        ("Added", Cases::Numbers(101, 109)),
    ],
};

impl Cases {
    fn names(&self) -> Vec<String> {
        match self {
            Self::Kinds(asserted, derived) => {
                let asserted = asserted.iter().map(|n| format!("T{n}"));
                let derived = derived.iter().map(|n| format!("D{n}"));
                asserted.chain(derived).collect()
            }
            Self::Numbers(first, last) => (*first..=*last).map(|n| n.to_string()).collect(),
        }
    }
}

impl Table {
    fn cases(&self) -> Vec<(&'static str, String)> {
        let areas = self.areas.iter();
        let cases = areas.flat_map(|(area, cases)| cases.names().into_iter().map(|n| (*area, n)));
        cases.collect()
    }

    fn check(&self, tree: &Tree) -> Vec<Finding> {
        let Some(text) = tree.text_of(self.path) else {
            return vec![Finding::new(self.path, 1, "the table is missing")];
        };
        let mut missing = self.cases();
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
            let mut here =
                |message: String| findings.push(Finding::new(self.path, index + 1, message));
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
            if tests == NONE && we.starts_with("differs: ") {
                continue;
            }
            for test in tests.split(", ") {
                if let Some(problem) = problem_of(tree, test.trim_matches('`')) {
                    here(problem);
                }
            }
        }
        let lost = missing.into_iter().map(|(area, case)| {
            let message = format!("case {case} of {area} has no row");
            Finding::new(self.path, 1, message)
        });
        findings.extend(lost);
        findings
    }
}

pub fn check(tree: &Tree) -> Vec<Finding> {
    TABLES.iter().flat_map(|table| table.check(tree)).collect()
}

/// What is wrong with a test that is named as `path::name`.
pub fn problem_of(tree: &Tree, test: &str) -> Option<String> {
    let Some((path, name)) = test.split_once("::") else {
        return Some(format!("`{test}` is not `path::name`"));
    };
    let Some(text) = tree.text_of(path) else {
        return Some(format!("`{path}` does not exist"));
    };
    if tests_in(text).any(|(_, test)| test == name) {
        return None;
    }
    Some(if text.contains(&format!("fn {name}(")) {
        format!("`{name}` of `{path}` is no test")
    } else {
        format!("`{path}` has no test `{name}`")
    })
}

/// The tests of a file, each with its line.
pub fn tests_in(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut marked = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let line = line.trim_start();
        if let Some(attribute) = line.strip_prefix("#[") {
            let path = attribute.split(['(', ']']).next()?;
            marked |= path.rsplit("::").next() == Some("test");
            return None;
        }
        if line.starts_with("//") {
            return None;
        }
        let (_, name) = line.split_once("fn ")?;
        let is_test = std::mem::take(&mut marked);
        is_test.then_some((index + 1, name.split('(').next()?))
    })
}

#[test]
fn a_lost_case_a_lost_test_and_a_missing_judgement_are_found() {
    let row = |case: &str, test: &str, we: &str| {
        format!("## Metrics\n\n| {case} | says | `crates/a/tests/t.rs::{test}` | {we} |\n")
    };
    let tests = "//! A.\n/// T1.\n#[tokio::test]\nasync fn counts() {}\nfn helper() {}\n";
    let check_row = |row: &str| {
        let tree = Tree::fixture(&[(RUNTIME.path, row), ("crates/a/tests/t.rs", tests)]);
        RUNTIME.check(&tree).len() + 1 - RUNTIME.cases().len()
    };
    assert_eq!(check_row(&row("T1", "counts", "same")), 0);
    assert_eq!(check_row(&row("T1", "gone", "same")), 1);
    assert_eq!(check_row(&row("T1", "helper", "same")), 1);
    assert_eq!(check_row(&row("T1", "counts", "perhaps")), 1);
    assert_eq!(check_row(&row("T9", "counts", "same")), 2);
    assert_eq!(check(&Tree::fixture(&[])).len(), TABLES.len());
}

#[test]
fn no_test_is_named_only_with_a_difference() {
    let check_row = |tests: &str, we: &str| {
        let row = format!("## Patterns\n\n| 40 | says | {tests} | {we} |\n");
        let tree = Tree::fixture(&[(FLOW.path, &row)]);
        FLOW.check(&tree).len() + 1 - FLOW.cases().len()
    };
    assert_eq!(check_row(NONE, "differs: the compiler sees to it"), 0);
    assert_eq!(check_row(NONE, "same"), 1);
}
