//! JSON given on the command line: itself, a file's, or standard input's.

use std::{
    fs,
    io::{self, Read},
};

use serde_json::value::RawValue;

use crate::{codes, error::CliError};

/// Most bytes read from a file or standard input: far beyond what a node takes as one message.
const LIMIT: u64 = 64 << 20;

/// Reads `JSON`, `@FILE` or `-`; the text stays as it was written.
///
/// # Errors
/// When a file cannot be read, or the text is not one JSON document.
pub fn read(argument: &str) -> Result<Box<RawValue>, CliError> {
    let (text, place) = match argument {
        "-" => (
            text(io::stdin().lock(), "standard input")?,
            "standard input".to_owned(),
        ),
        _ => match argument.strip_prefix('@') {
            Some(path) => {
                let file = fs::File::open(path).map_err(|error| {
                    CliError::new(codes::READ, format!("cannot open {path}")).because(&error)
                })?;
                (text(file, path)?, path.to_owned())
            }
            None => (argument.to_owned(), "the argument".to_owned()),
        },
    };
    json(&text, &place)
}

/// All of standard input, as text.
///
/// # Errors
/// When it cannot be read, is too long, or is not UTF-8.
pub fn stdin() -> Result<String, CliError> {
    text(io::stdin().lock(), "standard input")
}

/// One JSON document.
///
/// # Errors
/// When the text is not one JSON document.
pub fn json(text: &str, place: &str) -> Result<Box<RawValue>, CliError> {
    serde_json::from_str(text.trim()).map_err(|error| {
        CliError::new(codes::DOCUMENT, format!("{place} is not JSON")).because(&error)
    })
}

/// The first line of a file, or of standard input for `-`: a token.
///
/// # Errors
/// When it cannot be read.
pub fn line(path: &str) -> Result<String, CliError> {
    let text = if path == "-" {
        text(io::stdin().lock(), "standard input")?
    } else {
        let file = fs::File::open(path).map_err(|error| {
            CliError::new(codes::READ, format!("cannot open {path}")).because(&error)
        })?;
        text(file, path)?
    };
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

fn text(from: impl Read, place: &str) -> Result<String, CliError> {
    let mut text = String::new();
    from.take(LIMIT + 1)
        .read_to_string(&mut text)
        .map_err(|error| {
            CliError::new(codes::READ, format!("cannot read {place}")).because(&error)
        })?;
    if text.len() as u64 > LIMIT {
        return Err(CliError::new(
            codes::DOCUMENT,
            format!("{place} has more than {LIMIT} bytes"),
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    #[test]
    fn the_text_stays_as_it_was_written() {
        assert_eq!(read("{\"a\": 1.10}").unwrap().get(), "{\"a\": 1.10}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("payload.json");
        std::fs::write(&path, "[1,  2]\n").unwrap();
        assert_eq!(
            read(&format!("@{}", path.display())).unwrap().get(),
            "[1,  2]"
        );
    }

    #[test]
    fn what_is_not_json_or_not_there_is_told_apart() {
        assert_eq!(read("hello").unwrap_err().exit(), Exit::BadData);
        assert_eq!(read("{} {}").unwrap_err().exit(), Exit::BadData);
        assert_eq!(
            read("@/nowhere/payload.json").unwrap_err().exit(),
            Exit::Failure
        );
    }
}
