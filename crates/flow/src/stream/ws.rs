//! Pieces as the text messages of a WebSocket: one JSON object each. Pure.

use serde::Serialize;
use serde_json::{Map, Value};

use super::StreamChunk;

/// A piece could not be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is a key of the piece itself")]
pub struct ReservedKey(
    /// The key.
    pub String,
);

const KEYS: [&str; 5] = ["stream_id", "seq", "text", "done", "meta"];

#[derive(Serialize)]
struct Message<'a> {
    #[serde(flatten)]
    chunk: &'a StreamChunk,
    #[serde(flatten)]
    extra: &'a Map<String, Value>,
}

/// `{"stream_id", "seq", "text", "done", "meta"}` and what is `extra` (a trace id, a kind of message).
///
/// # Errors
/// [`ReservedKey`] if `extra` has a key of the piece.
#[doc(alias = "chunk_to_ws_json")]
pub fn encode(chunk: &StreamChunk, extra: &Map<String, Value>) -> Result<String, ReservedKey> {
    if let Some(key) = KEYS.iter().find(|key| extra.contains_key(**key)) {
        return Err(ReservedKey((*key).to_owned()));
    }
    // Texts as keys and JSON values inside: nothing here can refuse to be written.
    Ok(serde_json::to_string(&Message { chunk, extra }).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_extra_stands_beside_the_piece_and_cannot_replace_it() {
        let chunk = StreamChunk::new("s", 1, "a\n").last();
        let mut extra = Map::new();
        extra.insert("trace".into(), json!("t"));
        let text = encode(&chunk, &extra).unwrap();
        let wanted = r#"{"stream_id":"s","seq":1,"text":"a\n","done":true,"meta":{},"trace":"t"}"#;
        assert_eq!(text, wanted);
        assert_eq!(serde_json::from_str::<StreamChunk>(&text).unwrap(), chunk);
        extra.insert("seq".into(), json!(9));
        assert_eq!(encode(&chunk, &extra), Err(ReservedKey("seq".into())));
    }
}
