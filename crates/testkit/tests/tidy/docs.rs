//! Documents stay true: every file says what it is for, the paths that documents name exist, decisions are numbered.

use crate::tree::{Finding, TextFile, Tree};

/// Documents whose paths must exist, beside everything in `docs/recipes` and `docs/decisions`.
const CHECKED: &[&str] = &[
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "examples/",
];

/// How a path that documents name begins.
const ROOTS: &[&str] = &["crates/", "docs/", "examples/", ".ci/"];

/// Every Rust file opens with a module doc.
pub fn module_docs(tree: &Tree) -> Vec<Finding> {
    let bare = tree.rust.iter().filter(|file| !file.facts.has_module_doc);
    bare.map(|file| Finding::new(&file.path, 1, "no module doc (`//!`): what is it for?"))
        .collect()
}

/// Every path that a recipe or a guide names exists; `path.rs::name` also asks for the name in the file.
pub fn paths_exist(tree: &Tree) -> Vec<Finding> {
    let guides = tree
        .text
        .iter()
        .filter(|file| file.path.ends_with(".md") && is_checked(&file.path));
    guides.flat_map(|file| missing_in(tree, file)).collect()
}

fn is_checked(path: &str) -> bool {
    path.starts_with("docs/recipes/")
        || path.starts_with("docs/decisions/")
        || CHECKED.contains(&path)
}

fn missing_in(tree: &Tree, file: &TextFile) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        for (path, name) in named_paths(line) {
            let here = |message: String| Finding::new(&file.path, index + 1, message);
            if !tree.has(&path) {
                findings.push(here(format!("`{path}` does not exist")));
            } else if let Some(name) = name
                && !tree.text_of(&path).is_some_and(|text| text.contains(&name))
            {
                findings.push(here(format!("`{path}` does not name `{name}`")));
            }
        }
    }
    findings
}

/// The repository paths in a line, with the name after `::` where one is given. A path ends before a placeholder.
fn named_paths(line: &str) -> Vec<(String, Option<String>)> {
    let mut found = Vec::new();
    for root in ROOTS {
        for (at, _) in line.match_indices(root) {
            let before = line[..at].chars().next_back();
            if before
                .is_some_and(|c| c.is_alphanumeric() || matches!(c, '/' | '_' | '-' | '.' | ':'))
            {
                continue;
            }
            let rest = &line[at..];
            let is_path = |c: char| c.is_alphanumeric() || matches!(c, '/' | '_' | '-' | '.');
            let end = rest.find(|c| !is_path(c)).unwrap_or(rest.len());
            let (mut path, after) = rest.split_at(end);
            if after.starts_with(['<', '{', '*', '$']) {
                path = path.rfind('/').map_or(path, |slash| &path[..slash]);
            }
            let name = after.strip_prefix("::").map(|after| {
                let end = after
                    .find(|c: char| !c.is_alphanumeric() && c != '_')
                    .unwrap_or(after.len());
                after[..end].to_owned()
            });
            found.push((path.trim_end_matches(['.', '/']).to_owned(), name));
        }
    }
    found
}

/// Decisions are `NNNN-title.md`, numbered without gaps, each titled `# N. …`.
pub fn decisions(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let decisions = tree
        .text
        .iter()
        .filter(|file| file.path.starts_with("docs/decisions/"));
    for (index, file) in decisions.enumerate() {
        let number = index + 1;
        if !file
            .path
            .starts_with(&format!("docs/decisions/{number:04}-"))
        {
            findings.push(Finding::new(
                &file.path,
                1,
                format!("the next decision is {number:04}"),
            ));
        }
        if !file.text.starts_with(&format!("# {number}. ")) {
            findings.push(Finding::new(
                &file.path,
                1,
                format!("its title does not begin with `# {number}. `"),
            ));
        }
    }
    findings
}

#[test]
fn a_file_without_a_doc_is_found() {
    let tree = Tree::fixture(&[
        ("crates/a/src/lib.rs", "// A comment.\nfn f() {}"),
        ("crates/a/src/b.rs", "//! B.\n"),
    ]);
    assert_eq!(module_docs(&tree).len(), 1);
}

#[test]
fn a_path_that_moved_is_found() {
    let guide = "See `crates/a/src/lib.rs`, crates/a/src/lib.rs::here, `crates/a/src/<name>.rs` and\n\
                 `crates/a/src/gone.rs`, crates/a/src/lib.rs::gone. Not target/crates/x.\n";
    let tree = Tree::fixture(&[
        ("README.md", guide),
        ("crates/a/src/lib.rs", "//! A.\nfn here() {}"),
    ]);
    let found: Vec<String> = paths_exist(&tree).iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        [
            "README.md:2: `crates/a/src/gone.rs` does not exist",
            "README.md:2: `crates/a/src/lib.rs` does not name `gone`",
        ]
    );
}

#[test]
fn a_gap_between_decisions_is_found() {
    let tree = Tree::fixture(&[
        ("docs/decisions/0001-a.md", "# 1. A\n"),
        ("docs/decisions/0003-b.md", "# 3. B\n"),
    ]);
    assert_eq!(decisions(&tree).len(), 2);
}
