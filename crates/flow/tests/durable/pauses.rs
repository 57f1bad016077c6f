//! Pausing and resuming durable traces from elsewhere.

use std::time::Duration;

use volary_flow::{
    Envelope,
    state::{PauseError, pause, resume},
};
use volary_kernel::{Name, TraceId};
use volary_store::{Batch, Expect, Key};

use crate::{
    store::After,
    world::{Probe, World, crash, demo, two},
};

#[tokio::test]
async fn a_pause_holds_the_next_step_over_a_restart_until_somebody_resumes() {
    let world = World::new().await;
    let probe = Probe::new();
    let flow = two(&probe, None);
    let name = Name::new("two").unwrap();
    let life = world.start(&flow).await;
    let id = life
        .emit(Envelope::new(4).tenant(demo()))
        .await
        .unwrap()
        .trace_id();
    probe.second_ran(1).await;
    crash(life).await;

    // Nobody runs it: what counts is the record.
    let other = "other".parse().unwrap();
    let refused = pause(&world.store, &name, id, &other).await;
    assert!(matches!(refused, Err(PauseError::Unknown(trace)) if trace == id));
    let refused = pause(&world.store, &name, TraceId::generate(), &demo()).await;
    assert!(matches!(refused, Err(PauseError::Unknown(_))));
    pause(&world.store, &name, id, &demo()).await.unwrap();
    pause(&world.store, &name, id, &demo()).await.unwrap();
    probe.open();
    let life = world.start(&flow).await;
    // Another trace goes through meanwhile.
    let free = life.call(Envelope::new(1).tenant(demo())).await.unwrap();
    assert_eq!(
        (free, probe.counts()),
        (4, (2, 2)),
        "the paused one did not move"
    );
    assert!(matches!(
        resume(&world.store, &name, id, &other).await,
        Err(PauseError::Unknown(_))
    ));
    resume(&world.store, &name, id, &demo()).await.unwrap();
    assert_eq!(life.fetch(id, &demo()).unwrap().result().await.unwrap(), 10);
    world.left_is(0).await;
    let told = world.told().await;
    let paused = told.iter().filter(|kind| *kind == "flow.paused").count();
    assert_eq!(paused, 2, "{told:?}");
    assert!(told.contains(&"flow.resumed".to_owned()), "{told:?}");
}

#[tokio::test]
async fn whoever_runs_the_flow_learns_of_a_pause_and_of_its_end() {
    let world = World::new().await;
    let probe = Probe::new();
    let flow = two(&probe, None);
    let name = Name::new("two").unwrap();
    let life = world.start(&flow).await;
    // The first holds the only place of the second node; the next waits before it.
    let first = life.emit(Envelope::new(1).tenant(demo())).await.unwrap();
    probe.second_ran(1).await;
    let next = life.emit(Envelope::new(2).tenant(demo())).await.unwrap();
    let id = next.trace_id();
    pause(&world.store, &name, id, &demo()).await.unwrap();
    // This may pause it before the watch does: then it is paused all the same.
    let _first = life.pause(id, &demo());
    probe.open();
    assert_eq!(first.result().await.unwrap(), 4);
    let third = life.call(Envelope::new(3).tenant(demo())).await.unwrap();
    assert_eq!(
        (third, probe.counts().1),
        (8, 2),
        "the paused one is passed by"
    );
    resume(&world.store, &name, id, &demo()).await.unwrap();
    assert_eq!(next.result().await.unwrap(), 6);
    life.stop(Duration::from_secs(10)).await;
    world.left_is(0).await;
}

#[tokio::test]
async fn a_pause_by_the_running_flow_is_durable_too() {
    let world = World::new().await;
    let probe = Probe::new();
    let flow = two(&probe, None);
    let life = world.start(&flow).await;
    let id = life
        .emit(Envelope::new(4).tenant(demo()))
        .await
        .unwrap()
        .trace_id();
    probe.second_ran(1).await;
    assert!(!life.pause(id, &"other".parse().unwrap()));
    assert!(life.pause(id, &demo()));
    crash(life).await;
    probe.open();
    let life = world.start(&flow).await;
    assert_eq!(life.call(Envelope::new(1).tenant(demo())).await.unwrap(), 4);
    assert_eq!(probe.counts().1, 2, "the paused one did not move");
    assert!(life.resume(id, &demo()));
    assert_eq!(life.fetch(id, &demo()).unwrap().result().await.unwrap(), 10);
    world.left_is(0).await;
}

#[tokio::test]
async fn a_trace_that_is_paused_while_it_is_being_accepted_starts_no_step() {
    let world = World::new().await;
    let probe = Probe::new();
    probe.open();
    let life = world.start(&two(&probe, None)).await;
    let (name, id) = (Name::new("two").unwrap(), TraceId::generate());
    let (store, flow) = (world.store.clone(), name.clone());
    let meanwhile: After = Box::new(move || {
        Box::pin(async move {
            pause(&store, &flow, id, &demo()).await.unwrap();
            // Whoever runs the flow hears of it before the trace is accepted.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
        })
    });
    *world.faulty.after.lock() = Some(meanwhile);
    let held = life
        .emit(Envelope::new(1).tenant(demo()).trace(id))
        .await
        .unwrap();
    assert_eq!(life.call(Envelope::new(2).tenant(demo())).await.unwrap(), 6);
    assert_eq!(probe.counts().0, 1, "the paused one did not begin");
    resume(&world.store, &name, id, &demo()).await.unwrap();
    assert_eq!(held.result().await.unwrap(), 4);
    world.left_is(0).await;
}

#[tokio::test]
async fn a_pause_that_comes_while_the_end_is_written_goes_with_it() {
    let world = World::new().await;
    let probe = Probe::new();
    let life = world.start(&two(&probe, None)).await;
    let name = Name::new("two").unwrap();
    let handle = life.emit(Envelope::new(1).tenant(demo())).await.unwrap();
    let id = handle.trace_id();
    probe.second_ran(1).await;
    // The next commit is the receipt of the second step; nothing else is left to do.
    let (store, flow) = (world.store.clone(), name.clone());
    let meanwhile: After = Box::new(move || {
        Box::pin(async move {
            pause(&store, &flow, id, &demo()).await.unwrap();
        })
    });
    *world.faulty.after.lock() = Some(meanwhile);
    probe.open();
    assert_eq!(handle.result().await.unwrap(), 4);
    world.left_is(0).await;
    let told = world.told().await;
    assert!(told.contains(&"flow.paused".to_owned()), "{told:?}");
}

#[tokio::test]
async fn a_pause_that_came_too_late_is_removed_by_who_runs_the_flow_or_by_who_starts_it() {
    let world = World::new().await;
    let probe = Probe::new();
    let flow = two(&probe, None);
    let life = world.start(&flow).await;
    let handle = life.emit(Envelope::new(1).tenant(demo())).await.unwrap();
    let id = handle.trace_id();
    probe.second_ran(1).await;
    assert!(life.pause(id, &demo()));
    let key = Key::new(format!("flow.pause/two/{id}")).unwrap();
    let pause = loop {
        if let Some(record) = world.store.get(&key).await.unwrap() {
            break record.value;
        }
        tokio::task::yield_now().await;
    };
    assert!(life.resume(id, &demo()));
    probe.open();
    assert_eq!(handle.result().await.unwrap(), 4);
    world.left_is(0).await;
    let write = async || {
        let mut tx = Batch::new();
        tx.put(key.clone(), pause.clone(), Expect::Absent);
        world.store.commit(tx).await.unwrap();
    };
    write().await;
    world.left_is(0).await;
    life.stop(Duration::from_secs(10)).await;
    write().await;
    assert_eq!(world.left().await.len(), 1, "nobody runs the flow");
    let life = world.start(&flow).await;
    world.left_is(0).await;
    life.stop(Duration::from_secs(10)).await;
}
