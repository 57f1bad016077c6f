//! Identifiers: W3C trace and span ids, time-ordered unique ids, and validated names.
//!
//! Every id is a newtype with one text form, used in logs, JSON and URLs alike.

use std::{
    fmt,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

use crate::{
    clock::{Clock as _, SystemClock, Timestamp},
    random::random_bytes,
};

/// Longest [`Name`], in bytes. 63 is the limit of a DNS label (RFC 1123), which Docker and Kubernetes share.
pub const NAME_MAX: usize = 63;

/// Why a text is not the id it was taken for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IdError {
    /// A trace id is not 32 lowercase hex digits, or is all zero.
    #[error("trace id must be 32 lowercase hex digits and not all zero, found `{0}`")]
    Trace(String),
    /// A span id is not 16 lowercase hex digits, or is all zero.
    #[error("span id must be 16 lowercase hex digits and not all zero, found `{0}`")]
    Span(String),
    /// A unique id is not a UUID.
    #[error("id must be a UUID, found `{0}`")]
    Uid(String),
    /// A name breaks the rules of [`Name`].
    #[error(
        "name must be 1 to {NAME_MAX} of a-z, 0-9, '-', '_' and '.', beginning and ending with a letter or digit, found `{0}`"
    )]
    Name(String),
}

fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

fn random<const N: usize>() -> [u8; N] {
    loop {
        let bytes = random_bytes();
        if bytes.iter().any(|byte| *byte != 0) {
            return bytes;
        }
    }
}

fn parse_hex(text: &str, digits: usize) -> Option<u128> {
    let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() != digits || !text.bytes().all(lower_hex) {
        return None;
    }
    u128::from_str_radix(text, 16)
        .ok()
        .filter(|value| *value != 0)
}

macro_rules! text_serde {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }
    };
}

// --- TraceId ---------------------------------------------------------------------------------

/// One request through the whole system: a W3C trace id (Trace Context, §3.2.2.3), never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TraceId(u128);

impl TraceId {
    /// A new random trace id.
    pub fn generate() -> Self {
        Self(u128::from_be_bytes(random()))
    }

    /// The id as big-endian bytes.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// The id from big-endian bytes; `None` for all zero.
    pub const fn from_bytes(bytes: [u8; 16]) -> Option<Self> {
        match u128::from_be_bytes(bytes) {
            0 => None,
            value => Some(Self(value)),
        }
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for TraceId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        parse_hex(text, 32)
            .map(Self)
            .ok_or_else(|| IdError::Trace(clip(text)))
    }
}

text_serde!(TraceId);

// --- SpanId ----------------------------------------------------------------------------------

/// One step of a trace: a W3C parent id, never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpanId(u64);

impl SpanId {
    /// A new random span id.
    pub fn generate() -> Self {
        Self(u64::from_be_bytes(random()))
    }

    /// The id as big-endian bytes.
    pub const fn to_bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }

    /// The id from big-endian bytes; `None` for all zero.
    pub const fn from_bytes(bytes: [u8; 8]) -> Option<Self> {
        match u64::from_be_bytes(bytes) {
            0 => None,
            value => Some(Self(value)),
        }
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for SpanId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        parse_hex(text, 16)
            .and_then(|value| u64::try_from(value).ok())
            .map(Self)
            .ok_or_else(|| IdError::Span(clip(text)))
    }
}

text_serde!(SpanId);

// --- Uid -------------------------------------------------------------------------------------

/// A unique id that sorts by the time it was made (UUIDv7, RFC 9562): good as a storage key.
///
/// Ids made by one process are strictly increasing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uid(uuid::Uuid);

impl Uid {
    /// A new id, greater than every earlier one of this process.
    ///
    /// Its first 60 bits are the time in steps of a quarter of a microsecond (RFC 9562, method 3), or one step more than
    /// those of the last id where the clock stood still or went back; the rest is random.
    pub fn generate() -> Self {
        Self::after_last(uid_steps(SystemClock.wall()))
    }

    /// As [`Uid::generate`], for a caller that has just read the clock: `now` is used if it is near the last id's time,
    /// so that a wrong `now` can not lead later ids astray.
    pub fn generate_near(now: Timestamp) -> Self {
        let steps = uid_steps(now);
        let near = LAST.load(Ordering::Relaxed).abs_diff(steps) < NEAR_STEPS;
        if near {
            Self::after_last(steps)
        } else {
            Self::generate()
        }
    }

    fn after_last(now: u64) -> Self {
        let after = |last: u64| now.max(last + 1);
        let last = LAST
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
                Some(after(last))
            })
            .unwrap_or_else(|last| last);
        let steps = after(last);
        let random = u64::from_be_bytes(random_bytes());
        let high = ((steps >> 12) << 16) | 0x7000 | (steps & 0xfff);
        let low = (0b10 << 62) | (random >> 2);
        Self(uuid::Uuid::from_u64_pair(high, low))
    }

    /// The id as bytes, in sort order.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The id from its bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(uuid::Uuid::from_bytes(bytes))
    }
}

/// The time steps of the last id of this process.
static LAST: AtomicU64 = AtomicU64::new(0);
/// One second in time steps of an id.
const NEAR_STEPS: u64 = 1000 << 12;

/// Milliseconds since the epoch in 48 bits, then 12 bits of the part below.
fn uid_steps(now: Timestamp) -> u64 {
    let micros = u64::try_from(now.as_micros()).unwrap_or_default();
    let (millis, below) = (micros / 1000, micros % 1000);
    ((millis & 0xffff_ffff_ffff) << 12) | (below * 4096 / 1000)
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl FromStr for Uid {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        uuid::Uuid::try_parse(text)
            .map(Self)
            .map_err(|_| IdError::Uid(clip(text)))
    }
}

text_serde!(Uid);

// --- Name ------------------------------------------------------------------------------------

/// A name that a person gave: an agent, a source, a fleet. Cheap to clone.
///
/// 1 to [`NAME_MAX`] of `a-z`, `0-9`, `-`, `_`, `.`, beginning and ending with a letter or digit, so that it can be a
/// host name, a file name and a label value without quoting.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<str>);

impl Name {
    /// Checks and takes `text`.
    ///
    /// # Errors
    /// [`IdError::Name`] with the text that was found.
    pub fn new(text: impl AsRef<str>) -> Result<Self, IdError> {
        let text = text.as_ref();
        let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let inner = |byte: u8| alphanumeric(byte) || matches!(byte, b'-' | b'_' | b'.');
        let bytes = text.as_bytes();
        let edges = bytes.first().copied().is_some_and(alphanumeric)
            && bytes.last().copied().is_some_and(alphanumeric);
        if !edges || bytes.len() > NAME_MAX || !bytes.iter().copied().all(inner) {
            return Err(IdError::Name(clip(text)));
        }
        Ok(Self(text.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Name {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::new(text)
    }
}

text_serde!(Name);

// --- Tenant ----------------------------------------------------------------------------------

/// Whose work this is. Every record, message and metric that can differ by customer carries one.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tenant(Name);

impl Tenant {
    /// A tenant of this name.
    pub const fn new(name: Name) -> Self {
        Self(name)
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

/// The tenant `default`, for fleets that name none.
impl Default for Tenant {
    fn default() -> Self {
        Self(Name("default".into()))
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Tenant {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        Name::new(text).map(Self)
    }
}

text_serde!(Tenant);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trace_and_span_ids_keep_their_text_and_refuse_zero_and_upper_case() {
        let trace = TraceId::generate();
        assert_eq!(trace.to_string().parse(), Ok(trace));
        assert!("0".repeat(32).parse::<TraceId>().is_err());
        assert!("A".repeat(32).parse::<TraceId>().is_err());
        let span = SpanId::generate();
        assert_eq!(span.to_string().parse(), Ok(span));
        assert!("0".repeat(16).parse::<SpanId>().is_err());
    }

    #[test]
    fn a_uid_is_a_version_7_uuid_of_the_current_millisecond() {
        let before = SystemClock.wall().as_micros() / 1000;
        let uid = Uid::generate();
        let after = SystemClock.wall().as_micros() / 1000;
        assert_eq!(uid.0.get_version_num(), 7);
        assert_eq!(uid.0.get_variant(), uuid::Variant::RFC4122);
        let (high, _) = uid.0.as_u64_pair();
        let made = i64::try_from(high >> 16).expect("48 bits fit");
        // Other tests draw ids too, and each is at least one step later than the last.
        assert!(
            (before..=after + 10).contains(&made),
            "{before} {made} {after}"
        );
    }

    #[test]
    fn an_id_near_a_reading_keeps_the_order_whatever_the_reading_says() {
        let mut last = Uid::generate();
        let now = SystemClock.wall();
        let wrong = [0, i64::MIN, i64::MAX].map(Timestamp::from_micros);
        for reading in wrong.into_iter().chain([now, now, now]) {
            let next = Uid::generate_near(reading);
            assert!(next > last);
            last = next;
        }
        let far = Timestamp::from_micros(now.as_micros() + 60_000_000);
        assert!(
            last < Uid::after_last(uid_steps(far)),
            "it did not run ahead"
        );
    }

    #[test]
    fn unique_ids_increase_within_one_process() {
        let ids: Vec<_> = (0..10_000).map(|_| Uid::generate()).collect();
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn names_refuse_what_a_host_name_or_file_name_cannot_hold() {
        for good in ["a", "first-fleet", "v1.2_x", &"a".repeat(63)] {
            assert!(Name::new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "a b",
            "a/b",
            "..",
            "é",
            &"a".repeat(64),
        ] {
            assert!(Name::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_travel_through_json_as_text() {
        let name = Name::new("indexer").unwrap();
        let json = serde_json::to_string(&name).unwrap();
        assert_eq!(json, "\"indexer\"");
        assert_eq!(serde_json::from_str::<Name>(&json).unwrap(), name);
        assert!(serde_json::from_str::<Tenant>("\"No\"").is_err());
    }
}
