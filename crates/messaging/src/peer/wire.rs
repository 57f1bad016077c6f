//! What a courier needs of a link: one call that sends a frame and gets its answers, and word of how it stands.
//!
//! A struct of closures, so that the same courier runs over a [`Link`] and over a simulated network in tests.

use std::{fmt, sync::Arc};

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use crate::transport::tcp::{Answer, Link, LinkError, LinkState, Outgoing};

/// Sends one frame.
type Send_ = dyn Fn(Outgoing) -> BoxFuture<'static, Result<Vec<Answer>, LinkError>> + Send + Sync;

/// The way to one peer. Clones share it.
#[derive(Clone)]
pub struct Wire {
    send: Arc<Send_>,
    state: watch::Receiver<LinkState>,
}

impl Wire {
    /// A way of these two.
    pub fn new(
        send: impl Fn(Outgoing) -> BoxFuture<'static, Result<Vec<Answer>, LinkError>>
        + Send
        + Sync
        + 'static,
        state: watch::Receiver<LinkState>,
    ) -> Self {
        Self {
            send: Arc::new(send),
            state,
        }
    }

    /// Sends a frame; one answer for each of its messages, in order. Frames go out in the order in which the futures
    /// were first polled.
    pub(crate) fn send(
        &self,
        outgoing: Outgoing,
    ) -> BoxFuture<'static, Result<Vec<Answer>, LinkError>> {
        (self.send)(outgoing)
    }

    /// How it stands, now and later.
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }
}

impl From<Link> for Wire {
    fn from(link: Link) -> Self {
        let state = link.state();
        let send = move |outgoing| -> BoxFuture<'static, _> {
            let link = link.clone();
            Box::pin(async move { link.send(outgoing).await })
        };
        Self::new(send, state)
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Wire({:?})", *self.state.borrow())
    }
}
