//! The W3C `traceparent` header: `version-traceid-parentid-flags`. Pure.
//!
//! A flow's trace takes the caller's trace id, and is one span of it. Its id follows from the trace, the flow and the
//! caller's span, so that a node can name it to others before any observer has heard of the trace.

use std::{fmt, str::FromStr};

use serde_json::Value;
use volary_kernel::{Name, SpanId, TraceId, id::IdError};

use crate::envelope::{Envelope, Meta};

/// The key of [`Meta`] under which the caller's `traceparent` travels.
pub const META_KEY: &str = "traceparent";

/// What a `traceparent` header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace.
    pub trace_id: TraceId,
    /// The caller's span.
    pub span_id: SpanId,
    /// Whether the caller records it.
    pub sampled: bool,
}

/// A header is not a `traceparent`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TraceParentError {
    /// It has not the four parts of its version.
    #[error("traceparent must be like `00-<32 hex>-<16 hex>-<2 hex>`")]
    Form,
    /// An id in it is malformed or all zero.
    #[error(transparent)]
    Id(#[from] IdError),
}

impl FromStr for TraceParent {
    type Err = TraceParentError;

    /// Versions after 00 may have more parts, which are not read; `ff` is forbidden.
    fn from_str(text: &str) -> Result<Self, TraceParentError> {
        let mut parts = text.split('-');
        let mut part = || parts.next().ok_or(TraceParentError::Form);
        let (version, trace, span, flags) = (part()?, part()?, part()?, part()?);
        let more = parts.next().is_some();
        let version = byte(version).filter(|version| *version != 0xff);
        let version = version.ok_or(TraceParentError::Form)?;
        if version == 0 && more {
            return Err(TraceParentError::Form);
        }
        let flags = byte(flags).ok_or(TraceParentError::Form)?;
        Ok(Self {
            trace_id: trace.parse()?,
            span_id: span.parse()?,
            sampled: flags & 1 == 1,
        })
    }
}

/// Two lower-case hex digits.
fn byte(text: &str) -> Option<u8> {
    let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let plain = text.len() == 2 && text.bytes().all(lower_hex);
    plain.then(|| u8::from_str_radix(text, 16).ok()).flatten()
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = u8::from(self.sampled);
        write!(f, "00-{}-{}-{flags:02x}", self.trace_id, self.span_id)
    }
}

impl TraceParent {
    /// The caller that these facts name, if they do.
    pub fn of_caller(meta: &Meta) -> Option<Self> {
        // Most traces have no facts at all.
        let Value::String(text) = meta.get(META_KEY)? else {
            return None;
        };
        text.parse().ok()
    }

    /// What a node of `flow` tells those whom it calls on behalf of the trace: their spans become children of the trace's.
    pub fn outgoing(trace_id: TraceId, flow: &Name, meta: &Meta) -> Self {
        let caller = Self::of_caller(meta).filter(|caller| caller.trace_id == trace_id);
        Self {
            trace_id,
            span_id: span_of(trace_id, flow, caller.map(|caller| caller.span_id)),
            sampled: caller.is_none_or(|caller| caller.sampled),
        }
    }
}

/// The span that a trace is in a flow.
pub(crate) fn span_of(trace: TraceId, flow: &Name, caller: Option<SpanId>) -> SpanId {
    let trace = u128::from_be_bytes(trace.to_bytes());
    let caller = caller.map_or(0, |span| u64::from_be_bytes(span.to_bytes()));
    let (high, low) = ((trace >> 64) as u64, trace as u64);
    let start = mix(mix(high) ^ low) ^ caller;
    let flow = flow.as_str().bytes();
    let mixed = flow.fold(mix(start), |mixed, byte| mix(mixed ^ u64::from(byte)));
    // One in 2^64 is zero, which is no span id.
    SpanId::from_bytes(mixed.to_be_bytes()).unwrap_or_else(|| {
        let one = [0, 0, 0, 0, 0, 0, 0, 1];
        SpanId::from_bytes(one).unwrap_or_else(SpanId::generate)
    })
}

/// Spreads every bit over all (the finaliser of SplitMix64).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

impl<T> Envelope<T> {
    /// Takes the trace of a caller: its id becomes the trace's, its span the parent of the trace's span.
    ///
    /// # Errors
    /// [`TraceParentError`] if the header is malformed; by the standard such a header is then as good as none.
    pub fn traceparent(mut self, header: &str) -> Result<Self, TraceParentError> {
        let parent: TraceParent = header.trim().parse()?;
        let meta = std::sync::Arc::make_mut(&mut self.meta);
        meta.insert(META_KEY.to_owned(), Value::String(parent.to_string()));
        self.trace_id = parent.trace_id;
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_header_reads_back_and_malformed_ones_are_refused() {
        let parent: TraceParent = HEADER.parse().unwrap();
        assert!(parent.sampled);
        assert_eq!(parent.to_string(), HEADER);
        let later = format!("cc{}-what-comes", &HEADER[2..]);
        assert_eq!(later.parse(), Ok(parent));
        for bad in [
            "",
            "00",
            &HEADER[..52],
            &format!("{HEADER}-x"),
            &format!("ff{}", &HEADER[2..]),
            &HEADER.to_uppercase(),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-+1",
        ] {
            assert!(bad.parse::<TraceParent>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_envelope_carries_its_callers_trace_and_nodes_pass_on_the_traces_own_span() {
        let envelope = Envelope::new(()).traceparent(HEADER).unwrap();
        let caller: TraceParent = HEADER.parse().unwrap();
        assert_eq!(envelope.trace_id, caller.trace_id);
        assert_eq!(TraceParent::of_caller(&envelope.meta), Some(caller));
        let (one, two) = (Name::new("one").unwrap(), Name::new("two").unwrap());
        let out = |flow| TraceParent::outgoing(envelope.trace_id, flow, &envelope.meta);
        assert_eq!(out(&one), out(&one));
        assert_eq!(
            (out(&one).trace_id, out(&one).sampled),
            (caller.trace_id, true)
        );
        assert_ne!(out(&one).span_id, out(&two).span_id);
        assert_ne!(out(&one).span_id, caller.span_id);
        let unsampled = HEADER.replace("-01", "-00");
        let envelope = Envelope::new(()).traceparent(&unsampled).unwrap();
        assert!(!TraceParent::outgoing(envelope.trace_id, &one, &envelope.meta).sampled);
        assert!(TraceParent::outgoing(envelope.trace_id, &one, &Meta::default()).sampled);
    }
}
