//! What one join has of one trace. Pure.

use std::collections::VecDeque;

/// How many complete a join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// So many, from wherever.
    Count(usize),
    /// One from each of so many edges.
    Each(usize),
}

impl Need {
    pub(crate) const fn want(self) -> usize {
        match self {
            Self::Count(count) | Self::Each(count) => count,
        }
    }
}

/// What waits in one join of one trace, in order of arrival.
#[derive(Debug)]
pub(crate) struct Bucket<T> {
    waiting: VecDeque<(u16, T)>,
    /// How often it completed.
    rounds: u32,
    /// Edges whose message is late for a round that went on without it.
    owed: Vec<u16>,
}

/// What became of a message that came to a join.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Added<T> {
    /// It waits.
    Waits,
    /// It completed a round: its inputs.
    Round(Vec<T>),
    /// Its round went on without it.
    Late(T),
}

impl<T> Default for Bucket<T> {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            rounds: 0,
            owed: Vec::new(),
        }
    }
}

impl<T> Bucket<T> {
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether it completed before: what is left over then is no lack.
    pub(crate) const fn has_completed(&self) -> bool {
        self.rounds > 0
    }

    /// Adds what came by an edge.
    pub(crate) fn add(&mut self, edge: u16, item: T, need: Need) -> Added<T> {
        if let Some(at) = self.owed.iter().position(|owed| *owed == edge) {
            self.owed.swap_remove(at);
            return Added::Late(item);
        }
        self.waiting.push_back((edge, item));
        let round = match need {
            Need::Count(count) if self.waiting.len() >= count.max(1) => self
                .waiting
                .drain(..count.max(1))
                .map(|(_, item)| item)
                .collect(),
            Need::Each(edges) => match self.one_of_each(edges) {
                Some(round) => round,
                None => return Added::Waits,
            },
            Need::Count(_) => return Added::Waits,
        };
        self.rounds = self.rounds.saturating_add(1);
        Added::Round(round)
    }

    fn one_of_each(&mut self, edges: usize) -> Option<Vec<T>> {
        let mut firsts: Vec<usize> = Vec::with_capacity(edges);
        for at in 0..self.waiting.len() {
            let edge = self.waiting[at].0;
            if !firsts.iter().any(|first| self.waiting[*first].0 == edge) {
                firsts.push(at);
            }
        }
        if firsts.len() < edges {
            return None;
        }
        let mut round = Vec::with_capacity(edges);
        for (gone, at) in firsts.into_iter().enumerate() {
            round.extend(self.waiting.remove(at - gone).map(|(_, item)| item));
        }
        Some(round)
    }

    /// All that is there, because the wait is over: of a join of edges, what is missing will be late.
    pub(crate) fn take_in_time(&mut self, need: Need) -> Vec<T> {
        if let Need::Each(edges) = need {
            let edges = (0..edges).filter_map(|edge| u16::try_from(edge).ok());
            let missing = edges.filter(|edge| !self.waiting.iter().any(|(has, _)| has == edge));
            let missing: Vec<u16> = missing.collect();
            self.owed.extend(missing);
        }
        self.take_all()
    }

    /// All that is there.
    pub(crate) fn take_all(&mut self) -> Vec<T> {
        self.rounds = self.rounds.saturating_add(1);
        self.waiting.drain(..).map(|(_, item)| item).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_completes_in_order_of_arrival_and_begins_again() {
        let mut bucket = Bucket::default();
        let need = Need::Count(2);
        assert_eq!(bucket.add(1, 'b', need), Added::Waits);
        assert_eq!(bucket.add(0, 'a', need), Added::Round(vec!['b', 'a']));
        assert_eq!(bucket.add(0, 'c', need), Added::Waits);
        assert!(bucket.has_completed());
        assert_eq!((bucket.len(), bucket.take_all()), (1, vec!['c']));
    }

    #[test]
    fn one_of_each_takes_the_oldest_of_every_edge() {
        let mut bucket = Bucket::default();
        let need = Need::Each(3);
        for (edge, item) in [(2, 1), (2, 2), (0, 3)] {
            assert_eq!(bucket.add(edge, item, need), Added::Waits);
        }
        assert_eq!(bucket.add(1, 4, need), Added::Round(vec![1, 3, 4]));
        assert_eq!(bucket.add(1, 5, need), Added::Waits);
        assert_eq!(bucket.add(0, 6, need), Added::Round(vec![2, 5, 6]));
        assert_eq!(bucket.len(), 0);
    }

    #[test]
    fn what_comes_after_its_round_went_on_is_late_once() {
        let mut bucket = Bucket::default();
        let need = Need::Each(2);
        assert_eq!(bucket.add(0, 1, need), Added::Waits);
        assert_eq!(bucket.take_in_time(need), [1]);
        assert_eq!(bucket.add(0, 2, need), Added::Waits);
        assert_eq!(bucket.add(1, 3, need), Added::Late(3));
        assert_eq!(bucket.add(1, 4, need), Added::Round(vec![2, 4]));
    }
}
