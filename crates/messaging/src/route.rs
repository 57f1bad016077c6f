//! Who gets a message: an index from names and topics to targets (pure).

use std::collections::{HashMap, hash_map::Entry};

use smallvec::SmallVec;
use volary_kernel::id::{Name, Tenant};

use crate::{
    message::{Audience, Message},
    topic::Topic,
};

/// Targets by tenant, name and topic. Looking up costs one hash per tenant and topic, however many targets there are.
#[derive(Debug)]
pub(crate) struct RoutingTable<T> {
    tenants: HashMap<Tenant, Routes<T>>,
}

#[derive(Debug)]
struct Routes<T> {
    agents: HashMap<Name, (T, Vec<Topic>)>,
    topics: HashMap<Topic, Vec<(Name, T)>>,
}

impl<T> Default for Routes<T> {
    fn default() -> Self {
        Self {
            agents: HashMap::new(),
            topics: HashMap::new(),
        }
    }
}

impl<T> Default for RoutingTable<T> {
    fn default() -> Self {
        Self {
            tenants: HashMap::new(),
        }
    }
}

/// Targets of one message; one is the common case.
pub(crate) type Targets<T> = SmallVec<[T; 1]>;

/// Whom a message is for, when that needs no list.
pub(crate) enum Found<'a, T> {
    Nobody,
    One(&'a T),
    Several,
}

impl<T: Clone> RoutingTable<T> {
    /// The routes of a tenant. A fleet of one tenant is common and needs no hashing.
    fn routes(&self, tenant: &Tenant) -> Option<&Routes<T>> {
        if self.tenants.len() == 1 {
            return self
                .tenants
                .iter()
                .find(|(only, _)| *only == tenant)
                .map(|(_, routes)| routes);
        }
        self.tenants.get(tenant)
    }

    /// Whom `message` is for, if that is at most one.
    pub(crate) fn find(&self, message: &Message) -> Found<'_, T> {
        let Some(routes) = self.routes(message.tenant()) else {
            return Found::Nobody;
        };
        match message.audience() {
            Audience::Agent(name) => routes
                .agents
                .get(name)
                .map_or(Found::Nobody, |(target, _)| Found::One(target)),
            Audience::Topics([one]) => match routes.topics.get(one).map(Vec::as_slice) {
                None => Found::Nobody,
                Some([(name, target)]) if name != message.sender().name() => Found::One(target),
                Some([_]) => Found::Nobody,
                Some(_) => Found::Several,
            },
            // Who is in a pool is not known here: see `Inboxes`.
            Audience::Pool(_) => Found::Nobody,
            Audience::Everyone | Audience::Topics(_) => Found::Several,
        }
    }

    /// Adds a target; `false`, and no change, if the name is taken.
    pub(crate) fn insert(
        &mut self,
        tenant: &Tenant,
        name: &Name,
        topics: &[Topic],
        target: T,
    ) -> bool {
        let routes = self.tenants.entry(tenant.clone()).or_default();
        let Entry::Vacant(free) = routes.agents.entry(name.clone()) else {
            return false;
        };
        let mut once: Vec<Topic> = topics.to_vec();
        once.sort_unstable();
        once.dedup();
        for topic in &once {
            routes
                .topics
                .entry(topic.clone())
                .or_default()
                .push((name.clone(), target.clone()));
        }
        free.insert((target, once));
        true
    }

    /// Removes a target.
    pub(crate) fn remove(&mut self, tenant: &Tenant, name: &Name) -> Option<T> {
        let routes = self.tenants.get_mut(tenant)?;
        let (target, topics) = routes.agents.remove(name)?;
        for topic in topics {
            if let Entry::Occupied(mut subscribers) = routes.topics.entry(topic) {
                subscribers
                    .get_mut()
                    .retain(|(subscriber, _)| subscriber != name);
                if subscribers.get().is_empty() {
                    subscribers.remove();
                }
            }
        }
        if routes.agents.is_empty() {
            self.tenants.remove(tenant);
        }
        Some(target)
    }

    /// The target of this name.
    pub(crate) fn get(&self, tenant: &Tenant, name: &Name) -> Option<&T> {
        self.tenants
            .get(tenant)?
            .agents
            .get(name)
            .map(|(target, _)| target)
    }

    /// All targets.
    pub(crate) fn all(&self) -> impl Iterator<Item = &T> {
        self.tenants
            .values()
            .flat_map(|routes| routes.agents.values().map(|(target, _)| target))
    }

    /// Everybody whom `message` is for, once each.
    pub(crate) fn targets(&self, message: &Message) -> Targets<T> {
        let Some(routes) = self.routes(message.tenant()) else {
            return Targets::new();
        };
        let sender = message.sender().name();
        match message.audience() {
            Audience::Agent(name) => routes
                .agents
                .get(name)
                .map(|(target, _)| target.clone())
                .into_iter()
                .collect(),
            Audience::Pool(_) => Targets::new(),
            Audience::Everyone => {
                let others = routes.agents.iter().filter(|(name, _)| *name != sender);
                others.map(|(_, (target, _))| target.clone()).collect()
            }
            Audience::Topics([one]) => {
                let subscribers = routes.topics.get(one).into_iter().flatten();
                subscribers
                    .filter(|(name, _)| name != sender)
                    .map(|(_, target)| target.clone())
                    .collect()
            }
            Audience::Topics(several) => {
                let mut seen: SmallVec<[&Name; 8]> = SmallVec::new();
                let mut targets = Targets::new();
                for (name, target) in several
                    .iter()
                    .filter_map(|topic| routes.topics.get(topic))
                    .flatten()
                {
                    if name != sender && !seen.contains(&name) {
                        seen.push(name);
                        targets.push(target.clone());
                    }
                }
                targets
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{NOW, message, name, sender, topic};

    fn table() -> RoutingTable<&'static str> {
        let mut table = RoutingTable::default();
        let tenant = Tenant::default();
        assert!(table.insert(
            &tenant,
            &name("a"),
            &[topic("t"), topic("u"), topic("t")],
            "a"
        ));
        assert!(table.insert(&tenant, &name("b"), &[topic("t")], "b"));
        assert!(table.insert(&tenant, &name("c"), &[], "c"));
        table
    }

    fn sorted(targets: Targets<&'static str>) -> Vec<&'static str> {
        let mut targets = targets.into_vec();
        targets.sort_unstable();
        targets
    }

    #[test]
    fn topics_reach_their_subscribers_once_and_not_the_sender() {
        assert_eq!(sorted(table().targets(&message("x", "t", ""))), ["a", "b"]);
        assert_eq!(sorted(table().targets(&message("a", "t", ""))), ["b"]);
        let both = message("x", "t", "")
            .edit()
            .topic(topic("u"))
            .build(NOW)
            .unwrap();
        assert_eq!(sorted(table().targets(&both)), ["a", "b"]);
        assert!(table().targets(&message("x", "nobody", "")).is_empty());
    }

    #[test]
    fn finding_one_agrees_with_listing_all() {
        let table = table();
        let to = |to: &str| {
            Message::builder(sender("c"))
                .to(name(to))
                .build(NOW)
                .unwrap()
        };
        let messages = [
            message("x", "t", ""),
            message("x", "u", ""),
            message("a", "u", ""),
            message("x", "nobody", ""),
            to("c"),
            to("nobody"),
            Message::builder(sender("c"))
                .broadcast()
                .build(NOW)
                .unwrap(),
        ];
        for message in messages {
            match (table.find(&message), &table.targets(&message)[..]) {
                (Found::Nobody, []) | (Found::Several, _) => {}
                (Found::One(found), [listed]) => assert_eq!(found, listed),
                (_, listed) => panic!("{message:?}: {listed:?}"),
            }
        }
    }

    #[test]
    fn a_recipient_alone_decides_and_may_be_the_sender() {
        let to = |to: &str| {
            Message::builder(sender("c"))
                .topic(topic("t"))
                .to(name(to))
                .build(NOW)
                .unwrap()
        };
        assert_eq!(sorted(table().targets(&to("c"))), ["c"]);
        assert!(table().targets(&to("nobody")).is_empty());
    }

    #[test]
    fn broadcast_reaches_all_others_of_the_tenant() {
        let all = Message::builder(sender("c"))
            .broadcast()
            .build(NOW)
            .unwrap();
        assert_eq!(sorted(table().targets(&all)), ["a", "b"]);
    }

    #[test]
    fn a_taken_name_changes_nothing_and_a_removed_one_leaves_nothing() {
        let mut table = table();
        let tenant = Tenant::default();
        assert!(!table.insert(&tenant, &name("a"), &[topic("v")], "thief"));
        assert!(table.targets(&message("x", "v", "")).is_empty());
        for agent in ["a", "b", "c"] {
            assert_eq!(table.remove(&tenant, &name(agent)), Some(agent));
        }
        assert!(table.tenants.is_empty() && table.remove(&tenant, &name("a")).is_none());
    }
}
