//! Every dependency is used: its name stands in the sources of the crate that lists it.
//!
//! A plain text scan, comments left out; it can miss an unused crate that shares its name with a word of the code, and
//! never blames one that is used.

use crate::tree::{Finding, Manifest, Tree};

/// Dependencies that no source names, with the reason why they are there: (crate, dependency, reason).
const UNNAMED: &[(&str, &str, &str)] = &[(
    "node",
    "tracing-subscriber",
    "an example of it, which stands in examples/ with the others, names it",
)];

pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for manifest in &tree.manifests {
        for (table, folders) in [
            ("dependencies", &["src/"][..]),
            (
                "dev-dependencies",
                &["src/", "tests/", "benches/", "examples/"][..],
            ),
            ("build-dependencies", &["build.rs"][..]),
        ] {
            for (name, line) in manifest.dependencies(table) {
                let excused = UNNAMED
                    .iter()
                    .any(|(krate, unnamed, _)| *krate == manifest.krate && *unnamed == name);
                if !excused && !is_named(tree, manifest, folders, &name) {
                    let message = format!("`{name}` is listed and never used");
                    findings.push(Finding::new(&manifest.path, line, message));
                }
            }
        }
    }
    findings.extend(unlisted(tree));
    findings
}

fn is_named(tree: &Tree, manifest: &Manifest, folders: &[&str], dependency: &str) -> bool {
    let word = dependency.replace('-', "_");
    tree.rust.iter().any(|file| {
        let inside = file
            .path
            .strip_prefix(&format!("crates/{}/", manifest.krate));
        inside.is_some_and(|path| folders.iter().any(|folder| path.starts_with(folder)))
            && names(&file.text, &word)
    })
}

/// Whether the word stands alone in some line of code.
fn names(text: &str, word: &str) -> bool {
    let code = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    code.into_iter().any(|line| {
        line.match_indices(word).any(|(at, _)| {
            let outside = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && c != '_');
            outside(line[..at].chars().next_back())
                && outside(line[at + word.len()..].chars().next())
        })
    })
}

/// Entries of `[workspace.dependencies]` that no member lists.
fn unlisted(tree: &Tree) -> Vec<Finding> {
    let Some(text) = tree.text_of("Cargo.toml") else {
        return Vec::new();
    };
    let Ok(root) = text.parse::<toml::Table>() else {
        return vec![Finding::new("Cargo.toml", 1, "does not parse")];
    };
    let listed = root
        .get("workspace")
        .and_then(|workspace| workspace.get("dependencies"));
    let names = listed
        .and_then(toml::Value::as_table)
        .into_iter()
        .flat_map(|table| table.keys());
    let tables = ["dependencies", "dev-dependencies", "build-dependencies"];
    let used: Vec<String> = tree
        .manifests
        .iter()
        .flat_map(|manifest| tables.iter().flat_map(|table| manifest.dependencies(table)))
        .map(|(name, _)| name)
        .collect();
    names
        .filter(|name| !used.contains(name))
        .map(|name| {
            let line = text
                .lines()
                .position(|line| line.starts_with(&format!("{name} =")))
                .unwrap_or(0)
                + 1;
            Finding::new("Cargo.toml", line, format!("no member lists `{name}`"))
        })
        .collect()
}

#[test]
fn an_unused_dependency_is_found() {
    let tree = Tree::fixture(&[
        (
            "crates/a/Cargo.toml",
            "[dependencies]\naws-lc-rs.workspace = true\nhex = \"1\"\nbytes = \"1\"\n",
        ),
        (
            "crates/a/src/lib.rs",
            "//! Not hex::this.\nuse aws_lc_rs::digest; struct Hexagon; fn bytes_of() {}\n",
        ),
    ]);
    let found: Vec<String> = check(&tree).iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        [
            "crates/a/Cargo.toml:4: `bytes` is listed and never used",
            "crates/a/Cargo.toml:3: `hex` is listed and never used",
        ]
    );
}

#[test]
fn a_workspace_entry_without_members_is_found() {
    let root = "[workspace.dependencies]\nhex = \"1\"\nbytes = \"1\"\n";
    let tree = Tree::fixture(&[
        ("Cargo.toml", root),
        (
            "crates/a/Cargo.toml",
            "[dependencies]\nbytes.workspace = true\n",
        ),
        ("crates/a/src/lib.rs", "use bytes::Bytes;"),
    ]);
    let found = check(&tree);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].line, 2);
}
