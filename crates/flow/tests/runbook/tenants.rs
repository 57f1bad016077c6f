//! One tenant sees another's.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use volary_flow::{
    Context, Envelope,
    graph::Flow,
    policy::NodePolicy,
    state::{HistoryConfig, Recorder, StateStore},
};
use volary_kernel::{SystemClock, Tenant, clock};

use crate::{
    desk::{ANN, Desk, single},
    store::memory,
    support::{ms, of, soon, tenant, trace},
};

fn slow() -> Flow<u64, u64> {
    single(NodePolicy::default(), |n, _| async move {
        clock::sleep(ms(100)).await;
        Ok(n)
    })
}

#[tokio::test(start_paused = true)]
async fn requests_come_without_a_tenant() {
    let desk = Desk::start(&slow());
    let (first, second) = (Envelope::new(1), Envelope::new(2));
    let (mine, theirs) = (first.trace(trace(1)), second.trace(trace(2)));
    drop((desk.emit(mine).await, desk.emit(theirs).await));
    // Both are the default tenant's: who knows a trace can end it, and reads what came of it.
    let nobody = Tenant::default();
    assert!(desk.flow.cancel(trace(2), &nobody).cancelled);
    let read = desk.flow.fetch(trace(1), &nobody).unwrap();
    assert_eq!(soon("a result", read.result()).await.unwrap(), 1);
    let told = desk.seen.of(trace(1));
    let whose = |of: &Tenant| told.iter().all(|event| event.tenant == *of);
    assert!(!told.is_empty() && whose(&nobody), "events name it");

    // The tenant is set where requests come in: then there is no such trace for another.
    let handle = desk.emit(of(ANN, 3).trace(trace(3))).await;
    drop(handle);
    for other in [nobody, tenant("bob")] {
        assert!(!desk.flow.cancel(trace(3), &other).cancelled);
        assert!(!desk.flow.pause(trace(3), &other));
        assert!(desk.flow.fetch(trace(3), &other).is_none());
    }
    let read = desk.flow.fetch(trace(3), &tenant(ANN)).unwrap();
    assert_eq!(soon("a result", read.result()).await.unwrap(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_history_is_asked_for_by_another() {
    let store = memory(SystemClock::shared());
    let history = Arc::new(StateStore::new(store, HistoryConfig::default()));
    let kept = history.clone();
    let desk = Desk::start_with(&slow(), |config| {
        let recorder = Recorder::start(kept, &config.supervisor, &config.metrics);
        config.observers.push(recorder);
    });
    assert!(desk.outcome(of(ANN, 1).trace(trace(1))).await.is_done());
    let (own, other) = (tenant(ANN), tenant("bob"));
    let kept = async {
        while history.history(trace(1), &own).await.unwrap().len() < 4 {
            clock::sleep(ms(1)).await;
        }
    };
    soon("the history", kept).await;
    let found = history.history(trace(1), &other).await.unwrap();
    assert_eq!(found, [], "another tenant's trace looks like none");
}

/// A node that remembers what it has computed, by these keys.
fn remembering<K>(key: impl Fn(u64, &Context) -> K + Send + Sync + 'static) -> Flow<u64, u64>
where
    K: Eq + std::hash::Hash + Send + 'static,
{
    let known: Mutex<HashMap<K, u64>> = Mutex::default();
    single(NodePolicy::default(), move |n, context: Context| {
        let account = if context.tenant() == &tenant(ANN) {
            1_000
        } else {
            0
        };
        let mut known = known.lock();
        let answer = *known.entry(key(n, &context)).or_insert(account + n);
        async move { Ok(answer) }
    })
}

#[tokio::test(start_paused = true)]
async fn a_node_keeps_data_of_tenants() {
    let ask = async |desk: &Desk, name: &str| {
        let handle = desk.emit(of(name, 7)).await;
        soon("an answer", handle.result()).await.unwrap()
    };
    let shared = Desk::start(&remembering(|n, _| n));
    assert_eq!(ask(&shared, ANN).await, 1_007);
    assert_eq!(ask(&shared, "bob").await, 1_007, "bob sees what is ann's");

    let apart = Desk::start(&remembering(|n, context| (context.tenant().clone(), n)));
    assert_eq!(ask(&apart, ANN).await, 1_007);
    assert_eq!(ask(&apart, "bob").await, 7);
}
