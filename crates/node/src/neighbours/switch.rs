//! A link that can be replaced while who sends over it goes on: a peer's new key needs another link.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use volary_kernel::task::TaskResult;
use volary_messaging::{
    peer::Wire,
    transport::tcp::{Link, LinkState},
};

/// The way to a peer, over whichever link is the present one.
pub(super) struct Switch {
    link: RwLock<Link>,
    state: watch::Sender<LinkState>,
    replaced: watch::Sender<u64>,
}

impl Switch {
    pub(super) fn new(link: Link) -> Self {
        let state = link.state().borrow().clone();
        Self {
            link: RwLock::new(link),
            state: watch::channel(state).0,
            replaced: watch::channel(0).0,
        }
    }

    pub(super) fn wire(self: &Arc<Self>) -> Wire {
        let switch = self.clone();
        let send = move |outgoing| -> BoxFuture<'static, _> {
            let link = switch.link.read().clone();
            Box::pin(async move { link.send(outgoing).await })
        };
        Wire::new(send, self.state.subscribe())
    }

    pub(super) async fn replace(&self, link: Link) {
        let before = std::mem::replace(&mut *self.link.write(), link);
        self.replaced.send_modify(|times| *times += 1);
        before.close().await;
    }

    pub(super) async fn close(&self) {
        let link = self.link.read().clone();
        link.close().await;
    }

    /// How the present link is, whichever it is.
    pub(super) fn state(&self) -> watch::Receiver<LinkState> {
        self.state.subscribe()
    }

    /// Tells how the present link is, until `stop`.
    pub(super) async fn forward(self: Arc<Self>, stop: CancellationToken) -> TaskResult {
        let mut replaced = self.replaced.subscribe();
        loop {
            let mut state = self.link.read().state();
            loop {
                let now = state.borrow_and_update().clone();
                self.state.send_if_modified(|last| {
                    let other = *last != now;
                    if other {
                        *last = now;
                    }
                    other
                });
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    _ = replaced.changed() => break,
                    changed = state.changed() => if changed.is_err() {
                        // Its task is over; another link may come.
                        tokio::select! {
                            () = stop.cancelled() => return Ok(()),
                            _ = replaced.changed() => break,
                        }
                    },
                }
            }
        }
    }
}
