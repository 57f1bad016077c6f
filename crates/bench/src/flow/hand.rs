//! What one would write by hand on tokio, with the same promise: bounded queues, and an answer to each caller.
//!
//! - [`Chain`]: a task and a bounded channel per node, and a oneshot per message for its answer.
//! - [`Fanout`]: eight such tasks side by side and one that gathers, by trace.
//!
//! They carry the same envelopes and run the same no-op code. They keep no index of traces, no fair queues, no deadlines, no
//! retries, tell nobody what happens, and a panic of a node stops them.

use std::collections::HashMap;

use tokio::sync::{mpsc, oneshot};
use volary_flow::Envelope;
use volary_kernel::TraceId;

use super::load::Service;
use crate::bus::background;

/// Places in every queue; ours has as many by default.
pub const CAPACITY: usize = 64;

struct Request<A> {
    envelope: Envelope<u64>,
    answer: oneshot::Sender<A>,
}

/// The no-op that each node runs.
pub async fn pass(number: u64) -> u64 {
    number
}

/// A chain of tasks. It ends when all handles are gone.
#[derive(Clone)]
pub struct Chain(mpsc::Sender<Request<u64>>);

impl Chain {
    pub fn start(nodes: usize) -> Self {
        let (mut first, mut last) = mpsc::channel::<Request<u64>>(CAPACITY);
        let entry = first.clone();
        for _ in 1..nodes {
            let (sender, receiver) = mpsc::channel(CAPACITY);
            let mut incoming = std::mem::replace(&mut last, receiver);
            first = sender.clone();
            background(async move {
                while let Some(mut request) = incoming.recv().await {
                    request.envelope.payload = pass(request.envelope.payload).await;
                    if sender.send(request).await.is_err() {
                        return;
                    }
                }
            });
        }
        drop(first);
        background(async move {
            while let Some(request) = last.recv().await {
                let answer = pass(request.envelope.payload).await;
                // Whoever asked may have gone.
                let _ = request.answer.send(answer);
            }
        });
        Self(entry)
    }
}

impl Service for Chain {
    type Pending = oneshot::Receiver<u64>;

    async fn emit(&self, envelope: Envelope<u64>) -> Self::Pending {
        let (answer, pending) = oneshot::channel();
        let sent = self.0.send(Request { envelope, answer }).await;
        assert!(sent.is_ok(), "the chain lives as long as its handles");
        pending
    }

    async fn answer(pending: Self::Pending) {
        std::hint::black_box(pending.await.expect("every request is answered"));
    }
}

/// Branches of a fan-out.
pub const BRANCHES: usize = 8;

/// One task that spreads, [`BRANCHES`] that work, and one that gathers.
#[derive(Clone)]
pub struct Fanout(mpsc::Sender<Request<Vec<u64>>>);

/// What reaches the one that gathers.
enum Part {
    /// Who waits for the trace; it is told before any part of it.
    Caller(TraceId, oneshot::Sender<Vec<u64>>),
    Value(TraceId, u64),
}

impl Fanout {
    pub fn start() -> Self {
        let (entry, mut incoming) = mpsc::channel::<Request<Vec<u64>>>(CAPACITY);
        let (gather, gathered) = mpsc::channel(CAPACITY);
        let branches: Vec<_> = (0..BRANCHES).map(|_| branch(gather.clone())).collect();
        background(async move {
            while let Some(request) = incoming.recv().await {
                let trace = request.envelope.trace_id;
                let caller = Part::Caller(trace, request.answer);
                if gather.send(caller).await.is_err() {
                    return;
                }
                let payload = pass(request.envelope.payload).await;
                for branch in &branches {
                    let mut envelope = request.envelope.clone();
                    envelope.payload = payload;
                    if branch.send(envelope).await.is_err() {
                        return;
                    }
                }
            }
        });
        background(collect(gathered));
        Self(entry)
    }
}

fn branch(gather: mpsc::Sender<Part>) -> mpsc::Sender<Envelope<u64>> {
    let (sender, mut incoming) = mpsc::channel::<Envelope<u64>>(CAPACITY);
    background(async move {
        while let Some(envelope) = incoming.recv().await {
            let value = pass(envelope.payload).await;
            let part = Part::Value(envelope.trace_id, value);
            if gather.send(part).await.is_err() {
                return;
            }
        }
    });
    sender
}

async fn collect(mut parts: mpsc::Receiver<Part>) {
    let mut open = HashMap::new();
    while let Some(part) = parts.recv().await {
        match part {
            Part::Caller(trace, answer) => {
                open.insert(trace, (answer, Vec::with_capacity(BRANCHES)));
            }
            Part::Value(trace, value) => {
                let Some((_, values)) = open.get_mut(&trace) else {
                    continue;
                };
                values.push(value);
                if values.len() == BRANCHES
                    && let Some((answer, values)) = open.remove(&trace)
                {
                    // Whoever asked may have gone.
                    let _ = answer.send(values);
                }
            }
        }
    }
}

impl Service for Fanout {
    type Pending = oneshot::Receiver<Vec<u64>>;

    async fn emit(&self, envelope: Envelope<u64>) -> Self::Pending {
        let (answer, pending) = oneshot::channel();
        let sent = self.0.send(Request { envelope, answer }).await;
        assert!(sent.is_ok(), "the fan-out lives as long as its handles");
        pending
    }

    async fn answer(pending: Self::Pending) {
        std::hint::black_box(pending.await.expect("every request is answered"));
    }
}
