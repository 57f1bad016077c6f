//! From query parameters to the journal's own filter. Pure.

use volary_store::Filter;

use crate::{ApiError, api::EventsQuery};

/// Most kinds of one query.
const KINDS_MAX: usize = 64;

/// The filter that a query asks for.
///
/// # Errors
/// 400 for a kind pattern with a star elsewhere than at the end of a word, and for too many kinds.
pub(super) fn of(query: &EventsQuery) -> Result<Filter, ApiError> {
    Ok(Filter {
        kinds: kinds(query.kind.as_deref())?,
        agent: query.agent.clone(),
        trace: query.trace,
        tenant: query.tenant.clone(),
        ..Filter::default()
    })
}

fn kinds(pattern: Option<&str>) -> Result<Vec<String>, ApiError> {
    let Some(pattern) = pattern else {
        return Ok(Vec::new());
    };
    let kinds: Vec<&str> = pattern.split(',').map(str::trim).collect();
    if kinds.contains(&"*") {
        return Ok(Vec::new());
    }
    if kinds.len() > KINDS_MAX {
        return Err(ApiError::bad_request(format!(
            "{} kinds are given, the limit is {KINDS_MAX}",
            kinds.len()
        )));
    }
    kinds.into_iter().map(kind).collect()
}

fn kind(text: &str) -> Result<String, ApiError> {
    // The journal writes "everything that begins so" with a final dot.
    let plain = text.strip_suffix('*').unwrap_or(text);
    let prefix = plain.len() < text.len();
    let legal = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-')
    };
    if plain.is_empty() || !plain.bytes().all(legal) || (prefix && !plain.ends_with('.')) {
        return Err(ApiError::bad_request(format!(
            "`{}` is not a kind of event",
            text.escape_debug()
        ))
        .hint(
            "give kinds like `page.changed`, beginnings like `page.*`, several with commas between",
        ));
    }
    Ok(plain.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str, expected: &[&str]) {
        assert_eq!(kinds(Some(pattern)).unwrap(), expected, "{pattern}");
    }

    #[test]
    fn kinds_and_beginnings_are_understood() {
        check("page.changed", &["page.changed"]);
        check("page.*, delivery.acked", &["page.", "delivery.acked"]);
        check("page.", &["page."]);
        check("*", &[]);
        assert_eq!(kinds(None).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn other_patterns_are_refused_with_a_hint() {
        for pattern in ["", "pa*", "*.changed", "page.*.x", "Page", "a,,b", "p*ge.x"] {
            let error = kinds(Some(pattern)).unwrap_err();
            assert!(
                error.hint.is_some_and(|hint| hint.contains("page.*")),
                "{pattern}"
            );
        }
        assert!(kinds(Some(&"a,".repeat(65))).is_err());
    }
}
