//! Cases 73 to 80: histories of traces, and what a flow owes to stores, buses and remote nodes.

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;
use volary_flow::{
    Context, Envelope, Item, Outcome, RunConfig,
    graph::{FlowBuilder, ProblemCode},
    observe::{FlowEvent, FlowEventKind, Observer as _},
    state::{EventId, HistoryConfig, Recorder, StateStore, StoredEvent},
};
use volary_kernel::{
    ManualClock, Name, SystemClock, Tenant, Timestamp, TraceId, Uid, metric::Metrics,
    task::Supervisor,
};
use volary_store::{Seq, SharedStore};

use crate::store::{Faulty, broken, memory};

fn tenant(name: &str) -> Tenant {
    name.parse().unwrap()
}

fn event(trace: TraceId, whose: &Tenant, at: Timestamp, kind: FlowEventKind) -> FlowEvent {
    FlowEvent {
        at,
        flow: Name::new("orders").unwrap(),
        node: Some(Name::new("charge").unwrap()),
        trace_id: trace,
        tenant: whose.clone(),
        attempt: 1,
        kind,
    }
}

/// Events of one source, a second apart.
fn events(trace: TraceId, whose: &Tenant, clock: &ManualClock, count: u64) -> Vec<StoredEvent> {
    let source = Uid::generate();
    let start = clock.shared().wall();
    let make = |seq: u64| {
        let latency = Duration::from_millis(seq);
        let kind = FlowEventKind::NodeSuccess { latency };
        let at = start + Duration::from_secs(seq);
        StoredEvent::of(&event(trace, whose, at, kind), EventId { source, seq })
    };
    (1..=count).map(make).collect()
}

fn history(store: &SharedStore) -> StateStore {
    StateStore::new(store.clone(), HistoryConfig::default())
}

#[tokio::test]
async fn case_73_saving_twice_is_saving_once_and_history_is_in_order() {
    let clock = ManualClock::default();
    let store = memory(clock.shared());
    let (trace, demo) = (TraceId::generate(), tenant("demo"));
    let all = events(trace, &demo, &clock, 6);
    let first = history(&store);
    assert_eq!(first.save(&all[..4]).await.unwrap(), 4);
    assert_eq!(first.save(&all[..4]).await.unwrap(), 0, "the same again");
    // Another process, which does not know what was saved, saves what overlaps.
    let second = history(&store);
    assert_eq!(second.save(&all[2..]).await.unwrap(), 2);
    assert_eq!(first.save(&all).await.unwrap(), 0, "it reads anew");
    // Another source whose clock is behind: time decides, then the number.
    let mut late = events(trace, &demo, &clock, 2);
    late[0].at = all[0].at;
    late[1].at = all[0].at;
    assert_eq!(first.save(&late).await.unwrap(), 2);
    let found = first.history(trace, &demo).await.unwrap();
    assert_eq!(found.len(), 8);
    let order: Vec<_> = found.iter().map(|event| (event.at, event.id.seq)).collect();
    assert!(order.is_sorted(), "{order:?}");
    let own: Vec<_> = found
        .iter()
        .filter(|event| event.id.source == all[0].id.source)
        .cloned()
        .collect();
    assert_eq!(own, all, "they come back as they were");
}

#[tokio::test]
async fn case_74_a_failing_store_is_counted_and_holds_nobody_up() {
    let clock = ManualClock::default();
    let store = Faulty::over(memory(clock.shared()));
    store.fail_after(0, broken());
    let (metrics, supervisor) = (Metrics::default(), Supervisor::new());
    let shared: SharedStore = store.clone();
    let recorder = Recorder::start(Arc::new(history(&shared)), &supervisor, &metrics);
    let (trace, demo) = (TraceId::generate(), tenant("demo"));
    let at = clock.shared().wall();
    recorder.observe(&[event(trace, &demo, at, FlowEventKind::NodeStart)]);
    let report = supervisor.drain(Duration::from_secs(10)).await;
    assert!(report.aborted.is_empty(), "{report:?}");
    let text = metrics.encode_text();
    assert!(
        text.contains("volary_flow_history_lost_total{reason=\"store\"} 1"),
        "{text}"
    );
}

#[tokio::test]
async fn a_recorder_saves_what_it_is_told_within_its_bound_and_the_end_always() {
    let clock = ManualClock::default();
    let store = memory(clock.shared());
    let config = HistoryConfig {
        max_events: 3,
        ..HistoryConfig::default()
    };
    let history = Arc::new(StateStore::new(store, config));
    let (metrics, supervisor) = (Metrics::default(), Supervisor::new());
    let recorder = Recorder::start(history.clone(), &supervisor, &metrics);
    let (trace, demo) = (TraceId::generate(), tenant("demo"));
    let at = clock.shared().wall();
    let tell = |kind| recorder.observe(&[event(trace, &demo, at, kind)]);
    for _ in 0..4 {
        tell(FlowEventKind::NodeStart);
    }
    let error = "é".repeat(2000);
    tell(FlowEventKind::TraceEnd {
        outcome: volary_flow::Outcome::Done,
        latency: Duration::from_millis(1500),
    });
    let other = TraceId::generate();
    let latency = Duration::ZERO;
    recorder.observe(&[event(
        other,
        &demo,
        at,
        FlowEventKind::NodeError { error, latency },
    )]);
    assert!(
        supervisor
            .drain(Duration::from_secs(10))
            .await
            .aborted
            .is_empty()
    );
    let kinds = |events: Vec<StoredEvent>| -> Vec<_> {
        events.into_iter().map(|event| event.kind).collect()
    };
    let found = history.list_after(trace, &demo, Seq(0), 10).await.unwrap();
    let last = &found[3].event;
    assert_eq!(last.kind, "trace_end");
    assert_eq!(last.payload["outcome"], "done");
    assert_eq!(last.payload["latency_seconds"], 1.5);
    let found = history.history(other, &demo).await.unwrap();
    let text = found[0].payload["error"].as_str().unwrap();
    assert!(
        text.len() <= 1024 && text.chars().all(|c| c == 'é'),
        "cut between characters"
    );
    assert_eq!(kinds(found), ["node_error"]);
    let text = metrics.encode_text();
    assert!(
        text.contains("volary_flow_history_lost_total{reason=\"bound\"} 1"),
        "{text}"
    );
}

#[test]
fn an_event_is_kept_under_the_names_by_which_it_is_told() {
    let kinds = [
        FlowEventKind::TraceEnd {
            outcome: Outcome::Dropped {
                reason: volary_flow::DropReason::Stopped,
            },
            latency: Duration::from_secs(1),
        },
        FlowEventKind::NodeError {
            error: "refused".into(),
            latency: Duration::from_secs(2),
        },
        FlowEventKind::NodeFailed {
            code: "node_error",
            error: "refused".into(),
        },
        FlowEventKind::NodeTimeout {
            timeout: Duration::from_secs(3),
        },
        FlowEventKind::NodeRetry {
            delay: Duration::from_secs(4),
        },
        FlowEventKind::NodeBlocked {
            since: Duration::from_secs(5),
        },
        FlowEventKind::CancelStart {
            queued: 6,
            running: 7,
        },
        FlowEventKind::JoinPartial { have: 8, want: 9 },
        FlowEventKind::Paused,
    ];
    // What every event says is kept as fields of its own.
    let fields = ["ts", "event", "flow", "node", "trace", "tenant", "attempt"];
    let demo = tenant("demo");
    let (source, mut named) = (Uid::generate(), 0);
    for kind in kinds {
        let told = event(TraceId::generate(), &demo, Timestamp::default(), kind);
        let kept = StoredEvent::of(&told, EventId { source, seq: 1 });
        let mut payload = told.to_payload();
        for field in fields {
            assert!(payload.remove(field).is_some(), "{field} of {payload:?}");
        }
        assert_eq!(kept.payload, payload, "{}", kept.kind);
        named += payload.len();
    }
    assert_eq!(named, 15, "they say something");
}

#[tokio::test]
async fn case_77_a_cursor_lists_what_came_after() {
    let clock = ManualClock::default();
    let store = memory(clock.shared());
    let history = history(&store);
    let (trace, demo) = (TraceId::generate(), tenant("demo"));
    let all = events(trace, &demo, &clock, 5);
    let noise = events(TraceId::generate(), &demo, &clock, 5);
    history.save(&all[..2]).await.unwrap();
    history.save(&noise).await.unwrap();
    history.save(&all[2..]).await.unwrap();
    let mut after = Seq(0);
    let mut seen = Vec::new();
    loop {
        let page = history.list_after(trace, &demo, after, 2).await.unwrap();
        let Some(last) = page.last() else { break };
        after = last.place;
        seen.extend(page.into_iter().map(|listed| listed.event));
    }
    assert_eq!(seen, all);
    let more = events(trace, &demo, &clock, 1);
    history.save(&more).await.unwrap();
    let page = history.list_after(trace, &demo, after, 10).await.unwrap();
    assert_eq!(page.len(), 1, "what came since, and nothing twice");
    assert_eq!(page[0].event, more[0]);
}

#[tokio::test]
async fn case_78_a_history_is_not_found_by_another_tenant_and_traces_are_listed_newest_first() {
    let clock = ManualClock::default();
    let store = memory(clock.shared());
    let history = history(&store);
    let (demo, other) = (tenant("demo"), tenant("other"));
    let traces: Vec<_> = (0..3).map(|_| TraceId::generate()).collect();
    for trace in &traces {
        history
            .save(&events(*trace, &demo, &clock, 2))
            .await
            .unwrap();
    }
    history
        .save(&events(traces[0], &demo, &clock, 1))
        .await
        .unwrap();
    assert!(history.history(traces[0], &other).await.unwrap().is_empty());
    assert!(
        history
            .list_after(traces[0], &other, Seq(0), 9)
            .await
            .unwrap()
            .is_empty()
    );
    assert!(history.traces(&other, 9).await.unwrap().is_empty());
    let newest = [traces[0], traces[2], traces[1]];
    assert_eq!(history.traces(&demo, 9).await.unwrap(), newest);
    assert_eq!(history.traces(&demo, 2).await.unwrap(), newest[..2]);
}

#[tokio::test]
async fn histories_end_with_their_age() {
    let clock = ManualClock::default();
    let store = memory(clock.shared());
    let history = history(&store);
    let (trace, demo) = (TraceId::generate(), tenant("demo"));
    history
        .save(&events(trace, &demo, &clock, 2))
        .await
        .unwrap();
    clock.advance(history.config().max_age - Duration::from_secs(1));
    assert_eq!(history.history(trace, &demo).await.unwrap().len(), 2);
    clock.advance(Duration::from_secs(2));
    assert!(history.history(trace, &demo).await.unwrap().is_empty());
}

#[tokio::test]
async fn case_74_a_flow_whose_history_cannot_be_saved_goes_on() {
    let store = Faulty::over(memory(SystemClock::shared()));
    store.fail_after(0, broken());
    let shared: SharedStore = store.clone();
    let config = RunConfig::default();
    let recorder = Recorder::start(
        Arc::new(history(&shared)),
        &config.supervisor,
        &config.metrics,
    );
    let mut b = FlowBuilder::<u64, u64>::new("double");
    let double = b.node("double", |n: u64, _| async move { Ok(n * 2) });
    b.ingress(double).egress(double);
    let flow = b.build().unwrap().start(RunConfig {
        observers: vec![recorder],
        ..config
    });
    for n in 0..3 {
        assert_eq!(flow.call(Envelope::new(n)).await.unwrap(), n * 2);
    }
    store.refused(1).await;
    store.heal();
    let last = Envelope::new(9).tenant(tenant("demo"));
    let id = last.trace_id;
    assert_eq!(flow.call(last).await.unwrap(), 18);
    flow.stop(Duration::from_secs(10)).await;
    // From here on it is saved again.
    let found = loop {
        let found = history(&shared).history(id, &tenant("demo")).await.unwrap();
        if found.iter().any(|event| event.kind == "trace_end") {
            break found;
        }
        tokio::task::yield_now().await;
    };
    let kinds: Vec<_> = found.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(
        kinds,
        ["trace_start", "node_start", "node_success", "trace_end"]
    );
}

#[test]
fn case_79_everything_that_cannot_be_stored_is_listed() {
    let mut b = FlowBuilder::<u64, u64>::new("lacking");
    let one = b.node("one", |n: u64, _| async move { Ok(n) });
    let two = b.durable_node("two", |n: u64, _| async move { Ok(n) });
    let three = b.filter_map("three", |n: u64, _| async move { Ok(Some(n)) });
    b.connect(one, two)
        .connect(two, three)
        .ingress(one)
        .egress(three);
    let errors = b.build_durable().unwrap_err();
    let places: Vec<_> = errors
        .problems
        .iter()
        .map(|problem| problem.place.as_str())
        .collect();
    assert_eq!(places, ["node `one`", "node `three`"]);
    assert!(
        errors
            .problems
            .iter()
            .all(|problem| problem.code == ProblemCode::NotStored)
    );
}

/// Somebody far away who was given a task, and is told if it is not wanted any more.
struct Task {
    url: &'static str,
    id: u64,
    done: bool,
    cancelled: mpsc::Sender<(&'static str, u64)>,
}

impl Drop for Task {
    fn drop(&mut self) {
        if !self.done {
            // The channel has room for what the test expects.
            let _told = self.cancelled.try_send((self.url, self.id));
        }
    }
}

#[tokio::test]
async fn case_80_a_remote_call_streams_finishes_and_is_cancelled_with_its_trace() {
    let (cancelled, mut told) = mpsc::channel(4);
    let mut b = FlowBuilder::<u64, String>::new("remote");
    let ask = b.node("ask", move |id: u64, context: Context| {
        let cancelled = cancelled.clone();
        async move {
            let url = "https://agent.example";
            let mut task = Task {
                url,
                id,
                done: false,
                cancelled,
            };
            context.chunk(format!("working on {id}")).await?;
            if id == 13 {
                std::future::pending::<()>().await;
            }
            task.done = true;
            Ok(format!("{id} is done"))
        }
    });
    b.ingress(ask).egress(ask);
    let flow = b.build().unwrap().start(RunConfig::default());
    let mut handle = flow.emit(Envelope::new(12)).await.unwrap();
    let Some(Item::Chunk(chunk)) = handle.next().await else {
        panic!("a chunk comes first")
    };
    assert_eq!((chunk.seq, chunk.text.as_str()), (0, "working on 12"));
    assert_eq!(handle.result().await.unwrap(), "12 is done");
    let mut handle = flow.emit(Envelope::new(13)).await.unwrap();
    assert!(matches!(handle.next().await, Some(Item::Chunk(_))));
    assert!(flow.cancel(handle.trace_id(), &Tenant::default()).cancelled);
    assert!(matches!(handle.outcome().await, Outcome::Cancelled));
    assert_eq!(told.recv().await, Some(("https://agent.example", 13)));
    flow.stop(Duration::from_secs(10)).await;
    assert!(
        told.try_recv().is_err(),
        "the one that was done was not cancelled"
    );
}

#[tokio::test]
async fn case_75_who_listens_is_told_of_every_emit_and_harms_nobody_by_failing() {
    /// Sends on what it is told, and panics all the same.
    struct Bus(mpsc::Sender<(TraceId, &'static str)>);

    impl volary_flow::observe::Observer for Bus {
        fn observe(&self, events: &[FlowEvent]) {
            for event in events {
                // The channel has room for what the test expects.
                let _sent = self.0.try_send((event.trace_id, event.kind.as_str()));
            }
            panic!("the bus is gone");
        }
    }

    let (bus, mut told) = mpsc::channel(64);
    let mut b = FlowBuilder::<u64, u64>::new("double");
    let double = b.node("double", |n: u64, _| async move { Ok(n * 2) });
    b.ingress(double).egress(double);
    let flow = b.build().unwrap().start(RunConfig {
        observers: vec![Arc::new(Bus(bus))],
        ..RunConfig::default()
    });
    for n in 0..3 {
        let envelope = Envelope::new(n);
        let id = envelope.trace_id;
        assert_eq!(flow.call(envelope).await.unwrap(), n * 2);
        for kind in ["trace_start", "node_start", "node_success", "trace_end"] {
            assert_eq!(told.recv().await, Some((id, kind)));
        }
    }
}
