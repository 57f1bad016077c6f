//! What a message carries: bytes and what they are.

use std::{borrow::Cow, fmt};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use super::{BuildError, PAYLOAD_MAX};

/// Longest content type in bytes: what RFC 6838 allows for a type and a subtype, plus the slash and a parameter.
pub const CONTENT_TYPE_MAX: usize = 255;

/// A media type such as `application/json`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ContentType(Cow<'static, str>);

impl ContentType {
    /// `application/json`.
    pub const JSON: Self = Self(Cow::Borrowed("application/json"));
    /// `application/octet-stream`: bytes about which nothing is known.
    pub const BYTES: Self = Self(Cow::Borrowed("application/octet-stream"));
    /// `text/plain; charset=utf-8`.
    pub const TEXT: Self = Self(Cow::Borrowed("text/plain; charset=utf-8"));

    /// Checks and takes `text`: printable ASCII with one `/`, at most [`CONTENT_TYPE_MAX`] bytes.
    ///
    /// # Errors
    /// [`BuildError::ContentType`] with the text that was found.
    pub fn new(text: &str) -> Result<Self, BuildError> {
        for known in [Self::JSON, Self::BYTES, Self::TEXT] {
            if known.0 == text {
                return Ok(known);
            }
        }
        let printable = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        let (kind, rest) = text.split_once('/').unwrap_or_default();
        if kind.is_empty() || rest.is_empty() || !printable || text.len() > CONTENT_TYPE_MAX {
            return Err(BuildError::ContentType {
                found: text.chars().take(80).collect(),
            });
        }
        Ok(Self(Cow::Owned(text.to_owned())))
    }

    /// The type as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the bytes are one JSON document (`application/json` or `…+json`, parameters ignored).
    pub fn is_json(&self) -> bool {
        let text = self.0.as_bytes();
        let end = text.iter().position(|byte| *byte == b';');
        let essence = text[..end.unwrap_or(text.len())].trim_ascii_end();
        let suffix = essence.last_chunk::<5>();
        essence.eq_ignore_ascii_case(b"application/json")
            || suffix.is_some_and(|suffix| suffix.eq_ignore_ascii_case(b"+json"))
    }
}

impl fmt::Display for ContentType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ContentType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Bytes with their content type. Cloning shares the bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Payload {
    content_type: ContentType,
    bytes: Bytes,
}

impl Payload {
    /// Takes `bytes`.
    ///
    /// # Errors
    /// [`BuildError::PayloadTooLarge`] above [`PAYLOAD_MAX`].
    pub fn new(content_type: ContentType, bytes: impl Into<Bytes>) -> Result<Self, BuildError> {
        let bytes = bytes.into();
        if bytes.len() > PAYLOAD_MAX {
            return Err(BuildError::PayloadTooLarge {
                found: bytes.len(),
                limit: PAYLOAD_MAX,
            });
        }
        Ok(Self {
            content_type,
            bytes,
        })
    }

    /// `value` as compact JSON.
    ///
    /// # Errors
    /// [`BuildError::Json`] if the value has no JSON form, [`BuildError::PayloadTooLarge`] above [`PAYLOAD_MAX`].
    pub fn json(value: &(impl Serialize + ?Sized)) -> Result<Self, BuildError> {
        let bytes = serde_json::to_vec(value).map_err(|error| BuildError::Json {
            problem: error.to_string(),
        })?;
        Self::new(ContentType::JSON, bytes)
    }

    /// Reads the bytes as JSON into `T`, whatever the content type says.
    ///
    /// # Errors
    /// The parser's error, with line and column.
    pub fn parse_json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.bytes)
    }

    /// What the bytes are.
    pub fn content_type(&self) -> &ContentType {
        &self.content_type
    }

    /// The bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

impl Default for Payload {
    /// No bytes of no known type.
    fn default() -> Self {
        Self {
            content_type: ContentType::BYTES,
            bytes: Bytes::new(),
        }
    }
}

impl fmt::Debug for Payload {
    /// Shows type and length, never the bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.content_type, self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_types_are_printable_and_have_both_halves() {
        for good in [
            "application/json",
            "text/plain",
            "application/vnd.volary.v1+json; x=1",
        ] {
            assert!(ContentType::new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "json",
            "/json",
            "text/",
            "text/pl\nain",
            &format!("a/{}", "b".repeat(CONTENT_TYPE_MAX)),
        ] {
            assert!(ContentType::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn json_is_told_by_type_or_suffix() {
        let json = |text| ContentType::new(text).unwrap().is_json();
        assert!(json("application/json"));
        assert!(json("application/json; charset=utf-8"));
        assert!(json("application/cloudevents+JSON"));
        assert!(!json("text/plain"));
    }

    #[test]
    fn a_payload_over_the_limit_is_refused_with_both_numbers() {
        let refused = Payload::new(ContentType::BYTES, vec![0; PAYLOAD_MAX + 1]);
        assert_eq!(
            refused,
            Err(BuildError::PayloadTooLarge {
                found: PAYLOAD_MAX + 1,
                limit: PAYLOAD_MAX
            })
        );
    }
}
