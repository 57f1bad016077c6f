//! The dialing side of a link to one peer.
//!
//! ```text
//! Connecting ──greeted──▶ Connected ──ended──▶ Connecting (after a back-off)
//!     └─ gave up, or closed ──▶ Failed ◀── closed ─┘
//! ```

mod gate;
mod run;

use std::{fmt, sync::Arc};

use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use volary_kernel::{
    clock::{SharedClock, Timestamp},
    id::Name,
    metric::Metrics,
    retry::Backoff,
    task::{Supervisor, TaskKind},
};

use self::{gate::Gate, run::Runner};
use super::{Answer, Durable, Net, PeerSpec, Security, TcpLimits, metrics::LinkMetrics};
use crate::identity::Identity;

/// Waits between attempts to connect: 100 ms, doubling, at most 30 s, a fifth of it random.
pub const RECONNECT: Backoff = Backoff {
    base: std::time::Duration::from_millis(100),
    factor: 2.0,
    max: std::time::Duration::from_secs(30),
    jitter: 0.2,
};

/// A source of numbers in `0.0..1.0`, for jitter.
pub type Random = Arc<dyn Fn() -> f64 + Send + Sync>;

/// What a link is made of.
#[derive(Clone)]
pub struct LinkConfig {
    /// Whose key is shown to the peer.
    pub me: Identity,
    /// What we call ourselves: for people at the other end.
    pub name: Name,
    /// Larger after each start of this node (such as the time of it in microseconds): the peer then closes connections
    /// of an earlier life.
    pub incarnation: u64,
    /// To whom. Needs an address.
    pub peer: PeerSpec,
    /// Who our agents are: told at each connect, and again when it changes, before any frame sent afterwards.
    pub introduction: watch::Receiver<Bytes>,
    /// Bounds; the peer's own apply too.
    pub limits: TcpLimits,
    /// Protection.
    pub security: Security,
    /// Waits between attempts. Default [`RECONNECT`].
    pub reconnect: Backoff,
    /// Gives up after this many failed attempts in a row; `None` never does.
    pub give_up: Option<u32>,
    /// Where sockets come from.
    pub net: Net,
    /// What [`LinkState::Connected`] is dated with.
    pub clock: SharedClock,
    /// Runs the link's task.
    pub tasks: Supervisor,
    /// Counts.
    pub metrics: Metrics,
    /// For jitter.
    pub random: Random,
}

impl LinkConfig {
    /// A link with the machine's sockets, default limits and no giving up.
    pub fn new(me: Identity, name: Name, peer: PeerSpec, tasks: Supervisor) -> Self {
        Self {
            me,
            name,
            incarnation: 0,
            peer,
            introduction: watch::channel(Bytes::new()).1,
            limits: TcpLimits::default(),
            security: Security::default(),
            reconnect: RECONNECT,
            give_up: None,
            net: Net::tokio(),
            clock: volary_kernel::clock::SystemClock::shared(),
            tasks,
            metrics: Metrics::default(),
            random: Arc::new(volary_kernel::retry::random_unit),
        }
    }
}

/// A sealed frame to be sent.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// What [`crate::frame::seal`] made: messages of one sender.
    pub frame: Bytes,
    /// Messages in it.
    pub count: usize,
    /// For messages that must not be lost; one order per message.
    pub durable: Option<Durable>,
    /// Not over any other connection than this one: see [`LinkState::Connected`]. Who sends in order needs it, since what
    /// was sent over the connection before may be lost.
    pub connection: Option<u64>,
}

/// Why a frame has no answers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The connection ended before the answers came: the frame may have arrived.
    #[error("no answer before the connection ended")]
    Down,
    /// There is no connection, or not the one that was asked for: the frame was not sent.
    #[error("not connected")]
    NotConnected,
    /// The frame is larger than either side takes: it was not sent.
    #[error("a frame of {found} bytes is more than the {limit} that this link takes")]
    TooLarge {
        /// Its bytes.
        found: usize,
        /// What is taken.
        limit: usize,
    },
    /// The count of messages or of orders is not possible: it was not sent.
    #[error("a frame of {found} messages is not possible, or has not as many orders")]
    Count {
        /// Messages.
        found: usize,
    },
    /// The link was closed or has given up: the frame was not sent.
    #[error("the link is closed")]
    Closed,
}

/// How a link stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    /// Not connected; trying.
    Connecting {
        /// Failed attempts since the last connection.
        attempt: u32,
        /// Why the last attempt failed, or the last connection ended.
        last_error: Option<String>,
    },
    /// Connected: both sides proved who they are, and the peer accepted our greeting.
    Connected {
        /// Which connection it is: no two of this process have the same number.
        connection: u64,
        /// Since when (wall clock).
        since: Timestamp,
        /// What the peer calls itself.
        name: Name,
        /// Larger after each start of the peer.
        incarnation: u64,
        /// Who its agents are, as it last said.
        introduction: Bytes,
    },
    /// Given up, or closed: for good.
    Failed {
        /// Why.
        reason: String,
    },
}

/// The dialing side to one peer. Clones share it; when the last is dropped, the link closes.
#[derive(Clone)]
pub struct Link {
    gate: Arc<Gate>,
    state: watch::Receiver<LinkState>,
    clock: SharedClock,
    closing: CancellationToken,
    _last: Arc<DropGuard>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({:?})", *self.state.borrow())
    }
}

impl Link {
    /// Starts a task that connects and stays connected.
    pub fn new(config: LinkConfig) -> Self {
        let (sender, state) = watch::channel(LinkState::Connecting {
            attempt: 0,
            last_error: None,
        });
        let gate = Arc::new(Gate::new());
        // Ends with the process too: the supervisor's token is the parent.
        let closing = config.tasks.token().child_token();
        let (tasks, clock) = (config.tasks.clone(), config.clock.clone());
        let runner = Runner {
            metrics: LinkMetrics::new(&config.metrics),
            config,
            gate: gate.clone(),
            state: sender,
            closing: closing.clone(),
        };
        tasks.spawn(TaskKind::new("tcp-link"), async move {
            runner.run().await;
            Ok(())
        });
        Self {
            gate,
            state,
            clock,
            _last: Arc::new(closing.clone().drop_guard()),
            closing,
        }
    }

    /// Sends a frame once there is room in the window, and waits for its answers: one per message, in order.
    ///
    /// Frames go out in the order in which this found room, which is first come, first served. Cancel-safe in this
    /// sense: dropped before there was room, nothing was sent; dropped later, the frame goes its way and its answers
    /// are thrown away.
    ///
    /// # Errors
    /// [`LinkError`]; only with [`LinkError::Down`] may the frame have arrived.
    pub async fn send(&self, outgoing: Outgoing) -> Result<Vec<Answer>, LinkError> {
        if self.closing.is_cancelled() {
            return Err(LinkError::Closed);
        }
        let answers = self.gate.enter(outgoing, || self.clock.mono()).await?;
        // The task is gone only together with everything in flight.
        answers.await.unwrap_or(Err(LinkError::Down))
    }

    /// How it stands, now and later.
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// Waits until it is connected.
    ///
    /// # Errors
    /// [`LinkError::Closed`] if it never will be. Cancel-safe.
    pub async fn connected(&self) -> Result<(), LinkError> {
        let mut state = self.state.clone();
        let settled = |state: &LinkState| !matches!(state, LinkState::Connecting { .. });
        match state.wait_for(settled).await {
            Ok(state) if matches!(*state, LinkState::Connected { .. }) => Ok(()),
            _ => Err(LinkError::Closed),
        }
    }

    /// Takes no more frames, waits for the answers on their way (at most the drain time), and closes. Cancel-safe: the
    /// link closes all the same.
    pub async fn close(&self) {
        self.closing.cancel();
        let mut state = self.state.clone();
        let failed = |state: &LinkState| matches!(state, LinkState::Failed { .. });
        // An error means that the task is gone.
        let _gone = state.wait_for(failed).await;
    }
}
