//! Which nodes share a task. Pure.
//!
//! A fused chain is run by one task that hands a message straight from node to node while nothing waits between them. Each
//! node keeps its queue, bound, policy and counters, so nothing but speed and threads differ from a task for each.

use smallvec::SmallVec;

use crate::graph::plan::{NodeIx, Plan, Target, Work};

/// Most nodes of one task: it looks at each of them whenever it is woken, and when they turn out to be slow.
const LONGEST: usize = 64;

/// The nodes of one task, upstream first.
pub(crate) type Group = SmallVec<[NodeIx; 4]>;

/// All nodes, each in one group. A node is fused to its only successor if that has no other way in and is not a join; of a
/// very long chain some nodes after the other are.
pub(crate) fn groups(plan: &Plan, fuse: bool) -> Vec<Group> {
    let next = next_of(plan, fuse);
    let mut has_head = vec![false; plan.nodes.len()];
    for to in next.iter().flatten() {
        has_head[usize::from(*to)] = true;
    }
    let mut groups: Vec<Group> = Vec::new();
    for (node, has_head) in has_head.iter().enumerate() {
        if !has_head {
            let chain = chain_from(node, &next);
            groups.extend(chain.chunks(LONGEST).map(Group::from_slice));
        }
    }
    groups
}

fn chain_from(head: usize, next: &[Option<NodeIx>]) -> Vec<NodeIx> {
    let mut chain = Vec::new();
    let mut at = NodeIx::try_from(head).ok();
    while let Some(node) = at {
        chain.push(node);
        at = next[usize::from(node)];
    }
    chain
}

fn next_of(plan: &Plan, fuse: bool) -> Vec<Option<NodeIx>> {
    let mut ways_in = vec![0usize; plan.nodes.len()];
    for node in &plan.ingress {
        ways_in[usize::from(*node)] += 1;
    }
    for edge in plan.nodes.iter().flat_map(|node| &node.out) {
        if let Target::Node(to) = edge.to {
            ways_in[usize::from(to)] += 1;
        }
    }
    let only_successor = |from: usize| -> Option<NodeIx> {
        let [edge] = plan.nodes[from].out.as_slice() else {
            return None;
        };
        let Target::Node(to) = edge.to else {
            return None;
        };
        let at = usize::from(to);
        let alone = ways_in[at] == 1 && at != from && !edge.back;
        (alone && matches!(plan.nodes[at].work, Work::Call(_))).then_some(to)
    };
    (0..plan.nodes.len())
        .map(|from| fuse.then(|| only_successor(from)).flatten())
        .collect()
}

/// Ranks of nodes: one that comes before another, cycles apart, has the lower rank. Joins are resolved in this order.
pub(crate) fn ranks(plan: &Plan) -> Vec<u32> {
    let after = |node: usize| {
        let edges = plan.nodes[node].out.iter().filter(|edge| !edge.back);
        edges.filter_map(|edge| match edge.to {
            Target::Node(to) => Some(usize::from(to)),
            Target::Egress => None,
        })
    };
    let mut ways_in = vec![0usize; plan.nodes.len()];
    for to in (0..plan.nodes.len()).flat_map(after) {
        ways_in[to] += 1;
    }
    // Longest ways without back edges: a node comes after all that lead to it.
    let mut ranks = vec![0u32; plan.nodes.len()];
    let mut open: Vec<usize> = (0..ways_in.len()).filter(|at| ways_in[*at] == 0).collect();
    while let Some(node) = open.pop() {
        for to in after(node) {
            ranks[to] = ranks[to].max(ranks[node] + 1);
            ways_in[to] -= 1;
            if ways_in[to] == 0 {
                open.push(to);
            }
        }
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing::{TestPlan, pass};

    #[test]
    fn a_chain_is_one_group_and_only_when_wanted() {
        let mut plan = TestPlan::new();
        let nodes: Vec<_> = (0..3).map(|n| plan.call(&format!("n{n}"), pass)).collect();
        plan.chain(&nodes);
        let plan = plan.build();
        assert_eq!(groups(&plan, true), [Group::from_slice(&[0, 1, 2])]);
        assert_eq!(groups(&plan, false).len(), 3);
        assert_eq!(ranks(&plan), [0, 1, 2]);
    }

    #[test]
    fn a_very_long_chain_is_several_groups() {
        let mut plan = TestPlan::new();
        let nodes: Vec<_> = (0..10_000)
            .map(|n| plan.call(&format!("n{n}"), pass))
            .collect();
        plan.chain(&nodes);
        let plan = plan.build();
        let groups = groups(&plan, true);
        assert!(groups.iter().all(|group| group.len() <= LONGEST));
        assert_eq!(groups.len(), 10_000usize.div_ceil(LONGEST));
        assert_eq!(groups.into_iter().flatten().collect::<Vec<_>>(), nodes);
        assert_eq!(ranks(&plan)[9_999], 9_999);
    }

    #[test]
    fn branches_and_joins_end_a_group() {
        let mut plan = TestPlan::new();
        let a = plan.call("a", pass);
        let (b, c) = (plan.call("b", pass), plan.call("c", pass));
        let join = plan.join("join", None, false);
        let d = plan.call("d", pass);
        plan.ingress(a);
        for (from, to) in [(a, b), (a, c), (b, join), (c, join), (join, d)] {
            plan.edge(from, to, 64);
        }
        plan.egress(d);
        let plan = plan.build();
        let groups: Vec<Vec<NodeIx>> = groups(&plan, true).iter().map(|g| g.to_vec()).collect();
        assert_eq!(groups, [vec![a], vec![b], vec![c], vec![join, d]]);
        assert_eq!(ranks(&plan), [0, 1, 1, 2, 3]);
    }

    #[test]
    fn a_cycle_is_not_fused_into_itself() {
        let mut plan = TestPlan::new();
        let (a, b) = (plan.call("a", pass), plan.call("b", pass));
        plan.ingress(a);
        plan.edge(a, b, 64);
        plan.back(b, a);
        plan.egress(b);
        let plan = plan.build();
        assert_eq!(groups(&plan, true), [Group::from_slice(&[a, b])]);
    }
}
