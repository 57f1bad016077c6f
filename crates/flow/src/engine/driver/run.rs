//! Attempts that did not end at their first poll: parked, woken, timed out, given up.

use std::{
    sync::Arc,
    sync::atomic::Ordering,
    task::{Context, Poll},
};

use volary_kernel::Mono;

use super::{
    super::{
        timers::Key,
        trace::{Msg, Spot, Trace},
    },
    Due, Stage, contained, discard,
};
use crate::{
    error::FlowErrorCode,
    graph::plan::{Payload, Returned},
    observe::FlowEventKind,
    observe::metrics::AttemptEnd,
    outcome::Outcome,
    policy::{
        breaker::{Admit, Change, Pass},
        retry::Failure,
    },
};

/// What a run does.
pub(super) enum Doing {
    Nothing,
    /// An attempt that did not end at its first poll.
    Attempt(Parked),
    /// The message waits before its next attempt.
    BackOff(Msg, Key, u32),
    /// A trace waits in a join until the time is over.
    Join(Arc<Trace>, Key, u32),
}

/// The message of an attempt, without its payload.
pub(super) struct Head {
    pub trace: Arc<Trace>,
    pub step: u64,
    pub edge: u16,
    /// Which attempt, from 1.
    pub attempt: u32,
    /// For the next attempt.
    pub saved: Option<Payload>,
    pub started: Mono,
    pub pass: Option<Pass>,
}

/// An attempt under way.
pub(super) struct Parked {
    head: Head,
    timeout: Option<Key>,
    token: u32,
}

/// How an attempt ended.
pub(super) enum Ended {
    Returned(Returned),
    Panicked(String),
    TimedOut,
}

impl Stage {
    /// Drops a message of a trace that ended.
    pub(super) fn drop_message(&mut self, msg: Msg) {
        let kind = match msg.trace.cell.lock().outcome {
            Some(Outcome::Cancelled) => Some(FlowEventKind::CancelDrop),
            Some(Outcome::DeadlineExceeded) => Some(FlowEventKind::DeadlineSkip),
            _ => None,
        };
        if let Some(kind) = kind {
            if matches!(kind, FlowEventKind::DeadlineSkip) {
                self.shared.metrics.totals().deadline_skip.inc();
            }
            self.pen.event(&msg.trace, self.now, kind);
        }
        self.discard(msg);
    }

    fn discard(&mut self, msg: Msg) {
        let Msg { trace, payload, .. } = msg;
        let _its_drop_may_panic = contained(|| drop(payload));
        self.shared.dropped(&mut self.pen, &trace, 1);
    }

    /// The deadline passed while the message waited.
    pub(super) fn skip(&mut self, local: usize, msg: Msg) {
        let ix = self.nodes[local].ix;
        self.shared.metrics.totals().deadline_skip.inc();
        let kind = FlowEventKind::DeadlineSkip;
        self.pen.of_node(&msg.trace, ix, 0, self.now, kind);
        let outcome = Outcome::DeadlineExceeded;
        self.shared
            .end(&mut self.pen, &msg.trace, outcome, None, self.now);
        self.discard(msg);
    }

    // --- the breaker and the budget ------------------------------------------------------------

    pub(super) fn admit(&mut self, local: usize, msg: &Msg) -> Result<Option<Pass>, String> {
        let Some(guards) = &mut self.nodes[local].guards else {
            return Ok(None);
        };
        let guard = guards.of(msg.trace.tenant.serial);
        if msg.attempts == 0 {
            guard.budget.first_attempt();
        }
        let Some(breaker) = &mut guard.breaker else {
            return Ok(None);
        };
        match breaker.admit(self.now) {
            Admit::Run => Ok(Some(Pass::Run)),
            Admit::Probe => Ok(Some(Pass::Probe)),
            Admit::Refuse { until: Some(until) } => {
                let wait = volary_kernel::text::format_duration(until - self.now);
                Err(format!("the breaker is open for another {wait}"))
            }
            Admit::Refuse { until: None } => Err("the breaker waits for its probe".to_owned()),
        }
    }

    pub(super) fn refuse(&mut self, local: usize, msg: Msg, why: &str) {
        let code = FlowErrorCode::BreakerOpen;
        let error = self.error(local, &msg.trace, code, why.to_owned(), msg.attempts);
        self.fail(local, &msg.trace, error);
        self.drop_message(msg);
    }

    pub(super) fn report(&mut self, local: usize, head: &Head, failure: Option<Failure>) {
        let Some(pass) = head.pass else { return };
        let Some(guards) = &mut self.nodes[local].guards else {
            return;
        };
        let Some(breaker) = &mut guards.of(head.trace.tenant.serial).breaker else {
            return;
        };
        let change = match failure {
            None => breaker.success(pass),
            Some(failure) if failure.counts_for_the_breaker() => breaker.failure(pass, self.now),
            Some(_) => {
                breaker.abandoned(pass, self.now);
                Change::None
            }
        };
        let kind = match change {
            Change::None => return,
            Change::Opened => FlowEventKind::BreakerOpened,
            Change::Closed => FlowEventKind::BreakerClosed,
        };
        let ix = self.nodes[local].ix;
        self.pen
            .of_node(&head.trace, ix, head.attempt, self.now, kind);
    }

    pub(super) fn report_abandoned(&mut self, local: usize, head: &Head) {
        let (Some(pass), Some(guards)) = (head.pass, &mut self.nodes[local].guards) else {
            return;
        };
        if let Some(breaker) = &mut guards.of(head.trace.tenant.serial).breaker {
            breaker.abandoned(pass, self.now);
        }
    }

    // --- waiting -------------------------------------------------------------------------------

    /// Leaves an attempt that began just now in the run where it did.
    pub(super) fn park(&mut self, local: usize, head: Head) {
        // Exact from here on: what waits is measured, and its timeout runs.
        self.read_clock();
        let node = &mut self.nodes[local];
        node.active += 1;
        let run = node.open(&self.me, local);
        let ix = node.ix;
        if self.pen.is_on() {
            let kind = FlowEventKind::NodeStart;
            self.pen
                .of_node(&head.trace, ix, head.attempt, self.now, kind);
        }
        let place = &mut node.runs[run as usize];
        let token = {
            let mut cell = head.trace.cell.lock();
            if cell.outcome.is_some() {
                None
            } else {
                Some(cell.park(place.waker.clone(), Spot::Runs(ix)))
            }
        };
        let ended = token.is_none();
        let timeout = node.policy.timeout.map(|limit| {
            let due = Due::Timeout { local, run };
            self.timers.insert(head.started + limit, due)
        });
        place.doing = Doing::Attempt(Parked {
            head,
            timeout,
            token: token.unwrap_or_default(),
        });
        if ended {
            self.abandon(local, run);
        }
    }

    /// A run was woken.
    pub(super) fn ready(&mut self, local: usize, run: u32) {
        let place = &mut self.nodes[local].runs[run as usize];
        // Read back as well: who finds it told does not tell again, and what it did before is to be seen by the poll below.
        place.wake.told.swap(false, Ordering::AcqRel);
        let trace = match &place.doing {
            Doing::Nothing => return,
            Doing::Attempt(parked) => &parked.head.trace,
            Doing::BackOff(msg, ..) => &msg.trace,
            Doing::Join(trace, ..) => trace,
        };
        if trace.has_ended() {
            self.abandon(local, run);
            return;
        }
        if !matches!(place.doing, Doing::Attempt(_)) {
            return;
        }
        self.tick();
        let node = &mut self.nodes[local];
        if let Doing::Attempt(parked) = &node.runs[run as usize].doing {
            self.me.set_busy_for(&parked.head.trace);
            self.me.set_busy_with(node.ix);
        }
        let place = &mut node.runs[run as usize];
        let Some(slot) = &mut place.slot else { return };
        let polled = contained(|| slot.poll(&mut Context::from_waker(&place.waker)));
        let ended = match polled {
            Ok(Poll::Pending) => return,
            Ok(Poll::Ready(returned)) => Ended::Returned(returned),
            Err(panic) => {
                self.clear(local, run);
                Ended::Panicked(panic)
            }
        };
        self.read_clock();
        if let Some(head) = self.unpark(local, run) {
            if matches!(ended, Ended::Returned(Ok(_))) {
                self.took(local, AttemptEnd::Success, self.now - head.started, 1);
            }
            self.go_on(local, head, ended);
        }
    }

    fn go_on(&mut self, local: usize, head: Head, ended: Ended) {
        if let Some((next, msg)) = self.ended(local, head, ended, false) {
            self.advance(next, msg);
        }
    }

    /// Takes an attempt out of its run.
    fn unpark(&mut self, local: usize, run: u32) -> Option<Head> {
        let node = &mut self.nodes[local];
        let place = &mut node.runs[run as usize];
        let Doing::Attempt(parked) = std::mem::replace(&mut place.doing, Doing::Nothing) else {
            return None;
        };
        node.active -= 1;
        node.free.push(run);
        if let Some(key) = parked.timeout {
            self.timers.remove(key);
        }
        parked.head.trace.cell.lock().unpark(parked.token);
        Some(parked.head)
    }

    pub(super) fn timed_out(&mut self, local: usize, run: u32) {
        let Some(head) = self.unpark(local, run) else {
            return;
        };
        self.clear(local, run);
        self.go_on(local, head, Ended::TimedOut);
    }

    /// Drops the future of a run, and its allocation.
    pub(super) fn clear(&mut self, local: usize, run: u32) {
        discard(self.nodes[local].runs[run as usize].slot.take());
    }

    /// Drops what a run does: its trace has ended.
    pub(super) fn abandon(&mut self, local: usize, run: u32) {
        let ix = self.nodes[local].ix;
        let place = &mut self.nodes[local].runs[run as usize];
        match &place.doing {
            Doing::Nothing => {}
            Doing::Attempt(_) => {
                let Some(head) = self.unpark(local, run) else {
                    return;
                };
                self.clear(local, run);
                self.report_abandoned(local, &head);
                let kind = FlowEventKind::NodeCancelled;
                self.pen
                    .of_node(&head.trace, ix, head.attempt, self.now, kind);
                self.shared.dropped(&mut self.pen, &head.trace, 1);
                let _its_drop_may_panic = contained(|| drop(head.saved));
            }
            Doing::BackOff(..) => {
                if let Some(msg) = self.end_back_off(local, run) {
                    self.nodes[local].release(msg.trace.tenant.ix, msg.edge);
                    self.release_places(local);
                    self.drop_message(msg);
                }
            }
            Doing::Join(..) => self.end_wait(local, run),
        }
    }

    fn end_back_off(&mut self, local: usize, run: u32) -> Option<Msg> {
        let node = &mut self.nodes[local];
        let doing = &mut node.runs[run as usize].doing;
        let Doing::BackOff(msg, key, token) = std::mem::replace(doing, Doing::Nothing) else {
            return None;
        };
        node.free.push(run);
        node.backing_off -= 1;
        self.timers.remove(key);
        msg.trace.cell.lock().unpark(token);
        Some(msg)
    }

    /// A back-off, or the wait of a join, is over.
    pub(super) fn waited(&mut self, local: usize, run: u32) {
        if let Doing::Join(trace, ..) = &self.nodes[local].runs[run as usize].doing {
            let trace = trace.clone();
            self.end_wait(local, run);
            // Of a paused one it begins again when it is resumed: what it waits for is held as well.
            if !trace.is_paused() {
                self.join_timed_out(local, &trace);
            }
            return;
        }
        if let Some(msg) = self.end_back_off(local, run) {
            let ix = self.nodes[local].ix;
            self.shared.node(ix).gate(|gate| gate.inbox.put(msg.into()));
        }
    }
}
