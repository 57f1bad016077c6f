//! What stages write down on the hot path, and what it stands for. Pure.

use std::time::Duration;

use volary_kernel::{Mono, TraceId};

use super::event::FlowEventKind;
use crate::{graph::plan::NodeIx, outcome::Outcome};

/// Whose record it is. Copied, never shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TraceTag {
    /// The trace.
    pub id: TraceId,
    /// Index of its tenant, as the engine counts them; must mean the same tenant as long as the flow runs.
    pub tenant: u32,
    /// How many edges that close a cycle it has gone over: it orders rounds that fall into one millisecond.
    pub hops: u16,
}

/// Stands for "about no node".
const NO_NODE: NodeIx = NodeIx::MAX;

/// One record: a cache line.
#[derive(Debug)]
pub(crate) struct Record {
    /// Of a [`TraceTag`], without its alignment.
    id: [u64; 2],
    tenant: u32,
    hops: u16,
    body: Body,
}

const _: () = assert!(size_of::<Record>() <= 64);

#[derive(Debug)]
enum Body {
    Chain {
        /// Which stage's.
        chain: u16,
        run: ChainRun,
    },
    Event {
        node: NodeIx,
        attempt: u32,
        at: Mono,
        kind: Kind,
    },
}

/// A message's way through nodes of a stage's chain without a wait: each started and succeeded at its first attempt.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ChainRun {
    /// Place of the first node in the chain.
    pub first: u16,
    pub count: u16,
    /// The start of the trace comes before it.
    pub begins: bool,
    /// The trace was done with it.
    pub ends: bool,
    pub accepted: Mono,
    pub started: Mono,
    pub ended: Mono,
}

impl ChainRun {
    /// Those of a chain that it went through.
    #[inline]
    fn of(self, chain: &[NodeIx]) -> &[NodeIx] {
        let nodes = chain.get(usize::from(self.first)..).unwrap_or_default();
        nodes.get(..usize::from(self.count)).unwrap_or(nodes)
    }

    #[inline]
    fn tell(self, nodes: &[NodeIx], told: &mut impl Told) {
        if self.begins {
            told.told(None, 0, self.accepted, || FlowEventKind::TraceStart);
        }
        let latency = self.ended - self.started;
        for node in nodes {
            told.told(Some(*node), 1, self.started, || FlowEventKind::NodeStart);
            let success = || FlowEventKind::NodeSuccess { latency };
            told.told(Some(*node), 1, self.ended, success);
        }
        if self.ends {
            let done = || FlowEventKind::TraceEnd {
                outcome: Outcome::Done,
                latency: self.ended - self.accepted,
            };
            told.told(None, 0, self.ended, done);
        }
    }
}

/// A duration in half the space; 584 years fit.
type Nanos = u64;

fn nanos(duration: Duration) -> Nanos {
    Nanos::try_from(duration.as_nanos()).unwrap_or(Nanos::MAX)
}

/// A [`FlowEventKind`] in little space: the frequent ones without an allocation.
#[derive(Debug)]
enum Kind {
    TraceStart,
    Done(Nanos),
    Cancelled(Nanos),
    DeadlineExceeded(Nanos),
    NodeStart,
    NodeSuccess(Nanos),
    NodeCancelled,
    LateResult,
    DeadlineSkip,
    CancelDrop,
    CancelFinish,
    Other(Box<FlowEventKind>),
}

impl Kind {
    #[inline]
    fn pack(kind: FlowEventKind) -> Self {
        match kind {
            FlowEventKind::TraceStart => Self::TraceStart,
            FlowEventKind::TraceEnd {
                outcome: Outcome::Done,
                latency,
            } => Self::Done(nanos(latency)),
            FlowEventKind::TraceEnd {
                outcome: Outcome::Cancelled,
                latency,
            } => Self::Cancelled(nanos(latency)),
            FlowEventKind::TraceEnd {
                outcome: Outcome::DeadlineExceeded,
                latency,
            } => Self::DeadlineExceeded(nanos(latency)),
            FlowEventKind::NodeStart => Self::NodeStart,
            FlowEventKind::NodeSuccess { latency } => Self::NodeSuccess(nanos(latency)),
            FlowEventKind::NodeCancelled => Self::NodeCancelled,
            FlowEventKind::LateResult => Self::LateResult,
            FlowEventKind::DeadlineSkip => Self::DeadlineSkip,
            FlowEventKind::CancelDrop => Self::CancelDrop,
            FlowEventKind::CancelFinish => Self::CancelFinish,
            other => Self::Other(Box::new(other)),
        }
    }

    fn unpack(&mut self) -> FlowEventKind {
        let end = |outcome, latency| FlowEventKind::TraceEnd { outcome, latency };
        match self {
            Self::TraceStart => FlowEventKind::TraceStart,
            Self::Done(latency) => end(Outcome::Done, Duration::from_nanos(*latency)),
            Self::Cancelled(latency) => end(Outcome::Cancelled, Duration::from_nanos(*latency)),
            Self::DeadlineExceeded(latency) => {
                end(Outcome::DeadlineExceeded, Duration::from_nanos(*latency))
            }
            Self::NodeStart => FlowEventKind::NodeStart,
            Self::NodeSuccess(latency) => FlowEventKind::NodeSuccess {
                latency: Duration::from_nanos(*latency),
            },
            Self::NodeCancelled => FlowEventKind::NodeCancelled,
            Self::LateResult => FlowEventKind::LateResult,
            Self::DeadlineSkip => FlowEventKind::DeadlineSkip,
            Self::CancelDrop => FlowEventKind::CancelDrop,
            Self::CancelFinish => FlowEventKind::CancelFinish,
            Self::Other(kind) => std::mem::replace(kind, FlowEventKind::NodeStart),
        }
    }
}

/// Is told what a record stands for, one by one.
pub(crate) trait Told {
    /// The node (if any), the attempt, when, and what.
    fn told(
        &mut self,
        node: Option<NodeIx>,
        attempt: u32,
        at: Mono,
        kind: impl FnOnce() -> FlowEventKind,
    );
}

impl Record {
    /// Is left where one was taken away.
    pub(super) const NONE: Self = Self {
        id: [0; 2],
        tenant: 0,
        hops: 0,
        body: Body::Event {
            node: NO_NODE,
            attempt: 0,
            at: Mono::from_nanos(0),
            kind: Kind::TraceStart,
        },
    };

    #[inline]
    fn of(tag: &TraceTag, body: Body) -> Self {
        let id = u128::from_be_bytes(tag.id.to_bytes());
        Self {
            id: [(id >> 64) as u64, id as u64],
            tenant: tag.tenant,
            hops: tag.hops,
            body,
        }
    }

    /// Whose it is; none for an id that no trace has.
    pub(crate) fn tag(&self) -> Option<TraceTag> {
        let [high, low] = self.id.map(u128::from);
        Some(TraceTag {
            id: TraceId::from_bytes((high << 64 | low).to_be_bytes())?,
            tenant: self.tenant,
            hops: self.hops,
        })
    }

    #[inline]
    pub(crate) fn chain(tag: &TraceTag, chain: u16, run: ChainRun) -> Self {
        Self::of(tag, Body::Chain { chain, run })
    }

    #[inline]
    pub(crate) fn event(
        tag: &TraceTag,
        node: Option<NodeIx>,
        attempt: u32,
        at: Mono,
        kind: FlowEventKind,
    ) -> Self {
        let body = Body::Event {
            node: node.unwrap_or(NO_NODE),
            attempt,
            at,
            kind: Kind::pack(kind),
        };
        Self::of(tag, body)
    }

    /// How many events it stands for.
    pub(crate) fn events(&self) -> u64 {
        match &self.body {
            Body::Chain { run, .. } => {
                2 * u64::from(run.count) + u64::from(run.begins) + u64::from(run.ends)
            }
            Body::Event { .. } => 1,
        }
    }

    /// Bytes that it holds besides itself.
    pub(crate) fn extra(&self) -> usize {
        let Body::Event {
            kind: Kind::Other(kind),
            ..
        } = &self.body
        else {
            return 0;
        };
        let text = match &**kind {
            FlowEventKind::NodeError { error, .. } | FlowEventKind::NodeFailed { error, .. } => {
                error.len()
            }
            FlowEventKind::TraceEnd {
                outcome: Outcome::Failed(error),
                ..
            } => error.message.len(),
            _ => 0,
        };
        size_of::<FlowEventKind>() + text
    }

    /// As [`Record::tell`], to a closure.
    #[cfg(test)]
    pub(crate) fn expand(
        mut self,
        chains: &[Vec<NodeIx>],
        told: &mut impl FnMut(Option<NodeIx>, u32, Mono, FlowEventKind),
    ) {
        struct Closure<'a, F>(&'a mut F);
        impl<F: FnMut(Option<NodeIx>, u32, Mono, FlowEventKind)> Told for Closure<'_, F> {
            fn told(
                &mut self,
                node: Option<NodeIx>,
                attempt: u32,
                at: Mono,
                kind: impl FnOnce() -> FlowEventKind,
            ) {
                (self.0)(node, attempt, at, kind());
            }
        }
        self.tell(chains, &mut Closure(told));
    }

    /// Tells all events it stands for, in order. To be done once: what it holds is handed on.
    #[inline]
    pub(crate) fn tell(&mut self, chains: &[Vec<NodeIx>], told: &mut impl Told) {
        match &mut self.body {
            Body::Chain { chain, run } => {
                let nodes = chains.get(usize::from(*chain));
                run.tell(nodes.map_or(&[][..], |nodes| run.of(nodes)), told);
            }
            Body::Event {
                node,
                attempt,
                at,
                kind,
            } => {
                let node = (*node != NO_NODE).then_some(*node);
                told.told(node, *attempt, *at, || kind.unpack());
            }
        }
    }

    /// Its time, for order: of a way through nodes the earliest of what it stands for, unless the trace ended with it. That
    /// end is to be told last of all.
    #[inline]
    pub(crate) fn at(&self) -> Mono {
        match &self.body {
            Body::Chain { run, .. } if run.begins => run.accepted,
            Body::Chain { run, .. } if run.ends => run.ended,
            Body::Chain { run, .. } => run.started,
            Body::Event { at, .. } => *at,
        }
    }

    /// Where it stands among records of one time: rounds, then the way through the graph.
    pub(super) fn order(&self, chains: &[Vec<NodeIx>], ranks: &[u16]) -> (u16, u16) {
        let node_rank = |node: Option<&NodeIx>| {
            node.and_then(|node| ranks.get(usize::from(*node)))
                .map_or(RANK_FIRST, |rank| rank.saturating_add(RANK_NODE))
        };
        match &self.body {
            Body::Chain { run, .. } if run.begins => (0, RANK_FIRST),
            Body::Chain { run, .. } if run.ends => (u16::MAX, RANK_LAST),
            Body::Chain { chain, run } => {
                let chain = chains.get(usize::from(*chain));
                let node = chain.and_then(|nodes| nodes.get(usize::from(run.first)));
                (self.hops, node_rank(node))
            }
            Body::Event { node, kind, .. } => match kind {
                Kind::TraceStart => (0, RANK_FIRST),
                Kind::Done(_)
                | Kind::Cancelled(_)
                | Kind::DeadlineExceeded(_)
                | Kind::CancelFinish
                | Kind::LateResult => (u16::MAX, RANK_LAST),
                Kind::Other(kind) if matches!(**kind, FlowEventKind::TraceEnd { .. }) => {
                    (u16::MAX, RANK_LAST)
                }
                _ if *node == NO_NODE => (self.hops, RANK_TRACE),
                _ => (self.hops, node_rank(Some(node))),
            },
        }
    }
}

const RANK_FIRST: u16 = 0;
const RANK_TRACE: u16 = 1;
const RANK_NODE: u16 = 2;
const RANK_LAST: u16 = u16::MAX;
