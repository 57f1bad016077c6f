//! Tells the node which flows a process runs and how they do: metrics that changed, and events worth a look.
//!
//! A report that fails is made again with what has come since; an agent works on while its node does not listen.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use volary_kernel::{
    clock,
    metric::Metrics,
    retry::{Backoff, random_unit},
};
use volary_ops::{
    api::{FlowRegistration, FlowReport, RegisterFlows},
    client::ClientError,
};

use super::{
    Link,
    delta::{News, Told},
    signal::Collector,
};

/// Most series of one report.
const SERIES_AT_ONCE: usize = 1_000;
/// Time for the last report of a stop.
const LAST: Duration = Duration::from_secs(1);

/// Reports for one process.
pub(super) struct Reporter {
    pub link: Link,
    pub flows: Vec<FlowRegistration>,
    pub metrics: Metrics,
    pub collector: Arc<Collector>,
    pub every: Duration,
    /// Tells the run that is reported for.
    pub run: watch::Sender<Option<String>>,
}

impl Reporter {
    /// Registers and reports until `stop`, and once more then.
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut told = Told::default();
        let mut run = None;
        let mut failures = 0;
        loop {
            let wait = match failures {
                0 if run.is_none() => Duration::ZERO,
                0 => self.every,
                failures => Backoff::default().delay(failures, random_unit()),
            };
            let stopped = stop.run_until_cancelled(clock::sleep(wait)).await.is_none();
            if stopped {
                // What the node does not take now, nobody will be told.
                let _too_late = clock::timeout(LAST, self.turn(&mut run, &mut told)).await;
                return;
            }
            match self.turn(&mut run, &mut told).await {
                Ok(()) => failures = 0,
                Err(error) => {
                    if error.status() == Some(409) {
                        run = None;
                        self.run.send_replace(None);
                    }
                    failures += 1;
                    tracing::debug!(%error, failures, "the node could not be told of the flow");
                }
            }
        }
    }

    async fn turn(&self, run: &mut Option<String>, told: &mut Told) -> Result<(), ClientError> {
        let name = match run {
            Some(name) => name.clone(),
            None => {
                let flows = self.flows.clone();
                let registered = self.link.register_flows(&RegisterFlows { flows }).await?;
                told.begin_run();
                self.run.send_replace(Some(registered.run.clone()));
                run.insert(registered.run).clone()
            }
        };
        let flows = self.flows.iter().map(|flow| flow.name.to_string());
        let news = told.news(self.metrics.samples("flow_"), &flows.collect());
        let (events, dropped) = self.collector.take();
        let sent = self.send(name, &news, events.clone(), dropped).await;
        if let Err(error) = sent {
            self.collector.put_back(events, dropped);
            return Err(error);
        }
        told.taken(news);
        Ok(())
    }

    async fn send(
        &self,
        run: String,
        news: &News,
        events: Vec<volary_ops::api::FlowSignal>,
        events_dropped: u64,
    ) -> Result<(), ClientError> {
        let mut parts = news.series.chunks(SERIES_AT_ONCE);
        let first = parts.next().unwrap_or_default();
        if first.is_empty() && events.is_empty() && events_dropped == 0 {
            return Ok(());
        }
        for part in parts {
            let report = FlowReport {
                run: run.clone(),
                series: part.to_vec(),
                ..FlowReport::default()
            };
            self.link.report_flows(&report).await?;
        }
        let report = FlowReport {
            run,
            series: first.to_vec(),
            events,
            events_dropped,
        };
        self.link.report_flows(&report).await.map(drop)
    }
}
