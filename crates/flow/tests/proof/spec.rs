//! Random graphs, policies and traces, as plain data.

use std::time::Duration;

use crate::support::{Dice, ms};

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Plain,
    Filter,
    Flat,
    Step,
    Router,
    /// Calls another flow.
    Sub,
    /// One of each edge.
    JoinAll {
        partial: bool,
    },
    /// So many, from wherever.
    JoinK {
        k: usize,
        partial: bool,
    },
}

impl Kind {
    pub const fn is_join(self) -> bool {
        matches!(self, Self::JoinAll { .. } | Self::JoinK { .. })
    }
}

#[derive(Debug, Clone)]
pub struct NodeSpec {
    pub kind: Kind,
    /// Where its output goes, in order.
    pub next: Vec<usize>,
    /// Where an edge that closes a cycle goes; only routers have one.
    pub back: Option<usize>,
    pub egress: bool,
    pub concurrency: usize,
    pub timeout: Option<Duration>,
    pub retries: u32,
    pub queue: usize,
}

/// How much goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Temper {
    /// Nothing.
    Calm,
    /// Attempts fail now and then.
    Failing,
    /// Attempts fail, panic, hang, and routers choose what is not there.
    Wild,
}

/// How a trace is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// At once.
    Prompt,
    /// Some time after it ended.
    Late,
    /// The handle is dropped, and the trace fetched later.
    Fetched,
    /// Never.
    Abandoned,
}

#[derive(Debug, Clone)]
pub struct TraceSpec {
    pub number: u64,
    pub tenant: &'static str,
    pub priority: u8,
    pub start: Duration,
    pub deadline: Option<Duration>,
    /// When it is cancelled.
    pub cancel: Option<Duration>,
    /// When another tenant tries to cancel, pause and fetch it.
    pub attacked: Option<Duration>,
    /// When it is paused and, so much later, resumed.
    pub pause: Option<(Duration, Duration)>,
    pub reading: Reading,
}

impl TraceSpec {
    /// Whether nothing from outside may change how it ends.
    pub const fn is_left_alone(&self) -> bool {
        self.deadline.is_none() && self.cancel.is_none()
    }
}

#[derive(Debug, Clone)]
pub struct Spec {
    pub seed: u64,
    pub temper: Temper,
    pub nodes: Vec<NodeSpec>,
    /// Nodes that get what is emitted.
    pub ingress: usize,
    pub fuse: bool,
    pub hops: u32,
    /// Most messages of a trace at once.
    pub messages: usize,
    /// Most traces at once.
    pub live: usize,
    /// Some are paused; once resumed, they go past the bounds of queues.
    pub pauses: bool,
    pub traces: Vec<TraceSpec>,
}

pub const TENANTS: [&str; 3] = ["ann", "bob", "cid"];

/// How long what nobody reads is kept.
pub const RESULT_TTL: Duration = Duration::from_secs(20);

impl Spec {
    /// Of a seed, always the same.
    pub fn random(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let temper = dice.pick(&[Temper::Calm, Temper::Failing, Temper::Wild]);
        let count = usize::try_from(dice.within(1, 8)).unwrap_or(1);
        let ingress = if count > 2 && dice.chance(15) { 2 } else { 1 };
        let mut nodes: Vec<NodeSpec> = (0..count)
            .map(|at| random_node(&mut dice, at < ingress, temper))
            .collect();
        connect(&mut dice, &mut nodes, ingress);
        for node in &mut nodes {
            node.egress = node.next.is_empty() || dice.chance(15);
        }
        let traces = dice.within(1, 40);
        let pauses = dice.chance(40);
        Self {
            seed,
            temper,
            ingress,
            fuse: dice.chance(60),
            hops: dice.pick(&[4, 64]),
            messages: dice.pick(&[24, 1_024, 1_024]),
            live: dice.pick(&[3, 100, 1_000]),
            traces: (0..traces)
                .map(|number| random_trace(&mut dice, number, pauses))
                .collect(),
            pauses,
            nodes,
        }
    }

    /// Name of a node, as routers, events and gauges know it.
    pub fn name(node: usize) -> String {
        format!("n{node}")
    }
}

fn random_node(dice: &mut Dice, first: bool, temper: Temper) -> NodeSpec {
    let partial = dice.chance(50);
    let k = usize::try_from(dice.within(1, 3)).unwrap_or(1);
    let kind = match dice.below(100) {
        0..40 => Kind::Plain,
        40..50 => Kind::Filter,
        50..60 => Kind::Flat,
        60..66 => Kind::Step,
        66..82 => Kind::Router,
        82..86 => Kind::Sub,
        _ if first => Kind::Plain,
        86..95 => Kind::JoinAll { partial },
        _ => Kind::JoinK { k, partial },
    };
    let timeout = (temper == Temper::Wild || dice.chance(20)).then_some(ms(50));
    NodeSpec {
        kind,
        next: Vec::new(),
        back: None,
        egress: false,
        concurrency: dice.pick(&[1, 1, 1, 2, 4]),
        timeout: timeout.filter(|_| kind != Kind::Router),
        retries: dice.pick(&[0, 0, 1, 2]),
        queue: dice.pick(&[1, 2, 4, 64]),
    }
}

/// Edges from earlier to later nodes, so that each is reached; then a few back.
fn connect(dice: &mut Dice, nodes: &mut [NodeSpec], ingress: usize) {
    for at in ingress..nodes.len() {
        let most = if nodes[at].kind.is_join() { 3 } else { 2 };
        for _ in 0..dice.within(1, most) {
            let from = usize::try_from(dice.below(at as u64)).unwrap_or_default();
            if !nodes[from].next.contains(&at) {
                nodes[from].next.push(at);
            }
        }
    }
    for at in 0..nodes.len() {
        if nodes[at].kind != Kind::Router || !dice.chance(40) {
            continue;
        }
        let behind: Vec<usize> = (0..at)
            .filter(|to| leads(nodes, *to, at) && !nodes[*to].kind.is_join())
            .collect();
        if !behind.is_empty() {
            nodes[at].back = Some(dice.pick(&behind));
        }
    }
}

/// Whether a way leads from one node to another, over edges forward.
fn leads(nodes: &[NodeSpec], from: usize, to: usize) -> bool {
    from == to || nodes[from].next.iter().any(|next| leads(nodes, *next, to))
}

fn random_trace(dice: &mut Dice, number: u64, pauses: bool) -> TraceSpec {
    let at = |dice: &mut Dice| ms(dice.below(400));
    TraceSpec {
        number,
        tenant: dice.pick(&TENANTS),
        priority: dice.pick(&[0, 0, 1, 9]),
        start: ms(dice.below(200)),
        deadline: dice.chance(15).then(|| ms(dice.within(1, 300))),
        cancel: dice.chance(15).then(|| at(dice)),
        attacked: dice.chance(15).then(|| at(dice)),
        pause: (pauses && dice.chance(20)).then(|| (at(dice), at(dice))),
        reading: match dice.below(100) {
            0..70 => Reading::Prompt,
            70..80 => Reading::Late,
            80..92 => Reading::Fetched,
            _ => Reading::Abandoned,
        },
    }
}
