//! The seed's composition, run: scraped, limited, replayed, over TLS between two instances.

#![expect(clippy::unwrap_used, reason = "a test whose setup fails has failed")]

use std::{net::SocketAddr, time::Duration};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use volary::{
    kernel::{
        clock::{self, Clock as _, SystemClock},
        id::{Name, Tenant},
        testing::eventually,
    },
    messaging::{
        Admission, Identity, IdentityRegistry, Message, Sender, Transport,
        frame::{self, Trust},
        transport::tcp::{PeerSpec, Tcp, TcpConfig},
    },
};

#[path = "../../../examples/seed_runtime_operations.rs"]
#[expect(dead_code, reason = "its main is for people; the rest is run here")]
mod example;

const LONG: Duration = Duration::from_secs(20);

async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (
        head.split(' ').nth(1).unwrap().parse().unwrap(),
        body.to_owned(),
    )
}

fn value(metrics: &str, name: &str) -> u64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in\n{metrics}"))
        .trim()
        .parse()
        .unwrap()
}

/// Sends `count` messages about `topic` from the peer to the agent.
async fn send(peer: &Tcp, sender: &Sender, count: usize) -> usize {
    let mut taken = 0;
    for n in 0..count {
        let draft = Message::builder(sender.clone()).to("my-agent".parse().unwrap());
        let draft = draft.topic("work".parse().unwrap()).json(&n).unwrap();
        let message = draft.build(SystemClock.wall()).unwrap();
        let answer = clock::timeout(LONG, peer.send(message)).await.unwrap();
        assert_eq!(answer, Admission::Delivered, "message {n}");
        taken += 1;
    }
    taken
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_composition_is_scraped_limited_and_replayed() {
    let (identity, neighbour) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let (me, they): (Name, Name) = ("my-agent".parse().unwrap(), "neighbour".parse().unwrap());
    let registry = IdentityRegistry::in_memory();
    registry
        .register(
            neighbour.id(),
            neighbour.public(),
            they.clone(),
            Tenant::default(),
        )
        .await
        .unwrap();
    let service = example::compose(example::Settings {
        identity: identity.clone(),
        listen: "127.0.0.1:0".to_owned(),
        ops_port: 0,
        peers: vec![PeerSpec::new(they.clone(), neighbour.public())],
        identity_registry: registry,
    })
    .await
    .unwrap();
    assert_eq!(service.ops_server.address(), None);
    service.runtime.start().await.unwrap();
    let ops = service.ops_server.address().unwrap();

    let (status, body) = get(ops, "/health").await;
    assert_eq!(status, 200, "{body}");
    assert!(body.starts_with(r#"{"status":"ok""#), "{body}");
    let (status, body) = get(ops, "/ready").await;
    assert_eq!(status, 200, "{body}");
    assert!(body.starts_with(r#"{"status":"ready""#), "{body}");
    let (status, metrics) = get(ops, "/metrics").await;
    assert_eq!(status, 200);
    assert_eq!(value(&metrics, "messages_received "), 0);
    assert_eq!(value(&metrics, "rate_limit_ingress_dropped_total "), 0);
    assert_eq!(value(&metrics, "rate_limit_egress_dropped_total "), 0);

    // A neighbour sends more than a sender may: its bucket holds 60 and gains 20 a second.
    let at = service.base_transport.address().unwrap().to_string();
    let to_me = PeerSpec::new(me.clone(), identity.public()).at(at);
    let peer = Tcp::bind(TcpConfig::new(neighbour.clone(), they.clone()).peer(to_me));
    let peer = peer.await.unwrap();
    let tenant = Tenant::default();
    let meeting = peer.reachable(&tenant, &me);
    clock::timeout(LONG, meeting).await.unwrap();
    let sender = Sender::new(neighbour.id(), they.clone(), Tenant::default());
    let begun = tokio::time::Instant::now();
    let delivered = send(&peer, &sender, 200).await;
    let took = begun.elapsed().as_secs_f64();
    let counted = |name: &str| service.metrics.snapshot().counters[name];
    let settled = || {
        counted("messages_received") + counted("rate_limit_ingress_dropped_total")
            >= delivered as u64
    };
    assert!(eventually(LONG, settled).await);
    let (_, metrics) = get(ops, "/metrics").await;
    let received = value(&metrics, "messages_received ");
    let dropped = value(&metrics, "rate_limit_ingress_dropped_total ");
    assert_eq!(
        received + dropped,
        delivered as u64,
        "each is received or counted"
    );
    assert!(dropped > 0, "the limiter was tripped");
    assert!(
        received >= 60 && received as f64 <= 61.0 + 20.0 * (took + 1.0),
        "{received} in {took} s"
    );
    assert!(metrics.contains(r#"volary_rate_limit_ingress_dropped_total{bucket="sender"}"#));

    let report = service.runtime.stop().await;
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.handled, received);
    assert!(
        TcpStream::connect(ops).await.is_err(),
        "the ops server stopped, too"
    );
    peer.close().await;
    service.base_transport.close().await;

    // Replay, after the incident: a plan first, then into a harness, in order.
    let fed = Mutex::new(Vec::new());
    let sink = |message: Message| {
        fed.lock().push(message);
        std::future::ready(Ok(()))
    };
    let (planned, replayed) = example::replay(&service.replay_log, &me, sink)
        .await
        .unwrap();
    assert_eq!((planned, replayed), (received, received));
    let fed = fed.into_inner();
    let numbers: Vec<u64> = fed
        .iter()
        .map(|got| got.payload().parse_json().unwrap())
        .collect();
    assert!(numbers.is_sorted(), "{numbers:?}");
    assert!(fed.iter().all(|got| *got.sender() == sender));
    // What was recorded can be sealed again by its sender, byte for byte the same message.
    let sealed = frame::seal(&neighbour, &fed[..1]).unwrap();
    let opened = frame::open(&sealed, Trust::Key(&neighbour.public())).unwrap();
    assert_eq!(opened.messages(), &fed[..1]);
}
