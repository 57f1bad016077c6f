//! Nothing half-built and nothing switched off: no `#[ignore]`, no `todo!`, no `#[allow]` (an `#[expect]` says why).

use crate::facts::Kind;
use crate::tree::{Finding, Tree};

pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in &tree.rust {
        if let Some(error) = &file.broken {
            let message = format!("does not parse: {error}");
            findings.push(Finding::new(&file.path, error.span().start().line, message));
        }
        for fact in &file.facts.all {
            let message = match &fact.kind {
                Kind::Attribute(name) if name == "ignore" => {
                    "a test that does not run proves nothing"
                }
                // What test files share is used in part by each, so what one expects another does not meet.
                Kind::Attribute(name)
                    if name == "allow" && !file.path.contains("/tests/common/") =>
                {
                    "use #[expect(…, reason = …)], which ends with its cause"
                }
                Kind::Macro(name) if matches!(name.as_str(), "todo" | "unimplemented") => {
                    "nothing half-built is committed"
                }
                _ => continue,
            };
            findings.push(Finding::new(&file.path, fact.line, message));
        }
    }
    findings
}

#[test]
fn what_is_half_built_or_switched_off_is_found() {
    let text = "//! A.\n#[allow(dead_code)]\nfn f() { todo!() }\n#[cfg(test)]\nmod tests {\n#[test]\n#[ignore]\nfn g() { unimplemented!(\"later\") }\n}";
    let lines: Vec<usize> = check(&Tree::fixture(&[("crates/a/src/lib.rs", text)]))
        .iter()
        .map(|f| f.line)
        .collect();
    assert_eq!(lines, [2, 3, 7, 8]);
}

#[test]
fn a_file_that_does_not_parse_is_found_and_hides_no_other() {
    let tree = Tree::fixture(&[
        ("crates/a/src/broken.rs", "//! A.\nfn f( {}\n"),
        ("crates/a/src/lib.rs", "//! B.\nfn g() { todo!() }\n"),
    ]);
    assert_eq!(check(&tree).len(), 2);
}
