//! Answers that come bit by bit: lines and server-sent events.

use bytes::BytesMut;

use super::{ClientError, exchange::Exchange, sse::Parser};

/// Longest line, in bytes: far above any journal entry.
const LINE_MAX: usize = 8 << 20;

/// An answer line by line.
pub struct Lines {
    exchange: Exchange,
    buffer: BytesMut,
    searched: usize,
    ended: bool,
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lines")
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl Lines {
    pub(super) fn new(exchange: Exchange) -> Self {
        Self {
            exchange,
            buffer: BytesMut::new(),
            searched: 0,
            ended: false,
        }
    }

    /// The next line without its end; none when the answer is over. Cancel-safe.
    ///
    /// # Errors
    /// [`ClientError::Broken`] if the answer was cut, [`ClientError::Protocol`] for a line over 8 MiB.
    pub async fn next(&mut self) -> Result<Option<String>, ClientError> {
        loop {
            if let Some(end) = self.buffer[self.searched..]
                .iter()
                .position(|byte| *byte == b'\n')
            {
                let line = self.buffer.split_to(self.searched + end + 1);
                self.searched = 0;
                return Ok(Some(text(&line)));
            }
            self.searched = self.buffer.len();
            if self.searched > LINE_MAX {
                return Err(ClientError::Protocol(format!(
                    "a line is over {LINE_MAX} bytes"
                )));
            }
            if self.ended {
                let rest = std::mem::take(&mut self.buffer);
                self.searched = 0;
                return Ok((!rest.is_empty()).then(|| text(&rest)));
            }
            match self.exchange.piece().await? {
                Some(piece) => self.buffer.extend_from_slice(&piece),
                None => self.ended = true,
            }
        }
    }
}

fn text(line: &[u8]) -> String {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line)).into_owned()
}

/// One server-sent event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamEvent {
    /// Place in the stream that a new one can resume after.
    pub id: Option<String>,
    /// What kind of event, like `page.changed`; `stream.…` are about the stream itself.
    pub kind: String,
    /// The document.
    pub data: String,
}

/// An answer event by event.
pub struct EventStream {
    exchange: Exchange,
    parser: Parser,
}

impl std::fmt::Debug for EventStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventStream")
            .field("last_id", &self.parser.last_id())
            .finish_non_exhaustive()
    }
}

impl EventStream {
    pub(super) fn new(exchange: Exchange) -> Self {
        Self {
            exchange,
            parser: Parser::default(),
        }
    }

    /// The next event; none when the stream is over. Cancel-safe.
    ///
    /// # Errors
    /// [`ClientError::Broken`] if the connection broke, [`ClientError::TimedOut`] if the node gave no sign of life.
    pub async fn next(&mut self) -> Result<Option<StreamEvent>, ClientError> {
        loop {
            if let Some(event) = self.parser.next() {
                return Ok(Some(event));
            }
            match self.exchange.piece_in_time().await? {
                Some(piece) => self.parser.feed(&piece)?,
                None => return Ok(None),
            }
        }
    }

    /// The place reached, for [`super::Client::events`] to resume after.
    pub fn last_id(&self) -> Option<&str> {
        self.parser.last_id()
    }
}
