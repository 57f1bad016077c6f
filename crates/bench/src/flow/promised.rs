//! The hand-written chain of [`super::hand`] with more of what a flow promises, as one would add it: each trace can be found and
//! cancelled by its id, its deadline holds at every node, a panic of a node ends its trace and nothing else, attempts are
//! counted, and an observer is told of every start, success and end, in the event type that ours uses.
//!
//! What it still does not do: fair queues and priorities of tenants, retries, time limits and breakers of nodes, abandoned
//! results that expire, branches and joins, a stop that drains.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures_util::FutureExt as _;
use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use volary_flow::observe::{FlowEvent, FlowEventKind};
use volary_flow::{Envelope, Outcome};
use volary_kernel::clock::{Clock as _, Mono, SystemClock, Timestamp};
use volary_kernel::{Name, TraceId};

use super::hand::CAPACITY;
use super::load::Service;
use crate::Failure;
use crate::bus::background;

/// Parts of the index that lock for themselves.
const SHARDS: usize = 32;
/// A task hands its events over when it has so many, or nothing else to do.
const EVENTS: usize = 512;
/// Batches of events that wait for the observer; more are dropped.
const BATCHES: usize = 128;

/// What can be found of a trace.
#[derive(Default)]
struct Known {
    cancelled: AtomicBool,
}

struct Request {
    envelope: Envelope<u64>,
    known: Arc<Known>,
    accepted: Mono,
    deadline: Option<Mono>,
    answer: oneshot::Sender<Result<u64, Outcome>>,
}

/// What all tasks of a chain share.
struct Shared {
    flow: Name,
    index: Vec<Mutex<HashMap<TraceId, Arc<Known>>>>,
    events: mpsc::Sender<Vec<FlowEvent>>,
    accepted: AtomicU64,
    ended: AtomicU64,
    /// What the observer was told of.
    seen: AtomicU64,
    /// One moment on both clocks.
    moment: (Timestamp, Mono),
}

impl Shared {
    fn shard(&self, id: TraceId) -> &Mutex<HashMap<TraceId, Arc<Known>>> {
        &self.index[usize::from(id.to_bytes()[15]) % SHARDS]
    }

    fn wall(&self, at: Mono) -> Timestamp {
        self.moment.0 + (at - self.moment.1)
    }
}

/// One node's task.
struct Node {
    shared: Arc<Shared>,
    name: Name,
    succeeded: AtomicU64,
    events: Vec<FlowEvent>,
    first: bool,
}

impl Node {
    fn event(&mut self, of: &Request, at: Mono, node: bool, kind: FlowEventKind) {
        self.events.push(FlowEvent {
            at: self.shared.wall(at),
            flow: self.shared.flow.clone(),
            node: node.then(|| self.name.clone()),
            trace_id: of.envelope.trace_id,
            tenant: of.envelope.headers.tenant.clone(),
            attempt: u32::from(node),
            kind,
        });
    }

    /// Hands the events over; what the observer has no room for is dropped.
    fn flush(&mut self) {
        if !self.events.is_empty() {
            let batch = std::mem::replace(&mut self.events, Vec::with_capacity(EVENTS));
            let _full = self.shared.events.try_send(batch);
        }
    }

    /// Runs the node; what does not go on has ended.
    async fn run(&mut self, mut request: Request) -> Option<Request> {
        let started = SystemClock.mono();
        if self.first {
            self.event(&request, request.accepted, false, FlowEventKind::TraceStart);
        }
        if request.known.cancelled.load(Ordering::Acquire) {
            self.end(request, started, Err(Outcome::Cancelled));
            return None;
        }
        if request.deadline.is_some_and(|deadline| started >= deadline) {
            self.end(request, started, Err(Outcome::DeadlineExceeded));
            return None;
        }
        self.event(&request, started, true, FlowEventKind::NodeStart);
        let attempt = AssertUnwindSafe(super::hand::pass(request.envelope.payload));
        let returned = attempt.catch_unwind().await;
        let now = SystemClock.mono();
        let Ok(value) = returned else {
            // An outcome of its own would say so; here it is enough that the trace ends, and nothing else does.
            self.end(request, now, Err(Outcome::Cancelled));
            return None;
        };
        request.envelope.payload = value;
        self.succeeded.fetch_add(1, Ordering::Relaxed);
        let latency = now - started;
        self.event(&request, now, true, FlowEventKind::NodeSuccess { latency });
        Some(request)
    }

    fn end(&mut self, request: Request, now: Mono, answer: Result<u64, Outcome>) {
        let outcome = answer.as_ref().err().cloned().unwrap_or(Outcome::Done);
        let latency = now - request.accepted;
        let kind = FlowEventKind::TraceEnd { outcome, latency };
        self.event(&request, now, false, kind);
        let id = request.envelope.trace_id;
        let known = self.shared.shard(id).lock().remove(&id);
        drop(known);
        self.shared.ended.fetch_add(1, Ordering::Relaxed);
        // Whoever asked may have gone.
        let _ = request.answer.send(answer);
    }
}

/// A chain of tasks. It ends when all handles are gone.
#[derive(Clone)]
pub struct Chain {
    entry: mpsc::Sender<Request>,
    shared: Arc<Shared>,
}

impl Chain {
    pub fn start(nodes: usize) -> Result<Self, Failure> {
        let (events, mut told) = mpsc::channel::<Vec<FlowEvent>>(BATCHES);
        let shared = Arc::new(Shared {
            flow: "chain".parse()?,
            index: (0..SHARDS).map(|_| Mutex::default()).collect(),
            events,
            accepted: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            seen: AtomicU64::new(0),
            moment: (SystemClock.wall(), SystemClock.mono()),
        });
        let observer = Arc::downgrade(&shared);
        background(async move {
            while let Some(batch) = told.recv().await {
                if let Some(shared) = observer.upgrade() {
                    shared.seen.fetch_add(batch.len() as u64, Ordering::Relaxed);
                }
            }
        });
        let (entry, mut incoming) = mpsc::channel(CAPACITY);
        for index in 0..nodes {
            let node = Node {
                shared: shared.clone(),
                name: format!("node-{index}").parse()?,
                succeeded: AtomicU64::new(0),
                events: Vec::with_capacity(EVENTS),
                first: index == 0,
            };
            let (next, behind) = mpsc::channel(CAPACITY);
            let next = (index + 1 < nodes).then_some(next);
            background(work(node, std::mem::replace(&mut incoming, behind), next));
        }
        Ok(Self { entry, shared })
    }

    /// Events that the observer was told of.
    pub fn seen(&self) -> u64 {
        self.shared.seen.load(Ordering::Relaxed)
    }
}

/// A node's task: takes, runs, hands on.
async fn work(
    mut node: Node,
    mut incoming: mpsc::Receiver<Request>,
    next: Option<mpsc::Sender<Request>>,
) {
    while let Some(request) = incoming.recv().await {
        if let Some(request) = node.run(request).await {
            match &next {
                Some(next) => {
                    if next.send(request).await.is_err() {
                        return;
                    }
                }
                None => {
                    let (now, answer) = (SystemClock.mono(), Ok(request.envelope.payload));
                    node.end(request, now, answer);
                }
            }
        }
        if node.events.len() >= EVENTS || incoming.is_empty() {
            node.flush();
        }
    }
}

impl Service for Chain {
    type Pending = oneshot::Receiver<Result<u64, Outcome>>;

    async fn emit(&self, envelope: Envelope<u64>) -> Self::Pending {
        let (answer, pending) = oneshot::channel();
        let accepted = SystemClock.mono();
        let known = Arc::<Known>::default();
        let id = envelope.trace_id;
        let former = self.shared.shard(id).lock().insert(id, known.clone());
        assert!(former.is_none(), "every trace is new");
        self.shared.accepted.fetch_add(1, Ordering::Relaxed);
        let request = Request {
            deadline: envelope.deadline.map(|budget| accepted + budget),
            envelope,
            known,
            accepted,
            answer,
        };
        let sent = self.entry.send(request).await;
        assert!(sent.is_ok(), "the chain lives as long as its handles");
        pending
    }

    async fn answer(pending: Self::Pending) {
        let answer = pending.await.expect("every request is answered");
        match answer {
            Ok(value) => drop(std::hint::black_box(value)),
            Err(outcome) => panic!("a trace ended as {}", outcome.as_str()),
        }
    }
}
