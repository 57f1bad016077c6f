//! What is wrong with a manifest, where, and what to do about it.

use std::{
    fmt::{self, Write as _},
    path::PathBuf,
};

use serde::Serialize;

use super::{
    codes::CodeInfo,
    source::{Place, SourceFile, Span},
};

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The manifest is not used.
    Error,
    /// The manifest is used; the user should know.
    Warning,
}

/// One problem.
#[derive(Debug, Clone, Serialize)]
pub struct Problem {
    /// Which kind: `volary explain` knows it.
    #[serde(serialize_with = "code_text")]
    pub code: &'static CodeInfo,
    /// How bad.
    pub severity: Severity,
    /// The file.
    pub path: PathBuf,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// What was expected and what was found: a fragment without a full stop.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
    /// The line in question.
    pub snippet: Option<Snippet>,
    /// Other places that have to do with it, each with what it is.
    pub related: Vec<Related>,
}

/// A line of a manifest with a stretch of it marked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Snippet {
    /// The line, at most 120 characters of it.
    pub text: String,
    /// Characters before the mark.
    pub mark: usize,
    /// Characters marked, at least 1.
    pub width: usize,
}

/// Another place that has to do with a problem.
#[derive(Debug, Clone, Serialize)]
pub struct Related {
    /// The file.
    pub path: PathBuf,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// What is there.
    pub message: String,
    /// The line in question.
    pub snippet: Option<Snippet>,
}

fn code_text<S: serde::Serializer>(
    code: &&'static CodeInfo,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(code.code)
}

// --- Problem ---------------------------------------------------------------------------------

impl Problem {
    /// A problem of a whole file, or of a folder.
    pub(crate) fn of_file(
        code: &'static CodeInfo,
        path: impl Into<PathBuf>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            code,
            severity: code.severity,
            path: path.into(),
            line: 1,
            column: 1,
            message: message.into(),
            hint: None,
            snippet: None,
            related: Vec::new(),
        }
    }

    pub(crate) fn at(
        code: &'static CodeInfo,
        file: &SourceFile,
        span: Span,
        message: impl Into<String>,
    ) -> Self {
        Self {
            line: span.line,
            column: span.column,
            snippet: Some(Snippet::of(file, span)),
            ..Self::of_file(code, &file.path, message)
        }
    }

    pub(crate) fn at_place(
        code: &'static CodeInfo,
        place: &Place,
        message: impl Into<String>,
    ) -> Self {
        Self::at(code, &place.file, place.span, message)
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }

    pub(crate) fn maybe_hint(self, hint: Option<String>) -> Self {
        Self {
            hint: hint.or(self.hint),
            ..self
        }
    }

    pub(crate) fn related(
        mut self,
        file: &SourceFile,
        span: Span,
        message: impl Into<String>,
    ) -> Self {
        self.related.push(Related {
            path: file.path.clone(),
            line: span.line,
            column: span.column,
            message: message.into(),
            snippet: Some(Snippet::of(file, span)),
        });
        self
    }
}

impl Snippet {
    fn of(file: &SourceFile, span: Span) -> Self {
        let (text, mark, width) = file.excerpt(span);
        Self { text, mark, width }
    }

    fn draw(&self, f: &mut fmt::Formatter<'_>, line: u32) -> fmt::Result {
        let number = line.to_string();
        let margin = number.len();
        writeln!(f, "{number:>width$} | {}", self.text, width = margin + 2)?;
        let mark = "^".repeat(self.width);
        writeln!(
            f,
            "{:>width$} | {:before$}{mark}",
            "",
            "",
            width = margin + 2,
            before = self.mark
        )
    }
}

/// `path:line:column: message [code]`, then the line with the place marked, related places, and the hint.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.severity == Severity::Warning {
            "warning: "
        } else {
            ""
        };
        let Self {
            line,
            column,
            message,
            ..
        } = self;
        writeln!(
            f,
            "{}:{line}:{column}: {kind}{message} [{}]",
            self.path.display(),
            self.code.code
        )?;
        if let Some(snippet) = &self.snippet {
            snippet.draw(f, *line)?;
        }
        for related in &self.related {
            let Related {
                line,
                column,
                message,
                ..
            } = related;
            writeln!(f, "  {}:{line}:{column}: {message}", related.path.display())?;
            if let Some(snippet) = &related.snippet {
                snippet.draw(f, *line)?;
            }
        }
        match &self.hint {
            Some(hint) => writeln!(f, "  hint: {hint}"),
            None => Ok(()),
        }
    }
}

// --- Problems --------------------------------------------------------------------------------

/// All problems of a fleet, in the order of files and lines.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(transparent)]
pub struct Problems(Vec<Problem>);

/// Exit code of the program for a bad manifest (`EX_DATAERR`).
pub const EXIT_BAD_CONFIG: u8 = 65;
/// Exit code of the program where a manifest is right but this build cannot run it (`EX_UNAVAILABLE`).
pub const EXIT_UNAVAILABLE: u8 = 69;

impl Problems {
    pub(crate) fn push(&mut self, problem: Problem) {
        self.0.push(problem);
    }

    /// Puts problems of one file together, by place; files keep the order they were first read in.
    pub(crate) fn sorted(mut self) -> Self {
        let mut files: Vec<PathBuf> = Vec::new();
        for problem in &self.0 {
            if !files.contains(&problem.path) {
                files.push(problem.path.clone());
            }
        }
        let rank = |path: &PathBuf| files.iter().position(|file| file == path);
        self.0.sort_by_cached_key(|p| {
            (
                rank(&p.path),
                p.line,
                p.column,
                p.code.code,
                p.message.clone(),
            )
        });
        self
    }

    /// The problems.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether one of them is an error.
    pub fn has_errors(&self) -> bool {
        self.0
            .iter()
            .any(|problem| problem.severity == Severity::Error)
    }

    /// The exit code they call for: 0 without errors, [`EXIT_UNAVAILABLE`] if every error is about what this build
    /// cannot do, else [`EXIT_BAD_CONFIG`].
    pub fn exit_code(&self) -> u8 {
        let mut errors = self
            .0
            .iter()
            .filter(|problem| problem.severity == Severity::Error)
            .peekable();
        match errors.peek() {
            None => 0,
            Some(_) => errors
                .map(|problem| problem.code.exit)
                .min()
                .unwrap_or(EXIT_BAD_CONFIG),
        }
    }

    /// One line that counts them: `2 errors, 1 warning`.
    pub fn summary(&self) -> String {
        let errors = self
            .0
            .iter()
            .filter(|problem| problem.severity == Severity::Error)
            .count();
        let mut text = String::new();
        for (count, word) in [(errors, "error"), (self.0.len() - errors, "warning")] {
            if count > 0 {
                let comma = if text.is_empty() { "" } else { ", " };
                let plural = if count == 1 { "" } else { "s" };
                write!(text, "{comma}{count} {word}{plural}")
                    .expect("writing to a String cannot fail");
            }
        }
        text
    }
}

impl<'a> IntoIterator for &'a Problems {
    type Item = &'a Problem;
    type IntoIter = std::slice::Iter<'a, Problem>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|problem| problem.fmt(f))
    }
}

impl std::error::Error for Problems {}
