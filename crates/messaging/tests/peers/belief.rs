//! What is believed of a peer, and what is not: repeats, forgeries, strangers, revoked and rotated keys; across restarts.

use std::{sync::Arc, time::Duration};

use volary_kernel::clock::{self, SystemClock};
use volary_messaging::{
    Admission, Identity, Message, Refusal,
    frame::{self, Trust},
    peer::PeerState,
    transport::tcp::{Answer, Arrival, Durable, Reception, Rejected},
};
use volary_store::{SharedStore, SqliteConfig, SqliteStore};

use crate::node::{Node, Setup, Who, memory, name, topic};

fn people() -> (Who, Who) {
    let a = Who::new("a", &[("s1", &[]), ("s2", &[])]);
    (a, Who::new("b", &[("sink", &["work"])]))
}

async fn begin(a: &Who, b: &Who, store: SharedStore) -> (Node, Reception) {
    let node = Node::start(b, a, store, &Setup::default()).await;
    let reception = node.reception();
    let said = a.introduction(&node.clock);
    (reception.introduced)(a.spec(), said).await.unwrap();
    (node, reception)
}

/// Brings a frame as the link would: verified by the peer's registry, or refused.
async fn bring(
    reception: &Reception,
    from: &Who,
    key: &Identity,
    messages: &[Message],
    durable: Option<Durable>,
) -> Vec<Answer> {
    let bytes = frame::seal(key, messages).unwrap();
    let registry = (reception.trust)(&from.spec());
    match frame::open(&bytes, Trust::Registry(&registry)) {
        Ok(frame) => {
            let peer = from.spec();
            (reception.arrived)(Arrival {
                peer,
                frame,
                durable,
            })
            .await
        }
        Err(error) => {
            let problem = error.to_string().into();
            vec![Admission::Refused(Refusal::Invalid { problem }); messages.len()]
        }
    }
}

fn numbered(low: u64, order: u64) -> Option<Durable> {
    let orders = vec![order];
    Some(Durable { low, orders })
}

fn message(node: &Node, from: &Who, text: &str) -> Message {
    let draft = Message::builder(from.sender("s1")).topic(topic("work"));
    draft.json(text).unwrap().build(node.clock.wall()).unwrap()
}

fn refused(answers: &[Answer]) -> &Refusal {
    match answers {
        [Admission::Refused(why)] => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_repeat_gets_the_first_result_and_a_forgery_is_refused_after_a_restart_too() {
    let (a, b) = people();
    let dir = tempfile::tempdir().unwrap();
    let key = &a.agents[0].1;
    let database = || async {
        let path = dir.path().join("b.db");
        let config = SqliteConfig {
            min_free_disk: 0,
            reserve: 0,
            ..SqliteConfig::new(path, b.name.clone(), b.key.signing_key())
        };
        SqliteStore::open(config, SystemClock::shared())
            .await
            .unwrap()
    };
    let opened = database().await;
    let (node, reception) = begin(&a, &b, Arc::new(opened.clone())).await;
    let one = message(&node, &a, "one");
    let first = bring(
        &reception,
        &a,
        key,
        std::slice::from_ref(&one),
        numbered(7, 7),
    )
    .await;
    assert_eq!(first, [Admission::Queued]);
    let forged = one
        .edit()
        .json("other")
        .unwrap()
        .build(one.sent_at())
        .unwrap();
    for life in 0..2 {
        let (again, reception, opened) = if life == 0 {
            (node.post.clone(), reception.clone(), None)
        } else {
            node.tasks.drain(Duration::ZERO).await;
            opened.close().await;
            let opened = database().await;
            let store: SharedStore = Arc::new(opened.clone());
            let next = Node::start(&b, &a, store, &Setup::default()).await;
            let reception = next.reception();
            assert_eq!(next.mailbox("sink").stats().ready, 1);
            assert_eq!(next.peers.status()[0].unconfirmed, 1);
            (next.post.clone(), reception, Some((next, opened)))
        };
        let _alive = again;
        let repeat = bring(
            &reception,
            &a,
            key,
            std::slice::from_ref(&one),
            numbered(7, 7),
        )
        .await;
        assert_eq!(repeat, [Admission::Queued], "life {life}");
        let replay = bring(
            &reception,
            &a,
            key,
            std::slice::from_ref(&forged),
            numbered(7, 8),
        )
        .await;
        assert_eq!(refused(&replay), &Refusal::Replay, "life {life}");
        if let Some((next, opened)) = opened {
            assert_eq!(next.mailbox("sink").stats().ready, 1);
            next.crash().await;
            opened.close().await;
        }
    }
}

#[tokio::test]
async fn a_number_below_the_confirmed_mark_is_an_old_frame_played_again() {
    let (a, b) = people();
    let key = &a.agents[0].1;
    let (node, reception) = begin(&a, &b, memory("b", SystemClock::shared())).await;
    let one = message(&node, &a, "one");
    bring(
        &reception,
        &a,
        key,
        std::slice::from_ref(&one),
        numbered(1, 1),
    )
    .await;
    assert_eq!(node.peers.status()[0].unconfirmed, 1);
    let two = message(&node, &a, "two");
    bring(&reception, &a, key, &[two], numbered(9, 9)).await;
    assert_eq!(
        node.peers.status()[0].unconfirmed,
        1,
        "the first is confirmed"
    );
    // It is remembered a while longer, so a late copy of it still gets its answer.
    let late = bring(&reception, &a, key, &[one], numbered(1, 1)).await;
    assert_eq!(late, [Admission::Queued]);
    let unseen = message(&node, &a, "unseen");
    let old = bring(&reception, &a, key, &[unseen], numbered(9, 3)).await;
    assert_eq!(refused(&old), &Refusal::Settled { below: 9 });
    node.crash().await;
}

#[tokio::test]
async fn strangers_and_agents_of_others_are_refused_counted_and_told() {
    let (a, b) = people();
    let (node, reception) = begin(&a, &b, memory("b", SystemClock::shared())).await;
    let stranger = Identity::generate().unwrap();
    let sender = volary_messaging::Sender::new(stranger.id(), name("s1"), Default::default());
    let posing = Message::builder(sender)
        .topic(topic("work"))
        .build(node.clock.wall())
        .unwrap();
    let answers = bring(&reception, &a, &stranger, &[posing], None).await;
    assert!(matches!(refused(&answers), Refusal::Invalid { .. }));
    // Our own agent's key, played back by a peer.
    let ours = Message::builder(b.sender("sink")).topic(topic("work"));
    let ours = ours.build(node.clock.wall()).unwrap();
    let answers = bring(&reception, &a, &b.agents[0].1, &[ours], None).await;
    assert!(refused(&answers).to_string().contains("does not vouch"));
    assert_eq!(node.journal("message.unverified").await.len(), 1);
    assert_eq!(node.mailbox("sink").stats().ready, 0);
    node.crash().await;
}

#[tokio::test]
async fn a_revoked_key_is_refused_at_once_and_for_good() {
    let (a, b) = people();
    let (key, store) = (&a.agents[0].1, memory("b", SystemClock::shared()));
    let (node, reception) = begin(&a, &b, store.clone()).await;
    let one = message(&node, &a, "one");
    assert_eq!(
        bring(&reception, &a, key, &[one], numbered(1, 1)).await,
        [Admission::Queued]
    );
    node.identities
        .revoke(key.id(), node.clock.wall())
        .await
        .unwrap();
    let two = message(&node, &a, "two");
    let answers = bring(&reception, &a, key, &[two], numbered(1, 2)).await;
    assert!(refused(&answers).to_string().contains("revoked"));
    node.crash().await;
    let (node, reception) = begin(&a, &b, store).await;
    let three = message(&node, &a, "three");
    let answers = bring(&reception, &a, key, &[three], numbered(1, 3)).await;
    assert!(refused(&answers).to_string().contains("revoked"));
    assert!(!node.journal("peer.objected").await.is_empty());
    node.crash().await;
}

#[tokio::test]
async fn a_peer_can_not_introduce_our_agents_and_speaks_for_agreed_tenants_only() {
    let (a, b) = people();
    let mut thief = a.clone();
    thief.agents.push((
        name("sink"),
        Identity::generate().unwrap(),
        vec![topic("work")],
    ));
    let node = Node::start(
        &b,
        &a,
        memory("b", SystemClock::shared()),
        &Setup::default(),
    )
    .await;
    let reception = node.reception();
    (reception.introduced)(thief.spec(), thief.introduction(&node.clock))
        .await
        .unwrap();
    let status = node.peers.status().remove(0);
    let names: Vec<_> = status
        .routes
        .iter()
        .map(|(_, name, _)| name.to_string())
        .collect();
    assert_eq!(
        (names.join(" "), status.state),
        ("s1 s2".to_owned(), PeerState::ReceiveOnly)
    );
    let told = node.journal("peer.objected").await;
    assert!(String::from_utf8_lossy(&told[0].body).contains("this node"));
    node.crash().await;
}

#[tokio::test]
async fn routes_outlive_a_restart_and_a_full_outbox_refuses_the_message_as_a_whole() {
    let (a, b) = people();
    let store = memory("a", SystemClock::shared());
    let setup = Setup {
        outbox_items: 2,
        ..Setup::default()
    };
    let node = Node::start(&a, &b, store.clone(), &setup).await;
    let nobody = node.send(node.message("s1", "work", "x")).await;
    assert_eq!(nobody.admission, Admission::NoRoute);
    let said = b.introduction(&node.clock);
    node.peers.introduced(&b.name, said).await.unwrap();
    node.crash().await;
    let node = Node::start(&a, &b, store.clone(), &setup).await;
    for text in ["one", "two"] {
        let posted = node.send(node.message("s1", "work", text)).await;
        assert_eq!(posted.admission, Admission::Queued);
        assert_eq!(posted.deliveries[0].0, b.name);
    }
    let full = node.send(node.message("s1", "work", "three")).await;
    assert!(matches!(
        full.admission,
        Admission::Refused(Refusal::Full { .. })
    ));
    assert_eq!(node.journal("message.accepted").await.len(), 2);
    let tick = node.send(node.message("s1", "tick", "x")).await;
    assert_eq!(tick.admission, Admission::NoRoute);
    node.crash().await;
}

fn body(row: &volary_store::JournalRow) -> serde_json::Value {
    serde_json::from_slice(&row.body).unwrap()
}

#[tokio::test(start_paused = true)]
async fn frames_that_the_listener_refuses_are_told_in_the_journal_once_a_minute() {
    let (a, b) = people();
    let (node, reception) = begin(&a, &b, memory("b", SystemClock::shared())).await;
    let refuse = |reason, problem: &str| {
        (reception.rejected)(Rejected {
            peer: a.spec(),
            count: 2,
            reason,
            problem: problem.to_owned(),
        })
    };
    for _ in 0..1_000 {
        refuse("bad_signature", "the signature is not the sender's").await;
    }
    clock::sleep(Duration::from_secs(61)).await;
    refuse("undecodable", "too short").await;
    let told = node.journal("message.unverified").await;
    let bodies: Vec<_> = told.iter().map(body).collect();
    assert_eq!(bodies.len(), 2, "{bodies:?}");
    assert_eq!(
        (&bodies[0]["peer"], &bodies[0]["count"]),
        (&"a".into(), &2.into())
    );
    assert!(
        bodies[0]["problem"]
            .as_str()
            .unwrap()
            .contains("bad_signature")
    );
    assert_eq!(bodies[1]["count"], 2_000, "with those that were left out");
    assert!(
        bodies[1]["problem"]
            .as_str()
            .unwrap()
            .contains("undecodable")
    );
    node.crash().await;
}

/// A peer that is known, and sends what nobody takes: its messages do not fill the journal.
#[tokio::test(start_paused = true)]
async fn a_flood_of_messages_that_are_turned_back_is_a_bounded_number_of_entries_that_count_all() {
    let (a, b) = people();
    let key = &a.agents[0].1;
    let (node, reception) = begin(&a, &b, memory("b", SystemClock::shared())).await;
    let nowhere = |n: u64| {
        let draft = Message::builder(a.sender("s1")).topic(topic("nobody"));
        draft.json(&n).unwrap().build(node.clock.wall()).unwrap()
    };
    for n in 0..100 {
        let messages: Vec<Message> = (0..10).map(|m| nowhere(n * 10 + m)).collect();
        let answers = bring(&reception, &a, key, &messages, None).await;
        assert_eq!(answers, vec![Admission::NoRoute; 10]);
    }
    let good = message(&node, &a, "good");
    let answers = bring(&reception, &a, key, &[good], numbered(1, 1)).await;
    assert_eq!(answers, [Admission::Queued]);
    // Told although nothing follows.
    clock::sleep(Duration::from_secs(30)).await;
    let one_by_one = node.journal("message.refused").await.len() as u64;
    let more = node.journal("message.refused_more").await;
    let left_out: u64 = more
        .iter()
        .filter_map(|row| body(row)["count"].as_u64())
        .sum();
    assert_eq!(one_by_one + left_out, 1_000);
    assert!((100..=110).contains(&one_by_one), "{one_by_one}");
    assert!((1..=3).contains(&more.len()), "{}", more.len());
    assert_eq!(body(&more[0])["peer"], "a");
    node.crash().await;
}

/// Each introduction of which something is not taken is told; so they come one a second, however fast the peer says them.
#[tokio::test(start_paused = true)]
async fn a_peer_that_introduces_what_is_not_taken_without_end_is_slowed_down() {
    let (a, b) = people();
    let (node, reception) = begin(&a, &b, memory("b", SystemClock::shared())).await;
    let begun = tokio::time::Instant::now();
    for _ in 0..20 {
        let said = a.introduction(&node.clock);
        (reception.introduced)(a.spec(), said).await.unwrap();
    }
    assert_eq!(
        begun.elapsed(),
        Duration::ZERO,
        "nothing is wrong with these"
    );
    assert_eq!(node.journal("peer.introduced").await.len(), 1);
    let mut thief = a.clone();
    let sink = (name("sink"), Identity::generate().unwrap(), Vec::new());
    thief.agents.push(sink);
    for _ in 0..20 {
        let said = thief.introduction(&node.clock);
        (reception.introduced)(a.spec(), said).await.unwrap();
    }
    (reception.introduced)(a.spec(), vec![0xff; 9].into())
        .await
        .unwrap_err();
    let end = (reception.introduced)(a.spec(), a.introduction(&node.clock)).await;
    end.unwrap();
    assert!(
        begun.elapsed() >= Duration::from_secs(21),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(node.journal("peer.objected").await.len(), 20);
    node.crash().await;
}
