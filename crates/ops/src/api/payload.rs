//! Payloads in JSON documents: a JSON payload is embedded as it is, everything else travels as base64.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::ApiError;

/// The content type of a payload given as `payload`.
pub const JSON: &str = "application/json";
/// The content type of a payload given as `payload_base64` when nothing else is said.
pub const OCTETS: &str = "application/octet-stream";

/// Tells a missing `payload` from `"payload": null`, which is a JSON payload like any other.
pub(super) fn present<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Box<RawValue>>, D::Error> {
    <Box<RawValue>>::deserialize(deserializer).map(Some)
}

fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case(JSON) || essence.to_ascii_lowercase().ends_with("+json")
}

/// `(payload, payload_base64)` for bytes of a content type: JSON is embedded if it really is JSON.
pub fn encode_payload(content_type: &str, bytes: &[u8]) -> (Option<Box<RawValue>>, Option<String>) {
    if is_json(content_type)
        && let Ok(raw) = serde_json::from_slice::<Box<RawValue>>(bytes)
    {
        return (Some(raw), None);
    }
    (None, Some(STANDARD.encode(bytes)))
}

/// `(content type, bytes)` of a request that gives exactly one of `payload` and `payload_base64`.
///
/// # Errors
/// 400 when both or neither are given, when the base64 is none, or when a JSON content type comes with bytes that are
/// not JSON.
pub fn decode_payload(
    payload: Option<&RawValue>,
    payload_base64: Option<&str>,
    content_type: Option<&str>,
) -> Result<(String, Bytes), ApiError> {
    let (default, bytes) = match (payload, payload_base64) {
        (Some(raw), None) => (JSON, Bytes::copy_from_slice(raw.get().as_bytes())),
        (None, Some(text)) => {
            let bytes = STANDARD.decode(text).map_err(|error| {
                ApiError::bad_request(format!("payload_base64 is not base64: {error}"))
                    .hint("standard alphabet with padding (RFC 4648, section 4)")
            })?;
            (OCTETS, Bytes::from(bytes))
        }
        (Some(_), Some(_)) => {
            return Err(ApiError::bad_request(
                "payload and payload_base64 are both given",
            ));
        }
        (None, None) => {
            return Err(ApiError::bad_request("payload is missing")
                .hint("give `payload` (any JSON value) or `payload_base64`"));
        }
    };
    let content_type = content_type.unwrap_or(default);
    if payload.is_none()
        && is_json(content_type)
        && serde_json::from_slice::<&RawValue>(&bytes).is_err()
    {
        return Err(ApiError::bad_request(format!(
            "content_type is {content_type}, but the payload is not JSON"
        )));
    }
    Ok((content_type.to_owned(), bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    #[test]
    fn json_is_embedded_byte_for_byte() {
        let (payload, base64) = encode_payload("application/json; charset=utf-8", b"{\"a\": 1.10}");
        assert_eq!((payload.unwrap().get(), base64), ("{\"a\": 1.10}", None));
        let (content_type, bytes) =
            decode_payload(Some(&raw("{\"a\": 1.10}")), None, None).unwrap();
        assert_eq!(
            (content_type.as_str(), bytes.as_ref()),
            (JSON, b"{\"a\": 1.10}".as_slice())
        );
    }

    #[test]
    fn what_only_claims_to_be_json_travels_as_base64() {
        let (payload, base64) = encode_payload(JSON, b"\xff{");
        assert!(payload.is_none());
        let (content_type, bytes) = decode_payload(None, base64.as_deref(), None).unwrap();
        assert_eq!(
            (content_type.as_str(), bytes.as_ref()),
            (OCTETS, b"\xff{".as_slice())
        );
        assert!(decode_payload(None, base64.as_deref(), Some("application/ld+json")).is_err());
    }

    #[test]
    fn both_neither_and_broken_base64_are_refused() {
        assert!(
            decode_payload(Some(&raw("1")), Some("MQ=="), None)
                .unwrap_err()
                .message
                .contains("both")
        );
        assert!(
            decode_payload(None, None, None)
                .unwrap_err()
                .message
                .contains("missing")
        );
        assert!(
            decode_payload(None, Some("%%"), None)
                .unwrap_err()
                .message
                .contains("base64")
        );
    }
}
