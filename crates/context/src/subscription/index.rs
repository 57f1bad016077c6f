//! Finding the subscriptions that a change matches, without asking all of them. Pure.
//!
//! Each subscription is filed under the anchors of its predicate ([`Predicate::anchors`](super::Predicate::anchors));
//! a change is looked up by everything it could be filed under: page, path, each directory above it, source, scope,
//! data type. Keys are hashes, so a look-up may find too many but never too few; the exact predicate decides.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher,
    sync::Arc,
};

use volary_kernel::{Name, Tenant};

use super::{Anchor, Subscription};
use crate::page::{KindName, Page};

/// Longest subscription id, in bytes: it becomes part of coalescing keys.
const ID_MAX: usize = 128;

/// Bounds of an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexConfig {
    /// Most subscriptions. Default: 100,000.
    pub max_subscriptions: usize,
    /// Most subscriptions of one tenant that nothing anchors, each of which is asked for every change.
    /// Default: 1,000, about a quarter of a millisecond for each change.
    pub max_unanchored: usize,
}

impl Default for IndexConfig {
    fn default() -> Self {
        Self {
            max_subscriptions: 100_000,
            max_unanchored: 1_000,
        }
    }
}

/// A subscription that is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubscriptionError {
    /// Another one has this id.
    #[error("subscription `{0}` exists already")]
    Duplicate(Arc<str>),
    /// The id is empty or too long.
    #[error("subscription id must have 1 to {ID_MAX} bytes, found {0}")]
    Id(usize),
    /// The index holds as many as it may.
    #[error("{0} subscriptions exist already, which is the limit")]
    Full(usize),
    /// Too many subscriptions of the tenant would have to be asked for every change.
    #[error(
        "tenant `{tenant}` has {limit} subscriptions already that every change must be compared with, which is the \
         limit: add a source, a data type, or a path that begins with a directory"
    )]
    Unanchored {
        /// The tenant.
        tenant: Tenant,
        /// The limit.
        limit: usize,
    },
}

/// The subscriptions of a node.
#[derive(Debug)]
pub struct SubscriptionIndex {
    config: IndexConfig,
    slots: Vec<Option<Arc<Subscription>>>,
    free: Vec<u32>,
    ids: HashMap<Arc<str>, u32>,
    anchored: HashMap<u64, Vec<u32>>,
    unanchored: HashMap<Tenant, Vec<u32>>,
    hasher: RandomState,
}

impl Default for SubscriptionIndex {
    fn default() -> Self {
        Self::new(IndexConfig::default())
    }
}

impl SubscriptionIndex {
    /// An empty index.
    pub fn new(config: IndexConfig) -> Self {
        Self {
            config,
            slots: Vec::new(),
            free: Vec::new(),
            ids: HashMap::new(),
            anchored: HashMap::new(),
            unanchored: HashMap::new(),
            hasher: RandomState::new(),
        }
    }

    /// Number of subscriptions.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Adds a subscription.
    ///
    /// # Errors
    /// [`SubscriptionError`]; nothing was added.
    pub fn add(&mut self, subscription: Subscription) -> Result<(), SubscriptionError> {
        if subscription.id.is_empty() || subscription.id.len() > ID_MAX {
            return Err(SubscriptionError::Id(subscription.id.len()));
        }
        if self.ids.contains_key(&subscription.id) {
            return Err(SubscriptionError::Duplicate(subscription.id));
        }
        if self.ids.len() >= self.config.max_subscriptions {
            return Err(SubscriptionError::Full(self.config.max_subscriptions));
        }
        let anchors = subscription.predicate.anchors();
        let tenant = subscription.tenant.clone();
        if anchors.is_none()
            && self.unanchored.get(&tenant).map_or(0, Vec::len) >= self.config.max_unanchored
        {
            return Err(SubscriptionError::Unanchored {
                tenant,
                limit: self.config.max_unanchored,
            });
        }
        let id = subscription.id.clone();
        let slot = self.put(Arc::new(subscription));
        self.ids.insert(id, slot);
        match anchors {
            None => self.unanchored.entry(tenant).or_default().push(slot),
            Some(anchors) => {
                for anchor in anchors {
                    let key = self.anchor_key(&tenant, &anchor);
                    self.anchored.entry(key).or_default().push(slot);
                }
            }
        }
        Ok(())
    }

    fn put(&mut self, subscription: Arc<Subscription>) -> u32 {
        if let Some(slot) = self.free.pop() {
            self.slots[slot as usize] = Some(subscription);
            return slot;
        }
        self.slots.push(Some(subscription));
        u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
    }

    /// Takes a subscription out; `None` if there is none of this id.
    pub fn remove(&mut self, id: &str) -> Option<Arc<Subscription>> {
        let slot = self.ids.remove(id)?;
        let removed = self.slots[slot as usize].take()?;
        self.free.push(slot);
        match removed.predicate.anchors() {
            None => forget(&mut self.unanchored, &removed.tenant, slot),
            Some(anchors) => {
                for anchor in anchors {
                    let key = self.anchor_key(&removed.tenant, &anchor);
                    forget(&mut self.anchored, &key, slot);
                }
            }
        }
        Some(removed)
    }

    /// Takes out every subscription of an agent; says how many.
    pub fn remove_agent(&mut self, agent: &Name) -> usize {
        let all = self.slots.iter().flatten();
        let ids: Vec<_> = all
            .filter(|held| held.agent == *agent)
            .map(|held| held.id.clone())
            .collect();
        ids.iter().filter(|id| self.remove(id).is_some()).count()
    }

    /// Every subscription, ordered by id.
    pub fn all(&self) -> Vec<Arc<Subscription>> {
        let mut all: Vec<_> = self.slots.iter().flatten().cloned().collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }

    /// The subscriptions that a change of `kind` of `page` matches, each once, in the order they were filed.
    pub fn matching(&self, page: &Page, kind: KindName) -> Vec<Arc<Subscription>> {
        let mut slots = Vec::new();
        self.candidates(page, &mut slots);
        slots.sort_unstable();
        slots.dedup();
        let held = slots
            .into_iter()
            .filter_map(|slot| self.slots[slot as usize].as_ref());
        held.filter(|held| held.tenant == page.tenant && held.predicate.matches(page, kind))
            .cloned()
            .collect()
    }

    fn candidates(&self, page: &Page, slots: &mut Vec<u32>) {
        let tenant = page.tenant.as_str();
        let path = page.id.path();
        let mut look = |tag: u8, text: &str| {
            if let Some(found) = self
                .anchored
                .get(&self.hasher.hash_one((tenant, tag, text)))
            {
                slots.extend_from_slice(found);
            }
        };
        look(PAGE, page.id.as_str());
        look(PATH, path);
        look(SOURCE, page.source.as_str());
        look(SCOPE, page.scope.as_str());
        look(DATA_TYPE, &page.data_type);
        for (slash, _) in path.match_indices('/') {
            look(DIRECTORY, &path[..=slash]);
        }
        slots.extend(self.unanchored.get(&page.tenant).into_iter().flatten());
    }

    fn anchor_key(&self, tenant: &Tenant, anchor: &Anchor) -> u64 {
        let (tag, text) = match anchor {
            Anchor::Page(page) => (PAGE, page.as_str()),
            Anchor::Path(path) => (PATH, path.as_str()),
            Anchor::Directory(directory) => (DIRECTORY, directory.as_str()),
            Anchor::Source(source) => (SOURCE, source.as_str()),
            Anchor::Scope(scope) => (SCOPE, scope.as_str()),
            Anchor::DataType(data_type) => (DATA_TYPE, &**data_type),
        };
        self.hasher.hash_one((tenant.as_str(), tag, text))
    }
}

const PAGE: u8 = 0;
const PATH: u8 = 1;
const DIRECTORY: u8 = 2;
const SOURCE: u8 = 3;
const SCOPE: u8 = 4;
const DATA_TYPE: u8 = 5;

fn forget<K: Eq + std::hash::Hash>(lists: &mut HashMap<K, Vec<u32>>, key: &K, slot: u32) {
    if let Some(list) = lists.get_mut(key) {
        list.retain(|held| *held != slot);
        if list.is_empty() {
            lists.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        page::{ContentHash, PageId, Scope},
        subscription::{Criteria, Predicate},
    };
    use proptest::prelude::*;
    use serde_json::json;
    use std::collections::BTreeMap;

    fn page(tenant: &str, source: &str, path: &str, data_type: &str, scope: &str) -> Page {
        let source = Name::new(source).unwrap();
        Page {
            id: PageId::new(&source, path),
            source,
            scope: Scope::new(scope).unwrap(),
            tenant: tenant.parse().unwrap(),
            data_type: data_type.into(),
            version: 1,
            content_hash: ContentHash::of(b""),
            metadata: BTreeMap::new(),
            links: Vec::new(),
        }
    }

    fn subscription(id: &str, tenant: &str, criteria: &Criteria) -> Subscription {
        Subscription::new(
            id,
            Name::new("agent").unwrap(),
            tenant.parse().unwrap(),
            criteria,
        )
        .unwrap()
    }

    fn written(value: serde_json::Value) -> Criteria {
        serde_json::from_value(value).unwrap()
    }

    fn ids(index: &SubscriptionIndex, page: &Page) -> Vec<String> {
        index
            .matching(page, KindName::Added)
            .iter()
            .map(|held| held.id.to_string())
            .collect()
    }

    #[test]
    fn another_tenants_pages_never_match() {
        let mut index = SubscriptionIndex::default();
        index
            .add(subscription(
                "a",
                "acme",
                &written(json!({"source": "notes"})),
            ))
            .unwrap();
        index
            .add(subscription("b", "acme", &written(json!({"path": "*"}))))
            .unwrap();
        assert_eq!(
            ids(&index, &page("acme", "notes", "x", "file", "s")),
            ["a", "b"]
        );
        assert_eq!(
            ids(&index, &page("other", "notes", "x", "file", "s")),
            Vec::<String>::new()
        );
    }

    #[test]
    fn ids_are_unique_bounded_and_free_again_after_removal() {
        let mut index = SubscriptionIndex::default();
        let one = || subscription("a", "t", &written(json!({"source": "notes"})));
        index.add(one()).unwrap();
        assert_eq!(
            index.add(one()),
            Err(SubscriptionError::Duplicate("a".into()))
        );
        assert!(index.remove("a").is_some() && index.remove("a").is_none());
        assert_eq!(index.add(one()), Ok(()));
        assert_eq!(index.remove_agent(&Name::new("agent").unwrap()), 1);
        assert!(index.is_empty());
        let long = Subscription {
            id: "x".repeat(129).into(),
            ..one()
        };
        assert_eq!(index.add(long), Err(SubscriptionError::Id(129)));
    }

    #[test]
    fn capacity_and_unanchored_subscriptions_are_bounded_with_a_hint() {
        let mut index = SubscriptionIndex::new(IndexConfig {
            max_subscriptions: 3,
            max_unanchored: 1,
        });
        let wide = |id| subscription(id, "t", &written(json!({"path": "*.md"})));
        index.add(wide("a")).unwrap();
        let error = index.add(wide("b")).unwrap_err();
        assert!(error.to_string().contains("add a source"), "{error}");
        for id in ["c", "d"] {
            index
                .add(subscription(id, "t", &written(json!({"source": "s"}))))
                .unwrap();
        }
        let more = subscription("e", "t", &written(json!({"source": "s"})));
        assert_eq!(index.add(more), Err(SubscriptionError::Full(3)));
    }

    fn criteria() -> impl Strategy<Value = Criteria> {
        let source = "[ab]".prop_map(|name| written(json!({"source": name})));
        let path = prop::sample::select(vec![
            "*.md", "d/**", "d/e/*.md", "x", "/x", "d/e/x.md", "**/e/*", "d/*",
        ])
        .prop_map(|path| written(json!({"path": path})));
        let data_type = "[ft]".prop_map(|text| written(json!({"dataType": text})));
        let scope = "[st]".prop_map(|text| written(json!({"scope": text})));
        let pages = prop::sample::subsequence(vec!["a:x", "b:x", "a:d/x", "a:d/e/x.md"], 1..3)
            .prop_map(|pages| written(json!({"pages": pages})));
        let kinds = Just(written(json!({"kinds": ["added"]})));
        let leaf = prop_oneof![source, path, data_type, scope, pages, kinds];
        leaf.prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 1..4).prop_map(|parts| Criteria {
                    all: Some(parts),
                    ..Criteria::default()
                }),
                prop::collection::vec(inner.clone(), 1..4).prop_map(|parts| Criteria {
                    any: Some(parts),
                    ..Criteria::default()
                }),
                inner.prop_map(|part| Criteria {
                    not: Some(Box::new(part)),
                    ..Criteria::default()
                }),
            ]
        })
    }

    proptest! {
        /// The index finds exactly what asking every subscription finds, also after removals.
        #[test]
        fn the_index_agrees_with_brute_force(
            held in prop::collection::vec((criteria(), any::<bool>(), any::<bool>()), 1..20),
            path in prop::sample::select(vec!["x", "x.md", "d/x", "d/e/x.md", "d/e/f/x.md", "e/y"]),
            (source, data_type, scope) in ("[ab]", "[ft]", "[st]"),
            added in any::<bool>(),
        ) {
            let mut index = SubscriptionIndex::default();
            let page = page("t0", &source, path, &data_type, &scope);
            let kind = if added { KindName::Added } else { KindName::Invalidated };
            let mut expected = Vec::new();
            for (n, (criteria, same_tenant, removed)) in held.iter().enumerate() {
                let id = format!("{n:03}");
                index.add(subscription(&id, if *same_tenant { "t0" } else { "t1" }, criteria)).unwrap();
                if *removed {
                    index.remove(&id);
                } else if *same_tenant && Predicate::new(criteria).unwrap().matches(&page, kind) {
                    expected.push(id);
                }
            }
            let mut found: Vec<_> = index.matching(&page, kind).iter().map(|held| held.id.to_string()).collect();
            found.sort();
            prop_assert_eq!(found, expected);
        }
    }
}
