//! The metrics of flows on their way from an agent's process to its node: which there are, and with which labels. Pure.
//!
//! A closed list, so that an agent cannot make series of its own on the node. In the node each has the label `agent` in front
//! of those given here; an agent's tenant is one, so the label `tenant` of its own process is left out.

use volary_kernel::metric::SECONDS;

/// What a series is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down; those of several replicas are added up.
    Gauge,
    /// Counts by size, with the bounds of [`SECONDS`].
    Histogram,
}

/// One name.
#[derive(Debug)]
pub(crate) struct Series {
    /// Without prefix and `_total`.
    pub name: &'static str,
    pub help: &'static str,
    pub kind: Kind,
    /// Beside `agent`.
    pub labels: &'static [&'static str],
}

const FLOW: &[&str] = &["flow"];
const NODE: &[&str] = &["flow", "node"];
const OUTCOME: &[&str] = &["flow", "outcome"];

const fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Series {
    Series {
        name,
        help,
        kind: Kind::Counter,
        labels,
    }
}

/// All of them.
pub(crate) const SERIES: &[Series] = &[
    counter("flow_node_success", NODE, "Attempts that succeeded"),
    counter("flow_node_error", NODE, "Attempts that failed or panicked"),
    counter("flow_node_timeout", NODE, "Attempts that timed out"),
    counter("flow_node_retry", NODE, "Attempts after the first"),
    counter("flow_node_failed", NODE, "Messages without attempts left"),
    counter(
        "flow_node_blocked",
        NODE,
        "Times a node was found holding its thread",
    ),
    Series {
        name: "flow_node_seconds",
        help: "Time of attempts",
        kind: Kind::Histogram,
        labels: &["flow", "node", "outcome"],
    },
    Series {
        name: "flow_queue_depth",
        help: "Messages that wait before (in) and behind (out) a node",
        kind: Kind::Gauge,
        labels: &["flow", "node", "direction"],
    },
    Series {
        name: IN_FLIGHT,
        help: "Traces accepted and not ended",
        kind: Kind::Gauge,
        labels: FLOW,
    },
    counter("flow_traces_accepted", FLOW, "Traces accepted"),
    counter(ENDED, OUTCOME, "Traces ended, by outcome"),
    counter(
        "flow_trace_cancel_start",
        FLOW,
        "Cancels of a trace that were accepted",
    ),
    counter(
        "flow_trace_cancel_finish",
        FLOW,
        "Cancelled traces of which nothing is left",
    ),
    counter(
        "flow_deadline_skip",
        FLOW,
        "Messages not run because their deadline had passed",
    ),
    counter(
        "flow_late_results",
        FLOW,
        "Attempts that came back after their trace had ended",
    ),
    counter(
        "flow_events_dropped",
        FLOW,
        "Events that observers were not told of because they were slow",
    ),
    counter(
        "flow_observer_panics",
        FLOW,
        "Panics of observers, contained",
    ),
    counter(
        "flow_results_expired",
        FLOW,
        "Ended traces that nobody fetched in time",
    ),
    counter(
        ITEMS,
        OUTCOME,
        "Inbox items that a flow has worked on, by what became of them",
    ),
    counter(
        SIGNALS_DROPPED,
        FLOW,
        "Events left out of the live feed because there were too many",
    ),
];

/// Shows how many traces are under way.
pub(crate) const IN_FLIGHT: &str = "flow_traces_inflight";
/// Counts traces by outcome.
pub(crate) const ENDED: &str = "flow_traces_ended";

/// Counts what the bridge between inbox and flow settled.
pub(crate) const ITEMS: &str = "flow_items";
/// Counts events that did not get into the live feed.
pub(crate) const SIGNALS_DROPPED: &str = "flow_signals_dropped";

/// Bounds of every histogram among them.
pub(crate) const BOUNDS: &[f64] = &SECONDS;

/// The series of this name, with its place in [`SERIES`].
pub(crate) fn find(name: &str) -> Option<(usize, &'static Series)> {
    SERIES
        .iter()
        .enumerate()
        .find(|(_, series)| series.name == name)
}
