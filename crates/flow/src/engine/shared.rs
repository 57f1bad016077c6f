//! What the stages, the keeper and the handles of one running flow share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use crossbeam_utils::CachePadded;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::Notify;
use volary_kernel::{Mono, SharedClock, TraceId};

use super::{
    driver::discard,
    durable::{self, Durability},
    fuse,
    gate::{Freed, Gate},
    inbox::Inbox,
    index::Index,
    joins::Need,
    pen::{Counting, Pen, SharedPen},
    results::Results,
    room::Room,
    tenants::Tenants,
    trace::{Msg, Trace},
};
use crate::{
    config::{Limits, RunConfig},
    graph::plan::{NodeIx, Payload, Plan, Target, Work},
    observe::{
        FlowEventKind,
        metrics::FlowMetrics,
        tap::{Observing, TraceTag},
    },
    outcome::Outcome,
};

/// The gate of a node, and what is to be seen of it without its lock.
struct Door {
    gate: Mutex<Gate>,
    /// Messages wait at the gate.
    queued: AtomicBool,
    /// Somebody waits for a place at it, to emit.
    line: AtomicBool,
}

/// A node, as others see it.
pub(crate) struct NodeShared {
    /// By itself: all others of a node are only read while it runs, by all cores.
    door: CachePadded<Door>,
    /// Which stage runs it, and as which of its nodes.
    pub stage: usize,
    pub local: u16,
    /// Where each edge into it comes from; none is the ingress.
    pub ways_in: SmallVec<[Option<NodeIx>; 2]>,
    /// The edge of what is emitted.
    pub ingress: Option<u16>,
    pub routes: SmallVec<[Route; 2]>,
    pub rank: u32,
    pub need: Option<Need>,
    /// For gauges: attempts under way, messages in back-off, outputs that find no room.
    pub running: AtomicU32,
    pub backing_off: AtomicU32,
    pub waiting: AtomicU32,
}

impl NodeShared {
    /// Works at the gate.
    pub(crate) fn gate<R>(&self, work: impl FnOnce(&mut Gate) -> R) -> R {
        let door = &*self.door;
        let mut gate = door.gate.lock();
        let done = work(&mut gate);
        // Both change only here, under the lock: what is as it was need not be written.
        let queued = gate.inbox.len() > 0;
        if queued != door.queued.load(Ordering::Relaxed) {
            door.queued.store(queued, Ordering::SeqCst);
        }
        let line = gate.has_line();
        if line != door.line.load(Ordering::Relaxed) {
            door.line.store(line, Ordering::Relaxed);
        }
        done
    }

    /// Whether somebody waits for a place, of whatever tenant. A hint.
    pub(crate) fn has_line(&self) -> bool {
        self.door.line.load(Ordering::Relaxed)
    }

    /// Whether messages wait at the gate, those of blocked tenants too.
    pub(crate) fn has_queued(&self) -> bool {
        self.door.queued.load(Ordering::SeqCst)
    }
}

/// An edge, resolved.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Route {
    /// The node, and which edge into it this is; none is the egress.
    pub to: Option<(NodeIx, u16)>,
    pub back: bool,
}

/// What a stage is told besides messages.
pub(crate) enum Signal {
    /// A run was woken.
    Ready { local: u16, run: u32 },
    /// There is room for outputs of a tenant.
    Room { local: u16, tenant: u32 },
    /// Nothing more comes to the joins of a trace, or it goes on after a pause.
    Resolve { local: u16, trace: Arc<Trace> },
    /// Drop all and end.
    Exit,
}

/// A stage, as others see it.
#[derive(Default)]
pub(crate) struct StageShared {
    pub waker: AtomicWaker,
    /// It runs or is going to. By itself: whoever emits reads it, while the stage writes all else here with each attempt.
    pub scheduled: CachePadded<AtomicBool>,
    pub signals: Mutex<Vec<Signal>>,
    /// Since when it runs the node it runs, in nanoseconds; 0 when it rests.
    pub busy_since: AtomicU64,
    pub busy_with: AtomicU32,
    /// For which trace: its id in two halves, and its tenant.
    pub busy_for: [AtomicU64; 3],
    pub done: AtomicBool,
}

impl StageShared {
    /// Makes the stage look at its inboxes and signals.
    pub(crate) fn schedule(&self) {
        if !self.scheduled.load(Ordering::SeqCst) && !self.scheduled.swap(true, Ordering::SeqCst) {
            self.waker.wake();
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.signals.lock().push(signal);
        self.schedule();
    }
}

impl StageShared {
    /// Whose attempts are polled, for the one who watches.
    pub(crate) fn set_busy_for(&self, trace: &Trace) {
        let id = u128::from_be_bytes(trace.id.to_bytes());
        self.busy_for[0].store((id >> 64) as u64, Ordering::Relaxed);
        self.busy_for[1].store(id as u64, Ordering::Relaxed);
        let tenant = u64::from(trace.tenant.serial);
        self.busy_for[2].store(tenant, Ordering::Relaxed);
    }

    /// Which node's attempt is polled.
    pub(crate) fn set_busy_with(&self, node: NodeIx) {
        self.busy_with.store(u32::from(node), Ordering::Relaxed);
    }

    /// For whom it is busy: right for a stage that is stuck, which is when it is asked.
    pub(crate) fn busy_for(&self) -> Option<TraceTag> {
        let [high, low, tenant] = &self.busy_for;
        let [high, low] = [high, low].map(|half| half.load(Ordering::Relaxed));
        let id = u128::from(high) << 64 | u128::from(low);
        Some(TraceTag {
            id: TraceId::from_bytes(id.to_be_bytes())?,
            tenant: u32::try_from(tenant.load(Ordering::Relaxed)).ok()?,
            hops: u16::MAX,
        })
    }
}

/// When the keeper is to look again.
#[derive(Default)]
pub(crate) struct Bell {
    pub notify: Notify,
    /// When it looks by itself, in nanoseconds.
    pub next: AtomicU64,
    /// It watches for nodes that hold their thread.
    pub watches: AtomicBool,
}

impl Bell {
    /// A trace lives. Only who accepts it rings: what a stage wakes may have to wait until the stage's thread is free, and a
    /// node may hold that for ever.
    pub(crate) fn watch(&self) {
        if !self.watches.load(Ordering::SeqCst) && !self.watches.swap(true, Ordering::SeqCst) {
            self.notify.notify_one();
        }
    }

    /// Something is due at `at`.
    pub(crate) fn due_at(&self, at: Mono) {
        if at.as_nanos() < self.next.load(Ordering::SeqCst) {
            self.notify.notify_one();
        }
    }
}

/// What the parts of one running flow share.
pub(crate) struct Shared {
    pub plan: Arc<Plan>,
    pub limits: Limits,
    pub clock: SharedClock,
    pub nodes: Vec<NodeShared>,
    pub stages: Vec<Arc<StageShared>>,
    pub index: Index,
    pub tenants: Arc<Tenants>,
    /// Room for traces.
    pub room: Room,
    /// Traces that live beyond the bound: taken up from an earlier life with a larger one.
    pub beyond: AtomicUsize,
    /// Nothing more is accepted.
    pub closed: AtomicBool,
    /// Stages that have not ended.
    pub running: AtomicUsize,
    /// A trace ended after it was closed, or a stage did.
    pub progress: Notify,
    pub exited: AtomicBool,
    pub bell: Bell,
    pub metrics: FlowMetrics,
    pub observing: Observing,
    /// What keeps its traces, of a durable flow; or why it cannot run as one.
    pub durable: Option<Result<Arc<Durability>, String>>,
    /// For those who are no stage.
    pub pen: SharedPen,
    results: Mutex<Results>,
}

impl Shared {
    pub(crate) fn new(
        plan: Arc<Plan>,
        groups: &[fuse::Group],
        config: &RunConfig,
        observing: Observing,
        metrics: FlowMetrics,
        tenants: Arc<Tenants>,
        durable: Option<Result<Arc<Durability>, String>>,
    ) -> Self {
        let (limits, clock) = (config.limits.clone(), config.clock.clone());
        let nodes = resolve(&plan, groups);
        let traces = limits.traces.max(1);
        Self {
            nodes,
            stages: groups.iter().map(|_| Arc::default()).collect(),
            index: Index::default(),
            tenants,
            room: Room::new(traces),
            beyond: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            running: AtomicUsize::new(groups.len()),
            progress: Notify::new(),
            exited: AtomicBool::new(false),
            bell: Bell::default(),
            pen: SharedPen::new(pen_of(&observing, &metrics)),
            observing,
            metrics,
            durable,
            results: Mutex::default(),
            plan,
            limits,
            clock,
        }
    }

    pub(crate) fn now(&self) -> Mono {
        self.clock.mono()
    }

    /// Writes and counts for one who is no stage.
    pub(crate) fn write<R>(&self, work: impl FnOnce(&mut Pen) -> R) -> R {
        let spare = || pen_of(&self.observing, &self.metrics);
        self.pen.write(spare, work)
    }

    pub(crate) fn node(&self, node: NodeIx) -> &NodeShared {
        &self.nodes[usize::from(node)]
    }

    pub(crate) fn stage_of(&self, node: NodeIx) -> &Arc<StageShared> {
        &self.stages[self.node(node).stage]
    }

    /// Traces that live.
    pub(crate) fn live(&self) -> usize {
        let most = self.limits.traces.max(1);
        most.saturating_sub(self.room.free()) + self.beyond.load(Ordering::SeqCst)
    }

    /// Gives the place of a trace back.
    pub(crate) fn leave(&self) {
        if self.beyond.load(Ordering::SeqCst) == 0 || !self.leave_beyond() {
            self.room.give();
        }
        if self.closed.load(Ordering::SeqCst) {
            self.progress.notify_waiters();
        }
    }

    /// Gives a place back that is beyond the bound, if one is taken.
    fn leave_beyond(&self) -> bool {
        let fewer = |beyond: usize| beyond.checked_sub(1);
        let beyond = &self.beyond;
        let left = beyond.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fewer);
        left.is_ok()
    }

    /// Tells those who waited for places of a node.
    pub(crate) fn tell(&self, node: NodeIx, mut freed: Freed) {
        freed.wake();
        for (tenant, edge) in freed.room {
            self.tell_room(node, edge, tenant);
        }
    }

    /// Tells the producer of an edge that there is room again.
    fn tell_room(&self, node: NodeIx, edge: u16, tenant: u32) {
        if let Some(Some(from)) = self.node(node).ways_in.get(usize::from(edge)) {
            let local = self.node(*from).local;
            self.stage_of(*from).signal(Signal::Room { local, tenant });
        }
    }

    /// Ends a trace, if it has not ended; a last value may come with it.
    pub(crate) fn end(
        &self,
        pen: &mut Pen,
        trace: &Arc<Trace>,
        outcome: Outcome,
        value: Option<Payload>,
        now: Mono,
    ) -> bool {
        let Some(outcome) = self.settle(pen, trace, outcome, value) else {
            return false;
        };
        pen.over(trace, outcome, now);
        true
    }

    /// As [`Shared::end`], but for telling observers: that is left to the caller, with the outcome that it got.
    pub(crate) fn settle(
        &self,
        pen: &mut Pen,
        trace: &Arc<Trace>,
        outcome: Outcome,
        value: Option<Payload>,
    ) -> Option<Outcome> {
        let durable = trace.book.is_some() && !durable::goes_on(&outcome);
        let (outcome, value) = self.with_stored(trace, outcome, value);
        let told = outcome.clone();
        let ending = trace.close(outcome, value, durable)?;
        pen.ended(trace, &told);
        let attached = ending.attached;
        let dropped = ending.tell();
        if dropped > 0 {
            trace.remove(dropped);
        }
        if durable && self.write_end(trace, told.clone()) {
            return Some(told);
        }
        if !attached {
            self.keep(trace);
        }
        self.leave();
        Some(told)
    }

    /// Keeps what nobody reads for a while.
    pub(crate) fn keep(&self, trace: &Trace) {
        self.keep_for(trace, self.results_kept().0);
    }

    /// As [`Shared::keep`], for so long.
    pub(crate) fn keep_for(&self, trace: &Trace, time: Duration) {
        let expires = self.now() + time;
        trace.cell.lock().rare().expires = Some(expires);
        let (tenant, most) = (trace.tenant.serial, self.results_kept().1);
        let kept = (expires, trace.id);
        let goes = self.results.lock().keep(tenant, kept, most);
        if let Some((stamp, id)) = goes {
            self.expire(stamp, id);
        }
        self.bell.due_at(expires);
    }

    /// Somebody reads what was kept: it takes no place of others any more.
    pub(crate) fn keep_no_more(&self, trace: &Trace, expires: Mono) {
        let kept = (expires, trace.id);
        self.results.lock().remove(trace.tenant.serial, kept);
    }

    /// Forgets what was kept for too long. Returns when the next is due.
    pub(crate) fn expire_due(&self, now: Mono) -> Option<Mono> {
        loop {
            let due = {
                let mut results = self.results.lock();
                results.take_due(now).ok_or_else(|| results.next())
            };
            match due {
                Ok((stamp, id)) => self.expire(stamp, id),
                Err(next) => return next,
            }
        }
    }

    fn expire(&self, stamp: Mono, id: TraceId) {
        let Some(trace) = self.index.get(id) else {
            return;
        };
        {
            let mut cell = trace.cell.lock();
            let kept_since = cell.rare.as_ref().and_then(|rare| rare.expires);
            if cell.gone || cell.attached || kept_since != Some(stamp) {
                return;
            }
            cell.gone = true;
        }
        self.index.remove(&trace);
        self.forget_end(&trace);
        self.metrics.totals().results_expired.inc();
    }

    /// A message of a trace was dropped; tells when nothing of a cancelled one is left.
    pub(crate) fn dropped(&self, pen: &mut Pen, trace: &Arc<Trace>, messages: u32) {
        if trace.remove(messages).pending > 0 {
            return;
        }
        let cancelled = matches!(trace.cell.lock().outcome, Some(Outcome::Cancelled));
        if cancelled && trace.first_to_finish() {
            self.metrics.totals().trace_cancel_finish.inc();
            pen.event(trace, self.now(), FlowEventKind::CancelFinish);
        }
    }

    /// Nothing of the trace moves but by its joins: has the first of them go on.
    pub(crate) fn resolve_joins(&self, trace: &Arc<Trace>) {
        let first = {
            let cell = trace.cell.lock();
            let joins = cell.rare.as_ref().map(|rare| rare.joins.as_slice());
            let full = joins.unwrap_or_default().iter();
            full.filter(|(_, spot)| spot.bucket.len() > 0)
                .map(|(node, _)| *node)
                .min_by_key(|node| self.node(*node).rank)
        };
        if let Some(node) = first {
            self.resolve_join(node, trace);
        }
    }

    /// Has a join look at what it has of a trace.
    pub(crate) fn resolve_join(&self, node: NodeIx, trace: &Arc<Trace>) {
        let local = self.node(node).local;
        let trace = trace.clone();
        self.stage_of(node).signal(Signal::Resolve { local, trace });
    }

    /// Drops what is in the queues. What is dropped there is code of users, so it is not done at the gates.
    pub(crate) fn clear_queues(&self) {
        for node in &self.nodes {
            discard(node.gate(|gate| gate.inbox.drain()));
        }
    }

    /// Puts a message that was held before its node, past all bounds: it had a place.
    pub(crate) fn put_again(&self, node: NodeIx, msg: Msg) {
        self.node(node).gate(|gate| {
            gate.inbox.hold(msg.trace.tenant.ix, msg.edge);
            gate.inbox.put(msg.into());
        });
        self.stage_of(node).schedule();
    }
}

/// A pen for one who is no stage.
fn pen_of(observing: &Observing, metrics: &FlowMetrics) -> Pen {
    Pen {
        tap: observing.tap(&[]),
        metrics: Counting::Direct(metrics.clone()),
    }
}

fn resolve(plan: &Plan, groups: &[fuse::Group]) -> Vec<NodeShared> {
    let ranks = fuse::ranks(plan);
    let mut ways_in: Vec<SmallVec<[Option<NodeIx>; 2]>> = vec![SmallVec::new(); plan.nodes.len()];
    let mut bounds: Vec<SmallVec<[usize; 4]>> = vec![SmallVec::new(); plan.nodes.len()];
    let mut ingress = vec![None; plan.nodes.len()];
    let mut routes = Vec::with_capacity(plan.nodes.len());
    for (from, node) in (0..).zip(&plan.nodes) {
        let edges = node.out.iter().map(|edge| {
            let Target::Node(to) = edge.to else {
                let (to, back) = (None, false);
                return Route { to, back };
            };
            let at = usize::from(to);
            ways_in[at].push(Some(from));
            bounds[at].push(if edge.back {
                usize::MAX
            } else {
                edge.queue.max(1)
            });
            let edge_in = u16::try_from(ways_in[at].len() - 1).unwrap_or(u16::MAX);
            Route {
                to: Some((to, edge_in)),
                back: edge.back,
            }
        });
        routes.push(edges.collect::<SmallVec<[Route; 2]>>());
    }
    for node in &plan.ingress {
        let at = usize::from(*node);
        ingress[at] = u16::try_from(ways_in[at].len()).ok();
        ways_in[at].push(None);
        bounds[at].push(plan.nodes[at].queue.max(1));
    }
    let mut places = vec![(0, 0); plan.nodes.len()];
    for (stage, group) in groups.iter().enumerate() {
        for (local, node) in (0..).zip(group) {
            places[usize::from(*node)] = (stage, local);
        }
    }
    let mut nodes: Vec<NodeShared> = Vec::with_capacity(plan.nodes.len());
    for (at, node) in plan.nodes.iter().enumerate() {
        let need = match &node.work {
            Work::Call(_) => None,
            Work::Join(join) => Some(match join.count {
                Some(count) => Need::Count(count),
                None => Need::Each(ways_in[at].len()),
            }),
        };
        let (stage, local) = places[at];
        nodes.push(NodeShared {
            door: CachePadded::new(Door {
                gate: Mutex::new(Gate::new(Inbox::new(bounds[at].iter().copied()))),
                queued: AtomicBool::new(false),
                line: AtomicBool::new(false),
            }),
            stage,
            local,
            ways_in: ways_in[at].clone(),
            ingress: ingress[at],
            routes: std::mem::take(&mut routes[at]),
            rank: ranks[at],
            need,
            running: AtomicU32::new(0),
            backing_off: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
        });
    }
    nodes
}
