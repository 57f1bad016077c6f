//! The events of a flow that an operator wants to see: kept until the next report to the node, bounded. And how the last
//! traces ended.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

use parking_lot::Mutex;
use volary_flow::{
    Outcome,
    observe::{FlowEvent, FlowEventKind, Observer},
};
use volary_kernel::{Name, Tenant, Timestamp, TraceId, text::format_duration};
use volary_ops::api::FlowSignal;

use crate::flows::REPORT_EVENTS_MAX;

/// Traces whose message is remembered: events come a little later than the work they tell of.
const TRACES_MAX: usize = 4_096;
/// Ended traces that are remembered.
const ENDED_MAX: usize = 100;
/// Longest text of an event, in characters.
const TEXT_MAX: usize = 512;

/// Collects events between two reports; what is too much is counted.
#[derive(Debug, Default)]
pub(super) struct Collector(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    events: VecDeque<FlowSignal>,
    dropped: u64,
    /// The message's trace of each trace of the flow, oldest forgotten first.
    traces: HashMap<TraceId, TraceId>,
    order: VecDeque<TraceId>,
    /// The last traces that ended, latest first.
    ended: VecDeque<Ended>,
}

/// A trace that ended.
#[derive(Debug, Clone)]
pub(super) struct Ended {
    pub flow: Name,
    pub trace: TraceId,
    pub tenant: Tenant,
    pub outcome: Outcome,
    pub latency: Duration,
    pub at: Timestamp,
}

impl Collector {
    /// Events of this trace of the flow are shown under its message's trace.
    pub(super) fn belongs(&self, flow_trace: TraceId, message_trace: TraceId) {
        let mut kept = self.0.lock();
        if kept.traces.insert(flow_trace, message_trace).is_none() {
            kept.order.push_back(flow_trace);
        }
        if kept.order.len() > TRACES_MAX
            && let Some(oldest) = kept.order.pop_front()
        {
            kept.traces.remove(&oldest);
        }
    }

    /// The trace of the message that a trace of the flow works on.
    pub(super) fn message_of(&self, flow_trace: TraceId) -> Option<TraceId> {
        self.0.lock().traces.get(&flow_trace).copied()
    }

    /// The last traces of a flow that ended, latest first.
    pub(super) fn ended(&self, flow: &str) -> Vec<Ended> {
        let kept = self.0.lock();
        let ended = kept.ended.iter();
        ended
            .filter(|ended| ended.flow.as_str() == flow)
            .cloned()
            .collect()
    }

    /// What there is, and how much was left out.
    pub(super) fn take(&self) -> (Vec<FlowSignal>, u64) {
        let mut kept = self.0.lock();
        let events = std::mem::take(&mut kept.events).into();
        (events, std::mem::take(&mut kept.dropped))
    }

    /// Puts back what could not be told; what has come since then goes first out.
    pub(super) fn put_back(&self, events: Vec<FlowSignal>, dropped: u64) {
        let mut kept = self.0.lock();
        kept.dropped += dropped;
        for event in events.into_iter().rev() {
            if kept.events.len() >= REPORT_EVENTS_MAX {
                kept.events.pop_back();
                kept.dropped += 1;
            }
            kept.events.push_front(event);
        }
    }
}

impl Observer for Collector {
    fn observe(&self, events: &[FlowEvent]) {
        for event in events {
            if let FlowEventKind::TraceEnd { outcome, latency } = &event.kind {
                let mut kept = self.0.lock();
                kept.ended.truncate(ENDED_MAX - 1);
                kept.ended.push_front(Ended {
                    flow: event.flow.clone(),
                    trace: event.trace_id,
                    tenant: event.tenant.clone(),
                    outcome: outcome.clone(),
                    latency: *latency,
                    at: event.at,
                });
            }
            let Some(details) = details(&event.kind) else {
                continue;
            };
            let mut kept = self.0.lock();
            if kept.events.len() >= REPORT_EVENTS_MAX {
                kept.dropped += 1;
                continue;
            }
            let trace = kept.traces.get(&event.trace_id).copied();
            let details = details.into_iter();
            let signal = FlowSignal {
                at: event.at,
                kind: event.kind.as_str().to_owned(),
                flow: event.flow.clone(),
                node: event.node.clone(),
                trace: Some(trace.unwrap_or(event.trace_id)),
                attempt: (event.attempt > 0).then_some(event.attempt),
                details: details
                    .map(|(key, value)| (key.to_owned(), cut(value)))
                    .collect(),
            };
            kept.events.push_back(signal);
        }
    }
}

/// What there is to say beside the kind; `None` for what nobody looks for in a feed.
fn details(kind: &FlowEventKind) -> Option<BTreeMap<&'static str, String>> {
    let time = |time: &Duration| format_duration(*time);
    let details: Vec<(&'static str, String)> = match kind {
        FlowEventKind::TraceEnd { outcome, latency } => match outcome {
            Outcome::Done => return None,
            Outcome::Failed(error) => vec![
                ("outcome", outcome.as_str().to_owned()),
                ("reason", error.to_string()),
                ("latency", time(latency)),
            ],
            _ => vec![
                ("outcome", outcome.as_str().to_owned()),
                ("latency", time(latency)),
            ],
        },
        FlowEventKind::NodeFailed { code, error } => {
            vec![("code", (*code).to_owned()), ("reason", error.clone())]
        }
        FlowEventKind::NodeTimeout { timeout } => vec![("timeout", time(timeout))],
        FlowEventKind::NodeBlocked { since } => vec![("since", time(since))],
        FlowEventKind::CancelStart { queued, running } => vec![
            ("queued", queued.to_string()),
            ("running", running.to_string()),
        ],
        FlowEventKind::DeadlineSkip
        | FlowEventKind::BreakerOpened
        | FlowEventKind::BreakerClosed => vec![],
        _ => return None,
    };
    Some(details.into_iter().collect())
}

/// The first [`TEXT_MAX`] characters.
pub(super) fn cut(text: String) -> String {
    match text.char_indices().nth(TEXT_MAX) {
        Some((end, _)) => text[..end].to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(trace_id: TraceId, kind: FlowEventKind) -> FlowEvent {
        FlowEvent {
            at: Timestamp::default(),
            flow: "support".parse().unwrap(),
            node: Some("charge".parse().unwrap()),
            trace_id,
            tenant: Tenant::default(),
            attempt: 2,
            kind,
        }
    }

    fn failure(error: &str) -> FlowEventKind {
        FlowEventKind::NodeFailed {
            code: "node_error",
            error: error.to_owned(),
        }
    }

    #[test]
    fn a_failure_is_told_under_the_trace_of_its_message() {
        let collector = Collector::default();
        let (own, message) = (TraceId::generate(), TraceId::generate());
        collector.belongs(own, message);
        collector.observe(&[
            event(own, FlowEventKind::NodeStart),
            event(own, failure(&"x".repeat(2_000))),
        ]);
        let (events, dropped) = collector.take();
        assert_eq!((events.len(), dropped), (1, 0));
        assert_eq!(events[0].trace, Some(message));
        assert_eq!(events[0].details["reason"].len(), TEXT_MAX);
        assert!(collector.take().0.is_empty());
    }

    #[test]
    fn too_many_events_are_counted_and_the_oldest_of_a_lost_report_stay() {
        let collector = Collector::default();
        let trace = TraceId::generate();
        let many: Vec<FlowEvent> = (0..REPORT_EVENTS_MAX + 7)
            .map(|n| event(trace, failure(&n.to_string())))
            .collect();
        collector.observe(&many);
        let (lost, dropped) = collector.take();
        assert_eq!((lost.len(), dropped), (REPORT_EVENTS_MAX, 7));
        collector.observe(&many[..3]);
        collector.put_back(lost, dropped);
        let (again, dropped) = collector.take();
        assert_eq!((again.len(), dropped), (REPORT_EVENTS_MAX, 10));
        assert_eq!(again[0].details["reason"], "0");
    }

    #[test]
    fn the_last_traces_that_ended_are_remembered_latest_first() {
        let collector = Collector::default();
        let traces: Vec<TraceId> = (0..ENDED_MAX + 7).map(|_| TraceId::generate()).collect();
        for trace in &traces {
            let (outcome, latency) = (Outcome::Done, Duration::from_secs(1));
            collector.observe(&[event(*trace, FlowEventKind::TraceEnd { outcome, latency })]);
        }
        let ended = collector.ended("support");
        assert_eq!(
            (ended.len(), ended[0].trace),
            (ENDED_MAX, traces[ENDED_MAX + 6])
        );
        assert!(collector.ended("other").is_empty());
    }

    #[test]
    fn traces_that_are_remembered_are_bounded() {
        let collector = Collector::default();
        for _ in 0..TRACES_MAX + 100 {
            collector.belongs(TraceId::generate(), TraceId::generate());
        }
        let kept = collector.0.lock();
        assert_eq!(
            (kept.traces.len(), kept.order.len()),
            (TRACES_MAX, TRACES_MAX)
        );
    }
}
