//! Headers of a message: a small, sorted set of names and values, bounded in count and bytes.

use std::fmt;

use super::{BuildError, HEADER_BYTES_MAX, HEADERS_MAX};

/// Longest header name in bytes.
pub const HEADER_NAME_MAX: usize = 64;

/// Headers, sorted by name, each name once.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers {
    entries: Vec<(Box<str>, Box<str>)>,
    bytes: usize,
}

impl Headers {
    /// No headers.
    pub const fn new() -> Self {
        Self {
            entries: Vec::new(),
            bytes: 0,
        }
    }

    /// Number of headers.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of all names and values.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The value of `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        let at = self
            .entries
            .binary_search_by(|(key, _)| (**key).cmp(name))
            .ok()?;
        Some(&self.entries[at].1)
    }

    /// All headers, by name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.entries.iter().map(|(name, value)| (&**name, &**value))
    }

    /// Sets one header, replacing an earlier value of the same name.
    ///
    /// # Errors
    /// [`BuildError::Header`] for a name that is not 1 to [`HEADER_NAME_MAX`] of `a-z 0-9 - _ .` or a value with control
    /// characters, [`BuildError::Headers`] above [`HEADERS_MAX`] or [`HEADER_BYTES_MAX`]. The set is then unchanged.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), BuildError> {
        check(name, value)?;
        let found = self.entries.binary_search_by(|(key, _)| (**key).cmp(name));
        let freed = found.map_or(0, |at| name.len() + self.entries[at].1.len());
        let bytes = self.bytes - freed + name.len() + value.len();
        let count = self.entries.len() + usize::from(found.is_err());
        if count > HEADERS_MAX || bytes > HEADER_BYTES_MAX {
            return Err(BuildError::Headers { count, bytes });
        }
        match found {
            Ok(at) => self.entries[at].1 = value.into(),
            Err(at) => self.entries.insert(at, (name.into(), value.into())),
        }
        self.bytes = bytes;
        Ok(())
    }
}

fn check(name: &str, value: &str) -> Result<(), BuildError> {
    let allowed = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_' | b'.')
    };
    let clipped = || name.chars().take(80).collect();
    if name.is_empty() || name.len() > HEADER_NAME_MAX || !name.bytes().all(allowed) {
        return Err(BuildError::Header {
            name: clipped(),
            problem: "a name is 1 to 64 of a-z 0-9 - _ .",
        });
    }
    if value.chars().any(char::is_control) {
        return Err(BuildError::Header {
            name: clipped(),
            problem: "a value has no control characters",
        });
    }
    Ok(())
}

impl fmt::Debug for Headers {
    /// Shows the names only: a value may be private.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.entries.iter().map(|(name, _)| name))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_sorted_and_a_name_is_there_once() {
        let mut headers = Headers::new();
        headers.set("b", "1").unwrap();
        headers.set("a", "2").unwrap();
        headers.set("b", "33").unwrap();
        assert_eq!(
            headers.iter().collect::<Vec<_>>(),
            [("a", "2"), ("b", "33")]
        );
        assert_eq!(headers.bytes(), 5);
        assert_eq!(headers.get("b"), Some("33"));
    }

    #[test]
    fn count_and_bytes_are_bounded_and_a_refusal_changes_nothing() {
        let mut headers = Headers::new();
        for index in 0..HEADERS_MAX {
            headers.set(&format!("h{index}"), "v").unwrap();
        }
        let before = headers.clone();
        assert!(matches!(
            headers.set("more", "v"),
            Err(BuildError::Headers { count: 33, .. })
        ));
        assert!(matches!(
            headers.set("h0", &"v".repeat(HEADER_BYTES_MAX)),
            Err(BuildError::Headers { .. })
        ));
        assert_eq!(headers, before);
    }

    #[test]
    fn names_and_values_that_could_break_a_line_are_refused() {
        let mut headers = Headers::new();
        for (name, value) in [
            ("", "v"),
            ("A", "v"),
            ("a b", "v"),
            ("a", "x\ny"),
            ("a", "\0"),
        ] {
            assert!(headers.set(name, value).is_err(), "{name:?} {value:?}");
        }
    }
}
