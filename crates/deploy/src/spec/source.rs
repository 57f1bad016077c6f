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

/// Most of a line that is shown before a place, and from it on, in characters: together a wide terminal.
const SHOWN_BEFORE: usize = 60;
const SHOWN_AFTER: usize = 60;

impl SourceFile {
    /// The folder that relative paths of this manifest start at.
    pub fn dir(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    /// The line of `span`, cut to a width, and where the mark goes: `(text, characters before it, its width)`.
    ///
    /// It looks at no more of the text than it shows: a line may be as long as the file.
    pub fn excerpt(&self, span: Span) -> (String, usize, usize) {
        let start = floor_boundary(&self.text, span.start);
        let end = floor_boundary(&self.text, span.end).max(start);
        let back = self.text[..start]
            .chars()
            .rev()
            .take(SHOWN_BEFORE)
            .take_while(|c| !is_break(*c));
        let mut shown: Vec<char> = back.collect();
        shown.reverse();
        let before = shown.len();
        let ahead = self.text[start..].char_indices().take(SHOWN_AFTER);
        let ahead: Vec<_> = ahead.take_while(|(_, c)| !is_break(*c)).collect();
        let marked = ahead.iter().take_while(|(at, _)| start + at < end);
        let marked: String = marked.map(|(_, c)| *c).collect();
        shown.extend(ahead.iter().map(|(_, c)| *c));
        let text = shown
            .into_iter()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        (text, before, marked.trim_end().chars().count().max(1))
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
