//! What the rules look at: the tracked files, the Rust ones parsed, the Cargo files read.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::facts::{self, Facts};

/// One violation of one rule.
#[derive(Debug)]
pub struct Finding {
    pub path: String,
    pub line: usize,
    pub message: String,
}

impl Finding {
    pub fn new(path: &str, line: usize, message: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line,
            message: message.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

/// A tracked text file, its path relative to the workspace with `/` between segments.
pub struct TextFile {
    pub path: String,
    pub text: String,
}

/// A Rust file and what its syntax says.
pub struct RustFile {
    pub path: String,
    pub text: String,
    pub facts: Facts,
    /// Why it does not parse, when it does not; its facts are empty then.
    pub broken: Option<syn::Error>,
}

impl RustFile {
    /// The folder of the crate, such as `kernel`, or none outside `crates/`.
    pub fn krate(&self) -> Option<&str> {
        self.path.strip_prefix("crates/")?.split('/').next()
    }

    /// Whether the whole file is test code: under `tests/` or `benches/`, a `tests.rs` beside its module, or a suite and
    /// helpers that only tests are given.
    pub fn is_test(&self) -> bool {
        let mut parts: Vec<&str> = self.path.split('/').collect();
        let file = parts.pop().unwrap_or_default();
        let file = file.strip_suffix(".rs").unwrap_or(file);
        parts
            .iter()
            .any(|part| matches!(*part, "tests" | "benches" | "conformance"))
            || matches!(file, "tests" | "conformance" | "test_util")
    }
}

/// A member's `Cargo.toml`.
pub struct Manifest {
    pub path: String,
    /// The folder of the crate, such as `kernel`.
    pub krate: String,
    pub text: String,
    pub toml: toml::Table,
}

impl Manifest {
    /// The names in one dependency table, each with the line that names it.
    pub fn dependencies(&self, table: &str) -> Vec<(String, usize)> {
        let Some(names) = self.toml.get(table).and_then(toml::Value::as_table) else {
            return Vec::new();
        };
        names
            .keys()
            .map(|name| (name.clone(), self.line_of(table, name)))
            .collect()
    }

    fn line_of(&self, table: &str, name: &str) -> usize {
        let header = format!("[{table}]");
        let start = self
            .text
            .lines()
            .position(|line| line.trim() == header)
            .unwrap_or(0);
        let within = self.text.lines().skip(start).position(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['.', ' ', '=']))
        });
        start + within.unwrap_or(0) + 1
    }
}

/// The whole tree.
pub struct Tree {
    pub text: Vec<TextFile>,
    pub rust: Vec<RustFile>,
    pub manifests: Vec<Manifest>,
    /// Every tracked path, the ones that are not text too.
    pub paths: Vec<String>,
}

impl Tree {
    /// The workspace that this test belongs to.
    pub fn of_workspace() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let root = root
            .canonicalize()
            .expect("the workspace is two folders up");
        let paths = tracked(&root);
        let files = paths.iter().filter_map(|path| {
            let text = std::fs::read_to_string(root.join(path)).ok()?;
            Some((path.clone(), text))
        });
        let mut tree = Self::build(files.collect());
        tree.paths = paths;
        tree
    }

    /// A made-up tree, for the tests of the rules.
    pub fn fixture(files: &[(&str, &str)]) -> Self {
        Self::build(
            files
                .iter()
                .map(|(path, text)| ((*path).to_owned(), (*text).to_owned()))
                .collect(),
        )
    }

    fn build(files: Vec<(String, String)>) -> Self {
        let mut tree = Self {
            text: Vec::new(),
            rust: Vec::new(),
            manifests: Vec::new(),
            paths: Vec::new(),
        };
        for (path, text) in files {
            if path.ends_with(".rs") {
                let (facts, broken) = match facts::of(&text) {
                    Ok(facts) => (facts, None),
                    Err(error) => (Facts::default(), Some(error)),
                };
                tree.rust.push(RustFile {
                    path: path.clone(),
                    text: text.clone(),
                    facts,
                    broken,
                });
            }
            if let Some(krate) = path
                .strip_prefix("crates/")
                .and_then(|rest| rest.strip_suffix("/Cargo.toml"))
            {
                let toml = text
                    .parse()
                    .unwrap_or_else(|error| panic!("{path} does not parse: {error}"));
                let krate = krate.to_owned();
                tree.manifests.push(Manifest {
                    path: path.clone(),
                    krate,
                    text: text.clone(),
                    toml,
                });
            }
            tree.paths.push(path.clone());
            tree.text.push(TextFile { path, text });
        }
        tree
    }

    /// Whether a file or folder of that path is in the tree.
    pub fn has(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        let inside = format!("{path}/");
        self.paths
            .iter()
            .any(|known| known == path || known.starts_with(&inside))
    }

    /// The text of one file.
    pub fn text_of(&self, path: &str) -> Option<&str> {
        self.text
            .iter()
            .find(|file| file.path == path)
            .map(|file| file.text.as_str())
    }
}

/// Tracked files and those about to be; without git, everything that is not built.
fn tracked(root: &Path) -> Vec<String> {
    let git = Command::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .current_dir(root)
        .output();
    let mut paths: Vec<String> = match git {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout)
            .split_terminator('\0')
            .map(str::to_owned)
            .collect(),
        _ => walk(root),
    };
    paths.retain(|path| root.join(path).is_file());
    paths.sort();
    paths.dedup();
    paths
}

fn walk(root: &Path) -> Vec<String> {
    let skipped = |name: &str| matches!(name, "target" | ".git" | ".volary");
    let relative = |path: PathBuf| {
        path.strip_prefix(root)
            .ok()
            .map(|path| path.to_string_lossy().into_owned())
    };
    walkdir::WalkDir::new(root)
        .into_iter()
        .filter_entry(|entry| !entry.file_name().to_str().is_some_and(skipped))
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_file())
        .filter_map(|entry| relative(entry.into_path()))
        .collect()
}
