//! Who waits for whom: checks and answers over `depends_on`. Pure.

use std::collections::BTreeMap;

use volary_kernel::id::Name;

use super::SuperviseError;

/// Dependencies between agents, known to be complete and free of cycles.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Order {
    needs: BTreeMap<Name, Vec<Name>>,
}

impl Order {
    /// Takes and checks dependencies.
    ///
    /// # Errors
    /// [`SuperviseError::UnknownDependency`], [`SuperviseError::Cycle`] with the way round.
    pub fn new(needs: BTreeMap<Name, Vec<Name>>) -> Result<Self, SuperviseError> {
        for (agent, on) in &needs {
            if let Some(on) = on.iter().find(|on| !needs.contains_key(*on)) {
                return Err(SuperviseError::UnknownDependency {
                    agent: agent.clone(),
                    on: on.clone(),
                });
            }
        }
        let mut done = BTreeMap::new();
        for agent in needs.keys() {
            let mut path = Vec::new();
            walk(&needs, agent, &mut path, &mut done)?;
        }
        Ok(Self { needs })
    }

    /// What `agent` needs that is not ready.
    pub fn missing(&self, agent: &Name, ready: impl Fn(&Name) -> bool) -> Vec<Name> {
        let needs = self.needs.get(agent).into_iter().flatten();
        needs.filter(|on| !ready(on)).cloned().collect()
    }

    /// Whether nobody who needs `agent` is still up: then it may stop.
    pub fn may_stop(&self, agent: &Name, up: impl Fn(&Name) -> bool) -> bool {
        !self
            .needs
            .iter()
            .any(|(other, needs)| needs.contains(agent) && up(other))
    }
}

/// Depth first; `done` holds agents from which no cycle can be reached.
fn walk(
    needs: &BTreeMap<Name, Vec<Name>>,
    agent: &Name,
    path: &mut Vec<Name>,
    done: &mut BTreeMap<Name, ()>,
) -> Result<(), SuperviseError> {
    if done.contains_key(agent) {
        return Ok(());
    }
    if let Some(start) = path.iter().position(|before| before == agent) {
        let mut path = path.split_off(start);
        path.push(agent.clone());
        return Err(SuperviseError::Cycle { path });
    }
    path.push(agent.clone());
    for on in needs.get(agent).into_iter().flatten() {
        walk(needs, on, path, done)?;
    }
    path.pop();
    done.insert(agent.clone(), ());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn order(edges: &[(&str, &[&str])]) -> Result<Order, SuperviseError> {
        let needs = edges
            .iter()
            .map(|(agent, on)| (name(agent), on.iter().map(|on| name(on)).collect()))
            .collect();
        Order::new(needs)
    }

    #[test]
    fn a_cycle_is_named_with_its_way_round() {
        let error = order(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"])]).unwrap_err();
        assert_eq!(error.to_string(), "dependency cycle: b -> c -> b");
    }

    #[test]
    fn an_unknown_dependency_is_named() {
        let error = order(&[("a", &["nobody"])]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "agent `a` depends on `nobody`, which is not in the fleet"
        );
    }

    #[test]
    fn starts_go_up_the_order_and_stops_down() {
        let order = order(&[("db", &[]), ("api", &["db"]), ("web", &["api"])]).unwrap();
        assert_eq!(order.missing(&name("api"), |_| false), [name("db")]);
        assert_eq!(order.missing(&name("web"), |on| *on == name("api")), []);
        assert!(order.may_stop(&name("web"), |_| true));
        assert!(!order.may_stop(&name("db"), |up| *up == name("api")));
        assert!(order.may_stop(&name("db"), |up| *up == name("web")));
    }
}
