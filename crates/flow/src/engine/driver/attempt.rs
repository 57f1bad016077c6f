//! An attempt up to its first poll, and the way of a message through fused nodes that end there.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use super::{
    super::trace::{Msg, Trace},
    Job, Stage,
    chain::Chain,
    contained, discard,
    run::{Ended, Head},
};
use crate::{
    context,
    graph::plan::{NodeIx, Payload, Returned},
};

impl Stage {
    /// Runs a message through this node and, while nothing waits in between, the fused ones after it.
    pub(super) fn advance(&mut self, local: usize, msg: Msg) {
        let chain = Chain::of(&msg.trace, self.now);
        let outer = self.chain.replace(chain);
        self.me.set_busy_for(&msg.trace);
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
        let run = node.open(&self.me, local);
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
            Ok(()) => self.start(local, run, &head.trace, msg.payload, head.step, attempt),
            Err(panic) => {
                discard([msg.payload]);
                Err(panic)
            }
        };
        self.first_polled(local, run, head, polled, timed)
    }

    /// An attempt of a node that is asked nothing and has no further one: most are.
    fn attempt_plain(&mut self, local: usize, msg: Msg) -> Option<(usize, Msg)> {
        let timed = self.is_timed(local);
        let Msg {
            trace,
            payload,
            step,
            edge,
            ..
        } = msg;
        let started = self.now;
        let run = self.nodes[local].open(&self.me, local);
        let polled = self.start(local, run, &trace, payload, step, 1);
        match polled {
            Ok(Poll::Ready(Ok(done))) if !timed && !trace.has_ended() => {
                let node = &mut self.nodes[local];
                node.free.push(run);
                node.sampling.untimed();
                if let Some(chain) = &mut self.chain {
                    chain.add(local);
                }
                self.route(local, trace, step, done)
            }
            polled => {
                let head = Head {
                    trace,
                    step,
                    edge,
                    attempt: 1,
                    saved: None,
                    started,
                    pass: None,
                };
                self.first_polled(local, run, head, polled, timed)
            }
        }
    }

    /// Starts an attempt and polls it once.
    fn start(
        &mut self,
        local: usize,
        run: u32,
        trace: &Arc<Trace>,
        payload: Payload,
        step: u64,
        attempt: u32,
    ) -> Result<Poll<Returned>, String> {
        let node = &mut self.nodes[local];
        self.me.set_busy_with(node.ix);
        let place = &mut node.runs[run as usize];
        let Job::Call(call) = &node.work else {
            return Err("a join is no code".to_owned());
        };
        let context = context::Context::new(trace.clone(), node.ix, attempt, step);
        let slot = place.slot.get_or_insert_with(|| call.clone().slot());
        let cx = &mut Context::from_waker(&place.waker);
        let polled = contained(|| slot.start(payload, context, cx));
        if polled.is_err() {
            self.clear(local, run);
        }
        polled
    }

    /// What became of an attempt at its first poll.
    fn first_polled(
        &mut self,
        local: usize,
        run: u32,
        head: Head,
        polled: Result<Poll<Returned>, String>,
        timed: bool,
    ) -> Option<(usize, Msg)> {
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
}
