//! Flows that agents run in processes of their own, as the node knows them: who runs which, and how they do.
//!
//! ```text
//!  agent: flow ──▶ metrics, events ──▶ reporter ──POST /v1/flows, /report──▶ Book ──▶ volary_flow_* in /metrics
//!                                                                              └────▶ signals in the live feed
//!         traces ◀── controller ◀── orders, answers ──POST /v1/flows/control── Desks ◀──── operators
//! ```

mod book;
mod desk;
pub(crate) mod series;

use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use volary_deploy::supervise::{Handle, ReplicaStatus};
use volary_kernel::{
    Mono, Name, Tenant, Timestamp, clock,
    metric::{CounterFamily, GaugeFamily, HistogramFamily, Metrics},
    task::TaskResult,
};
use volary_ops::{
    LinkPeer, Signals,
    api::{
        Event, FlowAsk, FlowControl, FlowOrder, FlowRegistration, FlowReport, FlowReportReply,
        FlowSaid, FlowSignal, FlowSummary, FlowView,
    },
};

pub(crate) use self::book::{NotShown, Process, Refused};
use self::{
    book::{Book, By, Change},
    desk::Desks,
    series::{BOUNDS, Kind, SERIES, SIGNALS_DROPPED},
};

/// Most events of one report.
pub(crate) const REPORT_EVENTS_MAX: usize = 256;
/// Longest text of an event, in characters.
const TEXT_MAX: usize = 512;
/// How long the processes that are asked something have to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// Most details of an event.
const DETAILS_MAX: usize = 8;

/// What a node knows of flows. One per node.
pub(crate) struct Flows {
    book: Mutex<Book>,
    desks: Desks,
    families: Vec<Family>,
    signals: Signals,
    node: String,
}

enum Family {
    Counter(CounterFamily),
    Gauge(GaugeFamily),
    Histogram(HistogramFamily),
}

impl Flows {
    pub(crate) fn new(metrics: &Metrics, signals: Signals, node: &Name) -> Self {
        let family = |series: &series::Series| {
            let labels: Vec<&'static str> =
                ["agent"].iter().chain(series.labels).copied().collect();
            let (name, help) = (series.name, series.help);
            match series.kind {
                Kind::Counter => Family::Counter(metrics.counter_family(name, help, &labels)),
                Kind::Gauge => Family::Gauge(metrics.gauge_family(name, help, &labels)),
                Kind::Histogram => {
                    Family::Histogram(metrics.histogram_family(name, help, &labels, BOUNDS))
                }
            }
        };
        Self {
            book: Mutex::default(),
            desks: Desks::default(),
            families: SERIES.iter().map(family).collect(),
            signals,
            node: node.to_string(),
        }
    }

    /// See [`Book::register`].
    pub(crate) fn register(
        &self,
        peer: &LinkPeer,
        process: Process,
        flows: Vec<FlowRegistration>,
        at: Timestamp,
    ) -> Result<String, Refused> {
        let mut book = self.book.lock();
        let (run, changes) = book.register(peer, process, flows, at)?;
        self.apply(changes);
        self.desks.open(&peer.replica, &run);
        self.desks.keep(|replica| book.has_run(replica));
        Ok(run)
    }

    /// Takes a report in: its series, and as many of its events as may be shown.
    pub(crate) fn report(
        &self,
        peer: &LinkPeer,
        report: FlowReport,
        now: Mono,
    ) -> Result<FlowReportReply, Refused> {
        let found = report.events.len();
        if found > REPORT_EVENTS_MAX {
            let (what, limit) = ("events of one report", REPORT_EVENTS_MAX);
            return Err(Refused::TooMany { what, found, limit });
        }
        let mut book = self.book.lock();
        for event in &report.events {
            check(event, book.has(peer, &event.flow))?;
        }
        let changes = book.report(peer, &report.run, report.series)?;
        let shown = book.show(peer, &report.run, found, now)?;
        self.apply(changes);
        drop(book);
        let mut events = report.events.into_iter();
        for event in events.by_ref().take(shown) {
            self.signals.emit(self.event(peer, event));
        }
        for event in events {
            self.left_out(peer, event.flow.as_str(), 1);
        }
        if report.events_dropped > 0 {
            self.left_out(peer, volary_kernel::metric::OTHER, report.events_dropped);
        }
        Ok(FlowReportReply {
            shown,
            dropped: found - shown,
        })
    }

    /// See [`Book::list`].
    pub(crate) fn list(&self) -> Vec<FlowSummary> {
        self.book.lock().list()
    }

    /// See [`Book::view`].
    pub(crate) fn view(&self, name: &Name, agent: Option<&Name>) -> Result<FlowView, NotShown> {
        self.book.lock().view(name, agent)
    }

    /// Asks every process that runs this flow, or any, of this agent and of this tenant, if they are given. Each answers
    /// within a while, or not.
    ///
    /// # Errors
    /// [`NotShown::Unknown`] if there is none.
    pub(crate) async fn ask(
        &self,
        (flow, agent, tenant): (Option<&Name>, Option<&Name>, Option<&Tenant>),
        ask: &FlowAsk,
    ) -> Result<Vec<(LinkPeer, Option<FlowSaid>)>, NotShown> {
        let runs = {
            let book = self.book.lock();
            let runs = book.runs(flow, agent, tenant);
            if runs.is_empty() {
                return Err(NotShown::Unknown(book.names()));
            }
            runs
        };
        let one = |peer: LinkPeer| {
            let answered = self
                .desks
                .ask(&peer.replica, peer.tenant.clone(), ask.clone());
            async move {
                let said = match answered {
                    Some(answered) => clock::timeout(ANSWER, answered).await,
                    None => return (peer, None),
                };
                (peer, said.ok().and_then(Result::ok))
            }
        };
        Ok(join_all(runs.into_iter().map(one)).await)
    }

    /// Takes what a process answers, and waits for what it is asked next.
    ///
    /// # Errors
    /// [`Refused::Ended`].
    pub(crate) async fn control(
        &self,
        peer: &LinkPeer,
        control: FlowControl,
        wait: Duration,
    ) -> Result<Vec<FlowOrder>, Refused> {
        let FlowControl { run, answers, .. } = control;
        let orders = if self.desks.answer(&peer.replica, &run, answers) {
            self.desks.orders(&peer.replica, &run, wait).await
        } else {
            None
        };
        orders.ok_or_else(|| Refused::Ended(run.chars().take(TEXT_MAX).collect()))
    }

    /// Forgets the flows of processes that have ended, until `stop`.
    pub(crate) async fn follow(&self, replicas: Handle, stop: CancellationToken) -> TaskResult {
        let mut seen = replicas.watch();
        loop {
            let now = seen.borrow_and_update().clone();
            self.sweep(&now);
            let changed = stop.run_until_cancelled(seen.changed()).await;
            if !matches!(changed, Some(Ok(()))) {
                return Ok(());
            }
        }
    }

    fn sweep(&self, now: &[ReplicaStatus]) {
        let alive =
            |replica: &Name, process: Process| process_of(now, replica.as_str()) == Some(process);
        let mut book = self.book.lock();
        let changes = book.sweep(alive);
        self.apply(changes);
        self.desks.keep(|replica| book.has_run(replica));
    }

    /// Called with the book locked, so that gauges are set in the order in which they changed.
    fn apply(&self, changes: Vec<Change>) {
        for change in changes {
            let labels: Vec<&str> = change.labels.iter().map(String::as_str).collect();
            match (&self.families[change.series], change.by) {
                (Family::Counter(family), By::Add(more)) => {
                    family.with(&labels).inc_by(more);
                }
                (Family::Gauge(family), By::Set(value)) => {
                    family.with(&labels).set(value);
                }
                (Family::Histogram(family), By::Count(counted)) => {
                    let fits = family.with(&labels).add(&counted);
                    debug_assert!(fits, "the book checks the number of buckets");
                }
                _ => debug_assert!(false, "the book knows the kinds"),
            }
        }
    }

    fn left_out(&self, peer: &LinkPeer, flow: &str, count: u64) {
        let index = series::find(SIGNALS_DROPPED).map(|(index, _)| index);
        if let Some(Family::Counter(family)) = index.map(|index| &self.families[index]) {
            family.with(&[peer.agent.as_str(), flow]).inc_by(count);
        }
    }

    fn event(&self, peer: &LinkPeer, signal: FlowSignal) -> Event {
        let mut body = serde_json::Map::new();
        body.insert("v".to_owned(), 1.into());
        body.insert("flow".to_owned(), signal.flow.to_string().into());
        if let Some(node) = &signal.node {
            body.insert("node".to_owned(), node.to_string().into());
        }
        body.insert("replica".to_owned(), peer.replica.to_string().into());
        if let Some(attempt) = signal.attempt {
            body.insert("attempt".to_owned(), attempt.into());
        }
        for (key, value) in signal.details {
            let text: String = value.chars().take(TEXT_MAX).collect();
            body.entry(key).or_insert_with(|| text.into());
        }
        Event {
            seq: None,
            at: signal.at,
            node: self.node.clone(),
            kind: format!("flow.{}", signal.kind),
            tenant: peer.tenant.clone(),
            agent: Some(peer.agent.clone()),
            trace: signal.trace,
            cause: None,
            body: serde_json::value::to_raw_value(&body).ok(),
        }
    }
}

/// The process that a replica has now.
pub(crate) fn process_of(replicas: &[ReplicaStatus], replica: &str) -> Option<Process> {
    let status = replicas.iter().find(|status| status.replica == replica)?;
    Some(Process {
        pid: status.pid?,
        started_at: status.started_at,
    })
}

fn check(event: &FlowSignal, known: bool) -> Result<(), Refused> {
    let snake = |word: &str| {
        let fits = |c: u8| c.is_ascii_lowercase() || c == b'_';
        (1..=32).contains(&word.len()) && word.bytes().all(fits)
    };
    if !known {
        return Err(Refused::Bad(format!(
            "flow `{}` is not registered",
            event.flow
        )));
    }
    if !snake(&event.kind) || !event.details.keys().all(|key| snake(key)) {
        let problem =
            "kinds and details of events are words like `node_failed`, at most 32 letters";
        return Err(Refused::Bad(problem.to_owned()));
    }
    if event.details.len() > DETAILS_MAX {
        let (what, found, limit) = ("details of an event", event.details.len(), DETAILS_MAX);
        return Err(Refused::TooMany { what, found, limit });
    }
    Ok(())
}
