//! How durations and waits look when a resolved manifest is printed.

use std::time::Duration;

use serde::{Serializer, ser::SerializeStruct};
use volary_kernel::{retry::Backoff, text::format_duration};

/// `30s`, `1m30s`, `250ms`.
pub(crate) fn duration<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_duration(*value))
}

/// As [`duration`], for an optional value.
pub(crate) fn optional_duration<S: Serializer>(
    value: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => duration(value, serializer),
        None => serializer.serialize_none(),
    }
}

/// Waits with their durations as text.
pub(crate) fn backoff<S: Serializer>(value: &Backoff, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_struct("Backoff", 4)?;
    map.serialize_field("base", &format_duration(value.base))?;
    map.serialize_field("factor", &value.factor)?;
    map.serialize_field("max", &format_duration(value.max))?;
    map.serialize_field("jitter", &value.jitter)?;
    map.end()
}
