//! Which crate may depend on which. Domains do not know each other; `node` is the only place where they meet.

use crate::tree::{Finding, Tree};

/// A crate's folder, and the workspace packages it may name in `[dependencies]`.
const ARROWS: &[(&str, &[&str])] = &[
    ("kernel", &[]),
    ("store", &["volary-kernel"]),
    ("messaging", &["volary-kernel", "volary-store"]),
    ("flow", &["volary-kernel", "volary-store"]),
    ("planner", &["volary-kernel", "volary-store", "volary-flow"]),
    ("context", &["volary-kernel", "volary-store"]),
    ("deploy", &["volary-kernel", "volary-store"]),
    ("ops", &["volary-kernel", "volary-store"]),
    (
        "node",
        &[
            "volary-kernel",
            "volary-store",
            "volary-messaging",
            "volary-flow",
            "volary-planner",
            "volary-context",
            "volary-deploy",
            "volary-ops",
        ],
    ),
    ("cli", &["volary", "volary-kernel"]),
];

/// Programs for development: they may name anything, and nothing may name them outside `[dev-dependencies]`.
const DEVELOPMENT: &[&str] = &["bench", "testkit"];

pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for manifest in &tree.manifests {
        if DEVELOPMENT.contains(&manifest.krate.as_str()) {
            continue;
        }
        let Some((_, allowed)) = ARROWS.iter().find(|(krate, _)| *krate == manifest.krate) else {
            findings.push(Finding::new(
                &manifest.path,
                1,
                "this crate has no place among the arrows",
            ));
            continue;
        };
        for table in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for (name, line) in manifest.dependencies(table) {
                let ours = name == "volary" || name.starts_with("volary-");
                let for_tests = table == "dev-dependencies"
                    && (name == "volary-testkit" || is_self(manifest, &name));
                if ours && !allowed.contains(&name.as_str()) && !for_tests {
                    let message = format!("`{}` may not depend on `{name}`", manifest.krate);
                    findings.push(Finding::new(&manifest.path, line, message));
                }
            }
        }
    }
    findings
}

/// A crate that turns on its own test features.
fn is_self(manifest: &crate::tree::Manifest, name: &str) -> bool {
    let package = manifest
        .toml
        .get("package")
        .and_then(|package| package.get("name"));
    package.and_then(toml::Value::as_str) == Some(name)
}

#[test]
fn an_arrow_between_domains_is_found() {
    let cargo = "[package]\nname = \"volary-context\"\n\n[dependencies]\nvolary-kernel.workspace = true\nvolary-messaging.workspace = true\n";
    let tree = Tree::fixture(&[("crates/context/Cargo.toml", cargo)]);
    let found = check(&tree);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].line, 6);
}

#[test]
fn the_testkit_is_for_tests_only() {
    let cargo = "[dependencies]\nvolary-testkit.workspace = true\n[dev-dependencies]\nvolary-testkit.workspace = true\n";
    let found = check(&Tree::fixture(&[("crates/cli/Cargo.toml", cargo)]));
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn a_crate_without_a_place_is_found() {
    assert_eq!(
        check(&Tree::fixture(&[("crates/drawer/Cargo.toml", "")])).len(),
        1
    );
}
