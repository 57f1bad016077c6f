//! What the ops thread does with a request: host, open routes, token, body, and over to the main runtime.

use std::{net::IpAddr, sync::Arc};

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, Method, Request, StatusCode, header},
    response::IntoResponse as _,
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::{Response, body::Incoming};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use volary_kernel::{
    SharedClock, clock,
    ready::Readiness,
    secret::{Redactor, Secret},
};

use super::{
    body::{Content, OpsBody},
    config::{Limits, MetricsAccess},
    conn::Answering,
    forward::{Forward, Held},
    io::Watched,
    peers::Peers,
};
use crate::{
    ApiError, Principal, Stopping, TokenTable, auth, code, health, host,
    metrics::OpsMetrics,
    section::{Route, Surface},
};

/// All that answering needs; one for both listeners.
pub(super) struct Front {
    pub(super) readiness: Readiness,
    pub(super) metrics: OpsMetrics,
    pub(super) metrics_access: MetricsAccess,
    pub(super) redactor: Redactor,
    pub(super) operator: Secret,
    pub(super) links: TokenTable,
    pub(super) allowed_hosts: Vec<String>,
    pub(super) limits: Limits,
    pub(super) bodies: Arc<Semaphore>,
    pub(super) peers: Peers,
    pub(super) forward: Forward,
    pub(super) clock: SharedClock,
    pub(super) stopping: CancellationToken,
    /// Routes of the operator API that take strangers.
    pub(super) open: Vec<Route>,
}

/// Where a connection came in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entrance {
    pub(super) surface: Surface,
    /// The address that was dialled, for TCP.
    pub(super) local: Option<IpAddr>,
    /// Whether the connections are at their bound, so that this one is only told about health.
    pub(super) spare: bool,
}

type Answer = Response<OpsBody>;

impl Answering for Front {
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
    ) -> Answer {
        let begun = self.clock.mono();
        let busy = watched.busy();
        let (head, content) = match self.respond(request, entrance).await {
            Ok(relayed) => relayed,
            Err(error) => whole(error.into_response()).await,
        };
        self.metrics
            .answered(entrance.surface, head.status, self.clock.mono() - begun);
        let mut response = Response::from_parts(
            head,
            OpsBody {
                content,
                _busy: Some(busy),
            },
        );
        for (name, value) in FIXED_HEADERS {
            response
                .headers_mut()
                .insert(name, HeaderValue::from_static(value));
        }
        if entrance.spare || self.stopping.is_cancelled() {
            response
                .headers_mut()
                .insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

impl Front {
    async fn respond(
        &self,
        request: Request<Incoming>,
        entrance: Entrance,
    ) -> Result<Ready, ApiError> {
        self.check_host(&request, entrance)?;
        if let Some(open) = self.open_route(&request, entrance)? {
            return Ok(open);
        }
        if entrance.spare {
            return Err(ApiError::new(
                code::OVERLOADED,
                "all connections are taken; only /health and /ready answer here",
            ));
        }
        let open = self.open_to_all(&request, entrance.surface);
        let principal = match open {
            Some(_) => Principal::Stranger,
            None => self.authenticate(&request, entrance.surface)?,
        };
        if request.uri().path() == METRICS && entrance.surface == Surface::Operator {
            return self.scrape(&request);
        }
        let slot = self.peers.enter(&principal)?;
        let limit = open.map_or(self.limits.body_bytes, |limit| {
            limit.min(self.limits.body_bytes)
        });
        let (mut request, body) = self.take_body(request, limit).await?;
        *request.uri_mut() = auth::strip_token(request.uri());
        request.headers_mut().remove(header::AUTHORIZATION);
        request.extensions_mut().insert(principal);
        request
            .extensions_mut()
            .insert(Stopping(self.stopping.clone()));
        let relayed = self
            .forward
            .forward(entrance.surface, request, Held { slot, body })
            .await?;
        Ok((relayed.head, relayed.content))
    }

    fn check_host(&self, request: &Request<Incoming>, entrance: Entrance) -> Result<(), ApiError> {
        let Some(local) = entrance.local else {
            return Ok(());
        };
        let named = request
            .uri()
            .authority()
            .map(|authority| authority.as_str());
        let mut values = request.headers().get_all(header::HOST).iter();
        let (value, second) = (
            values.next().and_then(|value| value.to_str().ok()),
            values.next(),
        );
        let fits = |host: &str| host::allowed(host, local, &self.allowed_hosts);
        if value.is_some_and(fits) && second.is_none() && named.is_none_or(fits) {
            return Ok(());
        }
        self.refused(entrance.surface, "host");
        Err(ApiError::new(
            code::HOST_REFUSED,
            "the Host header is missing or names another server",
        ))
    }

    /// The answer of a route that needs no token, answered without anybody's help.
    fn open_route(
        &self,
        request: &Request<Incoming>,
        entrance: Entrance,
    ) -> Result<Option<Ready>, ApiError> {
        let readable = matches!(*request.method(), Method::GET | Method::HEAD);
        let path = request.uri().path();
        if !readable && matches!(path, HEALTH | READY) {
            return Err(ApiError::new(
                code::METHOD,
                format!("{path} takes GET only"),
            ));
        }
        Ok(match path {
            HEALTH => Some(json(health::health(&self.readiness, &self.redactor))),
            READY => Some(json(health::ready(
                &self.readiness,
                &self.redactor,
                self.stopping.is_cancelled(),
            ))),
            METRICS if !entrance.spare && self.metrics_open(entrance) => {
                Some(self.scrape(request)?)
            }
            _ => None,
        })
    }

    fn metrics_open(&self, entrance: Entrance) -> bool {
        let on_loopback = entrance
            .local
            .is_some_and(|local| local.to_canonical().is_loopback());
        match self.metrics_access {
            MetricsAccess::Open => entrance.local.is_some(),
            MetricsAccess::OpenOnLoopback => on_loopback,
            MetricsAccess::Token => false,
        }
    }

    fn scrape(&self, request: &Request<Incoming>) -> Result<Ready, ApiError> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Err(ApiError::new(
                code::METHOD,
                format!("{METRICS} takes GET only"),
            ));
        }
        let accept: Vec<&str> = request
            .headers()
            .get_all(header::ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .collect();
        let accept = (!accept.is_empty()).then(|| accept.join(","));
        let (content_type, text) = self.metrics.scrape(accept.as_deref());
        Ok(ready(StatusCode::OK, content_type, text))
    }

    fn authenticate(
        &self,
        request: &Request<Incoming>,
        surface: Surface,
    ) -> Result<Principal, ApiError> {
        let presented = auth::present(surface, request.method(), request.uri(), request.headers());
        auth::authenticate(surface, &presented, &self.operator, &self.links).map_err(
            |(reason, error)| {
                self.refused(surface, reason);
                error
            },
        )
    }

    /// Most bytes of the body, if the request is for a route that takes strangers.
    fn open_to_all(&self, request: &Request<Incoming>, surface: Surface) -> Option<usize> {
        let path = request.uri().path();
        let mut routes = self.open.iter();
        let route = routes.find(|route| route.fits(request.method(), path));
        route
            .filter(|_| surface == Surface::Operator)
            .and_then(|route| route.open)
    }

    fn refused(&self, surface: Surface, reason: &str) {
        self.metrics
            .refusals
            .with(&[surface.as_str(), reason])
            .inc();
        tracing::debug!(surface = surface.as_str(), reason, "a request was refused");
    }

    /// The request with its whole body, bounded in bytes and time, counted against the bytes of all bodies.
    async fn take_body(
        &self,
        request: Request<Incoming>,
        limit: usize,
    ) -> Result<(Request<Body>, OwnedSemaphorePermit), ApiError> {
        let (head, body) = request.into_parts();
        let said = hyper::body::Body::size_hint(&body).exact();
        let too_large = || {
            ApiError::new(
                code::BODY_TOO_LARGE,
                format!("the body is over the limit of {limit} bytes"),
            )
        };
        let room = match said {
            Some(size) => usize::try_from(size)
                .ok()
                .filter(|size| *size <= limit)
                .ok_or_else(too_large)?,
            None => limit,
        };
        let held = self
            .bodies
            .clone()
            .try_acquire_many_owned(u32::try_from(room).unwrap_or(u32::MAX));
        let held = held.map_err(|_| {
            ApiError::new(
                code::OVERLOADED,
                "request bodies take all the memory they may",
            )
        })?;
        let collected = clock::timeout(self.limits.body, Limited::new(body, limit).collect()).await;
        let bytes: Bytes = match collected {
            Ok(Ok(collected)) => collected.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(too_large()),
            Ok(Err(_)) => return Err(ApiError::bad_request("the body broke off")),
            Err(elapsed) => {
                return Err(ApiError::new(
                    code::BODY_TIMEOUT,
                    format!("the body {elapsed}"),
                ));
            }
        };
        Ok((Request::from_parts(head, Body::from(bytes)), held))
    }
}

const HEALTH: &str = "/health";
const READY: &str = "/ready";
const METRICS: &str = "/metrics";

/// Paths that the front answers itself; sections cannot claim them.
pub(super) const OWN_PATHS: [&str; 3] = [HEALTH, READY, METRICS];

/// On every answer: nothing is to be kept, guessed at or referred from.
pub(super) const FIXED_HEADERS: [(HeaderName, &str); 3] = [
    (header::CACHE_CONTROL, "no-store"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
];

type Ready = (axum::http::response::Parts, Content);

fn ready(status: StatusCode, content_type: &'static str, text: impl Into<Bytes>) -> Ready {
    let (mut head, ()) = Response::new(()).into_parts();
    head.status = status;
    head.headers
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    (head, Content::whole(text))
}

fn json((status, document): (StatusCode, impl Serialize)) -> Ready {
    let mut text = serde_json::to_vec(&document)
        .expect("strings, numbers and truth values always encode as JSON");
    text.push(b'\n');
    ready(status, "application/json", text)
}

async fn whole(response: axum::response::Response) -> Ready {
    let (head, body) = response.into_parts();
    let bytes = body
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes)
        .unwrap_or_default();
    (head, Content::whole(bytes))
}
