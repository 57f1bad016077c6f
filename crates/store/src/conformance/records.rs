//! Records: versions, conflicts, atomicity, time to live, scans.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use parking_lot::Mutex;

use super::{Fixture, entry, get, key, put, text};
use crate::{
    batch::{Batch, Expect, VALUE_MAX},
    error::{Found, StoreError},
    store::PAGE_MAX,
};

pub(super) async fn put_get_and_delete(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    assert_eq!(get(store, "pgd/a").await, None);
    let first = put(store, "pgd/a", "1", Expect::Absent)
        .await
        .expect("a first put");
    let second = put(store, "pgd/a", "2", Expect::Version(first.version))
        .await
        .expect("a put on what is there");
    assert!(second.version > first.version, "versions grow");
    let record = get(store, "pgd/a").await.expect("it is there");
    assert_eq!(
        (record.version, record.value.as_ref(), record.expires),
        (second.version, b"2".as_ref(), None)
    );
    let mut tx = Batch::new();
    tx.delete(key("pgd/a"), Expect::Version(second.version))
        .delete(key("pgd/none"), Expect::Any);
    store.commit(tx).await.expect("a delete");
    assert_eq!(get(store, "pgd/a").await, None);
    let third = put(store, "pgd/a", "3", Expect::Absent)
        .await
        .expect("a put after a delete");
    assert!(third.version > second.version, "versions never come again");
    let many = store
        .get_many(&[key("pgd/none"), key("pgd/a")])
        .await
        .expect("reading works");
    assert_eq!(
        many.iter().map(Option::is_some).collect::<Vec<_>>(),
        [false, true]
    );
}

pub(super) async fn of_two_writers_one_wins(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    let seen = put(store, "race/a", "0", Expect::Any)
        .await
        .expect("a put")
        .version;
    let values: Vec<_> = (0..16).map(|writer| writer.to_string()).collect();
    let ends = join_all(
        values
            .iter()
            .map(|value| put(store, "race/a", value, Expect::Version(seen))),
    )
    .await;
    let won: Vec<_> = ends
        .iter()
        .enumerate()
        .filter(|(_, end)| end.is_ok())
        .map(|(writer, _)| writer)
        .collect();
    assert_eq!(won.len(), 1, "one writer wins: {ends:?}");
    assert_eq!(
        text(store, "race/a").await,
        Some(won[0].to_string()),
        "what the winner wrote stays"
    );
    for end in ends.into_iter().filter_map(Result::err) {
        let StoreError::Conflict {
            key,
            expected,
            found,
        } = end
        else {
            panic!("a typed conflict, not {end}")
        };
        assert_eq!((key.as_str(), expected), ("race/a", Expect::Version(seen)));
        assert!(matches!(found, Found::Version(version) if version > seen));
    }
}

pub(super) async fn a_conflict_leaves_no_part_of_its_batch(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    put(store, "atom/old", "old", Expect::Any)
        .await
        .expect("a put");
    let head = *store.head().borrow();
    let mut tx = Batch::new();
    tx.put(key("atom/new"), "new", Expect::Absent)
        .delete(key("atom/old"), Expect::Any);
    tx.append(entry("test.atom", "{}"));
    tx.put(key("atom/missing"), "x", Expect::Version(1));
    let end = store.commit(tx).await;
    assert!(
        matches!(
            end,
            Err(StoreError::Conflict {
                found: Found::Absent,
                ..
            })
        ),
        "{end:?}"
    );
    assert_eq!(text(store, "atom/new").await, None);
    assert_eq!(text(store, "atom/old").await.as_deref(), Some("old"));
    assert_eq!(*store.head().borrow(), head, "nothing was appended");
}

pub(super) async fn a_conflict_disturbs_no_other_batch(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    let names: Vec<_> = (0..64).map(|index| format!("mixed/{index:02}")).collect();
    let commits = names.iter().enumerate().map(|(index, name)| async move {
        put(
            store,
            name,
            "x",
            if index % 3 == 0 {
                Expect::Version(u64::MAX)
            } else {
                Expect::Absent
            },
        )
        .await
    });
    for (index, end) in join_all(commits).await.into_iter().enumerate() {
        assert_eq!(end.is_ok(), index % 3 != 0, "batch {index}: {end:?}");
        assert_eq!(
            get(store, &names[index]).await.is_some(),
            index % 3 != 0,
            "batch {index}"
        );
    }
}

pub(super) async fn checks_guard_without_writing(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    let version = put(store, "guard/lock", "x", Expect::Any)
        .await
        .expect("a put")
        .version;
    let guarded = |expect| {
        let mut tx = Batch::new();
        tx.check(key("guard/lock"), expect)
            .put(key("guard/data"), "y", Expect::Any);
        store.commit(tx)
    };
    guarded(Expect::Version(version))
        .await
        .expect("the check holds");
    assert!(matches!(
        guarded(Expect::Absent).await,
        Err(StoreError::Conflict { .. })
    ));
    assert_eq!(
        get(store, "guard/lock").await.map(|record| record.version),
        Some(version),
        "a check writes nothing"
    );
}

pub(super) async fn the_later_of_two_puts_stays(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    let mut tx = Batch::new();
    tx.put(key("later/a"), "1", Expect::Absent)
        .put(key("later/a"), "2", Expect::Absent);
    tx.put(key("later/b"), "1", Expect::Any)
        .delete(key("later/b"), Expect::Any);
    store
        .commit(tx)
        .await
        .expect("expectations are about the state before the batch");
    assert_eq!(text(store, "later/a").await.as_deref(), Some("2"));
    assert_eq!(text(store, "later/b").await, None);
}

pub(super) async fn time_to_live_ends_at_once(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    let mut tx = Batch::new();
    tx.put_ttl(key("ttl/a"), "x", Expect::Absent, Duration::from_secs(10));
    let version = store.commit(tx).await.expect("a put").version;
    fixture.clock.advance(Duration::from_secs(9));
    assert!(
        get(store, "ttl/a")
            .await
            .is_some_and(|record| record.expires.is_some()),
        "it lives for its time"
    );
    fixture.clock.advance(Duration::from_secs(1));
    assert_eq!(get(store, "ttl/a").await, None);
    assert_eq!(store.scan("ttl/", None, 10).await.expect("a scan"), []);
    let late = put(store, "ttl/a", "y", Expect::Version(version)).await;
    assert!(
        matches!(
            late,
            Err(StoreError::Conflict {
                found: Found::Absent,
                ..
            })
        ),
        "{late:?}"
    );
    put(store, "ttl/a", "y", Expect::Absent)
        .await
        .expect("its key is free");
    fixture.clock.advance(Duration::from_secs(3600));
    assert_eq!(
        text(store, "ttl/a").await.as_deref(),
        Some("y"),
        "a put without time to live ends the old one's"
    );
}

pub(super) async fn scan_pages_in_key_order(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    let mut tx = Batch::new();
    for index in (0..25).rev() {
        tx.put(key(&format!("page/{index:02}")), "x", Expect::Any);
    }
    tx.put(key("page0"), "x", Expect::Any)
        .put(key("page.x"), "x", Expect::Any);
    store.commit(tx).await.expect("a put");
    let (mut after, mut seen) = (None, Vec::new());
    loop {
        let page = store
            .scan("page/", after.as_ref(), 10)
            .await
            .expect("a scan");
        seen.extend(page.iter().map(|record| record.key.to_string()));
        after = page.last().map(|record| record.key.clone());
        if page.len() < 10 {
            break;
        }
    }
    assert_eq!(
        seen,
        (0..25)
            .map(|index| format!("page/{index:02}"))
            .collect::<Vec<_>>()
    );
    assert_eq!(store.scan("page/", None, 0).await.expect("a scan").len(), 0);
    assert!(
        store
            .scan("", None, usize::MAX)
            .await
            .expect("a scan")
            .len()
            <= PAGE_MAX
    );
}

pub(super) async fn scan_under_writes_sees_each_lasting_record_once(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    let mut tx = Batch::new();
    for index in 0..100 {
        tx.put(key(&format!("busy/{index:03}")), "lasting", Expect::Any);
    }
    store.commit(tx).await.expect("a put");
    let write = async {
        for round in 0..50 {
            let mut tx = Batch::new();
            tx.put(key(&format!("busy/{:03}.x", round * 2)), "new", Expect::Any);
            tx.delete(
                key(&format!("busy/{:03}.x", round * 2 - round % 7)),
                Expect::Any,
            );
            tx.put(key(&format!("busy/{round:03}")), "lasting", Expect::Any);
            store.commit(tx).await.expect("a write");
        }
    };
    let scan = async {
        for _ in 0..5 {
            let (mut after, mut seen) = (None, Vec::new());
            loop {
                let page = store
                    .scan("busy/", after.as_ref(), 7)
                    .await
                    .expect("a scan");
                seen.extend(
                    page.iter()
                        .filter(|record| record.value == "lasting")
                        .map(|record| record.key.to_string()),
                );
                after = page.last().map(|record| record.key.clone());
                if page.len() < 7 {
                    break;
                }
            }
            assert_eq!(
                seen,
                (0..100)
                    .map(|index| format!("busy/{index:03}"))
                    .collect::<Vec<_>>()
            );
        }
    };
    futures_util::join!(write, scan);
}

pub(super) async fn large_values_come_back_whole(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    let sizes = [
        0,
        1,
        4096,
        (256 << 10) - 1,
        256 << 10,
        (256 << 10) + 1,
        3 << 20,
    ];
    for size in sizes {
        let value: Vec<u8> = (0..size).map(|index| (index * 31 % 251) as u8).collect();
        let body = format!("{{\"v\":1,\"x\":\"{}\"}}", "y".repeat(size));
        let mut tx = Batch::new();
        tx.put(key("large/a"), value.clone(), Expect::Any);
        tx.append(entry("test.large", &body));
        let seq = store.commit(tx).await.expect("a put").seqs[0];
        assert!(
            get(store, "large/a")
                .await
                .is_some_and(|record| record.value == value),
            "value of {size} bytes"
        );
        assert!(
            store.scan("large/", None, 9).await.expect("a scan")[0].value == value,
            "value of {size} bytes"
        );
        let page = store
            .read(seq, &crate::Filter::all(), 1)
            .await
            .expect("a read");
        assert!(page.rows[0].body == body, "body of {size} bytes");
    }
    let mut tx = Batch::new();
    tx.delete(key("large/a"), Expect::Any);
    store.commit(tx).await.expect("a delete");
    assert_eq!(get(store, "large/a").await, None);
}

pub(super) async fn what_is_too_large_or_malformed_is_refused(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    let mut tx = Batch::new();
    tx.put(key("refuse/a"), vec![0; VALUE_MAX + 1], Expect::Any);
    assert!(matches!(
        store.commit(tx).await,
        Err(StoreError::TooLarge {
            limit: VALUE_MAX,
            ..
        })
    ));
    for kind in ["", "No", "a b", "x\n"] {
        let mut tx = Batch::new();
        tx.append(entry(kind, "{}"));
        assert!(
            matches!(store.commit(tx).await, Err(StoreError::Invalid(_))),
            "{kind:?}"
        );
    }
}

pub(super) async fn hooks_run_once_in_commit_order(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    let order = Arc::new(Mutex::new(Vec::new()));
    let commits = (0..100).map(|index: u32| {
        let mut tx = Batch::new();
        let fails = index.is_multiple_of(5);
        tx.put(
            key(&format!("hook/{index}")),
            "x",
            if fails {
                Expect::Version(1)
            } else {
                Expect::Any
            },
        );
        let seen = order.clone();
        tx.on_commit(move |committed| seen.lock().push(committed.version));
        store.commit(tx)
    });
    let mut versions: Vec<_> = join_all(commits)
        .await
        .into_iter()
        .flatten()
        .map(|end| end.version)
        .collect();
    versions.sort_unstable();
    assert_eq!(versions.len(), 80);
    assert_eq!(
        *order.lock(),
        versions,
        "hooks of failed batches do not run, others in commit order"
    );
}
