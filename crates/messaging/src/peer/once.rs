//! At-most-once messages to one peer: one try on the link, each counted once as delivered, refused or dropped.
//!
//! ```text
//! commit ─▶ bounded queue ─▶ frame ─▶ link ─▶ answer: delivered │ refused
//!              └ full: dropped           └ no link, no answer: dropped
//! ```

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio_util::sync::CancellationToken;
use volary_kernel::{
    clock,
    id::Name,
    metric::{Counter, Metrics},
    queue::{self, Receiver, Sender},
    task::TaskResult,
};

use super::{OnceCounts, Wire, courier::FRAME_BYTES};
use crate::{
    admission::Admission,
    frame,
    identity::{AgentId, Keyring},
    message::Message,
    metrics,
    transport::tcp::{Answer, LinkError, Outgoing},
};

/// Most messages of one frame.
const FRAME: usize = 64;
/// Most frames on their way.
const WINDOW: usize = 64;

/// The tallies of one peer: atomics for whoever asks, metrics for whoever scrapes.
pub(super) struct Tally {
    offered: AtomicU64,
    outcomes: [(AtomicU64, Counter); 3],
}

const DELIVERED: usize = 0;
const REFUSED: usize = 1;
const DROPPED: usize = 2;

impl Tally {
    fn new(metrics: &Metrics, peer: &Name) -> Self {
        let family = metrics::peer_once(metrics);
        let of = |outcome| (AtomicU64::new(0), family.with(&[peer.as_str(), outcome]));
        Self {
            offered: AtomicU64::new(0),
            outcomes: [of("delivered"), of("refused"), of("dropped")],
        }
    }

    fn count(&self, outcome: usize, messages: usize) {
        let (tally, counter) = &self.outcomes[outcome];
        tally.fetch_add(messages as u64, Ordering::Relaxed);
        counter.inc_by(messages as u64);
    }

    pub(super) fn counts(&self) -> OnceCounts {
        let of = |outcome: usize| self.outcomes[outcome].0.load(Ordering::Relaxed);
        // Outcomes first: what is offered in between must not make them more than was offered.
        let (delivered, refused, dropped) = (of(DELIVERED), of(REFUSED), of(DROPPED));
        OnceCounts {
            offered: self.offered.load(Ordering::Relaxed),
            delivered,
            refused,
            dropped,
        }
    }
}

/// The near end: where sends put messages.
#[derive(Clone)]
pub(super) struct Once {
    sender: Sender<Message>,
    pub(super) tally: Arc<Tally>,
}

impl Once {
    pub(super) fn new(
        config: queue::QueueConfig,
        metrics: &Metrics,
        peer: &Name,
    ) -> (Self, Receiver<Message>) {
        let (sender, receiver) = queue::bounded(config);
        let tally = Arc::new(Tally::new(metrics, peer));
        (Self { sender, tally }, receiver)
    }

    /// Offers a message, without waiting. What older messages make room is counted as dropped, too.
    pub(super) fn offer(&self, message: Message) {
        self.tally.offered.fetch_add(1, Ordering::Relaxed);
        match self.sender.try_send(message) {
            Ok(queue::Admitted::Queued) => {}
            Ok(queue::Admitted::DroppedOldest(count)) => self.tally.count(DROPPED, count),
            Err(_) => self.tally.count(DROPPED, 1),
        }
    }
}

/// How long the end waits for answers that are on their way.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// Messages of one frame whose outcome is not known yet: dropped, if nobody ever says.
struct Fate {
    tally: Arc<Tally>,
    count: usize,
}

impl Fate {
    fn learn(mut self, answered: Result<Vec<Answer>, LinkError>) {
        let answers = match answered {
            Ok(answers) if answers.len() == self.count => answers,
            _ => return,
        };
        self.count = 0;
        for answer in answers {
            let outcome = match answer {
                Admission::Delivered | Admission::Queued | Admission::Partial { .. } => DELIVERED,
                Admission::Refused(_) | Admission::NoRoute => REFUSED,
                Admission::Dropped { .. } | Admission::Sent => DROPPED,
            };
            self.tally.count(outcome, 1);
        }
    }
}

impl Drop for Fate {
    fn drop(&mut self) {
        self.tally.count(DROPPED, self.count);
    }
}

/// Sends what comes, until `stop`; what is left then is dropped and counted.
pub(super) async fn run(
    mut receiver: Receiver<Message>,
    tally: Arc<Tally>,
    wire: Wire,
    keys: Keyring,
    stop: CancellationToken,
) -> TaskResult {
    let mut on_the_way = FuturesUnordered::new();
    let mut some = Vec::with_capacity(FRAME);
    while !stop.is_cancelled() {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            Some(()) = on_the_way.next(), if !on_the_way.is_empty() => {}
            taken = receiver.recv_many(&mut some, FRAME), if on_the_way.len() < WINDOW => {
                if taken == 0 {
                    break;
                }
                for (sender, messages) in by_sender(&mut some) {
                    let fate = Fate { tally: tally.clone(), count: messages.len() };
                    let Some(frame) = keys.get(&sender).and_then(|key| frame::seal(&key, &messages).ok()) else {
                        tracing::warn!(%sender, "at-most-once messages of a sender without a key here are dropped");
                        continue;
                    };
                    let sent = wire.send(Outgoing { frame, count: fate.count, durable: None, connection: None });
                    on_the_way.push(async move { fate.learn(sent.await) });
                }
            }
        }
    }
    while receiver.try_recv().is_some() {
        tally.count(DROPPED, 1);
    }
    let last = async { while on_the_way.next().await.is_some() {} };
    // What has no answer by then is dropped with its fate.
    let _answered = clock::timeout(LAST_ANSWERS, last).await;
    Ok(())
}

/// The messages by sender, each sender's in order, as much at once as one frame takes.
fn by_sender(some: &mut Vec<Message>) -> Vec<(AgentId, Vec<Message>)> {
    let mut order: Vec<(AgentId, Vec<Message>)> = Vec::new();
    let mut places: HashMap<AgentId, (usize, usize)> = HashMap::new();
    for message in some.drain(..) {
        let (sender, more) = (message.sender().id(), message.body().len());
        match places.get_mut(&sender) {
            Some((place, bytes)) if *bytes + more <= FRAME_BYTES => {
                *bytes += more;
                order[*place].1.push(message);
            }
            _ => {
                places.insert(sender, (order.len(), more));
                order.push((sender, vec![message]));
            }
        }
    }
    order
}
