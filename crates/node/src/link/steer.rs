//! Does to a process's flow what operators ask: lists its traces, cancels, pauses and resumes them. See decision 18.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use volary_flow::{Outcome, TraceView};
use volary_kernel::{
    Tenant, TraceId, clock,
    retry::{Backoff, random_unit},
};
use volary_ops::api::{
    DurationText, FlowAct, FlowAnswer, FlowAsk, FlowControl, FlowOrder, FlowSaid, FlowTrace,
};

use super::{
    Link,
    signal::{Collector, Ended, cut},
};

/// Most living traces of one list.
const LISTED: usize = 1_000;

/// A running flow, whatever it takes and yields.
pub(super) trait Steered: Send + Sync {
    /// The oldest traces that live.
    fn traces(&self, most: usize) -> Vec<TraceView>;

    /// Whether it changed something.
    fn act(&self, act: FlowAct, trace: TraceId, tenant: &Tenant) -> bool;
}

/// Asks the node for orders, and does them.
pub(super) struct Steering {
    pub link: Link,
    pub flow: String,
    pub steered: Arc<dyn Steered>,
    pub collector: Arc<Collector>,
    /// The run that is registered.
    pub run: watch::Receiver<Option<String>>,
    /// How long one question waits.
    pub wait: Duration,
}

impl Steering {
    /// Until it is dropped, or nobody registers any more. An order that was taken is done by then; its answer may be lost.
    pub(super) async fn run(mut self) {
        let (mut answers, mut failures) = (Vec::new(), 0);
        loop {
            let run = match self.run.wait_for(Option::is_some).await {
                Ok(run) => run.clone().unwrap_or_default(),
                Err(_) => return,
            };
            let control = FlowControl {
                run: run.clone(),
                wait: Some(DurationText(self.wait)),
                answers: std::mem::take(&mut answers),
            };
            match self.link.control_flows(&control).await {
                Ok(reply) => {
                    failures = 0;
                    let orders = reply.orders.into_iter();
                    answers = orders.map(|order| self.answer(order)).collect();
                }
                Err(error) if error.status() == Some(409) => {
                    // Whoever asked in that run is gone with it. The reporter registers again.
                    let other = |now: &Option<String>| now.as_ref() != Some(&run);
                    if self.run.wait_for(other).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    answers = control.answers;
                    failures += 1;
                    tracing::debug!(%error, failures, "the node could not be asked what operators want");
                    clock::sleep(Backoff::default().delay(failures, random_unit())).await;
                }
            }
        }
    }

    fn answer(&self, order: FlowOrder) -> FlowAnswer {
        let said = match order.ask {
            FlowAsk::Traces { flow } if flow.as_str() != self.flow => FlowSaid::Refused {
                why: format!(
                    "`{flow}` is a sub-flow here: its traces belong to those of `{}`",
                    self.flow
                ),
            },
            FlowAsk::Traces { .. } => self.list(&order.tenant),
            FlowAsk::Act { act, trace } => self.act(act, trace, &order.tenant),
        };
        FlowAnswer { id: order.id, said }
    }

    fn list(&self, tenant: &Tenant) -> FlowSaid {
        let mut live = self.steered.traces(usize::MAX);
        live.retain(|view| view.tenant == *tenant);
        let more = live.len() > LISTED;
        live.truncate(LISTED);
        let mut traces: Vec<FlowTrace> = live.into_iter().map(|view| self.living(view)).collect();
        let ended = self.collector.ended(&self.flow).into_iter();
        let ended = ended.filter(|ended| ended.tenant == *tenant);
        traces.extend(ended.map(|ended| self.ended(ended)));
        FlowSaid::Traces { traces, more }
    }

    fn act(&self, act: FlowAct, trace: TraceId, tenant: &Tenant) -> FlowSaid {
        let meant = |id: TraceId| id == trace || self.collector.message_of(id) == Some(trace);
        let mut live = self.steered.traces(usize::MAX);
        live.retain(|view| view.tenant == *tenant && meant(view.trace_id));
        let known = !live.is_empty();
        let ids = live.into_iter().map(|view| view.trace_id);
        let acted = ids.filter(|id| self.steered.act(act, *id, tenant));
        let traces: Vec<TraceId> = acted.collect();
        if traces.is_empty() && known {
            let why = match act {
                FlowAct::Cancel => format!("trace {trace} has ended"),
                FlowAct::Pause => format!("trace {trace} is paused already"),
                FlowAct::Resume => format!("trace {trace} is not paused"),
            };
            return FlowSaid::Refused { why };
        }
        let ended = self.collector.ended(&self.flow);
        let mut ended = ended.iter().filter(|ended| ended.tenant == *tenant);
        match ended.find(|ended| meant(ended.trace)) {
            Some(ended) if traces.is_empty() => FlowSaid::Refused {
                why: format!("trace {trace} has ended as {}", ended.outcome.as_str()),
            },
            _ => FlowSaid::Acted {
                flow: self.flow.clone(),
                traces,
            },
        }
    }

    fn living(&self, view: TraceView) -> FlowTrace {
        FlowTrace {
            message_trace: self.collector.message_of(view.trace_id),
            trace: view.trace_id,
            tenant: view.tenant,
            state: if view.paused { "paused" } else { "running" }.to_owned(),
            age: millis(view.age),
            remaining: view.remaining.map(millis),
            nodes: view.nodes,
            ended_at: None,
            reason: None,
        }
    }

    fn ended(&self, ended: Ended) -> FlowTrace {
        FlowTrace {
            message_trace: self.collector.message_of(ended.trace),
            trace: ended.trace,
            tenant: ended.tenant,
            state: ended.outcome.as_str().to_owned(),
            age: millis(ended.latency),
            remaining: None,
            nodes: Vec::new(),
            ended_at: Some(ended.at),
            reason: match &ended.outcome {
                Outcome::Failed(error) => Some(cut(error.to_string())),
                _ => None,
            },
        }
    }
}

/// In whole milliseconds, as nobody reads more of them.
fn millis(time: Duration) -> DurationText {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    DurationText(Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use volary_flow::{Context, FlowBuilder, NodeError, RunConfig, RunningFlow, TraceHandle};
    use volary_kernel::Name;
    use volary_ops::client::Client;

    use super::*;

    /// A flow whose node waits for an hour, and fails for 0.
    fn waiting(collector: &Arc<Collector>) -> RunningFlow<u64, u64> {
        let mut b = FlowBuilder::<u64, u64>::new("orders");
        let node = b.node("charge", |n: u64, _: Context| async move {
            if n == 0 {
                return Err(NodeError::permanent("an order of nothing"));
            }
            clock::sleep(Duration::from_secs(3600)).await;
            Ok(n)
        });
        let policy = volary_flow::policy::NodePolicy {
            concurrency: 16,
            ..Default::default()
        };
        b.policy(node, policy).ingress(node).egress(node);
        let mut config = RunConfig::default();
        config.observers.push(collector.clone());
        b.build().unwrap().start(config)
    }

    struct World {
        flow: RunningFlow<u64, u64>,
        steering: Steering,
    }

    impl World {
        fn new() -> Self {
            let collector = Arc::new(Collector::default());
            let flow = waiting(&collector);
            let steering = Steering {
                link: Link::new(Client::unix("nowhere.sock")),
                flow: "orders".to_owned(),
                steered: Arc::new(flow.clone()),
                collector,
                run: watch::channel(None).1,
                wait: Duration::from_secs(20),
            };
            Self { flow, steering }
        }

        /// A trace of this message.
        async fn emit(&self, n: u64, message: TraceId) -> TraceHandle<u64> {
            let envelope = volary_flow::Envelope::new(n);
            let collector = &self.steering.collector;
            collector.belongs(envelope.trace_id, message);
            self.flow.emit(envelope).await.unwrap()
        }

        fn ask(&self, ask: FlowAsk, tenant: &str) -> FlowSaid {
            let tenant = tenant.parse().unwrap();
            let answer = self.steering.answer(FlowOrder { id: 7, tenant, ask });
            assert_eq!(answer.id, 7);
            answer.said
        }

        fn list(&self) -> Vec<FlowTrace> {
            let flow: Name = "orders".parse().unwrap();
            match self.ask(FlowAsk::Traces { flow }, "default") {
                FlowSaid::Traces {
                    traces,
                    more: false,
                } => traces,
                other => panic!("{other:?}"),
            }
        }

        fn act(&self, act: FlowAct, trace: TraceId) -> Result<Vec<TraceId>, String> {
            match self.ask(FlowAsk::Act { act, trace }, "default") {
                FlowSaid::Acted { traces, .. } => Ok(traces),
                FlowSaid::Refused { why } => Err(why),
                FlowSaid::Traces { .. } => panic!("nobody asked for a list"),
            }
        }

        /// Waits until so many traces are known to have ended.
        async fn ended(&self, count: usize) {
            while self.steering.collector.ended("orders").len() < count {
                clock::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn traces_are_listed_while_they_live_and_for_a_while_after() {
        let world = World::new();
        let (first, second) = (TraceId::generate(), TraceId::generate());
        let living = world.emit(1, first).await;
        clock::sleep(Duration::from_secs(3)).await;
        world.emit(0, second).await.outcome().await;
        world.ended(1).await;
        let [running, failed] = &world.list()[..] else {
            panic!("{:?}", world.list());
        };
        assert_eq!(
            (running.trace, running.message_trace),
            (living.trace_id(), Some(first))
        );
        assert_eq!(
            (&*running.state, running.nodes[0].as_str()),
            ("running", "charge")
        );
        assert!(running.age.0 >= Duration::from_secs(3) && running.ended_at.is_none());
        assert_eq!(
            (&*failed.state, failed.message_trace),
            ("failed", Some(second))
        );
        let reason = failed.reason.as_deref().unwrap();
        assert!(reason.contains("an order of nothing"), "{reason}");

        let sub = FlowAsk::Traces {
            flow: "inner".parse().unwrap(),
        };
        let FlowSaid::Refused { why } = world.ask(sub, "default") else {
            panic!("its traces are not told apart");
        };
        assert_eq!(
            why,
            "`inner` is a sub-flow here: its traces belong to those of `orders`"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_trace_goes_by_its_own_id_and_by_that_of_its_message() {
        let world = World::new();
        let message = TraceId::generate();
        let first = world.emit(1, message).await;
        let second = world.emit(2, message).await;
        let (one, other) = (first.trace_id(), second.trace_id());
        assert_eq!(world.act(FlowAct::Pause, one), Ok(vec![one]));
        let listed = world.list().into_iter();
        let mut paused = listed.filter(|trace| trace.state == "paused");
        assert_eq!(paused.next().map(|trace| trace.trace), Some(one));
        assert!(paused.next().is_none());
        let again = world.act(FlowAct::Pause, one);
        assert_eq!(again, Err(format!("trace {one} is paused already")));
        assert_eq!(
            world.act(FlowAct::Pause, message),
            Ok(vec![other]),
            "one was"
        );
        let mut resumed = world.act(FlowAct::Resume, message).unwrap();
        resumed.sort_unstable();
        let mut both = vec![one, other];
        both.sort_unstable();
        assert_eq!(resumed, both);
        let again = world.act(FlowAct::Resume, other);
        assert_eq!(again, Err(format!("trace {other} is not paused")));

        assert_eq!(world.act(FlowAct::Cancel, one), Ok(vec![one]));
        assert!(matches!(first.outcome().await, Outcome::Cancelled));
        world.ended(1).await;
        let ended = world.act(FlowAct::Cancel, one);
        assert_eq!(ended, Err(format!("trace {one} has ended as cancelled")));
        assert_eq!(world.act(FlowAct::Cancel, message), Ok(vec![other]));
    }

    #[tokio::test(start_paused = true)]
    async fn an_unknown_trace_and_one_of_another_tenant_look_the_same() {
        let world = World::new();
        let living = world.emit(1, TraceId::generate()).await;
        world.emit(0, TraceId::generate()).await.outcome().await;
        world.ended(1).await;
        let unknown = world.act(FlowAct::Cancel, TraceId::generate());
        assert_eq!(unknown, Ok(vec![]));
        let ended = world.list()[1].trace;
        for trace in [living.trace_id(), ended] {
            let act = FlowAct::Cancel;
            let said = world.ask(FlowAsk::Act { act, trace }, "another");
            let flow = "orders".to_owned();
            let traces = Vec::new();
            assert_eq!(said, FlowSaid::Acted { flow, traces });
        }
        let flow = "orders".parse().unwrap();
        let said = world.ask(FlowAsk::Traces { flow }, "another");
        let (traces, more) = (Vec::new(), false);
        assert_eq!(said, FlowSaid::Traces { traces, more });
        assert_eq!(world.list()[0].state, "running");
    }
}
