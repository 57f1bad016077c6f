//! A manifest's text, and places in it.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The text of one manifest, without a byte order mark.
#[derive(Debug)]
pub(crate) struct SourceFile {
    pub path: PathBuf,
    pub text: String,
}

/// A stretch of a [`SourceFile`]. Line and column count from 1, the column in characters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Span {
    pub start: usize,
    pub end: usize,
    pub line: u32,
    pub column: u32,
}

/// A stretch of a known file. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Place {
    pub file: Arc<SourceFile>,
    pub span: Span,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}:{}",
            self.file.path.display(),
            self.span.line,
            self.span.column
        )
    }
}

/// Longest piece of a line that is shown, in characters: one line of a wide terminal.
const SNIPPET_WIDTH: usize = 120;

impl SourceFile {
    /// The folder that relative paths of this manifest start at.
    pub fn dir(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    /// The line of `span`, cut to a width, and where the caret goes: `(text, characters before it, its width)`.
    pub fn excerpt(&self, span: Span) -> (String, usize, usize) {
        let start = floor_boundary(&self.text, span.start);
        let end = floor_boundary(&self.text, span.end.max(start));
        let line_start = self.text[..start].rfind(is_break).map_or(0, |at| at + 1);
        let line_end = self.text[start..]
            .find(is_break)
            .map_or(self.text.len(), |at| start + at);
        let before = self.text[line_start..start].chars().count();
        let width = self.text[start..end.clamp(start, line_end)]
            .trim_end()
            .chars()
            .count()
            .max(1);
        let skipped = before.saturating_sub(SNIPPET_WIDTH / 2);
        let line: Vec<char> = self.text[line_start..line_end]
            .chars()
            .skip(skipped)
            .collect();
        let shown: String = line
            .iter()
            .take(SNIPPET_WIDTH)
            .map(|c| if c.is_control() { ' ' } else { *c })
            .collect();
        let before = before - skipped;
        (
            shown,
            before,
            width.min(SNIPPET_WIDTH.saturating_sub(before).max(1)),
        )
    }
}

fn is_break(c: char) -> bool {
    c == '\n' || c == '\r'
}

fn floor_boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len()))
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0)
}
