//! The order in which observers are told of what several stages wrote down. Pure.

use volary_kernel::Mono;

use super::record::Record;
use crate::graph::plan::NodeIx;

/// Puts records of several stages into the order of each trace.
///
/// A stage hands its records over at the end of a wake, so what one node caused at another may arrive first. Records
/// therefore wait one round, and are then told by time, rounds over cycles, and place in the graph. A stage that hands
/// over later than a round (its node held the thread) is told late.
#[derive(Debug, Default)]
pub(crate) struct Window {
    held: Vec<Record>,
    seen: Mono,
    /// To sort with. Memory taken anew for each round would cost more than all the rest of it.
    keys: Vec<u128>,
    spare: Vec<Record>,
}

impl Window {
    /// Takes in what arrived and leaves in `fresh` what is to be told now; all of it if `all`, or if nothing arrived.
    pub(crate) fn round(
        &mut self,
        fresh: &mut Vec<Record>,
        all: bool,
        chains: &[Vec<NodeIx>],
        ranks: &[u16],
    ) {
        let all = all || fresh.is_empty();
        // Whatever waits is no later than this.
        let cut = self.seen;
        let mut some_early = false;
        for record in fresh.iter() {
            let at = record.at();
            some_early |= at <= cut;
            self.seen = self.seen.max(at);
        }
        if all {
            self.held.append(fresh);
        } else if some_early {
            let early = fresh.extract_if(.., |record| record.at() <= cut);
            self.held.extend(early);
        }
        std::mem::swap(&mut self.held, fresh);
        if !fresh.is_sorted_by(|a, b| a.at() < b.at()) {
            self.sort(fresh, chains, ranks);
        }
    }

    /// By time, then rounds over cycles, then the place in the graph, then as they arrived. What is sorted is a key of each,
    /// made once, and each record is moved once.
    fn sort(&mut self, records: &mut Vec<Record>, chains: &[Vec<NodeIx>], ranks: &[u16]) {
        let keys = records.iter().zip(0u32..).map(|(record, place)| {
            let (round, rank) = record.order(chains, ranks);
            let order = u64::from(round) << 48 | u64::from(rank) << 32 | u64::from(place);
            u128::from(record.at().as_nanos()) << 64 | u128::from(order)
        });
        self.keys.clear();
        self.keys.extend(keys);
        // Stable only because that finds what is in order already: what each stage handed over.
        self.keys.sort();
        let moved = self.keys.iter().map(|key| {
            let record = &mut records[*key as u32 as usize];
            std::mem::replace(record, Record::NONE)
        });
        self.spare.extend(moved);
        records.clear();
        std::mem::swap(&mut self.spare, records);
    }

    /// Keeps room for no more than so many.
    pub(crate) fn shrink_to(&mut self, records: usize) {
        self.held.shrink_to(records);
        self.spare.shrink_to(records);
        self.keys.clear();
        self.keys.shrink_to(records);
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

/// The place of each node on the way through the graph, cycles not counted: after all that lead to it.
pub(crate) fn ranks(nodes: usize, edges: impl Iterator<Item = (NodeIx, NodeIx)>) -> Vec<u16> {
    let mut incoming = vec![0usize; nodes];
    let mut out: Vec<Vec<usize>> = vec![Vec::new(); nodes];
    for (from, to) in edges {
        let (from, to) = (usize::from(from), usize::from(to));
        out[from].push(to);
        incoming[to] += 1;
    }
    let mut ranks = vec![0; nodes];
    let mut open: Vec<usize> = (0..nodes).filter(|node| incoming[*node] == 0).collect();
    let mut next = 0;
    while let Some(node) = open.get(next).copied() {
        ranks[node] = u16::try_from(next).unwrap_or(u16::MAX);
        next += 1;
        for to in std::mem::take(&mut out[node]) {
            incoming[to] -= 1;
            if incoming[to] == 0 {
                open.push(to);
            }
        }
    }
    ranks
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use volary_kernel::TraceId;

    use super::{
        super::{
            event::FlowEventKind,
            record::{ChainRun, TraceTag},
        },
        *,
    };

    const CHAINS: usize = 3;

    /// One of each sort of record, by a number; its trace says which it is.
    fn record(serial: u32, sort: u8, at: u64, node: u16) -> Record {
        let id = (u128::from(serial) + 1).to_be_bytes();
        let tag = TraceTag {
            id: TraceId::from_bytes(id).unwrap(),
            tenant: 0,
            hops: u16::from(sort % 2),
        };
        let at = Mono::from_nanos(at);
        let event = |node, kind| Record::event(&tag, node, 1, at, kind);
        match sort {
            0..=3 => {
                let run = ChainRun {
                    first: 0,
                    count: 1,
                    begins: sort == 2,
                    ends: sort == 3,
                    accepted: at,
                    started: at,
                    ended: at,
                };
                Record::chain(&tag, node, run)
            }
            4 => event(None, FlowEventKind::TraceStart),
            5 => event(None, FlowEventKind::Paused),
            6 => event(None, FlowEventKind::CancelFinish),
            _ => event(Some(node), FlowEventKind::NodeStart),
        }
    }

    fn serial(record: &Record) -> TraceId {
        record.tag().unwrap().id
    }

    /// The rules as they are said, told the long way round.
    #[derive(Default)]
    struct Plain {
        held: Vec<(Mono, (u16, u16), TraceId)>,
        seen: Mono,
    }

    impl Plain {
        fn round(
            &mut self,
            fresh: &[Record],
            all: bool,
            chains: &[Vec<u16>],
            ranks: &[u16],
        ) -> Vec<TraceId> {
            let all = all || fresh.is_empty();
            let cut = self.seen;
            for record in fresh {
                self.seen = self.seen.max(record.at());
                self.held
                    .push((record.at(), record.order(chains, ranks), serial(record)));
            }
            self.held.sort_by_key(|(at, order, _)| (*at, *order));
            let due = |(at, ..): &mut (Mono, _, _)| all || *at <= cut;
            self.held
                .extract_if(.., due)
                .map(|(.., serial)| serial)
                .collect()
        }
    }

    proptest! {
        #[test]
        fn records_are_told_once_each_and_as_they_arrived_where_nothing_else_tells_them_apart(
            rounds in prop::collection::vec(
                (any::<bool>(), prop::collection::vec((0u8..9, 0u64..6, 0u16..3), 0..40)),
                1..8,
            ),
        ) {
            let chains: Vec<Vec<u16>> = (0..CHAINS as u16).map(|node| vec![node]).collect();
            let ranks = [2, 0, 1];
            let (mut window, mut plain, mut next) = (Window::default(), Plain::default(), 0);
            for (n, (all, round)) in rounds.into_iter().enumerate() {
                let base = n as u64 * 3;
                let mut fresh: Vec<Record> = Vec::new();
                for (sort, at, node) in round {
                    fresh.push(record(next, sort, base + at, node));
                    next += 1;
                }
                let wanted = plain.round(&fresh, all, &chains, &ranks);
                window.round(&mut fresh, all, &chains, &ranks);
                prop_assert_eq!(fresh.iter().map(serial).collect::<Vec<_>>(), wanted);
                prop_assert_eq!(window.is_empty(), plain.held.is_empty());
            }
        }
    }

    #[test]
    fn what_a_flood_took_to_sort_is_given_back() {
        let mut window = Window::default();
        let flood = |from: u64| (0..5_000).map(move |n| record(1, 7, from + n % 10, 0));
        let mut fresh: Vec<Record> = flood(0).collect();
        window.round(&mut fresh, false, &[], &[]);
        fresh = flood(5).collect();
        window.round(&mut fresh, false, &[], &[]);
        fresh.clear();
        window.round(&mut fresh, false, &[], &[]);
        assert!(window.is_empty());
        assert!(window.keys.capacity() >= 5_000 && window.spare.capacity() >= 5_000);
        window.shrink_to(100);
        let kept = [
            window.held.capacity(),
            window.spare.capacity(),
            window.keys.capacity(),
        ];
        assert_eq!(kept.map(|kept| kept <= 100), [true; 3]);
    }
}
