//! Damaged files: whatever byte flips, either it is found or nothing that was stored has changed.

use std::{fs::OpenOptions, os::unix::fs::FileExt as _, path::Path, time::Duration};

use volary_store::{
    Batch, Expect, Filter, Key, OnDamage, Seq, SqliteConfig, Store as _, StoreError,
};

use crate::common::{Bench, Numbers, batch, content, entry, thorough, write};

fn flip(file: &Path, at: u64, bit: u64) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(file)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
}

/// A database with something of everything in it, partly in the log only, as a kill would leave it.
async fn lived() -> Bench {
    let bench = Bench::new();
    let store = bench.open().await;
    for index in 0..150 {
        write(
            &store,
            &format!("a/{index:04}"),
            &"x".repeat(index * 7 % 900),
        )
        .await
        .unwrap();
    }
    let mut tx = Batch::new();
    tx.put(Key::new("big").unwrap(), vec![7; 600 << 10], Expect::Any);
    tx.append(entry(format!("\"{}\"", "y".repeat(300 << 10))));
    tx.put_ttl(
        Key::new("short").unwrap(),
        "z",
        Expect::Any,
        Duration::from_secs(1),
    );
    store.commit(tx).await.unwrap();
    store.close().await;
    let store = bench.open().await;
    for index in 100..220 {
        let mut tx = batch(&format!("a/{index:04}"), &"w".repeat(index * 5 % 700));
        tx.delete(
            Key::new(format!("a/{:04}", index - 100)).unwrap(),
            Expect::Any,
        );
        store.commit(tx).await.unwrap();
    }
    let killed = bench.snapshot();
    store.close().await;
    killed
}

async fn every_flip_is_found_or_harmless(file: &str) {
    let bench = lived().await;
    assert!(bench.verify().is_ok(), "{:?}", bench.verify());
    let before = content(&bench.database()).unwrap();
    let copy = bench.snapshot();
    let length = std::fs::metadata(bench.dir.path().join(file))
        .unwrap()
        .len();
    let mut numbers = Numbers(0x5eed_0000_0000_0001 ^ length);
    let (mut found, mut named) = (0, 0);
    let rounds = if thorough() { 4000 } else { 200 };
    for _ in 0..rounds {
        copy.take_from(
            bench.dir.path(),
            &["volary.db", "volary.db-wal", "volary.db.head"],
        );
        let (at, bit) = (numbers.below(length), numbers.below(8));
        flip(&copy.dir.path().join(file), at, bit);
        let report = copy.verify();
        if report.is_ok() {
            let after = content(&copy.database());
            assert!(
                after.as_ref().is_ok_and(|after| *after == before),
                "flip of bit {bit} of byte {at} of {file} is not found"
            );
        } else {
            found += 1;
            named += usize::from(report.first_bad().is_some());
        }
    }
    assert!(
        found > rounds / 3,
        "most of the file matters: {found} of {rounds}"
    );
    assert!(named > 0, "bad entries are named");
}

#[tokio::test]
async fn every_flipped_byte_of_the_database_is_found_or_harmless() {
    every_flip_is_found_or_harmless("volary.db").await;
}

#[tokio::test]
async fn every_flipped_byte_of_the_log_is_found_or_harmless() {
    every_flip_is_found_or_harmless("volary.db-wal").await;
}

#[tokio::test]
async fn a_log_that_ends_too_early_is_named_by_its_first_missing_entry_and_not_opened() {
    let bench = lived().await;
    let log = bench.dir.path().join("volary.db-wal");
    let length = std::fs::metadata(&log).unwrap().len();
    flip(&log, length * 2 / 3, 3);
    let bytes = std::fs::read(&log).unwrap();
    let report = bench.verify();
    let first = report.first_bad().expect("it is named");
    assert_eq!(Some(first), report.last.map(Seq::next), "{report:?}");
    let end = bench.open_with(bench.config()).await.map(drop);
    assert!(
        matches!(end, Err(StoreError::Corrupt { seq, .. }) if seq == Some(first)),
        "{end:?}"
    );
    assert_eq!(
        std::fs::read(&log).unwrap(),
        bytes,
        "nothing was changed: it can be looked into"
    );
    assert!(!bench.verify().is_ok());
}

#[tokio::test]
async fn an_older_copy_put_back_is_found_refused_and_taken_only_on_demand() {
    let bench = Bench::new();
    let store = bench.open().await;
    for index in 0..10 {
        write(&store, "a", &index.to_string()).await.unwrap();
    }
    let old = bench.snapshot();
    for index in 10..20 {
        write(&store, "a", &index.to_string()).await.unwrap();
    }
    store.close().await;
    bench.take_from(old.dir.path(), &["volary.db", "volary.db-wal"]);
    assert_eq!(bench.verify().first_bad(), Some(Seq(11)));
    let end = bench.open_with(bench.config()).await.map(drop);
    assert!(
        matches!(
            end,
            Err(StoreError::Corrupt {
                seq: Some(Seq(11)),
                ..
            })
        ),
        "{end:?}"
    );
    let accept = SqliteConfig {
        on_damage: OnDamage::Accept,
        ..bench.config()
    };
    let store = bench.open_with(accept).await.unwrap();
    let told = store
        .read(Seq(0), &Filter::kind("store.accepted_loss"), 9)
        .await
        .unwrap();
    assert_eq!(told.rows.len(), 1);
    assert_eq!(
        told.rows[0].seq,
        Seq(11),
        "the journal goes on, and says so"
    );
    store.close().await;
    assert!(bench.verify().is_ok());
}

#[tokio::test]
async fn an_older_copy_without_newer_entries_is_found_by_its_commits() {
    let bench = Bench::new();
    let store = bench.open().await;
    write(&store, "a", "1").await.unwrap();
    let old = bench.snapshot();
    let mut tx = Batch::new();
    tx.put(Key::new("a").unwrap(), "2", Expect::Any);
    store.commit(tx).await.unwrap();
    store.close().await;
    assert!(bench.verify().is_ok());
    bench.take_from(old.dir.path(), &["volary.db", "volary.db-wal"]);
    assert!(!bench.verify().is_ok());
    assert!(bench.open_with(bench.config()).await.is_err());
}

#[tokio::test]
async fn a_database_ahead_of_its_head_is_accepted_if_it_continues_the_chain() {
    let bench = Bench::new();
    let store = bench.open().await;
    for index in 0..5 {
        write(&store, "a", &index.to_string()).await.unwrap();
    }
    let old = bench.snapshot();
    for index in 5..8 {
        write(&store, "a", &index.to_string()).await.unwrap();
    }
    // Killed between commit and head.
    let killed = bench.snapshot();
    store.close().await;
    killed.take_from(old.dir.path(), &["volary.db.head"]);
    let report = killed.verify();
    assert!(report.is_ok() && report.unacknowledged == 3, "{report:?}");
    let store = killed.open().await;
    assert_eq!(*store.head().borrow(), Seq(8));
    store.close().await;
    killed.sql("UPDATE journal SET body = X'7B7D' WHERE seq = 7");
    killed.take_from(old.dir.path(), &["volary.db.head"]);
    assert_eq!(killed.verify().first_bad(), Some(Seq(7)));
    assert!(killed.open_with(killed.config()).await.is_err());
}

async fn edited(sql: &str) -> Option<Seq> {
    let bench = Bench::new();
    let store = bench.open().await;
    for index in 0..9 {
        write(&store, &format!("a/{index}"), &index.to_string())
            .await
            .unwrap();
    }
    store.close().await;
    bench.sql(sql);
    let report = bench.verify();
    assert!(!report.is_ok(), "{sql}: {report:?}");
    report.first_bad()
}

#[tokio::test]
async fn edits_of_the_journal_are_named() {
    for column in [
        "body = X'7B7D'",
        "kind = 'x'",
        "tenant = 'x'",
        "agent = 'x'",
        "cause = 1",
        "cause = 0",
        "at = at + 1",
        "version = 1",
    ] {
        assert_eq!(
            edited(&format!("UPDATE journal SET {column} WHERE seq = 4")).await,
            Some(Seq(4)),
            "{column}"
        );
    }
    assert_eq!(
        edited("UPDATE journal SET hash = zeroblob(32) WHERE seq = 4").await,
        Some(Seq(4))
    );
    assert_eq!(
        edited("UPDATE journal SET trace = zeroblob(16) WHERE seq = 4").await,
        Some(Seq(4))
    );
    assert_eq!(
        edited("DELETE FROM journal WHERE seq = 4").await,
        Some(Seq(4))
    );
    assert_eq!(
        edited("DELETE FROM journal WHERE seq >= 8").await,
        Some(Seq(8))
    );
    assert_eq!(
        edited("DELETE FROM journal WHERE seq <= 2").await,
        Some(Seq(1))
    );
    assert_eq!(edited("DELETE FROM journal").await, Some(Seq(1)));
    let swap =
        "UPDATE journal SET seq = 100 WHERE seq = 4; UPDATE journal SET seq = 4 WHERE seq = 5;
                UPDATE journal SET seq = 5 WHERE seq = 100";
    assert_eq!(edited(swap).await, Some(Seq(4)));
    assert_eq!(edited("DROP TABLE journal").await, Some(Seq(1)));
}

#[tokio::test]
async fn edits_of_records_and_tables_are_found_and_never_read_as_values() {
    for edit in [
        "value = X'78'",
        "version = version + 1",
        "expires = 9",
        "key = 'b'",
        "sum = 0",
    ] {
        assert_eq!(
            edited(&format!("UPDATE record SET {edit} WHERE key = 'a/4'")).await,
            None,
            "{edit}"
        );
    }
    assert_eq!(edited("DROP TRIGGER journal_chunks_deleted").await, None);
    let bench = Bench::new();
    let store = bench.open().await;
    write(&store, "a", "1").await.unwrap();
    write(&store, "b", "1").await.unwrap();
    store.close().await;
    bench.sql("UPDATE record SET value = X'32' WHERE key = 'a'");
    let store = bench.open().await;
    let read = store.get(&Key::new("a").unwrap()).await;
    assert!(matches!(read, Err(StoreError::Corrupt { .. })), "{read:?}");
    assert!(store.scan("", None, 10).await.is_err());
    assert!(
        store.get(&Key::new("b").unwrap()).await.unwrap().is_some(),
        "others can be read"
    );
    store.close().await;
}

#[tokio::test]
async fn a_head_that_is_missing_forged_or_torn_is_found() {
    let bench = Bench::new();
    let store = bench.open().await;
    write(&store, "a", "1").await.unwrap();
    store.close().await;
    let head = bench.dir.path().join("volary.db.head");
    let good = std::fs::read(&head).unwrap();
    let other = Bench::new();
    other.open().await.close().await;
    let forged = std::fs::read(other.dir.path().join("volary.db.head")).unwrap();
    for (what, bytes) in [
        ("missing", None),
        ("forged", Some(forged)),
        ("empty", Some(vec![])),
        ("zero", Some(vec![0; good.len()])),
    ] {
        match bytes {
            Some(bytes) => std::fs::write(&head, bytes).unwrap(),
            None => std::fs::remove_file(&head).unwrap(),
        }
        assert!(!bench.verify().is_ok(), "{what}");
        assert!(
            matches!(
                bench.open_with(bench.config()).await.map(drop),
                Err(StoreError::Corrupt { .. })
            ),
            "{what}"
        );
    }
    std::fs::write(&head, good).unwrap();
    std::fs::remove_file(bench.database()).unwrap();
    assert_eq!(
        bench.verify().first_bad(),
        Some(Seq(1)),
        "the database is gone"
    );
    assert!(bench.open_with(bench.config()).await.is_err());
}

#[tokio::test]
async fn a_check_changes_nothing_and_leaves_nothing() {
    let killed = lived().await;
    let files = ["volary.db", "volary.db-wal", "volary.db.head"];
    let bytes = || files.map(|file| std::fs::read(killed.dir.path().join(file)).unwrap());
    let before = bytes();
    assert!(killed.verify().is_ok());
    assert!(bytes() == before, "after a kill");
    killed.open().await.close().await;
    let names = || {
        std::fs::read_dir(killed.dir.path())
            .unwrap()
            .map(|file| file.unwrap().file_name())
            .collect::<Vec<_>>()
    };
    let before = names();
    assert!(killed.verify().is_ok());
    assert_eq!(names(), before, "after a clean close");
}
