//! Traces of an earlier life that do not get as far as their first step in this one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use volary_flow::{
    Envelope, FlowErrorCode, Outcome, RunConfig,
    graph::{Flow, FlowBuilder, RunningFlow},
    observe::{FlowEvent, FlowEventKind, Observer},
};
use volary_kernel::{TraceId, clock};

use crate::world::{Probe, World, crash, demo};

const LONG: Duration = Duration::from_secs(60);

/// Counts the cancels of which nothing is left.
#[derive(Default)]
struct Finishes(AtomicU32);

impl Observer for Finishes {
    fn observe(&self, events: &[FlowEvent]) {
        let finish = |event: &&FlowEvent| matches!(event.kind, FlowEventKind::CancelFinish);
        let finishes = events.iter().filter(finish).count();
        self.0
            .fetch_add(u32::try_from(finishes).unwrap(), Ordering::SeqCst);
    }
}

/// One node that waits at the gate, with a queue of this length.
fn queued(probe: &Probe, bound: usize) -> Flow<u64, u64> {
    let mut b = FlowBuilder::new("queued");
    let probe = probe.clone();
    let node = b.durable_node("node", move |n: u64, _| {
        let probe = probe.clone();
        async move {
            probe.pass().await;
            Ok(n)
        }
    });
    b.ingress(node).egress(node).queue(node, bound);
    b.build_durable().unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_finish_of_a_cancel_is_told_of_a_trace_that_was_not_taken_up_yet() {
    let world = World::new().await;
    let probe = Probe::new();
    let life = world.start(&queued(&probe, 64)).await;
    let mut ids = Vec::new();
    for n in 0..5 {
        let envelope = Envelope::new(n).tenant(demo());
        ids.push(life.emit(envelope).await.unwrap().trace_id());
    }
    crash(life).await;

    // One runs and one stands in the queue; the others are taken up when there is room.
    let finishes = Arc::new(Finishes::default());
    let config = RunConfig {
        observers: vec![finishes.clone()],
        ..world.config()
    };
    let life = queued(&probe, 1).start(config);
    life.ready().await.unwrap();
    assert!(life.cancel(ids[4], &demo()).cancelled);
    probe.open();
    for id in &ids[..4] {
        let handle = life.fetch(*id, &demo()).expect("it goes on");
        let ended = clock::timeout(LONG, handle.outcome()).await;
        assert!(ended.expect("it ends").is_done());
    }
    let handle = life.fetch(ids[4], &demo()).expect("it is kept");
    assert!(matches!(handle.outcome().await, Outcome::Cancelled));
    assert!(life.stop(LONG).await.is_clean());
    assert_eq!(finishes.0.load(Ordering::SeqCst), 1);
    world.left_is(0).await;
}

/// Five traces of an earlier life: one runs, one stands in the queue, and the third waits for its place.
async fn in_line(world: &World, probe: &Probe) -> (RunningFlow<u64, u64>, Vec<TraceId>) {
    let life = world.start(&queued(probe, 64)).await;
    let mut ids = Vec::new();
    for n in 0..5 {
        let envelope = Envelope::new(n).tenant(demo());
        ids.push(life.emit(envelope).await.unwrap().trace_id());
    }
    crash(life).await;
    let life = world.start(&queued(probe, 1)).await;
    settle().await;
    (life, ids)
}

/// Lets all tasks run as far as they can.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_is_read_while_it_waits_to_be_taken_up_is_taken_up() {
    for given_up in [false, true] {
        let world = World::new().await;
        let probe = Probe::new();
        let (life, ids) = in_line(&world, &probe).await;
        let handle = life.fetch(ids[2], &demo()).expect("it waits");
        let mut outcome = Box::pin(handle.outcome());
        assert!(futures_util::poll!(&mut outcome).is_pending());
        if given_up {
            drop(outcome);
            let handle = life.fetch(ids[2], &demo()).expect("it waits");
            outcome = Box::pin(handle.outcome());
        }
        probe.open();
        let ended = clock::timeout(LONG, outcome).await;
        assert!(ended.expect("it ends").is_done());
        assert!(life.stop(LONG).await.is_clean());
    }
}

#[tokio::test(start_paused = true)]
async fn who_reads_one_that_waits_to_be_taken_up_is_told_of_its_end() {
    let world = World::new().await;
    let probe = Probe::new();
    let (life, ids) = in_line(&world, &probe).await;
    let handle = life.fetch(ids[2], &demo()).expect("it waits");
    #[expect(clippy::disallowed_methods, reason = "a test awaits it itself")]
    let outcome = tokio::spawn(handle.outcome());
    settle().await;
    // Whoever runs the flow hears of another, and looks after the line as well.
    assert!(life.pause(ids[4], &demo()));
    settle().await;
    assert!(life.cancel(ids[2], &demo()).cancelled);
    let ended = clock::timeout(LONG, outcome).await;
    assert!(matches!(
        ended.expect("it ends").unwrap(),
        Outcome::Cancelled
    ));
}

static ARMED: AtomicBool = AtomicBool::new(false);

/// Panics when its zero is cloned, once that is armed.
#[derive(Debug, Serialize, Deserialize)]
struct Touchy(u64);

impl Clone for Touchy {
    fn clone(&self) -> Self {
        assert!(
            self.0 != 0 || !ARMED.load(Ordering::SeqCst),
            "on purpose: cloned"
        );
        Self(self.0)
    }
}

/// Two ways in, each of which gets a clone.
fn branches(probe: &Probe) -> Flow<Touchy, u64> {
    let mut b = FlowBuilder::new("branches");
    for name in ["one", "two"] {
        let probe = probe.clone();
        let node = b.durable_node(name, move |n: Touchy, _| {
            let probe = probe.clone();
            async move {
                probe.pass().await;
                Ok(n.0)
            }
        });
        b.ingress(node).egress(node);
    }
    b.build_durable().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_restored_trace_whose_payload_panics_when_it_is_cloned_fails_alone() {
    let world = World::new().await;
    let probe = Probe::new();
    let flow = branches(&probe);
    let life = world.start(&flow).await;
    let mut ids = Vec::new();
    for n in [1, 0, 2] {
        let envelope = Envelope::new(Touchy(n)).tenant(demo());
        ids.push(life.emit(envelope).await.unwrap().trace_id());
    }
    crash(life).await;

    ARMED.store(true, Ordering::SeqCst);
    probe.open();
    let life = world.start(&flow).await;
    for (id, n) in ids.into_iter().zip([1, 0, 2]) {
        let handle = life.fetch(id, &demo()).expect("it is there");
        let ended = clock::timeout(LONG, handle.values()).await;
        match ended.expect("it ends") {
            Ok(values) => assert_eq!(values, [n, n]),
            Err(Outcome::Failed(error)) => {
                assert_eq!((n, error.code), (0, FlowErrorCode::NodePanic));
                assert!(error.message.contains("on purpose"), "{error}");
            }
            Err(other) => panic!("{n} ended as {other:?}"),
        }
    }
    // Who runs the flow goes on hearing of others.
    let envelope = Envelope::new(Touchy(3)).tenant(demo());
    let handle = life.emit(envelope).await.unwrap();
    assert_eq!(handle.values().await.unwrap(), [3, 3]);
    assert_eq!(life.depths().traces, 0);
    assert!(life.stop(LONG).await.is_clean());
    world.left_is(0).await;
}
