//! The counters of this crate: names in one place, handles taken once.

use volary_kernel::{
    id::Name,
    metric::{Counter, CounterFamily, Metrics},
};

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

    /// Counters of the answers that messages of `peer` got.
    pub(crate) fn of_peer(metrics: &Metrics, peer: &Name) -> Self {
        let family = peer_received(metrics);
        Self(
            Admission::LABELS
                .iter()
                .map(|label| family.with(&[peer.as_str(), label]))
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

/// Messages that a rate limiter turned back on receipt: `rate_limit_ingress_dropped{bucket}`.
pub(crate) fn rate_limit_ingress_dropped(metrics: &Metrics) -> CounterFamily {
    metrics.counter_family(
        "rate_limit_ingress_dropped",
        "Received messages that a rate limiter turned back, by the empty bucket",
        &["bucket"],
    )
}

/// Messages that a rate limiter turned back on sending: `rate_limit_egress_dropped{bucket}`.
pub(crate) fn rate_limit_egress_dropped(metrics: &Metrics) -> CounterFamily {
    metrics.counter_family(
        "rate_limit_egress_dropped",
        "Sent messages that a rate limiter turned back, by the empty bucket",
        &["bucket"],
    )
}

/// What became of at-most-once messages to a peer: `peer_messages_once{peer, outcome}`.
pub(crate) fn peer_once(metrics: &Metrics) -> CounterFamily {
    metrics.counter_family(
        "peer_messages_once",
        "At-most-once messages to a peer, by what became of them",
        &["peer", "outcome"],
    )
}

/// What became of durable messages to a peer: `peer_messages_sent{peer, outcome}`.
pub(crate) fn peer_sent(metrics: &Metrics) -> CounterFamily {
    metrics.counter_family(
        "peer_messages_sent",
        "Durable messages to a peer, by what an attempt came to",
        &["peer", "outcome"],
    )
}

/// Messages of a peer, by the answer they got: `peer_messages_received{peer, admission}`.
fn peer_received(metrics: &Metrics) -> CounterFamily {
    metrics.counter_family(
        "peer_messages_received",
        "Messages that a peer sent, by the answer they got",
        &["peer", "admission"],
    )
}

/// Messages of a peer that were given their first result again: `peer_messages_repeated{peer}`.
pub(crate) fn peer_repeated(metrics: &Metrics) -> CounterFamily {
    metrics.counter_family(
        "peer_messages_repeated",
        "Messages that a peer sent again and that got their first result",
        &["peer"],
    )
}

/// Messages of a peer that could not be believed: `peer_messages_unverified{peer}`.
pub(crate) fn peer_unverified(metrics: &Metrics) -> CounterFamily {
    metrics.counter_family(
        "peer_messages_unverified",
        "Messages that a peer sent and that were thrown away, because the peer does not vouch for their sender",
        &["peer"],
    )
}

/// Times that the store of a shared rate limit failed: `rate_limit_store_errors`.
pub(crate) fn rate_limit_store_errors(metrics: &Metrics) -> Counter {
    metrics.counter(
        "rate_limit_store_errors",
        "Times that the store of a shared rate limit could not be asked",
    )
}
