//! The runtime's metrics, under the names of the seed: taken once, so that a clash is known before anything runs.

use std::time::Duration;

use volary_kernel::{
    collector::{CollectError, FloatGauge, Measured, MetricsCollector},
    metric::Counter,
};

use super::event::Unverified;

/// Handles of the runtime's metrics.
#[derive(Clone)]
pub(super) struct Counts {
    pub(super) received: Counter,
    pub(super) sent: Counter,
    pub(super) not_sent: Counter,
    pub(super) decisions: Counter,
    pub(super) denied: Counter,
    pub(super) failed_decisions: Counter,
    pub(super) tools: Counter,
    pub(super) tool_timeouts: Counter,
    pub(super) failures: Counter,
    pub(super) unhandled: Counter,
    unverified: [Counter; 4],
    pub(super) inbox_depth: FloatGauge,
    pub(super) consecutive_failures: FloatGauge,
    decide_seconds: Measured,
}

/// By reason.
const UNVERIFIED: &str = "messages_unverified_total";

const REASONS: [Unverified; 4] = [
    Unverified::UnknownSender,
    Unverified::Revoked,
    Unverified::WrongName,
    Unverified::Repeated,
];

/// Name and HELP of every metric of a runtime.
const HELP: [(&str, &str); 15] = [
    ("pool_size", "Members of the pools that the agent is in"),
    (
        "messages_received",
        "Messages handed to the agent's inbox after verification and hooks",
    ),
    (
        "messages_sent",
        "Messages of the agent that were taken by everybody they were for",
    ),
    (
        "messages_not_sent_total",
        "Messages of the agent that were refused, dropped or had no route",
    ),
    ("decisions_executed", "Decisions that were carried out"),
    (
        "decisions_denied_total",
        "Decisions and tool runs that the policy denied",
    ),
    (
        "decisions_failed_total",
        "Decisions that could not be carried out",
    ),
    ("tools_invoked", "Tool runs begun"),
    (
        "tool_timeouts_total",
        "Tool runs cancelled because their time was over",
    ),
    (
        "agent_failures_total",
        "Failures, panics and time-outs of the agent's methods",
    ),
    (
        "messages_unhandled_total",
        "Messages received but given up or left at the stop",
    ),
    (
        "messages_unverified_total",
        "Messages dropped because their sender could not be verified",
    ),
    ("inbox_depth", "Messages waiting in the agent's inbox"),
    (
        "agent_consecutive_failures",
        "Failures of the agent since it last worked",
    ),
    ("decide_seconds", "Time that decide took"),
];

impl Counts {
    pub(super) fn new(metrics: &MetricsCollector) -> Result<Self, CollectError> {
        for (name, help) in HELP {
            metrics.describe(name, help);
        }
        let counter = |name| metrics.counter(name, &[]);
        let unverified =
            |reason: Unverified| metrics.counter(UNVERIFIED, &[("reason", reason.as_str())]);
        let [unknown, revoked, wrong_name, repeated] = REASONS.map(unverified);
        Ok(Self {
            received: counter("messages_received")?,
            sent: counter("messages_sent")?,
            not_sent: counter("messages_not_sent_total")?,
            decisions: counter("decisions_executed")?,
            denied: counter("decisions_denied_total")?,
            failed_decisions: counter("decisions_failed_total")?,
            tools: counter("tools_invoked")?,
            tool_timeouts: counter("tool_timeouts_total")?,
            failures: counter("agent_failures_total")?,
            unhandled: counter("messages_unhandled_total")?,
            unverified: [unknown?, revoked?, wrong_name?, repeated?],
            inbox_depth: metrics.gauge("inbox_depth", &[])?,
            consecutive_failures: metrics.gauge("agent_consecutive_failures", &[])?,
            decide_seconds: metrics.histogram("decide_seconds", &[])?,
        })
    }

    pub(super) fn unverified(&self, reason: Unverified) {
        let place = REASONS.iter().position(|known| *known == reason);
        if let Some(counter) = place.and_then(|place| self.unverified.get(place)) {
            counter.inc();
        }
    }

    pub(super) fn decided_in(&self, took: Duration) {
        self.decide_seconds.observe(took.as_secs_f64());
    }
}
