//! The order in which agents start and stop. Pure.

use volary_kernel::id::Name;

use super::model::AgentSpec;

/// Agents in groups: every agent's dependencies are in earlier groups. Within a group the order is the fleet's.
///
/// # Errors
/// The names along a cycle, the first one also at the end.
pub fn start_order(agents: &[AgentSpec]) -> Result<Vec<Vec<&AgentSpec>>, Vec<Name>> {
    let edges = edges(&agents.iter().collect::<Vec<_>>());
    let groups = layers(&edges).map_err(|cycle| {
        cycle
            .iter()
            .map(|at| agents[*at].name.clone())
            .collect::<Vec<_>>()
    })?;
    Ok(groups
        .into_iter()
        .map(|group| group.into_iter().map(|at| &agents[at]).collect())
        .collect())
}

/// [`start_order`] backwards: whoever depends on an agent has stopped before it does.
///
/// # Errors
/// The names along a cycle, the first one also at the end.
pub fn stop_order(agents: &[AgentSpec]) -> Result<Vec<Vec<&AgentSpec>>, Vec<Name>> {
    let mut groups = start_order(agents)?;
    groups.reverse();
    Ok(groups)
}

/// For each agent the positions of those it depends on; unknown names are left out.
pub(crate) fn edges(agents: &[&AgentSpec]) -> Vec<Vec<usize>> {
    let position = |name: &Name| agents.iter().position(|agent| agent.name == *name);
    agents
        .iter()
        .map(|agent| agent.depends_on.iter().filter_map(position).collect())
        .collect()
}

/// Groups of nodes by the length of the longest way down, or the nodes along a cycle with the first one repeated.
pub(crate) fn layers(edges: &[Vec<usize>]) -> Result<Vec<Vec<usize>>, Vec<usize>> {
    let mut rank: Vec<Option<usize>> = vec![None; edges.len()];
    let mut groups: Vec<Vec<usize>> = Vec::new();
    loop {
        let ready: Vec<usize> = (0..edges.len())
            .filter(|node| {
                rank[*node].is_none() && edges[*node].iter().all(|next| rank[*next].is_some())
            })
            .collect();
        if ready.is_empty() {
            break;
        }
        for node in &ready {
            rank[*node] = Some(groups.len());
        }
        groups.push(ready);
    }
    match rank.iter().position(Option::is_none) {
        None => Ok(groups),
        Some(start) => Err(cycle(edges, &rank, start)),
    }
}

/// Walks from an unranked node along unranked nodes, each of which has an unranked successor, until one comes twice.
fn cycle(edges: &[Vec<usize>], rank: &[Option<usize>], start: usize) -> Vec<usize> {
    let mut path = vec![start];
    loop {
        let last = path[path.len() - 1];
        let next = edges[last]
            .iter()
            .copied()
            .find(|next| rank[*next].is_none())
            .unwrap_or(start);
        if let Some(at) = path.iter().position(|node| *node == next) {
            path.drain(..at);
            path.push(next);
            return path;
        }
        path.push(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn dependencies_come_in_earlier_groups() {
        assert_eq!(
            layers(&[vec![1, 2], vec![2], vec![], vec![]]),
            Ok(vec![vec![2, 3], vec![1], vec![0]])
        );
    }

    #[test]
    fn a_cycle_is_named_from_its_first_node_round_to_it_again() {
        assert_eq!(
            layers(&[vec![1], vec![2], vec![1], vec![]]),
            Err(vec![1, 2, 1])
        );
        assert_eq!(layers(&[vec![0]]), Err(vec![0, 0]));
    }

    proptest! {
        #[test]
        fn every_graph_is_either_layered_or_has_the_cycle_that_is_named(
            edges in proptest::collection::vec(proptest::collection::vec(0usize..12, 0..4), 12)
        ) {
            match layers(&edges) {
                Ok(groups) => {
                    let rank = |node: &usize| groups.iter().position(|group| group.contains(node));
                    prop_assert_eq!(groups.iter().map(Vec::len).sum::<usize>(), edges.len());
                    for (node, nexts) in edges.iter().enumerate() {
                        prop_assert!(nexts.iter().all(|next| rank(next) < rank(&node)));
                    }
                }
                Err(path) => {
                    prop_assert_eq!(path.first(), path.last());
                    prop_assert!(path.len() > 1 && path.windows(2).all(|pair| edges[pair[0]].contains(&pair[1])));
                }
            }
        }
    }
}
