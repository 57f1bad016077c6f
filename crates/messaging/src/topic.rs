//! Topics: where a message goes when it is not for one named agent.
//!
//! A topic is a structured text, matched exactly; it never carries attributes or routing data of a transport, so two
//! different topics can not look alike (compare a rendered map of attributes).

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Longest topic in bytes: a few path segments, and small enough to be an index key and a metric-free log field.
pub const TOPIC_MAX: usize = 256;

/// A validated topic such as `work` or `notes/indexed`. Cheap to clone.
///
/// One or more segments of `A-Z a-z 0-9 _ . -`, separated by `/`; no empty segment, none of only dots;
/// at most [`TOPIC_MAX`] bytes.
///
/// ```
/// use volary_messaging::Topic;
/// let topic: Topic = "notes/indexed".parse()?;
/// assert_eq!(topic.as_str(), "notes/indexed");
/// assert!("notes//indexed".parse::<Topic>().is_err());
/// # Ok::<(), volary_messaging::TopicError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic(Arc<str>);

/// Why a text is no topic.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// Longer than [`TOPIC_MAX`].
    #[error("topic of {found} bytes is longer than {TOPIC_MAX}")]
    TooLong {
        /// Bytes found.
        found: usize,
    },
    /// Empty, or a segment is empty or made of dots only.
    #[error("topic must be segments of A-Z a-z 0-9 _ . - separated by '/', found `{found}`")]
    Malformed {
        /// What was found, at most 80 characters.
        found: String,
    },
}

impl Topic {
    /// Checks and takes `text`.
    ///
    /// # Errors
    /// [`TopicError`] when the text breaks the rules above.
    pub fn new(text: &str) -> Result<Self, TopicError> {
        if text.len() > TOPIC_MAX {
            return Err(TopicError::TooLong { found: text.len() });
        }
        if !text.split('/').all(is_segment) {
            return Err(TopicError::Malformed {
                found: text.chars().take(80).collect(),
            });
        }
        Ok(Self(text.into()))
    }

    /// The topic as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

pub(crate) fn is_segment(segment: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    segment.bytes().all(allowed) && segment.bytes().any(|byte| byte != b'.')
}

impl Borrow<str> for Topic {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Topic {
    type Err = TopicError;
    fn from_str(text: &str) -> Result<Self, TopicError> {
        Self::new(text)
    }
}

impl Serialize for Topic {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Topic {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::new(&text).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_segments_of_plain_characters() {
        for good in ["work", "notes/indexed", "a.b-c_D/9", &"a".repeat(TOPIC_MAX)] {
            assert!(Topic::new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "a b",
            "é",
            ".",
            "a/..",
            "a*",
            &"a".repeat(TOPIC_MAX + 1),
        ] {
            assert!(Topic::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_topic_is_text_in_json_and_checked_on_the_way_in() {
        let topic: Topic = serde_json::from_str("\"notes/a\"").unwrap();
        assert_eq!(serde_json::to_string(&topic).unwrap(), "\"notes/a\"");
        assert!(serde_json::from_str::<Topic>("\"a b\"").is_err());
    }
}
