//! An attempt up to its first poll, and the way of a message through fused nodes that end there.

use std::task::Poll;

use super::{
    super::trace::Msg,
    Job, Stage,
    chain::Chain,
    contained, discard,
    run::{Ended, Head},
};
use crate::graph::plan::{NodeIx, Returned, Step};

impl Stage {
    /// Runs a message through this node and, while nothing waits in between, the fused ones after it.
    pub(super) fn advance(&mut self, local: usize, msg: Msg) {
        let chain = Chain::of(&msg.trace, self.now);
        self.chains.push(chain);
        self.me.set_busy_for(&msg.trace);
        let mut at = Some((local, msg));
        while let Some((local, msg)) = at {
            at = self.attempt(local, msg);
        }
        if let Some(chain) = self.chains.pop() {
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
        if self.nodes[local].is_plain() {
            return self.attempt_plain(local, msg);
        }
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
        let attempt = msg.attempts + 1;
        let again = attempt <= node.policy.max_retries;
        let clone = self.shared.plan.nodes[usize::from(node.ix)].clone_in;
        let mut saved = None;
        let cloned = contained(|| saved = again.then(|| clone(&msg.payload)));
        let head = Head {
            trace: msg.trace,
            step: msg.step,
            edge: msg.edge,
            attempt,
            saved,
            started: self.now,
            pass,
        };
        let polled = match cloned {
            Ok(()) => node.start(
                &self.me,
                local,
                &head.trace,
                msg.payload,
                head.step,
                attempt,
            ),
            Err(panic) => {
                discard([msg.payload]);
                Err(panic)
            }
        };
        self.first_polled(local, head, polled, timed)
    }

    /// An attempt of a node that is asked nothing and has no further one: most are.
    ///
    /// While the next is such a node as well and the clock is not to be read, the message goes on here. Whether its trace may
    /// go on is asked after each; nothing else that was asked before the first can have changed.
    fn attempt_plain(&mut self, mut local: usize, msg: Msg) -> Option<(usize, Msg)> {
        let (trace, step) = (msg.trace, msg.step);
        let (mut payload, mut edge) = (msg.payload, msg.edge);
        loop {
            let timed = self.is_timed(local);
            let node = &mut self.nodes[local];
            let polled = node.start(&self.me, local, &trace, payload, step, 1);
            let done = match polled {
                Ok(Poll::Ready(Ok(done))) if !timed && !trace.is_held() => done,
                polled => {
                    let head = Head {
                        trace,
                        step,
                        edge,
                        attempt: 1,
                        saved: None,
                        started: self.now,
                        pass: None,
                    };
                    return self.first_polled(local, head, polled, timed);
                }
            };
            node.sampling.untimed();
            if let Some(chain) = self.chains.last_mut() {
                chain.add(local);
            }
            (payload, edge) = match (done, self.straight(local)) {
                (Step::Next(value), Some(edge)) => (value, edge),
                (Step::Next(value), None) => return self.route_one(local, trace, step, value),
                (done, _) => return self.route(local, trace, step, done),
            };
            local += 1;
            if self.is_reading_due() || !self.nodes[local].is_plain() {
                let msg = Msg {
                    trace,
                    payload,
                    step,
                    attempts: 0,
                    edge,
                };
                return Some((local, msg));
            }
            self.tick();
        }
    }

    /// What became of an attempt at its first poll.
    fn first_polled(
        &mut self,
        local: usize,
        head: Head,
        polled: Result<Poll<Returned>, String>,
        timed: bool,
    ) -> Option<(usize, Msg)> {
        let ended = match polled {
            Ok(Poll::Pending) => {
                self.tell_begin(&head.trace);
                self.park(local, head);
                return None;
            }
            Ok(Poll::Ready(returned)) => Ended::Returned(returned),
            Err(panic) => {
                // It ran in the run that is still spare.
                let run = self.nodes[local].spare(&self.me, local);
                self.clear(local, run);
                Ended::Panicked(panic)
            }
        };
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
}
