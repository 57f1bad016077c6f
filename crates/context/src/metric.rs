//! The metrics of this domain, named in one place.

use std::time::Duration;

use volary_kernel::{
    Name,
    metric::{Counter, CounterFamily, Gauge, Histogram, Metrics, SECONDS},
};

use crate::page::KindName;

/// The metrics of one mapped source.
#[derive(Debug, Clone)]
pub(crate) struct SourceMetrics {
    changes: [Counter; 3],
    pub dispatched: Counter,
    pub refused: Counter,
    pub pages: Gauge,
    pub waiting: Gauge,
    pub settle: Histogram,
    pub rescans: Counter,
    pub restarts: Counter,
    problems: CounterFamily,
    source: Name,
}

impl SourceMetrics {
    pub(crate) fn new(metrics: &Metrics, source: &Name) -> Self {
        let name = source.as_str();
        let labels = &["source"];
        let changes = metrics.counter_family(
            "context_changes",
            "Changes of pages that were committed",
            &["source", "kind"],
        );
        let dispatches = metrics.counter_family(
            "context_dispatches",
            "Changes put into inboxes, or refused for good",
            &["source", "outcome"],
        );
        Self {
            changes: [KindName::Added, KindName::Replaced, KindName::Invalidated]
                .map(|kind| changes.with(&[name, kind.as_str()])),
            dispatched: dispatches.with(&[name, "enqueued"]),
            refused: dispatches.with(&[name, "refused"]),
            pages: metrics
                .gauge_family("context_pages", "Pages that exist", labels)
                .with(&[name]),
            waiting: metrics
                .gauge_family(
                    "context_changes_waiting",
                    "Changes that wait because an inbox is full",
                    labels,
                )
                .with(&[name]),
            settle: metrics
                .histogram_family(
                    "context_settle_seconds",
                    "From a change's first sign until it was told",
                    labels,
                    &SECONDS,
                )
                .with(&[name]),
            rescans: metrics
                .counter_family(
                    "context_rescans",
                    "Looks at everything after lost notifications",
                    labels,
                )
                .with(&[name]),
            restarts: metrics
                .counter_family(
                    "context_watcher_restarts",
                    "Watchers that failed and were started again",
                    labels,
                )
                .with(&[name]),
            problems: metrics.counter_family(
                "context_page_problems",
                "Pages left out or escaped, by problem",
                &["source", "problem"],
            ),
            source: source.clone(),
        }
    }

    pub(crate) fn changed(&self, kind: KindName, settled_for: Duration) {
        self.changes[match kind {
            KindName::Added => 0,
            KindName::Replaced => 1,
            KindName::Invalidated => 2,
        }]
        .inc();
        match kind {
            KindName::Added => self.pages.inc(),
            KindName::Replaced => 0,
            KindName::Invalidated => self.pages.dec(),
        };
        self.settle.observe(settled_for.as_secs_f64());
    }

    pub(crate) fn problem(&self, code: &str) {
        self.problems.with(&[self.source.as_str(), code]).inc();
    }
}
