//! Queues.

use std::time::Duration;

use futures_util::FutureExt;
use volary_kernel::retry::Backoff;

use super::{DEADLINE, Fixture, Tenant, key, text};
use crate::{
    batch::{Batch, Expect},
    entry::Filter,
    error::StoreError,
    queue::{
        Claim, Enqueued, ItemId, Nacked, NewItem, Outcome, Queue, QueueConfig, QueueError,
        QueueFull, Queues,
    },
};

pub(super) const NOW: Duration = Duration::ZERO;
pub(super) const VISIBILITY: Duration = Duration::from_secs(30);

pub(super) fn config(name: &str) -> QueueConfig {
    let backoff = Backoff {
        base: Duration::from_secs(4),
        factor: 2.0,
        max: Duration::from_secs(60),
        jitter: 0.0,
    };
    QueueConfig {
        max_attempts: 3,
        visibility: VISIBILITY,
        backoff,
        ..QueueConfig::new(name)
    }
}

pub(super) async fn open(fixture: &Fixture, name: &str) -> (Queues, Queue) {
    let queues = Queues::open(fixture.store.clone())
        .await
        .expect("queues open");
    let queue = queues.queue(config(name)).expect("a good configuration");
    (queues, queue)
}

pub(super) fn item(payload: &str) -> NewItem {
    NewItem::new(Tenant::default(), payload.to_owned())
}

pub(super) async fn send(fixture: &Fixture, queue: &Queue, item: NewItem) -> Enqueued {
    let mut tx = Batch::new();
    let enqueued = queue.enqueue(&mut tx, item).expect("room");
    fixture.store.commit(tx).await.expect("a commit");
    enqueued
}

pub(super) async fn claim(queue: &Queue, max: usize) -> Vec<Claim> {
    queue.claim("worker", max, NOW).await.expect("a claim")
}

pub(super) async fn claim_one(queue: &Queue, payload: &str) -> Claim {
    let mut claims = claim(queue, 1).await;
    let claim = claims.pop().unwrap_or_else(|| panic!("`{payload}` waits"));
    assert_eq!(claim.payload, payload.to_owned());
    claim
}

pub(super) async fn ack(fixture: &Fixture, queue: &Queue, claim: &Claim) {
    let mut tx = Batch::new();
    queue.ack(&mut tx, claim).expect("the claim holds");
    fixture.store.commit(tx).await.expect("an ack");
}

pub(super) async fn nack(fixture: &Fixture, queue: &Queue, claim: &Claim, reason: &str) -> Nacked {
    let mut tx = Batch::new();
    let nacked = queue
        .nack(&mut tx, claim, None, reason)
        .expect("the claim holds");
    fixture.store.commit(tx).await.expect("a nack");
    nacked
}

pub(super) async fn leftovers(fixture: &Fixture, id: ItemId) -> usize {
    let mut left = 0;
    for space in ["item", "state", "parked"] {
        left += usize::from(
            text(fixture.store.as_ref(), &format!("queue.{space}/{id}"))
                .await
                .is_some(),
        );
    }
    left
}

pub(super) async fn an_item_is_handed_out_once_and_acknowledged(fixture: &Fixture) {
    let (_, queue) = open(fixture, "once").await;
    let ids = [
        send(fixture, &queue, item("a")).await.id,
        send(fixture, &queue, item("b")).await.id,
    ];
    let first = claim_one(&queue, "a").await;
    assert_eq!(
        (first.id, first.attempt, first.coalesce.is_none()),
        (ids[0], 1, true)
    );
    let second = claim_one(&queue, "b").await;
    assert!(second.epoch > first.epoch, "epochs grow");
    assert!(claim(&queue, 9).await.is_empty(), "each is handed out once");
    ack(fixture, &queue, &second).await;
    ack(fixture, &queue, &first).await;
    assert!(queue.is_empty());
    assert_eq!(queue.stats().bytes, 0);
    assert_eq!(
        leftovers(fixture, ids[0]).await + leftovers(fixture, ids[1]).await,
        0
    );
    let mut tx = Batch::new();
    assert!(
        matches!(queue.ack(&mut tx, &first), Err(QueueError::Lapsed(_))),
        "not twice"
    );
}

pub(super) async fn ack_and_send_are_one_commit(fixture: &Fixture) {
    let (queues, queue) = open(fixture, "in").await;
    let outbox = queues.queue(config("out")).expect("a good configuration");
    send(fixture, &queue, item("work")).await;
    let claimed = claim_one(&queue, "work").await;
    let mut tx = Batch::new();
    queue.ack(&mut tx, &claimed).expect("the claim holds");
    outbox.enqueue(&mut tx, item("result")).expect("room");
    tx.put(key("unrelated"), "x", Expect::Version(u64::MAX));
    assert!(matches!(
        fixture.store.commit(tx).await,
        Err(StoreError::Conflict { .. })
    ));
    assert!(
        outbox.is_empty() && queue.stats().claimed == 1,
        "neither happened"
    );
    let mut tx = Batch::new();
    queue.ack(&mut tx, &claimed).expect("the claim still holds");
    outbox.enqueue(&mut tx, item("result")).expect("room");
    fixture.store.commit(tx).await.expect("a commit");
    assert!(queue.is_empty(), "both happened");
    let result = claim_one(&outbox, "result").await;
    ack(fixture, &outbox, &result).await;
}

pub(super) async fn an_uncommitted_enqueue_leaves_no_trace(fixture: &Fixture) {
    let (queues, queue) = open(fixture, "dropped").await;
    let mut tx = Batch::new();
    let id = queue.enqueue(&mut tx, item("x")).expect("room").id;
    assert_eq!(
        (queue.stats().pending, claim(&queue, 1).await.len()),
        (1, 0),
        "it does not wait yet"
    );
    drop(tx);
    assert_eq!((queue.len(), queue.stats().bytes), (0, 0));
    assert!(matches!(queues.outcome(id).await, Ok(Outcome::Dropped(_))));
}

pub(super) async fn a_lapsed_claim_is_handed_out_again_and_its_ack_refused(fixture: &Fixture) {
    let (_, queue) = open(fixture, "lapse").await;
    send(fixture, &queue, item("x")).await;
    let first = claim_one(&queue, "x").await;
    let mut late = Batch::new();
    queue.ack(&mut late, &first).expect("the claim holds yet");
    fixture.clock.advance(VISIBILITY);
    let mut tx = Batch::new();
    assert!(matches!(
        queue.ack(&mut tx, &first),
        Err(QueueError::Lapsed(_))
    ));
    assert!(matches!(queue.renew(&first), Err(QueueError::Lapsed(_))));
    let second = claim_one(&queue, "x").await;
    assert_eq!((second.id, second.attempt), (first.id, 2));
    let late = fixture.store.commit(late).await;
    assert!(
        matches!(late, Err(StoreError::Conflict { .. })),
        "an ack begun in time loses to the new claim: {late:?}"
    );
    ack(fixture, &queue, &second).await;
}

pub(super) async fn a_renewed_claim_does_not_lapse(fixture: &Fixture) {
    let (_, queue) = open(fixture, "renew").await;
    send(fixture, &queue, item("x")).await;
    let claimed = claim_one(&queue, "x").await;
    for _ in 0..5 {
        fixture.clock.advance(VISIBILITY * 3 / 4);
        queue.renew(&claimed).expect("the claim holds");
        assert!(claim(&queue, 1).await.is_empty());
    }
    ack(fixture, &queue, &claimed).await;
}

pub(super) async fn coalescing_keeps_the_newest_payload_and_the_first_place(fixture: &Fixture) {
    let (_, queue) = open(fixture, "coalesce").await;
    let keyed = |payload: &str| NewItem {
        coalesce: Some("page".into()),
        base: Some(format!("before {payload}")),
        ..item(payload)
    };
    let first = send(fixture, &queue, keyed("1")).await;
    send(fixture, &queue, item("other")).await;
    let second = send(fixture, &queue, keyed("2 is longer")).await;
    assert_eq!(
        (second.id, second.coalesced, queue.len()),
        (first.id, true, 2)
    );
    assert_eq!(queue.stats().bytes, 16);
    let mut tx = Batch::new();
    queue.enqueue(&mut tx, keyed("3")).expect("room");
    assert_eq!(
        claim_one(&queue, "other").await.id,
        claim_held(&queue),
        "what is being replaced is not handed out"
    );
    drop(tx);
    let claimed = claim_one(&queue, "2 is longer").await;
    assert_eq!(
        claimed.base.as_deref(),
        Some("before 1"),
        "the first base is kept"
    );
    let mut tx = Batch::new();
    let third = queue.enqueue(&mut tx, keyed("4")).expect("room");
    let fourth = queue.enqueue(&mut tx, keyed("5")).expect("room");
    assert!(
        !third.coalesced && third.id == fourth.id && fourth.coalesced,
        "what is claimed is not replaced"
    );
    fixture.store.commit(tx).await.expect("a commit");
    assert!(
        claim(&queue, 1).await.is_empty(),
        "a newer one waits while the older is handled"
    );
    nack(fixture, &queue, &claimed, "again").await;
    assert!(
        claim(&queue, 1).await.is_empty(),
        "and while the older waits for its next attempt"
    );
    fixture.clock.advance(Duration::from_secs(4));
    let claimed = claim_one(&queue, "2 is longer").await;
    ack(fixture, &queue, &claimed).await;
    let claimed = claim_one(&queue, "5").await;
    nack(fixture, &queue, &claimed, "again").await;
    let again = send(fixture, &queue, keyed("6")).await;
    assert_eq!(again.id, third.id);
    let claimed = claim_one(&queue, "6").await;
    assert_eq!(claimed.base.as_deref(), Some("before 4"));
    assert_eq!(
        (claimed.attempt, claimed.last_reason.clone()),
        (1, None),
        "a new payload begins anew"
    );
    let tenant: Tenant = "other".parse().expect("a good name");
    ack(fixture, &queue, &claimed).await;
    send(fixture, &queue, keyed("mine")).await;
    let theirs = NewItem {
        coalesce: Some("page".into()),
        ..NewItem::new(tenant, "theirs")
    };
    assert!(
        !send(fixture, &queue, theirs).await.coalesced,
        "tenants do not replace each other's items"
    );
}

/// The id of the only claimed item.
fn claim_held(queue: &Queue) -> ItemId {
    queue.claimed_ids()[0]
}

pub(super) async fn tenants_take_turns_and_priority_goes_first_within_one(fixture: &Fixture) {
    let (_, queue) = open(fixture, "turns").await;
    let of = |tenant: &str, payload: &str, priority| NewItem {
        priority,
        ..NewItem::new(tenant.parse().expect("a good name"), payload.to_owned())
    };
    for index in 0..6 {
        send(fixture, &queue, of("loud", &format!("loud{index}"), 0)).await;
    }
    send(fixture, &queue, of("quiet", "quiet-low", -1)).await;
    send(fixture, &queue, of("quiet", "quiet-high", 5)).await;
    let claims = claim(&queue, 6).await;
    let order: Vec<_> = claims
        .iter()
        .map(|claim| String::from_utf8_lossy(&claim.payload).into_owned())
        .collect();
    assert_eq!(
        order,
        [
            "loud0",
            "quiet-high",
            "loud1",
            "quiet-low",
            "loud2",
            "loud3"
        ]
    );
}

pub(super) async fn bounds_refuse_and_give_back(fixture: &Fixture) {
    let queues = Queues::open(fixture.store.clone())
        .await
        .expect("queues open");
    let narrow = QueueConfig {
        max_items: 3,
        max_bytes: 10,
        max_parked: 1,
        ..config("narrow")
    };
    let queue = queues.queue(narrow).expect("a good configuration");
    let full = |end: Result<Enqueued, QueueError>| match end {
        Err(QueueError::Full { what, limit, .. }) => (what, limit),
        other => panic!("a typed refusal, not {other:?}"),
    };
    let mut tx = Batch::new();
    queue.enqueue(&mut tx, item("123456")).expect("room");
    assert_eq!(
        full(queue.enqueue(&mut tx, item("12345"))),
        (QueueFull::Bytes, 10)
    );
    queue.enqueue(&mut tx, item("1")).expect("room");
    queue.enqueue(&mut tx, item("1")).expect("room");
    assert_eq!(
        full(queue.enqueue(&mut tx, item("1"))),
        (QueueFull::Items, 3)
    );
    drop(tx);
    send(fixture, &queue, item("1234567890")).await;
    let claimed = claim_one(&queue, "1234567890").await;
    let mut tx = Batch::new();
    queue
        .park(&mut tx, &claimed, "why")
        .expect("the claim holds");
    fixture.store.commit(tx).await.expect("a commit");
    let mut tx = Batch::new();
    assert_eq!(
        full(queue.enqueue(&mut tx, item("1"))),
        (QueueFull::Parked, 1)
    );
    queues
        .drop_parked(claimed.id, "test")
        .await
        .expect("it is parked");
    queue.enqueue(&mut tx, item("1")).expect("room again");
}

pub(super) async fn a_dropped_claim_future_strands_nothing(fixture: &Fixture) {
    let queues = Queues::open(fixture.store.clone())
        .await
        .expect("queues open");
    let patient = QueueConfig {
        max_attempts: 1000,
        ..config("cancel")
    };
    let queue = queues.queue(patient).expect("a good configuration");
    for index in 0..20 {
        send(fixture, &queue, item(&index.to_string())).await;
    }
    for polls in 1..20 {
        let mut claiming = Box::pin(queue.claim("fickle", 3, Duration::from_secs(1)));
        for _ in 0..polls {
            if let Some(claims) = claiming.as_mut().now_or_never() {
                for claimed in claims.expect("a claim") {
                    let mut tx = Batch::new();
                    queue.release(&mut tx, &claimed).expect("the claim holds");
                    fixture.store.commit(tx).await.expect("a release");
                }
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    let freed = || queue.stats().ready == 20;
    assert!(
        volary_kernel::testing::eventually(DEADLINE, freed).await,
        "{:?}",
        queue.stats()
    );
}

pub(super) async fn what_is_rolled_back_is_not_committed_and_its_room_is_free(fixture: &Fixture) {
    let queues = Queues::open(fixture.store.clone())
        .await
        .expect("queues open");
    let one = QueueConfig {
        max_items: 1,
        ..config("rolled-back")
    };
    let queue = queues.queue(one).expect("a good configuration");
    let mut tx = Batch::new();
    tx.put(key("kept"), "1", Expect::Any);
    let start = tx.savepoint();
    tx.put(key("taken-back"), "1", Expect::Any);
    queue.enqueue(&mut tx, item("taken back")).expect("room");
    assert!(
        queue.enqueue(&mut tx, item("too much")).is_err(),
        "it is full"
    );
    tx.roll_back(start);
    queue
        .enqueue(&mut tx, item("kept"))
        .expect("the room is free again");
    fixture.store.commit(tx).await.expect("a commit");
    let records = fixture
        .store
        .get_many(&[key("kept"), key("taken-back")])
        .await
        .expect("a read");
    assert_eq!(
        records.iter().map(Option::is_some).collect::<Vec<_>>(),
        [true, false]
    );
    let claimed = claim_one(&queue, "kept").await;
    assert_eq!(queue.len(), 1);
    ack(fixture, &queue, &claimed).await;
}

pub(super) async fn claims_are_journaled_under_the_queues_subject_if_asked(fixture: &Fixture) {
    let queues = Queues::open(fixture.store.clone())
        .await
        .expect("queues open");
    let told = QueueConfig {
        subject: "work",
        journal_claims: true,
        ..config("told")
    };
    let queue = queues.queue(told).expect("a good configuration");
    let id = send(fixture, &queue, item("x")).await.id;
    let claimed = claim_one(&queue, "x").await;
    let mut tx = Batch::new();
    queue
        .park(&mut tx, &claimed, "look")
        .expect("the claim holds");
    fixture.store.commit(tx).await.expect("a commit");
    queues.drop_parked(id, "seen").await.expect("it is parked");
    let page = fixture
        .store
        .read(crate::Seq(0), &Filter::kind("work."), 100)
        .await
        .expect("a read");
    let kinds: Vec<_> = page.rows.iter().map(|row| row.kind.as_str()).collect();
    assert_eq!(kinds, ["work.claimed", "work.parked", "work.dropped"]);
}
