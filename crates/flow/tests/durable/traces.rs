//! Durable traces over several lives of a flow.

use std::{
    pin::Pin,
    task::{Context as Poller, Poll},
    time::Duration,
};

use volary_flow::{
    EmitError, Envelope, FlowErrorCode, NodeError, Outcome, RunConfig,
    graph::FlowBuilder,
    state::{DurableConfig, Once},
};
use volary_kernel::{ManualClock, TraceId};
use volary_store::StoreError;

use crate::{
    store::broken,
    world::{Probe, World, crash, demo, two},
};

fn envelope(n: u64) -> Envelope<u64> {
    Envelope::new(n).tenant(demo())
}

#[tokio::test]
async fn an_accepted_trace_is_on_disk_and_goes_on_in_the_next_life_without_repeating_steps() {
    let world = World::new().await;
    let probe = Probe::new();
    let flow = two(&probe, None);
    let life = world.start(&flow).await;
    let handle = life.emit(envelope(4)).await.unwrap();
    let id = handle.trace_id();
    probe.second_ran(1).await;
    let left = world.left().await;
    assert!(left[0].starts_with("flow.live/two/"), "{left:?}");
    assert!(left[1].contains("/first/0"), "{left:?}");
    let report = life.stop(Duration::ZERO).await;
    assert_eq!(report.unfinished, [id]);
    let outcome = handle.outcome().await;
    assert!(matches!(outcome, Outcome::Dropped { .. }), "{outcome:?}");
    drop(life);

    probe.open();
    let life = world.start(&flow).await;
    let handle = life.fetch(id, &demo()).expect("it goes on");
    assert_eq!(handle.result().await.unwrap(), 10);
    assert_eq!(
        probe.counts(),
        (1, 2),
        "the first answered from its receipt"
    );
    let keys = probe.keys.lock().clone();
    assert_eq!(keys[0], keys[1], "one key in both lives");
    assert_eq!(keys[0], format!("{id}/second/0"));
    world.left_is(0).await;
    assert_eq!(world.told().await, ["flow.accepted", "flow.ended"]);
}

#[tokio::test]
async fn results_are_kept_over_restarts_until_they_are_read() {
    let world = World::new().await;
    let probe = Probe::new();
    probe.open();
    let flow = two(&probe, None);
    let life = world.start(&flow).await;
    let id = life.emit(envelope(1)).await.unwrap().trace_id();
    life.stop(Duration::from_secs(10)).await;
    drop(life);
    world.left_is(1).await;

    let life = world.start(&flow).await;
    assert!(life.fetch(id, &"other".parse().unwrap()).is_none());
    let again = life.emit(envelope(2).trace(id)).await;
    assert!(matches!(again, Err(EmitError::TraceInUse(used)) if used == id));
    let handle = life.fetch(id, &demo()).expect("it is kept");
    assert_eq!(handle.result().await.unwrap(), 4);
    assert!(life.fetch(id, &demo()).is_none(), "it was read");
    world.left_is(0).await;
    let again = life.emit(envelope(2).trace(id)).await.unwrap();
    assert_eq!(again.result().await.unwrap(), 6, "the id is free again");
    assert_eq!(probe.counts(), (2, 2));
}

#[tokio::test]
async fn an_id_that_lives_in_the_store_is_in_use() {
    let world = World::new().await;
    let probe = Probe::new();
    let flow = two(&probe, None);
    let life = world.start(&flow).await;
    let id = life.emit(envelope(1)).await.unwrap().trace_id();
    crash(life).await;
    let life = flow.start(world.config());
    // Without waiting until it is ready: emit does.
    let again = life.emit(envelope(2).trace(id)).await;
    assert!(matches!(again, Err(EmitError::TraceInUse(used)) if used == id));
    let report = life.cancel(id, &demo());
    assert!(report.cancelled);
    let handle = life.fetch(id, &demo()).unwrap();
    assert!(matches!(handle.outcome().await, Outcome::Cancelled));
    world.left_is(0).await;
}

#[tokio::test]
async fn an_effect_in_doubt_that_nothing_can_tell_of_is_parked_and_a_person_can_retry_it() {
    let world = World::new().await;
    let probe = Probe::new();
    let flow = two(&probe, Some(Once::park()));
    let life = world.start(&flow).await;
    let id = life.emit(envelope(4)).await.unwrap().trace_id();
    probe.second_ran(1).await;
    crash(life).await;

    probe.open();
    let life = world.start(&flow).await;
    let outcome = life.fetch(id, &demo()).unwrap().outcome().await;
    let Outcome::Failed(error) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(error.code, FlowErrorCode::InDoubt);
    assert!(error.message.contains(&format!("{id}/second/0")), "{error}");
    assert_eq!(probe.counts(), (1, 1), "it did not run again");
    let parked = world.queues.parked(None, 9).await.unwrap();
    assert_eq!(parked.len(), 1);
    assert_eq!((parked[0].trace, &parked[0].tenant), (Some(id), &demo()));
    assert_eq!(&*parked[0].queue, "flow/two");
    assert!(
        parked[0].reason.contains("in doubt"),
        "{}",
        parked[0].reason
    );
    world.left_is(0).await;

    world.queues.retry_parked(parked[0].id).await.unwrap();
    let handle = loop {
        if let Some(handle) = life.fetch(id, &demo()) {
            break handle;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(handle.result().await.unwrap(), 10);
    assert_eq!(probe.counts(), (1, 2), "only what was in doubt ran again");
    assert_eq!(world.queues.parked_count(), 0);
    world.left_is(0).await;
}

#[tokio::test]
async fn an_effect_in_doubt_is_probed_and_not_run_if_it_happened() {
    for happened in [true, false] {
        let world = World::new().await;
        let probe = Probe::new();
        let asked = probe.clone();
        let once = Once::probe(move |key: String| {
            asked.keys.lock().push(format!("asked {key}"));
            async move { Ok(happened.then_some(77)) }
        });
        let flow = two(&probe, Some(once));
        let life = world.start(&flow).await;
        let id = life.emit(envelope(4)).await.unwrap().trace_id();
        probe.second_ran(1).await;
        crash(life).await;
        probe.open();
        let life = world.start(&flow).await;
        let result = life.fetch(id, &demo()).unwrap().result().await;
        assert_eq!(result.unwrap(), if happened { 77 } else { 10 });
        assert_eq!(probe.counts().1, if happened { 1 } else { 2 });
        let key = format!("{id}/second/0");
        assert_eq!(
            probe.keys.lock()[..2],
            [key.clone(), format!("asked {key}")]
        );
        world.left_is(0).await;
    }
}

#[tokio::test]
async fn a_probe_that_fails_for_good_leaves_the_effect_in_doubt() {
    let world = World::new().await;
    let probe = Probe::new();
    let once = Once::probe(|_| async { Err(NodeError::permanent("nobody answers")) });
    let flow = two(&probe, Some(once));
    let life = world.start(&flow).await;
    let id = life.emit(envelope(4)).await.unwrap().trace_id();
    probe.second_ran(1).await;
    crash(life).await;
    let life = world.start(&flow).await;
    let outcome = life.fetch(id, &demo()).unwrap().outcome().await;
    assert!(
        matches!(&outcome, Outcome::Failed(error) if error.code == FlowErrorCode::InDoubt),
        "{outcome:?}"
    );
    assert_eq!(world.queues.parked_count(), 1);
}

#[tokio::test]
async fn an_idempotent_effect_in_doubt_is_run_again_with_the_same_key() {
    let world = World::new().await;
    let probe = Probe::new();
    let flow = two(&probe, Some(Once::idempotent()));
    let life = world.start(&flow).await;
    let id = life.emit(envelope(4)).await.unwrap().trace_id();
    probe.second_ran(1).await;
    crash(life).await;
    probe.open();
    let life = world.start(&flow).await;
    assert_eq!(life.fetch(id, &demo()).unwrap().result().await.unwrap(), 10);
    let keys = probe.keys.lock().clone();
    assert_eq!(keys.len(), 2);
    assert_eq!(keys[0], keys[1]);
}

#[tokio::test]
async fn a_deadline_goes_on_while_nobody_runs() {
    let clock = ManualClock::default();
    let world = World::at(clock.shared()).await;
    let probe = Probe::new();
    let flow = two(&probe, None);
    let life = world.start(&flow).await;
    let sent = envelope(4).deadline(Duration::from_secs(60));
    let id = life.emit(sent).await.unwrap().trace_id();
    let sent = envelope(4).deadline(Duration::from_secs(3600));
    let other = life.emit(sent).await.unwrap().trace_id();
    probe.second_ran(1).await;
    crash(life).await;
    clock.advance(Duration::from_secs(61));
    let life = world.start(&flow).await;
    let outcome = life.fetch(id, &demo()).unwrap().outcome().await;
    assert!(matches!(outcome, Outcome::DeadlineExceeded), "{outcome:?}");
    probe.open();
    assert_eq!(
        life.fetch(other, &demo()).unwrap().result().await.unwrap(),
        10
    );
}

#[tokio::test]
async fn what_cannot_be_stored_is_not_accepted_and_never_runs() {
    let world = World::new().await;
    let probe = Probe::new();
    let flow = two(&probe, None);
    let life = world.start(&flow).await;
    world.faulty.fail_after(0, broken());
    let refused = life.emit(envelope(4)).await;
    assert!(
        matches!(&refused, Err(EmitError::Store(why)) if why.contains("the disk is gone")),
        "{refused:?}"
    );
    world.faulty.heal();
    crash(life).await;
    assert_eq!(probe.counts(), (0, 0));
    world.left_is(0).await;
}

#[tokio::test]
async fn a_store_that_fails_on_the_way_fails_the_trace_and_the_next_life_ends_it() {
    // One commit accepts, the next are the receipts of both nodes, then the end.
    for passes in 1..=3 {
        let world = World::new().await;
        let probe = Probe::new();
        probe.open();
        let flow = two(&probe, None);
        let life = world.start(&flow).await;
        world.faulty.fail_after(passes, broken());
        let handle = life.emit(envelope(4)).await.unwrap();
        let id = handle.trace_id();
        let outcome = handle.outcome().await;
        assert!(
            matches!(&outcome, Outcome::Failed(error) if error.code == FlowErrorCode::Store),
            "{passes}: {outcome:?}"
        );
        crash(life).await;
        world.faulty.heal();
        let life = world.start(&flow).await;
        let handle = life.fetch(id, &demo()).expect("it was not lost");
        assert_eq!(handle.result().await.unwrap(), 10, "{passes}");
        world.left_is(0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_busy_for_a_while_is_waited_for() {
    let world = World::new().await;
    let probe = Probe::new();
    let flow = two(&probe, None);
    let life = world.start(&flow).await;
    let handle = life.emit(envelope(4)).await.unwrap();
    probe.second_ran(1).await;
    let busy = StoreError::Busy {
        path: "volary.db".into(),
        pid: None,
        waited: Duration::from_secs(1),
    };
    world.faulty.fail_after(0, busy);
    probe.open();
    world.faulty.refused(2).await;
    world.faulty.heal();
    assert_eq!(handle.result().await.unwrap(), 10);
    assert_eq!(probe.counts(), (1, 1));
}

#[tokio::test]
async fn a_flow_runs_once_on_a_store_and_again_after_it_stopped() {
    let world = World::new().await;
    let probe = Probe::new();
    probe.open();
    let flow = two(&probe, None);
    let life = world.start(&flow).await;
    let second = flow.start(world.config());
    let refused = second.emit(envelope(1)).await;
    assert!(
        matches!(&refused, Err(EmitError::Store(why)) if why.contains("runs on this store already")),
        "{refused:?}"
    );
    life.stop(Duration::from_secs(10)).await;
    let third = world.start(&flow).await;
    assert_eq!(third.call(envelope(1)).await.unwrap(), 4);
}

#[tokio::test]
async fn what_cannot_be_durable_says_so() {
    let world = World::new().await;
    let mut b = FlowBuilder::<u64, u64>::new("plain");
    let node = b.node("node", |n: u64, _| async move { Ok(n) });
    b.ingress(node).egress(node);
    let plain = b.build().unwrap().start(world.config());
    let refused = plain.emit(envelope(1)).await;
    assert!(
        matches!(&refused, Err(EmitError::Store(why)) if why.contains("build_durable")),
        "{refused:?}"
    );
    let probe = Probe::new();
    probe.open();
    let flow = two(&probe, None);
    let life = world.start(&flow).await;
    let refused = life.emit_nowait(envelope(1));
    assert!(matches!(refused, Err(EmitError::Store(_))), "{refused:?}");
    // The same flow without a store is a flow like any other.
    let other = flow.start(RunConfig::default());
    assert_eq!(other.call(envelope(1)).await.unwrap(), 4);
    world.left_is(0).await;
}

#[tokio::test]
async fn kept_results_expire_by_number() {
    let world = World::new().await;
    let probe = Probe::new();
    probe.open();
    let flow = two(&probe, None);
    let config = RunConfig {
        durable: Some(DurableConfig {
            results: 2,
            ..DurableConfig::new(world.queues.clone())
        }),
        ..world.config()
    };
    let life = flow.start(config);
    let mut ids: Vec<TraceId> = Vec::new();
    for n in 0..4 {
        ids.push(life.emit(envelope(n)).await.unwrap().trace_id());
    }
    life.stop(Duration::from_secs(10)).await;
    world.left_is(2).await;
    drop(life);
    let life = world.start(&flow).await;
    let kept = ids.iter().filter(|id| life.fetch(**id, &demo()).is_some());
    assert_eq!(kept.count(), 2);
}

#[tokio::test]
async fn values_of_several_branches_are_all_kept() {
    let world = World::new().await;
    let mut b = FlowBuilder::<u64, u64>::new("fan");
    let split = b.flat_map("split", |n: u64, _| async move {
        Ok((0..n).collect::<Vec<_>>())
    });
    let each = b.durable_node("each", |n: u64, context: volary_flow::Context| async move {
        assert!(!context.idempotency_key().is_empty());
        Ok(n * 10)
    });
    b.keep(split);
    b.connect(split, each).ingress(split).egress(each);
    let flow = b.build_durable().unwrap();
    let life = world.start(&flow).await;
    let id = life.emit(envelope(5)).await.unwrap().trace_id();
    life.stop(Duration::from_secs(10)).await;
    drop(life);
    let life = world.start(&flow).await;
    let mut handle = life.fetch(id, &demo()).unwrap();
    let mut values = Vec::new();
    while let Some(item) = handle.next().await {
        if let volary_flow::Item::Value(value) = item {
            values.push(value);
        }
    }
    assert_eq!(values, [0, 10, 20, 30, 40]);
    world.left_is(0).await;
}

#[tokio::test(start_paused = true)]
async fn the_deadline_of_a_durable_trace_ends_it_while_a_step_waits() {
    let world = World::new().await;
    let probe = Probe::new();
    let life = world.start(&two(&probe, None)).await;
    let envelope = Envelope::new(1).tenant(demo());
    let handle = life
        .emit(envelope.deadline(Duration::from_millis(50)))
        .await
        .unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(60), handle.outcome()).await;
    let outcome = ended.expect("the deadline ends it");
    assert!(matches!(outcome, Outcome::DeadlineExceeded), "{outcome:?}");
}

/// Panics when it is polled, and when it is dropped.
struct Twice;

impl Future for Twice {
    type Output = Result<u64, NodeError>;

    fn poll(self: Pin<&mut Self>, _: &mut Poller<'_>) -> Poll<Self::Output> {
        panic!("on purpose: polled")
    }
}

impl Drop for Twice {
    fn drop(&mut self) {
        panic!("on purpose: dropped")
    }
}

#[tokio::test]
async fn a_step_that_panics_and_panics_when_it_is_dropped_fails_alone() {
    let world = World::new().await;
    let mut b = FlowBuilder::new("hostile");
    let node = b.durable_node("node", |_: u64, _| Twice);
    b.ingress(node).egress(node);
    let life = world.start(&b.build_durable().unwrap()).await;
    for n in 0..2 {
        let outcome = life.emit(envelope(n)).await.unwrap().outcome().await;
        let Outcome::Failed(error) = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!(error.code, FlowErrorCode::NodePanic);
    }
    world.left_is(0).await;
}
