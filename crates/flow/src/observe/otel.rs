//! Traces as OpenTelemetry spans: one of the trace in this flow, and below it one of each attempt.
//!
//! Spans are made from events after the fact and given to a span processor of the SDK as they are, because their ids
//! must be those that nodes have told others already (see [`super::trace_context`]).

use std::{
    collections::HashMap,
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use opentelemetry::{
    InstrumentationScope, KeyValue, SpanId, TraceFlags,
    trace::{SpanContext, SpanKind, Status, TraceState},
};
use opentelemetry_sdk::{
    Resource,
    trace::{SpanData, SpanEvents, SpanLinks, SpanProcessor},
};
use parking_lot::Mutex;
use volary_kernel::{Timestamp, TraceId};

use super::{
    Observer,
    event::{FlowEvent, FlowEventKind},
    trace_context::span_of,
};
use crate::outcome::Outcome;

/// Most callers that one of two generations remembers; the older one is forgotten when the younger one is full.
const GENERATION: usize = 50_000;

/// An observer that makes spans of events.
///
/// A trace whose caller does not record it is not recorded; of the others a share by trace id, all by default. Cancelled
/// attempts have no length, for no event tells it.
///
/// # Examples
/// ```no_run
/// # fn exporter() -> impl opentelemetry_sdk::trace::SpanExporter + 'static { unreachable!() as NoExporter }
/// # #[derive(Debug)] struct NoExporter;
/// # impl opentelemetry_sdk::trace::SpanExporter for NoExporter {
/// #     async fn export(&self, _: Vec<opentelemetry_sdk::trace::SpanData>) -> opentelemetry_sdk::error::OTelSdkResult { Ok(()) }
/// # }
/// use std::sync::Arc;
/// use opentelemetry_sdk::trace::BatchSpanProcessor;
/// use volary_flow::{RunConfig, observe::OtelSpans};
/// let spans = OtelSpans::new(BatchSpanProcessor::builder(exporter()).build());
/// let config = RunConfig {
///     observers: vec![Arc::new(spans)],
///     ..RunConfig::default()
/// };
/// ```
pub struct OtelSpans {
    processor: Box<dyn SpanProcessor>,
    scope: InstrumentationScope,
    share: f64,
    callers: Mutex<Callers>,
}

/// Callers of live traces. A lost end of a trace is forgotten in time.
#[derive(Default)]
struct Callers {
    young: HashMap<TraceId, Caller>,
    old: HashMap<TraceId, Caller>,
}

#[derive(Clone, Copy)]
struct Caller {
    span: volary_kernel::SpanId,
    sampled: bool,
}

impl Callers {
    fn put(&mut self, trace: TraceId, caller: Caller) {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(trace, caller);
    }

    fn get(&self, trace: TraceId) -> Option<Caller> {
        self.young
            .get(&trace)
            .or_else(|| self.old.get(&trace))
            .copied()
    }

    fn forget(&mut self, trace: TraceId) {
        self.young.remove(&trace);
        self.old.remove(&trace);
    }
}

impl OtelSpans {
    /// Spans go to this processor; it is flushed when the observer is dropped.
    pub fn new(processor: impl SpanProcessor + 'static) -> Self {
        let scope = InstrumentationScope::builder(env!("CARGO_PKG_NAME"));
        Self {
            processor: Box::new(processor),
            scope: scope.with_version(env!("CARGO_PKG_VERSION")).build(),
            share: 1.0,
            callers: Mutex::default(),
        }
    }

    /// Who sends the spans (`service.name` and so on).
    #[must_use]
    pub fn resource(mut self, resource: &Resource) -> Self {
        self.processor.set_resource(resource);
        self
    }

    /// The share of traces without a recording caller that is recorded, from 0 to 1. Default 1.
    #[must_use]
    pub fn share(mut self, share: f64) -> Self {
        self.share = share;
        self
    }

    fn is_recorded(&self, trace: TraceId, caller: Option<Caller>) -> bool {
        match caller {
            Some(caller) => caller.sampled,
            None => {
                // The last 56 bits of a trace id are random by the standard.
                let low = u128::from_be_bytes(trace.to_bytes()) & ((1 << 56) - 1);
                (low as f64) < self.share * (1u64 << 56) as f64
            }
        }
    }

    fn span(&self, event: &FlowEvent) -> Option<SpanData> {
        let caller = self.callers.lock().get(event.trace_id);
        if !self.is_recorded(event.trace_id, caller) {
            return None;
        }
        let of_trace = span_of(
            event.trace_id,
            &event.flow,
            caller.map(|caller| caller.span),
        );
        let of_trace = SpanId::from_bytes(of_trace.to_bytes());
        let mut attributes = vec![
            KeyValue::new("volary.flow", event.flow.to_string()),
            KeyValue::new("volary.tenant", event.tenant.to_string()),
        ];
        let status = match &event.kind {
            FlowEventKind::TraceEnd { outcome, .. } => {
                attributes.push(KeyValue::new("volary.outcome", outcome.as_str()));
                match outcome {
                    Outcome::Done => Status::Ok,
                    Outcome::Cancelled => Status::Unset,
                    Outcome::Failed(error) => Status::error(error.to_string()),
                    other => Status::error(other.as_str()),
                }
            }
            FlowEventKind::NodeSuccess { .. } => Status::Ok,
            FlowEventKind::NodeError { error, .. } => Status::error(error.clone()),
            FlowEventKind::NodeTimeout { .. } => Status::error("timeout"),
            FlowEventKind::NodeCancelled => {
                attributes.push(KeyValue::new("volary.cancelled", true));
                Status::Unset
            }
            _ => return None,
        };
        let (name, id, parent, remote) = match &event.node {
            Some(node) => {
                attributes.push(KeyValue::new("volary.attempt", i64::from(event.attempt)));
                let id = SpanId::from_bytes(volary_kernel::SpanId::generate().to_bytes());
                (node.to_string(), id, of_trace, false)
            }
            None => {
                let parent = caller.map_or(SpanId::INVALID, |caller| {
                    SpanId::from_bytes(caller.span.to_bytes())
                });
                (event.flow.to_string(), of_trace, parent, caller.is_some())
            }
        };
        let started = event.at - event.latency().unwrap_or(Duration::ZERO);
        Some(SpanData {
            span_context: SpanContext::new(
                opentelemetry::TraceId::from_bytes(event.trace_id.to_bytes()),
                id,
                TraceFlags::SAMPLED,
                false,
                TraceState::default(),
            ),
            parent_span_id: parent,
            parent_span_is_remote: remote,
            span_kind: if remote {
                SpanKind::Server
            } else {
                SpanKind::Internal
            },
            name: name.into(),
            start_time: system_time(started),
            end_time: system_time(event.at),
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status,
            instrumentation_scope: self.scope.clone(),
        })
    }
}

fn system_time(at: Timestamp) -> SystemTime {
    let micros = u64::try_from(at.as_micros()).unwrap_or(0);
    UNIX_EPOCH + Duration::from_micros(micros)
}

impl Observer for OtelSpans {
    fn observe(&self, events: &[FlowEvent]) {
        for event in events {
            if let FlowEventKind::TraceParent { span, sampled } = event.kind {
                let caller = Caller { span, sampled };
                self.callers.lock().put(event.trace_id, caller);
            }
            if let Some(span) = self.span(event) {
                self.processor.on_end(span);
            }
            if matches!(event.kind, FlowEventKind::TraceEnd { .. }) {
                self.callers.lock().forget(event.trace_id);
            }
        }
    }
}

impl Drop for OtelSpans {
    fn drop(&mut self) {
        if let Err(error) = self.processor.force_flush() {
            tracing::warn!(%error, "spans may be lost");
        }
    }
}

impl fmt::Debug for OtelSpans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OtelSpans")
            .field("processor", &self.processor)
            .field("share", &self.share)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use opentelemetry_sdk::{
        error::OTelSdkResult,
        trace::{SimpleSpanProcessor, SpanExporter},
    };
    use volary_kernel::{Name, Tenant};

    use super::*;
    use crate::observe::trace_context::TraceParent;

    #[derive(Debug, Clone, Default)]
    struct Kept(Arc<Mutex<Vec<SpanData>>>);

    impl SpanExporter for Kept {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            self.0.lock().extend(batch);
            Ok(())
        }
    }

    fn event(trace: TraceId, node: Option<&str>, millis: i64, kind: FlowEventKind) -> FlowEvent {
        FlowEvent {
            at: Timestamp::from_micros(millis * 1_000),
            flow: Name::new("orders").unwrap(),
            node: node.map(|node| Name::new(node).unwrap()),
            trace_id: trace,
            tenant: Tenant::default(),
            attempt: u32::from(node.is_some()),
            kind,
        }
    }

    fn observed(events: &[FlowEvent], share: f64) -> Vec<SpanData> {
        let kept = Kept::default();
        let spans = OtelSpans::new(SimpleSpanProcessor::new(kept.clone())).share(share);
        spans.observe(events);
        drop(spans);
        std::mem::take(&mut kept.0.lock())
    }

    #[test]
    fn a_trace_is_a_span_below_its_caller_and_its_attempts_are_spans_below_it() {
        let header = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let envelope = crate::Envelope::new(()).traceparent(header).unwrap();
        let caller: TraceParent = header.parse().unwrap();
        let trace = caller.trace_id;
        let millis = Duration::from_millis;
        let parent = FlowEventKind::TraceParent {
            span: caller.span_id,
            sampled: true,
        };
        let refused = FlowEventKind::NodeError {
            error: "refused".into(),
            latency: millis(2),
        };
        let success = FlowEventKind::NodeSuccess { latency: millis(3) };
        let end = FlowEventKind::TraceEnd {
            outcome: Outcome::Done,
            latency: millis(9),
        };
        let spans = observed(
            &[
                event(trace, None, 10, FlowEventKind::TraceStart),
                event(trace, None, 10, parent),
                event(trace, Some("pay"), 10, FlowEventKind::NodeStart),
                event(trace, Some("pay"), 12, refused),
                event(trace, Some("pay"), 18, success),
                event(trace, None, 19, end),
            ],
            1.0,
        );
        let [failed, paid, root] = &spans[..] else {
            panic!("{spans:#?}");
        };
        let told = TraceParent::outgoing(trace, &Name::new("orders").unwrap(), &envelope.meta);
        assert_eq!(
            root.span_context.span_id().to_bytes(),
            told.span_id.to_bytes()
        );
        assert_eq!(root.parent_span_id.to_bytes(), caller.span_id.to_bytes());
        assert!(root.parent_span_is_remote);
        assert_eq!((root.name.as_ref(), &root.status), ("orders", &Status::Ok));
        assert_eq!(
            root.end_time.duration_since(root.start_time).unwrap(),
            millis(9)
        );
        for span in [failed, paid] {
            assert_eq!(span.parent_span_id, root.span_context.span_id());
            assert_eq!(span.span_context.trace_id().to_bytes(), trace.to_bytes());
            assert_eq!(span.name, "pay");
        }
        assert_eq!(failed.status, Status::error("refused"));
        assert_eq!(failed.start_time, UNIX_EPOCH + millis(10));
        assert_eq!(paid.end_time, UNIX_EPOCH + millis(18));
    }

    #[test]
    fn what_the_caller_does_not_record_and_what_the_share_leaves_out_is_not_recorded() {
        let traces: Vec<_> = (0..200).map(|_| TraceId::generate()).collect();
        let end = || FlowEventKind::TraceEnd {
            outcome: Outcome::Done,
            latency: Duration::ZERO,
        };
        let ends: Vec<_> = traces
            .iter()
            .map(|trace| event(*trace, None, 1, end()))
            .collect();
        assert_eq!(observed(&ends, 1.0).len(), 200);
        assert_eq!(observed(&ends, 0.0).len(), 0);
        assert!((50..150).contains(&observed(&ends, 0.5).len()));
        let unrecorded = FlowEventKind::TraceParent {
            span: volary_kernel::SpanId::generate(),
            sampled: false,
        };
        let events = [event(traces[0], None, 1, unrecorded), ends[0].clone()];
        assert_eq!(observed(&events, 1.0).len(), 0);
    }

    #[test]
    fn lost_ends_of_traces_do_not_pile_up() {
        let mut callers = Callers::default();
        let caller = Caller {
            span: volary_kernel::SpanId::generate(),
            sampled: true,
        };
        for _ in 0..3 * GENERATION {
            callers.put(TraceId::generate(), caller);
        }
        assert!(callers.young.len() + callers.old.len() <= 2 * GENERATION);
    }
}
