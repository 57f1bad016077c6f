//! The counters of this crate: names in one place, handles taken once.

use volary_kernel::metric::{Counter, CounterFamily, Metrics};

use crate::admission::Admission;

/// One counter for each word of [`Admission::label`].
#[derive(Debug, Clone)]
pub(crate) struct AdmissionCounters(Vec<Counter>);

impl AdmissionCounters {
    /// Counters of sends over one way (`local`, `durable`).
    pub(crate) fn new(metrics: &Metrics, transport: &'static str) -> Self {
        let family = metrics.counter_family(
            "messages_sent",
            "Messages sent, by transport and by what became of the send",
            &["transport", "admission"],
        );
        Self(
            Admission::LABELS
                .iter()
                .map(|label| family.with(&[transport, label]))
                .collect(),
        )
    }

    pub(crate) fn count(&self, admission: &Admission) {
        self.0[admission.index()].inc();
    }
}

/// Messages that all hooks of a chain passed on: `hooks_passed{stage}`.
pub(crate) fn hooks_passed(metrics: &Metrics) -> CounterFamily {
    metrics.counter_family(
        "hooks_passed",
        "Messages that every hook passed on",
        &["stage"],
    )
}

/// What hooks did other than passing on: `hook_outcomes{hook, stage, outcome}`.
pub(crate) fn hook_outcomes(metrics: &Metrics) -> CounterFamily {
    metrics.counter_family(
        "hook_outcomes",
        "Messages that a hook dropped, refused or failed at",
        &["hook", "stage", "outcome"],
    )
}

/// Messages that an in-memory inbox lost: `inbox_dropped{reason}`.
pub(crate) fn inbox_dropped(metrics: &Metrics) -> CounterFamily {
    metrics.counter_family(
        "inbox_dropped",
        "Messages that an in-memory inbox dropped",
        &["reason"],
    )
}

/// How deliveries were settled: `deliveries_settled{result}`.
pub(crate) fn deliveries_settled(metrics: &Metrics) -> CounterFamily {
    metrics.counter_family(
        "deliveries_settled",
        "Attempts at deliveries, by how they ended",
        &["result"],
    )
}
