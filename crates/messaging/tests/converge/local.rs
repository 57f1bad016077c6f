//! Local: the bus inside one process.

use std::time::Duration;

use volary_kernel::{clock, id::Tenant};
use volary_messaging::{Admission, EndpointSpec, Message, Refusal, Transport};

use crate::support::{about, local, name, now, open, receive, sender, text, to};

/// T1 (local): use before the start is an error. Different on purpose: a bus needs no start, so there is no such state;
/// what remains is the other end, and a closed bus refuses (decision 13).
#[tokio::test]
async fn a_closed_bus_refuses_and_a_new_one_needs_no_start() {
    let bus = local();
    let _inbox = open(&bus, "b", &[]);
    assert_eq!(
        bus.send(to(&sender("a"), "b", "hi")).await,
        Admission::Delivered
    );
    bus.close();
    let refused = Admission::Refused(Refusal::Closed);
    assert_eq!(bus.send(to(&sender("a"), "b", "hi")).await, refused);
    assert!(
        bus.open(EndpointSpec::new(Tenant::default(), name("c"), vec![]))
            .is_err()
    );
}

/// T2 (local): a message to an agent reaches it and nobody else.
#[tokio::test(start_paused = true)]
async fn a_message_to_an_agent_reaches_it_and_nobody_else() {
    let bus = local();
    let (mut b, mut c) = (open(&bus, "b", &["t"]), open(&bus, "c", &["t"]));
    bus.send(to(&sender("a"), "b", "hi")).await;
    assert_eq!(
        receive(&mut b).await.map(|got| text(&got)).as_deref(),
        Some("hi")
    );
    assert!(receive(&mut c).await.is_none());
}

fn broadcast(text: &str) -> Message {
    let draft = Message::builder(sender("a")).broadcast();
    draft.json(text).unwrap().build(now()).unwrap()
}

/// T3 (local): a broadcast reaches all but its sender. Different on purpose: only if it asks for that (decision 13).
#[tokio::test(start_paused = true)]
async fn a_broadcast_reaches_all_but_its_sender() {
    let bus = local();
    let mut all = ["a", "b", "c"].map(|who| open(&bus, who, &[]));
    assert_eq!(bus.send(broadcast("all")).await, Admission::Delivered);
    let [a, b, c] = &mut all;
    assert!(receive(b).await.is_some() && receive(c).await.is_some());
    assert!(receive(a).await.is_none());
}

/// T4 (local): a receive that gets nothing ends at its time, and one that gets something before it.
#[tokio::test(start_paused = true)]
async fn a_receive_ends_at_its_time_or_with_a_message() {
    let bus = local();
    let mut inbox = open(&bus, "b", &[]);
    let limit = Duration::from_millis(50);
    assert!(clock::timeout(limit, inbox.recv()).await.is_err());
    let sending = async {
        clock::sleep(Duration::from_millis(10)).await;
        bus.send(to(&sender("a"), "b", "hi")).await
    };
    let (got, sent) = tokio::join!(clock::timeout(limit, inbox.recv()), sending);
    assert_eq!(sent, Admission::Delivered);
    assert_eq!(text(&got.unwrap().unwrap()), "hi");
}

/// T5 (local): a topic's messages go to its subscribers, and not after they have left.
#[tokio::test(start_paused = true)]
async fn topics_reach_their_subscribers_until_they_leave() {
    let bus = local();
    let (mut b, mut c) = (open(&bus, "b", &["t"]), open(&bus, "c", &["u"]));
    assert_eq!(
        bus.send(about(&sender("a"), "t", "1")).await,
        Admission::Delivered
    );
    assert!(receive(&mut b).await.is_some());
    assert!(receive(&mut c).await.is_none());
    drop(b);
    assert_eq!(
        bus.send(about(&sender("a"), "t", "2")).await,
        Admission::NoRoute
    );
}

/// T6 (local): a topic without subscribers. Different on purpose: it is `NoRoute`, told to the sender, and nobody gets it;
/// there is no implicit broadcast (decision 13).
#[tokio::test(start_paused = true)]
async fn a_topic_without_subscribers_is_no_route_and_no_broadcast() {
    let bus = local();
    let mut inbox = open(&bus, "b", &["u"]);
    assert_eq!(
        bus.send(about(&sender("a"), "t", "1")).await,
        Admission::NoRoute
    );
    assert!(receive(&mut inbox).await.is_none());
}

/// T7 (local): a sender does not get its own broadcast, nor its own topic.
#[tokio::test(start_paused = true)]
async fn a_sender_does_not_get_its_own_broadcast() {
    let bus = local();
    let mut own = open(&bus, "a", &["t"]);
    assert_eq!(bus.send(broadcast("all")).await, Admission::NoRoute);
    assert_eq!(
        bus.send(about(&sender("a"), "t", "1")).await,
        Admission::NoRoute
    );
    assert!(receive(&mut own).await.is_none());
}
