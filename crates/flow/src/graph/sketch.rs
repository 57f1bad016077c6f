//! A graph as it was drawn, before it is known to be sound: what checks and descriptions look at. Pure.

use std::{collections::HashSet, time::Duration};

use super::{
    describe::{Description, NodeKind},
    problem::{Problem, ProblemCode},
};
use crate::policy::NodePolicy;

/// The name of the way out, as routers and pictures use it; no node may have it.
pub(crate) const EGRESS: &str = "egress";
/// The name of the way in.
pub(crate) const INGRESS: &str = "ingress";
/// Bound of an edge unless it is set: messages that wait, per tenant.
pub(crate) const DEFAULT_QUEUE: usize = 64;

/// A graph that may be wrong.
#[derive(Debug)]
pub(crate) struct Sketch {
    pub name: String,
    pub nodes: Vec<NodeSketch>,
    /// In the order of connecting.
    pub edges: Vec<EdgeSketch>,
    /// In the order of declaring.
    pub ingress: Vec<usize>,
    pub queue_maxsize: usize,
    /// Ends of the edges.
    known: HashSet<(usize, End)>,
    /// What was wrong on the way.
    pub found: Vec<Problem>,
}

/// A node.
#[derive(Debug)]
pub(crate) struct NodeSketch {
    pub name: String,
    pub kind: NodeKind,
    /// Full names of its types.
    pub input: &'static str,
    pub output: &'static str,
    pub policy: NodePolicy,
    /// Whether the policy was set.
    pub policy_set: bool,
    /// Its own bound for the edges into it.
    pub queue: Option<usize>,
    /// Whether a branch of a trace may end here without a successor.
    pub ends: bool,
    /// Whether it gets what is emitted.
    pub ingress: bool,
    pub join: Option<JoinSketch>,
    /// Bound of `map_concurrent`.
    pub width: Option<usize>,
    /// What a routing table names.
    pub table: Vec<String>,
    pub subflow: Option<Box<Description>>,
}

/// A join.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct JoinSketch {
    pub count: Option<usize>,
    pub timeout: Option<Duration>,
    pub partial: bool,
    pub policy_set: bool,
}

/// An edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EdgeSketch {
    pub from: usize,
    pub to: End,
    pub back: bool,
    /// Which case takes it.
    pub label: Option<String>,
}

/// Where an edge leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum End {
    Node(usize),
    Egress,
}

impl Sketch {
    pub(crate) fn new(name: String) -> Self {
        Self {
            name,
            nodes: Vec::new(),
            edges: Vec::new(),
            ingress: Vec::new(),
            queue_maxsize: DEFAULT_QUEUE,
            known: HashSet::new(),
            found: Vec::new(),
        }
    }

    /// Bound of the edges into a node.
    pub(crate) fn queue_of(&self, node: usize) -> usize {
        self.nodes[node].queue.unwrap_or(self.queue_maxsize)
    }

    /// How an edge's end is called.
    pub(crate) fn name_of(&self, end: End) -> &str {
        match end {
            End::Node(node) => &self.nodes[node].name,
            End::Egress => EGRESS,
        }
    }

    /// Nodes that have edges to others, by the edges that `pass` lets through.
    pub(crate) fn successors(&self, pass: impl Fn(&EdgeSketch) -> bool) -> Vec<Vec<usize>> {
        let mut successors = vec![Vec::new(); self.nodes.len()];
        for edge in self.edges.iter().filter(|edge| pass(edge)) {
            if let End::Node(to) = edge.to {
                successors[edge.from].push(to);
            }
        }
        successors
    }

    /// The edges that leave each node, in the order of connecting.
    pub(crate) fn out(&self) -> Vec<Vec<&EdgeSketch>> {
        let mut out = vec![Vec::new(); self.nodes.len()];
        for edge in &self.edges {
            out[edge.from].push(edge);
        }
        out
    }

    pub(crate) fn add_edge(&mut self, edge: EdgeSketch) {
        if self.known.insert((edge.from, edge.to)) {
            self.edges.push(edge);
            return;
        }
        let from = self.nodes[edge.from].name.clone();
        let (place, hint) = match edge.to {
            End::Node(to) => (
                format!("edge `{from}` → `{}`", self.nodes[to].name),
                "connect them once: each edge delivers every value, so it would come twice",
            ),
            End::Egress => (
                format!("node `{from}`"),
                "declare it once: every value would be yielded twice",
            ),
        };
        self.found.push(Problem {
            code: ProblemCode::Twice,
            place,
            message: match edge.to {
                End::Node(_) => "is connected twice".to_owned(),
                End::Egress => "is declared as an egress twice".to_owned(),
            },
            hint: hint.to_owned(),
        });
    }
}

/// A type's name without the modules it is in.
pub(crate) fn short_type(full: &str) -> String {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut short, mut word) = (String::new(), String::new());
    let mut chars = full.chars().peekable();
    while let Some(c) = chars.next() {
        if is_word(c) {
            word.push(c);
        } else if c == ':' && chars.peek() == Some(&':') {
            chars.next();
            word.clear();
        } else {
            short.push_str(&word);
            word.clear();
            short.push(c);
        }
    }
    short + &word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_named_without_their_modules() {
        let check = |full: &str, short: &str| assert_eq!(short_type(full), short);
        check("u64", "u64");
        check("alloc::string::String", "String");
        check(
            "alloc::vec::Vec<(core::option::Option<my::Order>, u8)>",
            "Vec<(Option<Order>, u8)>",
        );
        check("&'static [my::deep::Thing; 3]", "&'static [Thing; 3]");
    }
}
