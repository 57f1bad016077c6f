//! The loop between an agent's inbox and a flow.
//!
//! One task claims and settles; as many items are in work as [`ServeLimits::concurrency`] says, and no more are claimed than
//! there is room for. A stop claims nothing more, lets the flow drain, and hands back what it could not finish.

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio_util::sync::CancellationToken;
use volary_flow::{EmitError, Envelope, Outcome, StopReport};
use volary_kernel::{
    Mono, SharedClock, TraceId, clock,
    metric::CounterFamily,
    retry::{Backoff, random_unit},
};
use volary_ops::{
    api::{AckRequest, Action, DurationText, InboxItem, NackRequest},
    client::ClientError,
};

use super::{Link, Origin, Treatment, envelope, signal::Collector, verdict::Verdict};

/// Most values of one trace that are kept for its answer.
pub(super) const VALUES_MAX: usize = 1_024;
/// How long a claim holds if the node does not say.
const HOLDS: Duration = Duration::from_secs(30);
/// Time that is left for the answer before a claim lapses, at most a tenth of it.
const MARGIN: Duration = Duration::from_secs(1);
/// Time to hand back what a stop left.
const HAND_BACK: Duration = Duration::from_secs(5);

/// What a value of a flow asks for, or why it cannot be made.
pub type Actions = Result<Vec<Action>, String>;

/// Bounds of a [`LinkFlow`](super::LinkFlow).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServeLimits {
    /// Most items in work at once, 1 to 1,000; default 16. More replicas or a higher number, as the flow's own bounds allow.
    pub concurrency: usize,
    /// How long one question for items waits at the node; default 20 s.
    pub poll: Duration,
    /// How long a stop lets the flow go on; default 10 s, as long as a manifest's `stopGracePeriod` lets it.
    pub drain: Duration,
    /// How often the node is told how the flow does; default 1 s.
    pub report: Duration,
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self {
            concurrency: 16,
            poll: Duration::from_secs(20),
            drain: Duration::from_secs(10),
            report: Duration::from_secs(1),
        }
    }
}

/// What a [`LinkFlow`](super::LinkFlow) did until it was stopped.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServeReport {
    /// Items acknowledged.
    pub acked: u64,
    /// Items that come again.
    pub retried: u64,
    /// Items that wait for a person.
    pub given_up: u64,
    /// Items whose claim was over before they could be settled: they come again.
    pub lapsed: u64,
    /// What the flow itself left.
    pub flow: StopReport,
}

/// What a trace came to.
pub(crate) struct Ended<O> {
    pub values: Vec<O>,
    /// Values beyond [`VALUES_MAX`], which are gone.
    pub surplus: usize,
    pub outcome: Outcome,
}

pub(super) type Run<I, O> =
    Arc<dyn Fn(Envelope<I>) -> BoxFuture<'static, Result<Ended<O>, EmitError>> + Send + Sync>;
pub(super) type Stop = Arc<dyn Fn(Duration) -> BoxFuture<'static, StopReport> + Send + Sync>;
pub(super) type Read<I> = Arc<dyn Fn(&InboxItem) -> Result<I, String> + Send + Sync>;
pub(super) type Answer<O> = Arc<dyn Fn(&InboxItem, O) -> Actions + Send + Sync>;

/// What runs traces: a running flow.
pub(super) struct Runner<I, O> {
    pub run: Run<I, O>,
    pub stop: Stop,
}

/// What the items in work share.
pub(super) struct Work<I, O> {
    pub link: Link,
    pub runner: Runner<I, O>,
    pub read: Read<I>,
    pub answer: Answer<O>,
    pub collector: Arc<Collector>,
    pub settled: CounterFamily,
    pub flow: String,
    pub clock: SharedClock,
}

/// How an item was settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Settled {
    Acked,
    Retried,
    GivenUp,
    Lapsed,
}

impl Settled {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Acked => "acked",
            Self::Retried => "retried",
            Self::GivenUp => "given_up",
            Self::Lapsed => "lapsed",
        }
    }
}

type Claiming = BoxFuture<'static, (Mono, Result<Vec<InboxItem>, ClientError>)>;

impl<I: Send + 'static, O: Send + 'static> Work<I, O> {
    /// Serves until `stop`.
    pub(super) async fn serve(
        self: Arc<Self>,
        limits: ServeLimits,
        stop: CancellationToken,
    ) -> ServeReport {
        let most = limits.concurrency.clamp(1, 1_000);
        let mut report = ServeReport::default();
        let mut in_work = FuturesUnordered::new();
        let mut claiming: Option<Claiming> = None;
        let mut failures = 0;
        loop {
            let free = most.saturating_sub(in_work.len());
            if claiming.is_none() && free > 0 {
                claiming = Some(self.claim(free, limits.poll, failures));
            }
            let claimed = async {
                match &mut claiming {
                    Some(claiming) => claiming.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(settled) = in_work.next() => count(&mut report, settled),
                (at, items) = claimed => {
                    claiming = None;
                    match items {
                        Ok(items) => {
                            failures = 0;
                            in_work.extend(items.into_iter().map(|item| self.clone().settle(item, at)));
                        }
                        Err(error) => {
                            failures += 1;
                            tracing::warn!(flow = self.flow, %error, failures, "no items could be claimed");
                        }
                    }
                }
            }
        }
        // What is claimed by a question that is dropped here is free again at the node.
        drop(claiming);
        let stopping = (self.runner.stop)(limits.drain);
        let settling = async {
            while let Some(settled) = in_work.next().await {
                count(&mut report, settled);
            }
        };
        let settling = clock::timeout(limits.drain + HAND_BACK, settling);
        let (left, settled) = futures_util::join!(stopping, settling);
        report.flow = left;
        if settled.is_err() {
            tracing::warn!(
                flow = self.flow,
                "some items could not be handed back; they come again when their claims are over"
            );
        }
        report
    }

    /// Claims up to `free` items, after a back-off if the last question failed.
    fn claim(&self, free: usize, poll: Duration, failures: u32) -> Claiming {
        let (link, clock) = (self.link.clone(), self.clock.clone());
        async move {
            if failures > 0 {
                clock::sleep(Backoff::default().delay(failures, random_unit())).await;
            }
            let items = link.next(u32::try_from(free).unwrap_or(1), poll).await;
            (clock.mono(), items)
        }
        .boxed()
    }

    async fn settle(self: Arc<Self>, item: InboxItem, claimed: Mono) -> Settled {
        let holds = item.holds_for.map_or(HOLDS, |holds| holds.0);
        let until = claimed + holds;
        let (mut verdict, mut actions) = self
            .work(&item, claimed + (holds - MARGIN.min(holds / 10)))
            .await;
        let mut failures = 0;
        let settled = loop {
            let (error, answered) = match self.tell(&item, &verdict, &actions).await {
                Ok(settled) => break settled,
                Err(error) => (error.is_transient(), error),
            };
            if answered.status() == Some(409) {
                tracing::warn!(
                    flow = self.flow,
                    item = item.id,
                    "a trace ended after the claim of its item"
                );
                break Settled::Lapsed;
            }
            if !error && verdict == Verdict::Ack {
                // The node will never take this answer.
                verdict = Verdict::of_answer(&answered.to_string());
                actions = Vec::new();
                continue;
            }
            failures += 1;
            let wait = Backoff::default().delay(failures, random_unit());
            if !error || self.clock.mono() + wait >= until {
                tracing::warn!(flow = self.flow, item = item.id, error = %answered, "an item could not be settled; it comes again");
                break Settled::Lapsed;
            }
            clock::sleep(wait).await;
        };
        self.settled.with(&[&self.flow, settled.as_str()]).inc();
        settled
    }

    /// Has the flow work on the item.
    async fn work(&self, item: &InboxItem, until: Mono) -> (Verdict, Vec<Action>) {
        let payload = match (self.read)(item) {
            Ok(payload) => payload,
            Err(problem) => return (Verdict::of_payload(&problem), Vec::new()),
        };
        let origin = origin(item);
        self.collector.belongs(origin.flow_trace(), origin.trace);
        let treatment = Treatment {
            tenant: item.tenant.clone(),
            topic: item.topic.clone(),
            priority: item.priority.unwrap_or_default(),
            deadline: item.deadline,
            limit: Some(until - self.clock.mono()),
        };
        let Some(envelope) = envelope(&origin, treatment, payload, self.clock.wall()) else {
            return (Verdict::of(&Outcome::DeadlineExceeded), Vec::new());
        };
        match (self.runner.run)(envelope).await {
            Ok(ended) => self.judge(item, ended),
            Err(error) => (Verdict::of_refusal(&error), Vec::new()),
        }
    }

    fn judge(&self, item: &InboxItem, ended: Ended<O>) -> (Verdict, Vec<Action>) {
        let verdict = Verdict::of(&ended.outcome);
        if verdict != Verdict::Ack {
            return (verdict, Vec::new());
        }
        if ended.surplus > 0 {
            let problem = format!("it has more than {VALUES_MAX} values");
            return (Verdict::of_answer(&problem), Vec::new());
        }
        let answers = ended
            .values
            .into_iter()
            .map(|value| (self.answer)(item, value));
        match answers.collect::<Result<Vec<_>, _>>() {
            Ok(actions) => (verdict, actions.into_iter().flatten().collect()),
            Err(problem) => (Verdict::of_answer(&problem), Vec::new()),
        }
    }

    async fn tell(
        &self,
        item: &InboxItem,
        verdict: &Verdict,
        actions: &[Action],
    ) -> Result<Settled, ClientError> {
        let nack = |reason: &str, delay: Option<Duration>, give_up| NackRequest {
            id: item.id.clone(),
            delay: delay.map(DurationText),
            reason: Some(reason.to_owned()),
            give_up,
        };
        match verdict {
            Verdict::Ack => {
                let request = AckRequest {
                    id: Some(item.id.clone()),
                    ids: Vec::new(),
                    actions: actions.to_vec(),
                };
                self.link.ack(&request).await.map(|_| Settled::Acked)
            }
            Verdict::Again { reason, delay } => {
                let nacked = self.link.nack(&nack(reason, *delay, false)).await?;
                Ok(if nacked.parked {
                    Settled::GivenUp
                } else {
                    Settled::Retried
                })
            }
            Verdict::GiveUp { reason } => {
                let nacked = self.link.nack(&nack(reason, None, true)).await;
                nacked.map(|_| Settled::GivenUp)
            }
        }
    }
}

fn count(report: &mut ServeReport, settled: Settled) {
    let counter = match settled {
        Settled::Acked => &mut report.acked,
        Settled::Retried => &mut report.retried,
        Settled::GivenUp => &mut report.given_up,
        Settled::Lapsed => &mut report.lapsed,
    };
    *counter += 1;
}

fn origin(item: &InboxItem) -> Origin {
    Origin {
        idempotency_key: item.idempotency_key.clone(),
        trace: item.trace.unwrap_or_else(TraceId::generate),
        sender: item.sender.clone(),
        attempt: item.attempt,
        headers: item.headers.clone(),
    }
}
