//! Queues whose items are chosen: by lane, by id; items with bounds of their own; followers.

use std::time::Duration;

use futures_util::FutureExt;
use volary_kernel::clock::Clock;

use super::{
    Fixture,
    queue::{NOW, VISIBILITY, ack, claim, config, item, nack, open, send},
};
use crate::{
    batch::{Batch, Expect},
    entry::{Entry, Filter},
    error::StoreError,
    queue::{
        Deed, Follow, Nacked, NewItem, Outcome, Queue, QueueConfig, QueueError, Queues, Standing,
    },
};

fn lane(payload: &str, lane: &str) -> NewItem {
    NewItem {
        lane: Some(lane.to_owned()),
        ..item(payload)
    }
}

async fn take(queue: &Queue, lane: &'static str) -> Vec<String> {
    let claims = queue
        .claim_where("worker", 9, NOW, |other| other == lane)
        .await;
    let claims = claims.expect("a claim");
    let text = |payload: &bytes::Bytes| String::from_utf8_lossy(payload).into_owned();
    claims.iter().map(|claim| text(&claim.payload)).collect()
}

pub(super) async fn items_are_chosen_by_their_lane(fixture: &Fixture) {
    let (_queues, queue) = open(fixture, "lanes").await;
    for (payload, of, priority) in [
        ("a1", "a", 0),
        ("b1", "b", 0),
        ("a2", "a", 5),
        ("a3", "a", 0),
    ] {
        let new = NewItem {
            priority,
            ..lane(payload, of)
        };
        send(fixture, &queue, new).await;
    }
    let all = queue.list_ready(None, 9, |_| true);
    assert_eq!(all.len(), 4, "what is ready is listed");
    assert_eq!(all[0].0, 5, "the highest priority first");
    let (first, rest) = (queue.list_ready(None, 1, |lane| lane == "a"), all[0]);
    assert_eq!(first, [rest], "a page");
    let second = queue.list_ready(Some(rest), 9, |lane| lane == "a");
    assert_eq!(second.len(), 2, "the page after it");
    assert_eq!(take(&queue, "none").await, [""; 0]);
    assert_eq!(take(&queue, "a").await, ["a2", "a1", "a3"]);
    assert_eq!(queue.list_held(None, 9).len(), 3);
    assert_eq!(queue.list_ready(None, 9, |_| true).len(), 1);
    let id = queue.list_ready(None, 1, |_| true)[0].1;
    let one = queue.claim_item("worker", id).await.expect("a claim");
    let one = one.expect("it was free");
    assert!(
        queue
            .claim_item("worker", id)
            .await
            .expect("a claim")
            .is_none()
    );
    assert_eq!(queue.standing(id), Some(Standing::Claimed));
    let view = queue.views(&[id]).await.expect("a look")[0]
        .clone()
        .expect("it is there");
    assert_eq!(
        (view.owner.as_deref(), view.epoch),
        (Some("worker"), Some(one.epoch))
    );
    ack(fixture, &queue, &one).await;
    assert!(queue.views(&[id]).await.expect("a look")[0].is_none());
}

pub(super) async fn one_who_chooses_is_woken_by_what_he_means(fixture: &Fixture) {
    let (_queues, queue) = open(fixture, "lanes-wait").await;
    let wait = Duration::from_secs(3600);
    let mut waiting = Box::pin(queue.claim_where("worker", 1, wait, |lane| lane == "mine"));
    assert!((&mut waiting).now_or_never().is_none());
    send(fixture, &queue, lane("other", "other")).await;
    send(fixture, &queue, lane("mine", "mine")).await;
    let claims = tokio::time::timeout(super::DEADLINE, waiting).await;
    let claims = claims.expect("it is woken").expect("a claim");
    assert_eq!(claims[0].payload, "mine");
    assert_eq!(take(&queue, "other").await, ["other"]);
}

pub(super) async fn an_item_may_have_bounds_of_its_own(fixture: &Fixture) {
    let (_queues, queue) = open(fixture, "own").await;
    let own = NewItem {
        max_attempts: Some(1),
        visibility: Some(Duration::from_secs(5)),
        ..lane("x", "x")
    };
    send(fixture, &queue, own).await;
    let one = claim(&queue, 1).await.remove(0);
    fixture.clock.advance(Duration::from_secs(4));
    queue.renew(&one).expect("it holds");
    fixture.clock.advance(Duration::from_secs(4));
    queue.renew(&one).expect("it was renewed for its own time");
    assert_eq!(nack(fixture, &queue, &one, "no").await, Nacked::Parked);

    let id = send(fixture, &queue, lane("y", "y")).await.id;
    let one = claim(&queue, 1).await.remove(0);
    fixture.clock.advance(Duration::from_secs(6));
    queue.renew(&one).expect("the queue's time is longer");
    let mut tx = Batch::new();
    queue
        .remove(&mut tx, id, Outcome::Dropped("cancelled".into()))
        .expect("it is there");
    fixture.store.commit(tx).await.expect("a commit");
    let late = queue.ack(&mut Batch::new(), &one);
    assert!(matches!(late, Err(QueueError::Lapsed(_))), "{late:?}");
}

pub(super) async fn what_is_removed_meanwhile_conflicts(fixture: &Fixture) {
    let (_queues, queue) = open(fixture, "removed").await;
    let id = send(fixture, &queue, lane("x", "x")).await.id;
    let mut removal = Batch::new();
    queue
        .remove(&mut removal, id, Outcome::Done)
        .expect("it is there");
    let claimed = claim(&queue, 1).await.remove(0);
    let refused = fixture.store.commit(removal).await;
    assert!(
        matches!(refused, Err(StoreError::Conflict { .. })),
        "{refused:?}"
    );
    ack(fixture, &queue, &claimed).await;
    let gone = queue.remove(&mut Batch::new(), id, Outcome::Done);
    assert!(matches!(gone, Err(QueueError::UnknownItem(_))), "{gone:?}");
}

fn followed() -> QueueConfig {
    let follow = Follow::new(|tx, happening| {
        let word = match happening.deed {
            Deed::Claimed { .. } => "claimed",
            Deed::Lapsed { .. } => "lapsed",
            Deed::Parked { .. } => "parked",
            Deed::Expired { .. } => "expired",
            Deed::Retried => "retried",
            Deed::Dropped { .. } => "dropped",
        };
        let body = format!("{{\"v\":1,\"item\":\"{}\"}}", happening.id);
        let kind = format!("followed.{word}");
        tx.append(Entry::new(kind, happening.tenant.clone(), body));
        tx.put(
            super::key(&format!("followed/{}", happening.id)),
            word.to_owned(),
            Expect::Any,
        );
        Ok(())
    });
    QueueConfig {
        follow: Some(follow),
        journal_claims: true,
        max_attempts: 2,
        ..config("followed")
    }
}

pub(super) async fn a_follower_is_told_in_the_commit_that_does_it(fixture: &Fixture) {
    let queues = Queues::open(fixture.store.clone())
        .await
        .expect("queues open");
    let queue = queues.queue(followed()).expect("a good configuration");
    let id = send(fixture, &queue, lane("x", "x")).await.id;
    for _ in 0..2 {
        claim(&queue, 1).await.pop().expect("it waits");
        fixture.clock.advance(VISIBILITY + VISIBILITY);
        queue.sweep().await.expect("a sweep");
    }
    queues.retry_parked(id).await.expect("it is parked");
    let two = claim(&queue, 1).await.remove(0);
    nack(fixture, &queue, &two, "no").await;
    fixture.clock.advance(Duration::from_secs(60));
    let three = claim(&queue, 1).await.remove(0);
    nack(fixture, &queue, &three, "no").await;
    queues
        .drop_parked(id, "enough")
        .await
        .expect("it is parked");
    let deadline = fixture.clock.wall() + Duration::from_secs(1);
    let late = NewItem {
        deadline: Some(deadline),
        ..lane("y", "y")
    };
    send(fixture, &queue, late).await;
    fixture.clock.advance(Duration::from_secs(2));
    queue.sweep().await.expect("a sweep");
    let page = fixture
        .store
        .read(crate::Seq::FIRST, &Filter::kind("followed."), 100)
        .await;
    let kinds: Vec<_> = page
        .expect("a page")
        .rows
        .into_iter()
        .map(|row| row.kind)
        .collect();
    let words: Vec<_> = kinds
        .iter()
        .filter_map(|kind| kind.strip_prefix("followed."))
        .collect();
    let expected = [
        "claimed", "lapsed", "claimed", "parked", "retried", "claimed", "claimed", "parked",
        "dropped", "expired",
    ];
    assert_eq!(words, expected);
    let kept = super::text(fixture.store.as_ref(), &format!("followed/{id}")).await;
    assert_eq!(kept.as_deref(), Some("dropped"));
}
