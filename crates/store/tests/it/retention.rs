//! What retention removes, and what it must not.

use std::{sync::Arc, time::Duration};

use volary_kernel::Tenant;
use volary_store::{
    Batch, Filter, FullWhat, NewItem, Queue, Queues, Retention, Seq, SqliteConfig, SqliteStore,
    Store as _, StoreError, Tail, queue::QueueConfig,
};

use crate::common::{Bench, batch, entry, write};

const DAY: Duration = Duration::from_secs(24 * 3600);

async fn first(store: &SqliteStore) -> Seq {
    store.housekeep().await.unwrap();
    store.read(Seq(0), &Filter::all(), 1).await.unwrap().first
}

async fn write_days(bench: &Bench, store: &SqliteStore, days: u64) {
    for day in 0..days {
        write(store, "a", &day.to_string()).await.unwrap();
        bench.clock.advance(DAY);
    }
}

#[tokio::test]
async fn entries_past_their_age_go_and_the_rest_still_verifies() {
    let bench = Bench::new();
    let store = bench.open().await;
    write_days(&bench, &store, 10).await;
    assert_eq!(first(&store).await, Seq(4), "written 7 days ago or less");
    let report = bench.verify();
    assert!(report.is_ok(), "{report:?}");
    assert_eq!(
        (report.first, report.head.unwrap().cut.seq),
        (Some(Seq(4)), Seq(3))
    );
    let old = bench.snapshot();
    bench.clock.advance(DAY * 30);
    assert_eq!(first(&store).await, Seq(10), "the last entry always stays");
    let mut tail = Tail::new(Arc::new(store.clone()), Seq(5), Filter::all());
    let end = tail.next().await;
    assert!(
        matches!(
            end,
            Err(StoreError::Trimmed {
                from: Seq(5),
                first: Seq(10)
            })
        ),
        "{end:?}"
    );
    assert_eq!(
        tail.next().await.unwrap().unwrap().seq,
        Seq(10),
        "it goes on after saying so"
    );
    store.close().await;
    let store = bench.open().await;
    assert_eq!(write(&store, "a", "x").await.unwrap().seqs, [Seq(11)]);
    store.close().await;
    assert!(bench.verify().is_ok());
    bench.take_from(old.dir.path(), &["volary.db", "volary.db-wal"]);
    assert_eq!(
        bench.verify().first_bad(),
        Some(Seq(11)),
        "an older cut comes with an older end"
    );
}

#[tokio::test]
async fn a_cut_without_a_signature_is_found() {
    let bench = Bench::new();
    let store = bench.open().await;
    write_days(&bench, &store, 10).await;
    first(&store).await;
    store.close().await;
    bench.sql("DELETE FROM journal WHERE seq <= 5");
    assert_eq!(bench.verify().first_bad(), Some(Seq(4)));
}

#[tokio::test]
async fn a_death_between_cut_and_head_is_no_damage() {
    let bench = Bench::new();
    let store = bench.open().await;
    write_days(&bench, &store, 10).await;
    let old = bench.snapshot();
    first(&store).await;
    store.close().await;
    bench.take_from(old.dir.path(), &["volary.db.head"]);
    assert!(bench.verify().is_ok(), "{:?}", bench.verify());
    bench.open().await.close().await;
}

#[tokio::test]
async fn pins_and_live_queue_items_keep_what_they_need() {
    let bench = Bench::new();
    let store = bench.open().await;
    let shared: Arc<SqliteStore> = Arc::new(store.clone());
    let queues = Queues::open(shared).await.unwrap();
    let queue = queues.queue(QueueConfig::new("work")).unwrap();
    write_days(&bench, &store, 2).await;
    enqueue(&store, &queue).await;
    write_days(&bench, &store, 2).await;
    let mut tx = Batch::new();
    tx.pin("cursor", Seq(6)).unwrap();
    store.commit(tx).await.unwrap();
    write_days(&bench, &store, 20).await;
    assert_eq!(
        first(&store).await,
        Seq(3),
        "the item's own entry is the third"
    );
    let mut claims = queue.claim("me", 1, Duration::ZERO).await.unwrap();
    assert_eq!(first(&store).await, Seq(3), "claimed is not done");
    let mut tx = Batch::new();
    queue
        .park(&mut tx, &claims.pop().unwrap(), "enough")
        .unwrap();
    store.commit(tx).await.unwrap();
    assert_eq!(
        first(&store).await,
        Seq(6),
        "what is parked carries its own payload"
    );
    let mut tx = Batch::new();
    tx.unpin("cursor").unwrap();
    store.commit(tx).await.unwrap();
    assert!(first(&store).await > Seq(15));
    store.close().await;
    assert!(bench.verify().is_ok());
}

async fn enqueue(store: &SqliteStore, queue: &Queue) {
    let mut tx = Batch::new();
    tx.append(entry("{}"));
    queue
        .enqueue(&mut tx, NewItem::new(Tenant::default(), "x"))
        .unwrap();
    store.commit(tx).await.unwrap();
}

#[tokio::test]
async fn at_the_size_bound_old_entries_go_and_what_is_live_turns_intake_away() {
    let bench = Bench::new();
    let retention = Retention {
        max_bytes: 4 << 20,
        ..Retention::default()
    };
    let store = bench
        .open_with(SqliteConfig {
            retention,
            ..bench.config()
        })
        .await
        .unwrap();
    let big = "x".repeat(4000);
    let intake = || {
        let mut tx = batch("a", &big);
        tx.intake();
        tx
    };
    for _ in 0..3000 {
        store.commit(intake()).await.unwrap();
    }
    let page = store.read(Seq(0), &Filter::all(), 1).await.unwrap();
    assert!(page.first > Seq(1500), "the oldest went: {}", page.first);
    let size = std::fs::metadata(bench.database()).unwrap().len();
    assert!(size < 8 << 20, "{size}");
    let mut tx = Batch::new();
    tx.pin("stuck", page.first).unwrap();
    store.commit(tx).await.unwrap();
    let refused = loop {
        if let Err(error) = store.commit(intake()).await {
            break error;
        }
    };
    assert!(
        matches!(refused, StoreError::Full { what: FullWhat::StoreBytes, limit, .. } if limit == 4 << 20),
        "{refused}"
    );
    write(&store, "ack", "x")
        .await
        .expect("what is not intake goes through");
    let mut tx = Batch::new();
    tx.unpin("stuck").unwrap();
    store.commit(tx).await.unwrap();
    store.housekeep().await.unwrap();
    store.commit(intake()).await.expect("it recovers by itself");
    store.close().await;
    assert!(bench.verify().is_ok());
}
