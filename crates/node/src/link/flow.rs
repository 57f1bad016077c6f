//! An agent whose work is a flow: everything around it, from the inbox to the acknowledgement.

use std::{collections::BTreeSet, sync::Arc};

use futures_util::FutureExt as _;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use volary_flow::{
    Envelope, Flow, Item, Outcome, RunConfig, RunningFlow, TraceView,
    graph::{Description, Value},
};
use volary_kernel::{Name, Tenant, TraceId};
use volary_ops::api::{FlowAct, FlowRegistration, InboxItem, decode_payload};

use super::{
    Actions, Link, ServeLimits, ServeReport, answer,
    report::Reporter,
    serve::{Ended, Runner, VALUES_MAX, Work},
    signal::Collector,
    steer::{Steered, Steering},
};
use crate::flows::series::ITEMS;

/// A long-lived agent of a fleet that has a flow work on its inbox.
///
/// Each item becomes a trace of the flow: of the agent's tenant, with the message's priority, with the time that is left of
/// its deadline and of its claim, and with an [`super::Origin`] in its meta. What the trace comes to settles the item: done
/// acknowledges it together with what its values ask for, in one commit; a failure brings it back by the agent's back-off,
/// or parks it if no further attempt would do better. A redelivered item is the same trace again, so that its nodes see the
/// same idempotency keys. Chunks are not part of the answer.
///
/// The node is told of the flow and how it does: `volary flow`, `/metrics` and `volary events -f` show it. Operators may look
/// at its traces, cancel, pause and resume them (`volary flow traces|cancel|pause|resume`).
///
/// # Examples
/// ```no_run
/// # async fn run(link: &str, token: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
/// use volary::{
///     flow::{Context, Flow, FlowBuilder, RunConfig},
///     link::{Link, LinkFlow, answer},
/// };
/// let mut b = FlowBuilder::<u64, u64>::new("double");
/// let double = b.node("double", |n: u64, _: Context| async move { Ok(n * 2) });
/// b.ingress(double).egress(double);
///
/// let stop = tokio_util::sync::CancellationToken::new();   // cancel it on SIGTERM
/// LinkFlow::new(Link::open(link, token)?, b.build()?)
///     .answer(|_item, n| answer::publish("doubled", &n))
///     .serve(RunConfig::default(), stop)
///     .await;
/// # Ok(()) }
/// ```
pub struct LinkFlow<I, O> {
    link: Link,
    flow: Flow<I, O>,
    read: super::serve::Read<I>,
    answer: super::serve::Answer<O>,
    limits: ServeLimits,
}

impl<I: Value + DeserializeOwned, O: Value + Serialize> LinkFlow<I, O> {
    /// Reads payloads as JSON, and puts the values of a trace into the journal ([`answer::report`]) unless
    /// [`LinkFlow::answer`] says otherwise.
    pub fn new(link: Link, flow: Flow<I, O>) -> Self {
        Self::with(link, flow, json_of, |_, value| answer::report(&value))
    }
}

impl<I: Value, O: Value> LinkFlow<I, O> {
    /// Reads items and answers them by functions of one's own. An item that cannot be read is parked.
    pub fn with(
        link: Link,
        flow: Flow<I, O>,
        read: impl Fn(&InboxItem) -> Result<I, String> + Send + Sync + 'static,
        answer: impl Fn(&InboxItem, O) -> Actions + Send + Sync + 'static,
    ) -> Self {
        Self {
            link,
            flow,
            read: Arc::new(read),
            answer: Arc::new(answer),
            limits: ServeLimits::default(),
        }
    }

    /// What each value of a trace asks for: it happens with the acknowledgement of the item, or not at all.
    #[must_use]
    pub fn answer(
        mut self,
        answer: impl Fn(&InboxItem, O) -> Actions + Send + Sync + 'static,
    ) -> Self {
        self.answer = Arc::new(answer);
        self
    }

    /// Other bounds than [`ServeLimits::default`].
    #[must_use]
    pub const fn limits(mut self, limits: ServeLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Starts the flow and serves until `stop`; then claims nothing more, lets the flow drain and hands back the rest.
    ///
    /// A node that cannot be reached is asked again with a back-off: its replicas end with it. Dropping this ends the flow at
    /// once; what was claimed comes again when the claims are over.
    pub async fn serve(self, mut config: RunConfig, stop: CancellationToken) -> ServeReport {
        let collector = Arc::new(Collector::default());
        config.observers.push(collector.clone());
        let (metrics, clock) = (config.metrics.clone(), config.clock.clone());
        let description = self.flow.describe().clone();
        let settled = metrics.counter_family(
            ITEMS,
            "Inbox items that a flow has worked on, by what became of them",
            &["flow", "outcome"],
        );
        let reporter = Reporter {
            link: self.link.clone(),
            flows: registrations(&description),
            metrics,
            collector: collector.clone(),
            every: self.limits.report,
            run: watch::channel(None).0,
        };
        let running = self.flow.start(config);
        let steering = Steering {
            link: self.link.clone(),
            flow: description.flow.clone(),
            steered: Arc::new(running.clone()),
            collector: collector.clone(),
            run: reporter.run.subscribe(),
            wait: self.limits.poll,
        };
        let work = Arc::new(Work {
            link: self.link,
            runner: runner(running),
            read: self.read,
            answer: self.answer,
            collector,
            settled,
            flow: description.flow,
            clock,
        });
        let ended = CancellationToken::new();
        let serving = async {
            let report = work.serve(self.limits, stop).await;
            ended.cancel();
            report
        };
        let steering = ended.run_until_cancelled(steering.run());
        let (report, (), _) = futures_util::join!(serving, reporter.run(ended.clone()), steering);
        report
    }
}

impl<I: Value, O: Value> Steered for RunningFlow<I, O> {
    fn traces(&self, most: usize) -> Vec<TraceView> {
        self.traces(most)
    }

    fn act(&self, act: FlowAct, trace: TraceId, tenant: &Tenant) -> bool {
        match act {
            FlowAct::Cancel => self.cancel(trace, tenant).cancelled,
            FlowAct::Pause => self.pause(trace, tenant),
            FlowAct::Resume => self.resume(trace, tenant),
        }
    }
}

/// The payload as JSON.
fn json_of<I: DeserializeOwned>(item: &InboxItem) -> Result<I, String> {
    let encoded = (item.payload.as_deref(), item.payload_base64.as_deref());
    let (_, bytes) =
        decode_payload(encoded.0, encoded.1, None).map_err(|error| error.to_string())?;
    serde_json::from_slice(&bytes).map_err(|error| error.to_string())
}

/// The flow and its sub-flows, each once.
fn registrations(flow: &Description) -> Vec<FlowRegistration> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    let mut open = vec![flow];
    while let Some(flow) = open.pop() {
        let (Ok(name), Ok(description)) = (Name::new(&flow.flow), serde_json::to_value(flow))
        else {
            continue;
        };
        if seen.insert(name.clone()) {
            found.push(FlowRegistration { name, description });
            open.extend(flow.nodes.iter().filter_map(|node| node.subflow.as_deref()));
        }
    }
    found
}

fn runner<I: Value, O: Value>(running: RunningFlow<I, O>) -> Runner<I, O> {
    let stopped = running.clone();
    Runner {
        run: Arc::new(move |envelope| {
            let running = running.clone();
            async move { ended(&running, envelope).await }.boxed()
        }),
        stop: Arc::new(move |limit| {
            let running = stopped.clone();
            async move { running.stop(limit).await }.boxed()
        }),
    }
}

/// Runs a trace to its end. More values than an answer may have are counted, not kept.
pub(crate) async fn ended<I: Value, O: Value>(
    running: &RunningFlow<I, O>,
    envelope: Envelope<I>,
) -> Result<Ended<O>, volary_flow::EmitError> {
    let mut handle = running.emit(envelope).await?;
    let (mut values, mut surplus) = (Vec::new(), 0_usize);
    while let Some(item) = handle.next().await {
        match item {
            Item::Value(value) if values.len() < VALUES_MAX => values.push(value),
            Item::Value(_) => surplus += 1,
            Item::Chunk(_) => {}
        }
    }
    let outcome: Outcome = handle.outcome().await;
    Ok(Ended {
        values,
        surplus,
        outcome,
    })
}

#[cfg(test)]
mod tests {
    use volary_flow::{Context, FlowBuilder, RunConfig};
    use volary_kernel::metric::{Metrics, SampleValue};
    use volary_ops::api::ItemKind;

    use super::*;
    use crate::flows::series::{self, Kind};

    fn flow() -> Flow<u64, u64> {
        let mut inner = FlowBuilder::<u64, u64>::new("inner");
        let node = inner.node("add", |n: u64, _: Context| async move { Ok(n + 1) });
        inner.ingress(node).egress(node);
        let mut b = FlowBuilder::new("outer");
        let sub = b.subflow("inner", inner.build().unwrap());
        b.ingress(sub).egress(sub);
        b.build().unwrap()
    }

    #[tokio::test]
    async fn the_node_knows_every_series_of_a_flow() {
        let metrics = Metrics::default();
        let config = RunConfig {
            metrics: metrics.clone(),
            ..RunConfig::default()
        };
        let running = flow().start(config);
        assert_eq!(running.call(Envelope::new(1)).await.unwrap(), 2);
        let samples = metrics.samples("flow_");
        assert!(samples.len() > 20, "{}", samples.len());
        for sample in samples {
            let known = series::find(&sample.name);
            let (_, known) =
                known.unwrap_or_else(|| panic!("{} is not carried to the node", sample.name));
            let kind = match sample.value {
                SampleValue::Counter(_) => Kind::Counter,
                SampleValue::Gauge(_) => Kind::Gauge,
                SampleValue::Histogram(counted) => {
                    assert_eq!(counted.counts.len(), series::BOUNDS.len() + 1);
                    Kind::Histogram
                }
            };
            let labels = sample.labels.iter().map(|(label, _)| *label);
            let labels: Vec<&str> = labels.filter(|label| *label != "tenant").collect();
            assert_eq!(
                (kind, labels.as_slice()),
                (known.kind, known.labels),
                "{}",
                sample.name
            );
        }
    }

    #[test]
    fn sub_flows_are_registered_too() {
        let names: Vec<String> = registrations(flow().describe())
            .iter()
            .map(|flow| flow.name.to_string())
            .collect();
        assert_eq!(names, ["outer", "inner"]);
    }

    #[test]
    fn a_payload_is_read_as_json_or_refused_with_the_reason() {
        let mut item: InboxItem = serde_json::from_value(serde_json::json!({
            "id": "1", "kind": "message", "sender": "a", "tenant": "default", "attempt": 1, "idempotency_key": "k",
            "redelivered": false, "payload": 7,
        }))
        .unwrap();
        assert_eq!(item.kind, ItemKind::Message);
        assert_eq!(json_of::<u64>(&item), Ok(7));
        assert!(
            json_of::<String>(&item)
                .unwrap_err()
                .contains("expected a string")
        );
        (item.payload, item.payload_base64) = (None, Some("Nw==".to_owned()));
        assert_eq!(json_of::<u64>(&item), Ok(7));
    }
}
