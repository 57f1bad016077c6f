//! Links and listeners that mean well: carrying, answers, reconnecting, closing.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::sync::{Semaphore, watch};
use volary_kernel::testing::eventually;
use volary_messaging::{
    Admission, Refusal,
    transport::tcp::{
        Durable, Link, LinkError, LinkState, Listener, Net, Outgoing, Security, TcpError, TcpLimits,
    },
};

use crate::support::{
    Answerer, SOON, Side, connect, deliver, ended, listen, listen_config, numbers, pipes, refused,
    soon,
};

fn pair() -> (Side, Side) {
    (Side::new("left"), Side::new("right"))
}

#[tokio::test]
async fn a_frame_arrives_verified_and_each_message_is_answered() {
    for net in [Net::tokio(), pipes()] {
        let (a, b) = pair();
        let answer: Answerer = Arc::new(|arrival| {
            let even = |number: &u32| match number % 2 {
                0 => Admission::Queued,
                _ => Admission::Refused(Refusal::Replay),
            };
            let answers = numbers(&arrival).iter().map(even).collect();
            assert_eq!(arrival.peer.name.as_str(), "left");
            let durable = arrival.durable.unwrap();
            assert_eq!((durable.low, durable.orders), (4, vec![7, 8, 9]));
            async { answers }.boxed()
        });
        let (listener, _) = listen(&b, &[&a], TcpLimits::default(), net.clone(), answer).await;
        let link = connect(&a, &b, &listener, &net).await;
        let mut frame = a.frame([1, 2, 3]);
        frame.durable = Some(Durable {
            low: 4,
            orders: vec![7, 8, 9],
        });
        let replay = Admission::Refused(Refusal::Replay);
        assert_eq!(
            soon(link.send(frame)).await,
            Ok(vec![replay.clone(), Admission::Queued, replay])
        );
        assert_eq!(listener.connections().len(), 1);
        soon(link.close()).await;
        assert!(eventually(SOON, || b.count(&ended("peer_closing")) == 1).await);
        soon(listener.close()).await;
        assert_eq!(b.count("volary_tcp_connections"), 0);
    }
}

#[tokio::test]
async fn both_sides_say_who_is_here_and_say_it_again_when_it_changes() {
    let (a, b) = pair();
    let (answer, _) = deliver();
    let mut config = listen_config(&b, &[&a], TcpLimits::default(), pipes(), answer).await;
    let (theirs, introduction) = watch::channel(Bytes::from_static(b"b1"));
    config.reception.introduction = introduction;
    let (heard, mut hearing) = watch::channel(Bytes::new());
    config.reception.introduced = Arc::new(move |_, bytes| {
        heard.send_replace(bytes);
        async { Ok(()) }.boxed()
    });
    let net = config.net.clone();
    let listener = Listener::bind(config).await.unwrap();
    let (ours, introduction) = watch::channel(Bytes::from_static(b"a1"));
    let mut config = a.link(&b, listener.address());
    (config.introduction, config.net) = (introduction, net);
    let link = Link::new(config);
    let mut state = link.state();
    let said = |state: &LinkState, what: &'static [u8]| matches!(state, LinkState::Connected { introduction, .. } if introduction == what);
    soon(state.wait_for(|state| said(state, b"b1")))
        .await
        .unwrap();
    soon(hearing.wait_for(|bytes| bytes == "a1")).await.unwrap();
    theirs.send_replace(Bytes::from_static(b"b2"));
    soon(state.wait_for(|state| said(state, b"b2")))
        .await
        .unwrap();
    ours.send_replace(Bytes::from_static(b"a2"));
    soon(hearing.wait_for(|bytes| bytes == "a2")).await.unwrap();
}

#[tokio::test]
async fn an_introduction_is_taken_before_any_frame_that_was_sent_after_it() {
    let (a, b) = pair();
    let (answer, _arrived) = deliver();
    let mut config = listen_config(&b, &[], TcpLimits::default(), pipes(), answer).await;
    config.peers.insert(a.spec()).unwrap();
    let registry = (config.reception.trust)(&a.spec());
    let agent = a.clone();
    config.reception.introduced = Arc::new(move |_, bytes| {
        let (registry, agent) = (registry.clone(), agent.clone());
        async move {
            // Slow on purpose: whoever does not wait for it refuses the frame behind it.
            tokio::task::yield_now().await;
            if bytes == "agent" {
                registry
                    .register(
                        agent.agent.id(),
                        agent.agent.public(),
                        agent.name.clone(),
                        Default::default(),
                    )
                    .await
                    .unwrap();
            }
            Ok(())
        }
        .boxed()
    });
    let net = config.net.clone();
    let listener = Listener::bind(config).await.unwrap();
    let (ours, introduction) = watch::channel(Bytes::new());
    let mut config = a.link(&b, listener.address());
    (config.introduction, config.net) = (introduction, net);
    let link = Link::new(config);
    soon(link.connected()).await.unwrap();
    let before = soon(link.send(a.frame([1]))).await.unwrap();
    assert!(matches!(
        before[..],
        [Admission::Refused(Refusal::Invalid { .. })]
    ));
    ours.send_replace(Bytes::from_static(b"agent"));
    assert_eq!(
        soon(link.send(a.frame([2]))).await,
        Ok(vec![Admission::Delivered])
    );
}

#[tokio::test]
async fn what_is_in_flight_at_a_cut_ends_in_an_error_and_the_link_comes_back() {
    let (a, b) = pair();
    let stuck: Answerer = Arc::new(|_| std::future::pending().boxed());
    let limits = TcpLimits {
        drain: Duration::from_millis(1),
        window_frames: 4,
        ..TcpLimits::default()
    };
    let net = pipes();
    let config = listen_config(&b, &[&a], limits, net.clone(), stuck).await;
    let listener = Listener::bind(config.clone()).await.unwrap();
    let link = connect(&a, &b, &listener, &net).await;
    let sends: Vec<_> = (0..10)
        .map(|n| {
            let (link, frame) = (link.clone(), a.frame([n]));
            spawn(async move { link.send(frame).await })
        })
        .collect();
    let arrived = frames_ok();
    assert!(
        eventually(SOON, || b.count(&arrived) == 4).await,
        "the window is 4"
    );
    soon(listener.close()).await;
    let mut down = 0;
    for send in sends {
        match soon(send).await.unwrap() {
            Err(LinkError::Down) => down += 1,
            Err(LinkError::NotConnected) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(down, 4, "only what was written may have arrived");
    assert_eq!(a.count("volary_tcp_frames_unanswered_total"), 4);
    let state = link.state();
    let waits = || {
        matches!(
            &*state.borrow(),
            LinkState::Connecting {
                last_error: Some(_),
                ..
            }
        )
    };
    assert!(eventually(SOON, waits).await);
    assert_eq!(link.send(a.frame([1])).await, Err(LinkError::NotConnected));
}

fn frames_ok() -> String {
    crate::support::frames("ok")
}

#[expect(clippy::disallowed_methods, reason = "a test's helper task")]
fn spawn<F: Future<Output: Send> + Send + 'static>(
    future: F,
) -> tokio::task::JoinHandle<F::Output> {
    tokio::spawn(future)
}

#[tokio::test]
async fn a_listener_that_comes_back_is_found_again() {
    let (a, b) = pair();
    let (answer, mut arrived) = deliver();
    let config = listen_config(&b, &[&a], TcpLimits::default(), Net::tokio(), answer).await;
    let listener = Listener::bind(config.clone()).await.unwrap();
    let address = listener.address();
    let link = connect(&a, &b, &listener, &Net::tokio()).await;
    soon(listener.close()).await;
    let mut again = config;
    again.listen.address = address.to_string();
    let _listener = Listener::bind(again).await.unwrap();
    soon(async {
        while link.send(a.frame([5])).await != Ok(vec![Admission::Delivered]) {
            let mut state = link.state();
            let _changed = state.changed().await;
        }
    })
    .await;
    assert_eq!(soon(arrived.recv()).await, Some(vec![5]));
}

#[tokio::test]
async fn closing_waits_for_answers_that_are_on_their_way() {
    let (a, b) = pair();
    let gate = Arc::new(Semaphore::new(0));
    let held = gate.clone();
    let answer: Answerer = Arc::new(move |arrival| {
        let (held, count) = (held.clone(), numbers(&arrival).len());
        async move {
            held.acquire().await.unwrap().forget();
            vec![Admission::Delivered; count]
        }
        .boxed()
    });
    for close_listener in [false, true] {
        let net = pipes();
        let (listener, _) =
            listen(&b, &[&a], TcpLimits::default(), net.clone(), answer.clone()).await;
        let link = connect(&a, &b, &listener, &net).await;
        let taken = b.count(&frames_ok());
        let sending = link.send(a.frame([1, 2]));
        let closing = async {
            assert!(eventually(SOON, || b.count(&frames_ok()) > taken).await);
            let release = async {
                tokio::task::yield_now().await;
                gate.add_permits(1);
            };
            if close_listener {
                tokio::join!(listener.close(), release);
            } else {
                tokio::join!(link.close(), release);
                assert_eq!(link.send(a.frame([3])).await, Err(LinkError::Closed));
            }
        };
        let (answers, ()) = soon(async { tokio::join!(sending, closing) }).await;
        assert_eq!(answers, Ok(vec![Admission::Delivered; 2]));
    }
}

#[tokio::test]
async fn frames_of_one_sender_are_taken_in_order_and_others_overtake() {
    let (a, b) = pair();
    let mut other = Side::new("other");
    other.node = a.node.clone();
    let gate = Arc::new(Semaphore::new(0));
    let (order, held) = (Arc::new(parking_lot::Mutex::new(Vec::new())), gate.clone());
    let seen = order.clone();
    let answer: Answerer = Arc::new(move |arrival| {
        let (seen, held) = (seen.clone(), held.clone());
        async move {
            let numbers = numbers(&arrival);
            if numbers[0] < 100 {
                held.acquire().await.unwrap().forget();
            }
            seen.lock().extend(numbers);
            vec![Admission::Delivered]
        }
        .boxed()
    });
    let mut config = listen_config(&b, &[&a], TcpLimits::default(), pipes(), answer).await;
    let registry = (config.reception.trust)(&a.spec());
    registry
        .register(
            other.agent.id(),
            other.agent.public(),
            other.name.clone(),
            Default::default(),
        )
        .await
        .unwrap();
    config.reception.trust = Arc::new(move |_| registry.clone());
    let net = config.net.clone();
    let listener = Listener::bind(config).await.unwrap();
    let link = connect(&a, &b, &listener, &net).await;
    let sends = futures_util::future::join_all([
        link.send(a.frame([1])),
        link.send(a.frame([2])),
        link.send(other.frame([100])),
    ]);
    let watching = async {
        assert!(eventually(SOON, || *order.lock() == [100]).await);
        gate.add_permits(2);
    };
    let (answers, ()) = soon(async { tokio::join!(sends, watching) }).await;
    assert!(
        answers
            .iter()
            .all(|answer| *answer == Ok(vec![Admission::Delivered]))
    );
    assert_eq!(*order.lock(), [100, 1, 2]);
}

#[tokio::test]
async fn a_receiver_that_panics_or_answers_too_little_is_answered_for() {
    let (a, b) = pair();
    let answer: Answerer = Arc::new(|arrival| match numbers(&arrival)[0] {
        1 => async { panic!("poison") }.boxed(),
        2 => async { Vec::new() }.boxed(),
        _ => async { vec![Admission::Delivered] }.boxed(),
    });
    let net = pipes();
    let (listener, _) = listen(&b, &[&a], TcpLimits::default(), net.clone(), answer).await;
    let link = connect(&a, &b, &listener, &net).await;
    for number in [1, 2] {
        let answers = soon(link.send(a.frame([number]))).await.unwrap();
        assert!(
            matches!(answers[..], [Admission::Refused(_)]),
            "{answers:?}"
        );
    }
    assert_eq!(
        soon(link.send(a.frame([3]))).await,
        Ok(vec![Admission::Delivered]),
        "the connection goes on"
    );
}

#[tokio::test]
async fn a_key_that_is_removed_loses_its_connections_at_once() {
    let (a, b) = pair();
    let (answer, _) = deliver();
    let net = pipes();
    let (listener, book) = listen(&b, &[&a], TcpLimits::default(), net.clone(), answer).await;
    let link = connect(&a, &b, &listener, &net).await;
    assert!(book.remove(&a.name));
    let mut state = link.state();
    let gone = |state: &LinkState| !matches!(state, LinkState::Connected { .. });
    soon(state.wait_for(gone)).await.unwrap();
    assert!(eventually(SOON, || b.count(&ended("unknown")) == 1).await);
    assert!(
        eventually(SOON, || b.count(&refused("tls")) > 0).await,
        "and gets no new one"
    );
    book.insert(a.spec()).unwrap();
    soon(link.connected()).await.unwrap();
}

#[tokio::test]
async fn a_peer_that_started_again_replaces_its_former_connections() {
    let (a, b) = pair();
    let (answer, _) = deliver();
    let net = pipes();
    let (listener, _) = listen(&b, &[&a], TcpLimits::default(), net.clone(), answer).await;
    let first = connect(&a, &b, &listener, &net).await;
    let mut config = a.link(&b, listener.address());
    (config.net, config.incarnation) = (net, 7);
    let _second = Link::new(config);
    let mut state = first.state();
    let gone = |state: &LinkState| !matches!(state, LinkState::Connected { .. });
    soon(state.wait_for(gone)).await.unwrap();
    assert!(eventually(SOON, || b.count(&ended("replaced")) >= 1).await);
}

#[tokio::test]
async fn a_frame_for_another_connection_does_not_leave() {
    let (a, b) = pair();
    let (answer, _) = deliver();
    let net = pipes();
    let (listener, book) = listen(&b, &[&a], TcpLimits::default(), net.clone(), answer).await;
    let link = connect(&a, &b, &listener, &net).await;
    let number = |state: &LinkState| match state {
        LinkState::Connected { connection, .. } => Some(*connection),
        _ => None,
    };
    let bound = |connection| Outgoing {
        connection,
        ..a.frame([1])
    };
    let first = number(&link.state().borrow());
    let delivered = Ok(vec![Admission::Delivered]);
    assert_eq!(soon(link.send(bound(first))).await, delivered);
    assert!(book.remove(&a.name));
    let mut state = link.state();
    soon(state.wait_for(|state| number(state) != first))
        .await
        .unwrap();
    book.insert(a.spec()).unwrap();
    soon(link.connected()).await.unwrap();
    let second = number(&link.state().borrow());
    assert_eq!(
        soon(link.send(bound(first))).await,
        Err(LinkError::NotConnected)
    );
    assert_eq!(soon(link.send(bound(second))).await, delivered);
}

#[tokio::test]
async fn more_than_a_window_waits_and_a_frame_that_is_too_large_does_not_leave() {
    let (a, b) = pair();
    let (answer, mut arrived) = deliver();
    let limits = TcpLimits {
        frame_bytes: 2000,
        window_frames: 2,
        window_bytes: 1024,
        ..TcpLimits::default()
    };
    let net = pipes();
    let (listener, _) = listen(&b, &[&a], limits, net.clone(), answer).await;
    let link = connect(&a, &b, &listener, &net).await;
    let large = a.frame(0..100);
    let found = large.frame.len();
    assert_eq!(
        link.send(large).await,
        Err(LinkError::TooLarge { found, limit: 2000 })
    );
    let none = Outgoing {
        frame: Bytes::new(),
        count: 0,
        durable: None,
        connection: None,
    };
    assert_eq!(link.send(none).await, Err(LinkError::Count { found: 0 }));
    let sends = (0..50).map(|n| link.send(a.frame([n])));
    let answers = soon(futures_util::future::join_all(sends)).await;
    assert!(answers.iter().all(Result::is_ok));
    for number in 0..50 {
        assert_eq!(arrived.recv().await, Some(vec![number]));
    }
}

#[tokio::test]
async fn a_link_gives_up_only_if_it_was_told_to() {
    let (a, b) = pair();
    let mut config = a.link(&b, "127.0.0.1:1");
    (config.net, config.give_up) = (pipes(), Some(3));
    config.reconnect.base = Duration::from_millis(1);
    let link = Link::new(config);
    assert_eq!(soon(link.connected()).await, Err(LinkError::Closed));
    match &*link.state().borrow() {
        LinkState::Failed { reason } => {
            assert!(reason.starts_with("gave up after 3 attempts"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(link.send(a.frame([1])).await, Err(LinkError::Closed));
}

#[tokio::test]
async fn plaintext_is_for_loopback_addresses_and_only_if_asked_for() {
    let (a, b) = pair();
    let (answer, _) = deliver();
    let mut config = listen_config(&b, &[&a], TcpLimits::default(), Net::tokio(), answer).await;
    config.listen.security = Security::Insecure;
    let mut exposed = config.clone();
    exposed.listen.address = "0.0.0.0:0".to_owned();
    let refused = Listener::bind(exposed).await.unwrap_err();
    assert!(matches!(refused, TcpError::Exposed { .. }), "{refused}");
    let listener = Listener::bind(config).await.unwrap();
    let mut secure = a.link(&b, listener.address());
    secure.give_up = Some(1);
    let secure = Link::new(secure);
    assert!(
        soon(secure.connected()).await.is_err(),
        "nobody falls back to plaintext"
    );
    let mut plain = a.link(&b, listener.address());
    plain.security = Security::Insecure;
    let plain = Link::new(plain);
    soon(plain.connected()).await.unwrap();
    assert_eq!(
        soon(plain.send(a.frame([1]))).await,
        Ok(vec![Admission::Delivered])
    );
}

#[tokio::test(start_paused = true)]
async fn a_quiet_connection_is_kept_by_signs_of_life() {
    let (a, b) = pair();
    let (answer, _) = deliver();
    let net = pipes();
    let (listener, _) = listen(&b, &[&a], TcpLimits::default(), net.clone(), answer).await;
    let link = connect(&a, &b, &listener, &net).await;
    volary_kernel::clock::sleep(Duration::from_secs(3600)).await;
    assert_eq!(
        link.send(a.frame([1])).await,
        Ok(vec![Admission::Delivered]),
        "an hour later it is the same connection"
    );
    assert_eq!(b.count("volary_tcp_connections_accepted_total"), 1);
}

#[tokio::test]
async fn when_the_process_stops_links_and_listeners_end_by_themselves() {
    let (a, b) = pair();
    let (answer, _) = deliver();
    let net = pipes();
    let (listener, _) = listen(&b, &[&a], TcpLimits::default(), net.clone(), answer).await;
    let _link = connect(&a, &b, &listener, &net).await;
    for side in [&a, &b] {
        let report = side.tasks.drain(SOON).await;
        assert_eq!(
            (report.aborted.len(), report.failures),
            (0, 0),
            "{report:?}"
        );
    }
}
