//! Query strings from structs. Pure.

use serde::Serialize;
use serde_json::Value;

use super::ClientError;

/// `path` with the fields of `query` as parameters; null fields are left out.
pub(super) fn join(path: &str, query: &impl Serialize) -> Result<String, ClientError> {
    let value =
        serde_json::to_value(query).map_err(|error| ClientError::Request(error.to_string()))?;
    let fields = match value {
        Value::Null => return Ok(path.to_owned()),
        Value::Object(fields) => fields,
        other => {
            return Err(ClientError::Request(format!(
                "query parameters are not a struct but {other}"
            )));
        }
    };
    let mut joined = path.to_owned();
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
        joined.push(if joined.contains('?') { '&' } else { '?' });
        encode(name, &mut joined);
        joined.push('=');
        match value {
            Value::String(text) => encode(text, &mut joined),
            other => encode(&other.to_string(), &mut joined),
        }
    }
    Ok(joined)
}

/// Percent-encodes all but RFC 3986's unreserved characters.
fn encode(text: &str, into: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            into.push(char::from(byte));
        } else {
            into.push_str(&format!("%{byte:02X}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{EventsQuery, LogsQuery};

    #[test]
    fn fields_become_parameters_and_absent_ones_do_not() {
        let query = EventsQuery {
            from: Some(7),
            kind: Some("page.*,a&b".into()),
            ..EventsQuery::default()
        };
        assert_eq!(
            join("/events", &query).unwrap(),
            "/events?from=7&kind=page.%2A%2Ca%26b"
        );
        assert_eq!(join("/v1/fleet", &()).unwrap(), "/v1/fleet");
        assert_eq!(
            join(
                "/v1/logs",
                &LogsQuery {
                    follow: true,
                    ..LogsQuery::default()
                }
            )
            .unwrap(),
            "/v1/logs?follow=true"
        );
        assert!(join("/", &[1]).is_err());
    }
}
