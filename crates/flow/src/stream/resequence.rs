//! Puts the pieces of streams back in order, within bounds. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};

use super::StreamChunk;

/// Bounds of a [`Resequencer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Most pieces of one stream that wait for an earlier one. Beyond it the missing ones are given up. Default 64.
    pub ahead: usize,
    /// Most streams at once. A further one is refused. Default 1,024.
    pub streams: usize,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            ahead: 64,
            streams: 1_024,
        }
    }
}

/// What a piece set free.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Freed {
    /// Pieces in order, perhaps none.
    pub ready: Vec<StreamChunk>,
    /// Numbers given up before the first of `ready`, because too much waited for them or the stream was ended.
    pub missing: Option<Range<u64>>,
}

/// A piece was not taken.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ResequenceError {
    /// Its number was delivered, given up, or waits already.
    #[error("piece {seq} of stream `{stream_id}` came twice")]
    Duplicate {
        /// The stream.
        stream_id: String,
        /// The number.
        seq: u64,
    },
    /// Too many streams have not ended.
    #[error("more than {0} streams at once")]
    TooManyStreams(usize),
}

#[derive(Debug, Default)]
struct Stream {
    next: u64,
    held: BTreeMap<u64, StreamChunk>,
}

/// Hands out the pieces of each stream in the order of their numbers, which start at 0 and start anew after the last
/// piece was handed out. Streams do not hold each other up.
///
/// # Examples
/// ```
/// use volary_flow::stream::{StreamChunk, resequence::Resequencer};
/// let mut order = Resequencer::default();
/// assert!(order.push(StreamChunk::new("s", 1, "b"))?.ready.is_empty());
/// let freed = order.push(StreamChunk::new("s", 0, "a"))?;
/// assert_eq!(freed.ready.len(), 2);
/// # Ok::<(), volary_flow::stream::resequence::ResequenceError>(())
/// ```
#[derive(Debug, Default)]
pub struct Resequencer {
    window: Window,
    streams: HashMap<String, Stream>,
}

impl Resequencer {
    /// With other bounds than the default.
    pub fn new(window: Window) -> Self {
        Self {
            window,
            streams: HashMap::new(),
        }
    }

    /// Takes a piece, and hands out what may go on.
    ///
    /// # Errors
    /// [`ResequenceError`] if the piece is not taken; nothing changes then.
    pub fn push(&mut self, chunk: StreamChunk) -> Result<Freed, ResequenceError> {
        let known = self.streams.contains_key(&chunk.stream_id);
        if !known && self.streams.len() >= self.window.streams {
            return Err(ResequenceError::TooManyStreams(self.window.streams));
        }
        let stream = self.streams.entry(chunk.stream_id.clone()).or_default();
        if chunk.seq < stream.next || stream.held.contains_key(&chunk.seq) {
            return Err(ResequenceError::Duplicate {
                stream_id: chunk.stream_id,
                seq: chunk.seq,
            });
        }
        let stream_id = chunk.stream_id.clone();
        stream.held.insert(chunk.seq, chunk);
        let mut freed = Freed::default();
        if stream.held.len() > self.window.ahead {
            freed.missing = stream.give_up();
        }
        let ended = stream.free(&mut freed.ready);
        if ended {
            self.streams.remove(&stream_id);
        }
        Ok(freed)
    }

    /// Ends a stream whose source is gone: hands out what waits, and says what is missing before it.
    pub fn end(&mut self, stream_id: &str) -> Vec<Freed> {
        let mut all = Vec::new();
        let Some(mut stream) = self.streams.remove(stream_id) else {
            return all;
        };
        while !stream.held.is_empty() {
            let mut freed = Freed {
                missing: stream.give_up(),
                ready: Vec::new(),
            };
            stream.free(&mut freed.ready);
            all.push(freed);
        }
        all
    }

    /// How many pieces wait for an earlier one.
    pub fn waiting(&self) -> usize {
        self.streams.values().map(|stream| stream.held.len()).sum()
    }
}

impl Stream {
    /// Goes on with the first piece that waits; what is missing before it.
    fn give_up(&mut self) -> Option<Range<u64>> {
        let (first, _) = self.held.first_key_value()?;
        let missing = self.next..*first;
        self.next = *first;
        (!missing.is_empty()).then_some(missing)
    }

    /// Hands out what is in order; whether the last piece was among it.
    fn free(&mut self, ready: &mut Vec<StreamChunk>) -> bool {
        while let Some(chunk) = self.held.remove(&self.next) {
            let done = chunk.done;
            ready.push(chunk);
            if done {
                // What waits behind the last piece belongs to a stream that starts anew; it cannot, without its start.
                self.next = 0;
                return self.held.is_empty();
            }
            self.next += 1;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seqs(freed: &Freed) -> Vec<u64> {
        freed.ready.iter().map(|chunk| chunk.seq).collect()
    }

    #[test]
    fn a_gap_is_given_up_when_too_much_waits_and_is_reported() {
        let window = Window {
            ahead: 2,
            streams: 1,
        };
        let mut order = Resequencer::new(window);
        assert!(seqs(&order.push(StreamChunk::new("s", 2, "c")).unwrap()).is_empty());
        assert!(seqs(&order.push(StreamChunk::new("s", 3, "d")).unwrap()).is_empty());
        let freed = order.push(StreamChunk::new("s", 5, "f")).unwrap();
        assert_eq!(
            (freed.missing.clone(), seqs(&freed)),
            (Some(0..2), vec![2, 3])
        );
        assert_eq!(order.waiting(), 1);
        let late = order.push(StreamChunk::new("s", 1, "b")).unwrap_err();
        assert!(matches!(late, ResequenceError::Duplicate { seq: 1, .. }));
        let other = order.push(StreamChunk::new("t", 0, "")).unwrap_err();
        assert_eq!(other, ResequenceError::TooManyStreams(1));
        let rest = order.end("s");
        assert_eq!(rest[0].missing, Some(4..5));
        assert_eq!(seqs(&rest[0]), [5]);
        assert_eq!(order.waiting(), 0);
    }

    #[test]
    fn numbers_start_anew_after_the_last_piece() {
        let mut order = Resequencer::default();
        for _ in 0..2 {
            assert_eq!(
                seqs(&order.push(StreamChunk::new("s", 0, "a")).unwrap()),
                [0]
            );
            let last = StreamChunk::new("s", 1, "b").last();
            assert_eq!(seqs(&order.push(last).unwrap()), [1]);
        }
        assert!(order.streams.is_empty());
    }

    proptest! {
        #[test]
        fn any_order_of_arrival_is_handed_out_in_order_per_stream(
            lengths in prop::collection::vec(1u64..12, 1..5),
            swaps in prop::collection::vec((0usize..64, 0usize..64), 0..64),
        ) {
            let all = lengths.iter().enumerate().flat_map(|(stream, length)| {
                (0..*length).map(move |seq| (stream, seq, seq + 1 == *length))
            });
            let mut arrivals: Vec<_> = all.collect();
            for (a, b) in swaps {
                let n = arrivals.len();
                arrivals.swap(a % n, b % n);
            }
            let mut order = Resequencer::default();
            let mut seen: HashMap<String, Vec<u64>> = HashMap::new();
            for (stream, seq, last) in arrivals {
                let mut chunk = StreamChunk::new(stream.to_string(), seq, "");
                chunk.done = last;
                let freed = order.push(chunk).unwrap();
                prop_assert_eq!(freed.missing, None);
                for chunk in freed.ready {
                    seen.entry(chunk.stream_id).or_default().push(chunk.seq);
                }
            }
            for (stream, length) in lengths.iter().enumerate() {
                let wanted: Vec<u64> = (0..*length).collect();
                prop_assert_eq!(&seen[&stream.to_string()], &wanted);
            }
            prop_assert_eq!(order.waiting(), 0);
        }
    }
}
