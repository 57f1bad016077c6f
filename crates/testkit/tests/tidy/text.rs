//! What no tracked file holds: the host of a package registry, the path of somebody's machine, what a merge left behind.

use crate::tree::{Finding, Tree};

/// Registry hosts, written so that this file does not hold them itself.
const HOSTS: &[&str] = &[
    concat!("crates", ".io"),
    concat!("pypi", ".org"),
    concat!("npmjs", ".org"),
    concat!("golang", ".org"),
    concat!("rubygems", ".org"),
    concat!("docker", ".io"),
    concat!("ghcr", ".io"),
    concat!("quay", ".io"),
];

/// Folders of a machine, likewise.
const FOLDERS: &[&str] = &[
    concat!("/wo", "rk"),
    concat!("/ro", "ot"),
    concat!("/ho", "me"),
];

/// How a line begins that a merge left behind, likewise.
const MARKERS: &[&str] = &[concat!("<<<<", "<<< "), concat!(">>>>", ">>> ")];

/// Files that cargo writes and that name the registry by necessity.
const GENERATED: &[&str] = &["Cargo.lock"];

pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree
        .text
        .iter()
        .filter(|file| !GENERATED.contains(&file.path.as_str()))
    {
        for (index, line) in file.text.lines().enumerate() {
            let here = |message: String| Finding::new(&file.path, index + 1, message);
            if let Some(host) = HOSTS.iter().find(|host| line.contains(*host)) {
                findings.push(here(format!("names the registry host {host}")));
            }
            if MARKERS.iter().any(|marker| line.starts_with(*marker)) {
                findings.push(here("holds what a merge left behind".to_owned()));
            }
            if let Some(folder) = FOLDERS.iter().find(|folder| holds_folder(line, folder)) {
                findings.push(here(format!("names a machine's own folder {folder}")));
            }
        }
    }
    findings
}

/// Whether an absolute path in the line begins with the folder.
fn holds_folder(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + folder.len()..].chars().next();
        let starts = before.is_none_or(|c| {
            !c.is_alphanumeric() && !matches!(c, '_' | '-' | '.' | '/' | '}' | '*' | '>' | ')')
        });
        starts && after == Some('/')
    })
}

#[test]
fn registry_hosts_and_machine_paths_are_found() {
    let (host, folder) = (HOSTS[0], FOLDERS[2]);
    let text = format!(
        "see https://{host}/x\ncp {folder}/me/x .\nnot a{folder}/x, nor ${{state}}{folder}/x, nor {folder}s/\n"
    );
    let lines: Vec<usize> = check(&Tree::fixture(&[("notes.md", &text)]))
        .iter()
        .map(|f| f.line)
        .collect();
    assert_eq!(lines, [1, 2]);
    assert!(check(&Tree::fixture(&[("Cargo.lock", &text)])).is_empty());
}

#[test]
fn what_a_merge_left_behind_is_found() {
    let text = format!("one\n{}ours\ntwo\n{}theirs\n", MARKERS[0], MARKERS[1]);
    assert_eq!(check(&Tree::fixture(&[("notes.md", &text)])).len(), 2);
}
