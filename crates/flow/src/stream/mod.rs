//! Pieces of a stream, in order, and their encodings.

use serde::{Deserialize, Serialize};

use crate::envelope::Meta;

/// A piece of a stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StreamChunk {
    /// Which stream of the trace; by default the id of the trace.
    pub stream_id: String,
    /// From 0, without gaps; from 0 again after the last piece.
    pub seq: u64,
    /// The piece.
    pub text: String,
    /// Whether it is the last.
    pub done: bool,
    /// Facts about this piece.
    #[serde(default)]
    pub meta: Meta,
}
