//! Nothing comes out.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use volary_flow::{
    Context, FlowBuilder, NodeError, Outcome, graph::ProblemCode, observe::FlowEventKind,
    policy::NodePolicy,
};
use volary_kernel::{TraceId, clock};

use crate::{
    desk::{ANN, Desk, single},
    support::{ms, of, soon, tenant, trace, until},
};

async fn pass(n: u64, _: Context) -> Result<u64, NodeError> {
    Ok(n)
}

#[tokio::test(start_paused = true)]
async fn no_node_leads_out() {
    let draw = |way_out: &[&str]| {
        let mut b = FlowBuilder::<u64, u64>::new("orders");
        let (check, charge, audit) = (
            b.node("check", pass),
            b.node("charge", pass),
            b.node("audit", pass),
        );
        b.connect(check, charge)
            .connect(check, audit)
            .ingress(check);
        for name in way_out {
            b.egress(if *name == "charge" { charge } else { audit });
        }
        b.build()
    };
    let nothing = draw(&[]).unwrap_err();
    assert!(nothing.has(ProblemCode::NoEgress), "{nothing}");
    assert!(nothing.to_string().contains("b.egress(node)"), "{nothing}");
    let half = draw(&["charge"]).unwrap_err();
    assert!(half.has(ProblemCode::DeadEnd), "{half}");
    assert!(half.to_string().contains("node `audit`"), "{half}");

    let desk = Desk::start(&draw(&["charge", "audit"]).unwrap());
    let handle = desk.emit(of(ANN, 7)).await;
    assert_eq!(soon("values", handle.values()).await.unwrap(), [7, 7]);
}

#[tokio::test(start_paused = true)]
async fn another_traces_result_is_waited_for() {
    let desk = Desk::start(&single(NodePolicy::default(), pass));
    // Handles are dropped: what came of the traces waits to be fetched.
    for n in 1..=2 {
        desk.emit(of(ANN, n).trace(trace(n))).await;
    }
    let ann = tenant(ANN);
    let unknown = desk.flow.fetch(TraceId::generate(), &ann);
    assert!(unknown.is_none(), "nobody emitted it");
    let other = desk.flow.fetch(trace(1), &tenant("bob"));
    assert!(other.is_none(), "it is another tenant's");

    // By the trace that was emitted, each gets its own.
    for n in [2, 1] {
        let fetched = desk.flow.fetch(trace(n), &ann).unwrap();
        assert_eq!(soon("a result", fetched.result()).await.unwrap(), n);
    }
    assert!(desk.flow.fetch(trace(1), &ann).is_none(), "it was read");
    // By the handle nothing has to be found.
    let handle = desk.emit(of(ANN, 3)).await;
    assert_eq!(soon("a result", handle.result()).await.unwrap(), 3);
}

#[tokio::test(start_paused = true)]
async fn the_trace_was_cancelled() {
    let desk = Desk::start(&single(NodePolicy::default(), |n, _| async move {
        clock::sleep(ms(100)).await;
        Ok(n)
    }));
    let handle = desk.emit(of(ANN, 1).trace(trace(1))).await;
    assert!(desk.flow.cancel(trace(1), &tenant(ANN)).cancelled);
    let outcome = soon("an outcome", handle.outcome()).await;
    assert!(matches!(outcome, Outcome::Cancelled), "{outcome:?}");

    let names = desk.seen.whole(trace(1)).await;
    assert!(names.contains(&"trace_cancel_start"), "{names:?}");
    let events = desk.seen.of(trace(1));
    let end = |kind: &FlowEventKind| {
        matches!(
            kind,
            FlowEventKind::TraceEnd {
                outcome: Outcome::Cancelled,
                ..
            }
        )
    };
    assert!(events.iter().any(|event| end(&event.kind)), "{events:?}");
    let cancelled = || desk.metric("traces_ended_total", &["outcome=\"cancelled\""]);
    until("the count of cancelled traces", || cancelled() == 1.0).await;
    assert_eq!(desk.metric("trace_cancel_start_total", &[]), 1.0);

    // Emitted again and left alone, it ends with its value.
    let again = desk.outcome(of(ANN, 1).trace(trace(1))).await;
    assert!(again.is_done(), "{again:?}");
    assert_eq!(cancelled(), 1.0);
}

#[tokio::test(start_paused = true)]
async fn the_time_of_the_trace_was_over() {
    let work = |takes: u64| {
        let policy = NodePolicy::default();
        single(policy, move |n, _| async move {
            clock::sleep(ms(takes)).await;
            Ok(n)
        })
    };
    // One runs until its time is over, the others wait behind it as long as they may.
    let slow = Desk::start(&work(1_000));
    let outcomes = slow.flood(3, |envelope| envelope.deadline(ms(500))).await;
    let late = |outcome: &Outcome| matches!(outcome, Outcome::DeadlineExceeded);
    assert!(outcomes.iter().all(late), "{outcomes:?}");
    let ended = || slow.metric("traces_ended_total", &["outcome=\"deadline_exceeded\""]);
    until("the count of late traces", || ended() == 3.0).await;
    until("the count of what was not run", || {
        slow.metric("deadline_skip_total", &[]) == 2.0
    })
    .await;
    slow.seen.wait("deadline_skip", 2).await;

    // A longer deadline, or a faster node.
    let outcomes = slow.flood(3, |envelope| envelope.deadline(ms(4_000))).await;
    assert!(outcomes.iter().all(Outcome::is_done), "{outcomes:?}");
    let fast = Desk::start(&work(100));
    let outcomes = fast.flood(3, |envelope| envelope.deadline(ms(500))).await;
    assert!(outcomes.iter().all(Outcome::is_done), "{outcomes:?}");
    assert_eq!(ended(), 3.0);
    assert_eq!(fast.metric("deadline_skip_total", &[]), 0.0);
}

/// Holds a thread while it is shut.
#[derive(Default)]
struct Gate(Mutex<bool>, Condvar);

impl Gate {
    fn pass(&self) {
        let mut open = self.0.lock();
        while !*open {
            self.1.wait(&mut open);
        }
    }

    fn set(&self, open: bool) {
        *self.0.lock() = open;
        self.1.notify_all();
    }
}

const QUICK: u64 = 0;
const BLOCKS: u64 = 1;
const BLOCKS_ELSEWHERE: u64 = 2;
const TAKES_LONG: u64 = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_holds_its_thread() {
    let gate = Arc::new(Gate::default());
    let shut = gate.clone();
    let policy = NodePolicy {
        concurrency: 2,
        ..NodePolicy::default()
    };
    let flow = single(policy, move |n, _| {
        let gate = shut.clone();
        async move {
            match n {
                BLOCKS => gate.pass(),
                BLOCKS_ELSEWHERE => tokio::task::spawn_blocking(move || gate.pass()).await?,
                TAKES_LONG => clock::sleep(ms(200)).await,
                _ => {}
            }
            Ok(n)
        }
    });
    let desk = Desk::start_with(&flow, |config| config.limits.blocked_after = ms(50));
    let held = desk.emit(of(ANN, BLOCKS)).await;
    let behind = desk.emit(of("bob", QUICK)).await;
    desk.seen.wait("node_blocked", 1).await;
    let told = || desk.metric("node_blocked_total", &["node=\"node\""]);
    assert!(told() >= 1.0);
    let blocked = desk.flow.blocked();
    assert_eq!(blocked[0].0.as_str(), "node", "its health names it");
    assert_eq!(desk.metric("node_success_total", &[]), 0.0, "others wait");
    gate.set(true);
    for handle in [held, behind] {
        assert!(soon("the rest", handle.outcome()).await.is_done());
    }

    // The same work on a blocking thread: others go through beside it, for as long as it lasts.
    gate.set(false);
    let before = told();
    let held = desk.emit(of(ANN, BLOCKS_ELSEWHERE)).await;
    for n in [QUICK, TAKES_LONG] {
        let beside = desk.outcome(of("bob", n)).await;
        assert!(beside.is_done(), "{beside:?}");
    }
    assert!(desk.flow.blocked().is_empty());
    gate.set(true);
    assert!(soon("the rest", held.outcome()).await.is_done());
    assert_eq!(told(), before);
}
