//! Durations and byte counts as people write them.

use std::time::Duration;

use thiserror::Error;

/// A text that is not the quantity it was taken for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TextError {
    /// Not a duration.
    #[error("duration must be a number with a unit, like 500ms, 30s, 5m or 1h30m, found `{0}`")]
    Duration(String),
    /// Not a byte count.
    #[error(
        "size must be a whole number of bytes, or a number with a unit, like 512Ki, 10MB or 1GiB, found `{0}`"
    )]
    Bytes(String),
}

fn clip(text: &str) -> String {
    text.chars().take(40).collect()
}

/// Reads `500ms`, `30s`, `5m`, `1h30m`, `7d`; a bare number is refused, except `0`.
///
/// # Errors
/// [`TextError::Duration`] with the text that was found.
pub fn parse_duration(text: &str) -> Result<Duration, TextError> {
    let text = text.trim();
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    if !text.starts_with(|first: char| first.is_ascii_digit()) {
        return Err(TextError::Duration(clip(text)));
    }
    humantime::parse_duration(text).map_err(|_| TextError::Duration(clip(text)))
}

/// Writes a duration so that [`parse_duration`] reads it back.
pub fn format_duration(duration: Duration) -> String {
    humantime::format_duration(duration)
        .to_string()
        .replace(' ', "")
}

/// Writes a duration for people: rounded to three digits below a minute (`9.73s`, `726ms`), to two units above (`2m30s`).
/// [`parse_duration`] need not read it back.
pub fn brief_duration(duration: Duration) -> String {
    /// Nanoseconds of a unit, its name, and how many of it are the next one.
    const SMALL: [(u128, &str, u128); 4] = [
        (1, "ns", 1_000),
        (1_000, "us", 1_000),
        (1_000_000, "ms", 1_000),
        (1_000_000_000, "s", 60),
    ];
    const LARGE: [(u64, &str, u64, &str); 3] = [
        (60, "m", 1, "s"),
        (3_600, "h", 60, "m"),
        (86_400, "day", 3_600, "h"),
    ];
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    for (unit, name, next) in SMALL {
        // In hundredths, tenths or whole units: three digits.
        for (part, digits) in [(100, 2), (10, 1), (1, 0)] {
            let parts = (nanos * part + unit / 2) / unit;
            if parts < 1_000 && parts < next * part {
                let (whole, rest) = (parts / part, parts % part);
                let text = match digits {
                    0 => format!("{whole}"),
                    _ => format!("{whole}.{rest:0digits$}"),
                };
                let text = match digits {
                    0 => text.as_str(),
                    _ => text.trim_end_matches('0').trim_end_matches('.'),
                };
                return format!("{text}{name}");
            }
        }
    }
    let seconds = u64::try_from((nanos + 500_000_000) / 1_000_000_000).unwrap_or(u64::MAX);
    let of = |seconds: u64| LARGE.iter().rev().find(|(unit, ..)| seconds >= *unit);
    let (_, _, step, _) = of(seconds).unwrap_or(&LARGE[0]);
    let seconds = seconds.saturating_add(step / 2) / step * step;
    let (unit, name, part, small) = of(seconds).unwrap_or(&LARGE[0]);
    let (whole, rest) = (seconds / unit, seconds % unit / part);
    let plural = if *name == "day" && whole > 1 { "s" } else { "" };
    match rest {
        0 => format!("{whole}{name}{plural}"),
        _ => format!("{whole}{name}{plural}{rest}{small}"),
    }
}

const UNITS: [(&str, u64); 17] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("kB", 1000),
    ("KB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("k", 1000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("B", 1),
];

/// Reads `1048576`, `512Ki`, `1GiB` (powers of 1024) and `10MB`, `1G` (powers of 1000), with decimals (`1.5Gi`).
///
/// # Errors
/// [`TextError::Bytes`] with the text that was found.
pub fn parse_bytes(text: &str) -> Result<u64, TextError> {
    let bad = || TextError::Bytes(clip(text));
    let trimmed = text.trim();
    let (number, unit) = UNITS
        .iter()
        .find_map(|(suffix, unit)| {
            trimmed
                .strip_suffix(suffix)
                .map(|number| (number.trim_end(), *unit))
        })
        .unwrap_or((trimmed, 1));
    let plain = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty()
        || !plain(whole)
        || !plain(fraction)
        || fraction.len() > 9
        || number.ends_with('.')
    {
        return Err(bad());
    }
    let whole: u64 = whole.parse().map_err(|_| bad())?;
    let scale = 10u64.pow(u32::try_from(fraction.len()).map_err(|_| bad())?);
    let fraction: u64 = if fraction.is_empty() {
        0
    } else {
        fraction.parse().map_err(|_| bad())?
    };
    let part = u128::from(fraction) * u128::from(unit);
    if !part.is_multiple_of(u128::from(scale)) {
        return Err(bad());
    }
    let part = u64::try_from(part / u128::from(scale)).map_err(|_| bad())?;
    whole
        .checked_mul(unit)
        .and_then(|bytes| bytes.checked_add(part))
        .ok_or_else(bad)
}

/// Writes a byte count with the largest binary unit that keeps one decimal or less.
pub fn format_bytes(bytes: u64) -> String {
    let units = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) if bytes.is_multiple_of(*unit) => format!("{}{name}", bytes / unit),
        Some((name, unit)) => format!("{}.{}{name}", bytes / unit, bytes % unit * 10 / unit),
        None => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        for bad in [
            "30",
            "",
            "-1s",
            "1 fortnight",
            "s",
            "999999999999999999999s",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_know_both_families_of_units() {
        for (text, bytes) in [
            ("0", 0),
            ("512Ki", 524_288),
            ("10MB", 10_000_000),
            ("1.5Gi", 1_610_612_736),
            ("64k", 64_000),
            ("7B", 7),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for bad in ["", "Gi", "-1", "1.", "1.3B", "0x10", "1 2", "99999999999Ti"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
        assert_eq!(format_bytes(1 << 30), "1GiB");
        assert_eq!(format_bytes(1_610_612_736), "1.5GiB");
    }

    proptest! {
        #[test]
        fn a_written_duration_reads_back(millis in 0u64..10_000_000_000) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
            let brief = brief_duration(duration);
            prop_assert!(brief.len() <= 14, "{}", brief);
            let read = parse_duration(&brief).unwrap();
            let off = read.abs_diff(duration);
            prop_assert!(off <= duration / 20, "{} for {:?}", brief, duration);
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text in ".{0,30}") {
            let _either = (parse_duration(&text), parse_bytes(&text));
        }
    }

    #[test]
    fn a_wait_is_shown_short() {
        for (nanos, text) in [
            (0, "0s"),
            (7, "7ns"),
            (1_500, "1.5us"),
            (999_950, "1ms"),
            (726_338_706, "726ms"),
            (9_726_338_706, "9.73s"),
            (10_000_000_000, "10s"),
            (12_345_000_000, "12.3s"),
            (59_960_000_000, "1m"),
            (150_400_000_000, "2m30s"),
            (3_599_700_000_000, "1h"),
            (3_661_000_000_000, "1h1m"),
            (86_390_000_000_000, "1day"),
            (176_400_000_000_000, "2days1h"),
        ] {
            assert_eq!(brief_duration(Duration::from_nanos(nanos)), text);
        }
    }
}
