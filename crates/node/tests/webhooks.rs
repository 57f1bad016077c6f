//! Webhooks of a running node, on real sockets: what is believed, and what reaches a target.

#![expect(clippy::unwrap_used, reason = "a test whose setup fails has failed")]

use std::{collections::BTreeMap, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
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
    },
    messaging::{
        AgentId, ContentType, Delivery, Message, Payload, Sender, delivery::message_key,
        webhook::Target,
    },
    ops::{
        api::{Send, SendReply, SendRequest},
        client::Client,
    },
    store::{Filter, MemoryConfig, MemoryStore, Seq},
};

const LONG: Duration = Duration::from_secs(20);
const SECRET: &str = "correct-horse-battery-staple";
const AGENT: &str = "apiVersion: agent.dev/v1\nkind: Agent\nmetadata:\n  name: worker\nspec:\n  handler: [sh, -c, 'exit 1']\n  \
                     topics: [hooks/in]\n  delivery: {maxAttempts: 100, backoff: {base: 1h, max: 1h}}\n";

struct World {
    _folder: tempfile::TempDir,
    node: Node,
    operator: Client,
}

async fn start(webhooks: &str) -> World {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("worker")).unwrap();
    std::fs::write(folder.path().join("worker/agent.yaml"), AGENT).unwrap();
    let fleet = format!(
        "apiVersion: volary.dev/v1\nkind: Fleet\nmetadata: {{name: f}}\nspec:\n  agents: [./worker]\n  \
         secrets: {{hooks: {{key: {{fromEnv: KEY}}}}}}\n  messaging:\n    webhooks:\n{webhooks}"
    );
    std::fs::write(folder.path().join("fleet.yaml"), fleet).unwrap();
    let node = Node::start(config(folder.path())).await.unwrap();
    let token = std::fs::read_to_string(node.state_dir().join("operator.token")).unwrap();
    let operator = Client::tcp(node.ops_addr()).token(Secret::new(token.trim()));
    World {
        _folder: folder,
        node,
        operator,
    }
}

fn config(folder: &Path) -> NodeConfig {
    let options = LoadOptions {
        files: Files::disk(),
        env: &|name| (name == "KEY").then(|| SECRET.to_owned()),
        backends: spec::BACKENDS,
        insecure_bind: false,
    };
    let fleet = spec::load_fleet(folder, &options)
        .unwrap_or_else(|problems| panic!("{problems}"))
        .fleet;
    let clock = SystemClock::shared();
    let store = MemoryStore::new(MemoryConfig::new(Name::new("test").unwrap()), clock.clone());
    NodeConfig {
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
        clock,
        store: Some(Arc::new(store)),
    }
}

impl World {
    async fn send(&self, to: &str, text: &str) {
        let payload = serde_json::value::to_raw_value(text).unwrap();
        let send = Send {
            to: Some(Name::new(to).unwrap()),
            payload: Some(payload),
            ..Send::default()
        };
        let request = SendRequest {
            send,
            ..SendRequest::default()
        };
        let reply = self
            .operator
            .post::<SendReply>("/v1/messages", &request)
            .await
            .unwrap();
        assert_eq!(format!("{:?}", reply.admission), "Queued");
    }

    /// The bodies of the journal's entries of a kind.
    async fn journal(&self, kind: &str) -> Vec<String> {
        let page = self
            .node
            .store()
            .read(Seq::FIRST, &Filter::kind(kind), 1000)
            .await
            .unwrap();
        page.rows
            .iter()
            .map(|row| String::from_utf8_lossy(&row.body).into_owned())
            .collect()
    }

    async fn becomes(&self, what: &str, kind: &str, count: usize) -> Vec<String> {
        let reached = clock::timeout(LONG, async {
            loop {
                let found = self.journal(kind).await;
                if found.len() >= count {
                    return found;
                }
                tokio::task::yield_now().await;
            }
        });
        reached
            .await
            .unwrap_or_else(|_| panic!("{what}: no {count} entries {kind}"))
    }
}

/// What our own sender would put around `body`: Standard Webhooks.
fn standard(id: &str, body: &str) -> String {
    let name = |text: &str| Name::new(text).unwrap();
    let sender = Sender::new(AgentId::from_bytes([1; 32]), name("us"), Tenant::default());
    let now = SystemClock.wall();
    let message = Message::builder(sender).broadcast().build(now).unwrap();
    let delivery = Delivery {
        id: message.id(),
        kind: volary::messaging::DeliveryKind::Message,
        topic: None,
        sender: "us".into(),
        tenant: Tenant::default(),
        trace: message.trace(),
        attempt: 1,
        idempotency_key: format!("{id}-{}", message_key(&message, &name("them")).len()),
        message: None,
        task: None,
        headers: Default::default(),
        deadline: None,
        replayed: None,
        payload: Payload::new(ContentType::JSON, body.to_owned()).unwrap(),
    };
    let target = Target {
        url: String::new(),
        secret: Some(Secret::new(SECRET)),
        headers: Vec::new(),
    };
    let headers = target.request(&delivery, now).headers;
    headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect()
}

async fn post(address: SocketAddr, path: &str, headers: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    );
    // A refusal may come before all is written.
    let _cut = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _reset = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}

/// T (webhooks): `emit_as` task, from the manifest: an event is one task, however often it is sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signed_webhook_becomes_one_task_of_a_pool() {
    let inbound = "      inbound: [{name: shop, secretName: hooks, secretKey: key, emitAs: task, pool: desk}]\n";
    let world = start(inbound).await;
    let body = "{\"order\":7}";
    let signed = standard("e1", body);
    for _ in 0..2 {
        let address = world.node.ops_addr();
        let (status, answer) = post(address, "/v1/webhooks/shop", &signed, body).await;
        assert_eq!(status, 202, "{answer}");
    }
    let submitted = world.journal("task.submitted").await;
    assert_eq!(submitted.len(), 1, "{submitted:?}");
    let listed = world.operator.get::<serde_json::Value>("/v1/tasks", &());
    let listed = listed.await.unwrap();
    let task = &listed["tasks"][0];
    assert_eq!(
        (&task["pool"], &task["inputs"], &task["submitted_by"]),
        (
            &"desk".into(),
            &serde_json::json!({"order": 7}),
            &"webhook".into()
        ),
        "{listed}"
    );
    assert_eq!(task["objective"]["webhook"], "shop", "{listed}");
    world.node.stop(LONG).await;
}

/// T (webhooks): valid signature 202 and a message; unknown provider, unsigned and too large are refused, over HTTP.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signed_webhook_becomes_a_message_and_nothing_else_does() {
    let inbound = "      inbound: [{name: shop, secretName: hooks, secretKey: key, topic: hooks/in, duplicates: refuse}]\n";
    let world = start(inbound).await;
    let (address, path, body) = (world.node.ops_addr(), "/v1/webhooks/shop", "{\"order\":7}");
    let signed = standard("e1", body);
    let (status, answer) = post(address, path, &signed, body).await;
    assert!(
        status == 202 && answer.ends_with("{\"status\":\"accepted\"}"),
        "{answer}"
    );
    assert_eq!(
        world
            .becomes("the message", "message.accepted", 1)
            .await
            .len(),
        1
    );
    let (status, answer) = post(address, path, &signed, body).await;
    assert!(
        status == 401 && answer.contains("accepted before"),
        "{answer}"
    );
    for (path, headers, body) in [
        ("/v1/webhooks/nobody", signed.as_str(), body),
        (path, &signed, "{\"order\":8}"),
        (path, "content-type: application/json\r\n", body),
    ] {
        let (status, answer) = post(address, path, headers, body).await;
        assert_eq!(status, 401, "{answer}");
        assert!(!answer.contains(SECRET));
    }
    let large = "x".repeat((1 << 20) + 1);
    assert_eq!(post(address, path, &signed, &large).await.0, 413);
    // The route opens nothing else, and no operator's token is needed or helps.
    assert_eq!(post(address, "/v1/messages", &signed, body).await.0, 401);
    assert_eq!(world.journal("message.accepted").await.len(), 1);
    world.node.stop(LONG).await;
}

/// A target that answers each request with the next of `answers` and remembers what it was sent.
async fn target(
    answers: &'static [&'static str],
) -> (SocketAddr, tokio::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (told, sent) = tokio::sync::mpsc::channel(16);
    #[expect(
        clippy::disallowed_methods,
        reason = "a peer of the test's own, gone with its runtime"
    )]
    tokio::task::spawn(async move {
        for answer in answers {
            let (stream, _) = listener.accept().await.unwrap();
            told.send(serve(stream, answer).await).await.unwrap();
        }
    });
    (address, sent)
}

/// Answers one request, and says what it was.
async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: &str) -> String {
    let mut request = Vec::new();
    while !request.ends_with(b"\"hello\"") {
        let mut piece = [0; 1024];
        let count = stream.read(&mut piece).await.unwrap();
        assert!(count > 0, "the request ends early");
        request.extend_from_slice(&piece[..count]);
    }
    let answer = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(answer.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    String::from_utf8(request).unwrap()
}

const CERTIFICATES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/certificates");

/// A target behind TLS, as `localhost`; whoever does not like its certificate is nobody to it.
async fn tls_target() -> (u16, tokio::sync::mpsc::Receiver<String>) {
    let read = |name: &str| std::fs::read(format!("{CERTIFICATES}/{name}")).unwrap();
    let chain = CertificateDer::pem_slice_iter(&read("server.pem"))
        .collect::<Result<Vec<_>, _>>()
        .unwrap();
    let key = PrivateKeyDer::from_pem_slice(&read("server-key.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (told, sent) = tokio::sync::mpsc::channel(16);
    #[expect(
        clippy::disallowed_methods,
        reason = "a peer of the test's own, gone with its runtime"
    )]
    tokio::task::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            if let Ok(stream) = acceptor.accept(stream).await {
                told.send(serve(stream, "200 OK").await).await.unwrap();
            }
        }
    });
    (port, sent)
}

/// Over TLS, the certificates of `caFile` are believed and no others, and only for the name that is asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_behind_tls_gets_it_only_where_its_certificate_is_believed() {
    let (port, mut sent) = tls_target().await;
    let more = "secretName: hooks, secretKey: key, allowPrivate: true, maxAttempts: 1";
    let world = start(&format!(
        "      outbound:\n        \
         - {{name: good, topics: [a], url: \"https://localhost:{port}/hook\", caFile: {CERTIFICATES}/ca.pem, {more}}}\n        \
         - {{name: foreign, topics: [b], url: \"https://localhost:{port}/\", caFile: {CERTIFICATES}/other-ca.pem, {more}}}\n        \
         - {{name: misnamed, topics: [c], url: \"https://127.0.0.1:{port}/\", caFile: {CERTIFICATES}/ca.pem, {more}}}\n"
    ))
    .await;
    for target in ["foreign", "misnamed"] {
        world.send(target, "hello").await;
    }
    let parked = world.becomes("parking", "delivery.parked", 2).await;
    let parked = parked.join("\n");
    for problem in ["UnknownIssuer", "not valid for name"] {
        assert!(parked.contains(problem), "{problem}: {parked}");
    }
    world.send("good", "hello").await;
    let request = clock::timeout(LONG, sent.recv()).await.unwrap().unwrap();
    assert!(request.starts_with("POST /hook HTTP/1.1\r\n"), "{request}");
    assert_eq!(header(&request, "host"), format!("localhost:{port}"));
    assert!(header(&request, "webhook-signature").starts_with("v1,"));
    world.becomes("the ack", "delivery.acked", 1).await;
    assert!(sent.try_recv().is_err(), "nobody else has sent anything");
    world.node.stop(LONG).await;
}

fn header(request: &str, name: &str) -> String {
    let line = request
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{name}: ")));
    line.unwrap_or_else(|| panic!("no {name} in {request}"))
        .to_owned()
}

/// T (webhooks): retry to third success, over HTTP, under one idempotency key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_reaches_a_target_that_fails_twice() {
    let (address, mut sent) = target(&["503 Busy", "500 Oops", "200 OK"]).await;
    let world = start(&format!(
        "      outbound: [{{name: partner, topics: [results], url: \"http://{address}/hook?v=1\", secretName: hooks, secretKey: key, \
         authorizationName: hooks, authorizationKey: key, allowPrivate: true}}]\n"
    )).await;
    world.send("partner", "hello").await;
    let mut keys = Vec::new();
    for _ in 0..3 {
        let request = clock::timeout(LONG, sent.recv()).await.unwrap().unwrap();
        assert!(
            request.starts_with("POST /hook?v=1 HTTP/1.1\r\n"),
            "{request}"
        );
        assert_eq!(header(&request, "authorization"), SECRET);
        assert!(header(&request, "webhook-signature").starts_with("v1,"));
        keys.push(header(&request, "idempotency-key"));
    }
    assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    world.becomes("the ack", "delivery.acked", 1).await;
    assert_eq!(world.journal("delivery.failed").await.len(), 2);
    world.node.stop(LONG).await;
}

/// Improve: a target on this machine is not asked unless that is allowed, and a redirect is not followed to one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_addresses_and_redirects_lead_nowhere() {
    let (inside, mut asked) = target(&["200 OK"]).await;
    let (redirecting, mut sent) = target(&["307 Elsewhere\r\nLocation: http://127.0.0.1:1/"]).await;
    let world = start(&format!(
        "      outbound:\n        - {{name: inside, topics: [a], url: \"https://localhost:{}/\"}}\n        \
         - {{name: moved, topics: [b], url: \"http://{redirecting}/\", allowPrivate: true}}\n",
        inside.port()
    )).await;
    world.send("inside", "hello").await;
    world.send("moved", "hello").await;
    let parked = world
        .becomes("parking", "delivery.parked", 2)
        .await
        .join("\n");
    assert!(parked.contains("not on the public internet"), "{parked}");
    assert!(parked.contains("redirects are not followed"), "{parked}");
    assert!(sent.recv().await.is_some());
    assert!(asked.try_recv().is_err(), "the private target was asked");
    world.node.stop(LONG).await;
}
