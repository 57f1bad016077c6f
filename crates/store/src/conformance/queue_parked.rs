//! Items that are parked from the start: work that was begun elsewhere and that only a person can settle.

use futures_util::FutureExt;
use volary_kernel::TraceId;

use super::{
    Fixture, Tenant, key,
    queue::{ack, claim, claim_one, config, item, leftovers, open, send},
};
use crate::{
    batch::{Batch, Expect},
    entry::{Filter, JournalRow, Seq},
    error::StoreError,
    queue::{
        ItemId, NewItem, Outcome, QUEUE_NAME_MAX, QueueConfig, QueueError, Queues, REASON_MAX,
    },
};

fn begun(trace: TraceId) -> NewItem {
    NewItem {
        trace: Some(trace),
        lane: Some("slow".to_owned()),
        ..NewItem::new("acme".parse().expect("a good name"), "begun".to_owned())
    }
}

/// What the journal says of an item's being parked.
async fn told(fixture: &Fixture, id: ItemId) -> Vec<JournalRow> {
    let filter = Filter::kind("queue.parked");
    let page = fixture.store.read(Seq(0), &filter, 1000).await;
    let mut rows = page.expect("a read").rows;
    let id = id.to_string();
    rows.retain(|row| String::from_utf8_lossy(&row.body).contains(&id));
    rows
}

pub(super) async fn what_is_parked_from_the_start_is_a_persons_to_settle(fixture: &Fixture) {
    let (queues, queue) = open(fixture, "begun").await;
    let trace = TraceId::generate();
    let mut tx = Batch::new();
    let id = queues.park_new(&mut tx, "begun", begun(trace), "in doubt");
    let id = id.expect("a good name");
    tx.put(key("begun/ended"), "x", Expect::Any);
    fixture.store.commit(tx).await.expect("a commit");
    let parked = Outcome::Parked("in doubt".into());
    assert_eq!(queues.outcome(id).await.expect("it is parked"), parked);
    assert_eq!((queue.len(), queue.stats().parked), (0, 1));
    assert_eq!(queues.parked_count(), 1);
    assert!(claim(&queue, 9).await.is_empty(), "nobody is handed it");
    let found = queues.parked_item(id).await.expect("it is parked");
    assert_eq!(
        (found.queue.as_ref(), found.tenant.as_str(), found.trace),
        ("begun", "acme", Some(trace))
    );
    assert_eq!(
        (
            found.attempts,
            found.reason.as_str(),
            found.payload.as_ref()
        ),
        (1, "in doubt", b"begun".as_ref())
    );
    let rows = told(fixture, id).await;
    assert_eq!(rows.len(), 1, "the journal tells of it, once");
    assert_eq!(
        (rows[0].trace, rows[0].tenant.as_str()),
        (Some(trace), "acme")
    );
    queues.retry_parked(id).await.expect("it is parked");
    assert_eq!((queue.len(), queue.stats().parked), (1, 0));
    let again = claim_one(&queue, "begun").await;
    assert_eq!((again.id, again.attempt), (id, 1), "with all its attempts");
    assert_eq!(again.trace, Some(trace));
    ack(fixture, &queue, &again).await;
    assert_eq!(queues.outcome(id).await.expect("it ended"), Outcome::Done);
    assert_eq!(leftovers(fixture, id).await, 0);
}

pub(super) async fn parking_from_the_start_happens_with_its_batch_or_not_at_all(fixture: &Fixture) {
    let (queues, queue) = open(fixture, "doubt").await;
    let park = |tx: &mut Batch| {
        let parked = queues.park_new(tx, "doubt", begun(TraceId::generate()), "why");
        parked.expect("a good name")
    };
    let mut dropped = Batch::new();
    let mut refused = Batch::new();
    let ids = [park(&mut dropped), park(&mut refused)];
    drop(dropped);
    refused.put(key("doubt/other"), "x", Expect::Version(u64::MAX));
    assert!(matches!(
        fixture.store.commit(refused).await,
        Err(StoreError::Conflict { .. })
    ));
    for id in ids {
        assert_eq!(leftovers(fixture, id).await, 0);
        assert!(told(fixture, id).await.is_empty());
        assert!(matches!(
            queues.parked_item(id).await,
            Err(QueueError::UnknownItem(_))
        ));
    }
    assert_eq!((queues.parked_count(), queue.stats().parked), (0, 0));
    let mut tx = Batch::new();
    for name in ["", &"x".repeat(QUEUE_NAME_MAX + 1)] {
        let refused = queues.park_new(&mut tx, name, begun(TraceId::generate()), "why");
        assert!(matches!(refused, Err(QueueError::Invalid(_))), "`{name}`");
    }
    assert!(tx.is_empty(), "what was refused added nothing");
}

pub(super) async fn no_bound_and_no_restart_loses_what_was_parked_from_the_start(
    fixture: &Fixture,
) {
    let queues = Queues::open(fixture.store.clone()).await;
    let queues = queues.expect("queues open");
    let narrow = QueueConfig {
        max_items: 1,
        max_parked: 1,
        ..config("narrowly")
    };
    let queue = queues.queue(narrow).expect("a good configuration");
    send(fixture, &queue, item("waits")).await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let mut tx = Batch::new();
        let new = NewItem::new(Tenant::default(), "begun".to_owned());
        // Longer than is kept, with a letter of two bytes across the bound.
        let reason = format!("{}é", "x".repeat(REASON_MAX - 1));
        let id = queues.park_new(&mut tx, "narrowly", new, &reason);
        ids.push(id.expect("bounds do not hold it back"));
        fixture.store.commit(tx).await.expect("a commit");
    }
    assert_eq!((queue.len(), queue.stats().parked), (1, 2));
    let mut tx = Batch::new();
    assert!(
        matches!(
            queue.enqueue(&mut tx, item("more")),
            Err(QueueError::Full { .. })
        ),
        "they count, for those who are held back"
    );

    // In another life its queue need not be open.
    drop((queue, queues));
    let later = Queues::open(fixture.store.clone()).await;
    let later = later.expect("queues open");
    assert_eq!(later.parked_count(), 2);
    let page = later.parked(None, 9).await.expect("a list");
    let listed: Vec<_> = page.iter().map(|item| (item.id, &*item.reason)).collect();
    let kept = "x".repeat(REASON_MAX - 1);
    assert_eq!(listed, [(ids[0], &*kept), (ids[1], &*kept)]);
    later.retry_parked(ids[0]).await.expect("it is parked");
    later
        .drop_parked(ids[1], "no use")
        .await
        .expect("it is parked");
    assert_eq!(
        later.outcome(ids[1]).now_or_never().map(Result::ok),
        Some(Some(Outcome::Dropped("no use".into())))
    );
    let queue = later.queue(config("narrowly"));
    let queue = queue.expect("a good configuration");
    let claims = claim(&queue, 9).await;
    assert_eq!(claims.len(), 2, "what waited, and what was retried");
    assert!(claims.iter().any(|claim| claim.id == ids[0]));
    for claimed in &claims {
        ack(fixture, &queue, claimed).await;
    }
    assert_eq!((queue.len(), later.parked_count()), (0, 0));
}
