//! A server on real sockets, with a section whose routes do what the tests need.

#![expect(
    dead_code,
    clippy::unwrap_used,
    reason = "each test file uses a part of these helpers; a panic is a failed test"
)]

use std::{
    io,
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use tokio::sync::Notify;
use volary_kernel::{
    Name, SystemClock, Tenant,
    metric::Metrics,
    ready::Readiness,
    secret::{Redactor, Secret},
    task::{DrainReport, Supervisor, TaskKind},
};
use volary_ops::{
    ApiError, Json, LinkPeer, OpsConfig, OpsHandle, OpsParts, OpsServer, Principal, Query, Route,
    Section, Signals, SocketConfig, Stopping, TokenTable, client::Client,
};
use volary_store::{Batch, Entry, MemoryConfig, MemoryStore, SharedStore};

pub const LONG: Duration = Duration::from_secs(20);

/// Everything around a running server.
pub struct Running {
    pub folder: tempfile::TempDir,
    pub handle: OpsHandle,
    pub tasks: Supervisor,
    pub readiness: Readiness,
    pub metrics: Metrics,
    pub redactor: Redactor,
    pub signals: Signals,
    pub store: SharedStore,
    pub section: TestSection,
}

/// Starts a server in the runtime that is entered, after `change` had its way with the settings.
pub fn start(change: impl FnOnce(&mut OpsConfig)) -> Running {
    let folder = tempfile::tempdir().unwrap();
    let mut config = OpsConfig::new(folder.path().join("operator.token"));
    config.socket = Some(SocketConfig::new(folder.path().join("link.sock")));
    change(&mut config);
    let clock = SystemClock::shared();
    let store: SharedStore = Arc::new(MemoryStore::new(
        MemoryConfig::new(name("node-1")),
        clock.clone(),
    ));
    let (readiness, metrics, redactor) = (
        Readiness::new(clock.clone()),
        Metrics::default(),
        Redactor::default(),
    );
    let (section, signals) = (TestSection::default(), Signals::default());
    let parts = OpsParts {
        version: "1.2.3".to_owned(),
        clock,
        readiness: readiness.clone(),
        metrics: metrics.clone(),
        redactor: redactor.clone(),
        store: store.clone(),
        signals: signals.clone(),
        links: TokenTable::default(),
        sections: vec![Arc::new(section.clone())],
    };
    let server = OpsServer::bind(config, parts).unwrap();
    let (handle, tasks) = (server.handle(), Supervisor::new());
    let run = server.run(tasks.clone());
    tasks.spawn(TaskKind::new("ops-run").vital(), async move {
        run.await?;
        Ok(())
    });
    Running {
        folder,
        handle,
        tasks,
        readiness,
        metrics,
        redactor,
        signals,
        store,
        section,
    }
}

impl Running {
    pub fn address(&self) -> SocketAddr {
        self.handle.address().unwrap()
    }

    /// A client with the operator token.
    pub fn operator(&self) -> Client {
        Client::tcp(self.address()).token(self.handle.operator_token().clone())
    }

    /// A new link token of a replica.
    pub fn link_token(&self, replica: &str) -> Secret {
        self.handle.links().issue(peer(replica)).unwrap()
    }

    /// A client with a link token.
    pub fn link(&self, replica: &str) -> Client {
        Client::unix(self.handle.socket().unwrap()).token(self.link_token(replica))
    }

    /// Appends an entry about agent `a` and returns its sequence number.
    pub async fn append(&self, kind: &'static str, body: &str) -> u64 {
        let mut batch = Batch::new();
        batch.append(Entry::new(kind, Tenant::default(), body.to_owned()).agent(name("a")));
        self.store.commit(batch).await.unwrap().seqs[0].0
    }

    /// The value of the series that begins with `series`, 0 if there is none.
    pub fn metric(&self, series: &str) -> f64 {
        let text = self.metrics.encode_text();
        let line = text.lines().find_map(|line| line.strip_prefix(series));
        line.map_or(0.0, |rest| {
            rest.rsplit(' ').next().unwrap().parse().unwrap()
        })
    }

    pub async fn stop(&self) -> DrainReport {
        self.tasks.drain(LONG).await
    }
}

pub fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub fn peer(replica: &str) -> LinkPeer {
    LinkPeer {
        tenant: Tenant::default(),
        agent: name("a"),
        replica: name(replica),
    }
}

/// Sends `request` as it stands and reads until the server closes.
pub fn raw(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    exchange(&mut stream, request)
}

/// The same over the agents' socket.
pub fn raw_unix(path: &std::path::Path, request: &str) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    exchange(&mut stream, request)
}

fn exchange(stream: &mut (impl io::Read + io::Write), request: &str) -> String {
    // A refusal may come (and the connection go) before all is written.
    let _cut = stream.write_all(request.as_bytes());
    let mut answer = Vec::new();
    let _reset = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

/// A `GET` that closes its connection, with more header lines.
pub fn get(path: &str, headers: &[&str]) -> String {
    let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n")
}

pub fn status(answer: &str) -> u16 {
    let code = answer.split(' ').nth(1);
    code.and_then(|code| code.parse().ok())
        .unwrap_or_else(|| panic!("no status in {answer:?}"))
}

/// Routes that do what the tests need.
#[derive(Clone, Default)]
pub struct TestSection {
    pub release: Arc<Notify>,
    pub begun: Arc<AtomicUsize>,
    pub finished: Arc<AtomicUsize>,
    pub dropped: Arc<AtomicUsize>,
}

struct CountDrop(Arc<AtomicUsize>);

impl Drop for CountDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl TestSection {
    async fn wait(self) -> Json<&'static str> {
        let guard = CountDrop(self.dropped.clone());
        self.begun.fetch_add(1, Ordering::SeqCst);
        self.release.notified().await;
        self.finished.fetch_add(1, Ordering::SeqCst);
        drop(guard);
        Json("done")
    }
}

#[derive(serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Echo {
    pub text: String,
}

async fn echo(Json(echo): Json<Echo>) -> Json<Echo> {
    Json(echo)
}

async fn fail(Query(echo): Query<Echo>) -> ApiError {
    ApiError::not_found(format!("there is no {}", echo.text))
}

async fn who(principal: Principal) -> String {
    format!("{principal:?}")
}

async fn boom() {
    panic!("the handler's own secret words");
}

/// Pieces of 16 KiB without end.
async fn flood() -> Body {
    Body::from_stream(stream::repeat_with(|| {
        Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; 16 << 10]))
    }))
}

/// Two pieces, then a failure.
async fn broken() -> Body {
    let failure = || std::io::Error::other("cut");
    Body::from_stream(stream::iter([
        Ok(Bytes::from("a\n")),
        Ok(Bytes::from("b\n")),
        Err(failure()),
    ]))
}

/// A long poll that nothing ever comes to.
async fn poll(stopping: Stopping) -> Json<&'static str> {
    stopping.begun().await;
    Json("nothing")
}

async fn uri(uri: axum::http::Uri, headers: axum::http::HeaderMap) -> String {
    format!("{uri} {headers:?}")
}

async fn knock(who: Principal, body: Bytes) -> String {
    format!("{who:?} {}", body.len())
}

impl Section for TestSection {
    fn name(&self) -> &'static str {
        "test"
    }

    fn routes(&self) -> Vec<Route> {
        let [wait, change, agent, changing] = [(); 4].map(|()| self.clone());
        vec![
            Route::post("/v1/echo", echo)
                .summary("Echoes")
                .takes::<Echo>()
                .gives::<Echo>(),
            Route::get("/v1/things/{id}", fail).query::<Echo>(),
            Route::delete("/v1/things/{id}", async || Json("gone")),
            Route::get("/v1/who", who),
            Route::get("/v1/who", who).link(),
            Route::post("/v1/echo", echo)
                .link()
                .takes::<Echo>()
                .gives::<Echo>(),
            Route::post("/v1/knock/{id}", knock).open(64),
            Route::get("/v1/boom", boom),
            Route::get("/v1/flood", flood).streams("application/octet-stream"),
            Route::get("/v1/broken", broken).streams("text/plain"),
            Route::get("/v1/uri", uri),
            Route::get("/v1/wait", async move || wait.clone().wait().await),
            Route::post("/v1/wait", async move || change.clone().wait().await),
            Route::get("/v1/wait", async move || agent.clone().wait().await).link(),
            Route::post("/v1/wait", async move || changing.clone().wait().await).link(),
            Route::get("/v1/poll", poll).link(),
        ]
    }

    fn snapshot(&self) -> serde_json::Value {
        serde_json::json!({"begun": self.begun.load(Ordering::SeqCst)})
    }
}
