//! A stage: the task that runs a node, or a fused chain of them.
//!
//! ```text
//!   woken ─▶ signals (runs that were woken, room, joins) ─▶ timers (timeouts, back-off) ─▶ messages, last node first ─▶ rest
//! ```
//!
//! An attempt is polled once when it starts; most end there, and the message goes on to the next fused node at once. What
//! does not is parked in its slot and polled again only when it is woken.

mod attempt;
mod chain;
mod ends;
mod join;
mod node;
mod route;
mod run;
mod sample;

use std::{
    any::Any,
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, Waker},
    time::Duration,
};

use hashbrown::HashMap;
use tokio_util::sync::ReusableBoxFuture;
use volary_kernel::{Mono, clock, task::panic_text};

use self::{chain::Chain, node::RunWake, run::Doing, sample::Sampling};
use super::{
    gate::Freed,
    inbox::Taken,
    pen::{Counting, Pen},
    shared::{Route, Shared, Signal, StageShared},
    timers::Timers,
    trace::{Msg, Trace},
};
use crate::{
    graph::plan::{Call, Join, NodeIx, Slot},
    observe::metrics::{AttemptEnd, NodeCount},
    policy::{NodePolicy, guard::Guards},
};

/// Most attempts of one poll; then other tasks of the thread have their turn.
const ATTEMPTS_PER_POLL: u32 = 256;
/// Longest run of one poll, as far as nodes let it.
const TIME_PER_POLL: Duration = Duration::from_millis(2);
/// Attempts between two readings of the clock while attempts are short.
const ATTEMPTS_PER_READING: u32 = 16;
/// Attempts that take longer, on average since the last reading, are timed one by one.
const SHORT: Duration = Duration::from_micros(50);
/// So often a fused chain may branch before its branches stand in queues: each is a call within the one before.
const NESTED: usize = 16;
/// Most messages that are taken from an inbox at once.
const BATCH: usize = 32;

/// Something due.
enum Due {
    /// An attempt has taken too long.
    Timeout { local: usize, run: u32 },
    /// The wait before the next attempt, or in a join, is over.
    Wait { local: usize, run: u32 },
}

/// The task that runs a node, or a fused chain of them.
pub(crate) struct Stage {
    shared: Arc<Shared>,
    me: Arc<StageShared>,
    nodes: Vec<NodeRun>,
    timers: Timers<Due>,
    pen: Pen,
    /// Of the messages that run within one another, that of the innermost last.
    chains: Vec<Chain>,
    /// It rests until it is woken.
    rests: bool,
    now: Mono,
    /// When the clock was read to see how long attempts take.
    read: Mono,
    woken: Mono,
    attempts: u32,
    since_reading: u32,
    one_by_one: bool,
    signals: Vec<Signal>,
    sleep: ReusableBoxFuture<'static, ()>,
    sleeps_until: Option<Mono>,
    exited: bool,
}

/// A node, as its stage sees it.
struct NodeRun {
    ix: NodeIx,
    work: Job,
    policy: NodePolicy,
    sampling: Sampling,
    runs: Vec<Run>,
    free: Vec<u32>,
    /// Runs that are attempts.
    active: usize,
    taken: VecDeque<Taken<Msg>>,
    /// How many are taken at once.
    batch: usize,
    /// Places to give back: of which tenant, on which edge, how many.
    releases: Vec<(u32, u16, u32)>,
    /// Outputs that found no room, per tenant.
    outbox: HashMap<u32, VecDeque<(Route, Msg)>>,
    waiting: u32,
    backing_off: u32,
    guards: Option<Guards>,
    is_ingress: Option<u16>,
    /// The edge to the fused node behind, where that is all there is.
    straight: Option<u16>,
}

#[derive(Clone)]
enum Job {
    Call(Arc<dyn Call>),
    Join(Join),
}

/// A place for an attempt, or for a wait.
struct Run {
    /// Where its attempts live, once there was one. Thrown away with an attempt that was given up, or that panicked.
    slot: Option<Box<dyn Slot>>,
    wake: Arc<RunWake>,
    waker: Waker,
    doing: Doing,
}

/// Runs code of a user; a panic becomes its text.
pub(super) fn contained<T>(code: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(code)).map_err(|panic: Box<dyn Any + Send>| {
        let text = panic_text(&*panic).to_owned();
        // A payload may panic when it is dropped, too.
        let _second_panic = catch_unwind(AssertUnwindSafe(|| drop(panic)));
        text
    })
}

/// Drops things of users one by one: the drop of any may panic, and of two that do within one another the process would end.
pub(super) fn discard<T>(things: impl IntoIterator<Item = T>) {
    for thing in things {
        let _its_drop_may_panic = contained(|| drop(thing));
    }
}

impl Stage {
    pub(crate) fn new(shared: Arc<Shared>, stage: usize, chain: &[NodeIx]) -> Self {
        let me = shared.stages[stage].clone();
        let now = shared.now();
        let behind = chain.iter().skip(1).copied().map(Some).chain([None]);
        let nodes = chain.iter().zip(behind);
        let nodes = nodes
            .map(|(ix, next)| NodeRun::new(&shared, *ix, next))
            .collect();
        Self {
            me,
            nodes,
            timers: Timers::default(),
            pen: Pen {
                tap: shared.observing.tap(chain),
                metrics: Counting::Stage(shared.metrics.stage(chain)),
            },
            chains: Vec::new(),
            rests: true,
            now,
            read: now,
            woken: now,
            attempts: 0,
            since_reading: 0,
            one_by_one: false,
            signals: Vec::new(),
            sleep: ReusableBoxFuture::new(std::future::pending()),
            sleeps_until: None,
            exited: false,
            shared,
        }
    }

    /// Runs what can run. Ready when the stage was told to exit.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.me.waker.register(cx.waker());
        if std::mem::take(&mut self.rests) {
            // Tasks that can run now may emit: it goes behind them and takes what they emit at once, instead of being woken
            // and going to rest for each. Where nobody else can run this is one more poll.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.since_reading = 0;
        self.read_clock();
        self.woken = self.now;
        self.attempts = 0;
        loop {
            if self.take_signals() {
                self.exit();
                return Poll::Ready(());
            }
            self.fire_timers();
            for local in (0..self.nodes.len()).rev() {
                self.pump(local);
            }
            if self.is_spent() {
                cx.waker().wake_by_ref();
                self.rest();
                // Whoever has the thread now, it is no node of this.
                self.me.busy_since.store(0, Ordering::Relaxed);
                return Poll::Pending;
            }
            self.sleep_until_due(cx);
            self.me.scheduled.store(false, Ordering::SeqCst);
            if self.is_idle() {
                self.rest();
                self.rests = true;
                self.me.busy_since.store(0, Ordering::Relaxed);
                return Poll::Pending;
            }
            self.me.scheduled.store(true, Ordering::SeqCst);
        }
    }

    /// Whether it is the turn of other tasks.
    fn is_spent(&self) -> bool {
        self.attempts >= ATTEMPTS_PER_POLL
            || self.now - self.woken >= TIME_PER_POLL
            || !tokio::task::coop::has_budget_remaining()
    }

    /// Apart from those who call it: they are small, and seldom do.
    #[inline(never)]
    fn read_clock(&mut self) {
        let before = self.read;
        self.now = self.shared.now();
        self.read = self.now;
        if self.since_reading > 0 {
            let each = (self.now - before) / self.since_reading;
            self.one_by_one = each > SHORT;
        }
        self.since_reading = 0;
        let now = self.now.as_nanos().max(1);
        self.me.busy_since.store(now, Ordering::Relaxed);
    }

    /// Whether the clock is read before the next attempt.
    const fn is_reading_due(&self) -> bool {
        self.one_by_one || self.since_reading >= ATTEMPTS_PER_READING
    }

    /// Before an attempt.
    #[inline]
    fn tick(&mut self) {
        self.attempts += 1;
        if self.is_reading_due() {
            self.read_clock();
            if self.one_by_one {
                for local in 0..self.nodes.len() {
                    self.put_back(local);
                }
            }
        }
        self.since_reading += 1;
    }

    /// Whether the coming attempt is timed even if it does not wait.
    #[inline]
    fn is_timed(&mut self, local: usize) -> bool {
        let timed = self.one_by_one || self.nodes[local].sampling.is_due(self.now);
        // One that comes right after a reading starts with it.
        if timed && self.since_reading > 1 {
            self.read_clock();
        }
        timed
    }

    /// Does what was signalled; true to exit.
    fn take_signals(&mut self) -> bool {
        let mut signals = std::mem::take(&mut self.signals);
        std::mem::swap(&mut signals, &mut self.me.signals.lock());
        let mut exit = false;
        for signal in signals.drain(..) {
            match signal {
                Signal::Ready { local, run } => self.ready(usize::from(local), run),
                Signal::Room { local, tenant } => self.send_waiting(usize::from(local), tenant),
                Signal::Resolve { local, trace } => self.resolve(usize::from(local), &trace),
                Signal::Exit => exit = true,
            }
        }
        self.signals = signals;
        exit
    }

    fn fire_timers(&mut self) {
        while let Some(due) = self.timers.pop_due(self.now) {
            match due {
                Due::Timeout { local, run } => self.timed_out(local, run),
                Due::Wait { local, run } => self.waited(local, run),
            }
        }
    }

    /// Has the task woken when the next timer is due.
    fn sleep_until_due(&mut self, cx: &mut Context<'_>) {
        let Some(next) = self.timers.next() else {
            self.sleeps_until = None;
            return;
        };
        if self.sleeps_until != Some(next) {
            self.sleeps_until = Some(next);
            self.sleep.set(clock::sleep(next - self.shared.now()));
        }
        if self.sleep.poll(cx).is_ready() {
            // It is due, or this flow's clock is not the runtime's: look again.
            self.sleeps_until = None;
            cx.waker().wake_by_ref();
        }
    }

    /// Whether nothing can be done until it is woken. Called after it said that it may be woken.
    fn is_idle(&self) -> bool {
        let can_take = |node: &NodeRun| {
            let shared = self.shared.node(node.ix);
            node.has_room()
                && (!node.taken.is_empty()
                    || shared.has_queued() && shared.gate(|gate| gate.inbox.has_some()))
        };
        self.me.signals.lock().is_empty() && !self.nodes.iter().any(can_take)
    }

    /// At the end of a poll: gives back what it holds, and counts.
    fn rest(&mut self) {
        for local in 0..self.nodes.len() {
            self.release_places(local);
            self.tell_untimed(local);
            let node = &self.nodes[local];
            let shared = self.shared.node(node.ix);
            let active = u32::try_from(node.active).unwrap_or(u32::MAX);
            shared.running.store(active, Ordering::Relaxed);
            shared
                .backing_off
                .store(node.backing_off, Ordering::Relaxed);
            shared.waiting.store(node.waiting, Ordering::Relaxed);
        }
        self.pen.flush();
    }

    /// Counts something of a node.
    fn count(&mut self, local: usize, trace: &Trace, what: NodeCount) {
        if let Counting::Stage(stage) = &mut self.pen.metrics {
            let place = u16::try_from(local).unwrap_or(u16::MAX);
            stage.count(trace.tenant.label, place, what);
        }
    }

    /// An attempt that did not wait was timed. Those before it stand behind the one that was timed before them.
    fn timed(&mut self, local: usize, started: Mono) {
        self.tell_untimed(local);
        let latency = self.now - started;
        self.nodes[local].sampling.timed(self.now, latency);
        self.took(local, AttemptEnd::Success, latency, 1);
    }

    /// Takes in the attempts that were not timed.
    fn tell_untimed(&mut self, local: usize) {
        if let Some((latency, count)) = self.nodes[local].sampling.take_untimed() {
            self.took(local, AttemptEnd::Success, latency, count);
        }
    }

    /// Takes in how long an attempt took that stands for `weight` of them.
    fn took(&mut self, local: usize, end: AttemptEnd, latency: Duration, weight: u32) {
        if let Counting::Stage(stage) = &mut self.pen.metrics {
            let place = u16::try_from(local).unwrap_or(u16::MAX);
            stage.took(place, end, latency, weight);
        }
    }

    /// Starts messages of a node while it has room.
    fn pump(&mut self, local: usize) {
        while self.nodes[local].has_room() && !self.is_spent() {
            let Some(msg) = self.next(local) else { return };
            self.advance(local, msg);
        }
        if !self.nodes[local].has_room() {
            self.put_back(local);
        }
    }

    /// The next message of a node.
    fn next(&mut self, local: usize) -> Option<Msg> {
        let node = &mut self.nodes[local];
        if let Some(taken) = node.taken.pop_front() {
            node.release(taken.tenant, taken.edge);
            return Some(taken.item);
        }
        let shared = self.shared.node(node.ix);
        if !shared.has_queued() {
            return None;
        }
        let mut freed = Freed::default();
        let first = shared.gate(|gate| {
            node.release_at(gate, &mut freed);
            let one = gate.inbox.take()?;
            for _ in 1..node.batch {
                let Some(taken) = gate.inbox.take() else {
                    break;
                };
                node.taken.push_back(taken);
            }
            node.release(one.tenant, one.edge);
            node.release_at(gate, &mut freed);
            Some(one)
        });
        node.batch = (node.batch * 2).min(BATCH);
        if first.is_some() {
            // Not earlier than what led to any of them, which another thread may just have written down.
            self.now = self.shared.now();
        }
        self.shared.tell(node.ix, freed);
        first.map(|taken| taken.item)
    }

    /// Puts what was taken in advance back: the node is slow, or may not run it now.
    fn put_back(&mut self, local: usize) {
        let node = &mut self.nodes[local];
        node.batch = 1;
        if !node.taken.is_empty() {
            self.shared.node(node.ix).gate(|gate| {
                while let Some(taken) = node.taken.pop_back() {
                    gate.inbox.put_back(taken);
                }
            });
        }
        self.release_places(local);
    }

    fn release_places(&mut self, local: usize) {
        let node = &mut self.nodes[local];
        if node.releases.is_empty() {
            return;
        }
        let mut freed = Freed::default();
        let shared = self.shared.node(node.ix);
        shared.gate(|gate| node.release_at(gate, &mut freed));
        self.shared.tell(node.ix, freed);
    }

    /// Drops all there is, and says that it is done.
    fn exit(&mut self) {
        for local in 0..self.nodes.len() {
            for run in 0..self.nodes[local].runs.len() {
                self.abandon(local, u32::try_from(run).unwrap_or(u32::MAX));
            }
            let node = &mut self.nodes[local];
            let mut left: Vec<Msg> = node.taken.drain(..).map(|taken| taken.item).collect();
            left.extend(
                node.outbox
                    .drain()
                    .flat_map(|(_, box_)| box_)
                    .map(|(_, msg)| msg),
            );
            left.extend(self.shared.node(node.ix).gate(|gate| gate.inbox.drain()));
            for msg in left {
                self.drop_message(msg);
            }
            let node = &mut self.nodes[local];
            (node.waiting, node.backing_off) = (0, 0);
        }
        self.rest();
        self.finish();
    }

    fn finish(&mut self) {
        self.exited = true;
        self.me.busy_since.store(0, Ordering::Relaxed);
        self.me.done.store(true, Ordering::SeqCst);
        if self.shared.running.fetch_sub(1, Ordering::SeqCst) == 1 {
            // One may have sent something to one that had ended, and messages hold the flow as it holds them.
            self.shared.clear_queues();
        }
        self.shared.progress.notify_waiters();
    }
}

impl Drop for Stage {
    /// A stage that ends otherwise than by its exit takes the flow with it: no trace may wait for what cannot come.
    fn drop(&mut self) {
        if !self.exited {
            self.finish();
            self.shared.give_up();
        }
    }
}
