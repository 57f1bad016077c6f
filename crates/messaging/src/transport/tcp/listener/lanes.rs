//! The frames of one connection on their way through the receiver: one after the other for one sender, side by side for
//! different ones, answered in the order in which they came.

use std::{
    collections::{HashMap, VecDeque},
    panic::AssertUnwindSafe,
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use volary_kernel::{sign::PUBLIC_KEY_LEN, task::panic_text};

use crate::{
    admission::{Admission, Refusal},
    transport::tcp::control::Answer,
};

/// Whose frames keep their order.
pub(super) type Lane = [u8; PUBLIC_KEY_LEN];

/// Work that ends with the answers to one frame.
pub(super) type Work = BoxFuture<'static, Vec<Answer>>;

/// A frame whose work was not begun.
struct Pending {
    slot: Slot,
    work: Work,
}

/// Which frame, and what counts for the bounds.
#[derive(Clone, Copy)]
struct Slot {
    id: u64,
    count: usize,
    bytes: usize,
}

/// Frames in progress.
#[derive(Default)]
pub(super) struct Lanes {
    /// Senders with a frame at work, and what waits behind it.
    lanes: HashMap<Lane, VecDeque<Pending>>,
    running: FuturesUnordered<BoxFuture<'static, (Lane, Slot, Vec<Answer>)>>,
    /// In order of arrival; answers are there once the work is done.
    slots: VecDeque<(Slot, Option<Vec<Answer>>)>,
    bytes: usize,
}

impl Lanes {
    /// Frames that are not answered.
    pub(super) fn frames(&self) -> usize {
        self.slots.len()
    }

    /// Their bytes.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes in a frame of `count` messages.
    pub(super) fn begin(&mut self, id: u64, count: usize, bytes: usize, lane: Lane, work: Work) {
        let slot = Slot { id, count, bytes };
        self.slots.push_back((slot, None));
        self.bytes += bytes;
        let pending = Pending { slot, work };
        match self.lanes.get_mut(&lane) {
            Some(behind) => behind.push_back(pending),
            None => {
                self.lanes.insert(lane, VecDeque::new());
                self.run(lane, pending);
            }
        }
    }

    fn run(&mut self, lane: Lane, Pending { slot, work }: Pending) {
        self.running.push(
            async move {
                let answers = match AssertUnwindSafe(work).catch_unwind().await {
                    Ok(answers) => answers,
                    Err(panic) => {
                        let problem = panic_text(&*panic);
                        tracing::error!(problem, "taking in a frame panicked");
                        refuse(slot.count, "the receiver failed")
                    }
                };
                (lane, slot, answers)
            }
            .boxed(),
        );
    }

    /// Waits until the work of one more frame is done; for ever if none is at work. Cancel-safe.
    pub(super) async fn progress(&mut self) {
        let Some((lane, slot, mut answers)) = self.running.next().await else {
            return std::future::pending().await;
        };
        if answers.len() != slot.count {
            tracing::error!(
                found = answers.len(),
                expected = slot.count,
                "not one answer per message"
            );
            answers = refuse(slot.count, "the receiver failed");
        }
        if let Some((_, place)) = self.slots.iter_mut().find(|(at, _)| at.id == slot.id) {
            *place = Some(answers);
        }
        let next = self.lanes.get_mut(&lane).and_then(VecDeque::pop_front);
        match next {
            Some(pending) => self.run(lane, pending),
            None => {
                self.lanes.remove(&lane);
            }
        }
    }

    /// The answers of the frame that is next to be answered, once they are there.
    pub(super) fn next_answers(&mut self) -> Option<(u64, Vec<Answer>)> {
        self.slots.front()?.1.as_ref()?;
        let (slot, answers) = self.slots.pop_front()?;
        self.bytes -= slot.bytes;
        Some((slot.id, answers?))
    }
}

/// The same refusal for each of `count` messages.
pub(super) fn refuse(
    count: usize,
    problem: impl Into<std::borrow::Cow<'static, str>>,
) -> Vec<Answer> {
    let problem = problem.into();
    vec![Admission::Refused(Refusal::Invalid { problem }); count]
}
