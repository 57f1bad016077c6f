//! The reference: what a trace may yield and how it may end, with neither time nor order.

use std::collections::{BTreeSet, HashMap, VecDeque};

use volary_flow::FlowErrorCode;

use crate::{
    act::{End, Item, Way, act, way},
    spec::{Kind, Spec},
};

/// What may be seen of a trace.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// Order cannot change what follows; else only the rules that hold always are checked.
    pub exact: bool,
    /// What reaches an egress, sorted.
    pub values: Vec<Item>,
    /// Final answers.
    pub finishes: Vec<Item>,
    /// As what it can fail, sooner or later.
    pub codes: BTreeSet<&'static str>,
    /// As what single attempts fail: a deadline may make that the end.
    pub attempts: BTreeSet<&'static str>,
}

/// Messages after which the model gives up following a trace.
const MOST: usize = 3_000;

struct Model<'a> {
    spec: &'a Spec,
    /// Where items go, with where they come from.
    open: VecDeque<(usize, Option<usize>, Item)>,
    joins: HashMap<usize, Vec<(Option<usize>, Item)>>,
    joined: BTreeSet<usize>,
    hops: u32,
    messages: usize,
    /// There were several messages at once.
    several: bool,
    expected: Expected,
}

/// Works out what may be seen of trace `number`.
pub fn expect(spec: &Spec, number: u64) -> Expected {
    let mut model = Model {
        spec,
        open: VecDeque::new(),
        joins: HashMap::new(),
        joined: BTreeSet::new(),
        hops: 0,
        messages: 0,
        several: false,
        expected: Expected {
            exact: true,
            ..Expected::default()
        },
    };
    for node in 0..spec.ingress {
        model.send(node, None, Item::new(number));
    }
    model.run();
    if model.messages > spec.messages {
        model.expected.exact = false;
        model.fails(FlowErrorCode::TooManyMessages);
    }
    model.expected.values.sort();
    model.expected
}

impl Model<'_> {
    fn run(&mut self) {
        loop {
            while let Some((node, from, item)) = self.open.pop_front() {
                if self.messages > MOST {
                    self.expected.exact = false;
                    self.fails(FlowErrorCode::TooManyMessages);
                    return;
                }
                match self.spec.nodes[node].kind {
                    kind if kind.is_join() => self.gather(node, kind, from, item),
                    Kind::Router => self.route(node, item),
                    _ => self.work(node, &item),
                }
            }
            let Some(node) = self.joins.keys().min().copied() else {
                return;
            };
            let waiting = self.joins.remove(&node).unwrap_or_default();
            self.resolve(node, waiting);
        }
    }

    fn fails(&mut self, code: FlowErrorCode) {
        self.expected.codes.insert(code.as_str());
    }

    fn send(&mut self, node: usize, from: Option<usize>, item: Item) {
        self.messages += 1;
        self.several |= !self.open.is_empty();
        self.open.push_back((node, from, item));
    }

    /// To every successor.
    fn hand_on(&mut self, node: usize, item: &Item) {
        let spec = self.spec;
        for to in &spec.nodes[node].next {
            self.send(*to, Some(node), item.clone());
        }
        if spec.nodes[node].egress {
            self.leave(item.clone());
        }
    }

    fn leave(&mut self, item: Item) {
        self.messages += 1;
        self.expected.values.push(item);
    }

    fn work(&mut self, node: usize, item: &Item) {
        let part = &self.spec.nodes[node];
        for attempt in 1..=part.retries + 1 {
            let act = act(self.spec, node, item, attempt);
            let late = part.timeout.is_some_and(|timeout| act.delay > timeout);
            let code = match act.end {
                _ if late => FlowErrorCode::NodeTimeout,
                End::Items(items) => {
                    for item in &items {
                        self.hand_on(node, item);
                    }
                    return;
                }
                End::Finish(item) => {
                    self.expected.finishes.push(item);
                    return;
                }
                End::Panic => FlowErrorCode::NodePanic,
                End::Error | End::Permanent => FlowErrorCode::NodeError,
            };
            self.expected.attempts.insert(code.as_str());
            let mended = late || act.end == End::Error;
            if !mended || attempt > part.retries {
                return self.fails(code);
            }
        }
    }

    fn route(&mut self, node: usize, item: Item) {
        match way(self.spec, node, &item) {
            Way::Missing => self.fails(FlowErrorCode::NoSuchTarget),
            Way::Panic => self.fails(FlowErrorCode::NodePanic),
            Way::To { next, back, egress } => {
                for to in next {
                    self.send(to, Some(node), item.clone());
                }
                if egress {
                    self.leave(item.clone());
                }
                if let Some(to) = self.spec.nodes[node].back.filter(|_| back) {
                    self.hops += 1;
                    if self.hops > self.spec.hops {
                        // Rounds are counted for the whole trace: of several messages, who is first has the last of them.
                        self.expected.exact &= !self.several;
                        return self.fails(FlowErrorCode::HopBudgetExhausted);
                    }
                    self.send(to, Some(node), item);
                }
            }
        }
    }

    fn gather(&mut self, node: usize, kind: Kind, from: Option<usize>, item: Item) {
        let waiting = self.joins.entry(node).or_default();
        waiting.push((from, item));
        let complete = match kind {
            Kind::JoinK { k, .. } => waiting.len() >= k,
            _ => waiting.len() >= self.ways_into(node),
        };
        // More than it takes, or twice by one edge: who is first decides, and that is not for the model to know.
        let waiting = &self.joins[&node];
        let each = waiting.iter().map(|(from, _)| *from);
        let twice = each.collect::<BTreeSet<_>>().len() < waiting.len();
        let only = !matches!(kind, Kind::JoinK { .. });
        if self.joined.contains(&node) || (only && twice) {
            self.expected.exact = false;
        }
        if complete {
            let waiting = self.joins.remove(&node).unwrap_or_default();
            self.joined.insert(node);
            self.pass(node, waiting);
        }
    }

    fn ways_into(&self, node: usize) -> usize {
        let leads = |part: &&crate::spec::NodeSpec| part.next.contains(&node);
        self.spec.nodes.iter().filter(leads).count()
    }

    /// Nothing more comes to a join.
    fn resolve(&mut self, node: usize, waiting: Vec<(Option<usize>, Item)>) {
        let (Kind::JoinAll { partial } | Kind::JoinK { partial, .. }) = self.spec.nodes[node].kind
        else {
            return;
        };
        if partial {
            self.joined.insert(node);
            self.pass(node, waiting);
        } else {
            self.fails(FlowErrorCode::JoinIncomplete);
        }
    }

    /// A round of a join goes on, through the node that makes one item of it.
    fn pass(&mut self, node: usize, waiting: Vec<(Option<usize>, Item)>) {
        self.messages += 1;
        let items: Vec<Item> = waiting.into_iter().map(|(_, item)| item).collect();
        self.hand_on(node, &Item::merged(&items));
    }
}
