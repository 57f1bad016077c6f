//! How attempts end: handed on, tried again after a back-off, or failed.

use std::sync::Arc;

use volary_kernel::{Mono, retry::random_unit};

use super::{
    super::trace::{Msg, Spot, Trace},
    Due, Stage, contained, discard,
    run::{Doing, Ended, Head},
};
use crate::{
    error::{FlowError, FlowErrorCode, NodeError},
    graph::plan::Payload,
    observe::FlowEventKind,
    observe::metrics::{AttemptEnd, NodeCount},
    outcome::Outcome,
    policy::retry::{Attempt, Decision, Failure, GaveUp, decide},
    state::attempt,
};

impl Stage {
    pub(super) fn ended(
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
                let chain = self.chains.last_mut();
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
            Ended::Returned(Err(error)) => (Failure::of(&error), *error),
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
