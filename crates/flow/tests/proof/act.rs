//! What a node does with an item: a function of the seed, the node, the item and the attempt. Both the flow and the model ask it.

use std::time::Duration;

use crate::{
    spec::{Kind, Spec, Temper},
    support::{Dice, hash, ms},
};

/// What travels.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Item {
    /// Number of its trace.
    pub trace: u64,
    /// Made from all that happened on its way.
    pub value: u64,
    /// Nodes it went through.
    pub depth: u64,
    /// It is a final answer.
    pub last: bool,
}

impl Item {
    pub const fn new(trace: u64) -> Self {
        Self {
            trace,
            value: trace,
            depth: 0,
            last: false,
        }
    }

    /// As number `nth` of what `node` makes of it.
    fn through(&self, node: usize, nth: u64) -> Self {
        Self {
            value: hash(&[self.value, node as u64, nth]),
            depth: self.depth + 1,
            ..self.clone()
        }
    }

    /// What a join makes of several, in whatever order.
    pub fn merged(items: &[Self]) -> Self {
        let first = items.first();
        Self {
            trace: first.map_or(0, |item| item.trace),
            value: items
                .iter()
                .fold(0, |sum, item| sum.wrapping_add(item.value)),
            depth: items.iter().map(|item| item.depth).max().unwrap_or(0),
            last: false,
        }
    }
}

/// An attempt.
#[derive(Debug, Clone)]
pub struct Act {
    /// Pieces of stream it yields first.
    pub chunks: u64,
    /// How long it takes.
    pub delay: Duration,
    pub end: End,
}

/// How an attempt ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// These go to every successor.
    Items(Vec<Item>),
    Finish(Item),
    Error,
    Permanent,
    Panic,
}

/// What a router does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// To these successors, perhaps back, perhaps out.
    To {
        next: Vec<usize>,
        back: bool,
        egress: bool,
    },
    Missing,
    Panic,
}

fn dice(spec: &Spec, node: usize, item: &Item, attempt: u32) -> Dice {
    let parts = [
        spec.seed,
        node as u64,
        item.value,
        item.depth,
        attempt.into(),
    ];
    Dice::new(hash(&parts))
}

/// What an attempt of `node` does; routers and joins aside.
pub fn act(spec: &Spec, node: usize, item: &Item, attempt: u32) -> Act {
    let mut dice = dice(spec, node, item, attempt);
    let part = &spec.nodes[node];
    let hang = part.timeout.is_some() && spec.temper == Temper::Wild && dice.chance(3);
    let delay = match dice.below(100) {
        _ if hang => crate::support::HANGS * 2,
        0..50 => Duration::ZERO,
        50..95 => ms(dice.within(1, 20)),
        _ => ms(dice.within(100, 200)),
    };
    let chunks = if dice.chance(6) { dice.within(1, 3) } else { 0 };
    let wrong = match spec.temper {
        Temper::Calm => 0,
        Temper::Failing => 12,
        Temper::Wild => 20,
    };
    let end = if dice.chance(wrong) {
        match dice.below(10) {
            0..7 => End::Error,
            7..9 => End::Permanent,
            _ if spec.temper == Temper::Wild => End::Panic,
            _ => End::Error,
        }
    } else {
        good(&mut dice, part.kind, node, item)
    };
    Act { chunks, delay, end }
}

fn good(dice: &mut Dice, kind: Kind, node: usize, item: &Item) -> End {
    let count = match kind {
        Kind::Filter => dice.below(2),
        Kind::Flat => dice.below(4),
        Kind::Step => match dice.below(10) {
            0 => {
                let last = Item {
                    last: true,
                    ..item.through(node, 99)
                };
                return End::Finish(last);
            }
            1 => 0,
            2 => 2,
            _ => 1,
        },
        _ => 1,
    };
    End::Items((0..count).map(|nth| item.through(node, nth)).collect())
}

/// Depth from which routers send nothing back.
const DEEP: u64 = 12;

/// Where a router sends an item, which it does not change.
pub fn way(spec: &Spec, node: usize, item: &Item) -> Way {
    let mut dice = dice(spec, node, item, 1);
    let part = &spec.nodes[node];
    if spec.temper == Temper::Wild && dice.chance(5) {
        return if dice.chance(50) {
            Way::Missing
        } else {
            Way::Panic
        };
    }
    // With few hops allowed it may go round without end.
    let round = spec.hops < 10 || item.depth < DEEP;
    if part.back.is_some() && round && dice.chance(50) {
        return Way::To {
            next: Vec::new(),
            back: true,
            egress: false,
        };
    }
    let all = dice.chance(30);
    let none = dice.chance(10);
    let ends = part.next.len() + usize::from(part.egress);
    let one = usize::try_from(dice.below(ends as u64)).unwrap_or_default();
    let taken = |at: usize| !none && (all || at == one);
    let next = part.next.iter().enumerate();
    Way::To {
        next: next
            .filter(|(at, _)| taken(*at))
            .map(|(_, to)| *to)
            .collect(),
        back: false,
        egress: part.egress && taken(part.next.len()),
    }
}
