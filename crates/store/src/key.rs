//! Keys of records: short text with a space in front, ordered by bytes.

use std::{fmt, ops::Deref, sync::Arc};

use crate::error::StoreError;

/// Longest key, in bytes. Keys sit in the inner nodes of a B-tree, where long ones cost every lookup.
pub const KEY_MAX: usize = 512;

/// The name of a record: `space/rest`, 1 to [`KEY_MAX`] bytes of UTF-8 without control characters. Cheap to clone.
///
/// Keys sort by their bytes. A key that is written often should have a time-ordered id ([`volary_kernel::id::Uid`])
/// right behind its space (`queue.item/<id>`), so that new records land beside each other.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Arc<str>);

impl Key {
    /// Checks and takes `text`.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] for a key that is empty, too long or holds a control character.
    pub fn new(text: impl AsRef<str>) -> Result<Self, StoreError> {
        let text = text.as_ref();
        if text.is_empty() || text.len() > KEY_MAX {
            return Err(StoreError::invalid(format!(
                "key must have 1 to {KEY_MAX} bytes, found {}",
                text.len()
            )));
        }
        if text.bytes().any(|byte| byte < 0x20 || byte == 0x7f) {
            return Err(StoreError::invalid(format!(
                "key must not hold control characters, found {text:?}"
            )));
        }
        Ok(Self(text.into()))
    }

    /// A key that is known to be good: `space/id` made by this crate.
    pub(crate) fn trusted(text: String) -> Self {
        debug_assert!(
            !text.is_empty() && text.len() <= KEY_MAX,
            "trusted key {text:?} has a bad length"
        );
        Self(text.into())
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Deref for Key {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl std::str::FromStr for Key {
    type Err = StoreError;
    fn from_str(text: &str) -> Result<Self, StoreError> {
        Self::new(text)
    }
}

/// A record as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its name.
    pub key: Key,
    /// The commit that wrote it: grows with every commit of the store, never repeats.
    pub version: u64,
    /// When it disappears, if it has a time to live.
    pub expires: Option<volary_kernel::clock::Timestamp>,
    /// What it holds.
    pub value: bytes::Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_refuse_what_a_btree_or_a_terminal_cannot_take() {
        for good in ["a", "space/é", &"a".repeat(KEY_MAX)] {
            assert!(Key::new(good).is_ok(), "{good}");
        }
        for bad in ["", "a\nb", "\u{1}meta", &"a".repeat(KEY_MAX + 1)] {
            assert!(Key::new(bad).is_err(), "{bad:?}");
        }
    }
}
