//! Accepting connections and driving each of them: HTTP/1, watched for clients that are slow on purpose.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use axum::http::{Request, Response};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::sync::CancellationToken;
use volary_kernel::{
    SharedClock, clock,
    task::{Supervisor, TaskKind},
};

use super::{
    activity::look_every,
    body::OpsBody,
    config::Limits,
    front::Entrance,
    io::{Watched, WatchedIo},
};
use crate::{metrics::OpsMetrics, section::Surface};

/// What answers the requests of a connection.
pub(super) trait Answering: Send + Sync + 'static {
    fn limits(&self) -> &Limits;
    fn metrics(&self) -> &OpsMetrics;
    fn clock(&self) -> &SharedClock;
    fn answer(
        &self,
        request: Request<Incoming>,
        entrance: Entrance,
        watched: &Watched,
    ) -> impl Future<Output = Response<OpsBody>> + Send;
}

/// Most bytes of a request's head.
const HEAD_BYTES: usize = 32 << 10;
/// Most header lines of a request.
const HEADERS: usize = 64;
/// Wait after a failed accept (usually: no descriptors left), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Either kind of listener.
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Listener {
    const fn surface(&self) -> Surface {
        match self {
            Self::Tcp(_) => Surface::Operator,
            Self::Unix(_) => Surface::Link,
        }
    }

    async fn accept(&self) -> io::Result<(Box<dyn Stream>, Option<std::net::IpAddr>)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let local = stream.local_addr()?.ip();
                Ok((Box::new(stream), Some(local)))
            }
            Self::Unix(listener) => Ok((Box::new(listener.accept().await?.0), None)),
        }
    }
}

/// Accepts until the tasks are cancelled. Past the bound, a few spare connections are still told about health, and
/// whoever comes after them is turned away.
pub(super) async fn accept<A: Answering>(listener: Listener, front: Arc<A>, tasks: Supervisor) {
    let surface = listener.surface();
    let regular = Arc::new(Semaphore::new(front.limits().connections));
    let spare = Arc::new(Semaphore::new(front.limits().spare_connections));
    let stop = tasks.token();
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let (stream, local) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                front
                    .metrics()
                    .closed
                    .with(&[surface.as_str(), "accept_failed"])
                    .inc();
                tracing::warn!(surface = surface.as_str(), %error, "a connection could not be accepted");
                clock::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let permit = regular
            .clone()
            .try_acquire_owned()
            .map(|permit| (permit, false));
        let Ok((permit, is_spare)) = permit.or_else(|_| {
            spare
                .clone()
                .try_acquire_owned()
                .map(|permit| (permit, true))
        }) else {
            front
                .metrics()
                .closed
                .with(&[surface.as_str(), "too_many"])
                .inc();
            continue;
        };
        let entrance = Entrance {
            surface,
            local,
            spare: is_spare,
        };
        let connection = serve(stream, entrance, front.clone(), permit, tasks.token());
        tasks.spawn(TaskKind::new("ops-connection"), async move {
            connection.await;
            Ok(())
        });
    }
}

async fn serve<A: Answering>(
    stream: Box<dyn Stream>,
    entrance: Entrance,
    front: Arc<A>,
    _permit: OwnedSemaphorePermit,
    stop: CancellationToken,
) {
    let surface = entrance.surface.as_str();
    let open = front.metrics().connections.with(&[surface]);
    open.inc();
    if let Some(reason) = drive(stream, entrance, &front, stop).await {
        front.metrics().closed.with(&[surface, reason]).inc();
    }
    open.dec();
}

/// Serves until the client goes, the connection is overdue (the reason is returned), or the server stops.
async fn drive<A: Answering>(
    stream: Box<dyn Stream>,
    entrance: Entrance,
    front: &Arc<A>,
    stop: CancellationToken,
) -> Option<&'static str> {
    let watched = Watched::new(front.clock().clone());
    let service = {
        let (front, watched) = (front.clone(), watched.clone());
        service_fn(move |request| {
            let (front, watched) = (front.clone(), watched.clone());
            async move { Ok::<_, Infallible>(front.answer(request, entrance, &watched).await) }
        })
    };
    let mut builder = http1::Builder::new();
    builder
        .header_read_timeout(None)
        .max_headers(HEADERS)
        .max_buf_size(HEAD_BYTES)
        .keep_alive(!entrance.spare);
    let connection = builder.serve_connection(
        TokioIo::new(WatchedIo::new(stream, watched.clone())),
        service,
    );
    let mut connection = std::pin::pin!(connection);
    let limits = if entrance.spare {
        front.limits().spare()
    } else {
        *front.limits()
    };
    let look = look_every(&limits);
    let mut stopping = false;
    loop {
        tokio::select! {
            // How a client leaves is its own affair.
            _ended = connection.as_mut() => return None,
            // An idle connection ends by itself then; a stream would go on until a write fails.
            () = watched.client_gone() => {
                if watched.is_busy() {
                    return None;
                }
            }
            () = stop.cancelled(), if !stopping => {
                if !watched.is_busy() {
                    return None;
                }
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
            () = clock::sleep(look) => {
                if let Some(reason) = watched.overdue(&limits) {
                    return Some(reason);
                }
            }
        }
    }
}
