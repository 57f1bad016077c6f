//! The tidy test: every house rule that a program can check, over every tracked file, all violations reported at once.
//!
//! A rule is a function from the [`tree::Tree`] to findings; each has a test beside it that shows it can fail.
//! The few exceptions are constants in the rule's file, with their reason.

mod alerts;
mod arrows;
mod conformance;
mod dependencies;
mod docs;
mod facts;
mod hygiene;
mod metrics;
mod pure;
mod runbook;
mod seams;
mod size;
mod sleeps;
mod text;
mod tree;

use tree::{Finding, Tree};

/// A rule looks at the whole tree and tells what it found.
type Rule = fn(&Tree) -> Vec<Finding>;

/// Every rule, by name.
const RULES: &[(&str, Rule)] = &[
    ("alerts", alerts::check),
    ("arrows", arrows::check),
    ("conformance", conformance::check),
    ("decisions", docs::decisions),
    ("dependencies", dependencies::check),
    ("hygiene", hygiene::check),
    ("metrics", metrics::check),
    ("module-docs", docs::module_docs),
    ("paths-in-docs", docs::paths_exist),
    ("pure", pure::check),
    ("runbook", runbook::check),
    ("seams", seams::check),
    ("size", size::check),
    ("sleeps", sleeps::check),
    ("text", text::check),
];

#[test]
#[expect(
    clippy::print_stdout,
    reason = "the size report is read with --nocapture"
)]
fn the_tree_is_tidy() {
    let tree = Tree::of_workspace();
    assert!(
        tree.rust.len() > 10,
        "only {} Rust files found: the scan itself is broken",
        tree.rust.len()
    );
    println!("{}", size::report(&tree));
    println!("{}", seams::report(&tree));
    let mut lines: Vec<String> = RULES
        .iter()
        .flat_map(|(rule, check)| {
            check(&tree)
                .into_iter()
                .map(move |finding| format!("{finding} [{rule}]"))
        })
        .collect();
    lines.sort();
    assert!(
        lines.is_empty(),
        "{} untidy places:\n{}",
        lines.len(),
        lines.join("\n")
    );
}
