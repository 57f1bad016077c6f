//! Whose later messages wait: a message that was turned back for now is not overtaken by those behind it.
//!
//! ```text
//! queue full ─▶ Missed ─┐ before the next frame is judged
//!                       ├─▶ Holds ─▶ later messages of the sender are turned back as well
//! turned back for now ──┘     ▲
//!                             └─ it came again │ it was settled │ a while has passed
//! ```

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::mpsc::{self, error::TrySendError};
use volary_kernel::{clock::Mono, id::Name};

use crate::identity::AgentId;

/// How long a message that was turned back for now holds back those behind it, unless it comes again.
const HOLD: Duration = Duration::from_secs(60);
/// Most messages whose followers are held back, of one peer.
const HOLDS: usize = 16_384;
/// How often what has held others back for long enough is taken out, so that it takes nobody's place.
const SWEEP: Duration = Duration::from_secs(5);

/// Frames that found the queue full, by the number of their first message, and messages that were judged and then not
/// stored. Whoever takes from the queue makes holds of them. What is missed again and again is in here once, however long
/// nobody takes anything.
#[derive(Default)]
pub(super) struct Missed(Mutex<BTreeSet<(AgentId, u64)>>);

impl Missed {
    /// Puts a frame into the queue, or notes that it found no room. Both are one step: no later frame gets into the queue
    /// in between, so who takes one out finds the note.
    ///
    /// A frame without an `order` (at most once) is not noted: nothing is promised of its order with others. Past the bound
    /// none is: order may then be lost, nothing else.
    pub(super) fn try_send<T>(
        &self,
        queue: &mpsc::Sender<T>,
        frame: T,
        sender: AgentId,
        order: Option<u64>,
    ) -> Result<(), TrySendError<T>> {
        let mut missed = self.0.lock();
        let sent = queue.try_send(frame);
        if let (Err(TrySendError::Full(_)), Some(order)) = (&sent, order) {
            Self::add(&mut missed, sender, order);
        }
        sent
    }

    /// A message that was judged could not be stored.
    pub(super) fn note(&self, sender: AgentId, order: u64) {
        Self::add(&mut self.0.lock(), sender, order);
    }

    fn add(missed: &mut BTreeSet<(AgentId, u64)>, sender: AgentId, order: u64) {
        if missed.len() < HOLDS {
            missed.insert((sender, order));
        }
    }
}

/// Messages that were turned back for now, by sender and receiver (`None` stands for all): those behind them wait.
#[derive(Default)]
pub(super) struct Holds {
    held: HashMap<AgentId, HashMap<Option<Name>, BTreeMap<u64, Mono>>>,
    count: usize,
    /// When what holds nothing back any more is next taken out.
    sweep_at: Mono,
}

impl Holds {
    pub(super) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether a message has to wait for an earlier one.
    pub(super) fn stops(&self, sender: AgentId, order: u64, receivers: &[Name], now: Mono) -> bool {
        let Some(of_sender) = self.held.get(&sender) else {
            return false;
        };
        let held = |receiver: Option<Name>| {
            of_sender
                .get(&receiver)
                .is_some_and(|held| held.range(..order).any(|(_, until)| *until > now))
        };
        held(None)
            || receivers
                .iter()
                .any(|receiver| held(Some(receiver.clone())))
    }

    /// Frames were missed since: what is behind them waits, whoever it is for.
    pub(super) fn note(&mut self, missed: &Missed, now: Mono) {
        if now >= self.sweep_at {
            self.sweep_at = now + SWEEP;
            self.retain(|_, until| until > now);
        }
        let missed = std::mem::take(&mut *missed.0.lock());
        for (sender, order) in missed {
            self.hold(sender, order, Vec::new(), now);
        }
    }

    /// The message was turned back. Past the bound it holds nothing back: order is then lost, nothing else.
    pub(super) fn hold(&mut self, sender: AgentId, order: u64, receivers: Vec<Name>, now: Mono) {
        let mut places: Vec<_> = receivers.into_iter().map(Some).collect();
        if places.is_empty() {
            places.push(None);
        } else {
            // Now it is known whom it is for: what goes to others need not wait any more.
            self.release_at(sender, order, Option::is_none);
        }
        for place in places {
            if self.count < HOLDS {
                let held = self.held.entry(sender).or_default();
                let held = held.entry(place).or_default();
                self.count += usize::from(held.insert(order, now + HOLD).is_none());
            }
        }
    }

    /// The message was settled. Costs a look at each receiver for whom messages of its sender wait, however many wait.
    pub(super) fn release(&mut self, sender: AgentId, order: u64) {
        self.release_at(sender, order, |_| true);
    }

    fn release_at(&mut self, sender: AgentId, order: u64, at: impl Fn(&Option<Name>) -> bool) {
        let Some(of_sender) = self.held.get_mut(&sender) else {
            return;
        };
        of_sender.retain(|place, held| {
            if at(place) {
                self.count -= usize::from(held.remove(&order).is_some());
            }
            !held.is_empty()
        });
        if of_sender.is_empty() {
            self.held.remove(&sender);
        }
    }

    /// All messages below `low` were settled.
    pub(super) fn release_below(&mut self, low: u64) {
        let mut firsts = self.held.values().flat_map(HashMap::values);
        if firsts.any(|held| {
            held.first_key_value()
                .is_some_and(|(first, _)| *first < low)
        }) {
            self.retain(|order, _| order >= low);
        }
    }

    fn retain(&mut self, keep: impl Fn(u64, Mono) -> bool) {
        self.count = 0;
        self.held.retain(|_, of_sender| {
            of_sender.retain(|_, held| {
                held.retain(|order, until| keep(*order, *until));
                self.count += held.len();
                !held.is_empty()
            });
            !of_sender.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use volary_kernel::{ManualClock, clock::Clock as _};

    use super::*;
    use crate::identity::Identity;

    fn senders() -> [AgentId; 2] {
        [0; 2].map(|_| Identity::generate().unwrap().id())
    }

    fn names(texts: &[&str]) -> Vec<Name> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn nothing_of_a_sender_overtakes_a_frame_that_found_no_room() {
        let clock = ManualClock::default();
        let [sender, other] = senders();
        let (missed, mut holds) = (Missed::default(), Holds::default());
        let (queue, mut taken) = mpsc::channel(1);
        // What is taken out of the queue is judged with what was missed until then.
        let mut stops = |holds: &mut Holds, sender, order| {
            taken.try_recv().unwrap();
            holds.note(&missed, clock.mono());
            holds.stops(sender, order, &names(&["r"]), clock.mono())
        };
        let put = |sender, order| missed.try_send(&queue, (), sender, order);

        put(sender, Some(1)).unwrap();
        let full = put(sender, Some(3));
        assert!(matches!(full, Err(TrySendError::Full(()))));
        assert!(!stops(&mut holds, sender, 1), "it was there before");
        put(sender, Some(5)).unwrap();
        assert!(stops(&mut holds, sender, 5), "there is room again");
        put(other, Some(9)).unwrap();
        assert!(!stops(&mut holds, other, 9));
        put(sender, Some(3)).unwrap();
        assert!(!stops(&mut holds, sender, 3), "it came again");
        holds.release(sender, 3);
        put(sender, Some(5)).unwrap();
        assert!(!stops(&mut holds, sender, 5));

        // What was turned away may never come again: it was settled otherwise, or its sender is gone.
        put(other, Some(10)).unwrap();
        put(sender, Some(7)).unwrap_err();
        assert!(stops(&mut holds, sender, 8));
        holds.release_below(8);
        assert!(!holds.stops(sender, 8, &[], clock.mono()));
        put(other, Some(11)).unwrap();
        put(sender, Some(10)).unwrap_err();
        assert!(stops(&mut holds, sender, 11));
        clock.advance(HOLD);
        assert!(!holds.stops(sender, 11, &[], clock.mono()));
    }

    #[test]
    fn what_is_missed_at_most_once_holds_nothing_back() {
        let [sender, _] = senders();
        let (missed, mut holds) = (Missed::default(), Holds::default());
        let (queue, _taken) = mpsc::channel(1);
        missed.try_send(&queue, (), sender, Some(1)).unwrap();
        missed.try_send(&queue, (), sender, None).unwrap_err();
        holds.note(&missed, ManualClock::default().mono());
        assert!(holds.is_empty());
    }

    #[test]
    fn what_is_missed_while_nobody_takes_anything_is_bounded() {
        let [sender, _] = senders();
        let clock = ManualClock::default();
        let (missed, mut holds) = (Missed::default(), Holds::default());
        let (queue, _taken) = mpsc::channel(1);
        missed.try_send(&queue, (), sender, Some(0)).unwrap();
        for order in [1, 1, 1, 2].into_iter().chain(1..=HOLDS as u64 + 10) {
            missed
                .try_send(&queue, (), sender, Some(order))
                .unwrap_err();
        }
        assert_eq!(missed.0.lock().len(), HOLDS);
        holds.note(&missed, clock.mono());
        assert!(missed.0.lock().is_empty());
        assert_eq!(holds.count, HOLDS);
        assert!(holds.stops(sender, 2, &[], clock.mono()));
    }

    #[test]
    fn a_missed_message_that_is_turned_back_again_holds_back_only_what_is_for_its_receivers() {
        let [sender, _] = senders();
        let clock = ManualClock::default();
        let now = clock.mono();
        let mut holds = Holds::default();
        let (here, elsewhere) = (names(&["full"]), names(&["free"]));
        for order in [3, 4] {
            holds.hold(sender, order, Vec::new(), now);
        }
        assert!(holds.stops(sender, 5, &elsewhere, now));
        for order in [3, 4] {
            holds.hold(sender, order, here.clone(), now);
        }
        assert!(!holds.stops(sender, 5, &elsewhere, now));
        assert!(holds.stops(sender, 5, &here, now));
        assert_eq!((holds.count, holds.held.len()), (2, 1));
        holds.release_below(u64::MAX);
        assert!(holds.is_empty() && holds.held.is_empty());
    }

    #[test]
    fn what_has_held_others_back_for_long_enough_takes_nobodys_place() {
        let [gone, sender] = senders();
        let clock = ManualClock::default();
        let (missed, mut holds) = (Missed::default(), Holds::default());
        for order in 0..HOLDS as u64 + 1 {
            holds.hold(gone, order, names(&["r"]), clock.mono());
        }
        assert_eq!(holds.count, HOLDS);
        clock.advance(HOLD);
        missed.note(sender, 3);
        holds.note(&missed, clock.mono());
        assert!(holds.stops(sender, 4, &[], clock.mono()));
        assert_eq!((holds.count, holds.held.len()), (1, 1));
    }

    #[test]
    fn a_message_that_was_settled_holds_nothing_back_for_any_receiver_and_others_still_do() {
        let [sender, other] = senders();
        let now = ManualClock::default().mono();
        let mut holds = Holds::default();
        for sender in [sender, other] {
            for order in [3, 4] {
                holds.hold(sender, order, names(&["one", "two"]), now);
            }
        }
        holds.release(sender, 3);
        for receiver in ["one", "two"] {
            assert!(!holds.stops(sender, 4, &names(&[receiver]), now));
            assert!(holds.stops(sender, 5, &names(&[receiver]), now));
            assert!(holds.stops(other, 4, &names(&[receiver]), now));
        }
        holds.release(sender, 4);
        holds.release_below(5);
        assert!(holds.is_empty() && holds.held.is_empty());
    }
}
