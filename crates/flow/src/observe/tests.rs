//! Tests of the way from a record to an observer.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use proptest::prelude::*;
use volary_kernel::{
    ManualClock, Mono, Name, Tenant, TraceId,
    metric::Metrics,
    secret::{Redactor, Secret},
    task::Supervisor,
};

use super::{
    FlowEvent, FlowEventKind, Observer,
    metrics::{AttemptEnd, FlowMetrics, NodeCount, NodeDepth},
    record::Record,
    tap::{ChainRun, Observing, Setup, Tap, TraceTag},
    window::{Window, ranks},
};
use crate::outcome::Outcome;

#[derive(Default)]
struct Kept(Mutex<Vec<FlowEvent>>);

impl Observer for Kept {
    fn observe(&self, events: &[FlowEvent]) {
        self.0.lock().extend_from_slice(events);
    }
}

impl Kept {
    fn names(&self) -> Vec<String> {
        let name = |event: &FlowEvent| {
            let node = event.node.as_ref().map_or("-", Name::as_str).to_owned();
            format!("{} {node}", event.kind.as_str())
        };
        self.0.lock().iter().map(name).collect()
    }
}

struct Panics;

impl Observer for Panics {
    fn observe(&self, _: &[FlowEvent]) {
        panic!("observer defect");
    }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn at(millis: u64) -> Mono {
    Mono::from_nanos(millis * 1_000_000)
}

fn setup(metrics: &FlowMetrics, observers: Vec<Arc<dyn Observer>>) -> Setup {
    Setup {
        flow: name("orders"),
        nodes: vec![name("a"), name("b"), name("c")],
        ranks: vec![0, 1, 2],
        observers,
        clock: ManualClock::default().shared(),
        redactor: None,
        tenants: Arc::new(|ix| (ix == 0).then(Tenant::default)),
        dropped: metrics.totals().events_dropped.clone(),
        panics: metrics.totals().observer_panics.clone(),
    }
}

fn metrics() -> (Metrics, FlowMetrics) {
    let all = Metrics::default();
    let nodes = [name("a"), name("b"), name("c")];
    let of_flow = FlowMetrics::new(&all, &name("orders"), &nodes, &["blue".parse().unwrap()]);
    (all, of_flow)
}

fn tag() -> TraceTag {
    TraceTag {
        id: TraceId::generate(),
        tenant: 0,
        hops: 0,
    }
}

/// Nodes of a chain, one millisecond after the start of all.
fn run(first: u16, count: u16) -> ChainRun {
    ChainRun {
        first,
        count,
        begins: false,
        ends: false,
        accepted: at(1),
        started: at(1),
        ended: at(1),
    }
}

#[tokio::test(start_paused = true)]
async fn one_record_of_a_chain_is_told_as_start_and_success_of_each_node() {
    let (_, metrics) = metrics();
    let kept = Arc::new(Kept::default());
    let observing = Observing::start(setup(&metrics, vec![kept.clone()]), &Supervisor::new());
    let mut tap = observing.tap(&[0, 2, 1]);
    let whole = ChainRun {
        begins: true,
        ends: true,
        accepted: at(10),
        started: at(11),
        ended: at(14),
        ..run(0, 3)
    };
    tap.chain(&tag(), whole);
    let part = ChainRun {
        started: at(20),
        ended: at(20),
        ..run(1, 2)
    };
    tap.chain(&tag(), part);
    tap.flush();
    observing.close().await;
    let whole = [
        "trace_start -",
        "node_start a",
        "node_success a",
        "node_start c",
        "node_success c",
        "node_start b",
        "node_success b",
        "trace_end -",
    ];
    let part = [
        "node_start c",
        "node_success c",
        "node_start b",
        "node_success b",
    ];
    assert_eq!(kept.names(), [&whole[..], &part[..]].concat());
    let events = kept.0.lock();
    let FlowEventKind::TraceEnd { latency, .. } = &events[7].kind else {
        panic!("{:?}", events[7]);
    };
    assert_eq!(*latency, Duration::from_millis(4));
    assert_eq!(events[7].at.since(events[0].at), Duration::from_millis(4));
}

#[tokio::test(start_paused = true)]
async fn without_observers_nothing_is_recorded() {
    let (_, metrics) = metrics();
    let observing = Observing::start(setup(&metrics, Vec::new()), &Supervisor::new());
    assert!(!observing.tap(&[0]).is_on());
    assert!(!Tap::off().is_on());
    observing.close().await;
}

#[tokio::test(start_paused = true)]
async fn events_arrive_without_a_close() {
    let (_, metrics) = metrics();
    let kept = Arc::new(Kept::default());
    let observing = Observing::start(setup(&metrics, vec![kept.clone()]), &Supervisor::new());
    let mut tap = observing.tap(&[0]);
    for round in 1..=3 {
        tap.chain(&tag(), run(0, 1));
        tap.flush();
        volary_kernel::clock::timeout(Duration::from_secs(5), async {
            while kept.0.lock().len() < round * 2 {
                volary_kernel::clock::sleep(Duration::from_millis(1)).await;
            }
        })
        .await
        .unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_panicking_observer_is_contained_and_counted_and_the_others_go_on() {
    let (_, metrics) = metrics();
    let kept = Arc::new(Kept::default());
    let observers: Vec<Arc<dyn Observer>> = vec![Arc::new(Panics), kept.clone()];
    let observing = Observing::start(setup(&metrics, observers), &Supervisor::new());
    let mut tap = observing.tap(&[0]);
    tap.chain(&tag(), run(0, 1));
    tap.flush();
    observing.close().await;
    assert_eq!(kept.0.lock().len(), 2);
    assert_eq!(metrics.totals().observer_panics.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_finds_no_room_is_dropped_and_its_events_counted() {
    let (_, metrics) = metrics();
    let kept = Arc::new(Kept::default());
    let observing = Observing::start(setup(&metrics, vec![kept.clone()]), &Supervisor::new());
    let mut tap = observing.tap(&[0, 1]);
    // The observer task does not run in between: 65,536 records fit, each stands for four events.
    for _ in 0..65_536 + 512 {
        tap.chain(&tag(), run(0, 2));
    }
    tap.flush();
    observing.close().await;
    assert_eq!(metrics.totals().events_dropped.get(), 512 * 4);
    assert_eq!(kept.0.lock().len(), 65_536 * 4);
    tap.chain(&tag(), run(0, 2));
    tap.flush();
    assert_eq!(
        metrics.totals().events_dropped.get(),
        513 * 4,
        "after the end"
    );
}

#[tokio::test(start_paused = true)]
async fn tenants_that_take_turns_are_told_by_their_own_names_and_an_unknown_one_not_at_all() {
    let (_, metrics) = metrics();
    let kept = Arc::new(Kept::default());
    let setup = Setup {
        tenants: Arc::new(|ix| ["red", "blue"].get(ix as usize)?.parse().ok()),
        ..setup(&metrics, vec![kept.clone()])
    };
    let observing = Observing::start(setup, &Supervisor::new());
    let mut tap = observing.tap(&[0]);
    for (n, tenant) in [0, 0, 1, 2, 1, 0, 2, 0].into_iter().enumerate() {
        let tag = TraceTag { tenant, ..tag() };
        let now = at(u64::try_from(n).unwrap());
        tap.event(&tag, Some(0), 1, now, FlowEventKind::NodeStart);
    }
    drop(tap);
    observing.close().await;
    let told = kept.0.lock();
    let tenants: Vec<&str> = told.iter().map(|event| event.tenant.as_str()).collect();
    assert_eq!(tenants, ["red", "red", "blue", "blue", "red", "red"]);
    assert_eq!(metrics.totals().events_dropped.get(), 2);
}

#[tokio::test(start_paused = true)]
async fn error_texts_lose_declared_secrets_and_what_is_too_long() {
    let (_, metrics) = metrics();
    let kept = Arc::new(Kept::default());
    let redactor = Redactor::default();
    redactor.add(&Secret::new("canary-1234")).unwrap();
    let setup = Setup {
        redactor: Some(redactor),
        ..setup(&metrics, vec![kept.clone()])
    };
    let observing = Observing::start(setup, &Supervisor::new());
    let mut tap = observing.tap(&[0]);
    let text = format!("{}canary-1234", "é".repeat(3_000));
    for error in ["key canary-1234 refused".to_owned(), text] {
        let latency = Duration::ZERO;
        let kind = FlowEventKind::NodeError { error, latency };
        tap.event(&tag(), Some(0), 1, at(1), kind);
    }
    drop(tap);
    observing.close().await;
    let shown = format!("{:?}", kept.0.lock());
    assert!(shown.contains("key [redacted] refused"), "{shown}");
    assert!(!shown.contains("canary"), "{shown}");
    assert!(shown.len() < 9_000, "{}", shown.len());
}

#[test]
fn counts_are_added_up_by_node_and_allowed_tenant() {
    let (all, metrics) = metrics();
    let (blue, grey) = (
        metrics.label(&"blue".parse().unwrap()),
        metrics.label(&"grey".parse().unwrap()),
    );
    let mut stage = metrics.stage(&[0, 2]);
    stage.chain_success(blue);
    stage.chain_success(grey);
    stage.count(grey, 1, NodeCount::Retry);
    stage.ended(blue, &Outcome::Done);
    assert!(
        !all.encode_text()
            .contains("node=\"a\",tenant=\"blue\"} 1\n")
    );
    stage.flush();
    metrics.accepted(grey);
    metrics.ended(grey, &Outcome::Cancelled);
    stage.took(1, AttemptEnd::Success, Duration::from_millis(3), 64);
    let depth = NodeDepth {
        incoming: 3,
        outgoing: 4,
    };
    metrics.show(9, &[depth]);
    let text = all.encode_text();
    for line in [
        "volary_flow_node_success_total{flow=\"orders\",node=\"a\",tenant=\"blue\"} 1\n",
        "volary_flow_node_success_total{flow=\"orders\",node=\"b\",tenant=\"blue\"} 0\n",
        "volary_flow_node_success_total{flow=\"orders\",node=\"c\",tenant=\"other\"} 1\n",
        "volary_flow_node_retry_total{flow=\"orders\",node=\"c\",tenant=\"other\"} 1\n",
        "volary_flow_traces_ended_total{flow=\"orders\",tenant=\"blue\",outcome=\"done\"} 1\n",
        "volary_flow_traces_ended_total{flow=\"orders\",tenant=\"other\",outcome=\"cancelled\"} 1\n",
        "volary_flow_traces_accepted_total{flow=\"orders\",tenant=\"other\"} 1\n",
        "volary_flow_node_seconds_bucket{le=\"0.0025\",flow=\"orders\",node=\"c\",outcome=\"success\"} 0\n",
        "volary_flow_node_seconds_bucket{le=\"0.005\",flow=\"orders\",node=\"c\",outcome=\"success\"} 64\n",
        "volary_flow_queue_depth{flow=\"orders\",node=\"a\",direction=\"total\"} 7\n",
        "volary_flow_traces_inflight{flow=\"orders\"} 9\n",
        "volary_flow_deadline_skip_total{flow=\"orders\"} 0\n",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert!(!text.contains("grey"), "{text}");
}

#[test]
fn nodes_are_ranked_after_all_that_lead_to_them() {
    // c → a → b, c → b
    assert_eq!(ranks(3, [(2, 0), (0, 1), (2, 1)].into_iter()), [1, 2, 0]);
}

proptest! {
    /// A trace goes node after node within the same few milliseconds; each node's stage hands over in the same round or
    /// one later. The observer is told in the order of the trace.
    #[test]
    fn records_handed_over_up_to_a_round_late_are_told_in_the_order_of_the_trace(
        steps in prop::collection::vec((0u64..2, any::<bool>()), 2..20),
    ) {
        let nodes = u16::try_from(steps.len()).unwrap();
        // The way through the graph is against the numbers of its nodes.
        let chains: Vec<Vec<u16>> = (0..nodes).map(|node| vec![nodes - 1 - node]).collect();
        let ranks = ranks(usize::from(nodes), (1..nodes).map(|to| (nodes - to, nodes - to - 1)));
        let tag = tag();
        let mut rounds: Vec<Vec<Record>> = Vec::new();
        rounds.resize_with(steps.len() * 2 + 4, Vec::new);
        let mut now = 1;
        rounds[2].push(Record::event(&tag, None, 0, at(now), FlowEventKind::TraceStart));
        for (chain, (passes, late)) in steps.iter().enumerate() {
            now += passes;
            let round = usize::try_from(now).unwrap() + usize::from(*late);
            let chain = u16::try_from(chain).unwrap();
            let run = ChainRun { started: at(now), ended: at(now), ..run(0, 1) };
            rounds[round].push(Record::chain(&tag, chain, run));
        }
        let end = FlowEventKind::TraceEnd { outcome: Outcome::Done, latency: Duration::ZERO };
        rounds[usize::try_from(now).unwrap()].insert(0, Record::event(&tag, None, 0, at(now), end));
        let mut window = Window::default();
        let mut told = Vec::new();
        let rounds: Vec<_> = rounds.into_iter().filter(|round| !round.is_empty()).collect();
        let last = rounds.len();
        for (n, mut round) in rounds.into_iter().enumerate() {
            window.round(&mut round, n + 1 == last, &chains, &ranks);
            for record in round {
                record.expand(&chains, &mut |node, _, _, kind| match kind {
                    FlowEventKind::NodeStart => told.push(i32::from(nodes - 1 - node.unwrap())),
                    FlowEventKind::TraceStart => told.push(-1),
                    FlowEventKind::TraceEnd { .. } => told.push(i32::MAX),
                    _ => {}
                });
            }
        }
        let mut wanted: Vec<i32> = (-1..i32::from(nodes)).collect();
        wanted.push(i32::MAX);
        prop_assert_eq!(told, wanted);
    }
}
