//! What is agreed with a peer may change between two lives of a node: what was learned and stored under the old agreement
//! does not outlive it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use futures_util::FutureExt as _;
use tokio::sync::watch;
use volary_kernel::{clock::ManualClock, id::Tenant, testing::eventually};
use volary_messaging::{Admission, peer::Wire, transport::tcp::LinkState};

use crate::node::{Node, Setup, Who, memory, name};

fn two() -> (Who, Who) {
    let a = Who::new("a", &[("source", &[])]);
    let b = Who::new("b", &[("sink", &["news"])]);
    (a, b)
}

async fn learned(a: &Who, b: &Who, store: volary_store::SharedStore) -> Node {
    let node = Node::start(a, b, store, &Setup::default()).await;
    let said = b.introduction(&node.clock);
    node.peers.introduced(&b.name, said).await.unwrap();
    node
}

#[tokio::test]
async fn nothing_goes_to_a_peer_for_a_tenant_that_is_not_agreed_any_more() {
    let (a, b) = two();
    let store = memory("a", ManualClock::default().shared());
    let node = learned(&a, &b, store).await;
    let waiting = node.message("source", "news", "1");
    assert_eq!(node.send(waiting).await.admission, Admission::Queued);
    let (store, _) = node.crash().await;

    let setup = Setup {
        tenants: vec!["other".parse::<Tenant>().unwrap()],
        ..Setup::default()
    };
    let node = Node::start(&a, &b, store, &setup).await;
    // What it said before is not routed by.
    let later = node.message("source", "news", "2");
    assert_eq!(node.send(later).await.admission, Admission::NoRoute);
    // What waits is not sent, but parked where a person sees it.
    let sent = Arc::new(AtomicUsize::new(0));
    let (state, up) = watch::channel(LinkState::Connected {
        connection: 1,
        since: node.clock.wall(),
        name: b.name.clone(),
        incarnation: 1,
        introduction: b.introduction(&node.clock),
    });
    let wire = {
        let sent = sent.clone();
        let send = move |_| {
            sent.fetch_add(1, Ordering::Relaxed);
            std::future::ready(Ok(vec![Admission::Queued])).boxed()
        };
        Wire::new(send, up)
    };
    node.peers.connect(&b.name, wire, &node.tasks).unwrap();
    let parked = eventually(std::time::Duration::from_secs(10), || {
        node.peers.status()[0].outbox.parked == 1
    });
    assert!(parked.await);
    assert_eq!(sent.load(Ordering::Relaxed), 0);
    drop(state);
}

#[tokio::test]
async fn agents_of_a_peer_that_is_no_peer_any_more_are_not_believed_and_their_names_are_free() {
    let (a, b) = two();
    let store = memory("a", ManualClock::default().shared());
    let node = learned(&a, &b, store).await;
    let sink = b.sender("sink").id();
    assert!(node.identities.trusted(&sink).is_ok());
    let (store, _) = node.crash().await;

    let c = Who::new("c", &[("sink", &["news"])]);
    let node = Node::start(&a, &c, store, &Setup::default()).await;
    assert!(node.identities.trusted(&sink).is_err());
    let said = c.introduction(&node.clock);
    node.peers.introduced(&c.name, said).await.unwrap();
    let (id, _) = node
        .identities
        .named(&Tenant::default(), &name("sink"))
        .unwrap();
    assert_eq!(id, c.sender("sink").id());
}

#[tokio::test]
async fn what_comes_by_webhook_goes_to_no_peer_and_no_agent_of_a_peer_passes_for_a_webhook() {
    let a = Who::new("a", &[("operator", &[])]);
    let b = Who::new("b", &[("sink", &["news"]), ("webhook", &["news"])]);
    let store = memory("a", ManualClock::default().shared());
    let node = learned(&a, &b, store).await;
    let (webhook, tenant) = (name("webhook"), Tenant::default());
    assert_eq!(node.identities.named(&tenant, &webhook), None);
    // Events are sent with the node's key under a name that the key does not speak for: at a peer that would cost the
    // operator's messages in the same frame too.
    let id = a.sender("operator").id();
    let event =
        volary_messaging::Message::builder(volary_messaging::Sender::new(id, webhook, tenant))
            .topic(crate::node::topic("news"))
            .json("x")
            .unwrap()
            .build(node.clock.wall())
            .unwrap();
    assert_eq!(node.send(event).await.admission, Admission::NoRoute);
    let own = node.message("operator", "news", "y");
    assert_eq!(node.send(own).await.admission, Admission::Queued);
}
