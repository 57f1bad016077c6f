//! The small server of an embedded runtime: `/health`, `/ready` and `/metrics`, open, and nothing else.
//!
//! It is the node's server without sections and tokens: the same thread of its own, the same connections and bounds.
//! What it tells comes from functions of its owner, which may be a user's: they run beside the server's thread, for a
//! bounded time, and a panic or a delay is an answer of 503.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use serde::Serialize;
use tokio::sync::{Mutex, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};
use volary_kernel::{
    SharedClock, clock,
    collector::MetricsCollector,
    metric::Metrics,
    ready::{Check, Report},
    secret::Redactor,
    task::{DrainReport, Supervisor, TaskKind},
};

use super::{
    Limits, StdListener, TcpConfig,
    body::{Content, OpsBody},
    conn::Answering,
    front::{Entrance, FIXED_HEADERS},
    io::Watched,
    listen, serve,
};
use crate::{
    OpsError,
    api::CheckView,
    host,
    metrics::OpsMetrics,
    negotiate::{Exposition, exposition},
    section::Surface,
};

/// Time for a check to answer; below that of usual probes (Kubernetes: 1 s by default, often raised, never above this).
pub const DEFAULT_CHECK: Duration = Duration::from_secs(2);

/// Tells how something is. It may take time and panic.
pub type ProbeFn = Arc<dyn Fn() -> Report + Send + Sync>;

/// What a [`ProbeServer`] tells, and its bounds.
#[derive(Clone)]
pub struct ProbeParts {
    /// Version for `volary_build_info`.
    pub version: String,
    /// The clock.
    pub clock: SharedClock,
    /// What `/health` asks.
    pub health: ProbeFn,
    /// What `/ready` asks.
    pub ready: ProbeFn,
    /// What `/metrics` tells; nothing, in an empty answer of 200, without one.
    pub metrics: Option<MetricsCollector>,
    /// Where to listen.
    pub tcp: TcpConfig,
    /// Bounds of connections and requests.
    pub limits: Limits,
    /// Time for a check; default [`DEFAULT_CHECK`].
    pub check: Duration,
    /// How long open requests may take to finish at the stop.
    pub drain: Duration,
}

/// A bound server of probes; [`ProbeServer::spawn`] lets it answer.
pub struct ProbeServer {
    front: Arc<ProbeFront>,
    listener: StdListener,
    address: SocketAddr,
    drain: Duration,
}

impl ProbeServer {
    /// Binds. Nothing is answered before [`ProbeServer::spawn`].
    ///
    /// # Errors
    /// [`OpsError::Bind`], [`OpsError::NotLoopback`].
    pub fn bind(parts: ProbeParts) -> Result<Self, OpsError> {
        let (listener, address) = listen::tcp(&parts.tcp)?;
        let own = parts
            .metrics
            .as_ref()
            .map_or_else(Metrics::default, |all| all.parts().clone());
        let front = Arc::new(ProbeFront {
            health: Asked::new(parts.health, parts.check),
            ready: Asked::new(parts.ready, parts.check),
            collector: parts.metrics,
            metrics: OpsMetrics::new(&own, &parts.version),
            allowed_hosts: parts.tcp.allowed_hosts,
            limits: parts.limits,
            clock: parts.clock,
            stopping: CancellationToken::new(),
        });
        Ok(Self {
            front,
            listener: StdListener::Tcp(listener),
            address,
            drain: parts.drain,
        })
    }

    /// The address it got.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers from a thread of its own until it is stopped or dropped.
    ///
    /// # Errors
    /// [`OpsError::Resources`].
    pub fn spawn(self) -> Result<RunningProbes, OpsError> {
        let Self {
            front,
            listener,
            address,
            drain,
        } = self;
        let tasks = Supervisor::new();
        let stop = front.stopping.clone();
        let (done, drained) = oneshot::channel();
        let ends = stop.clone();
        let thread = move || serve(front, vec![listener], ends, drain, done);
        tasks
            .spawn_thread(TaskKind::new("ops-probes"), thread)
            .map_err(OpsError::Resources)?;
        Ok(RunningProbes {
            address,
            stop: stop.drop_guard(),
            drained,
        })
    }
}

/// A server of probes that answers.
#[derive(Debug)]
pub struct RunningProbes {
    address: SocketAddr,
    stop: DropGuard,
    drained: oneshot::Receiver<DrainReport>,
}

impl RunningProbes {
    /// The address it got.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it: idle connections close at once, open requests have their time. The port is free when this returns.
    ///
    /// # Errors
    /// [`OpsError::Resources`] if its thread had ended before.
    pub async fn stop(self) -> Result<DrainReport, OpsError> {
        drop(self.stop);
        super::finished(self.drained.await)
    }
}

/// A check that is asked one at a time, for a bounded time.
struct Asked {
    probe: ProbeFn,
    limit: Duration,
    one: Arc<Mutex<()>>,
}

impl Asked {
    fn new(probe: ProbeFn, limit: Duration) -> Self {
        Self {
            probe,
            limit,
            one: Arc::default(),
        }
    }

    /// The report; a panic or a delay is one, too. A check that hangs holds one thread, not one for each request.
    async fn ask(&self) -> Report {
        let answer = clock::timeout(self.limit, async {
            let alone = self.one.clone().lock_owned().await;
            let probe = self.probe.clone();
            let asking = tokio::task::spawn_blocking(move || {
                let _alone = alone;
                probe()
            });
            asking.await
        });
        let reason = match answer.await {
            Ok(Ok(report)) => return report,
            Ok(Err(_)) => "the check panicked".to_owned(),
            Err(elapsed) => format!("the check {elapsed}"),
        };
        Report {
            ok: false,
            checks: vec![Check {
                name: "check".to_owned(),
                ok: false,
                reason: Some(reason),
                last_beat_seconds: None,
            }],
        }
    }
}

struct ProbeFront {
    health: Asked,
    ready: Asked,
    collector: Option<MetricsCollector>,
    metrics: OpsMetrics,
    allowed_hosts: Vec<String>,
    limits: Limits,
    clock: SharedClock,
    stopping: CancellationToken,
}

#[derive(Serialize)]
struct Words {
    status: &'static str,
    checks: Vec<CheckView>,
}

#[derive(Serialize)]
struct Problem {
    error: &'static str,
}

impl Answering for ProbeFront {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn metrics(&self) -> &OpsMetrics {
        &self.metrics
    }

    fn clock(&self) -> &SharedClock {
        &self.clock
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        entrance: Entrance,
        watched: &Watched,
    ) -> Response<OpsBody> {
        let begun = self.clock.mono();
        let busy = watched.busy();
        let mut response = self.respond(&request, entrance).await;
        let took = self.clock.mono() - begun;
        self.metrics
            .answered(Surface::Operator, response.status(), took);
        response.body_mut()._busy = Some(busy);
        for (name, value) in FIXED_HEADERS {
            let value = HeaderValue::from_static(value);
            response.headers_mut().insert(name, value);
        }
        if entrance.spare || self.stopping.is_cancelled() {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        response
    }
}

impl ProbeFront {
    async fn respond(&self, request: &Request<Incoming>, entrance: Entrance) -> Response<OpsBody> {
        if !self.is_ours(request, entrance) {
            let error = "the Host header names another server";
            return json(StatusCode::FORBIDDEN, &Problem { error });
        }
        let path = request.uri().path();
        if !matches!(path, "/health" | "/ready" | "/metrics") {
            return json(StatusCode::NOT_FOUND, &Problem { error: "not found" });
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let error = "only GET and HEAD are taken here";
            let mut response = json(StatusCode::METHOD_NOT_ALLOWED, &Problem { error });
            let allow = HeaderValue::from_static("GET, HEAD");
            response.headers_mut().insert(header::ALLOW, allow);
            return response;
        }
        match path {
            "/health" => told(self.health.ask().await, "ok", "unhealthy"),
            "/ready" => told(self.ready.ask().await, "ready", "not_ready"),
            _ => self.scrape(request),
        }
    }

    /// Whether the request is meant for us. A name that was made to resolve to this machine is not; no name at all, as
    /// simple probes send, is.
    fn is_ours(&self, request: &Request<Incoming>, entrance: Entrance) -> bool {
        let named = request.headers().get_all(header::HOST).iter();
        entrance.local.is_none_or(|local| {
            named
                .map(|value| value.to_str().unwrap_or_default())
                .all(|host| host::allowed(host, local, &self.allowed_hosts))
        })
    }

    fn scrape(&self, request: &Request<Incoming>) -> Response<OpsBody> {
        let accept: Vec<&str> = request
            .headers()
            .get_all(header::ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .collect();
        let accept = (!accept.is_empty()).then(|| accept.join(","));
        let form = exposition(accept.as_deref());
        let (form, text) = match (&self.collector, form) {
            (None, _) => (Exposition::Text, String::new()),
            (Some(all), Exposition::Text) => (form, all.encode_text()),
            (Some(all), Exposition::OpenMetrics) => (form, all.encode_openmetrics()),
        };
        whole(StatusCode::OK, form.content_type(), text.into_bytes())
    }
}

fn told(report: Report, good: &'static str, bad: &'static str) -> Response<OpsBody> {
    let (status, word) = if report.ok {
        (StatusCode::OK, good)
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, bad)
    };
    let checks = crate::health::views(report, &Redactor::default());
    json(
        status,
        &Words {
            status: word,
            checks,
        },
    )
}

fn json(status: StatusCode, document: &impl Serialize) -> Response<OpsBody> {
    let text = serde_json::to_vec(document)
        .expect("strings, numbers and truth values always encode as JSON");
    whole(status, "application/json", text)
}

fn whole(status: StatusCode, content_type: &'static str, text: Vec<u8>) -> Response<OpsBody> {
    let body = OpsBody {
        content: Content::whole(text),
        _busy: None,
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    response
}
