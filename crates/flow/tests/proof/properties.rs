//! Random graphs with random policies, failures, cancels, pauses and deadlines on a paused clock.

use std::{cell::Cell, time::Duration};

use futures_util::{StreamExt as _, future, stream::FuturesUnordered};
use volary_flow::{EmitError, Envelope, Item as Yield, Limits, Outcome, graph::TraceHandle};
use volary_kernel::{Clock as _, SystemClock, clock};

use crate::{
    act::Item,
    build::{build, child},
    judge::{Seen, judge},
    model::expect,
    spec::{RESULT_TTL, Reading, Spec, TraceSpec},
    support::{self, config, hush, ms, soon, tenant, trace, until},
    world::{Running, World},
};

/// A trace as it was driven; what was seen of it, if somebody read it.
struct Driven {
    number: u64,
    seen: Option<Seen>,
}

fn run<F: Future>(future: F) -> F::Output {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build();
    runtime.expect("it starts").block_on(future)
}

/// Reads a trace to its end.
async fn read(mut handle: TraceHandle<Item>) -> (Vec<Item>, Vec<u64>, Outcome) {
    let (mut values, mut chunks) = (Vec::new(), Vec::new());
    while let Some(item) = handle.next().await {
        match item {
            Yield::Value(value) => values.push(value),
            Yield::Chunk(chunk) => chunks.push(chunk.seq),
        }
    }
    let again = handle.next().await;
    assert!(again.is_none(), "{again:?} after the end");
    (values, chunks, handle.outcome().await)
}

/// Emits a trace, reads it as it is to be read, and does to it what is to be done meanwhile.
async fn drive(world: &World, flow: &Running, of: &TraceSpec) -> Driven {
    let (id, owner) = (trace(of.number), tenant(of.tenant));
    clock::sleep(of.start).await;
    let mut envelope = Envelope::new(Item::new(of.number))
        .tenant(owner.clone())
        .trace(id)
        .priority(of.priority);
    envelope.deadline = of.deadline;
    let began = SystemClock.mono();
    let handle = match flow.emit(envelope).await {
        Ok(handle) => handle,
        Err(EmitError::DeadlineExceeded) if of.deadline.is_some() => return unseen(of),
        Err(error) => {
            world.wrong(format!("trace {} was not accepted: {error}", of.number));
            return unseen(of);
        }
    };
    let cancelled = Cell::new(false);
    let cancels = async {
        let Some(after) = of.cancel else { return };
        clock::sleep(after).await;
        cancelled.set(flow.cancel(id, &owner).cancelled);
        if flow.cancel(id, &owner).cancelled {
            world.wrong(format!("trace {} was cancelled twice", of.number));
        }
    };
    let attacks = async {
        let Some(after) = of.attacked else { return };
        clock::sleep(after).await;
        let thief = tenant("thief");
        let reached = flow.cancel(id, &thief).cancelled
            || flow.pause(id, &thief)
            || flow.resume(id, &thief)
            || flow.fetch(id, &thief).is_some();
        if reached {
            world.wrong(format!("another tenant reached trace {}", of.number));
        }
    };
    let pauses = async {
        let Some((after, held)) = of.pause else {
            return;
        };
        clock::sleep(after).await;
        if flow.pause(id, &owner) {
            clock::sleep(held).await;
            flow.resume(id, &owner);
        }
    };
    let reads = reading(world, flow, of, handle);
    let (read, (), (), ()) = future::join4(reads, cancels, attacks, pauses).await;
    let seen = read.map(|(values, chunks, outcome, ended)| Seen {
        values,
        chunks,
        outcome,
        took: ended - began,
        cancelled: cancelled.get(),
    });
    Driven {
        number: of.number,
        seen,
    }
}

const fn unseen(of: &TraceSpec) -> Driven {
    Driven {
        number: of.number,
        seen: None,
    }
}

type Read = (Vec<Item>, Vec<u64>, Outcome, volary_kernel::Mono);

async fn reading(
    world: &World,
    flow: &Running,
    of: &TraceSpec,
    mut handle: TraceHandle<Item>,
) -> Option<Read> {
    match of.reading {
        Reading::Prompt => {}
        Reading::Late => clock::sleep(ms(700)).await,
        Reading::Abandoned => return None,
        Reading::Fetched => {
            drop(handle);
            clock::sleep(ms(300)).await;
            let Some(fetched) = flow.fetch(trace(of.number), &tenant(of.tenant)) else {
                world.wrong(format!("trace {} could not be fetched", of.number));
                return None;
            };
            handle = fetched;
        }
    }
    let what = format!("seed {}, trace {}", world.spec.seed, of.number);
    let (values, chunks, outcome) = soon(&what, read(handle)).await;
    world.ended(of.number);
    let ended = SystemClock.mono();
    Some((values, chunks, outcome, ended))
}

/// Runs a specification; returns what was seen, in the order of numbers, and what was wrong.
async fn play(spec: Spec) -> (Vec<Driven>, Vec<String>) {
    let limits = Limits {
        traces: spec.live,
        messages_per_trace: spec.messages,
        hops: spec.hops,
        result_ttl: RESULT_TTL,
        ..Limits::default()
    };
    let world = World::new(spec);
    let mut settings = config();
    settings.fuse = world.spec.fuse;
    let called = child().start(settings.clone());
    let _first = world.child.set(called.clone());
    let supervisor = settings.supervisor.clone();
    settings.limits = limits;
    let flow = build(&world).start(settings);
    let _first = world.flow.set(flow.clone());
    let traces = world.spec.traces.iter();
    let mut driven: FuturesUnordered<_> = traces.map(|of| drive(&world, &flow, of)).collect();
    let mut all = Vec::new();
    while let Some(one) = driven.next().await {
        world.check_bounds();
        all.push(one);
    }
    drop(driven);
    all.sort_by_key(|driven| driven.number);
    nothing_is_left(&world, &flow).await;
    for flow in [flow, called] {
        let report = soon("a stop", flow.stop(Duration::from_secs(1))).await;
        if !report.is_clean() {
            world.wrong(format!("it stopped with {report:?}"));
        }
    }
    until("the end of all tasks", || supervisor.running().is_empty()).await;
    (all, world.all_wrong())
}

/// After all was read, or kept for long enough, there is nothing: no message, no trace, no id in use.
async fn nothing_is_left(world: &World, flow: &Running) {
    let seed = world.spec.seed;
    until(&format!("seed {seed}: what is left"), || {
        let depths = flow.depths();
        let rest = depths
            .nodes
            .iter()
            .all(|node| node.queued + node.running + node.waiting == 0);
        rest && depths.traces == 0
    })
    .await;
    clock::sleep(RESULT_TTL + ms(100)).await;
    for of in &world.spec.traces {
        if flow.fetch(trace(of.number), &tenant(of.tenant)).is_some() {
            world.wrong(format!("trace {} is still there", of.number));
        }
    }
}

/// Plays a specification and returns all that is wrong.
fn broken(spec: &Spec) -> Vec<String> {
    let (driven, mut wrong) = run(play(spec.clone()));
    for one in driven {
        let of = usize::try_from(one.number).map(|at| &spec.traces[at]);
        if let (Ok(of), Some(seen)) = (of, one.seen) {
            wrong.extend(judge(spec, of, &expect(spec, of.number), &seen));
        }
    }
    wrong
}

fn seeds() -> std::ops::Range<u64> {
    0..if support::is_full() { 2_000 } else { 60 }
}

/// Fails with all seeds that broke a rule, and what was wrong with the first few.
fn all_hold(wrong_of: impl Fn(u64) -> Vec<String>, seeds: impl Iterator<Item = u64>) {
    hush();
    let of = |seed| (seed, wrong_of(seed));
    let broken: Vec<_> = seeds
        .map(of)
        .filter(|(_, wrong)| !wrong.is_empty())
        .collect();
    let told = broken.iter().take(4).map(|(seed, wrong)| {
        let nodes = Spec::random(*seed).nodes;
        let shown = nodes
            .iter()
            .enumerate()
            .map(|(at, node)| format!("  n{at} {node:?}"));
        let graph: Vec<_> = shown.collect();
        let wrong: Vec<_> = wrong.iter().take(4).cloned().collect();
        format!("seed {seed}:\n{}\n{}", wrong.join("\n"), graph.join("\n"))
    });
    let told: Vec<_> = told.collect();
    assert!(
        broken.is_empty(),
        "{} seeds broke a rule\n{}",
        broken.len(),
        told.join("\n\n")
    );
}

#[test]
fn every_accepted_trace_ends_once_and_yields_what_the_model_says() {
    all_hold(|seed| broken(&Spec::random(seed)), seeds());
}

/// The seeds are worth something: each kind of end is among them, and most traces are ones that the model knows exactly.
#[test]
fn the_seeds_cover_what_can_happen() {
    let (mut exact, mut all, mut codes) = (0, 0, std::collections::BTreeSet::new());
    let mut finishes = 0;
    for seed in 0..60 {
        let spec = Spec::random(seed);
        for of in &spec.traces {
            let expected = expect(&spec, of.number);
            all += 1;
            exact += usize::from(expected.exact && of.is_left_alone());
            finishes += expected.finishes.len();
            codes.extend(expected.codes);
        }
    }
    assert!(exact * 2 > all, "{exact} of {all}");
    assert!(finishes > 20, "{finishes}");
    let wanted = [
        "hop_budget_exhausted",
        "join_incomplete",
        "no_such_target",
        "node_error",
        "node_panic",
        "node_timeout",
        "too_many_messages",
    ];
    assert_eq!(codes.into_iter().collect::<Vec<_>>(), wanted);
}

/// With one thread and a paused clock nothing but the seed decides.
#[test]
fn the_same_seed_gives_the_same_ends_and_values() {
    hush();
    let ends = |seed| {
        let (driven, _) = run(play(Spec::random(seed)));
        let text = |one: &Driven| {
            let seen = one.seen.as_ref();
            seen.map(|seen| {
                let outcome = seen.outcome.as_str();
                (outcome, seen.values.clone(), seen.chunks.len(), seen.took)
            })
        };
        driven.iter().map(text).collect::<Vec<_>>()
    };
    for seed in seeds().step_by(10) {
        assert_eq!(ends(seed), ends(seed), "seed {seed}");
    }
}

/// Fusing is not to be seen: a trace ends and yields what the model says with and without.
#[test]
fn fused_or_not_is_not_to_be_seen() {
    let other = |seed| {
        let spec = Spec::random(seed);
        broken(&Spec {
            fuse: !spec.fuse,
            ..spec
        })
    };
    all_hold(other, seeds().step_by(3));
}
