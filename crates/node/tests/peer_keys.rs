//! Other nodes as a person sees them: a key that was accepted holds for good, who waits too long is given up, and what
//! waits for a node that is no peer any more is shown. On real sockets and a database.

#![expect(clippy::unwrap_used, reason = "a test whose setup fails has failed")]

use std::{collections::BTreeMap, path::Path, time::Duration};

use bytes::Bytes;
use tokio::sync::watch;
use volary::{
    Node, NodeConfig,
    deploy::{
        backend::process::InitCommand,
        spec::{self, LoadOptions, files::Files},
    },
    kernel::{
        Name, Tenant, clock,
        clock::{Clock as _, SystemClock},
        secret::Secret,
        sign::PublicKey,
        task::Supervisor,
    },
    messaging::{
        AgentId, Identity,
        discovery::{Descriptor, Introduction, SignedDescriptor},
        transport::tcp::{Link, LinkConfig, LinkState, PeerSpec},
    },
    ops::{
        api::{
            AcceptRequest, DurationText, ParkedList, PeerList, RotateReply, Send, SendReply,
            SendRequest,
        },
        client::Client,
    },
    store::{Filter, Seq},
};

const LONG: Duration = Duration::from_secs(20);
const AGENT: &str = "apiVersion: agent.dev/v1\nkind: Agent\nmetadata:\n  name: worker\nspec:\n  handler: [sh, -c, 'exit 1']\n";

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// A node with a database in `folder` and these peers.
async fn start(folder: &Path, peers: &str) -> (Node, Client) {
    std::fs::create_dir_all(folder.join("worker")).unwrap();
    std::fs::write(folder.join("worker/agent.yaml"), AGENT).unwrap();
    let fleet = format!(
        "apiVersion: volary.dev/v1\nkind: Fleet\nmetadata: {{name: west}}\nspec:\n  agents: [./worker]\n  \
         messaging:\n    listen: 127.0.0.1:0\n    atMostOnce: [load]\n    peers: [{peers}]\n"
    );
    std::fs::write(folder.join("fleet.yaml"), fleet).unwrap();
    let options = LoadOptions {
        files: Files::disk(),
        env: &|_| None,
        backends: spec::BACKENDS,
        insecure_bind: false,
    };
    let fleet = spec::load_fleet(folder, &options)
        .unwrap_or_else(|problems| panic!("{problems}"))
        .fleet;
    let node = Node::start(NodeConfig {
        fleet,
        state_dir: folder.join("state"),
        init: InitCommand {
            program: "/nonexistent/init".into(),
            args: Vec::new(),
        },
        program: "/nonexistent/volary".into(),
        base_env: BTreeMap::new(),
        ops_bind: Some(([127, 0, 0, 1], 0).into()),
        insecure: false,
        clock: SystemClock::shared(),
        store: None,
    });
    let node = node.await.unwrap();
    let token = std::fs::read_to_string(node.state_dir().join("operator.token")).unwrap();
    let operator = Client::tcp(node.ops_addr()).token(Secret::new(token.trim()));
    (node, operator)
}

async fn peers(operator: &Client) -> PeerList {
    operator.get("/v1/peers", &()).await.unwrap()
}

async fn parked(operator: &Client) -> ParkedList {
    operator.get("/v1/parked", &()).await.unwrap()
}

/// Asks until the answer is right.
async fn becomes<T: std::fmt::Debug>(
    what: &str,
    ask: impl AsyncFn() -> T,
    is_right: impl Fn(&T) -> bool,
) -> T {
    let mut last = ask().await;
    let reached = clock::timeout(LONG, async {
        while !is_right(&last) {
            tokio::task::yield_now().await;
            last = ask().await;
        }
    });
    let reached = reached.await.is_ok();
    assert!(reached, "{what}: {last:?}");
    last
}

/// What the node `east` says: its operator, who has the node's key, and one agent.
fn introduction(key: &Identity, agent: &Identity) -> Bytes {
    let now = SystemClock.wall();
    let said = [("operator.east", key), ("east-sink", agent)];
    let descriptors = said.map(|(who, identity)| {
        let descriptor = Descriptor {
            tenant: Tenant::default(),
            name: name(who),
            key: identity.public(),
            topics: vec!["load".parse().unwrap()],
            capabilities: Vec::new(),
            pools: Vec::new(),
            issued_at: now,
            expires_at: now + Duration::from_secs(86_400),
            succession: None,
        };
        SignedDescriptor::sign(descriptor, identity).unwrap()
    });
    Introduction::new(descriptors.into()).unwrap().encode()
}

/// Calls the node as `east`, showing `key`.
async fn call(operator: &Client, key: &Identity, said: Bytes, tasks: &Supervisor) -> Link {
    let node = peers(operator).await.node;
    let public = PublicKey::from_hex(&node.key).unwrap();
    let spec = PeerSpec::new(node.name, public).at(node.listen.unwrap());
    Link::new(LinkConfig {
        introduction: watch::channel(said).1,
        ..LinkConfig::new(key.clone(), name("east"), spec, tasks.clone())
    })
}

async fn is_let_in(link: &Link) -> bool {
    let mut state = link.state();
    let known = state.wait_for(|state| match state {
        LinkState::Connected { .. } | LinkState::Failed { .. } => true,
        LinkState::Connecting { last_error, .. } => last_error.is_some(),
    });
    let known = clock::timeout(LONG, known).await.unwrap().unwrap().clone();
    matches!(known, LinkState::Connected { .. })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_a_person_accepted_outlives_a_restart_and_the_old_one_is_a_strangers() {
    let folder = tempfile::tempdir().unwrap();
    let tasks = Supervisor::new();
    let (old, new) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let agent = Identity::generate().unwrap();
    let manifest = format!("{{name: east, key: {}}}", old.public());
    let (node, operator) = start(folder.path(), &manifest).await;
    let before = call(&operator, &old, introduction(&old, &agent), &tasks).await;
    assert!(is_let_in(&before).await);
    let known = async || peers(&operator).await.peers.remove(0).agents;
    // Its operator is a person.
    becomes("agents of east", known, |agents| *agents == 1).await;
    let statement = old.hand_over(&new, SystemClock.wall()).to_string();
    let accepted: RotateReply = operator
        .post("/v1/peers/accept", &AcceptRequest { statement })
        .await
        .unwrap();
    let new_id = AgentId::of(&new.public()).to_string();
    assert_eq!((accepted.name, &accepted.id), (name("east"), &new_id));
    before.close().await;
    let succeeded = Filter::kind("peer.succeeded");
    let told = node.store().read(Seq::FIRST, &succeeded, 10).await;
    let told = told.unwrap().rows;
    assert_eq!(told.len(), 1);
    assert!(String::from_utf8_lossy(&told[0].body).contains(&new_id));
    node.stop(LONG).await;

    // The manifest still has the old one.
    let (node, operator) = start(folder.path(), &manifest).await;
    assert_eq!(peers(&operator).await.peers[0].id, new_id);
    let stale = call(&operator, &old, introduction(&old, &agent), &tasks).await;
    assert!(!is_let_in(&stale).await, "{:?}", stale.state().borrow());
    let after = call(&operator, &new, introduction(&new, &agent), &tasks).await;
    assert!(is_let_in(&after).await, "{:?}", after.state().borrow());
    stale.close().await;
    after.close().await;
    node.stop(LONG).await;

    // Who puts the new one into the manifest loses nothing by it.
    let manifest = format!("{{name: east, key: {}}}", new.public());
    let (node, operator) = start(folder.path(), &manifest).await;
    assert_eq!(peers(&operator).await.peers[0].id, new_id);
    node.stop(LONG).await;
    tasks.drain(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_node_that_is_no_peer_any_more_is_shown_and_what_waits_too_long_is_parked()
{
    let folder = tempfile::tempdir().unwrap();
    let tasks = Supervisor::new();
    let (east, agent) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    // Nobody listens there.
    let entry = |more: &str| {
        format!(
            "{{name: east, key: {}, address: '127.0.0.1:9'{more}}}",
            east.public()
        )
    };
    let (node, operator) = start(folder.path(), &entry("")).await;
    let link = call(&operator, &east, introduction(&east, &agent), &tasks).await;
    assert!(is_let_in(&link).await);
    let known = async || peers(&operator).await.peers.remove(0).agents;
    becomes("agents of east", known, |agents| *agents == 1).await;
    for text in ["1", "2"] {
        let send = Send {
            to: Some(name("east-sink")),
            payload: Some(serde_json::value::to_raw_value(text).unwrap()),
            ..Send::default()
        };
        let request = SendRequest {
            send,
            ..SendRequest::default()
        };
        let sent: SendReply = operator.post("/v1/messages", &request).await.unwrap();
        assert_eq!(format!("{:?}", sent.admission), "Queued");
    }
    assert_eq!(peers(&operator).await.stranded, []);
    // What is sent at most once has no outcome that could be waited for.
    let send = Send {
        topic: Some("load".to_owned()),
        payload: Some(serde_json::value::to_raw_value("3").unwrap()),
        ..Send::default()
    };
    let request = SendRequest {
        send,
        wait: Some(DurationText(LONG)),
        ..SendRequest::default()
    };
    let begun = tokio::time::Instant::now();
    let sent: SendReply = operator.post("/v1/messages", &request).await.unwrap();
    assert_eq!(
        format!("{:?} {:?}", sent.admission, sent.outcome),
        "Sent None"
    );
    assert!(sent.reason.unwrap().contains("at most once"));
    assert!(begun.elapsed() < LONG / 2, "it did not wait in vain");
    link.close().await;
    node.stop(LONG).await;

    let (node, operator) = start(folder.path(), "").await;
    let list = peers(&operator).await;
    let stranded: Vec<_> = list
        .stranded
        .iter()
        .map(|gone| (&*gone.peer, gone.items))
        .collect();
    assert_eq!((list.peers.len(), stranded), (0, vec![("east", 2)]));
    node.stop(LONG).await;

    let (node, operator) = start(folder.path(), &entry(", giveUpAfter: 1s")).await;
    assert_eq!(peers(&operator).await.stranded, []);
    let list = becomes(
        "parked",
        async || parked(&operator).await,
        |list| list.items.len() == 2,
    );
    for item in list.await.items {
        assert_eq!(item.queue, "outbox/east");
        assert!(
            item.reason
                .contains("peer `east` was not reached within 1s"),
            "{item:?}"
        );
    }
    let peer = peers(&operator).await.peers.remove(0);
    assert_eq!((peer.outbox.parked, peer.outbox.ready), (2, 0), "{peer:?}");
    node.stop(LONG).await;
    tasks.drain(LONG).await;
}
