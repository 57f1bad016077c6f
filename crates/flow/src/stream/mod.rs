//! Pieces of a stream, in order, and their encodings.
//!
//! A node sends pieces with `Context::chunk`, or passes those of a source on with [`emit_stream_events`]; whoever holds the
//! trace reads them between its values, or alone with [`stream_flow`]. [`sse`] and [`ws`] write them for browsers;
//! [`resequence`] puts pieces that came over an unordered way back in order.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::envelope::Meta;

mod emit;
mod read;
pub mod resequence;
pub mod sse;
pub mod ws;

pub use emit::emit_stream_events;
pub use read::{FlowStream, Until, stream_flow};

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
    /// Facts about this piece. Those of the trace are not repeated here.
    #[serde(default)]
    pub meta: Meta,
}

impl StreamChunk {
    /// A piece that is not the last.
    pub fn new(stream_id: impl Into<String>, seq: u64, text: impl Into<String>) -> Self {
        Self {
            stream_id: stream_id.into(),
            seq,
            text: text.into(),
            done: false,
            meta: Meta::default(),
        }
    }

    /// The same as the last piece of its stream.
    #[must_use]
    pub fn last(mut self) -> Self {
        self.done = true;
        self
    }

    /// The same with a fact about this piece.
    #[must_use]
    pub fn with_meta(
        mut self,
        key: impl Into<String>,
        value: impl Into<serde_json::Value>,
    ) -> Self {
        let meta: &mut BTreeMap<_, _> = Arc::make_mut(&mut self.meta);
        meta.insert(key.into(), value.into());
        self
    }
}
