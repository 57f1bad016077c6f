//! Watching records.

use volary_kernel::clock;

use super::{DEADLINE, Fixture, key, put};
use crate::{
    batch::{Batch, Expect},
    watch::{ChangeKind, WATCH_CAPACITY, Watch, WatchEvent},
};

async fn next(watch: &mut Watch) -> WatchEvent {
    clock::timeout(DEADLINE, watch.next())
        .await
        .expect("news in time")
        .expect("an open store")
}

pub(super) async fn changes_arrive_in_order(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    let mut watch = store.watch("news/");
    put(store, "newsx", "x", Expect::Any).await.expect("a put");
    let mut tx = Batch::new();
    tx.put(key("news/a"), "1", Expect::Any)
        .put(key("news/b"), "1", Expect::Any);
    let first = store.commit(tx).await.expect("a put").version;
    let mut tx = Batch::new();
    tx.delete(key("news/a"), Expect::Any);
    let second = store.commit(tx).await.expect("a delete").version;
    let wanted = [
        ("news/a", ChangeKind::Put, first),
        ("news/b", ChangeKind::Put, first),
        ("news/a", ChangeKind::Delete, second),
    ];
    for (at, kind, version) in wanted {
        let WatchEvent::Changed(change) = next(&mut watch).await else {
            panic!("nothing was missed")
        };
        assert_eq!(
            (change.key.as_str(), change.kind, change.version),
            (at, kind, version)
        );
    }
    assert_eq!(watch.try_next(), None, "only what was asked for");
}

pub(super) async fn a_slow_watcher_is_told_that_it_lagged(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    let mut watch = store.watch("flood/");
    for part in 0..3 {
        let mut tx = Batch::new();
        for index in 0..WATCH_CAPACITY / 2 {
            tx.put(key(&format!("flood/{part}/{index}")), "x", Expect::Any);
        }
        store.commit(tx).await.expect("a put");
    }
    for _ in 0..WATCH_CAPACITY {
        assert!(matches!(next(&mut watch).await, WatchEvent::Changed(_)));
    }
    assert_eq!(next(&mut watch).await, WatchEvent::Lagged);
    put(store, "flood/after", "x", Expect::Any)
        .await
        .expect("a put");
    let WatchEvent::Changed(change) = next(&mut watch).await else {
        panic!("complete again after a rescan")
    };
    assert_eq!(change.key.as_str(), "flood/after");
}
