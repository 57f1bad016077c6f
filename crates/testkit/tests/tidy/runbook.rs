//! The runbook of flows is tried: every section names its tests, each of them exists, and none is left out.

use crate::{
    conformance::{problem_of, tests_in},
    tree::{Finding, Tree},
};

const RUNBOOK: &str = "docs/recipes/flow-runbook.md";
/// Where the tests of its symptoms are.
const TESTS: &str = "crates/flow/tests/runbook/";

pub fn check(tree: &Tree) -> Vec<Finding> {
    let Some(text) = tree.text_of(RUNBOOK) else {
        return vec![Finding::new(RUNBOOK, 1, "the runbook is missing")];
    };
    let mut findings = Vec::new();
    let (mut section, mut bare) = (None, true);
    let mut named = Vec::new();
    let unnamed = |section: &Option<(usize, &str)>, findings: &mut Vec<Finding>| {
        if let Some((line, title)) = section {
            let message = format!("`{title}` names no test that brings it about");
            findings.push(Finding::new(RUNBOOK, *line, message));
        }
    };
    for (index, line) in text.lines().enumerate() {
        if let Some(title) = line.strip_prefix("## ") {
            if bare {
                unnamed(&section, &mut findings);
            }
            (section, bare) = (Some((index + 1, title)), true);
        }
        let quoted = line.split('`').skip(1).step_by(2);
        for test in quoted.filter(|word| word.starts_with("crates/") && word.contains("::")) {
            bare = false;
            named.push(test);
            if let Some(problem) = problem_of(tree, test) {
                findings.push(Finding::new(RUNBOOK, index + 1, problem));
            }
        }
    }
    if bare {
        unnamed(&section, &mut findings);
    }
    let files = tree.rust.iter().filter(|file| file.path.starts_with(TESTS));
    for file in files {
        for (line, test) in tests_in(&file.text) {
            let test = format!("{}::{test}", file.path);
            if !named.contains(&&*test) {
                let message = "the runbook does not name this test";
                findings.push(Finding::new(&file.path, line, message));
            }
        }
    }
    findings
}

#[test]
fn a_section_without_a_test_a_lost_test_and_an_unnamed_one_are_found() {
    let file = format!("{TESTS}slow.rs");
    let tests =
        "//! A.\n#[tokio::test(start_paused = true)]\nasync fn it_is_slow() {}\nfn helper() {}\n";
    let found = |runbook: &str| check(&Tree::fixture(&[(RUNBOOK, runbook), (&file, tests)])).len();
    let named = format!("# R\n\n## Slow\n\nTry (`{file}::it_is_slow`).\n");
    assert_eq!(found(&named), 0);
    assert_eq!(found(&format!("{named}\n## Twice\n\nLook.\n")), 1);
    assert_eq!(found(&format!("# R\n\n## Stuck\n\nLook.\n\n{named}")), 1);
    assert_eq!(found(&format!("{named} `{file}::helper`")), 1);
    assert_eq!(found("# R\n\n## Slow\n\nLook.\n"), 2);
    assert_eq!(check(&Tree::fixture(&[])).len(), 1);
}
