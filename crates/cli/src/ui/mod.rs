//! Where words go: standard output is data, standard error is talk. The one place that prints.

pub mod table;
pub mod time;

use std::{
    fmt::Display,
    io::{self, BufWriter, IsTerminal, Write},
};

use anstream::AutoStream;
use anstyle::{AnsiColor, Style};
use clap::ColorChoice;
use serde::Serialize;

use crate::error::{CliError, Told};

/// For what is well.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// For what is on its way or needs a look.
pub const WARN: Style = AnsiColor::Yellow.on_default();
/// For what is broken.
pub const BAD: Style = AnsiColor::Red.on_default();
/// For what matters less.
pub const DIM: Style = Style::new().dimmed();
/// For headings.
pub const BOLD: Style = Style::new().bold();

/// How and where to print.
#[derive(Debug, Clone, Copy)]
pub struct Ui {
    /// Whether data is printed as JSON.
    pub json: bool,
    color_out: bool,
    color_err: bool,
    /// Whether standard error is a terminal: only then are lines drawn over.
    pub live: bool,
}

impl Ui {
    /// Settles colour: the flag, else `NO_COLOR`, `CLICOLOR_FORCE` and whether it is a terminal.
    pub fn new(json: bool, choice: ColorChoice) -> Self {
        let wanted = |automatic: anstream::ColorChoice| match choice {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => automatic != anstream::ColorChoice::Never,
        };
        Self {
            json,
            color_out: wanted(AutoStream::choice(&io::stdout())),
            color_err: wanted(AutoStream::choice(&io::stderr())),
            live: io::stderr().is_terminal(),
        }
    }

    /// Text for standard output in a style, if colours are on.
    pub fn paint(&self, style: Style, text: impl Display) -> String {
        paint(self.color_out, style, text)
    }

    /// Text for standard error in a style, if colours are on.
    pub fn paint_talk(&self, style: Style, text: impl Display) -> String {
        paint(self.color_err, style, text)
    }

    /// Whether talk is coloured.
    pub const fn colored_talk(&self) -> bool {
        self.color_err
    }

    /// A buffered standard output for much data; the caller flushes it.
    pub fn bulk(&self) -> BufWriter<io::StdoutLock<'static>> {
        BufWriter::new(io::stdout().lock())
    }

    /// One line of data, at once.
    ///
    /// # Errors
    /// When standard output takes no more.
    pub fn line(&self, line: impl Display) -> Result<(), CliError> {
        let mut out = io::stdout().lock();
        writeln!(out, "{line}")
            .and_then(|()| out.flush())
            .map_err(|error| CliError::output(&error))
    }

    /// Text as it is, at once.
    ///
    /// # Errors
    /// When standard output takes no more.
    pub fn raw(&self, bytes: &[u8]) -> Result<(), CliError> {
        let mut out = io::stdout().lock();
        out.write_all(bytes)
            .and_then(|()| out.flush())
            .map_err(|error| CliError::output(&error))
    }

    /// One JSON document on one line.
    ///
    /// # Errors
    /// When standard output takes no more.
    pub fn document(&self, value: &impl Serialize) -> Result<(), CliError> {
        let json = serde_json::to_string(value)
            .expect("what commands print has text keys and finite numbers");
        self.line(json)
    }

    /// One line of talk. Nothing can be done when standard error is gone.
    pub fn say(&self, line: impl Display) {
        let _gone = writeln!(io::stderr().lock(), "{line}");
    }

    /// Talk without an end of line, for what is drawn over.
    pub fn draw(&self, text: &str) {
        let mut err = io::stderr().lock();
        let _gone = err.write_all(text.as_bytes()).and_then(|()| err.flush());
    }

    /// How far long work is: one line that the next one is written over. Only on a terminal.
    pub fn progress(&self, line: impl Display) {
        if io::stderr().is_terminal() && !self.json {
            self.draw(&format!("\r{line}\x1b[K\r"));
        }
    }

    /// Tells of an error: as text, or with `--json` as one document `{"error": {…}}` on standard error.
    pub fn tell(&self, error: &CliError) {
        let CliError::Told(told) = error else { return };
        if self.json {
            let document = serde_json::json!({ "error": &**told });
            self.say(document);
        } else {
            self.say(self.words(told));
        }
    }

    fn words(&self, told: &Told) -> String {
        let plain = told.to_string();
        let head = format!("error[{}]", told.code);
        match plain.strip_prefix(&head) {
            Some(rest) => format!("{}{rest}", self.paint_talk(BAD.bold(), head)),
            None => plain,
        }
    }
}

fn paint(color: bool, style: Style, text: impl Display) -> String {
    if color {
        format!("{style}{text}{style:#}")
    } else {
        text.to_string()
    }
}

/// `1 agent`, `2 agents`.
pub fn count(number: usize, word: &str) -> String {
    format!("{number} {word}{}", if number == 1 { "" } else { "s" })
}

/// A text of an agent or a file, safe for a terminal: control characters become visible.
pub fn tame(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() && c != '\t' {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}
