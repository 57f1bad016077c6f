//! Tests of what is remembered of messages from elsewhere: that a peer can not make it grow without bound.

use std::sync::Arc;

use volary_kernel::clock::ManualClock;
use volary_store::{MemoryConfig, MemoryStore};

use super::*;
use crate::test_util::{message, name};

const MOST: usize = 4;

struct World {
    store: SharedStore,
    seen: Seen,
    remembered: Vec<SeenId>,
}

impl World {
    async fn new() -> Self {
        let config = MemoryConfig::new(name("b"));
        let store: SharedStore =
            Arc::new(MemoryStore::new(config, ManualClock::default().shared()));
        let seen = SeenConfig {
            max_confirmed: MOST,
            max_pinned: MOST,
            ..SeenConfig::default()
        };
        let seen = Seen::open(&store, seen, &Metrics::default()).await.unwrap();
        Self {
            store,
            seen,
            remembered: Vec::new(),
        }
    }

    async fn take(&mut self, kept: Kept) {
        let id = SeenId::of(&message("a", "t", "x"));
        let posted = Posted {
            admission: Admission::Queued,
            deliveries: Vec::new(),
            entry: None,
        };
        let mut tx = Batch::new();
        self.seen
            .remember(&mut tx, id, "hash".to_owned(), &posted, kept);
        self.store.commit(tx).await.unwrap();
        self.remembered.push(id);
    }

    /// How many are remembered, in memory and in the store.
    async fn size(&self) -> (usize, usize) {
        let stored = self.store.scan(PREFIX, None, PAGE_MAX).await.unwrap();
        (self.seen.table.lock().known.len(), stored.len())
    }

    async fn before(&self, id: SeenId) -> Before {
        let before = self.seen.before(&self.store, id, || "hash".to_owned());
        before.await.unwrap()
    }
}

fn pin(order: u64) -> Kept {
    let peer = name("p");
    Kept::Pinned(Pin { peer, order })
}

#[tokio::test]
async fn what_a_peer_sends_once_is_forgotten_oldest_first() {
    let mut world = World::new().await;
    for _ in 0..3 * MOST {
        world.take(Kept::Once(name("p"))).await;
    }
    assert_eq!(world.size().await, (MOST, MOST));
    let (forgotten, kept) = world.remembered.split_at(2 * MOST);
    for id in forgotten {
        assert_eq!(world.before(*id).await, Before::Never);
    }
    for id in kept {
        assert!(matches!(world.before(*id).await, Before::Same(_)));
    }
}

#[tokio::test]
async fn a_peer_that_uses_one_number_for_many_messages_fills_nothing() {
    let mut world = World::new().await;
    for _ in 0..3 * MOST {
        world.take(pin(7)).await;
    }
    assert_eq!(world.size().await, (MOST + 1, MOST + 1));
    assert!(world.seen.has_room(&name("p")));
    // The last is the one that is pinned.
    let last = *world.remembered.last().unwrap();
    assert!(matches!(world.before(last).await, Before::Same(_)));
}

#[tokio::test]
async fn the_largest_mark_forgets_nothing_that_is_in_the_bound_and_opens_no_number_again() {
    let mut world = World::new().await;
    for order in 0..MOST as u64 {
        world.take(pin(order)).await;
    }
    let mut tx = Batch::new();
    world.seen.confirm(&mut tx, &name("p"), u64::MAX);
    world.store.commit(tx).await.unwrap();
    for id in &world.remembered {
        assert!(matches!(world.before(*id).await, Before::Same(_)));
    }
    let again = Pin {
        peer: name("p"),
        order: u64::MAX - 1,
    };
    assert!(world.seen.is_below(&again).is_some());
    // A lower mark after it changes nothing, after a restart neither.
    let mut tx = Batch::new();
    world.seen.confirm(&mut tx, &name("p"), 1);
    assert!(tx.is_empty());
    let reopened = Seen::open(&world.store, SeenConfig::default(), &Metrics::default()).await;
    assert!(reopened.unwrap().is_below(&again).is_some());
}
