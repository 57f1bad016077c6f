//! What a peer sends, taken in by one task for each peer: many frames share a commit, answers wait for it.
//!
//! ```text
//! arrived(frame) ─▶ bounded queue ─▶ one batch of what is there ─▶ commit ─▶ answers
//!     does the peer vouch for the sender?         up to 4 commits on their way, in order
//! ```
//! A sender's order holds when a message is turned back for now: until that message comes again, later ones of the same
//! sender for the same receiver are turned back as well (see `holds`).

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::sync::{
    Mutex,
    mpsc::{self, error::TrySendError},
    oneshot,
};
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
    commits::Commits,
    holds::{Holds, Missed},
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
    missed: Arc<Missed>,
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
    /// What waits, and whose messages are held back: that outlives a run which failed.
    line: Mutex<(mpsc::Receiver<Job>, Holds)>,
    missed: Arc<Missed>,
    answers: AdmissionCounters,
    repeated: Counter,
    allowance: parking_lot::Mutex<Allowance>,
    warned: Arc<parking_lot::Mutex<Option<Mono>>>,
}

/// Both ends for one peer.
pub(super) fn desk(peer: Name, tenants: Vec<Tenant>, grounds: Grounds) -> (Desk, Receiver) {
    let (sender, jobs) = mpsc::channel(FRAMES);
    let label = [peer.as_str()];
    let missed = Arc::new(Missed::default());
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
        missed: missed.clone(),
        unverified: Arc::new(unverified),
    };
    let receiver = Receiver {
        answers: AdmissionCounters::of_peer(&grounds.metrics, &peer),
        repeated: metrics::peer_repeated(&grounds.metrics).with(&label),
        allowance: parking_lot::Mutex::new(Allowance::new(grounds.clock.mono())),
        peer,
        tenants,
        grounds,
        line: Mutex::new((jobs, Holds::default())),
        missed,
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
        let order = durable.as_ref().and_then(lowest);
        let (reply, answered) = oneshot::channel();
        let job = Job {
            messages: frame.into_sealed(),
            durable,
            reply,
        };
        let refused = match self.missed.try_send(&self.jobs, job, sender, order) {
            Ok(()) => {
                // Without an answer nothing is claimed: the sender tries again and gets the first result.
                return Box::pin(async move {
                    let answers = answered.await;
                    answers.unwrap_or_else(|_| vec![Admission::Refused(Refusal::Closed); count])
                });
            }
            Err(TrySendError::Full(_)) => full(&self.peer),
            Err(TrySendError::Closed(_)) => Refusal::Closed,
        };
        Box::pin(std::future::ready(vec![Admission::Refused(refused); count]))
    }
}

/// The number of a frame's first message.
fn lowest(durable: &Durable) -> Option<u64> {
    durable.orders.iter().min().copied()
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

/// A frame whose answers are being gathered; they go out when all of them are in, or when nobody is at it any more.
struct Gathering {
    answers: parking_lot::Mutex<Vec<Option<Answer>>>,
    reply: Option<oneshot::Sender<Vec<Answer>>>,
    /// Where it is noted that a message came to nothing after it was judged: before the answer goes out, so that nothing
    /// which comes after the answer overtakes it.
    missed: Arc<Missed>,
    /// Its sender, if nothing of it may be overtaken; then each message has a number.
    ordered: Option<AgentId>,
    orders: Vec<u64>,
}

impl Gathering {
    /// The message at `index` was not stored.
    fn lost(&self, index: usize) {
        if let (Some(sender), Some(order)) = (self.ordered, self.orders.get(index)) {
            self.missed.note(sender, *order);
        }
    }
}

impl Drop for Gathering {
    fn drop(&mut self) {
        let answers = std::mem::take(self.answers.get_mut());
        // What nobody settled may come again.
        let answers = answers.into_iter().enumerate().map(|(index, answer)| {
            answer.unwrap_or_else(|| {
                self.lost(index);
                Admission::Refused(Refusal::Closed)
            })
        });
        let answers = answers.collect();
        if let Some(reply) = self.reply.take() {
            // Who is gone asks again.
            let _ = reply.send(answers);
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

impl Receiver {
    /// Takes in until `stop`.
    ///
    /// # Errors
    /// When the store fails: the supervisor begins again after a back-off. Who waits for answers is told to come again.
    pub(super) async fn run(self: Arc<Self>, beat: Beat, stop: CancellationToken) -> TaskResult {
        let mut line = self.line.lock().await;
        let (jobs, holds) = &mut *line;
        let mut commits = Commits::default();
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
                    self.add(&mut draft, job, &mut commits, holds).await?;
                    while draft.answers.len() < MESSAGES && draft.bytes < BYTES {
                        let Ok(job) = jobs.try_recv() else { break };
                        self.add(&mut draft, job, &mut commits, holds).await?;
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
        let first = messages.first().filter(|_| durable.is_some());
        let ordered = first.map(|(message, _)| message.sender().id());
        // After the job was taken, so that what it must not overtake is known.
        self.learn(commits, holds, ordered).await;
        if let Some(durable) = &durable {
            let post = &self.grounds.post;
            post.confirm(&mut draft.tx, &self.peer, durable.low);
            holds.release_below(durable.low);
        }
        let gathering = Arc::new(Gathering {
            answers: parking_lot::Mutex::new(vec![None; messages.len()]),
            reply: Some(reply),
            missed: self.missed.clone(),
            ordered,
            orders: durable.map_or_else(Vec::new, |durable| durable.orders),
        });
        for (index, (message, sealed)) in messages.into_iter().enumerate() {
            let bytes = sealed.bytes().len();
            if bytes > LARGE || draft.bytes > BYTES || draft.answers.len() >= MESSAGES {
                self.commit(std::mem::take(draft), commits);
                self.learn(commits, holds, ordered).await;
            }
            let order = gathering.orders.get(index).copied();
            let taken = self.take(&mut draft.tx, &message, &sealed, order, holds);
            let (answer, copies) = match taken.await? {
                Some(taken) => taken,
                None => {
                    // The same message twice, close behind each other.
                    self.commit(std::mem::take(draft), commits);
                    while commits.next().await.is_some() {}
                    self.learn(commits, holds, ordered).await;
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

    /// Makes holds of what was missed until now. Of a sender whose messages are `ordered`, nothing is on its way then any
    /// more: what could not be stored is known, and not overtaken by what comes into the next commit.
    async fn learn(&self, commits: &mut Commits, holds: &mut Holds, ordered: Option<AgentId>) {
        if let Some(sender) = ordered {
            commits.end_of(sender).await;
        }
        holds.note(&self.missed, self.grounds.clock.mono());
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
            && !holds.is_empty()
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
                _ => holds.release(sender, order),
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
        let gathered = answers.iter().map(|(gathering, ..)| gathering);
        let senders = gathered.filter_map(|gathering| gathering.ordered).collect();
        let ended = Box::pin(async move {
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
                if refused.as_ref().is_some_and(is_for_now) {
                    gathering.lost(index);
                }
                let answer = refused.clone().unwrap_or(answer);
                counters.count(&answer);
                gathering.answers.lock()[index] = Some(answer);
            }
        });
        commits.push(ended, senders);
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
