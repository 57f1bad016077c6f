//! A stream that tells its connection's [`Activity`] what happens on it.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};
use volary_kernel::{Mono, SharedClock};

use super::{activity::Activity, config::Limits};

/// The activity of one connection, shared by its stream, its requests and its watch.
#[derive(Clone)]
pub(super) struct Watched {
    clock: SharedClock,
    activity: Arc<Mutex<Activity>>,
    end: Arc<Notify>,
}

impl Watched {
    pub(super) fn new(clock: SharedClock) -> Self {
        let activity = Arc::new(Mutex::new(Activity::new(clock.mono())));
        Self {
            clock,
            activity,
            end: Arc::default(),
        }
    }

    fn note(&self, what: impl FnOnce(&mut Activity, Mono)) {
        what(&mut self.activity.lock(), self.clock.mono());
    }

    /// A request begins; it lasts until the guard is dropped.
    pub(super) fn busy(&self) -> Busy {
        self.note(Activity::request);
        Busy(self.clone())
    }

    /// Resolves when the client closed its side. Whoever does that does not wait for an answer.
    pub(super) async fn client_gone(&self) {
        self.end.notified().await;
    }

    pub(super) fn is_busy(&self) -> bool {
        self.activity.lock().is_busy()
    }

    pub(super) fn overdue(&self, limits: &Limits) -> Option<&'static str> {
        self.activity.lock().overdue(self.clock.mono(), limits)
    }
}

/// Marks a connection as busy with a request.
pub(super) struct Busy(Watched);

impl std::fmt::Debug for Busy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Busy")
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.note(Activity::answered);
    }
}

/// The stream itself.
pub(super) struct WatchedIo<S> {
    stream: S,
    watched: Watched,
}

impl<S> WatchedIo<S> {
    pub(super) const fn new(stream: S, watched: Watched) -> Self {
        Self { stream, watched }
    }

    fn wrote<T>(&self, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.watched
            .note(|activity, now| activity.write(outcome.is_ready(), now));
        outcome
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WatchedIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.watched.note(Activity::read);
        } else if outcome.is_ready() && buffer.remaining() > 0 {
            self.watched.end.notify_one();
        }
        outcome
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WatchedIo<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.wrote(outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
