//! How durations and millicores look when a resolved manifest is printed.

use std::time::Duration;

use serde::Serializer;
use volary_kernel::text::format_duration;

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
