//! Writing and reading length-prefixed fields, shared by every format of this crate.
//!
//! Numbers are fixed-width and big-endian, lengths have one width each: a value has exactly one form, so a decoder that
//! reads everything and refuses the rest accepts canonical bytes only.

use std::ops::Range;

use bytes::{Buf, Bytes};

/// Why bytes are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end inside a field.
    #[error("bytes end inside {what}")]
    Truncated {
        /// The field.
        what: &'static str,
    },
    /// Bytes are left after the last field.
    #[error("{extra} bytes too many at the end")]
    Trailing {
        /// How many.
        extra: usize,
    },
    /// A format version this build does not know.
    #[error("{what} has version {found}, this build reads {known}")]
    Version {
        /// What carries the version.
        what: &'static str,
        /// Version found.
        found: u8,
        /// Version known.
        known: u8,
    },
    /// Text that is not UTF-8.
    #[error("{what} is not UTF-8")]
    Utf8 {
        /// The field.
        what: &'static str,
    },
    /// A count or length above its limit.
    #[error("{what} of {found} is more than {limit}")]
    TooMuch {
        /// The field.
        what: &'static str,
        /// Number found.
        found: usize,
        /// Number allowed.
        limit: usize,
    },
    /// A field whose value is not allowed.
    #[error("{what} is not valid: {problem}")]
    Invalid {
        /// The field.
        what: &'static str,
        /// The rule it breaks.
        problem: String,
    },
    /// Right values in a form that the encoder never writes.
    #[error("{what} is not in canonical form")]
    NotCanonical {
        /// The field.
        what: &'static str,
    },
}

pub(crate) fn invalid(what: &'static str, problem: impl ToString) -> DecodeError {
    DecodeError::Invalid {
        what,
        problem: problem.to_string(),
    }
}

/// Appends text with a one-byte length. Callers hold texts whose type bounds them to 255 bytes.
pub(crate) fn put_str8(out: &mut Vec<u8>, text: &str) {
    let length = u8::try_from(text.len())
        .expect("names, header names and content types are at most 255 bytes by type");
    out.push(length);
    out.extend_from_slice(text.as_bytes());
}

/// Appends text with a two-byte length. Callers hold texts whose type bounds them to 64 KiB.
pub(crate) fn put_str16(out: &mut Vec<u8>, text: &str) {
    let length =
        u16::try_from(text.len()).expect("topics and header values are at most 8 KiB by type");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Appends bytes with a four-byte length. Callers hold payloads and messages whose type bounds them to a few MiB.
pub(crate) fn put_bytes32(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len())
        .expect("payloads and encoded messages are at most a few MiB by type");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(bytes);
}

/// Reads fields from the front of shared bytes; byte fields are slices of them, not copies.
pub(crate) struct Reader<'a> {
    source: &'a Bytes,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(source: &'a Bytes) -> Self {
        Self {
            source,
            rest: source,
        }
    }

    /// As [`Reader::new`], but only of that part of `source`, which it must have.
    pub(crate) fn within(source: &'a Bytes, part: Range<usize>) -> Self {
        Self {
            source,
            rest: &source[part],
        }
    }

    /// Bytes not read yet.
    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }

    fn take(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let (front, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or(DecodeError::Truncated { what })?;
        self.rest = rest;
        Ok(front)
    }

    pub(crate) fn array<const N: usize>(
        &mut self,
        what: &'static str,
    ) -> Result<[u8; N], DecodeError> {
        let (front, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(DecodeError::Truncated { what })?;
        self.rest = rest;
        Ok(*front)
    }

    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        self.array::<1>(what).map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self, what: &'static str) -> Result<u16, DecodeError> {
        self.array(what).map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        self.array(what).map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        self.array(what).map(u64::from_be_bytes)
    }

    pub(crate) fn i64(&mut self, what: &'static str) -> Result<i64, DecodeError> {
        self.array(what).map(i64::from_be_bytes)
    }

    pub(crate) fn str8(&mut self, what: &'static str) -> Result<&'a str, DecodeError> {
        let length = usize::from(self.u8(what)?);
        self.text(length, what)
    }

    pub(crate) fn str16(&mut self, what: &'static str) -> Result<&'a str, DecodeError> {
        let length = usize::from(self.u16(what)?);
        self.text(length, what)
    }

    fn text(&mut self, length: usize, what: &'static str) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.take(length, what)?).map_err(|_| DecodeError::Utf8 { what })
    }

    /// Bytes with a four-byte length of at most `limit`, as a slice that shares the source's memory.
    pub(crate) fn bytes32(
        &mut self,
        what: &'static str,
        limit: usize,
    ) -> Result<Bytes, DecodeError> {
        let slice = self.skip32(what, limit)?;
        Ok(self.source.slice_ref(slice))
    }

    /// As [`Reader::bytes32`], without a hold on the source.
    pub(crate) fn skip32(
        &mut self,
        what: &'static str,
        limit: usize,
    ) -> Result<&'a [u8], DecodeError> {
        let found = self.u32(what)? as usize;
        if found > limit {
            return Err(DecodeError::TooMuch { what, found, limit });
        }
        self.take(found, what)
    }

    /// Everything that is left, as a slice that shares the source's memory.
    pub(crate) fn rest(&mut self) -> Bytes {
        let slice = std::mem::take(&mut self.rest);
        self.source.slice_ref(slice)
    }

    /// The version byte, which must be `known`.
    pub(crate) fn version(&mut self, what: &'static str, known: u8) -> Result<(), DecodeError> {
        let found = self.u8(what)?;
        if found == known {
            Ok(())
        } else {
            Err(DecodeError::Version { what, found, known })
        }
    }

    /// Everything was read.
    pub(crate) fn end(self) -> Result<(), DecodeError> {
        if self.rest.has_remaining() {
            Err(DecodeError::Trailing {
                extra: self.rest.len(),
            })
        } else {
            Ok(())
        }
    }
}
