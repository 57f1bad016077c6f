//! One peer as this instance sees it: the link to it, who is there, and the messages on their way.

use std::sync::Arc;

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use parking_lot::RwLock;
use tokio::sync::{oneshot, watch};
use volary_kernel::{
    clock::{SharedClock, Timestamp},
    id::{Name, Tenant},
    queue::{Receiver, Sender, Weigh, Why},
};

use super::agents::Agents;
use crate::{
    admission::{Admission, FULL_RETRY, Refusal},
    discovery::Introduction,
    frame::{SealError, seal},
    identity::AgentId,
    message::Message,
    route::{Found, RoutingTable},
    transport::tcp::{Link, LinkError, LinkState, Outgoing, PeerSpec},
};

/// Most messages of one frame: past this, a signature's share of the cost is small.
const FRAME: usize = 64;
/// Frames of one peer that are on their way at once; the link's own window applies too.
const FRAMES: usize = 64;

/// A message on its way to a peer, and who waits for its answer.
pub(super) struct Parcel {
    pub(super) message: Message,
    pub(super) answer: oneshot::Sender<Admission>,
}

impl Weigh for Parcel {
    fn weight(&self) -> usize {
        self.message.weight()
    }
}

/// One peer.
pub(super) struct Remote {
    pub(super) spec: PeerSpec,
    pub(super) link: Link,
    pub(super) routes: Arc<RwLock<RoutingTable<()>>>,
    pub(super) queue: Sender<Parcel>,
}

impl Remote {
    /// Whether somebody there is meant by `message`.
    pub(super) fn is_for(&self, message: &Message) -> bool {
        let routes = self.routes.read();
        match routes.find(message) {
            Found::Nobody => false,
            Found::One(()) => true,
            Found::Several => !routes.targets(message).is_empty(),
        }
    }

    pub(super) fn has(&self, tenant: &Tenant, name: &Name) -> bool {
        self.routes.read().get(tenant, name).is_some()
    }

    /// Hands a message over and waits for its answer.
    pub(super) async fn send(&self, message: Message) -> Admission {
        let (answer, answered) = oneshot::channel();
        let sent = self.queue.send(Parcel { message, answer }).await;
        if let Err(refused) = sent {
            return Admission::Refused(match refused.why {
                Why::Full | Why::DroppedNewest => Refusal::Full {
                    what: format!("queue to peer `{}`", self.spec.name).into(),
                    retry_after: FULL_RETRY,
                },
                Why::TooLarge => too_large(refused.item.weight()),
                Why::Closed => Refusal::Closed,
            });
        }
        answered
            .await
            .unwrap_or_else(|_| unanswered(&LinkError::Down))
    }
}

/// What is on its way to a peer: batches by sender, sealed, several frames at once.
pub(super) struct Carrier {
    pub(super) spec: PeerSpec,
    pub(super) link: Link,
    pub(super) agents: Arc<Agents>,
    pub(super) routes: Arc<RwLock<RoutingTable<()>>>,
    pub(super) learned: watch::Sender<u64>,
    pub(super) clock: SharedClock,
    pub(super) queue: Receiver<Parcel>,
}

impl Carrier {
    /// Carries until nobody can send any more.
    pub(super) async fn run(mut self) {
        let mut state = self.link.state();
        let mut frames: FuturesUnordered<BoxFuture<'static, ()>> = FuturesUnordered::new();
        let mut batch = Vec::new();
        state.mark_changed();
        let mut watching = true;
        loop {
            tokio::select! {
                biased;
                changed = state.changed(), if watching => {
                    watching = changed.is_ok();
                    let introduction = match &*state.borrow_and_update() {
                        LinkState::Connected { introduction, .. } => Some(introduction.clone()),
                        // Whom we know of stays known: a message to them is dropped by name, not called unroutable.
                        _ => None,
                    };
                    if let Some(introduction) = introduction {
                        self.learn(&introduction);
                    }
                }
                Some(()) = frames.next() => {}
                taken = self.queue.recv_many(&mut batch, FRAME), if frames.len() < FRAMES => {
                    if taken == 0 {
                        break;
                    }
                    self.seal(&mut batch, &frames);
                }
            }
        }
        while frames.next().await.is_some() {}
    }

    /// Learns who is there.
    fn learn(&self, introduction: &bytes::Bytes) {
        let routes = match routes_of(&self.spec, introduction, self.clock.wall()) {
            Ok(routes) => routes,
            Err(problem) => {
                tracing::warn!(peer = %self.spec.name, %problem, "introduction refused");
                return;
            }
        };
        *self.routes.write() = routes;
        self.learned.send_modify(|times| *times += 1);
    }

    /// Seals runs of messages of one sender and puts them on their way.
    fn seal(&self, batch: &mut Vec<Parcel>, frames: &FuturesUnordered<BoxFuture<'static, ()>>) {
        let mut parcels = std::mem::take(batch).into_iter().peekable();
        while let Some(first) = parcels.next() {
            let sender = first.message.sender().id();
            let mut run = vec![first];
            while let Some(next) = parcels.next_if(|next| next.message.sender().id() == sender) {
                run.push(next);
            }
            if let Some(sending) = self.frame(sender, run) {
                frames.push(sending);
            }
        }
    }

    fn frame(&self, sender: AgentId, run: Vec<Parcel>) -> Option<BoxFuture<'static, ()>> {
        let (messages, waiting): (Vec<Message>, Vec<oneshot::Sender<Admission>>) = run
            .into_iter()
            .map(|parcel| (parcel.message, parcel.answer))
            .unzip();
        let sealed = match self.agents.key(&sender) {
            Some(identity) => seal(&identity, &messages),
            None => Err(SealError::Count { found: 0 }),
        };
        let outgoing = match sealed {
            Ok(frame) => Outgoing {
                frame,
                count: messages.len(),
                durable: None,
                connection: None,
            },
            Err(error) => {
                let problem = match error {
                    SealError::Count { .. } => no_key(sender),
                    other => Refusal::Invalid {
                        problem: other.to_string().into(),
                    },
                };
                answer_all(waiting, &Admission::Refused(problem));
                return None;
            }
        };
        let link = self.link.clone();
        Some(Box::pin(async move {
            match link.send(outgoing).await {
                Ok(answers) => {
                    for (waiting, answer) in waiting.into_iter().zip(answers) {
                        // Who dropped the call does not want to know.
                        let _gone = waiting.send(answer);
                    }
                }
                Err(error) => answer_all(waiting, &unanswered(&error)),
            }
        }))
    }
}

fn answer_all(waiting: Vec<oneshot::Sender<Admission>>, admission: &Admission) {
    for waiting in waiting {
        let _gone = waiting.send(admission.clone());
    }
}

/// What a frame without answers means for its messages.
fn unanswered(error: &LinkError) -> Admission {
    match error {
        LinkError::Down | LinkError::NotConnected => Admission::Dropped {
            hook: "link".to_owned(),
            reason: error.to_string().into(),
        },
        LinkError::TooLarge { found, .. } => Admission::Refused(too_large(*found)),
        LinkError::Count { .. } => Admission::Refused(Refusal::Invalid {
            problem: error.to_string().into(),
        }),
        LinkError::Closed => Admission::Refused(Refusal::Closed),
    }
}

fn too_large(found: usize) -> Refusal {
    Refusal::TooLarge {
        found,
        limit: crate::message::PAYLOAD_MAX.min(found.saturating_sub(1)),
    }
}

/// A sender whose key is not here.
pub(super) fn no_key(sender: AgentId) -> Refusal {
    Refusal::Invalid {
        problem: format!(
            "the key of sender {sender} is not here, so its messages can not be sealed"
        )
        .into(),
    }
}

/// The agents of an introduction that hold now, of the peer's tenants.
pub(super) fn proven(
    spec: &PeerSpec,
    introduction: &bytes::Bytes,
    now: Timestamp,
) -> Result<Vec<crate::discovery::Descriptor>, String> {
    if introduction.is_empty() {
        return Ok(Vec::new());
    }
    let introduction = Introduction::decode(introduction).map_err(|error| error.to_string())?;
    let mut proven = Vec::with_capacity(introduction.descriptors().len());
    for signed in introduction.descriptors() {
        let descriptor = signed.open(now).map_err(|error| error.to_string())?;
        if spec.tenants.contains(&descriptor.tenant) {
            proven.push(descriptor);
        } else {
            tracing::warn!(peer = %spec.name, tenant = %descriptor.tenant, agent = %descriptor.name,
                "the peer introduces an agent of a tenant that it may not speak for");
        }
    }
    Ok(proven)
}

fn routes_of(
    spec: &PeerSpec,
    introduction: &bytes::Bytes,
    now: Timestamp,
) -> Result<RoutingTable<()>, String> {
    let mut routes = RoutingTable::default();
    for descriptor in proven(spec, introduction, now)? {
        routes.insert(&descriptor.tenant, &descriptor.name, &descriptor.topics, ());
    }
    Ok(routes)
}
