//! A network made of one random number: delays, cuts, and connections that overtake each other. Time is the paused clock (`start_paused`).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream::FuturesOrdered};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use volary_kernel::{
    clock::{self, Clock, Mono, SharedClock, Timestamp},
    task::{Supervisor, TaskKind},
};
use volary_messaging::{
    Admission, Refusal,
    frame::{self, Trust},
    peer::Wire,
    transport::tcp::{Answer, Arrival, LinkError, LinkState, Outgoing, PeerSpec, Reception},
};
use volary_store::{Batch, Committed, SharedStore, StoreError};

use crate::store::{Detour, over};

/// Numbers that follow from a seed (SplitMix64).
#[derive(Clone)]
pub struct Dice(Arc<Mutex<Cup>>);

struct Cup {
    state: u64,
    rolls: u64,
    /// The one roll that comes out otherwise.
    loaded: Option<u64>,
}

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self::loaded(seed, None)
    }

    /// As [`Dice::new`], but for one roll that has nothing to do with the seed.
    pub fn loaded(seed: u64, loaded: Option<u64>) -> Self {
        Self(Arc::new(Mutex::new(Cup {
            state: seed,
            rolls: 0,
            loaded,
        })))
    }

    pub fn rolls(&self) -> u64 {
        self.0.lock().rolls
    }

    pub fn roll(&self) -> u64 {
        let mut cup = self.0.lock();
        cup.rolls += 1;
        cup.state = cup.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        if cup.loaded == Some(cup.rolls) {
            return !mixed(cup.state);
        }
        mixed(cup.state)
    }

    pub fn below(&self, limit: u64) -> u64 {
        self.roll() % limit.max(1)
    }

    pub fn chance(&self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub async fn pause(&self, micros: u64) {
        let wait = Duration::from_micros(self.below(micros));
        if !wait.is_zero() {
            clock::sleep(wait).await;
        }
    }
}

const fn mixed(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What happened, and when.
#[derive(Clone)]
pub struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    clock: SharedClock,
    begun: Mono,
}

impl Log {
    pub fn new(clock: SharedClock) -> Self {
        Self {
            lines: Arc::default(),
            begun: clock.mono(),
            clock,
        }
    }

    pub fn say(&self, what: impl std::fmt::Display) {
        let at = self.clock.mono() - self.begun;
        self.lines.lock().push(format!("{at:?} {what}"));
    }

    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.lines.lock())
    }
}

/// A clock whose wall follows the paused time too, so that two runs read the same.
pub struct SimClock(tokio::time::Instant);

impl SimClock {
    pub fn shared() -> SharedClock {
        Arc::new(Self(tokio::time::Instant::now()))
    }
}

impl Clock for SimClock {
    fn wall(&self) -> Timestamp {
        Timestamp::from_micros(1_767_225_600_000_000) + self.0.elapsed()
    }

    fn mono(&self) -> Mono {
        Mono::from_nanos(1_000_000_000) + self.0.elapsed()
    }
}

/// A store whose commits take time, before and after they are there. A life that ends meanwhile does not know. So many in a
/// hundred fail and are not there, as when another process has the database.
pub struct Slow {
    line: tokio::sync::Mutex<()>,
    dice: Dice,
    failing: Arc<AtomicU64>,
}

impl Slow {
    pub fn shared(inner: SharedStore, dice: Dice, failing: Arc<AtomicU64>) -> SharedStore {
        let line = tokio::sync::Mutex::new(());
        over(
            inner,
            Self {
                line,
                dice,
                failing,
            },
        )
    }

    fn fails(&self) -> Result<(), StoreError> {
        let failing = self.failing.load(Ordering::Relaxed);
        if failing == 0 || !self.dice.chance(failing) {
            return Ok(());
        }
        Err(StoreError::Busy {
            path: "sim".into(),
            pid: None,
            waited: Duration::from_millis(4),
        })
    }
}

#[async_trait]
impl Detour for Slow {
    async fn commit(&self, inner: &SharedStore, batch: Batch) -> Result<Committed, StoreError> {
        let committed = {
            let _first_come = self.line.lock().await;
            self.dice.pause(4_000).await;
            self.fails()?;
            inner.commit(batch).await
        };
        self.dice.pause(4_000).await;
        committed
    }
}

type Frame = (Outgoing, oneshot::Sender<Vec<Answer>>);
/// A connection: its number, its near end, and word of its end.
type Near = (u64, mpsc::UnboundedSender<Frame>, CancellationToken);

/// The far end of the network: who takes frames in, if anybody lives there.
pub type Far = Arc<Mutex<Option<(PeerSpec, Bytes, Reception, Bytes)>>>;

/// The network between one dialer and one listener.
pub struct Network {
    pub dice: Dice,
    pub tasks: Supervisor,
    pub far: Far,
    pub log: Log,
    current: Arc<Mutex<Option<Near>>>,
    state: watch::Sender<LinkState>,
    connections: Mutex<u64>,
}

const DOWN: LinkState = LinkState::Connecting {
    attempt: 0,
    last_error: None,
};

#[expect(
    clippy::disallowed_methods,
    reason = "a network of a test holds what it is given"
)]
fn channel() -> (mpsc::UnboundedSender<Frame>, mpsc::UnboundedReceiver<Frame>) {
    mpsc::unbounded_channel()
}

impl Network {
    pub fn new(dice: Dice, log: Log) -> Self {
        Self {
            dice,
            tasks: Supervisor::new(),
            far: Arc::default(),
            log,
            current: Arc::default(),
            state: watch::channel(DOWN).0,
            connections: Mutex::new(0),
        }
    }

    pub fn say(&self, what: impl std::fmt::Display) {
        self.log.say(what);
    }

    /// What a courier holds.
    pub fn wire(&self) -> Wire {
        let (current, dice) = (self.current.clone(), self.dice.clone());
        let send = move |outgoing: Outgoing| -> futures_util::future::BoxFuture<'static, _> {
            let (current, dice) = (current.clone(), dice.clone());
            // The place in line is that of the first poll.
            Box::pin(async move {
                let connection = current.lock().clone();
                let Some((number, connection, end)) = connection else {
                    return Err(LinkError::NotConnected);
                };
                if outgoing.connection.is_some_and(|wanted| wanted != number) {
                    return Err(LinkError::NotConnected);
                }
                let (reply, answers) = oneshot::channel();
                connection
                    .send((outgoing, reply))
                    .map_err(|_| LinkError::Down)?;
                let answered = end.run_until_cancelled(answers).await;
                let answered = answered.and_then(Result::ok);
                if answered.is_none() {
                    // Frames of one connection learn of its end one by one, some when the next is up.
                    dice.pause(20_000).await;
                }
                answered.ok_or(LinkError::Down)
            })
        };
        Wire::new(send, self.state.subscribe())
    }

    pub fn is_up(&self) -> bool {
        self.current.lock().is_some()
    }

    /// Connects, if there is somebody at the far end.
    pub async fn connect(&self) {
        let far = self.far.lock().clone();
        let Some((dialer, said, reception, theirs)) = far else {
            return;
        };
        if self.is_up() || (reception.introduced)(dialer.clone(), said).await.is_err() {
            return;
        }
        let number = {
            let mut connections = self.connections.lock();
            *connections += 1;
            *connections
        };
        self.say(format_args!("up {number}"));
        let (sender, frames) = channel();
        *self.current.lock() = Some((number, sender, CancellationToken::new()));
        let log = (number, self.log.clone());
        let carry = carry(frames, dialer, reception, self.dice.clone(), log);
        self.tasks
            .spawn(TaskKind::new("connection").abort(), async move {
                carry.await;
                Ok(())
            });
        self.state.send_replace(LinkState::Connected {
            connection: number,
            since: Timestamp::default(),
            name: dialer_name(),
            incarnation: number,
            introduction: theirs,
        });
    }

    /// Ends the connection: what is on its way may still arrive, answers do not.
    pub fn cut(&self) {
        if let Some((_, _, end)) = self.current.lock().take() {
            end.cancel();
            self.say("cut");
            self.state.send_replace(DOWN);
        }
    }
}

fn dialer_name() -> volary_kernel::Name {
    "b".parse().unwrap()
}

/// One connection: frames in order, each after a while; answers in order, each after a while.
async fn carry(
    mut frames: mpsc::UnboundedReceiver<Frame>,
    peer: PeerSpec,
    reception: Reception,
    dice: Dice,
    (number, log): (u64, Log),
) {
    let mut answers = FuturesOrdered::new();
    loop {
        tokio::select! {
            biased;
            Some(()) = answers.next(), if !answers.is_empty() => {}
            frame = frames.recv() => {
                let Some((outgoing, reply)) = frame else { break };
                // After a cut nobody waits for the answer, and the frame may be lost.
                if reply.is_closed() && dice.chance(50) {
                    break;
                }
                dice.pause(20_000).await;
                let registry = (reception.trust)(&peer);
                let opened = frame::open(&outgoing.frame, Trust::Registry(&registry));
                let texts: Vec<_> = match &opened {
                    Ok(frame) => frame.messages().iter().map(crate::node::text_of).collect(),
                    Err(error) => vec![error.to_string()],
                };
                let answered = match opened {
                    Ok(frame) => (reception.arrived)(Arrival {
                        peer: peer.clone(),
                        frame,
                        durable: outgoing.durable,
                    }),
                    Err(error) => {
                        let problem = error.to_string().into();
                        let refused = Admission::Refused(Refusal::Invalid { problem });
                        Box::pin(std::future::ready(vec![refused; outgoing.count]))
                    }
                };
                let dice = dice.clone();
                let (log, texts) = (log.clone(), texts);
                log.say(format_args!("{number} brings {texts:?}"));
                answers.push_back(async move {
                    let answered = answered.await;
                    let words: Vec<_> = answered.iter().map(Admission::label).collect();
                    log.say(format_args!("{number} answers {texts:?} {words:?}"));
                    dice.pause(20_000).await;
                    // Who cut the connection is gone.
                    let _ = reply.send(answered);
                });
            }
        }
    }
    while answers.next().await.is_some() {}
}
