//! Pieces as server-sent events, for a browser's `EventSource`. Pure.
//!
//! An `EventSource` knows four fields and ignores all others, and joins all `data` lines of an event. Facts about a piece
//! can therefore stand neither in a field of their own nor in one more `data` line (it would become part of the text):
//! they are an event of their own, `meta`, right before the piece, without an `id`, so that reconnecting is not affected.
//!
//! ```text
//! event: meta
//! data: {"stream_id":"s","seq":3,"meta":{"model":"m"}}
//!
//! event: chunk            addEventListener("chunk", …): event.data is the text, event.lastEventId the number
//! id: 3
//! data: first line
//! data: second line
//!
//! ```

use std::{fmt::Write as _, time::Duration};

use serde::Serialize;

use super::StreamChunk;
use crate::envelope::Meta;

/// The content type of such a response.
pub const CONTENT_TYPE: &str = "text/event-stream";

#[derive(Serialize)]
struct MetaEvent<'a> {
    stream_id: &'a str,
    seq: u64,
    meta: &'a Meta,
}

/// A piece as an event, `chunk` or (the last) `done`, ended by an empty line; before it its facts, if it has any.
///
/// `retry` tells the browser how long to wait before it connects again. Line ends of all three kinds become line feeds:
/// the format has no other. An empty text is sent too, as an event with empty data.
#[doc(alias = "format_sse_event")]
pub fn encode(chunk: &StreamChunk, retry: Option<Duration>) -> String {
    let mut text = String::with_capacity(chunk.text.len() + 48);
    if !chunk.meta.is_empty() {
        let meta = MetaEvent {
            stream_id: &chunk.stream_id,
            seq: chunk.seq,
            meta: &chunk.meta,
        };
        // Texts as keys and JSON values inside: nothing here can refuse to be written.
        if let Ok(json) = serde_json::to_string(&meta) {
            text.push_str("event: meta\n");
            data(&mut text, &json);
            text.push('\n');
        }
    }
    let event = if chunk.done { "done" } else { "chunk" };
    let _infallible = write!(text, "event: {event}\nid: {}\n", chunk.seq);
    if let Some(retry) = retry {
        let _infallible = writeln!(text, "retry: {}", retry.as_millis());
    }
    data(&mut text, &chunk.text);
    text.push('\n');
    text
}

/// One `data` line per line; at least one, for an event without any is not delivered.
fn data(text: &mut String, value: &str) {
    let mut rest = value;
    loop {
        let (line, more) = match rest.find(['\r', '\n']) {
            None => (rest, None),
            Some(at) => {
                let end = if rest[at..].starts_with("\r\n") { 2 } else { 1 };
                (&rest[..at], Some(&rest[at + end..]))
            }
        };
        text.push_str("data: ");
        text.push_str(line);
        text.push('\n');
        match more {
            Some(more) => rest = more,
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a browser makes of a stream: type, last event id, data.
    fn read(stream: &str) -> Vec<(String, String, String)> {
        let (mut events, mut id) = (Vec::new(), String::new());
        let (mut kind, mut data) = (String::new(), String::new());
        for line in stream.replace("\r\n", "\n").split(['\n', '\r']) {
            if line.is_empty() {
                if !data.is_empty() {
                    data.pop();
                    events.push((kind.clone(), id.clone(), data.clone()));
                }
                (kind, data) = (String::new(), String::new());
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => kind = value.to_owned(),
                "data" => data = data + value + "\n",
                "id" if !value.contains('\0') => id = value.to_owned(),
                _ => {}
            }
        }
        events
    }

    #[test]
    fn facts_are_an_event_before_their_piece_and_leave_its_text_alone() {
        let chunk = StreamChunk::new("s", 3, "a\nb").with_meta("model", "m");
        let events = read(&encode(&chunk, None));
        let meta = r#"{"stream_id":"s","seq":3,"meta":{"model":"m"}}"#;
        assert_eq!(events[0], ("meta".into(), String::new(), meta.into()));
        assert_eq!(events[1], ("chunk".into(), "3".into(), "a\nb".into()));
    }

    proptest! {
        #[test]
        fn a_browser_reads_back_any_text_with_line_feeds(
            texts in prop::collection::vec("[ :a\\n\\ré\\u{0}]{0,12}", 1..6)
        ) {
            let all = texts.iter().enumerate().map(|(seq, text)| {
                encode(&StreamChunk::new("s", seq as u64, text), None)
            });
            let events = read(&all.collect::<String>());
            let wanted = texts.iter().enumerate().map(|(seq, text)| {
                let text = text.replace("\r\n", "\n").replace('\r', "\n");
                ("chunk".to_owned(), seq.to_string(), text)
            });
            prop_assert_eq!(events, wanted.collect::<Vec<_>>());
        }
    }
}
