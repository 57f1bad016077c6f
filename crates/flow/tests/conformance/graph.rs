//! Graphs, routers, joins, types, pictures and the testkit (cases 7, 13–17, 20–23, 40–50, 60–64, 72, 81–83).

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt as _;
use proptest::prelude::*;
use serde_json::json;
use volary_flow::{
    Context, Emit, EmitError, Envelope, Flow, FlowBuilder, FlowErrorCode, Headers, Item, Meta,
    NodeError, Outcome, RunConfig,
    graph::{
        BuildErrors, Decision, Description, DescriptionError, Direction, JoinPolicy, ProblemCode,
        Route, RoutePolicy, TableError, TablePolicy, map_concurrent,
    },
    policy::{Breaker, NodePolicy, RetryBudget},
    testkit::{
        RunOutcome, assert_envelope_preserved, assert_node_sequence, run_one, simulate_error,
    },
    variant,
};
use volary_kernel::{Tenant, TraceId, clock, retry::Backoff};

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn tenant(name: &str) -> Tenant {
    name.parse().expect("it is a name")
}

async fn run<In: Send + 'static, Out: Send + 'static>(
    flow: &Flow<In, Out>,
    payload: In,
) -> RunOutcome<Out> {
    let run = run_one(flow, Envelope::new(payload)).await;
    run.expect("it is accepted")
}

fn failure(outcome: &Outcome) -> (FlowErrorCode, String) {
    match outcome {
        Outcome::Failed(error) => (error.code, error.message.clone()),
        other => panic!("the trace ended as {}", other.as_str()),
    }
}

async fn pass<T>(value: T, _: Context) -> Result<T, NodeError> {
    Ok(value)
}

fn problems<In, Out>(built: Result<Flow<In, Out>, BuildErrors>) -> BuildErrors {
    built.map(drop).expect_err("the graph is wrong")
}

// --- Graph -----------------------------------------------------------------------------------

/// Case 7.
#[test]
fn a_cycle_that_is_not_declared_is_refused_with_its_path() {
    let mut b = FlowBuilder::<u64, u64>::new("round");
    let one = b.node("one", pass);
    let two = b.node("two", pass);
    let three = b.node("three", pass);
    b.connect(one, two).connect(two, three).connect(three, one);
    b.ingress(one).egress(three);
    let errors = problems(b.build());
    assert_eq!(
        errors.to_string(),
        "flow `round` has 1 problem:\n  - cycle one → two → three → one: is not declared; remove an edge, or declare \
         the one that closes it: b.connect_back(three, one)"
    );
}

/// Case 7: what is declared runs, and ends.
#[tokio::test(start_paused = true)]
async fn a_declared_cycle_goes_round_until_a_step_finishes() {
    let mut b = FlowBuilder::<u64, u64>::new("count");
    let add = b.step("add", |n: u64, _| async move {
        Ok(if n >= 5 {
            Emit::Finish(n)
        } else {
            Emit::Next(n + 1)
        })
    });
    b.connect_back(add, add).ingress(add);
    let run = run(&b.build().expect("it is a good graph"), 0).await;
    assert_eq!(run.values, [5]);
    assert_node_sequence(&run, ["add"; 6]);
}

/// Case 13: there is no registry to forget a node in.
#[tokio::test(start_paused = true)]
async fn types_are_part_of_the_graph_and_need_no_registry() {
    let mut b = FlowBuilder::new("types");
    let length = b.node("length", |text: String, _| async move { Ok(text.len()) });
    b.ingress(length).egress(length);
    let flow = b.build().expect("it is a good graph");
    let node = &flow.describe().nodes[0];
    assert_eq!(
        (node.input.as_str(), node.output.as_str()),
        ("String", "usize")
    );
    assert_eq!(run(&flow, "four".to_owned()).await.values, [4]);
}

/// Case 14.
#[tokio::test(start_paused = true)]
async fn a_typed_value_goes_in_and_another_comes_out() {
    #[derive(Clone, Debug, PartialEq)]
    struct Order {
        cents: u64,
    }
    #[derive(Clone, Debug, PartialEq)]
    struct Receipt {
        of: Order,
        paid: bool,
    }
    let mut b = FlowBuilder::new("orders");
    let pay = b.node("pay", |of: Order, _| async move {
        Ok(Receipt {
            paid: of.cents > 0,
            of,
        })
    });
    b.ingress(pay).egress(pay);
    let flow = b
        .build()
        .expect("it is a good graph")
        .start(RunConfig::default());
    let receipt = flow.call(Envelope::new(Order { cents: 5 })).await;
    let expected = Receipt {
        of: Order { cents: 5 },
        paid: true,
    };
    assert_eq!(receipt.expect("it is paid"), expected);
}

/// Case 15.
#[tokio::test(start_paused = true)]
async fn a_flow_started_twice_runs_twice_and_each_run_has_its_own_traces() {
    let mut b = FlowBuilder::<u64, u64>::new("twice");
    let node = b.node("node", pass);
    b.ingress(node).egress(node);
    let flow = b.build().expect("it is a good graph");
    let (first, second) = (
        flow.start(RunConfig::default()),
        flow.start(RunConfig::default()),
    );
    let envelope = Envelope::new(1);
    let handle = first.emit(envelope.clone()).await.expect("it is accepted");
    let again = first.emit_nowait(envelope.clone());
    assert_eq!(again.err(), Some(EmitError::TraceInUse(envelope.trace_id)));
    let other = second
        .emit_nowait(envelope)
        .expect("this run does not know the trace");
    assert_eq!(handle.result().await.ok(), Some(1));
    assert_eq!(other.result().await.ok(), Some(1));
    assert!(first.stop(ms(10)).await.is_clean());
    assert!(first.emit_nowait(Envelope::new(2)).is_err());
    assert_eq!(second.call(Envelope::new(3)).await.ok(), Some(3));
}

/// Case 16.
#[tokio::test(start_paused = true)]
async fn a_route_to_what_is_not_connected_fails_the_trace_and_is_not_tried_again() {
    let mut b = FlowBuilder::<u64, u64>::new("astray");
    let near = b.node("near", pass);
    let far = b.node("far", pass);
    let choose = b.route("choose", move |n: &u64, _| match n {
        0 => Route::to(far),
        1 => Route::named("fat"),
        _ => Route::to(near),
    });
    let retries = NodePolicy {
        max_retries: 3,
        ..NodePolicy::default()
    };
    b.policy(choose, retries);
    b.connect(choose, near).connect(near, far);
    b.ingress(choose).egress(far);
    let flow = b.build().expect("it is a good graph");

    let lost = run(&flow, 0).await;
    let (code, message) = failure(&lost.outcome);
    assert_eq!(code, FlowErrorCode::NoSuchTarget);
    assert_eq!(
        message,
        "`choose` chose a node that it is not connected to; it leads to `near`"
    );
    assert_eq!(lost.attempts_of("choose"), 1);

    let (code, message) = failure(&run(&flow, 1).await.outcome);
    assert_eq!(code, FlowErrorCode::NoSuchTarget);
    assert_eq!(
        message,
        "`choose` chose `fat`, to which it does not lead; it leads to `near`"
    );
    assert_eq!(run(&flow, 2).await.values, [2]);
}

/// Cases 17 and 20.
#[tokio::test(start_paused = true)]
async fn fetching_an_unknown_trace_finds_nothing_and_reading_too_early_waits() {
    let mut b = FlowBuilder::<u64, u64>::new("later");
    let node = b.node("node", |n: u64, _| async move {
        clock::sleep(ms(10)).await;
        Ok(n)
    });
    b.ingress(node).egress(node);
    let flow = b
        .build()
        .expect("it is a good graph")
        .start(RunConfig::default());
    assert!(
        flow.fetch(TraceId::generate(), &Tenant::default())
            .is_none()
    );

    let envelope = Envelope::new(7).tenant(tenant("ours"));
    let id = envelope.trace_id;
    let mut handle = flow.emit(envelope).await.expect("it is accepted");
    assert!(
        handle.next().now_or_never().is_none(),
        "nothing is there yet"
    );
    drop(handle);
    assert!(flow.fetch(id, &tenant("theirs")).is_none());
    let mut handle = flow
        .fetch(id, &tenant("ours"))
        .expect("it is still fetchable");
    assert!(matches!(handle.next().await, Some(Item::Value(7))));
    assert!(handle.next().await.is_none());
    assert!(handle.outcome().await.is_done());
    assert!(flow.fetch(id, &tenant("ours")).is_none(), "it was read");
}

/// Cases 21 and 22: a node cannot lose the envelope, as it never has it in its hands.
#[tokio::test(start_paused = true)]
async fn whatever_a_node_returns_the_envelope_is_kept() {
    let mut b = FlowBuilder::new("kept");
    let first = b.node("first", |n: u64, _| async move { Ok(n.to_string()) });
    let second = b.flat_map("second", |text: String, _| async move {
        Ok(vec![text.len(), 9])
    });
    let last = b.node("last", |n: usize, context: Context| async move {
        Ok((n, context.tenant().clone(), context.headers().topic.clone()))
    });
    b.connect(first, second).connect(second, last);
    b.ingress(first).egress(last);
    let mut envelope = Envelope::new(123).tenant(tenant("acme")).priority(3);
    envelope.headers.topic = Some("numbers".to_owned());
    let run = run_one(&b.build().expect("it is a good graph"), envelope).await;
    let run = run.expect("it is accepted");
    let topic = || Some("numbers".to_owned());
    assert_eq!(
        run.values,
        [(3, tenant("acme"), topic()), (9, tenant("acme"), topic())]
    );
    assert_envelope_preserved(&run);
}

// --- Patterns --------------------------------------------------------------------------------

/// Case 40.
#[tokio::test(start_paused = true)]
async fn map_concurrent_keeps_the_order_and_never_runs_more_than_allowed() {
    let running = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let mut b = FlowBuilder::new("map");
    let (now, peak) = (running.clone(), most.clone());
    let map = b.map_concurrent("map", 3, move |n: u64, _| {
        let (now, peak) = (now.clone(), peak.clone());
        async move {
            peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            clock::sleep(ms(100 - n)).await;
            now.fetch_sub(1, Ordering::SeqCst);
            Ok(n * 10)
        }
    });
    b.ingress(map).egress(map);
    let run = run(&b.build().expect("it is a good graph"), (0..20).collect()).await;
    let expected: Vec<u64> = (0..20).map(|n| n * 10).collect();
    assert_eq!(run.values, [expected]);
    assert_eq!(most.load(Ordering::SeqCst), 3);
    assert_eq!(running.load(Ordering::SeqCst), 0);
}

/// Case 40: the reference lets the others go on.
#[tokio::test(start_paused = true)]
async fn the_first_failure_of_map_concurrent_stops_the_others() {
    let done = Arc::new(AtomicUsize::new(0));
    let count = done.clone();
    let mapped = map_concurrent(0..8, 8, |n: u64| {
        let count = count.clone();
        async move {
            clock::sleep(ms(10 + n)).await;
            if n == 5 {
                return Err(NodeError::permanent("five"));
            }
            count.fetch_add(1, Ordering::SeqCst);
            Ok(n)
        }
    });
    let error = mapped.await.expect_err("one fails");
    assert_eq!(error.to_string(), "five");
    clock::sleep(ms(100)).await;
    assert_eq!(done.load(Ordering::SeqCst), 5, "those before it");
    let none = map_concurrent([1], 0, |n: u64| async move { Ok(n) }).await;
    assert!(none.is_err_and(|error| !error.retryable));
}

fn two_ways(policy: Option<RoutePolicy<u64>>) -> Flow<u64, String> {
    let mut b = FlowBuilder::new("ways");
    let even = b.node("even", |n: u64, _| async move { Ok(format!("{n} even")) });
    let odd = b.node("odd", |n: u64, _| async move { Ok(format!("{n} odd")) });
    let propose = |n: &u64, _: &Context| match n {
        0 => Route::nothing(),
        1 => Route::names(Vec::<String>::new()),
        100 => Route::all(),
        n if n.is_multiple_of(2) => Route::named("even"),
        _ => Route::named("odd"),
    };
    let parity = match policy {
        None => b.route("parity", propose),
        Some(policy) => b.route_with("parity", propose, policy),
    };
    b.connect(parity, even).connect(parity, odd);
    b.ingress(parity).egress(even).egress(odd);
    b.build().expect("it is a good graph")
}

/// Case 41.
#[tokio::test(start_paused = true)]
async fn a_router_sends_by_name_and_to_several() {
    let flow = two_ways(None);
    let evens = run(&flow, 2).await;
    assert_eq!(evens.values, ["2 even"]);
    assert_node_sequence(&evens, ["parity", "even"]);
    assert_eq!(run(&flow, 3).await.values, ["3 odd"]);
    let mut both = run(&flow, 100).await.values;
    both.sort();
    assert_eq!(both, ["100 even", "100 odd"]);
}

/// Case 42.
#[tokio::test(start_paused = true)]
async fn a_router_that_chooses_nobody_ends_the_branch_and_the_trace_is_done() {
    let flow = two_ways(None);
    for nobody in [0, 1] {
        let run = run(&flow, nobody).await;
        assert!(run.outcome.is_done() && run.values.is_empty(), "{run:?}");
        assert_node_sequence(&run, ["parity"]);
    }
}

/// Case 43.
#[tokio::test(start_paused = true)]
async fn a_policy_narrows_drops_or_accepts_what_a_router_proposed() {
    let policy = RoutePolicy::new(|request| {
        assert_eq!(request.context.node().as_str(), "parity");
        match request.payload {
            100 => {
                assert_eq!(request.proposed, ["even", "odd"]);
                Decision::only("odd")
            }
            4 => Decision::Drop,
            6 => Decision::Only(Vec::new()),
            8 => Decision::only("nowhere"),
            _ => Decision::Accept,
        }
    });
    let flow = two_ways(Some(policy));
    assert_eq!(run(&flow, 100).await.values, ["100 odd"]);
    assert_eq!(run(&flow, 2).await.values, ["2 even"]);
    for dropped in [4, 6] {
        let run = run(&flow, dropped).await;
        assert!(run.outcome.is_done() && run.values.is_empty());
    }
    let (code, message) = failure(&run(&flow, 8).await.outcome);
    assert_eq!(code, FlowErrorCode::NoSuchTarget);
    assert!(
        message.contains("`nowhere`") && message.contains("`even` and `odd`"),
        "{message}"
    );
}

/// Case 44.
#[tokio::test(start_paused = true)]
async fn a_policy_by_tenant_differs_from_flow_to_flow() {
    let table = |text| TablePolicy::by_tenant().json(text).expect("it is a table");
    let first = two_ways(Some(table(r#"{"acme": "even", "other": null}"#).into()));
    let second = two_ways(Some(table(r#"{"acme": "odd"}"#).into()));
    for (flow, expected) in [(first.clone(), "100 even"), (second, "100 odd")] {
        let run = run_one(&flow, Envelope::new(100).tenant(tenant("acme"))).await;
        assert_eq!(run.expect("it is accepted").values, [expected]);
    }
    let other = run_one(&first, Envelope::new(100).tenant(tenant("other"))).await;
    assert!(other.expect("it is accepted").values.is_empty());
    let unnamed = run_one(&first, Envelope::new(100).tenant(tenant("third"))).await;
    let unnamed = unnamed.expect("it is accepted").values;
    assert_eq!(unnamed.len(), 2, "no entry means as proposed");
}

/// Case 45.
#[tokio::test(start_paused = true)]
async fn a_policy_may_ask_somebody_and_its_failure_is_the_routers() {
    let asked = Arc::new(AtomicUsize::new(0));
    let times = asked.clone();
    let policy = RoutePolicy::new_async(move |request: volary_flow::graph::RouteRequest<u64>| {
        let time = times.fetch_add(1, Ordering::SeqCst);
        async move {
            clock::sleep(ms(5)).await;
            match request.payload {
                3 => Err(NodeError::permanent("no answer")),
                _ if time == 0 => Ok(Decision::only("odd")),
                _ => Ok(Decision::Accept),
            }
        }
    });
    let flow = two_ways(Some(policy));
    assert_eq!(run(&flow, 2).await.values, ["2 odd"]);
    assert_eq!(run(&flow, 2).await.values, ["2 even"]);
    let (code, message) = failure(&run(&flow, 3).await.outcome);
    assert_eq!(
        (code, message.as_str()),
        (FlowErrorCode::NodeError, "no answer")
    );
}

#[derive(Clone, Debug)]
enum Event {
    Order(u64),
    Note(String),
    Ping,
}

fn switch(otherwise: bool) -> Flow<Event, String> {
    let mut b = FlowBuilder::new("events");
    let order = b.node("order", |cents: u64, _| async move {
        Ok(format!("{cents} cents"))
    });
    let note = b.node("note", pass::<String>);
    let rest = b.node(
        "rest",
        |event: Event, _| async move { Ok(format!("{event:?}")) },
    );
    let kind = b
        .switch("kind")
        .arm("order", variant!(Event::Order), order)
        .arm("note", variant!(Event::Note), note);
    let kind = if otherwise {
        kind.otherwise(rest)
    } else {
        let kind = kind.done();
        b.ingress(rest);
        kind
    };
    b.ingress(kind).egress(order).egress(note).egress(rest);
    b.build().expect("it is a good graph")
}

/// Case 46.
#[tokio::test(start_paused = true)]
async fn a_switch_sends_each_variant_to_its_arm_with_its_own_type() {
    let flow = switch(true);
    assert_eq!(run(&flow, Event::Order(5)).await.values, ["5 cents"]);
    assert_eq!(run(&flow, Event::Note("hm".into())).await.values, ["hm"]);
    assert_eq!(run(&flow, Event::Ping).await.values, ["Ping"]);
    let labels = flow
        .describe()
        .edges
        .iter()
        .map(|edge| edge.label.as_deref());
    assert_eq!(
        labels.collect::<Vec<_>>(),
        [Some("order"), Some("note"), Some("otherwise")]
    );
}

/// Case 46.
#[tokio::test(start_paused = true)]
async fn a_value_that_no_arm_takes_fails_the_trace() {
    let (code, message) = failure(&run(&switch(false), Event::Ping).await.outcome);
    assert_eq!(code, FlowErrorCode::NoSuchTarget);
    assert_eq!(message, "`kind` has no arm that takes this value");
}

/// Each number arrives at the join after that many milliseconds.
fn gather(k: usize, policy: JoinPolicy) -> Flow<Vec<u64>, Vec<u64>> {
    let mut b = FlowBuilder::new("gather");
    let split = b.flat_map("split", pass::<Vec<u64>>);
    let wait = b.node("wait", |n: u64, _| async move {
        clock::sleep(ms(n)).await;
        Ok(n)
    });
    let at_once = NodePolicy {
        concurrency: 16,
        ..NodePolicy::default()
    };
    let join = b.join_k("join", k);
    b.policy(wait, at_once)
        .join_policy(join, policy)
        .queue_maxsize(1);
    b.connect(split, wait).connect(wait, join);
    b.ingress(split).egress(join);
    b.build().expect("it is a good graph")
}

/// Case 47.
#[tokio::test(start_paused = true)]
async fn a_join_of_k_waits_for_k_and_hands_them_on_in_the_order_of_arrival() {
    let flow = gather(3, JoinPolicy::default()).start(RunConfig::default());
    let from = tokio::time::Instant::now();
    let id = TraceId::generate();
    let mut handle = flow
        .emit(Envelope::new(vec![30, 10, 20]).trace(id))
        .await
        .expect("it is accepted");
    let Some(Item::Value(values)) = handle.next().await else {
        panic!("it yields a value");
    };
    assert_eq!(values, [10, 20, 30]);
    assert!(from.elapsed() >= ms(30), "nothing came before the third");
    assert_eq!(handle.trace_id(), id);
    assert!(handle.outcome().await.is_done());
}

/// Cases 47 and 48: what cannot complete is told, and does not stay for the next request.
#[tokio::test(start_paused = true)]
async fn a_join_that_cannot_complete_fails_the_trace_or_goes_on_with_what_is_there() {
    let (code, message) = failure(
        &run(&gather(3, JoinPolicy::default()), vec![1, 2])
            .await
            .outcome,
    );
    assert_eq!(code, FlowErrorCode::JoinIncomplete);
    assert!(message.contains('2') && message.contains('3'), "{message}");
    let partial = JoinPolicy {
        partial: true,
        ..JoinPolicy::default()
    };
    assert_eq!(run(&gather(3, partial), vec![2, 1]).await.values, [[1, 2]]);
    let timeout = JoinPolicy {
        timeout: Some(ms(50)),
        partial: true,
    };
    let run = run(&gather(3, timeout), vec![10, 20, 500]).await;
    assert_eq!(run.values[0], [10, 20]);
}

/// Case 48.
#[test]
fn a_join_of_nothing_or_without_inputs_is_refused() {
    let mut b = FlowBuilder::<u64, Vec<u64>>::new("joins");
    let split = b.flat_map("split", |n: u64, _| async move { Ok(vec![n]) });
    let zero = b.join_k("zero", 0);
    let alone = b.join_all::<u64>("alone");
    b.connect(split, zero)
        .ingress(split)
        .egress(zero)
        .egress(alone);
    let errors = problems(b.build());
    let lines: Vec<String> = errors.problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "node `zero`: joins 0 messages, so that it would never begin; set k to at least 1, or use b.join_all",
            "node `alone`: has no inputs to join; connect the branches to it: b.connect(branch, alone)",
        ]
    );
}

fn orders() -> impl Strategy<Value = (usize, Vec<Vec<u64>>)> {
    (2..=4_usize).prop_flat_map(|k| {
        let order = Just((1..=k as u64).map(|n| n * 7).collect::<Vec<_>>()).prop_shuffle();
        (Just(k), prop::collection::vec(order, 1..6))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    /// Case 49.
    #[test]
    fn joins_of_traces_at_once_keep_to_their_own_values_in_the_order_of_arrival((k, orders) in orders()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let flow = gather(k, JoinPolicy::default()).start(RunConfig::default());
            let mut handles = Vec::new();
            for order in orders {
                let mut expected = order.clone();
                expected.sort_unstable();
                let handle = flow.emit(Envelope::new(order)).await.expect("it is accepted");
                handles.push((handle, expected));
            }
            for (handle, expected) in handles {
                let values = handle.values().await.expect("it is done");
                assert_eq!(values.len(), 1, "one output for each trace");
                let mut sorted = values[0].clone();
                sorted.sort_unstable();
                assert_eq!(sorted, expected, "its own values");
            }
        });
    }
}

/// Case 50.
#[tokio::test(start_paused = true)]
async fn a_routing_table_comes_from_text_file_environment_or_loader_and_can_be_changed() {
    const TEXT: &str = r#"{"acme": "odd", "both": ["odd", "even"], "none": [], "as-is": "*"}"#;
    let empty = TablePolicy::<u64>::by_tenant;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("table.json");
    std::fs::write(&file, TEXT).expect("it is written");
    let mut lines = "acme=odd".lines();
    let loaded = empty().loaded("lines", "acme=odd", |_| {
        let line = lines.next().and_then(|line| line.split_once('='));
        line.map(|(key, to)| vec![(key, Decision::only(to))])
            .ok_or("no line")
    });
    let tables = [
        empty().json(TEXT).expect("it is a table"),
        empty().json_file(&file).expect("it is a table"),
        empty().env("ROUTES", Some(TEXT)).expect("it is a table"),
        loaded.expect("it is a table"),
    ];
    for table in tables {
        let flow = two_ways(Some(table.clone().into()));
        let acme = async || {
            let run = run_one(&flow, Envelope::new(2).tenant(tenant("acme"))).await;
            run.expect("it is accepted").values
        };
        assert_eq!(acme().await, ["2 odd"]);
        table
            .update_mapping([("acme", Decision::Accept)])
            .expect("there is room");
        assert_eq!(acme().await, ["2 even"]);
        assert_eq!(table.remove("acme"), Some(Decision::Accept));
        table.set_default(Decision::Drop);
        assert!(acme().await.is_empty());
    }
}

/// Case 50.
#[test]
fn what_is_no_routing_table_is_told_with_its_place() {
    let table = TablePolicy::<u64>::by_trace;
    let text =
        |result: Result<TablePolicy<u64>, TableError>| result.expect_err("it is wrong").to_string();
    assert_eq!(
        text(table().env("ROUTES", None)),
        "the environment variable `ROUTES` is not set: it should hold a routing table as JSON"
    );
    assert_eq!(
        text(table().env("ROUTES", Some("[1]"))),
        "environment variable ROUTES: not a routing table: invalid type: sequence, expected an object from keys to \
         targets at line 1 column 0"
    );
    let number = text(table().json(r#"{"a": 1}"#));
    assert!(
        number.contains("expected the name of a target, a list of names"),
        "{number}"
    );
    let twice = text(table().json(r#"{"a": "x", "a": "y"}"#));
    assert!(twice.contains("the key `a` stands there twice"), "{twice}");
    let file = text(table().json_file("no/such/table.json"));
    assert!(
        file.starts_with("routing table no/such/table.json: "),
        "{file}"
    );
    let load = text(table().loaded("lines", "", |_| Err::<Vec<(String, _)>, _>("empty")));
    assert_eq!(load, "lines: empty");
}

/// Case 50: the graph knows what its tables name.
#[test]
fn a_table_that_names_what_its_router_does_not_lead_to_is_refused() {
    let mut b = FlowBuilder::<u64, u64>::new("tables");
    let even = b.node("even", pass);
    let table = TablePolicy::by_tenant().json(r#"{"a": "evne", "b": "elsewhere"}"#);
    let router = b.route_with("router", |_, _| Route::all(), table.expect("it is a table"));
    b.connect(router, even).ingress(router).egress(even);
    let errors = problems(b.build());
    let lines: Vec<String> = errors.problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "node `router`: its routing table names `elsewhere`, to which it does not lead; it leads to `even`",
            "node `router`: its routing table names `evne`, to which it does not lead; write `even`, or connect it to a \
             node `evne`",
        ]
    );
}

// --- Types and nodes -------------------------------------------------------------------------

/// Case 60.
#[test]
fn headers_have_defaults_and_facts_are_not_shared_between_envelopes() {
    let headers = Headers::default();
    assert_eq!((headers.topic, headers.priority), (None, 0));
    assert_eq!(headers.tenant.as_str(), "default");
    let facts: Meta = Arc::new([("a".to_owned(), json!(1))].into());
    let first = Envelope::new(1).meta(facts.clone());
    let mut second = Envelope::new(2).meta(facts);
    Arc::make_mut(&mut second.meta).insert("b".to_owned(), json!(2));
    assert_eq!((first.meta.len(), second.meta.len()), (1, 2));
    assert_ne!(first.trace_id, second.trace_id);
}

/// Case 60.
#[tokio::test(start_paused = true)]
async fn facts_survive_every_hop() {
    let mut b = FlowBuilder::<u64, u64>::new("hops");
    let nodes: Vec<_> = (0..4).map(|n| b.node(format!("hop-{n}"), pass)).collect();
    for pair in nodes.windows(2) {
        b.connect(pair[0], pair[1]);
    }
    b.ingress(nodes[0]).egress(nodes[3]);
    let facts: Meta = Arc::new([("who".to_owned(), json!({"id": 7}))].into());
    let envelope = Envelope::new(1).meta(facts.clone());
    let run = run_one(&b.build().expect("it is a good graph"), envelope).await;
    let run = run.expect("it is accepted");
    assert_eq!(run.attempts.len(), 4);
    assert!(
        run.attempts
            .iter()
            .all(|attempt| attempt.seen.meta == facts)
    );
}

/// Case 62.
#[test]
fn policies_that_mean_nothing_are_refused_when_the_graph_is_built() {
    let mut b = FlowBuilder::<u64, u64>::new("policies");
    let node = b.node("node", pass);
    let policy = NodePolicy {
        concurrency: 0,
        timeout: Some(Duration::ZERO),
        backoff: Backoff {
            factor: f64::NAN,
            jitter: 1.5,
            ..Backoff::default()
        },
        retry_budget: RetryBudget {
            ratio: -1.0,
            reserve: 1,
        },
        breaker: Some(Breaker {
            failures: 0,
            open_for: Duration::ZERO,
        }),
        ..NodePolicy::default()
    };
    b.policy(node, policy).queue(node, 0).queue_maxsize(0);
    b.ingress(node).egress(node);
    let errors = problems(b.build());
    let count = |code| {
        errors
            .problems
            .iter()
            .filter(|problem| problem.code == code)
            .count()
    };
    assert_eq!(count(ProblemCode::ZeroBound), 6, "{errors}");
    assert_eq!(count(ProblemCode::BadNumber), 3, "{errors}");
    assert_eq!(errors.problems.len(), 9, "{errors}");
}

/// Case 64.
#[test]
fn two_nodes_of_one_name_and_nodes_of_another_builder_are_refused() {
    let mut other = FlowBuilder::<u64, u64>::new("other");
    let foreign = other.node("foreign", pass::<u64>);
    let mut b = FlowBuilder::<u64, u64>::new("names");
    let one = b.node("same", pass);
    let two = b.node("same", pass);
    b.connect(one, two).connect(two, foreign);
    b.ingress(one).egress(two);
    let errors = problems(b.build());
    let codes: Vec<_> = errors.problems.iter().map(|problem| problem.code).collect();
    assert_eq!(
        codes,
        [ProblemCode::DuplicateName, ProblemCode::ForeignNode],
        "{errors}"
    );
}

// --- Pictures --------------------------------------------------------------------------------

fn drawn() -> Flow<u64, u64> {
    let mut b = FlowBuilder::<u64, u64>::new("drawn");
    let first = b.node("a-b", pass);
    let second = b.node("a.b", pass);
    let end = b.node("end", pass);
    let again = b.route("again", move |n: &u64, _| match n {
        0 => Route::to(end),
        _ => Route::to(first),
    });
    b.connect(first, second)
        .connect(second, again)
        .connect(again, end);
    b.connect_back(again, first);
    b.ingress(first).egress(end);
    b.build().expect("it is a good graph")
}

/// Case 72.
#[test]
fn a_mermaid_chart_labels_loops_and_ends_and_gives_every_node_an_id_of_its_own() {
    let text = drawn().to_mermaid(Direction::TopToBottom);
    let expected = "flowchart TB
    ingress([\"ingress\"]):::ingress
    n_a_b[\"a-b\"]:::code
    n_a_b_2[\"a.b\"]:::code
    n_end[\"end\"]:::code
    n_again{\"again\"}:::choice
    egress([\"egress\"]):::egress
    ingress --> n_a_b
    n_a_b --> n_a_b_2
    n_a_b_2 --> n_again
    n_again --> n_end
    n_again -. \"loop\" .-> n_a_b
    n_end --> egress
";
    let (chart, classes) = text.split_once("    classDef ").expect("it has classes");
    assert_eq!(chart, expected);
    assert!(classes.contains("classDef egress "));
}

/// Case 72.
#[test]
fn a_dot_graph_labels_loops_and_ends_and_quotes_what_it_shows() {
    let text = drawn().to_dot(Direction::LeftToRight);
    for line in [
        "digraph \"drawn\" {",
        "    rankdir=LR;",
        "    ingress [label=\"ingress\", shape=oval, class=\"ingress\"];",
        "    n_a_b_2 [label=\"a.b\", class=\"code\"];",
        "    n_again [label=\"again\", shape=diamond, class=\"choice\"];",
        "    n_again -> n_a_b [label=\"loop\", style=dashed, class=\"loop\"];",
        "    n_end -> egress;",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    let mut made_by_hand = drawn().describe().clone();
    made_by_hand.nodes[0].name = "say \"hi\"\n<b>".to_owned();
    let dot = made_by_hand.to_dot(Direction::LeftToRight);
    assert!(dot.contains(r#"label="say \"hi\" <b>""#), "{dot}");
    let mermaid = made_by_hand.to_mermaid(Direction::LeftToRight);
    assert!(
        mermaid.contains("[\"say #quot;hi#quot; #lt;b#gt;\"]"),
        "{mermaid}"
    );
}

/// Case 72: what is drawn can be stored, and drawn elsewhere.
#[test]
fn a_description_comes_back_from_json_and_another_version_is_refused() {
    let flow = drawn();
    let text = serde_json::to_string(flow.describe()).expect("it is JSON");
    let again = Description::from_json(&text).expect("it is a description");
    let direction = Direction::default();
    assert_eq!(again.to_mermaid(direction), flow.to_mermaid(direction));
    let later = text.replacen("\"version\":1", "\"version\":2", 1);
    let error = Description::from_json(&later).expect_err("it is of a later version");
    assert!(
        matches!(error, DescriptionError::Version { found: 2 }),
        "{error}"
    );
    let unknown = text.replacen("\"egress\":[\"end\"]", "\"egress\":[\"edn\"]", 1);
    let error = Description::from_json(&unknown).expect_err("it names what it has not");
    assert!(matches!(error, DescriptionError::UnknownNode(name) if name == "edn"));
}

// --- Testkit ---------------------------------------------------------------------------------

fn chain() -> Flow<u64, u64> {
    let mut b = FlowBuilder::new("chain");
    let first = b.node("first", pass);
    let flaky = simulate_error(pass::<u64>, 2, NodeError::retryable("reset"));
    let second = b.node("second", flaky);
    let policy = NodePolicy {
        max_retries: 2,
        ..NodePolicy::default()
    };
    b.policy(second, policy).connect(first, second);
    b.ingress(first).egress(second);
    b.build().expect("it is a good graph")
}

/// Case 81.
#[tokio::test(start_paused = true)]
async fn run_one_tells_the_nodes_a_trace_went_through() {
    let run = run(&chain(), 1).await;
    assert_eq!(run.values, [1]);
    assert_node_sequence(&run, ["first", "second"]);
    let wrong = catch_unwind(AssertUnwindSafe(|| assert_node_sequence(&run, ["second"])));
    let message = wrong.expect_err("it went another way");
    let message = message.downcast_ref::<String>().expect("it is a text");
    assert_eq!(
        message,
        "the trace went first → second instead of second, and ended as done"
    );
}

/// Case 82.
#[tokio::test(start_paused = true)]
async fn simulate_error_fails_so_often_and_then_works() {
    let flow = chain();
    let first = run(&flow, 1).await;
    assert_eq!((first.attempts_of("second"), first.values), (3, vec![1]));
    assert_eq!(
        run(&flow, 2).await.attempts_of("second"),
        1,
        "it is used up"
    );
    let none = catch_unwind(|| {
        drop(simulate_error(
            pass::<u64>,
            0,
            NodeError::permanent("never"),
        ));
    });
    assert!(none.is_err());
}

/// Case 83.
#[tokio::test(start_paused = true)]
async fn an_envelope_that_was_changed_on_the_way_is_noticed() {
    let mut run = run(&chain(), 1).await;
    assert_envelope_preserved(&run);
    let notices = |run: &RunOutcome<u64>| {
        catch_unwind(AssertUnwindSafe(|| assert_envelope_preserved(run))).is_err()
    };
    let kept = run.clone();
    run.attempts[1].seen.headers.tenant = tenant("other");
    assert!(notices(&run));
    run = kept.clone();
    run.attempts[1].seen.trace_id = TraceId::generate();
    assert!(notices(&run));
    run = kept;
    run.attempts.clear();
    assert!(notices(&run), "nothing ran");
}
