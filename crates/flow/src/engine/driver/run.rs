//! Attempts: started, parked, woken, timed out, tried again.

use std::{
    sync::Arc,
    sync::atomic::Ordering,
    task::{Context, Poll},
};

use volary_kernel::{Mono, retry::random_unit};

use super::{
    super::{
        timers::Key,
        trace::{Msg, Spot, Trace},
    },
    Due, Job, Stage,
    chain::Chain,
    contained, discard,
};
use crate::{
    context,
    error::{FlowError, FlowErrorCode, NodeError},
    graph::plan::{NodeIx, Payload, Step},
    observe::FlowEventKind,
    observe::metrics::{AttemptEnd, NodeCount},
    outcome::Outcome,
    policy::{
        breaker::{Admit, Change, Pass},
        retry::{Attempt, Decision, Failure, GaveUp, decide},
    },
    state::attempt,
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
enum Ended {
    Returned(Result<Step, NodeError>),
    Panicked(String),
    TimedOut,
}

impl Stage {
    /// Runs a message through this node and, while nothing waits in between, the fused ones after it.
    pub(super) fn advance(&mut self, local: usize, msg: Msg) {
        let chain = Chain::of(&msg.trace, self.now);
        let outer = self.chain.replace(chain);
        self.nested += 1;
        let mut at = Some((local, msg));
        while let Some((local, msg)) = at {
            at = self.attempt(local, msg);
        }
        self.nested -= 1;
        if let Some(chain) = std::mem::replace(&mut self.chain, outer) {
            self.write_down(&chain);
        }
    }

    /// One attempt, up to its first wait. Returns the message that a fused node after it can take at once.
    fn attempt(&mut self, local: usize, msg: Msg) -> Option<(usize, Msg)> {
        self.tick();
        let ix = self.nodes[local].ix;
        if msg.trace.is_held() {
            let msg = self.hold_or_drop(ix, msg)?;
            return self.attempt_now(local, msg);
        }
        self.attempt_now(local, msg)
    }

    fn attempt_now(&mut self, local: usize, msg: Msg) -> Option<(usize, Msg)> {
        if msg
            .trace
            .deadline
            .is_some_and(|deadline| self.now >= deadline)
        {
            self.skip(local, msg);
            return None;
        }
        self.begin(&msg.trace);
        if matches!(self.nodes[local].work, Job::Join(_)) {
            self.tell_begin(&msg.trace);
            return self.gather(local, msg);
        }
        let pass = match self.admit(local, &msg) {
            Ok(pass) => pass,
            Err(why) => {
                self.tell_begin(&msg.trace);
                self.refuse(local, msg, &why);
                return None;
            }
        };
        let timed = self.is_timed(local);
        let node = &mut self.nodes[local];
        let Msg {
            trace,
            payload,
            step,
            attempts,
            edge,
        } = msg;
        let attempt = attempts + 1;
        let started = self.now;
        let ix = node.ix;
        self.me.set_busy(ix, &trace);
        let again = attempt <= node.policy.max_retries;
        let clone = self.shared.plan.nodes[usize::from(ix)].clone_in;
        let run = node.open(&self.me, local);
        let place = &mut node.runs[run as usize];
        let context = context::Context::new(trace.clone(), ix, attempt, step);
        let mut saved = None;
        let work = &node.work;
        let polled = contained(|| {
            if again {
                saved = Some(clone(&*payload));
            }
            if let Job::Call(call) = work {
                call.start(payload, context, &mut place.slot);
            }
            place.slot.poll(&mut Context::from_waker(&place.waker))
        });
        let head = Head {
            trace,
            step,
            edge,
            attempt,
            saved,
            started,
            pass,
        };
        let ended = match polled {
            Ok(Poll::Pending) => {
                self.tell_begin(&head.trace);
                self.park(local, run, head);
                return None;
            }
            Ok(Poll::Ready(returned)) => Ended::Returned(returned),
            Err(panic) => Ended::Panicked(panic),
        };
        self.nodes[local].free.push(run);
        let succeeded = matches!(ended, Ended::Returned(Ok(_)));
        if timed {
            self.since_reading = 1;
            self.read_clock();
            if succeeded {
                self.timed(local, head.started);
            }
        } else if succeeded {
            self.nodes[local].sampling.untimed();
        }
        self.ended(local, head, ended, true)
    }

    /// A message of a trace that ended is dropped, one of a paused trace is held. Otherwise it is given back.
    fn hold_or_drop(&mut self, ix: NodeIx, msg: Msg) -> Option<Msg> {
        let trace = msg.trace.clone();
        let mut cell = trace.cell.lock();
        if cell.outcome.is_some() {
            drop(cell);
            self.drop_message(msg);
            return None;
        }
        if !trace.is_paused() {
            return Some(msg);
        }
        cell.rare().held.push((ix, msg));
        None
    }

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
    fn skip(&mut self, local: usize, msg: Msg) {
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

    fn admit(&mut self, local: usize, msg: &Msg) -> Result<Option<Pass>, String> {
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

    fn refuse(&mut self, local: usize, msg: Msg, why: &str) {
        let code = FlowErrorCode::BreakerOpen;
        let error = self.error(local, &msg.trace, code, why.to_owned(), msg.attempts);
        self.fail(local, &msg.trace, error);
        self.drop_message(msg);
    }

    fn report(&mut self, local: usize, head: &Head, failure: Option<Failure>) {
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

    fn report_abandoned(&mut self, local: usize, head: &Head) {
        let (Some(pass), Some(guards)) = (head.pass, &mut self.nodes[local].guards) else {
            return;
        };
        if let Some(breaker) = &mut guards.of(head.trace.tenant.serial).breaker {
            breaker.abandoned(pass, self.now);
        }
    }

    // --- waiting -------------------------------------------------------------------------------

    fn park(&mut self, local: usize, run: u32, head: Head) {
        // Exact from here on: what waits is measured, and its timeout runs.
        self.read_clock();
        let node = &mut self.nodes[local];
        node.active += 1;
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
            self.me.set_busy(node.ix, &parked.head.trace);
        }
        let place = &mut node.runs[run as usize];
        let polled = contained(|| place.slot.poll(&mut Context::from_waker(&place.waker)));
        let ended = match polled {
            Ok(Poll::Pending) => return,
            Ok(Poll::Ready(returned)) => Ended::Returned(returned),
            Err(panic) => Ended::Panicked(panic),
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
    fn clear(&mut self, local: usize, run: u32) {
        let slot = &mut self.nodes[local].runs[run as usize].slot;
        let _its_drop_may_panic = contained(|| slot.set(std::future::pending()));
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

    // --- ends ----------------------------------------------------------------------------------

    fn ended(
        &mut self,
        local: usize,
        mut head: Head,
        ended: Ended,
        at_once: bool,
    ) -> Option<(usize, Msg)> {
        let ix = self.nodes[local].ix;
        // One that waited was told of when it began to.
        let untold = at_once;
        if head.trace.has_ended() {
            if at_once {
                self.tell_begin(&head.trace);
            }
            self.report_abandoned(local, &head);
            self.late(local, &head);
            let _its_drop_may_panic = contained(|| drop((ended, head.saved)));
            return None;
        }
        if at_once && !matches!(ended, Ended::Returned(Ok(_))) {
            // Not longer ago than some short attempts: a failure shows no less than it took.
            self.read_clock();
        }
        let (failure, error) = match ended {
            Ended::Returned(Ok(step)) => {
                self.report(local, &head, None);
                discard(head.saved.take());
                let chain = self.chain.as_mut();
                if let Some(chain) = chain.filter(|_| at_once && head.attempt == 1) {
                    chain.add(local);
                } else {
                    self.count(local, &head.trace, NodeCount::Success);
                    self.tell_start(local, &head, untold);
                    let latency = self.now - head.started;
                    let kind = FlowEventKind::NodeSuccess { latency };
                    self.pen
                        .of_node(&head.trace, ix, head.attempt, self.now, kind);
                }
                return self.route(local, head.trace, head.step, step);
            }
            Ended::Returned(Err(error)) => (Failure::of(&error), error),
            Ended::Panicked(text) => (Failure::Panic, NodeError::permanent(text)),
            Ended::TimedOut => {
                let limit = self.nodes[local].policy.timeout.unwrap_or_default();
                let limit = volary_kernel::text::format_duration(limit);
                let text = format!("did not finish within {limit}");
                (Failure::Timeout, NodeError::retryable(text))
            }
        };
        self.tell_start(local, &head, untold);
        self.failed(local, head, failure, error);
        None
    }

    fn tell_start(&mut self, local: usize, head: &Head, untold: bool) {
        if untold {
            self.tell_begin(&head.trace);
            let (ix, kind) = (self.nodes[local].ix, FlowEventKind::NodeStart);
            self.pen
                .of_node(&head.trace, ix, head.attempt, head.started, kind);
        }
    }

    /// What an attempt returned after its trace had ended goes nowhere.
    fn late(&mut self, local: usize, head: &Head) {
        self.shared.metrics.totals().late_results.inc();
        let ix = self.nodes[local].ix;
        let kind = FlowEventKind::LateResult;
        self.pen
            .of_node(&head.trace, ix, head.attempt, self.now, kind);
        self.shared.dropped(&mut self.pen, &head.trace, 1);
    }

    fn failed(&mut self, local: usize, mut head: Head, failure: Failure, error: NodeError) {
        let latency = self.now - head.started;
        self.tell_failure(local, &head, failure, &error);
        self.report(local, &head, Some(failure));
        let node = &mut self.nodes[local];
        let attempt = Attempt {
            number: head.attempt,
            failure,
            retry_after: error.retry_after,
            remaining: head.trace.deadline.map(|deadline| deadline - self.now),
        };
        let decision = match &mut node.guards {
            Some(guards) => {
                let budget = &mut guards.of(head.trace.tenant.serial).budget;
                decide(&node.policy, attempt, budget, random_unit())
            }
            None => Decision::GiveUp {
                code: failure.code(),
                why: GaveUp::NoAttemptLeft,
            },
        };
        match (decision, head.saved.take()) {
            (Decision::Retry { delay }, Some(payload)) => {
                let kind = FlowEventKind::NodeRetry { delay };
                self.pen
                    .of_node(&head.trace, node.ix, head.attempt, self.now, kind);
                self.count(local, &head.trace, NodeCount::Retry);
                self.back_off(local, head, payload, self.now + delay);
            }
            (decision, saved) => {
                discard(saved);
                let mut text = error.message.to_string();
                if let Decision::GiveUp { why, .. } = decision
                    && matches!(why, GaveUp::BudgetSpent | GaveUp::TooLate)
                {
                    text = format!("{text}; {why}");
                }
                let code = attempt::code_of(&error).unwrap_or(failure.code());
                let mut flow_error = self.error(local, &head.trace, code, text, head.attempt);
                flow_error.latency = Some(latency);
                if failure == Failure::Timeout {
                    flow_error.timeout = self.nodes[local].policy.timeout;
                } else {
                    flow_error.source = Some(error);
                }
                self.fail(local, &head.trace, flow_error);
                self.shared.dropped(&mut self.pen, &head.trace, 1);
            }
        }
    }

    fn tell_failure(&mut self, local: usize, head: &Head, failure: Failure, error: &NodeError) {
        let timeout = self.nodes[local].policy.timeout;
        let latency = self.now - head.started;
        let timed_out = failure == Failure::Timeout;
        let (what, end) = if timed_out {
            (NodeCount::Timeout, AttemptEnd::Timeout)
        } else {
            (NodeCount::Error, AttemptEnd::Error)
        };
        self.count(local, &head.trace, what);
        self.took(local, end, latency, 1);
        if !self.pen.is_on() {
            return;
        }
        let kind = match timeout {
            Some(timeout) if timed_out => FlowEventKind::NodeTimeout { timeout },
            _ => FlowEventKind::NodeError {
                error: error.message.to_string(),
                latency,
            },
        };
        let ix = self.nodes[local].ix;
        self.pen
            .of_node(&head.trace, ix, head.attempt, self.now, kind);
    }

    fn back_off(&mut self, local: usize, head: Head, payload: Payload, at: Mono) {
        let node = &mut self.nodes[local];
        let run = node.open(&self.me, local);
        let place = &mut node.runs[run as usize];
        let key = self.timers.insert(at, Due::Wait { local, run });
        let token = {
            let mut cell = head.trace.cell.lock();
            let token = cell.park(place.waker.clone(), Spot::Waits(node.ix));
            if cell.outcome.is_some() {
                // It ended just now: nobody else will wake this.
                place.waker.wake_by_ref();
            }
            token
        };
        node.backing_off += 1;
        let edge = head.edge;
        self.shared
            .node(node.ix)
            .gate(|gate| gate.inbox.hold(head.trace.tenant.ix, edge));
        let msg = Msg {
            trace: head.trace,
            payload,
            step: head.step,
            attempts: head.attempt,
            edge,
        };
        place.doing = Doing::BackOff(msg, key, token);
    }

    pub(super) fn error(
        &self,
        local: usize,
        trace: &Trace,
        code: FlowErrorCode,
        message: String,
        attempts: u32,
    ) -> FlowError {
        let ix = usize::from(self.nodes[local].ix);
        FlowError {
            trace_id: trace.id,
            node: self.shared.plan.nodes[ix].name.clone(),
            code,
            message,
            attempts,
            latency: None,
            timeout: None,
            source: None,
        }
    }

    /// Ends the trace as failed.
    pub(super) fn fail(&mut self, local: usize, trace: &Arc<Trace>, error: FlowError) {
        self.count(local, trace, NodeCount::Failed);
        let node = &self.nodes[local];
        if self.pen.is_on() {
            let kind = FlowEventKind::NodeFailed {
                code: error.code.as_str(),
                error: error.message.clone(),
            };
            self.pen
                .of_node(trace, node.ix, error.attempts, self.now, kind);
        }
        let outcome = Outcome::Failed(Box::new(error));
        self.shared
            .end(&mut self.pen, trace, outcome, None, self.now);
    }
}
