//! A courier: carries what waits for one peer over the link to it, until the peer has it or will not have it.
//!
//! ```text
//! lend ≤ 256 ─▶ by sender ─▶ frames of ≤ 64, sealed ─▶ wire (window) ─▶ answers ─▶ one commit for a frame's answers
//!   ▲  nothing is written: a loan ends with the process          taken        done, message.forwarded
//!   │                                                             for now      back, its sender rests a while
//!   └── no answer: back at once, again when the link is up        too late     outbox.expired
//!                                                                 for good     parked, message.returned
//! ```
//! A frame goes out as soon as there is something to send, so an idle link carries small frames and a loaded one full
//! ones. A sender's messages go out in their order; when the peer turns one back for now, it turns those behind it back
//! too (see `receive`), and all of them come again in their order.

use std::{collections::HashMap, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use volary_kernel::{
    clock::{self, Mono, SharedClock, WallSteps},
    id::Name,
    metric::Counter,
    retry::Backoff,
    task::TaskResult,
};
use volary_store::{Batch, Committed, Queue, QueueError, SharedStore, StoreError, queue::Loan};

use super::{Peer, Peers, Wire, outbox::Parcel};
use crate::{
    admission::{Admission, Refusal},
    event::Event,
    frame,
    identity::{AgentId, Identity, Keyring},
    metrics,
    transport::tcp::{Answer, Durable, LinkError, LinkState, Outgoing},
};

/// Most messages lent at once.
const LEND: usize = 256;
/// Most messages of one frame.
pub(super) const FRAME: usize = 64;
/// Bytes after which a frame takes no further message, unless the peer takes less. Well below what a link takes by default,
/// so that mostly only a single large message can be too large for it.
pub(super) const FRAME_BYTES: usize = 512 * 1024;
/// Most messages in hand: a window of full frames.
const IN_HAND: usize = 64 * FRAME;
/// Longest a courier waits for something to send before it looks around.
const IDLE: Duration = Duration::from_secs(60);
/// By how much the clock is set before what a peer says of its agents is looked at again: descriptors hold for a time.
const STEP: Duration = Duration::from_secs(10);
/// When what a peer says of its agents is looked at again, if it could not be taken.
const SAY_AGAIN: Duration = Duration::from_secs(5);
/// Waits of a sender whose messages the peer turns back again and again.
const REST: Backoff = Backoff {
    base: Duration::from_millis(50),
    factor: 2.0,
    max: Duration::from_secs(30),
    // One courier a link: nobody else waits for the same moment.
    jitter: 0.0,
};

/// What may happen next.
enum Step {
    Lent(Result<Vec<Loan>, QueueError>),
    Answered(Sent, Result<Vec<Answer>, LinkError>),
    Settled(usize, Result<Committed, StoreError>),
    Outgrown(TaskResult),
}

/// A frame's messages that are on their way.
struct Sent {
    sender: AgentId,
    name: Option<Name>,
    parcels: Vec<Parcel>,
}

/// A sender whose messages the peer turned back.
struct Resting {
    until: Mono,
    failures: u32,
}

/// One peer's courier.
pub(super) struct Courier {
    pub(super) peers: Peers,
    pub(super) peer: Arc<Peer>,
    pub(super) wire: Wire,
    pub(super) keys: Keyring,
    pub(super) store: SharedStore,
    pub(super) clock: SharedClock,
    pub(super) counters: Counters,
}

/// What attempts came to.
#[derive(Clone)]
pub(super) struct Counters {
    taken: Counter,
    later: Counter,
    returned: Counter,
    expired: Counter,
    unanswered: Counter,
}

impl Counters {
    pub(super) fn new(metrics: &volary_kernel::metric::Metrics, peer: &Name) -> Self {
        let family = metrics::peer_sent(metrics);
        let of = |outcome| family.with(&[peer.as_str(), outcome]);
        Self {
            taken: of("taken"),
            later: of("later"),
            returned: of("returned"),
            expired: of("expired"),
            unanswered: of("unanswered"),
        }
    }
}

/// What a courier remembers while it runs.
#[derive(Default)]
struct Run {
    busy: FuturesUnordered<BoxFuture<'static, Step>>,
    lending: bool,
    in_hand: usize,
    /// The connection that frames go over.
    connection: Option<u64>,
    /// Frames without an answer yet.
    on_the_way: usize,
    /// A frame was lost with its connection, or is about to be. Nothing is sent until all others of its time are accounted
    /// for too, so that what goes again goes in its order.
    broken: bool,
    /// What is being lent was chosen while some of it was still on its way.
    stale: bool,
    /// What waits is being numbered anew: nothing is sent meanwhile.
    outgrowing: bool,
    resting: HashMap<AgentId, Resting>,
    /// After so many bytes a frame takes no further message, if over this connection that is less than [`FRAME_BYTES`].
    frame_bytes: Option<usize>,
    /// What the peer said of its agents last.
    said: Option<bytes::Bytes>,
    /// When that is looked at again, because it could not be taken.
    again_at: Option<Mono>,
}

impl Run {
    /// Frames go over this connection from now on. What went over another one may be lost, and the next connection may
    /// be there before that is known: nothing goes over it until everything is accounted for.
    fn over(&mut self, connection: Option<u64>) {
        if self.connection != connection {
            self.connection = connection;
            self.frame_bytes = None;
            self.broken = self.on_the_way > 0;
            self.stale |= self.lending;
        }
    }
}

impl Courier {
    /// Carries until `stop`; what has no answer by then comes again in the next life.
    ///
    /// # Errors
    /// When the store fails: the supervisor begins again after a back-off.
    pub(super) async fn run(self, stop: CancellationToken) -> TaskResult {
        let beat = self.peers.beat("peer-courier", &self.peer.config.spec.name);
        let mut run = Run::default();
        let mut state = self.wire.state();
        let mut steps = WallSteps::new(&*self.clock, STEP);
        // When a link that is down is looked at next: it outlives the many changes of its state.
        let mut look_at = None;
        loop {
            beat.beat();
            let now = state.borrow_and_update().clone();
            run.over(connection(&now));
            if steps.stepped(&*self.clock) {
                run.said = None;
            }
            let up = self.look(&mut run, &now).await;
            if up && !run.lending && !run.broken && !run.outgrowing && run.in_hand < IN_HAND {
                self.lend(&mut run);
            }
            let give_up = self.peer.config.give_up.filter(|_| !up);
            let mono = self.clock.mono();
            look_at = give_up
                .map(|after| look_at.unwrap_or_else(|| mono + after.clamp(TICK.0, TICK.1 * 4) / 4));
            let give_up = async move {
                match look_at {
                    Some(at) => clock::sleep(at - mono).await,
                    None => std::future::pending().await,
                }
            };
            let again_at = run.again_at.filter(|_| up);
            let again = async move {
                match again_at {
                    Some(at) => clock::sleep(at - mono).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                changed = state.changed() => {
                    // The link is gone for good; what waits, waits for the next life.
                    if changed.is_err() {
                        break;
                    }
                }
                () = beat.turn() => {}
                () = again => {}
                Some(step) = run.busy.next(), if !run.busy.is_empty() => self.take(&mut run, step)?,
                () = give_up => {
                    look_at = None;
                    self.give_up().await?;
                }
            }
        }
        beat.retire();
        stop.cancelled().await;
        Ok(())
    }

    /// Whether the link is up; what the peer says of its agents is taken first.
    async fn look(&self, run: &mut Run, state: &LinkState) -> bool {
        let LinkState::Connected { introduction, .. } = state else {
            return false;
        };
        let now = self.clock.mono();
        if run.said.as_ref() != Some(introduction) || run.again_at.is_some_and(|at| at <= now) {
            let name = &self.peer.config.spec.name;
            let taken = self.peers.introduced(name, introduction.clone()).await;
            // Mostly the store: it was full, or somebody else wrote. Without routes nobody there can be reached.
            run.again_at = taken.err().map(|error| {
                tracing::warn!(peer = %name, %error, "what a peer says of its agents was not taken");
                now + SAY_AGAIN
            });
            run.said = Some(introduction.clone());
        }
        true
    }

    fn lend(&self, run: &mut Run) {
        let (queue, max) = (
            self.peer.outbox.queue.clone(),
            LEND.min(IN_HAND - run.in_hand),
        );
        run.lending = true;
        run.busy.push(Box::pin(
            async move { Step::Lent(queue.lend(max, IDLE).await) },
        ));
    }

    fn take(&self, run: &mut Run, step: Step) -> TaskResult {
        match step {
            Step::Lent(loans) => {
                run.lending = false;
                let stale = std::mem::take(&mut run.stale);
                let loans = loans?;
                let now = connection(&self.wire.state().borrow());
                if now.is_some() && now == run.connection && !run.broken && !stale {
                    self.send(run, loans);
                }
            }
            Step::Answered(sent, answers) => {
                run.on_the_way -= 1;
                if answers.is_err() {
                    run.broken = true;
                    run.stale |= run.lending;
                }
                self.settle(run, sent, answers);
                run.broken &= run.on_the_way > 0;
            }
            Step::Outgrown(done) => {
                run.outgrowing = false;
                done?;
            }
            Step::Settled(count, committed) => {
                run.in_hand -= count;
                match committed {
                    Ok(_) => {}
                    Err(StoreError::Closed) => return Err(StoreError::Closed.into()),
                    // They come again, and get the same answers.
                    Err(error) => {
                        tracing::warn!(peer = %self.peer.config.spec.name, %error, "answers of a peer could not be stored");
                        return Err(error.into());
                    }
                }
            }
        }
        Ok(())
    }

    // --- Sending -----------------------------------------------------------------------------

    fn send(&self, run: &mut Run, loans: Vec<Loan>) {
        let now = self.clock.mono();
        run.resting
            .retain(|_, resting| resting.until + REST.max * 2 > now);
        let mut unusable = Vec::new();
        let mut by_sender: Vec<(AgentId, Vec<Parcel>)> = Vec::new();
        let mut places: HashMap<AgentId, usize> = HashMap::new();
        let agreed = &self.peer.config.spec.tenants;
        for loan in loans {
            if !agreed.contains(loan.tenant()) {
                let reason = format!(
                    "tenant `{}` is not agreed with peer `{}` any more",
                    loan.tenant(),
                    self.peer.config.spec.name
                );
                unusable.push((loan, reason));
                continue;
            }
            let parcel = match Parcel::open(loan) {
                Ok(parcel) => parcel,
                Err(unreadable) => {
                    let (loan, error) = *unreadable;
                    unusable.push((loan, format!("it can not be read: {error}")));
                    continue;
                }
            };
            if let Some(resting) = run.resting.get(&parcel.sender)
                && resting.until > now
            {
                parcel.loan.give_back_at(resting.until);
                continue;
            }
            let place = *places.entry(parcel.sender).or_insert_with(|| {
                by_sender.push((parcel.sender, Vec::new()));
                by_sender.len() - 1
            });
            by_sender[place].1.push(parcel);
        }
        for (sender, parcels) in by_sender {
            match self.keys.get(&sender) {
                Some(identity) => self.send_frames(run, &identity, parcels),
                None => unusable.extend(parcels.into_iter().map(|parcel| {
                    let reason =
                        format!("the key of its sender {sender} is not held here any more");
                    (parcel.loan, reason)
                })),
            }
        }
        self.park(run, unusable);
    }

    fn send_frames(&self, run: &mut Run, identity: &Identity, parcels: Vec<Parcel>) {
        let mut frame: Vec<Parcel> = Vec::new();
        let mut bytes = 0;
        for parcel in parcels {
            let more = parcel.encoded.len();
            let most = run.frame_bytes.unwrap_or(FRAME_BYTES);
            if !frame.is_empty() && (frame.len() >= FRAME || bytes + more > most) {
                self.send_frame(run, identity, std::mem::take(&mut frame));
                bytes = 0;
            }
            bytes += more;
            frame.push(parcel);
        }
        if !frame.is_empty() {
            self.send_frame(run, identity, frame);
        }
    }

    fn send_frame(&self, run: &mut Run, identity: &Identity, parcels: Vec<Parcel>) {
        let count = parcels.len();
        let sealed = frame::seal_encoded(identity, parcels.iter().map(|parcel| &parcel.encoded));
        let frame = match sealed {
            Ok(frame) => frame,
            Err(error) => {
                let reason = error.to_string();
                let parcels = parcels.into_iter();
                return self.park(
                    run,
                    parcels
                        .map(|parcel| (parcel.loan, reason.clone()))
                        .collect(),
                );
            }
        };
        let durable = Durable {
            low: self.peer.outbox.queue.low(),
            orders: parcels.iter().map(|parcel| parcel.loan.number()).collect(),
        };
        let mut answers = self.wire.send(Outgoing {
            frame,
            count,
            durable: Some(durable),
            connection: run.connection,
        });
        // Polled at once, so that frames find their place in the window in the order in which they were made.
        let early = answers.as_mut().now_or_never();
        if count > 1 && matches!(early, Some(Err(LinkError::TooLarge { .. }))) {
            // In smaller frames, before anything that is behind it goes. A message of more than half of this goes alone.
            let bytes: usize = parcels.iter().map(|parcel| parcel.encoded.len()).sum();
            run.frame_bytes = Some(bytes / 2);
            return self.send_frames(run, identity, parcels);
        }
        let sent = Sent {
            sender: identity.id(),
            name: self.peers.sender_name(&identity.id()),
            parcels,
        };
        run.in_hand += count;
        run.on_the_way += 1;
        run.busy.push(Box::pin(async move {
            let answers = match early {
                Some(answers) => answers,
                None => answers.await,
            };
            Step::Answered(sent, answers)
        }));
    }

    // --- Settling ----------------------------------------------------------------------------

    fn settle(&self, run: &mut Run, sent: Sent, answers: Result<Vec<Answer>, LinkError>) {
        let count = sent.parcels.len();
        let answers = match answers {
            Ok(answers) if answers.len() == count => answers,
            Err(error @ LinkError::TooLarge { .. }) if count == 1 => {
                run.in_hand -= count;
                let parcels = sent.parcels.into_iter();
                return self.park(
                    run,
                    parcels
                        .map(|parcel| (parcel.loan, error.to_string()))
                        .collect(),
                );
            }
            _ => {
                // Dropped loans are lent again; the peer knows what it has seen.
                run.in_hand -= count;
                self.counters.unanswered.inc_by(count as u64);
                return;
            }
        };
        let mut tx = Batch::new();
        let (mut kept, mut later) = (Vec::new(), None);
        let (mut taken, mut behind) = (false, None);
        for (parcel, answer) in sent.parcels.into_iter().zip(answers) {
            let below = self.behind(&parcel, &answer);
            behind = behind.max(below);
            if let Some(wait) = wait_of(&answer).or(below.map(|_| Duration::ZERO)) {
                self.counters.later.inc();
                let (longest, parcels) = later.get_or_insert((wait, Vec::new()));
                *longest = (*longest).max(wait);
                parcels.push(parcel);
                run.in_hand -= 1;
                continue;
            }
            taken |= answer.is_taken();
            self.settle_one(&mut tx, &parcel, &answer, sent.name.as_ref());
            kept.push(parcel.loan);
        }
        match later {
            Some((wait, parcels)) => self.rest(run, sent.sender, wait, parcels),
            None if taken => self.go_on(run, sent.sender),
            None => {}
        }
        self.commit(run, tx, kept);
        if let Some(below) = behind {
            self.outgrow(run, below);
        }
    }

    /// The peer's mark, if it took a message for an old one only because it knows of a later life of this node.
    fn behind(&self, parcel: &Parcel, answer: &Answer) -> Option<u64> {
        let Admission::Refused(Refusal::Settled { below }) = answer else {
            return None;
        };
        let queue = &self.peer.outbox.queue;
        let is_behind = queue.is_behind(parcel.loan.number(), *below);
        is_behind.then_some(*below)
    }

    /// Goes on with numbers above the peer's mark. What is on its way under the old ones is waited for, so that nothing
    /// overtakes it.
    fn outgrow(&self, run: &mut Run, below: u64) {
        if run.outgrowing {
            return;
        }
        run.outgrowing = true;
        run.broken = run.on_the_way > 0;
        run.stale |= run.lending;
        let (queue, store) = (self.peer.outbox.queue.clone(), self.store.clone());
        let peer = self.peer.config.spec.name.clone();
        run.busy.push(Box::pin(async move {
            let mut tx = Batch::new();
            let outgrown = async {
                if queue.outgrow(&mut tx, below).await? {
                    let known = Queue::begun(below);
                    tracing::warn!(%peer, %known, "a peer knows of a later life of this node: its clock or its state was set back; what is sent gets later numbers");
                    tx.append(Event::Behind { peer: &peer, known }.record());
                    store.commit(tx).await?;
                }
                Ok(())
            };
            Step::Outgrown(outgrown.await)
        }));
    }

    /// Adds the last word on a message to `tx`.
    fn settle_one(&self, tx: &mut Batch, parcel: &Parcel, answer: &Answer, sender: Option<&Name>) {
        let (loan, queue) = (&parcel.loan, &self.peer.outbox.queue);
        let start = tx.savepoint();
        let event = Event::Answered {
            peer: &self.peer.config.spec.name,
            tenant: loan.tenant(),
            trace: loan.trace(),
            sender,
            message: Some(parcel.id),
            admission: answer,
        };
        let (ended, counter) = match answer {
            Admission::Refused(Refusal::Expired) => {
                (queue.expire(tx, loan), &self.counters.expired)
            }
            answer if answer.is_taken() || matches!(answer, Admission::Partial { .. }) => {
                tx.append(event.record().cause(loan.cause()));
                queue.settle(tx, loan);
                (Ok(()), &self.counters.taken)
            }
            refused => {
                tx.append(event.record().cause(loan.cause()));
                let peer = &self.peer.config.spec.name;
                let reason = format!("peer `{peer}` answered: {refused}");
                (queue.park_loan(tx, loan, &reason), &self.counters.returned)
            }
        };
        match ended {
            Ok(()) => {
                let counter = counter.clone();
                tx.on_commit(move |_| {
                    counter.inc();
                });
            }
            // It comes again.
            Err(error) => {
                tx.roll_back(start);
                tracing::error!(item = %loan.id(), %error, "an answer could not be written down");
            }
        }
    }

    /// Lets a sender rest: what came back, and what comes while it rests, waits until then.
    fn rest(&self, run: &mut Run, sender: AgentId, wait: Duration, parcels: Vec<Parcel>) {
        let now = self.clock.mono();
        let resting = run.resting.entry(sender).or_insert(Resting {
            until: now,
            failures: 0,
        });
        // Frames of one sender that were on their way together come back together: that is one failure.
        if resting.until <= now {
            resting.failures += 1;
            let wait = wait.max(REST.delay(resting.failures, 0.0));
            resting.until = now + wait.min(REST.max);
        }
        for parcel in parcels {
            parcel.loan.give_back_at(resting.until);
        }
    }

    /// Something of a sender was taken. While others of its messages rest, for a receiver that is full perhaps, nothing
    /// of it may overtake them: the rest stays, and the next one is a short one again.
    fn go_on(&self, run: &mut Run, sender: AgentId) {
        let now = self.clock.mono();
        match run.resting.get_mut(&sender) {
            Some(resting) if resting.until > now => resting.failures = 0,
            Some(_) => drop(run.resting.remove(&sender)),
            None => {}
        }
    }

    fn park(&self, run: &mut Run, loans: Vec<(Loan, String)>) {
        if loans.is_empty() {
            return;
        }
        let mut tx = Batch::new();
        let mut kept = Vec::with_capacity(loans.len());
        for (loan, reason) in loans {
            match self.peer.outbox.queue.park_loan(&mut tx, &loan, &reason) {
                Ok(()) => kept.push(loan),
                Err(error) => {
                    tracing::error!(item = %loan.id(), %error, "a message could not be parked")
                }
            }
        }
        self.counters.returned.inc_by(kept.len() as u64);
        run.in_hand += kept.len();
        self.commit(run, tx, kept);
    }

    fn commit(&self, run: &mut Run, tx: Batch, loans: Vec<Loan>) {
        if loans.is_empty() {
            return;
        }
        let store = self.store.clone();
        run.busy.push(Box::pin(async move {
            let committed = store.commit(tx).await;
            // Held until here, so that nothing is lent again while its end is being stored.
            let count = loans.len();
            drop(loans);
            Step::Settled(count, committed)
        }));
    }

    /// Parks what has waited too long for a peer that is not there.
    async fn give_up(&self) -> TaskResult {
        let Some(after) = self.peer.config.give_up else {
            return Ok(());
        };
        let queue = &self.peer.outbox.queue;
        loop {
            let now = self.clock.wall();
            let loans = queue.lend(LEND, Duration::ZERO).await?;
            let late = |loan: &Loan| now.since(loan.enqueued_at()) >= after;
            let late: Vec<_> = loans.into_iter().filter(late).collect();
            if late.is_empty() {
                return Ok(());
            }
            let mut tx = Batch::new();
            let reason = format!(
                "peer `{}` was not reached within {}",
                self.peer.config.spec.name,
                volary_kernel::text::brief_duration(after)
            );
            for loan in &late {
                queue.park_loan(&mut tx, loan, &reason)?;
            }
            self.counters.returned.inc_by(late.len() as u64);
            self.store.commit(tx).await?;
        }
    }
}

/// How often a courier whose link is down looks for what has waited too long: a quarter of the time to give up.
const TICK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The connection that there is.
const fn connection(state: &LinkState) -> Option<u64> {
    match state {
        LinkState::Connected { connection, .. } => Some(*connection),
        LinkState::Connecting { .. } | LinkState::Failed { .. } => None,
    }
}

/// How long to wait until the same may be taken; nothing for a last word.
fn wait_of(answer: &Answer) -> Option<Duration> {
    match answer {
        Admission::Refused(
            Refusal::Full { retry_after, .. } | Refusal::RateLimited { retry_after },
        ) => Some(*retry_after),
        Admission::Refused(Refusal::Closed) => Some(Duration::ZERO),
        _ => None,
    }
}
