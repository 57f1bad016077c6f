//! Reading server-sent events from pieces of any size. Pure.

use std::collections::VecDeque;

use super::{ClientError, StreamEvent};

/// Longest event, in bytes: far above any journal entry.
const EVENT_MAX: usize = 8 << 20;

/// Takes pieces, gives events.
#[derive(Debug, Default)]
pub(super) struct Parser {
    line: Vec<u8>,
    after_return: bool,
    kind: String,
    data: String,
    has_data: bool,
    last_id: Option<String>,
    ready: VecDeque<StreamEvent>,
}

impl Parser {
    /// Takes the next piece.
    pub(super) fn feed(&mut self, piece: &[u8]) -> Result<(), ClientError> {
        for byte in piece {
            match byte {
                b'\n' if self.after_return => {}
                b'\n' | b'\r' => self.end_line(),
                _ => self.line.push(*byte),
            }
            self.after_return = *byte == b'\r';
        }
        if self.line.len() + self.data.len() > EVENT_MAX {
            return Err(ClientError::Protocol(format!(
                "an event is over {EVENT_MAX} bytes"
            )));
        }
        Ok(())
    }

    /// The next event that is complete.
    pub(super) fn next(&mut self) -> Option<StreamEvent> {
        self.ready.pop_front()
    }

    /// The place reached: what resumes after it.
    pub(super) fn last_id(&self) -> Option<&str> {
        self.last_id.as_deref()
    }

    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&self.line).into_owned();
        self.line.clear();
        if line.is_empty() {
            return self.dispatch();
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.kind),
            "data" => {
                if self.has_data {
                    self.data.push('\n');
                }
                self.has_data = true;
                self.data.push_str(value);
            }
            "id" if !value.contains('\0') => self.last_id = Some(value.to_owned()),
            _ => {}
        }
    }

    fn dispatch(&mut self) {
        let kind = std::mem::take(&mut self.kind);
        let data = std::mem::take(&mut self.data);
        if std::mem::take(&mut self.has_data) {
            let kind = if kind.is_empty() {
                "message".to_owned()
            } else {
                kind
            };
            self.ready.push_back(StreamEvent {
                id: self.last_id.clone(),
                kind,
                data,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = ": hello\nretry: 2000\n\nid: 7\nevent: page.changed\ndata: {\"a\":1}\n\nid: 9\n\ndata: x\r\ndata:y\r\n\r\n";

    fn events(pieces: impl Iterator<Item = Vec<u8>>) -> (Vec<StreamEvent>, Option<String>) {
        let mut parser = Parser::default();
        for piece in pieces {
            parser.feed(&piece).unwrap();
        }
        let last = parser.last_id().map(str::to_owned);
        (std::iter::from_fn(|| parser.next()).collect(), last)
    }

    #[test]
    fn events_are_the_same_however_they_are_cut() {
        let event = |id: &str, kind: &str, data: &str| StreamEvent {
            id: Some(id.to_owned()),
            kind: kind.to_owned(),
            data: data.to_owned(),
        };
        let expected = (
            vec![
                event("7", "page.changed", "{\"a\":1}"),
                event("9", "message", "x\ny"),
            ],
            Some("9".to_owned()),
        );
        for size in 1..=TEXT.len() {
            assert_eq!(
                events(TEXT.as_bytes().chunks(size).map(<[u8]>::to_vec)),
                expected,
                "pieces of {size}"
            );
        }
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let mut parser = Parser::default();
        let piece = vec![b'x'; 1 << 20];
        let refused = (0..9).find_map(|_| parser.feed(&piece).err());
        assert!(matches!(refused, Some(ClientError::Protocol(_))));
    }
}
