//! Path globs with one rule everywhere: as in `.gitignore`. Pure.
//!
//! `*` and `?` stay within one path part, `**` crosses them. A pattern without a `/` (other than a last one) matches at
//! any depth; one with a `/` is anchored at the source's root; a last `/` means directories only.

use globset::{Glob, GlobBuilder, GlobMatcher, GlobSet, GlobSetBuilder};

use crate::path;

/// Longest pattern, in bytes: as long as the longest path.
pub const PATTERN_MAX: usize = 4096;
/// Most patterns in one list; more is a mistake and would slow every file down.
pub const PATTERNS_MAX: usize = 1000;

/// A glob that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It does not parse.
    #[error("`{pattern}` is not a path pattern: {problem}")]
    Invalid {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        problem: String,
    },
    /// It is empty.
    #[error("a path pattern is empty")]
    Empty,
    /// It is too long.
    #[error("a path pattern has {len} bytes, the limit is {PATTERN_MAX}")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// The list is too long.
    #[error("{count} path patterns in one list, the limit is {PATTERNS_MAX}")]
    TooMany {
        /// Their number.
        count: usize,
    },
}

/// The glob in the form that the matcher wants: anchored, without the last slash.
fn normal(pattern: &str) -> Result<String, PatternError> {
    let body = pattern.strip_suffix('/').unwrap_or(pattern);
    if body.is_empty() {
        return Err(PatternError::Empty);
    }
    if pattern.len() > PATTERN_MAX {
        return Err(PatternError::TooLong { len: pattern.len() });
    }
    Ok(match body.strip_prefix('/') {
        Some(anchored) => anchored.to_owned(),
        None if body.contains('/') => body.to_owned(),
        None => format!("**/{body}"),
    })
}

fn build(pattern: &str) -> Result<Glob, PatternError> {
    let invalid = |error: globset::Error| PatternError::Invalid {
        pattern: pattern.to_owned(),
        problem: error.kind().to_string(),
    };
    GlobBuilder::new(&normal(pattern)?)
        .literal_separator(true)
        .backslash_escape(true)
        .build()
        .map_err(invalid)
}

// --- one pattern -------------------------------------------------------------------------------

/// One compiled path glob.
#[derive(Debug, Clone)]
pub struct Pattern {
    matcher: GlobMatcher,
    text: String,
    literal: String,
}

impl Pattern {
    /// Compiles `text`.
    ///
    /// # Errors
    /// [`PatternError`] when it is no glob.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        let glob = build(text)?;
        let literal = literal_prefix(glob.glob()).to_owned();
        Ok(Self {
            matcher: glob.compile_matcher(),
            text: text.to_owned(),
            literal,
        })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it matches this page path.
    pub fn matches(&self, page_path: &str) -> bool {
        self.matcher.is_match(page_path)
    }

    /// The directory, with its `/`, that everything it matches lies in; empty if there is none.
    /// A pattern without any special character gives its whole text.
    pub fn literal_prefix(&self) -> &str {
        &self.literal
    }
}

fn literal_prefix(glob: &str) -> &str {
    match glob.find(['*', '?', '[', '{', '\\']) {
        None => glob,
        Some(end) => glob[..end].rfind('/').map_or("", |slash| &glob[..=slash]),
    }
}

// --- what a source takes in ----------------------------------------------------------------------

/// Left out by default: version control, Volary's own state, installed dependencies, build output, editors' own files.
///
/// Other hidden files count: `.github/workflows` is context too.
pub const DEFAULT_EXCLUDES: &[&str] = &[
    ".git",
    ".hg",
    ".svn",
    ".volary",
    "node_modules",
    "target",
    "__pycache__", // directories
    "*~",
    ".*.sw?",
    ".sw?",
    ".#*",
    "#*#",
    "4913", // vim, emacs
    ".goutputstream-*",
    ".DS_Store", // GTK, macOS
];

/// Which paths are pages: those that an include matches (all, if there is none) and no exclude, itself or above it.
#[derive(Debug, Clone)]
pub struct Filter {
    include: Option<GlobSet>,
    exclude: GlobSet,
    exclude_directories: GlobSet,
}

impl Filter {
    /// Compiles the lists.
    ///
    /// # Errors
    /// [`PatternError`] of the first pattern that is no glob.
    pub fn new<T: AsRef<str>>(
        include: &[T],
        exclude: &[T],
        defaults: bool,
    ) -> Result<Self, PatternError> {
        let (directories, any): (Vec<&str>, Vec<&str>) = exclude
            .iter()
            .map(AsRef::as_ref)
            .partition(|pattern| pattern.ends_with('/'));
        let defaults = if defaults { DEFAULT_EXCLUDES } else { &[] };
        let include = include.iter().map(AsRef::as_ref);
        Ok(Self {
            include: if include.len() == 0 {
                None
            } else {
                Some(set(include)?)
            },
            exclude: set(any.into_iter().chain(defaults.iter().copied()))?,
            exclude_directories: set(directories.into_iter())?,
        })
    }

    /// Whether the directory at this page path may hold pages. Its own name only: the walk has asked for those above.
    pub fn enters(&self, directory: &str) -> bool {
        !self.exclude.is_match(directory) && !self.exclude_directories.is_match(directory)
    }

    /// Whether the file at this page path is a page, looking at every directory above it too.
    pub fn takes(&self, file: &str) -> bool {
        let above = file
            .rfind('/')
            .is_none_or(|slash| path::ancestors(&file[..slash]).all(|part| self.enters(part)));
        above
            && !self.exclude.is_match(file)
            && self.include.as_ref().is_none_or(|set| set.is_match(file))
    }
}

fn set<'a>(patterns: impl Iterator<Item = &'a str>) -> Result<GlobSet, PatternError> {
    let mut builder = GlobSetBuilder::new();
    let mut count = 0;
    for pattern in patterns {
        builder.add(build(pattern)?);
        count += 1;
    }
    if count > PATTERNS_MAX {
        return Err(PatternError::TooMany { count });
    }
    builder.build().map_err(|error| PatternError::Invalid {
        pattern: error.glob().unwrap_or_default().to_owned(),
        problem: error.kind().to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str, path: &str, expected: bool) {
        assert_eq!(
            Pattern::new(pattern).unwrap().matches(path),
            expected,
            "{pattern} on {path}"
        );
    }

    #[test]
    fn a_pattern_without_a_slash_matches_at_any_depth() {
        check("*.md", "a.md", true);
        check("*.md", "x/y/a.md", true);
        check("*.md", "a.mdx", false);
    }

    #[test]
    fn a_pattern_with_a_slash_is_anchored_and_a_star_stays_in_its_part() {
        check("notes/*.md", "notes/a.md", true);
        check("notes/*.md", "notes/x/a.md", false);
        check("notes/*.md", "old/notes/a.md", false);
        check("/a.md", "a.md", true);
        check("/a.md", "x/a.md", false);
    }

    #[test]
    fn two_stars_cross_directories() {
        check("**/*.md", "a.md", true);
        check("**/*.md", "x/y/a.md", true);
        check("x/**", "x/y/a.md", true);
        check("x/**/a.md", "x/a.md", true);
    }

    #[test]
    fn alternatives_and_classes_work() {
        check("**/*.{md,txt}", "x/a.txt", true);
        check("[ab].md", "b.md", true);
    }

    #[test]
    fn literal_prefixes_end_at_a_directory() {
        for (pattern, literal) in [
            ("notes/2024/*.md", "notes/2024/"),
            ("notes/ab*.md", "notes/"),
            ("*.md", ""),
            ("**/x", ""),
            ("/README", "README"),
            ("a/b", "a/b"),
        ] {
            assert_eq!(
                Pattern::new(pattern).unwrap().literal_prefix(),
                literal,
                "{pattern}"
            );
        }
    }

    #[test]
    fn broken_patterns_are_refused_with_their_text() {
        assert_eq!(Pattern::new("").unwrap_err(), PatternError::Empty);
        let error = Pattern::new("a[").unwrap_err().to_string();
        assert!(error.starts_with("`a[` is not a path pattern"), "{error}");
        assert!(matches!(
            Pattern::new(&"x".repeat(5000)),
            Err(PatternError::TooLong { len: 5000 })
        ));
    }

    #[test]
    fn a_filter_leaves_out_version_control_builds_and_editor_files() {
        let filter = Filter::new::<&str>(&[], &[], true).unwrap();
        for path in [
            "a.md",
            ".github/workflows/ci.yml",
            ".gitignore",
            "src/retarget/x",
            "x/49130",
        ] {
            assert!(filter.takes(path), "{path}");
        }
        for path in [
            ".git/HEAD",
            "x/.git/HEAD",
            "a/target/x",
            "node_modules/p/i.js",
            "a.md~",
            ".a.md.swp",
            "x/4913",
        ] {
            assert!(!filter.takes(path), "{path}");
        }
    }

    #[test]
    fn includes_narrow_and_excludes_win() {
        let filter = Filter::new(&["*.md"], &["drafts/"], true).unwrap();
        for (path, taken) in [
            ("a.md", true),
            ("a.txt", false),
            ("drafts/a.md", false),
            ("x/drafts/a.md", false),
        ] {
            assert_eq!(filter.takes(path), taken, "{path}");
        }
        assert!(
            Filter::new::<&str>(&[], &[], false)
                .unwrap()
                .takes("target/x")
        );
    }

    #[test]
    fn a_directory_pattern_leaves_files_of_that_name_alone() {
        let filter = Filter::new(&[], &["build/"], false).unwrap();
        assert!(filter.takes("build"));
        assert!(!filter.takes("build/x"));
    }
}
