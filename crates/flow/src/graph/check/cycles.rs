//! Cycles: each is declared by the edge that closes it, and what is declared does close one. Pure.

use std::collections::VecDeque;

use crate::graph::{
    problem::{Problem, ProblemCode},
    sketch::{End, Sketch},
};

pub(super) fn check(sketch: &Sketch, problems: &mut Vec<Problem>) {
    let forward = sketch.successors(|edge| !edge.back);
    let groups = components(&forward);
    let mut ways = Ways::new(&forward, &groups);
    for group in &groups {
        let start = group[0];
        let Some(path) = ways.path(start, start) else {
            continue;
        };
        let name = |node: &usize| sketch.nodes[*node].name.as_str();
        let shown: Vec<&str> = path.iter().map(name).collect();
        let (last, first) = (shown[shown.len() - 2], shown[0]);
        problems.push(Problem {
            code: ProblemCode::UndeclaredCycle,
            place: format!("cycle {}", shown.join(" → ")),
            message: "is not declared".to_owned(),
            hint: format!(
                "remove an edge, or declare the one that closes it: b.connect_back({last}, {first})"
            ),
        });
    }
    if !sketch.edges.iter().any(|edge| edge.back) {
        return;
    }
    // What one closes is a group of the whole graph: no way is looked for outside it.
    let groups = components(&sketch.successors(|_| true));
    let mut ways = Ways::new(&forward, &groups);
    for edge in sketch.edges.iter().filter(|edge| edge.back) {
        let End::Node(to) = edge.to else { continue };
        if edge.from == to || ways.path(to, edge.from).is_some() {
            continue;
        }
        let (from, to) = (&sketch.nodes[edge.from].name, &sketch.nodes[to].name);
        problems.push(Problem {
            code: ProblemCode::NotACycle,
            place: format!("edge `{from}` → `{to}`"),
            message: format!(
                "is declared as closing a cycle, but no way leads from `{to}` to `{from}`"
            ),
            hint: format!("use b.connect({from}, {to}), which has a bounded queue"),
        });
    }
}

/// Looks for ways within groups of nodes; each takes no longer than its group is large.
struct Ways<'a> {
    next: &'a [Vec<usize>],
    group_of: Vec<usize>,
    /// Where the last way that came by came from, and which that was.
    came_from: Vec<(usize, usize)>,
    looked: usize,
}

impl<'a> Ways<'a> {
    fn new(next: &'a [Vec<usize>], groups: &[Vec<usize>]) -> Self {
        let mut group_of = vec![0; next.len()];
        for (at, group) in groups.iter().enumerate() {
            for node in group {
                group_of[*node] = at;
            }
        }
        Self {
            next,
            group_of,
            came_from: vec![(0, 0); next.len()],
            looked: 0,
        }
    }

    /// The shortest way from a node to another of its group over at least one edge, both included.
    fn path(&mut self, from: usize, to: usize) -> Option<Vec<usize>> {
        self.looked += 1;
        let mut open = VecDeque::from([from]);
        while let Some(node) = open.pop_front() {
            for step in &self.next[node] {
                if *step == to {
                    return Some(self.way(from, node, to));
                }
                let here = self.group_of[*step] == self.group_of[from];
                if here && *step != from && self.came_from[*step].1 != self.looked {
                    self.came_from[*step] = (node, self.looked);
                    open.push_back(*step);
                }
            }
        }
        None
    }

    fn way(&self, from: usize, last: usize, to: usize) -> Vec<usize> {
        let mut way = vec![to, last];
        let mut at = last;
        while at != from {
            at = self.came_from[at].0;
            way.push(at);
        }
        way.reverse();
        way
    }
}

/// Nodes that reach each other, in groups; each in the order of adding.
///
/// Two passes in depth (Kosaraju), without recursion: a graph may be one long chain.
fn components(next: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let count = next.len();
    let mut order = Vec::with_capacity(count);
    let mut seen = vec![false; count];
    for root in 0..count {
        if std::mem::replace(&mut seen[root], true) {
            continue;
        }
        let mut stack = vec![(root, 0)];
        while let Some((node, edge)) = stack.pop() {
            let Some(to) = next[node].get(edge) else {
                order.push(node);
                continue;
            };
            stack.push((node, edge + 1));
            if !std::mem::replace(&mut seen[*to], true) {
                stack.push((*to, 0));
            }
        }
    }
    let before = super::reversed(next);
    let mut taken = vec![false; count];
    let mut groups = Vec::new();
    for root in order.into_iter().rev() {
        if std::mem::replace(&mut taken[root], true) {
            continue;
        }
        let mut group = vec![root];
        let mut at = 0;
        while at < group.len() {
            for from in &before[group[at]] {
                if !std::mem::replace(&mut taken[*from], true) {
                    group.push(*from);
                }
            }
            at += 1;
        }
        group.sort_unstable();
        groups.push(group);
    }
    groups.sort_unstable();
    groups
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Whether each node reaches each other over at least one edge, by trying all.
    fn reaches(next: &[Vec<usize>]) -> Vec<Vec<bool>> {
        let count = next.len();
        let mut reaches = vec![vec![false; count]; count];
        for (from, all) in next.iter().enumerate() {
            for to in all {
                reaches[from][*to] = true;
            }
        }
        for through in 0..count {
            for from in 0..count {
                for to in 0..count {
                    reaches[from][to] |= reaches[from][through] && reaches[through][to];
                }
            }
        }
        reaches
    }

    fn graphs() -> impl Strategy<Value = Vec<Vec<usize>>> {
        (1..12_usize).prop_flat_map(|count| {
            let edges = prop::collection::vec(0..count, 0..3);
            prop::collection::vec(edges, count)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn groups_are_those_nodes_that_reach_each_other(next in graphs()) {
            let reaches = reaches(&next);
            let groups = components(&next);
            let group_of = |node: usize| groups.iter().position(|group| group.contains(&node));
            for (from, forth) in reaches.iter().enumerate() {
                for (to, back) in reaches.iter().enumerate() {
                    let together = from == to || (forth[to] && back[from]);
                    prop_assert_eq!(group_of(from) == group_of(to), together);
                }
            }
            let all: usize = groups.iter().map(Vec::len).sum();
            prop_assert_eq!(all, next.len());
        }

        #[test]
        fn a_path_is_one_and_is_found_where_there_is_one(next in graphs(), from in 0..12_usize, to in 0..12_usize) {
            let (from, to) = (from % next.len(), to % next.len());
            // As one group, so that all ways count.
            let all = vec![(0..next.len()).collect()];
            match Ways::new(&next, &all).path(from, to) {
                None => prop_assert!(!reaches(&next)[from][to]),
                Some(way) => {
                    prop_assert!(way.len() >= 2 && way[0] == from && way[way.len() - 1] == to);
                    prop_assert!(way.windows(2).all(|pair| next[pair[0]].contains(&pair[1])));
                }
            }
        }
    }

    #[test]
    fn a_very_long_chain_needs_no_deep_stack() {
        let count = 60_000;
        let next: Vec<Vec<usize>> = (0..count)
            .map(|node| {
                if node + 1 < count {
                    vec![node + 1]
                } else {
                    Vec::new()
                }
            })
            .collect();
        assert_eq!(components(&next).len(), count);
    }
}
