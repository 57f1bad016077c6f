//! What a peer sends, taken in by one task for each peer: many frames share a commit, answers wait for it.
//!
//! ```text
//! arrived(frame) ─▶ bounded queue ─▶ one batch of what is there ─▶ commit ─▶ answers
//!     does the peer vouch for the sender?         up to 4 commits on their way, in order
//! ```
//! A sender's order holds when a message is turned back for now: until that message comes again, later ones of the same
//! sender for the same receiver are turned back as well.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesOrdered};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use volary_kernel::{
    clock::{self, Mono, SharedClock},
    id::{Name, Tenant},
    metric::{Counter, Metrics},
    task::TaskResult,
};
use volary_store::{Batch, SharedStore, StoreError};

use super::{
    Beat,
    told::{Allowance, Unverified},
};
use crate::{
    admission::{Admission, FULL_RETRY, Refusal},
    event::Event,
    frame::SealedMessage,
    identity::{AgentId, IdentityRegistry, Voucher},
    inbox::InboxError,
    message::Message,
    metrics::{self, AdmissionCounters},
    post::{FromPeer, Post, Received},
    transport::tcp::{Answer, Arrival, Durable, Rejected},
};

/// Most frames that wait to be taken in.
const FRAMES: usize = 256;
/// Most messages of one commit.
const MESSAGES: usize = 1024;
/// Bytes of messages after which a commit takes no further frame.
const BYTES: usize = 4 << 20;
/// A message of more bytes than this begins a commit.
const LARGE: usize = 64 << 10;
/// Most commits on their way.
const COMMITS: usize = 4;
/// How long a message that was turned back for now holds back those behind it, unless it comes again.
const HOLD: Duration = Duration::from_secs(60);
/// Most messages whose followers are held back, of one peer.
const HOLDS: usize = 16_384;
/// How often it is looked whether what was left out of the journal is to be told.
const LEFT_OUT: Duration = Duration::from_secs(1);
/// Shortest time between two warnings that messages could not be stored.
const WARN: Duration = Duration::from_secs(60);

/// A frame and who waits for its answers.
pub(super) struct Job {
    messages: Vec<(Message, SealedMessage)>,
    durable: Option<Durable>,
    reply: oneshot::Sender<Vec<Answer>>,
}

/// The near end: what a listener calls.
#[derive(Clone)]
pub(super) struct Desk {
    peer: Name,
    jobs: mpsc::Sender<Job>,
    identities: IdentityRegistry,
    crowded: Arc<Crowded>,
    unverified: Arc<Unverified>,
}

/// What a receiver stands on.
#[derive(Clone)]
pub(super) struct Grounds {
    pub(super) post: Post,
    pub(super) store: SharedStore,
    pub(super) identities: IdentityRegistry,
    pub(super) clock: SharedClock,
    pub(super) metrics: Metrics,
}

/// The far end: what takes in.
pub(super) struct Receiver {
    peer: Name,
    tenants: Vec<Tenant>,
    grounds: Grounds,
    jobs: Arc<Mutex<mpsc::Receiver<Job>>>,
    answers: AdmissionCounters,
    repeated: Counter,
    allowance: parking_lot::Mutex<Allowance>,
    warned: Arc<parking_lot::Mutex<Option<Mono>>>,
}

/// Both ends for one peer.
pub(super) fn desk(peer: Name, tenants: Vec<Tenant>, grounds: Grounds) -> (Desk, Receiver) {
    let (sender, jobs) = mpsc::channel(FRAMES);
    let label = [peer.as_str()];
    let unverified = Unverified {
        counter: metrics::peer_unverified(&grounds.metrics).with(&label),
        peer: peer.clone(),
        store: grounds.store.clone(),
        clock: grounds.clock.clone(),
        told: parking_lot::Mutex::default(),
    };
    let desk = Desk {
        peer: peer.clone(),
        jobs: sender,
        identities: grounds.identities.clone(),
        crowded: Arc::new(Crowded {
            clock: grounds.clock.clone(),
            lowest: parking_lot::Mutex::default(),
        }),
        unverified: Arc::new(unverified),
    };
    let receiver = Receiver {
        answers: AdmissionCounters::of_peer(&grounds.metrics, &peer),
        repeated: metrics::peer_repeated(&grounds.metrics).with(&label),
        allowance: parking_lot::Mutex::new(Allowance::new(grounds.clock.mono())),
        peer,
        tenants,
        grounds,
        jobs: Arc::new(Mutex::new(jobs)),
        warned: Arc::default(),
    };
    (desk, receiver)
}

impl Desk {
    /// Tells of a frame that the listener refused unseen.
    pub(super) fn rejected(&self, rejected: Rejected) -> BoxFuture<'static, ()> {
        let unverified = self.unverified.clone();
        Box::pin(async move {
            let Rejected {
                count,
                reason,
                problem,
                ..
            } = rejected;
            let problem = format!("a frame was refused ({reason}): {problem}");
            unverified.tell(count, &problem).await;
        })
    }

    /// Takes a verified frame. Its place in line is that of this call, not of the first poll.
    pub(super) fn arrived(&self, arrival: Arrival) -> BoxFuture<'static, Vec<Answer>> {
        let Arrival { frame, durable, .. } = arrival;
        let count = frame.messages().len();
        let sender = AgentId::of(frame.key());
        let vouched = self.identities.get(&sender).is_some_and(
            |known| matches!(&known.voucher, Voucher::Peer(peer) if *peer == self.peer),
        );
        if !vouched {
            let unverified = self.unverified.clone();
            let problem = format!("peer `{}` does not vouch for sender {sender}", self.peer);
            return Box::pin(async move {
                unverified.tell(count, &problem).await;
                let problem = problem.into();
                vec![Admission::Refused(Refusal::Invalid { problem }); count]
            });
        }
        if durable
            .as_ref()
            .is_some_and(|durable| durable.orders.len() != count)
        {
            let problem = "not one number for each message".into();
            let refused = Admission::Refused(Refusal::Invalid { problem });
            return Box::pin(std::future::ready(vec![refused; count]));
        }
        let (reply, answered) = oneshot::channel();
        let job = Job {
            messages: frame.into_sealed(),
            durable,
            reply,
        };
        let refused = match self.crowded.admit(sender, job, &self.jobs) {
            Ok(()) => Refusal::Closed,
            Err(Turned::Full) => {
                let full = Admission::Refused(full(&self.peer));
                return Box::pin(std::future::ready(vec![full; count]));
            }
            Err(Turned::Behind) => {
                let waits = Admission::Refused(waits());
                return Box::pin(std::future::ready(vec![waits; count]));
            }
            Err(Turned::Closed) => {
                return Box::pin(std::future::ready(vec![
                    Admission::Refused(Refusal::Closed);
                    count
                ]));
            }
        };
        // Without an answer nothing is claimed: the sender tries again and gets the first result.
        Box::pin(async move {
            let answers = answered.await;
            answers.unwrap_or_else(|_| vec![Admission::Refused(refused); count])
        })
    }
}

/// Frames that found no room in the queue, by sender the lowest number of them: until that comes again, or is settled, or a
/// while has passed, later frames of the sender find none either. Else they would overtake it.
struct Crowded {
    clock: SharedClock,
    lowest: parking_lot::Mutex<HashMap<AgentId, (u64, Mono)>>,
}

/// Why a frame does not get into the queue.
enum Turned {
    Full,
    /// An earlier one of its sender has to come first.
    Behind,
    Closed,
}

impl Crowded {
    /// Puts a frame into the queue, if there is room and none of its sender has to come before it.
    fn admit(&self, sender: AgentId, job: Job, jobs: &mpsc::Sender<Job>) -> Result<(), Turned> {
        let numbers = job.durable.as_ref().map(|durable| {
            let (lowest, highest) = (durable.orders.iter().min(), durable.orders.iter().max());
            (durable.low, lowest.copied(), highest.copied())
        });
        let Some((settled, Some(lowest), Some(highest))) = numbers else {
            // At most once: nothing is promised of its order with others.
            return jobs.try_send(job).map_err(Turned::of);
        };
        let mut waiting = self.lowest.lock();
        let now = self.clock.mono();
        if let Some((first, until)) = waiting.get(&sender) {
            let over = *until <= now || settled > *first;
            if !over && lowest > *first {
                return Err(Turned::Behind);
            }
            if over || highest >= *first {
                waiting.remove(&sender);
            }
        }
        jobs.try_send(job).map_err(|error| {
            let turned = Turned::of(error);
            if matches!(turned, Turned::Full) && waiting.len() < HOLDS {
                waiting.insert(sender, (lowest, now + HOLD));
            }
            turned
        })
    }
}

impl Turned {
    fn of<T>(error: mpsc::error::TrySendError<T>) -> Self {
        match error {
            mpsc::error::TrySendError::Full(_) => Self::Full,
            mpsc::error::TrySendError::Closed(_) => Self::Closed,
        }
    }
}

/// What is told of a message that would overtake one of its sender.
fn waits() -> Refusal {
    Refusal::Full {
        what: "an earlier message of its sender waits".into(),
        retry_after: Duration::ZERO,
    }
}

fn full(peer: &Name) -> Refusal {
    Refusal::Full {
        what: format!("what waits to be taken in from peer `{peer}`").into(),
        retry_after: FULL_RETRY,
    }
}

/// Messages that were turned back for now, by sender and receiver (`None` stands for all): those behind them wait.
#[derive(Default)]
struct Holds {
    held: HashMap<(AgentId, Option<Name>), BTreeMap<u64, Mono>>,
    count: usize,
}

impl Holds {
    /// Whether a message has to wait for an earlier one.
    fn stops(&self, sender: AgentId, order: u64, receivers: &[Name], now: Mono) -> bool {
        let held = |receiver: Option<Name>| {
            self.held
                .get(&(sender, receiver))
                .is_some_and(|held| held.range(..order).any(|(_, until)| *until > now))
        };
        held(None)
            || receivers
                .iter()
                .any(|receiver| held(Some(receiver.clone())))
    }

    /// The message was turned back. Past the bound it holds nothing back: order is then lost, nothing else.
    fn hold(&mut self, sender: AgentId, order: u64, receivers: Vec<Name>, now: Mono) {
        let mut places: Vec<_> = receivers.into_iter().map(Some).collect();
        if places.is_empty() {
            places.push(None);
        }
        for place in places {
            if self.count < HOLDS {
                let held = self.held.entry((sender, place)).or_default();
                self.count += usize::from(held.insert(order, now + HOLD).is_none());
            }
        }
    }

    /// Messages that `done` means were settled.
    fn release(&mut self, done: impl Fn(AgentId, u64) -> bool) {
        if self.count == 0 {
            return;
        }
        for ((sender, _), held) in &mut self.held {
            held.retain(|order, _| !done(*sender, *order));
        }
        self.held.retain(|_, held| !held.is_empty());
        self.count = self.held.values().map(BTreeMap::len).sum();
    }
}

/// A frame whose answers are being gathered; they go out when all of them are in, or when nobody is at it any more.
struct Gathering {
    answers: parking_lot::Mutex<Vec<Option<Answer>>>,
    reply: Option<oneshot::Sender<Vec<Answer>>>,
}

impl Drop for Gathering {
    fn drop(&mut self) {
        let answers = self.answers.get_mut().drain(..);
        // What nobody settled may come again.
        let answers = answers.map(|answer| answer.unwrap_or(Admission::Refused(Refusal::Closed)));
        if let Some(reply) = self.reply.take() {
            // Who is gone asks again.
            let _ = reply.send(answers.collect());
        }
    }
}

/// What is being put together for one commit.
#[derive(Default)]
struct Draft {
    tx: Batch,
    /// Answers that hold once it is committed.
    answers: Vec<(Arc<Gathering>, usize, Answer)>,
    bytes: usize,
}

type Commits = FuturesOrdered<BoxFuture<'static, ()>>;

impl Receiver {
    /// Takes in until `stop`.
    ///
    /// # Errors
    /// When the store fails: the supervisor begins again after a back-off. Who waits for answers is told to come again.
    pub(super) async fn run(self: Arc<Self>, beat: Beat, stop: CancellationToken) -> TaskResult {
        let mut jobs = self.jobs.lock().await;
        let mut commits = Commits::new();
        let mut holds = Holds::default();
        loop {
            beat.beat();
            self.tell_left_out(&mut commits);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(()) = commits.next(), if !commits.is_empty() => {}
                () = beat.turn() => {}
                () = clock::sleep(LEFT_OUT), if self.allowance.lock().owes() => {}
                job = jobs.recv(), if commits.len() < COMMITS => {
                    let Some(job) = job else { break };
                    let mut draft = Draft::default();
                    self.add(&mut draft, job, &mut commits, &mut holds).await?;
                    while draft.answers.len() < MESSAGES && draft.bytes < BYTES {
                        let Ok(job) = jobs.try_recv() else { break };
                        self.add(&mut draft, job, &mut commits, &mut holds).await?;
                    }
                    self.commit(draft, &mut commits);
                }
            }
        }
        self.tell_left_out(&mut commits);
        // What was begun is ended, and its senders are told.
        while commits.next().await.is_some() {
            beat.beat();
        }
        beat.retire();
        Ok(())
    }

    /// Tells how many messages were turned back without being told, if it is time.
    fn tell_left_out(&self, commits: &mut Commits) {
        if commits.len() >= COMMITS {
            return;
        }
        let due = self.allowance.lock().due(self.grounds.clock.mono());
        if let Some((count, admission)) = due {
            let mut draft = Draft::default();
            let event = Event::LeftOut {
                peer: &self.peer,
                count,
                admission: &admission,
            };
            draft.tx.append(event.record());
            self.commit(draft, commits);
        }
    }

    /// Adds a frame to `draft`; commits what there is earlier where it must.
    async fn add(
        &self,
        draft: &mut Draft,
        job: Job,
        commits: &mut Commits,
        holds: &mut Holds,
    ) -> Result<(), InboxError> {
        let Job {
            messages,
            durable,
            reply,
        } = job;
        if let Some(durable) = &durable {
            let post = &self.grounds.post;
            post.confirm(&mut draft.tx, &self.peer, durable.low);
            holds.release(|_, order| order < durable.low);
        }
        let gathering = Arc::new(Gathering {
            answers: parking_lot::Mutex::new(vec![None; messages.len()]),
            reply: Some(reply),
        });
        for (index, (message, sealed)) in messages.into_iter().enumerate() {
            let bytes = sealed.bytes().len();
            if bytes > LARGE || draft.bytes > BYTES || draft.answers.len() >= MESSAGES {
                self.commit(std::mem::take(draft), commits);
            }
            let order = durable.as_ref().map(|durable| durable.orders[index]);
            let taken = self.take(&mut draft.tx, &message, &sealed, order, holds);
            let (answer, copies) = match taken.await? {
                Some(taken) => taken,
                None => {
                    // The same message twice, close behind each other.
                    self.commit(std::mem::take(draft), commits);
                    while commits.next().await.is_some() {}
                    let again = self.take(&mut draft.tx, &message, &sealed, order, holds);
                    let again = again.await?;
                    again.unwrap_or_else(|| (Admission::Refused(full(&self.peer)), 0))
                }
            };
            draft.bytes += bytes * (copies + 2);
            draft.answers.push((gathering.clone(), index, answer));
        }
        Ok(())
    }

    async fn take(
        &self,
        tx: &mut Batch,
        message: &Message,
        sealed: &SealedMessage,
        order: Option<u64>,
        holds: &mut Holds,
    ) -> Result<Option<(Admission, usize)>, InboxError> {
        let (post, sender) = (&self.grounds.post, message.sender().id());
        let now = self.grounds.clock.mono();
        if let Some(order) = order
            && holds.count > 0
        {
            let receivers = post.names_here(message);
            if !holds.stops(sender, order, &receivers, now) {
                return self
                    .take_unheld(tx, message, sealed, order.into(), holds)
                    .await;
            }
            holds.hold(sender, order, receivers, now);
            return Ok(Some((Admission::Refused(waits()), 0)));
        }
        self.take_unheld(tx, message, sealed, order, holds).await
    }

    async fn take_unheld(
        &self,
        tx: &mut Batch,
        message: &Message,
        sealed: &SealedMessage,
        order: Option<u64>,
        holds: &mut Holds,
    ) -> Result<Option<(Admission, usize)>, InboxError> {
        let (post, sender) = (&self.grounds.post, message.sender().id());
        let now = self.grounds.clock.mono();
        let from = FromPeer {
            peer: &self.peer,
            tenants: &self.tenants,
            order,
            tell: self.allowance.lock().may_tell(now),
        };
        let (answer, copies) = match post.receive(tx, message.clone(), sealed, &from).await? {
            Received::Wait => return Ok(None),
            Received::Answer(answer, copies) => {
                if !answer.is_taken() && !is_for_now(&answer) {
                    let mut allowance = self.allowance.lock();
                    allowance.turned_back(&answer, from.tell);
                }
                (answer, copies)
            }
            Received::Again(answer) => {
                self.repeated.inc();
                (answer, 0)
            }
        };
        if let Some(order) = order {
            match &answer {
                Admission::Refused(why) if why.is_transient() => {
                    holds.hold(sender, order, post.names_here(message), now);
                }
                _ => holds.release(|held, earlier| held == sender && earlier == order),
            }
        }
        Ok(Some((answer, copies)))
    }

    /// Commits what was put together; answers when it is durable.
    fn commit(&self, draft: Draft, commits: &mut Commits) {
        let Draft { tx, answers, .. } = draft;
        let (store, peer) = (self.grounds.store.clone(), self.peer.clone());
        let (counters, clock) = (self.answers.clone(), self.grounds.clock.clone());
        let warned = self.warned.clone();
        let mut commit: BoxFuture<'static, _> = Box::pin(async move {
            if tx.is_empty() {
                return Ok(());
            }
            store.commit(tx).await.map(drop)
        });
        // Polled at once, so that commits reach the store in this order.
        let early = (&mut commit).now_or_never();
        commits.push_back(Box::pin(async move {
            let committed = match early {
                Some(committed) => committed,
                None => commit.await,
            };
            let refused = committed.err().map(|error| {
                let (now, mut warned) = (clock.mono(), warned.lock());
                if warned.is_none_or(|last| now - last >= WARN) {
                    *warned = Some(now);
                    tracing::warn!(%peer, %error, "messages of a peer could not be stored");
                }
                Admission::Refused(refusal_of(&error, answers.len() == 1))
            });
            for (gathering, index, answer) in answers {
                let answer = refused.clone().unwrap_or(answer);
                counters.count(&answer);
                gathering.answers.lock()[index] = Some(answer);
            }
        }));
    }
}

/// Whether the same message may be taken another time.
fn is_for_now(answer: &Admission) -> bool {
    matches!(answer, Admission::Refused(why) if why.is_transient())
}

/// What senders are told when nothing of a commit was stored: come again, unless a message is too large even `alone`.
fn refusal_of(error: &StoreError, alone: bool) -> Refusal {
    match Refusal::of_store(error) {
        Some(why @ Refusal::Full { .. }) => why,
        Some(why @ Refusal::TooLarge { .. }) if alone => why,
        // Another took the same message in just now, or the store is closing: the next try will find out.
        _ => Refusal::Full {
            what: "the store".into(),
            retry_after: FULL_RETRY,
        },
    }
}

#[cfg(test)]
mod tests {
    use volary_kernel::ManualClock;

    use super::*;
    use crate::identity::Identity;

    fn frame(low: u64, orders: &[u64]) -> Job {
        Job {
            messages: Vec::new(),
            durable: Some(Durable {
                low,
                orders: orders.to_vec(),
            }),
            reply: oneshot::channel().0,
        }
    }

    #[test]
    fn nothing_of_a_sender_overtakes_a_frame_that_found_no_room() {
        let clock = ManualClock::default();
        let crowded = Crowded {
            clock: clock.shared(),
            lowest: parking_lot::Mutex::default(),
        };
        let [sender, other] = [0; 2].map(|_| Identity::generate().unwrap().id());
        let (jobs, mut queue) = mpsc::channel(1);
        assert!(crowded.admit(sender, frame(1, &[1, 2]), &jobs).is_ok());
        let turned = crowded.admit(sender, frame(1, &[3, 4]), &jobs);
        assert!(matches!(turned, Err(Turned::Full)));
        drop(queue.try_recv());
        let turned = crowded.admit(sender, frame(1, &[5, 6]), &jobs);
        assert!(matches!(turned, Err(Turned::Behind)), "there is room again");
        assert!(crowded.admit(other, frame(1, &[9]), &jobs).is_ok());
        drop(queue.try_recv());
        assert!(crowded.admit(sender, frame(1, &[3, 4]), &jobs).is_ok());
        drop(queue.try_recv());
        assert!(crowded.admit(sender, frame(1, &[5, 6]), &jobs).is_ok());
        // What was turned away may never come again: it was settled otherwise, or its sender is gone.
        let turned = crowded.admit(sender, frame(1, &[7]), &jobs);
        assert!(matches!(turned, Err(Turned::Full)));
        drop(queue.try_recv());
        assert!(crowded.admit(sender, frame(8, &[8]), &jobs).is_ok());
        let turned = crowded.admit(sender, frame(8, &[10]), &jobs);
        assert!(matches!(turned, Err(Turned::Full)));
        drop(queue.try_recv());
        clock.advance(HOLD);
        assert!(crowded.admit(sender, frame(8, &[11]), &jobs).is_ok());
    }
}
