//! The conformance cases of the embedded ops server, on real sockets. Each test's documentation begins with its case;
//! `docs/reference/conformance-runtime-operations.md` lists them all.

#![expect(clippy::unwrap_used, reason = "a test whose setup fails has failed")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use volary::{
    RuntimeOpsServer,
    kernel::{
        clock::{ManualClock, SystemClock},
        collector::MetricsCollector,
        metric::Metrics,
        testing::eventually,
    },
    messaging::{
        Identity, Local, Message, Sender, Transport,
        agent::{
            Agent, AgentError, AgentRuntime, AgentRuntimeBuilder, Companion, Cx, Decision,
            RestartPolicy, RuntimeError,
        },
        task::Task,
    },
    ops::Limits,
};

const LONG: Duration = Duration::from_secs(20);

struct Quiet(Identity, bool);

impl Agent for Quiet {
    fn identity(&self) -> &Identity {
        &self.0
    }
    async fn decide(
        &mut self,
        _: &[Message],
        _: &[Task],
        _: &Cx<'_>,
    ) -> Result<Vec<Decision>, AgentError> {
        if self.1 {
            return Err("broken".into());
        }
        Ok(Vec::new())
    }
}

fn bus() -> Local {
    Local::new(SystemClock::shared(), &Metrics::default())
}

fn builder(bus: Local) -> AgentRuntimeBuilder<Quiet, Local> {
    AgentRuntime::builder(Quiet(Identity::generate().unwrap(), false), bus)
}

/// A started runtime with its server on a free port.
async fn started(
    builder: AgentRuntimeBuilder<Quiet, Local>,
    metrics: Option<MetricsCollector>,
) -> (AgentRuntime<Quiet, Local>, SocketAddr) {
    let runtime = builder.build().unwrap();
    let server = RuntimeOpsServer::new(&runtime, metrics, "127.0.0.1", 0);
    runtime.set_ops_server(server.clone()).unwrap();
    runtime.start().await.unwrap();
    let address = server.address().unwrap();
    (runtime, address)
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

async fn ask(address: SocketAddr, request: &str) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{request}\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    Answer {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head: head.to_lowercase(),
        body: body.to_owned(),
    }
}

async fn get(address: SocketAddr, path: &str) -> Answer {
    ask(address, &format!("GET {path} HTTP/1.1")).await
}

/// Status, the word of `status`, and the reasons.
async fn told(address: SocketAddr, path: &str) -> (u16, String, Vec<String>) {
    let answer = get(address, path).await;
    let json: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    let reasons = json["checks"].as_array().unwrap().iter();
    let reasons = reasons.filter_map(|check| check["reason"].as_str());
    (
        answer.status,
        json["status"].as_str().unwrap().to_owned(),
        reasons.map(str::to_owned).collect(),
    )
}

/// T1 (ops): `/health` is 200 and says ok.
#[tokio::test]
async fn health_is_200_and_ok() {
    let (runtime, address) = started(builder(bus()), None).await;
    assert_eq!(told(address, "/health").await, (200, "ok".into(), vec![]));
    let answer = get(address, "/health").await;
    assert!(
        answer.head.contains("content-type: application/json"),
        "{}",
        answer.head
    );
    assert!(answer.head.contains("content-length: "), "{}", answer.head);
    assert!(runtime.stop().await.is_clean());
}

/// T2 (ops): `/ready` is 200 and says ready.
#[tokio::test]
async fn ready_is_200_and_ready() {
    let (runtime, address) = started(builder(bus()), None).await;
    assert_eq!(told(address, "/ready").await, (200, "ready".into(), vec![]));
    assert!(runtime.stop().await.is_clean());
}

/// T3 (ops): `/metrics` is 200 and contains `messages_sent 2` and `pool_size 3.0`.
#[tokio::test]
async fn metrics_are_200_and_hold_what_was_collected() {
    let metrics = MetricsCollector::new();
    metrics.inc("messages_sent", 2).unwrap();
    metrics.set_gauge("pool_size", 3.0).unwrap();
    let (runtime, address) = started(builder(bus()), Some(metrics)).await;
    let answer = get(address, "/metrics").await;
    assert_eq!(answer.status, 200);
    for line in ["messages_sent 2", "pool_size 3.0"] {
        assert!(
            answer.body.lines().any(|found| found == line),
            "{}",
            answer.body
        );
    }
    let kind = "content-type: text/plain; version=0.0.4; charset=utf-8";
    assert!(answer.head.contains(kind), "{}", answer.head);
    let accept = "GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text; version=1.0.0";
    let open = ask(address, accept).await;
    assert!(
        open.body.contains("\nmessages_sent_total 2\n"),
        "{}",
        open.body
    );
    assert!(open.body.ends_with("# EOF\n"), "{}", open.body);
    assert!(runtime.stop().await.is_clean());
}

/// T4 (ops): an unhealthy check is 503.
#[tokio::test]
async fn an_unhealthy_check_is_503_and_says_why() {
    let builder = builder(bus()).health_check(|| Err("disk full"));
    let (runtime, address) = started(builder, None).await;
    let expected = (503, "unhealthy".into(), vec!["disk full".into()]);
    assert_eq!(told(address, "/health").await, expected);
    assert_eq!(told(address, "/ready").await.0, 200, "they are independent");
    runtime.stop().await;
}

/// T5 (ops): a check that is not ready is 503.
#[tokio::test]
async fn an_unready_check_is_503_and_says_why() {
    let open = Arc::new(AtomicBool::new(false));
    let gate = open.clone();
    let builder = builder(bus()).ready_check(move || gate.load(Ordering::Relaxed));
    let (runtime, address) = started(builder, None).await;
    let expected = (503, "not_ready".into(), vec!["it says no".into()]);
    assert_eq!(told(address, "/ready").await, expected);
    assert_eq!(told(address, "/health").await.0, 200);
    open.store(true, Ordering::Relaxed);
    assert_eq!(told(address, "/ready").await.0, 200);
    runtime.stop().await;
}

/// T6 (ops): port 0 gives an address, and none once stopped.
#[tokio::test]
async fn port_zero_gives_an_address() {
    let runtime = builder(bus()).build().unwrap();
    let server = RuntimeOpsServer::new(&runtime, None, "localhost", 0);
    assert_eq!(server.address(), None);
    server.start().await.unwrap();
    let address = server.address().unwrap();
    assert!(
        address.ip().is_loopback() && address.port() != 0,
        "{address}"
    );
    server.start().await.unwrap();
    assert_eq!(
        server.address(),
        Some(address),
        "starting twice changes nothing"
    );
    server.stop().await.unwrap();
    server.stop().await.unwrap();
    assert_eq!(server.address(), None);
    assert!(TcpStream::connect(address).await.is_err());
}

/// T7 (ops): the runtime's start and stop each call the server once, first and last.
#[tokio::test]
async fn start_and_stop_of_the_runtime_call_the_server_once() {
    let calls = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let (starts, stops) = (calls.clone(), calls.clone());
    let count = |calls: &[AtomicUsize; 2], which: usize| {
        calls[which].fetch_add(1, Ordering::Relaxed);
        std::future::ready(Ok(()))
    };
    let companion = Companion::new("spy", move || count(&starts, 0), move || count(&stops, 1));
    let runtime = builder(bus()).ops_server(companion).build().unwrap();
    for _ in 0..2 {
        runtime.start().await.unwrap();
    }
    for _ in 0..2 {
        runtime.stop().await;
    }
    let made = [0, 1].map(|which: usize| calls[which].load(Ordering::Relaxed));
    assert_eq!(made, [1, 1]);
}

/// T8 (ops): healthy and ready are true by default, and ask their own check only. Different on purpose: a runtime that
/// does not run is not ready (decision 13).
#[tokio::test]
async fn healthy_and_ready_are_true_by_default_and_ask_their_own_check() {
    let plain = builder(bus()).build().unwrap();
    assert!(plain.is_healthy() && !plain.is_ready());
    plain.start().await.unwrap();
    assert!(plain.is_healthy() && plain.is_ready());
    plain.stop().await;
    let sick = builder(bus()).health_check(|| false).build().unwrap();
    sick.start().await.unwrap();
    assert!(!sick.is_healthy() && sick.is_ready());
    sick.stop().await;
    let busy = builder(bus()).ready_check(|| false).build().unwrap();
    busy.start().await.unwrap();
    assert!(busy.is_healthy() && !busy.is_ready());
    busy.stop().await;
}

/// D9 (ops): an unknown path is 404 in JSON, another method 405.
#[tokio::test]
async fn an_unknown_path_is_404_json_and_another_method_405() {
    let (runtime, address) = started(builder(bus()), None).await;
    let unknown = get(address, "/nothing").await;
    assert_eq!(
        (unknown.status, unknown.body.as_str()),
        (404, r#"{"error":"not found"}"#)
    );
    assert!(unknown.head.contains("content-type: application/json"));
    let posted = ask(address, "POST /health HTTP/1.1\r\nContent-Length: 0").await;
    assert_eq!(posted.status, 405);
    let head = ask(address, "HEAD /health HTTP/1.1").await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert!(!head.head.contains("content-length: 0"), "{}", head.head);
    let rebound = "GET /health HTTP/1.1\r\nHost: evil.example";
    assert_eq!(ask(address, rebound).await.status, 403);
    runtime.stop().await;
}

/// D10 (ops): a query is ignored.
#[tokio::test]
async fn a_query_is_ignored() {
    let (runtime, address) = started(builder(bus()), None).await;
    assert_eq!(get(address, "/health?verbose=1&x=%20").await.status, 200);
    assert_eq!(get(address, "/metrics?").await.status, 200);
    runtime.stop().await;
}

/// D11 (ops): without a collector, `/metrics` is an empty 200.
#[tokio::test]
async fn without_a_collector_metrics_are_an_empty_200() {
    let (runtime, address) = started(builder(bus()), None).await;
    let answer = get(address, "/metrics").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));
    runtime.stop().await;
}

/// D12 (ops): a check that panics is 503 with the reason, and so is one that hangs; the other paths still answer.
#[tokio::test]
async fn a_check_that_panics_or_hangs_is_503() {
    let panics = builder(bus()).health_check(|| -> bool { panic!("boom") });
    let (runtime, address) = started(panics, None).await;
    for _ in 0..2 {
        let expected = (503, "unhealthy".into(), vec!["panicked: boom".into()]);
        assert_eq!(told(address, "/health").await, expected);
    }
    runtime.stop().await;
    let (release, hung) = std::sync::mpsc::channel::<()>();
    let hung = parking_lot::Mutex::new(hung);
    let hangs = builder(bus()).health_check(move || hung.lock().recv().is_ok());
    let (runtime, address) = started(hangs, None).await;
    let both = tokio::join!(told(address, "/health"), told(address, "/ready"));
    assert_eq!((both.0.0, both.1.0), (503, 200));
    assert!(
        both.0.2[0].contains("did not finish within 2s"),
        "{:?}",
        both.0
    );
    drop(release);
    runtime.stop().await;
}

/// D13 (ops): a dead loop is 503.
#[tokio::test]
async fn a_dead_loop_is_503() {
    let bus = bus();
    let agent = Quiet(Identity::generate().unwrap(), true);
    let sender = Sender::new(agent.id(), "peer".parse().unwrap(), Default::default());
    let restart = RestartPolicy {
        give_up: Some(1),
        ..RestartPolicy::default()
    };
    let builder = AgentRuntime::builder(agent, bus.clone()).name("dies".parse().unwrap());
    let (runtime, address) = started(builder.restart(restart), None).await;
    assert_eq!(told(address, "/health").await.0, 200);
    let draft = Message::builder(sender).to("dies".parse().unwrap());
    bus.send(draft.build(Default::default()).unwrap()).await;
    assert!(eventually(LONG, || !runtime.is_healthy()).await);
    let (status, word, reasons) = told(address, "/health").await;
    assert_eq!((status, word.as_str()), (503, "unhealthy"));
    assert!(
        reasons.iter().any(|reason| reason == "its loop ended"),
        "{reasons:?}"
    );
    assert_eq!(told(address, "/ready").await.0, 503);
    runtime.stop().await;
}

/// D13 (ops): a loop whose agent blocks its thread is 503 within five seconds, told while the thread is blocked.
#[tokio::test(flavor = "current_thread")]
async fn a_wedged_loop_is_503_while_it_is_wedged() {
    struct Wedge(
        Identity,
        std::sync::mpsc::Receiver<()>,
        std::sync::mpsc::Sender<()>,
    );
    impl Agent for Wedge {
        fn identity(&self) -> &Identity {
            &self.0
        }
        async fn decide(
            &mut self,
            _: &[Message],
            _: &[Task],
            _: &Cx<'_>,
        ) -> Result<Vec<Decision>, AgentError> {
            self.2.send(()).unwrap();
            // The only thread of the runtime: nothing of it moves until the prober lets go.
            let _released = self.1.recv();
            Ok(Vec::new())
        }
    }
    let (bus, time) = (bus(), ManualClock::default());
    let (release, released) = std::sync::mpsc::channel();
    let (wedged, seen) = std::sync::mpsc::channel();
    let agent = Wedge(Identity::generate().unwrap(), released, wedged);
    let sender = Sender::new(agent.id(), "peer".parse().unwrap(), Default::default());
    let runtime = AgentRuntime::builder(agent, bus.clone())
        .name("wedge".parse().unwrap())
        .clock(time.shared())
        .build()
        .unwrap();
    let server = RuntimeOpsServer::new(&runtime, None, "127.0.0.1", 0);
    runtime.set_ops_server(server.clone()).unwrap();
    runtime.start().await.unwrap();
    let address = server.address().unwrap();
    let prober = std::thread::spawn(move || {
        seen.recv().unwrap();
        time.advance(Duration::from_secs(5));
        let probing = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let answer = probing.block_on(told(address, "/health"));
        release.send(()).unwrap();
        answer
    });
    let draft = Message::builder(sender).to("wedge".parse().unwrap());
    bus.send(draft.build(Default::default()).unwrap()).await;
    assert!(eventually(LONG, || prober.is_finished()).await);
    let (status, _, reasons) = prober.join().unwrap();
    assert_eq!(status, 503);
    assert!(reasons[0].contains("silent for 5 s"), "{reasons:?}");
    assert!(eventually(LONG, || runtime.is_healthy()).await);
    runtime.stop().await;
}

/// D14 (ops): idle sockets, more than there are connections, do not block probes.
#[tokio::test]
async fn idle_sockets_do_not_block_probes() {
    let runtime = builder(bus()).build().unwrap();
    let limits = Limits {
        connections: 16,
        ..Limits::default()
    };
    let server = RuntimeOpsServer::new(&runtime, None, "127.0.0.1", 0).limits(limits);
    runtime.set_ops_server(server.clone()).unwrap();
    runtime.start().await.unwrap();
    let address = server.address().unwrap();
    let mut idle = Vec::new();
    for _ in 0..16 {
        idle.push(TcpStream::connect(address).await.unwrap());
    }
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let before = threads();
    let begun = tokio::time::Instant::now();
    for _ in 0..20 {
        assert_eq!(told(address, "/health").await.0, 200);
    }
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    assert!(threads() <= before + 4, "no thread for each socket");
    drop(idle);
    runtime.stop().await;
}

/// Beats the reference (half-started): a port that is taken is told before anything of the runtime is started.
#[tokio::test]
async fn a_taken_port_is_told_before_anything_is_started() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let bus = bus();
    let runtime = builder(bus.clone())
        .name("free".parse().unwrap())
        .build()
        .unwrap();
    let server = RuntimeOpsServer::new(&runtime, None, "127.0.0.1", port);
    runtime.set_ops_server(server).unwrap();
    let Err(RuntimeError::Companion { name, source }) = runtime.start().await else {
        panic!("started on a taken port");
    };
    let words = format!("{name}: {source}");
    assert!(
        words.contains(&format!("cannot listen on 127.0.0.1:{port}")),
        "{words}"
    );
    assert!(!runtime.is_ready());
    let name_is_free = bus.open(volary::messaging::EndpointSpec::new(
        Default::default(),
        "free".parse().unwrap(),
        vec![],
    ));
    assert!(name_is_free.is_ok(), "no endpoint was opened");
    let open = RuntimeOpsServer::new(&runtime, None, "0.0.0.0", 0);
    let refused = open.start().await.unwrap_err().to_string();
    assert!(refused.contains("not a loopback address"), "{refused}");
    let exposed = open.exposed(vec![]);
    exposed.start().await.unwrap();
    exposed.stop().await.unwrap();
}
