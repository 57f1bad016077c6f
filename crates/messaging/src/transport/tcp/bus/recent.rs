//! Which messages came lately, so that one that comes again does nothing (pure).
//!
//! Bounded: two generations of half the bound each; the older one is forgotten as a whole when the younger is full.

use std::collections::HashMap;

use volary_kernel::id::Uid;

use crate::{admission::Admission, identity::AgentId};

type Key = (AgentId, Uid);

/// What is known of a message.
struct Entry {
    digest: [u8; 32],
    /// Absent while it is being delivered.
    answer: Option<Admission>,
}

/// What is known of a message that comes in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Before {
    /// Nothing: it is marked as being delivered.
    Never,
    /// The very same came, and this was its answer.
    Same(Admission),
    /// Another message of this sender had the id, or the same is being delivered right now.
    Replay,
}

/// The messages of late.
pub(super) struct Recent {
    half: usize,
    young: HashMap<Key, Entry>,
    old: HashMap<Key, Entry>,
}

impl Recent {
    pub(super) fn new(max: usize) -> Self {
        Self {
            half: (max / 2).max(1),
            young: HashMap::new(),
            old: HashMap::new(),
        }
    }

    /// Looks a message up, and marks it if it is new.
    pub(super) fn begin(&mut self, sender: AgentId, id: Uid, digest: [u8; 32]) -> Before {
        let key = (sender, id);
        match self.young.get(&key).or_else(|| self.old.get(&key)) {
            Some(entry) if entry.digest == digest => match &entry.answer {
                Some(answer) => Before::Same(answer.clone()),
                None => Before::Replay,
            },
            Some(_) => Before::Replay,
            None => {
                if self.young.len() >= self.half {
                    self.old = std::mem::take(&mut self.young);
                }
                let answer = None;
                self.young.insert(key, Entry { digest, answer });
                Before::Never
            }
        }
    }

    /// Remembers the answer.
    pub(super) fn end(&mut self, sender: AgentId, id: Uid, answer: &Admission) {
        let key = (sender, id);
        let entry = match self.young.get_mut(&key) {
            Some(entry) => Some(entry),
            None => self.old.get_mut(&key),
        };
        if let Some(entry) = entry {
            entry.answer = Some(answer.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> (AgentId, Uid) {
        (AgentId::from_bytes([1; 32]), Uid::from_bytes([number; 16]))
    }

    #[test]
    fn the_same_gets_its_first_answer_and_another_is_a_replay() {
        let mut recent = Recent::new(10);
        let (sender, one) = id(1);
        assert_eq!(recent.begin(sender, one, [1; 32]), Before::Never);
        assert_eq!(
            recent.begin(sender, one, [1; 32]),
            Before::Replay,
            "it is on its way"
        );
        recent.end(sender, one, &Admission::Delivered);
        assert_eq!(
            recent.begin(sender, one, [1; 32]),
            Before::Same(Admission::Delivered)
        );
        assert_eq!(recent.begin(sender, one, [2; 32]), Before::Replay);
        let other = AgentId::from_bytes([2; 32]);
        assert_eq!(recent.begin(other, one, [1; 32]), Before::Never);
    }

    #[test]
    fn it_holds_no_more_than_its_bound() {
        let mut recent = Recent::new(10);
        for number in 0..=255 {
            let (sender, id) = id(number);
            recent.begin(sender, id, [0; 32]);
            assert!(recent.young.len() + recent.old.len() <= 10);
        }
        let (sender, last) = id(255);
        assert_eq!(recent.begin(sender, last, [0; 32]), Before::Replay);
        let (sender, first) = id(0);
        assert_eq!(recent.begin(sender, first, [0; 32]), Before::Never);
    }
}
