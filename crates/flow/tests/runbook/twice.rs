//! An effect happened twice.

use std::{collections::BTreeSet, sync::Arc};

use parking_lot::Mutex;
use volary_flow::{
    Context, Envelope, Flow, FlowBuilder, NodeError, RunningFlow,
    policy::NodePolicy,
    state::{DurableConfig, Once},
};
use volary_kernel::SystemClock;
use volary_store::Queues;

use crate::{
    desk::{ANN, Desk, single},
    store::memory,
    support::{config, ms, of, soon, tenant, trace, until},
};

/// A payment service: it writes down what it was asked to charge.
#[derive(Clone, Default)]
struct Bank(Arc<Mutex<Vec<String>>>);

impl Bank {
    fn charge(&self, key: String) {
        self.0.lock().push(key);
    }

    /// Refuses what it has charged already.
    fn charge_once(&self, key: String) {
        let mut charged = self.0.lock();
        if !charged.contains(&key) {
            charged.push(key);
        }
    }

    fn has(&self, key: &str) -> bool {
        self.0.lock().iter().any(|charged| charged == key)
    }

    fn charges(&self) -> usize {
        self.0.lock().len()
    }

    fn keys(&self) -> BTreeSet<String> {
        self.0.lock().iter().cloned().collect()
    }
}

fn retries(max_retries: u32) -> NodePolicy {
    NodePolicy {
        max_retries,
        ..NodePolicy::default()
    }
}

/// The answer to the first attempt gets lost.
fn lost(context: &Context) -> Result<(), NodeError> {
    match context.attempt() {
        1 => Err(NodeError::retryable("the connection was lost")),
        _ => Ok(()),
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_repeats_an_effect() {
    let charging = |charge: fn(&Bank, String)| {
        let bank = Bank::default();
        let ours = bank.clone();
        let flow = single(retries(1), move |n, context| {
            charge(&ours, context.idempotency_key());
            let answer = lost(&context);
            async move { answer.map(|()| n) }
        });
        (bank, Desk::start(&flow))
    };
    let (bank, desk) = charging(Bank::charge);
    assert!(desk.outcome(of(ANN, 1).trace(trace(1))).await.is_done());
    assert_eq!(bank.charges(), 2);
    let names = desk.seen.whole(trace(1)).await;
    assert!(names.contains(&"node_retry"), "{names:?}");
    assert_eq!(desk.metric("node_retry_total", &["node=\"node\""]), 1.0);
    // A redelivered message is the same trace again: one key in every attempt at it.
    assert!(desk.outcome(of(ANN, 1).trace(trace(1))).await.is_done());
    assert_eq!((bank.charges(), bank.keys().len()), (4, 1));

    // The other side is given the key, and refuses a second one.
    let (bank, desk) = charging(Bank::charge_once);
    for _delivery in 0..2 {
        assert!(desk.outcome(of(ANN, 1).trace(trace(1))).await.is_done());
    }
    assert_eq!(bank.charges(), 1);
    assert!(desk.outcome(of(ANN, 1).trace(trace(2))).await.is_done());
    assert_eq!(bank.charges(), 2, "another message is another charge");
}

#[tokio::test(start_paused = true)]
async fn a_node_computes_and_commits() {
    let bank = Bank::default();
    let ours = bank.clone();
    let both = single(retries(3), move |n, context: Context| {
        ours.charge(context.idempotency_key());
        let computed = lost(&context);
        async move { computed.map(|()| n) }
    });
    let desk = Desk::start(&both);
    assert!(desk.outcome(of(ANN, 1)).await.is_done());
    assert_eq!(bank.charges(), 2);

    // One that computes and may be retried, then one that commits and is not.
    let bank = Bank::default();
    let ours = bank.clone();
    let mut b = FlowBuilder::new("desk");
    let compute = b.node("compute", |n: u64, context: Context| async move {
        lost(&context).map(|()| n)
    });
    let commit = b.node("commit", move |n: u64, context: Context| {
        ours.charge(context.idempotency_key());
        async move { Ok(n) }
    });
    b.policy(compute, retries(3)).connect(compute, commit);
    b.ingress(compute).egress(commit);
    let desk = Desk::start(&b.build().unwrap());
    assert!(desk.outcome(of(ANN, 1)).await.is_done());
    assert_eq!(bank.charges(), 1);
    assert_eq!(desk.metric("node_retry_total", &["node=\"compute\""]), 1.0);
    assert_eq!(desk.metric("node_retry_total", &["node=\"commit\""]), 0.0);
}

/// Charges, and never hears of it.
fn charging(bank: &Bank, once: bool) -> Flow<u64, u64> {
    let mut b = FlowBuilder::new("desk");
    let ours = bank.clone();
    let effect = move |n: u64, context: Context| {
        let first = !ours.has(&context.idempotency_key());
        ours.charge(context.idempotency_key());
        async move {
            if first {
                std::future::pending::<()>().await;
            }
            Ok::<_, NodeError>(n)
        }
    };
    let charge = if once {
        let asked = bank.clone();
        let probe = move |key: String| {
            let happened = asked.has(&key);
            async move { Ok(happened.then_some(1)) }
        };
        b.once_node("charge", Once::probe(probe), effect)
    } else {
        b.durable_node("charge", effect)
    };
    b.ingress(charge).egress(charge);
    b.build_durable().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_durable_trace_goes_on_after_a_crash() {
    for (once, charges) in [(false, 2), (true, 1)] {
        let queues = Queues::open(memory(SystemClock::shared())).await.unwrap();
        let bank = Bank::default();
        let flow = charging(&bank, once);
        let life = async || -> RunningFlow<u64, u64> {
            let mut config = config();
            config.durable = Some(DurableConfig::new(queues.clone()));
            let running = flow.start(config);
            soon("its begin", running.ready()).await.unwrap();
            running
        };
        let first = life().await;
        let envelope = Envelope::new(1).tenant(tenant(ANN)).trace(trace(1));
        soon("emit", first.emit(envelope)).await.unwrap();
        until("the charge", || bank.charges() == 1).await;
        let left = first.stop(ms(0)).await;
        assert_eq!(left.unfinished, [trace(1)], "it is kept for the next life");

        let second = life().await;
        let kept = second.fetch(trace(1), &tenant(ANN)).unwrap();
        assert_eq!(soon("its end", kept.result()).await.unwrap(), 1);
        assert_eq!(bank.charges(), charges, "commits once: {once}");
    }
}
