//! `flow.logging`: a chain of three nodes with every event logged as JSON to nowhere, and without any observer; one
//! producer.
//!
//! Observing is off the hot path: what the observer cannot keep up with is dropped and counted, so the figure is what
//! logging takes from the flow, and `events` says how many events of each trace were logged. Bar: half of the throughput
//! without; PenguiFlow, which logs each event before it goes on, kept a third.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tracing::{Dispatch, Level, dispatcher};
use volary_flow::RunConfig;
use volary_flow::observe::{
    FlowEvent, LogFlowEvents, Observer, configure_logging, log_flow_events,
};

use super::load::Load;
use super::ours;
use super::recorded::LOGGING;
use crate::figure::{Figure, rounded};
use crate::rounds::{Samples, interleaved};
use crate::{Failure, Plan};

/// Share of the throughput that is left.
const BAR: f64 = 0.5;
/// Nodes in a row.
const NODES: usize = 3;

/// Logs by a subscriber of its own, and counts what it was told.
struct Logged {
    subscriber: Dispatch,
    log: LogFlowEvents,
    events: AtomicU64,
}

impl Logged {
    fn new() -> Self {
        let logging = configure_logging().level(Level::DEBUG).structured(true);
        Self {
            subscriber: Dispatch::new(logging.writer(io::sink).subscriber()),
            log: log_flow_events(),
            events: AtomicU64::new(0),
        }
    }
}

impl Observer for Logged {
    fn observe(&self, events: &[FlowEvent]) {
        dispatcher::with_default(&self.subscriber, || self.log.observe(events));
        self.events
            .fetch_add(events.len() as u64, Ordering::Relaxed);
    }
}

pub fn measure(plan: &Plan) -> Result<Vec<Figure>, Failure> {
    let time = Duration::from_millis(if plan.quick { 150 } else { 1_000 });
    let mut logged = Vec::new();
    let [with, without] = interleaved([
        &mut || {
            let log = Arc::new(Logged::new());
            let rate = rate(time, vec![log.clone()])?;
            let events = log.events.load(Ordering::Relaxed) as f64;
            logged.push(events / (rate * time.as_secs_f64()));
            Ok(rate)
        },
        &mut || rate(time, Vec::new()),
    ])?;
    let logged: Samples = logged.into_iter().collect();
    let figure = Figure::rate("flow.logging", "trace/s", BAR, &with)
        .against_limit(&without)
        .with("events", rounded(logged.median()))
        .with("penguiflow_share", LOGGING);
    Ok(vec![figure])
}

fn rate(time: Duration, observers: Vec<Arc<dyn Observer>>) -> Result<f64, Failure> {
    let flow = ours::chain(NODES)?;
    crate::store::runtime()?.block_on(async {
        let running = flow.start(RunConfig {
            observers,
            ..RunConfig::default()
        });
        let rate = Load::Producer.run(running.clone(), time).await?;
        ours::stop(&running).await?;
        Ok(rate)
    })
}
