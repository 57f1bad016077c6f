//! The names of this crate's metrics, and the answer of `/metrics`.

use std::time::Duration;

use axum::http::StatusCode;
use volary_kernel::metric::{CounterFamily, Gauge, GaugeFamily, HistogramFamily, Metrics, SECONDS};

use crate::{
    negotiate::{Exposition, exposition},
    process,
    section::Surface,
};

/// Handles of this crate's metrics; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct OpsMetrics {
    all: Metrics,
    requests: CounterFamily,
    seconds: HistogramFamily,
    /// By surface and reason: requests without the right to be made.
    pub(crate) refusals: CounterFamily,
    /// By surface: connections open now.
    pub(crate) connections: GaugeFamily,
    /// By surface and reason: connections ended by us.
    pub(crate) closed: CounterFamily,
    /// By reason: streaming answers that were ended by us or by the client's going.
    pub(crate) streams_ended: CounterFamily,
    /// Event streams open now.
    pub(crate) event_streams: Gauge,
    /// Handlers that panicked.
    pub(crate) panics: CounterFamily,
    /// Signals that a slow stream did not get.
    pub(crate) signals_missed: CounterFamily,
}

impl OpsMetrics {
    pub(crate) fn new(all: &Metrics, version: &str) -> Self {
        let info = all.gauge_family(
            "build_info",
            "Version of the running node; always 1",
            &["version"],
        );
        info.with(&[version]).set(1);
        let by = |name: &str, help: &str, labels: &[&'static str]| {
            all.counter_family(name, help, labels)
        };
        Self {
            all: all.clone(),
            requests: by(
                "http_requests",
                "HTTP requests answered",
                &["surface", "class"],
            ),
            seconds: all.histogram_family(
                "http_request_seconds",
                "Time from the head of a request to the head of its answer",
                &["surface"],
                &SECONDS,
            ),
            refusals: by(
                "http_refusals",
                "HTTP requests refused before any handler",
                &["surface", "reason"],
            ),
            connections: all.gauge_family(
                "http_connections",
                "HTTP connections open",
                &["surface"],
            ),
            closed: by(
                "http_connections_closed",
                "HTTP connections ended by the server",
                &["surface", "reason"],
            ),
            streams_ended: by(
                "http_streams_ended",
                "Streaming answers cut before their end",
                &["reason"],
            ),
            event_streams: all.gauge("event_streams", "Event streams open"),
            panics: by(
                "http_handler_panics",
                "Panics of handlers, each answered with 500",
                &["surface"],
            ),
            signals_missed: by(
                "signals_missed",
                "Live signals that a slow event stream did not get",
                &[],
            ),
        }
    }

    pub(crate) fn answered(&self, surface: Surface, status: StatusCode, took: Duration) {
        let class = match status.as_u16() / 100 {
            1 => "1xx",
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            _ => "5xx",
        };
        self.requests.with(&[surface.as_str(), class]).inc();
        self.seconds
            .with(&[surface.as_str()])
            .observe(took.as_secs_f64());
    }

    /// Content type and text of `/metrics`, in the form that `accept` asks for.
    pub(crate) fn scrape(&self, accept: Option<&str>) -> (&'static str, String) {
        let form = exposition(accept);
        let figures = process::exposition(form);
        let text = match form {
            Exposition::Text => self.all.encode_text() + &figures,
            Exposition::OpenMetrics => {
                let all = self.all.encode_openmetrics();
                format!(
                    "{}{figures}# EOF\n",
                    all.strip_suffix("# EOF\n").unwrap_or(&all)
                )
            }
        };
        (form.content_type(), text)
    }
}
