//! How items of a queue end: retries, parking, deadlines, restarts, outcomes.

use std::time::Duration;

use futures_util::{FutureExt, future::join_all};
use volary_kernel::{Clock, clock};

use super::{
    DEADLINE, Fixture,
    queue::{VISIBILITY, ack, claim, claim_one, config, item, leftovers, nack, open, send},
};
use crate::{
    batch::Batch,
    entry::Filter,
    queue::{ItemId, Nacked, NewItem, Outcome, QueueError, Queues},
};

pub(super) async fn a_failed_attempt_waits_and_the_last_is_parked(fixture: &Fixture) {
    let (queues, queue) = open(fixture, "fail").await;
    let id = send(fixture, &queue, item("x")).await.id;
    for (attempt, wait) in [(1, 4), (2, 8)] {
        let claimed = claim_one(&queue, "x").await;
        assert_eq!(claimed.attempt, attempt);
        let wait = Duration::from_secs(wait);
        assert_eq!(
            nack(fixture, &queue, &claimed, &format!("failure {attempt}")).await,
            Nacked::Retry(wait)
        );
        fixture.clock.advance(wait - Duration::from_millis(1));
        assert!(claim(&queue, 1).await.is_empty(), "not before its time");
        fixture.clock.advance(Duration::from_millis(1));
    }
    let claimed = claim_one(&queue, "x").await;
    assert_eq!(claimed.last_reason.as_deref(), Some("failure 2"));
    assert_eq!(
        nack(fixture, &queue, &claimed, "failure 3").await,
        Nacked::Parked
    );
    assert_eq!((queue.len(), queue.stats().parked), (0, 1));
    let parked = queues.parked_item(id).await.expect("it is parked");
    assert_eq!(
        (
            parked.attempts,
            parked.reason.as_str(),
            parked.payload.as_ref()
        ),
        (3, "failure 3", b"x".as_ref())
    );
    queues.drop_parked(id, "test").await.expect("it is parked");
}

pub(super) async fn a_lapsed_last_attempt_is_parked(fixture: &Fixture) {
    let (queues, queue) = open(fixture, "spent").await;
    let id = send(fixture, &queue, item("x")).await.id;
    for _ in 0..3 {
        claim_one(&queue, "x").await;
        fixture.clock.advance(VISIBILITY);
    }
    let (swept, outcome) = futures_util::join!(queues.sweep(), queues.outcome(id));
    swept.expect("a sweep");
    assert!(matches!(outcome, Ok(Outcome::Parked(_))), "{outcome:?}");
    assert!(claim(&queue, 1).await.is_empty());
    assert_eq!(
        queues.parked_item(id).await.expect("it is parked").attempts,
        3
    );
    let page = fixture
        .store
        .read(crate::Seq(0), &Filter::kind("queue.parked"), 100)
        .await
        .expect("a read");
    let told = page
        .rows
        .iter()
        .filter(|row| String::from_utf8_lossy(&row.body).contains(&id.to_string()))
        .count();
    assert_eq!(told, 1, "the journal tells of it, once");
    queues.drop_parked(id, "test").await.expect("it is parked");
}

pub(super) async fn deadlines_and_delays_hold(fixture: &Fixture) {
    let (queues, queue) = open(fixture, "times").await;
    let now = fixture.clock.wall();
    let at = |seconds| Some(now + Duration::from_secs(seconds));
    let hurried = send(
        fixture,
        &queue,
        NewItem {
            deadline: at(10),
            ..item("hurried")
        },
    )
    .await
    .id;
    send(
        fixture,
        &queue,
        NewItem {
            not_before: at(20),
            deadline: at(90),
            ..item("late")
        },
    )
    .await;
    let working = send(
        fixture,
        &queue,
        NewItem {
            deadline: at(10),
            priority: 1,
            ..item("working")
        },
    )
    .await
    .id;
    let claimed = claim_one(&queue, "working").await;
    fixture.clock.advance(Duration::from_secs(10));
    let (claims, outcome) = futures_util::join!(claim(&queue, 9), queues.outcome(hurried));
    assert!(
        claims.is_empty(),
        "one is over, one is early, one is being worked on"
    );
    assert_eq!(outcome.expect("it ended"), Outcome::DeadlineExceeded);
    assert_eq!(leftovers(fixture, hurried).await, 0);
    nack(fixture, &queue, &claimed, "too slow").await;
    queues.sweep().await.expect("a sweep");
    assert_eq!(
        queues.outcome(working).await.expect("it ended"),
        Outcome::DeadlineExceeded
    );
    fixture.clock.advance(Duration::from_secs(10));
    let late = claim_one(&queue, "late").await;
    ack(fixture, &queue, &late).await;
}

pub(super) async fn parked_items_are_listed_retried_and_dropped(fixture: &Fixture) {
    let (queues, queue) = open(fixture, "parked").await;
    let mut ids = Vec::new();
    for payload in ["a", "b", "c"] {
        ids.push(send(fixture, &queue, item(payload)).await.id);
        let claimed = claim_one(&queue, payload).await;
        let mut tx = Batch::new();
        queue
            .park(&mut tx, &claimed, &format!("because {payload}"))
            .expect("the claim holds");
        fixture.store.commit(tx).await.expect("a commit");
    }
    let page = queues.parked(None, 2).await.expect("a list");
    assert_eq!(
        page.iter().map(|item| item.id).collect::<Vec<_>>(),
        ids[..2]
    );
    let rest = queues.parked(Some(ids[1]), 2).await.expect("a list");
    assert_eq!(
        rest.iter()
            .map(|item| (item.id, item.reason.as_str()))
            .collect::<Vec<_>>(),
        [(ids[2], "because c")]
    );
    assert_eq!(
        queues.outcome(ids[0]).await.expect("it is parked"),
        Outcome::Parked("because a".into())
    );
    queues.retry_parked(ids[0]).await.expect("it is parked");
    assert!(
        matches!(
            queues.retry_parked(ids[0]).await,
            Err(QueueError::UnknownItem(_))
        ),
        "not twice"
    );
    let again = claim_one(&queue, "a").await;
    assert_eq!((again.id, again.attempt), (ids[0], 1));
    ack(fixture, &queue, &again).await;
    assert_eq!(
        queues.outcome(ids[0]).await.expect("it ended"),
        Outcome::Done
    );
    queues
        .drop_parked(ids[1], "no use")
        .await
        .expect("it is parked");
    assert_eq!(
        queues.outcome(ids[1]).await.expect("it ended"),
        Outcome::Dropped("no use".into())
    );
    // A queue that is not open keeps what is retried until it is.
    let later = Queues::open(fixture.store.clone())
        .await
        .expect("queues open");
    assert_eq!(later.parked_count(), 1);
    later.retry_parked(ids[2]).await.expect("it is parked");
    assert!(
        later
            .unopened()
            .iter()
            .any(|(name, count)| (name.as_ref(), *count) == ("parked", 1))
    );
    let queue = later.queue(config("parked")).expect("a good configuration");
    let again = claim_one(&queue, "c").await;
    ack(fixture, &queue, &again).await;
}

pub(super) async fn after_a_restart_claims_are_free_and_attempts_remembered(fixture: &Fixture) {
    let (_, queue) = open(fixture, "restart").await;
    send(
        fixture,
        &queue,
        NewItem {
            priority: 2,
            ..item("claimed")
        },
    )
    .await;
    send(
        fixture,
        &queue,
        NewItem {
            priority: 1,
            ..item("delayed")
        },
    )
    .await;
    send(fixture, &queue, item("waiting")).await;
    let lost = claim_one(&queue, "claimed").await;
    let delayed = claim_one(&queue, "delayed").await;
    nack(fixture, &queue, &delayed, "later").await;
    drop(queue);
    let (_, queue) = open(fixture, "restart").await;
    let again = claim_one(&queue, "claimed").await;
    assert_eq!(
        (again.id, again.attempt),
        (lost.id, 2),
        "free at once, attempt remembered"
    );
    let waiting = claim_one(&queue, "waiting").await;
    assert!(claim(&queue, 1).await.is_empty(), "the delay is remembered");
    fixture.clock.advance(Duration::from_secs(4));
    let delayed = claim_one(&queue, "delayed").await;
    assert_eq!(
        (delayed.attempt, delayed.last_reason.as_deref()),
        (2, Some("later"))
    );
    let mut tx = Batch::new();
    assert!(
        queue.ack(&mut tx, &lost).is_err(),
        "a claim of an earlier life is over"
    );
    for claimed in [again, waiting, delayed] {
        ack(fixture, &queue, &claimed).await;
    }
    assert!(
        Queues::open(fixture.store.clone())
            .await
            .expect("queues open")
            .unopened()
            .iter()
            .all(|(name, _)| name.as_ref() != "restart")
    );
}

pub(super) async fn outcomes_reach_those_who_wait(fixture: &Fixture) {
    let (queues, queue) = open(fixture, "outcome").await;
    let ids =
        join_all(["done", "failed", "waits"].map(|payload| send(fixture, &queue, item(payload))))
            .await;
    let work = async {
        for claimed in queue.claim("worker", 2, DEADLINE).await.expect("a claim") {
            let mut tx = Batch::new();
            if claimed.payload == "done" {
                queue.ack(&mut tx, &claimed).expect("the claim holds");
            } else {
                queue
                    .fail(&mut tx, &claimed, "no good")
                    .expect("the claim holds");
            }
            fixture.store.commit(tx).await.expect("a commit");
        }
    };
    let (done, failed, ()) =
        futures_util::join!(queues.outcome(ids[0].id), queues.outcome(ids[1].id), work);
    assert_eq!(done.expect("it ended"), Outcome::Done);
    assert_eq!(failed.expect("it ended"), Outcome::Failed("no good".into()));
    assert!(
        queues.outcome(ids[2].id).now_or_never().is_none(),
        "it has not ended"
    );
    let unknown = ItemId(volary_kernel::Uid::generate());
    assert!(matches!(
        queues.outcome(unknown).await,
        Err(QueueError::UnknownItem(_))
    ));
    // One who waits for work is woken by it.
    let early = async {
        clock::timeout(DEADLINE, queue.claim("worker", 9, DEADLINE))
            .await
            .expect("in time")
    };
    let rest = early.await.expect("a claim");
    let (claims, _) = futures_util::join!(
        queue.claim("worker", 1, DEADLINE),
        send(fixture, &queue, item("new"))
    );
    assert_eq!((rest.len(), claims.expect("a claim").len()), (1, 1));
}
