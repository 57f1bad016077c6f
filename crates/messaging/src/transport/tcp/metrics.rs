//! The counters of links and listeners.

use volary_kernel::metric::{Counter, CounterFamily, Gauge, Histogram, Metrics, SECONDS};

/// Handles, taken once.
#[derive(Clone)]
pub(super) struct LinkMetrics {
    /// Links that are connected now.
    pub(super) connected: Gauge,
    /// Attempts to connect that failed, by reason.
    pub(super) failed: CounterFamily,
    /// Connections that ended, by reason.
    pub(super) ended: CounterFamily,
    pub(super) frames: Counter,
    pub(super) bytes: Counter,
    /// From a frame's place in the window until its answers.
    pub(super) answered: Histogram,
    /// Frames without answers.
    pub(super) unanswered: Counter,
}

impl LinkMetrics {
    pub(super) fn new(metrics: &Metrics) -> Self {
        Self {
            connected: metrics.gauge("tcp_links_connected", "Links to peers that are connected"),
            failed: metrics.counter_family(
                "tcp_dials_failed",
                "Attempts to connect to a peer that failed, by reason",
                &["reason"],
            ),
            ended: ended(metrics),
            frames: frames(metrics).with(&["sent", "ok"]),
            bytes: bytes(metrics).with(&["sent"]),
            answered: metrics.histogram(
                "tcp_answer_seconds",
                "Time from handing a frame to a link until its answers",
                &SECONDS,
            ),
            unanswered: metrics.counter(
                "tcp_frames_unanswered",
                "Frames whose connection ended before their answers came",
            ),
        }
    }
}

/// Handles, taken once.
#[derive(Clone)]
pub(super) struct ListenerMetrics {
    /// Connections that are there now, those in the handshake included.
    pub(super) connections: Gauge,
    /// Connections that came about.
    pub(super) accepted: Counter,
    /// Connections that did not, by reason.
    pub(super) refused: CounterFamily,
    pub(super) ended: CounterFamily,
    pub(super) taken: Counter,
    /// Frames by what became of them.
    pub(super) frames: CounterFamily,
    pub(super) bytes: Counter,
}

impl ListenerMetrics {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let frames = frames(metrics);
        Self {
            connections: metrics.gauge(
                "tcp_connections",
                "Connections from peers, those in the handshake included",
            ),
            accepted: metrics.counter(
                "tcp_connections_accepted",
                "Connections from peers that passed the handshake",
            ),
            refused: metrics.counter_family(
                "tcp_connections_refused",
                "Connections that did not come about, by reason",
                &["reason"],
            ),
            ended: ended(metrics),
            taken: frames.with(&["received", "ok"]),
            frames,
            bytes: bytes(metrics).with(&["received"]),
        }
    }
}

fn ended(metrics: &Metrics) -> CounterFamily {
    metrics.counter_family(
        "tcp_connections_ended",
        "Connections that ended, by side and reason",
        &["side", "reason"],
    )
}

fn frames(metrics: &Metrics) -> CounterFamily {
    metrics.counter_family(
        "tcp_frames",
        "Sealed frames on connections, by way and by what became of them",
        &["way", "result"],
    )
}

fn bytes(metrics: &Metrics) -> CounterFamily {
    metrics.counter_family(
        "tcp_frame_bytes",
        "Bytes of sealed frames on connections, by way",
        &["way"],
    )
}
