//! Where attempts live: whatever one does, it leaves nothing behind, and the next runs in the same place.

use std::{
    pin::Pin,
    task::{Context as Poller, Poll},
};

use volary_kernel::clock;

use super::*;
use crate::{
    Context, Envelope, NodeError,
    graph::{Flow, FlowBuilder},
    outcome::Outcome,
};

/// What an attempt does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    Ends,
    /// Is ready at its second poll.
    Waits,
    WaitsForEver,
    PanicsWhenCalled,
    PanicsAtOnce,
    PanicsLater,
    PanicsAtOnceAndWhenDropped,
    PanicsLaterAndWhenDropped,
    PanicsWhenDropped,
    WaitsAndPanicsWhenDropped,
}

use Does::*;

/// A future that does it, written by hand: it keeps what it has until it is dropped.
struct Attempt {
    does: Does,
    polled: u32,
    _alive: Arc<()>,
}

impl Future for Attempt {
    type Output = Result<u64, NodeError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Poller<'_>) -> Poll<Self::Output> {
        self.polled += 1;
        let first = self.polled == 1;
        match self.does {
            PanicsAtOnce | PanicsAtOnceAndWhenDropped => panic!("on purpose: polled"),
            PanicsLater | PanicsLaterAndWhenDropped if !first => panic!("on purpose: polled again"),
            Ends | PanicsWhenDropped => Poll::Ready(Ok(1)),
            Waits if !first => Poll::Ready(Ok(2)),
            WaitsForEver | WaitsAndPanicsWhenDropped => Poll::Pending,
            _ => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        match self.does {
            PanicsAtOnceAndWhenDropped
            | PanicsLaterAndWhenDropped
            | PanicsWhenDropped
            | WaitsAndPanicsWhenDropped => panic!("on purpose: dropped"),
            _ => {}
        }
    }
}

/// One node that does what it is told to, and one behind it.
fn flow(alive: &Arc<()>) -> Flow<Does, u64> {
    let alive = alive.clone();
    let mut b = FlowBuilder::new("slots");
    let attempt = b.node("attempt", move |does: Does, _: Context| {
        let attempt = Attempt {
            does,
            polled: 0,
            _alive: alive.clone(),
        };
        assert!(does != PanicsWhenCalled, "on purpose: called");
        attempt
    });
    let behind = b.node("behind", |n: u64, _: Context| async move { Ok(n) });
    b.connect(attempt, behind).ingress(attempt).egress(behind);
    b.build().unwrap()
}

const ALL: [Does; 10] = [
    Ends,
    Waits,
    WaitsForEver,
    PanicsWhenCalled,
    PanicsAtOnce,
    PanicsLater,
    PanicsAtOnceAndWhenDropped,
    PanicsLaterAndWhenDropped,
    PanicsWhenDropped,
    WaitsAndPanicsWhenDropped,
];

async fn all_after_one_another(fuse: bool) {
    let alive = Arc::new(());
    let running = flow(&alive).start(RunConfig {
        fuse,
        ..RunConfig::default()
    });
    let without = Arc::strong_count(&alive);
    for (first, then) in ALL.iter().flat_map(|first| ALL.map(|then| (*first, then))) {
        for does in [first, then] {
            let mut envelope = Envelope::new(does);
            envelope.deadline = Some(S);
            let handle = running.emit(envelope).await.unwrap();
            let outcome = clock::timeout(60 * S, handle.outcome())
                .await
                .expect("ends");
            let expected = match does {
                Ends | Waits => outcome.is_done(),
                WaitsForEver | WaitsAndPanicsWhenDropped => {
                    matches!(outcome, Outcome::DeadlineExceeded)
                }
                _ => {
                    matches!(&outcome, Outcome::Failed(error) if error.message.contains("on purpose"))
                }
            };
            assert!(expected, "{does:?} after {first:?}: {outcome:?}");
            settle().await;
            let left = Arc::strong_count(&alive) - without;
            assert_eq!(left, 0, "{does:?} after {first:?}");
        }
    }
    assert_empty(&running.core.engine);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_leaves_nothing_to_the_next() {
    all_after_one_another(true).await;
    all_after_one_another(false).await;
}
