//! The bridge to the main runtime: requests go over in a bounded queue, answers come back whole or piece by piece.
//!
//! ```text
//!   ops thread                        main runtime
//!   forward ──Job──▶ bounded queue ──▶ dispatch ──▶ run_job (a supervised task per request)
//!      ▲  started within `take_up`?        │ beats "runtime"    │ panic → 500, too long → 504
//!      └──────────── Relayed head ◀────────┼────────────────────┤
//!      └──────────── pieces, bounded ◀─────┴────────────────────┘ slow reader → cut, counted
//! ```

use std::{
    convert::Infallible,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{Method, response::Parts},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use volary_kernel::{
    clock,
    ready::Heartbeat,
    secret::Redactor,
    task::{Supervisor, TaskKind, panic_text},
};

use super::{
    body::{Content, Pieces},
    config::Limits,
    envelope,
    peers::Slot,
};
use crate::{ApiError, code, metrics::OpsMetrics, section::Surface};

/// Pieces of a stream that wait for its reader, and the size of one: at most 256 KiB for each stream.
const PIECES: usize = 4;
const PIECE_BYTES: usize = 64 << 10;

/// A request on its way to the main runtime.
pub(super) struct Job {
    surface: Surface,
    request: Request,
    held: Held,
    started: oneshot::Sender<()>,
    reply: oneshot::Sender<Relayed>,
}

/// What a request takes up until its handler is done, also when its client left.
#[expect(dead_code, reason = "held, never read: dropping gives both back")]
pub(super) struct Held {
    /// Its place among the open requests of whoever asked.
    pub(super) slot: Slot,
    /// Its share of the memory for bodies.
    pub(super) body: OwnedSemaphorePermit,
}

/// An answer on its way back.
pub(super) struct Relayed {
    pub(super) head: Parts,
    pub(super) content: Content,
}

/// The end of the bridge on the ops thread.
#[derive(Clone)]
pub(super) struct Forward {
    jobs: mpsc::Sender<Job>,
    take_up: Duration,
}

/// Both ends of the bridge.
pub(super) fn bridge(limits: &Limits) -> (Forward, mpsc::Receiver<Job>) {
    let (jobs, receiver) = mpsc::channel(limits.waiting_requests);
    (
        Forward {
            jobs,
            take_up: limits.take_up,
        },
        receiver,
    )
}

impl Forward {
    /// Hands `request` to the main runtime and waits for the head of the answer. Dropping it tells the main runtime
    /// that nobody waits any more.
    pub(super) async fn forward(
        &self,
        surface: Surface,
        request: Request,
        held: Held,
    ) -> Result<Relayed, ApiError> {
        let (started, has_started) = oneshot::channel();
        let (reply, answer) = oneshot::channel();
        let job = Job {
            surface,
            request,
            held,
            started,
            reply,
        };
        self.jobs.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ApiError::new(
                code::OVERLOADED,
                "too many requests wait for the node's runtime",
            ),
            mpsc::error::TrySendError::Closed(_) => {
                ApiError::new(code::DRAINING, "the node is stopping")
            }
        })?;
        match clock::timeout(self.take_up, has_started).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(ApiError::new(code::DRAINING, "the node is stopping")),
            Err(elapsed) => {
                let message =
                    format!("the node's runtime did not take up the request: it {elapsed}");
                return Err(ApiError::new(code::UNRESPONSIVE, message));
            }
        }
        answer
            .await
            .map_err(|_| ApiError::new(code::DRAINING, "the node stopped before it answered"))
    }
}

/// What the main runtime's end needs.
#[derive(Clone)]
pub(super) struct Backstage {
    pub(super) routers: Arc<Routers>,
    pub(super) limits: Limits,
    pub(super) metrics: OpsMetrics,
    pub(super) redactor: Redactor,
}

/// The routes of each surface.
pub(super) struct Routers {
    pub(super) operator: Router,
    pub(super) link: Router,
}

/// Takes up requests until `stop`; beats `heartbeat` as proof that the main runtime still runs tasks.
pub(super) async fn dispatch(
    mut jobs: mpsc::Receiver<Job>,
    backstage: Backstage,
    tasks: Supervisor,
    heartbeat: Heartbeat,
    stop: CancellationToken,
) {
    while let Some(Some(job)) = stop
        .run_until_cancelled(heartbeat.while_waiting(jobs.recv()))
        .await
    {
        if job.reply.is_closed() {
            continue; // Its client gave up while it waited.
        }
        let backstage = backstage.clone();
        tasks.spawn(TaskKind::new("ops-request"), async move {
            run_job(job, backstage).await;
            Ok(())
        });
    }
    heartbeat.retire();
}

async fn run_job(job: Job, backstage: Backstage) {
    let Job {
        surface,
        request,
        held,
        started,
        mut reply,
    } = job;
    if started.send(()).is_err() {
        return;
    }
    // A read ends with its reader; a change, once begun, runs to its end.
    let ends_with_client = matches!(*request.method(), Method::GET | Method::HEAD);
    let response = tokio::select! {
        biased;
        response = answer(surface, request, &backstage) => response,
        () = reply.closed(), if ends_with_client => return,
    };
    drop(held);
    let (head, body) = envelope::checked(surface, response, &backstage.redactor)
        .await
        .into_parts();
    match whole(body).await {
        Ok(content) => drop(reply.send(Relayed { head, content })),
        Err(body) => {
            let (pieces, receiver) = mpsc::channel(PIECES);
            let complete = Arc::new(AtomicBool::new(false));
            let content = Content::Stream(Pieces {
                pieces: receiver,
                complete: complete.clone(),
            });
            if reply.send(Relayed { head, content }).is_ok() {
                pump(body, pieces, &complete, &backstage).await;
            }
        }
    }
}

/// The handler's answer, whatever the handler does.
async fn answer(surface: Surface, request: Request, backstage: &Backstage) -> Response {
    let router = match surface {
        Surface::Operator => backstage.routers.operator.clone(),
        Surface::Link => backstage.routers.link.clone(),
    };
    let handled = AssertUnwindSafe(async { router.oneshot(request).await }).catch_unwind();
    match clock::timeout(backstage.limits.request, handled).await {
        Ok(Ok(Ok(response))) => response,
        Ok(Ok(Err(never))) => match never as Infallible {},
        Ok(Err(panic)) => {
            backstage.metrics.panics.with(&[surface.as_str()]).inc();
            let text = panic_text(&*panic);
            tracing::error!(surface = surface.as_str(), panic = %backstage.redactor.redact(text), "a handler panicked");
            ApiError::new(code::INTERNAL, "the handler of this route failed").into_response()
        }
        Err(elapsed) => {
            ApiError::new(code::HANDLER_TIMEOUT, format!("the handler {elapsed}")).into_response()
        }
    }
}

/// A body that is all there and fits into one piece as a whole; another is given back.
async fn whole(body: Body) -> Result<Content, Body> {
    match body.size_hint().exact() {
        Some(size) if size <= PIECE_BYTES as u64 => {
            let collected = body
                .collect()
                .await
                .map(http_body_util::Collected::to_bytes);
            Ok(Content::whole(collected.unwrap_or_default()))
        }
        _ => Err(body),
    }
}

/// Sends `body` piece by piece until its end, the client's going, or a stall.
async fn pump(
    mut body: Body,
    pieces: mpsc::Sender<Bytes>,
    complete: &AtomicBool,
    backstage: &Backstage,
) {
    let ended = |reason| {
        backstage.metrics.streams_ended.with(&[reason]).inc();
    };
    loop {
        let frame = tokio::select! {
            biased;
            () = pieces.closed() => return ended("client_gone"),
            frame = body.frame() => frame,
        };
        let mut data = match frame {
            None => return complete.store(true, Ordering::Release),
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            Some(Err(error)) => {
                tracing::warn!(%error, "a streaming answer failed");
                return ended("failed");
            }
        };
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(PIECE_BYTES));
            match clock::timeout(backstage.limits.write_stall, pieces.send(piece)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return ended("client_gone"),
                Err(_) => return ended("slow_client"),
            }
        }
    }
}
