//! Values that must not be shown, and the redactor that finds them wherever they turn up.

use std::{borrow::Cow, fmt, sync::Arc};

use aho_corasick::{AhoCorasick, MatchKind};
use parking_lot::RwLock;
use thiserror::Error;
use zeroize::Zeroizing;

/// What stands in a secret's place.
pub const REDACTED: &str = "[redacted]";

/// Shortest secret that a [`Redactor`] takes, in bytes: shorter values would blot out ordinary text.
pub const MIN_SECRET_LEN: usize = 4;

/// Most secrets that one [`Redactor`] holds; a bound like every other.
pub const MAX_SECRETS: usize = 10_000;

/// A value that must not be shown. Debug prints `[redacted]`; the memory is wiped when the last clone goes.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<Zeroizing<String>>);

impl Secret {
    /// Takes a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(Arc::new(Zeroizing::new(value.into())))
    }

    /// The value itself. Call it only where the value leaves for its destination.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

/// A secret that cannot be watched for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SecretError {
    /// It is too short to be told from ordinary text.
    #[error(
        "secret is {found} bytes long; at least {MIN_SECRET_LEN} are needed to recognise it in text"
    )]
    TooShort {
        /// Its length in bytes.
        found: usize,
    },
    /// The register is full.
    #[error("more than {MAX_SECRETS} secrets")]
    TooMany,
    /// The matcher could not be built.
    #[error("secrets cannot be compiled into a matcher: {0}")]
    Matcher(String),
}

struct Known {
    values: Vec<Secret>,
    matcher: Option<AhoCorasick>,
}

/// Finds declared secrets in text and bytes; clones share the register.
///
/// It knows each value as it is and as JSON would escape it. It cannot know a value that was encoded or split by
/// the one who prints it (base64, one character a line): declared values are caught, not every trace of them.
#[derive(Clone)]
pub struct Redactor(Arc<RwLock<Known>>);

impl Default for Redactor {
    fn default() -> Self {
        Self(Arc::new(RwLock::new(Known {
            values: Vec::new(),
            matcher: None,
        })))
    }
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redactor({} secrets)", self.0.read().values.len())
    }
}

impl Redactor {
    /// Declares a secret. Declaring it twice is harmless.
    ///
    /// # Errors
    /// [`SecretError`] if it is too short or the register is full.
    pub fn add(&self, secret: &Secret) -> Result<(), SecretError> {
        let found = secret.expose().len();
        if found < MIN_SECRET_LEN {
            return Err(SecretError::TooShort { found });
        }
        let mut known = self.0.write();
        if known.values.contains(secret) {
            return Ok(());
        }
        if known.values.len() >= MAX_SECRETS {
            return Err(SecretError::TooMany);
        }
        known.values.push(secret.clone());
        match build(&known.values) {
            Ok(matcher) => known.matcher = Some(matcher),
            Err(error) => {
                known.values.pop();
                return Err(SecretError::Matcher(error.to_string()));
            }
        }
        Ok(())
    }

    /// Whether `bytes` contain a declared secret.
    pub fn contains(&self, bytes: &[u8]) -> bool {
        self.0
            .read()
            .matcher
            .as_ref()
            .is_some_and(|matcher| matcher.is_match(bytes))
    }

    /// `text` with every declared secret replaced by `[redacted]`.
    pub fn redact<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match self.redact_bytes(text.as_bytes()) {
            Cow::Borrowed(_) => Cow::Borrowed(text),
            Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
        }
    }

    /// `bytes` with every declared secret replaced by `[redacted]`.
    pub fn redact_bytes<'a>(&self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let known = self.0.read();
        let Some(matcher) = known
            .matcher
            .as_ref()
            .filter(|matcher| matcher.is_match(bytes))
        else {
            return Cow::Borrowed(bytes);
        };
        let mut clean = Vec::with_capacity(bytes.len());
        let mut end = 0;
        for found in matcher.find_iter(bytes) {
            clean.extend_from_slice(&bytes[end..found.start()]);
            clean.extend_from_slice(REDACTED.as_bytes());
            end = found.end();
        }
        clean.extend_from_slice(&bytes[end..]);
        Cow::Owned(clean)
    }
}

fn build(values: &[Secret]) -> Result<AhoCorasick, aho_corasick::BuildError> {
    let patterns = values.iter().flat_map(|secret| {
        let plain = secret.expose().to_owned();
        let escaped = escape_json(&plain);
        let differs = escaped != plain;
        std::iter::once(plain).chain(differs.then_some(escaped))
    });
    AhoCorasick::builder()
        .match_kind(MatchKind::LeftmostLongest)
        .build(patterns)
}

/// The inside of the JSON string that holds `text`.
fn escape_json(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '"' => escaped.push_str("\\\""),
            '\\' => escaped.push_str("\\\\"),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            '\u{8}' => escaped.push_str("\\b"),
            '\u{c}' => escaped.push_str("\\f"),
            control if u32::from(control) < 0x20 => {
                escaped.push_str(&format!("\\u{:04x}", u32::from(control)))
            }
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_replaced_plain_and_escaped_and_nothing_else_is() {
        let redactor = Redactor::default();
        redactor.add(&Secret::new("pa\"ss\nword")).unwrap();
        redactor.add(&Secret::new("canary-1234")).unwrap();
        assert_eq!(redactor.redact("key=canary-1234;"), "key=[redacted];");
        let json = serde_json::to_string("x pa\"ss\nword y").unwrap();
        assert_eq!(redactor.redact(&json), "\"x [redacted] y\"");
        assert!(matches!(redactor.redact("nothing here"), Cow::Borrowed(_)));
        assert!(redactor.contains(b"\xff canary-1234"));
        assert!(!redactor.contains(b"canary-123"));
    }

    #[test]
    fn the_longer_of_two_nested_secrets_wins() {
        let redactor = Redactor::default();
        redactor.add(&Secret::new("abcd")).unwrap();
        redactor.add(&Secret::new("abcdefgh")).unwrap();
        assert_eq!(redactor.redact("abcdefgh"), REDACTED);
    }

    #[test]
    fn short_secrets_are_refused_and_debug_shows_nothing() {
        let secret = Secret::new("abc");
        assert_eq!(
            Redactor::default().add(&secret),
            Err(SecretError::TooShort { found: 3 })
        );
        assert_eq!(format!("{secret:?}"), REDACTED);
    }
}
