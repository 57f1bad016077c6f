//! Times for people. Documents carry the time itself.

use std::time::Duration;

use volary_kernel::Timestamp;

/// `3m ago`, in the largest unit that fits; `-` for none.
pub fn ago(now: Timestamp, then: Option<Timestamp>) -> String {
    match then {
        Some(then) => format!("{} ago", span(now.since(then))),
        None => "-".into(),
    }
}

/// `45s`, `3m`, `2h`, `5d`: whole units, rounded down.
pub fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// The time of day in UTC with milliseconds, `09:26:13.042`, for a feed that is read as it comes.
pub fn of_day(at: Timestamp) -> String {
    at.to_string()
        .get(11..23)
        .map_or_else(|| at.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_the_largest_unit_that_fits() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        for (then, told) in [
            ("2026-11-21T11:59:59.5Z", "0s ago"),
            ("2026-11-21T11:59:01Z", "59s ago"),
            ("2026-11-21T11:57:00Z", "3m ago"),
            ("2026-11-21T01:00:00Z", "11h ago"),
            ("2026-11-01T12:00:00Z", "20d ago"),
            ("2026-11-21T12:00:05Z", "0s ago"),
        ] {
            assert_eq!(ago(now, Some(then.parse().unwrap())), told, "{then}");
        }
        assert_eq!(ago(now, None), "-");
    }

    #[test]
    fn a_feed_shows_the_time_of_day() {
        assert_eq!(
            of_day("2026-11-21T09:26:13.0421Z".parse().unwrap()),
            "09:26:13.042"
        );
    }
}
