//! Tests of the engine as a whole, by what they are about.

mod basic;
mod ends;
mod hostile;
mod inside;
mod large;
mod lines;
mod order;
mod slots;
mod storms;
mod times;
mod views;
mod yields;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{Engine, testing::TestPlan};
use crate::RunConfig;

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn start(plan: TestPlan) -> Engine {
    Engine::start(Arc::new(plan.build()), RunConfig::default())
}

/// Counts.
#[derive(Clone, Default)]
struct Count(Arc<AtomicU64>);

impl Count {
    fn up(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn down(&self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Lets all tasks run as far as they can.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

/// Nothing of any trace is left anywhere.
fn assert_empty(engine: &Engine) {
    let shared = &engine.handle.shared;
    assert_eq!(shared.index.len(), (0, 0), "traces and deadlines");
    assert_eq!(shared.live(), 0);
    for (node, plan) in shared.nodes.iter().zip(&shared.plan.nodes) {
        let name = &plan.name;
        assert!(node.gate(|gate| gate.inbox.is_at_rest()), "inbox of {name}");
        let (waiting, back_off) = (&node.waiting, &node.backing_off);
        assert_eq!(waiting.load(Ordering::SeqCst), 0, "outbox of {name}");
        assert_eq!(back_off.load(Ordering::SeqCst), 0, "back-off of {name}");
    }
}
