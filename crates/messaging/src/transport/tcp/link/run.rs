//! The task of a link: connects, greets, carries, and connects again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use volary_kernel::clock;

use super::{
    LinkConfig, LinkState,
    gate::{Gate, Unwritten},
};
use crate::transport::tcp::{
    Security, Stream,
    control::{self, Code, Control, Greeting},
    metrics::LinkMetrics,
    tls,
    wire::{Ended, Reading, WRITE, Writing},
};

/// Frames that are taken from the gate at once.
const BATCH: usize = 64;
/// Frames up to this size are copied behind their heads; larger ones are written from where they are.
const COPY_MAX: usize = 32 * 1024;

/// Numbers connections. One link may take another's place and be sent over by the same sender, so it is not one count for
/// each link.
static CONNECTIONS: AtomicU64 = AtomicU64::new(1);

/// Everything the task needs.
pub(super) struct Runner {
    pub(super) config: LinkConfig,
    pub(super) gate: Arc<Gate>,
    pub(super) state: watch::Sender<LinkState>,
    pub(super) closing: CancellationToken,
    pub(super) metrics: LinkMetrics,
}

impl Drop for Runner {
    /// However the task ended, nobody waits for it.
    fn drop(&mut self) {
        self.gate.shut(true);
        self.state.send_if_modified(|state| {
            let open = !matches!(state, LinkState::Failed { .. });
            if open {
                let reason = "the link's task ended".to_owned();
                *state = LinkState::Failed { reason };
            }
            open
        });
    }
}

/// Both halves of a greeted connection.
struct Connection {
    reading: Reading<Box<dyn AsyncRead + Send + Unpin>>,
    writing: Writing<Box<dyn AsyncWrite + Send + Unpin>>,
    peer: Greeting,
    own: Greeting,
}

impl Runner {
    /// Connects again and again until the link is closed or gives up.
    pub(super) async fn run(mut self) {
        let mut failures = 0;
        let reason = loop {
            let connected = self
                .closing
                .clone()
                .run_until_cancelled(self.connect())
                .await;
            let last_error = match connected {
                None => break "closed".to_owned(),
                Some(Ok(connection)) => {
                    failures = 0;
                    let ended = self.carry(connection).await;
                    self.metrics.ended.with(&["link", ended.label()]).inc();
                    ended.to_string()
                }
                Some(Err(ended)) => {
                    failures += 1;
                    self.metrics.failed.with(&[ended.label()]).inc();
                    tracing::debug!(peer = %self.config.peer.name, error = %ended, "can not connect");
                    ended.to_string()
                }
            };
            if self.closing.is_cancelled() {
                break "closed".to_owned();
            }
            if self.config.give_up.is_some_and(|limit| failures >= limit) && failures > 0 {
                break format!("gave up after {failures} attempts: {last_error}");
            }
            self.state.send_replace(LinkState::Connecting {
                attempt: failures,
                last_error: Some(last_error),
            });
            let random = (self.config.random)();
            let wait = self.config.reconnect.delay(failures.max(1), random);
            let _closed = self.closing.run_until_cancelled(clock::sleep(wait)).await;
        };
        self.gate.shut(true);
        self.state.send_replace(LinkState::Failed { reason });
    }

    async fn connect(&mut self) -> Result<Connection, Ended> {
        let limit = self.config.limits.handshake_time;
        match clock::timeout(limit, self.greet()).await {
            Ok(connection) => connection,
            Err(elapsed) => Err(Ended::Own(Code::TooSlow, format!("connecting {elapsed}"))),
        }
    }

    async fn greet(&mut self) -> Result<Connection, Ended> {
        let config = &mut self.config;
        let address = config.peer.address.as_deref();
        let address = address.ok_or_else(|| Ended::protocol("the peer has no address"))?;
        let stream = config.net.dial(address).await?;
        let (reader, writer) = secure(config, stream).await?;
        let mut reading = Reading::new(reader, &config.limits);
        let mut writing = Writing::new(writer, &config.limits);
        let introduction = config.introduction.borrow_and_update().clone();
        let own = greeting(config, introduction);
        writing.send(&Control::Hello(own.clone())).await?;
        match reading.next().await? {
            Control::HelloAck(peer) if peer.key == config.peer.key => Ok(Connection {
                reading,
                writing,
                peer,
                own,
            }),
            Control::HelloAck(_) => Err(Ended::Own(
                Code::Unknown,
                "the peer greets with another key".to_owned(),
            )),
            Control::Refuse(code, words) | Control::Bye(code, words) => {
                Err(Ended::Peer(code, words))
            }
            _ => Err(Ended::protocol("the peer does not greet")),
        }
    }

    /// Carries frames until the connection ends.
    async fn carry(&mut self, connection: Connection) -> Ended {
        let Connection {
            mut reading,
            mut writing,
            peer,
            own,
        } = connection;
        let number = CONNECTIONS.fetch_add(1, Ordering::Relaxed);
        self.gate.open(number, &own, &peer);
        self.metrics.connected.inc();
        self.state.send_replace(LinkState::Connected {
            connection: number,
            since: self.config.clock.wall(),
            name: peer.name,
            incarnation: peer.incarnation,
            introduction: peer.introduction,
        });
        tracing::info!(peer = %self.config.peer.name, "connected");
        let (ended, sayable) = {
            let read = read(self, &mut reading);
            let write = write(self, &mut writing, self.config.introduction.clone());
            // In a fixed order, so that a simulated network does the same for the same seed.
            tokio::select! {
                biased;
                ended = write => (ended, true),
                // A unit may be half written: nothing can be said then.
                ended = read => (ended, false),
            }
        };
        self.metrics.connected.dec();
        let cut = self.gate.shut(self.closing.is_cancelled());
        // Before the farewell, which takes its time: nothing is sent any more from here on.
        self.state.send_replace(LinkState::Connecting {
            attempt: 0,
            last_error: Some(ended.to_string()),
        });
        self.metrics.unanswered.inc_by(cut.unanswered as u64);
        tracing::info!(peer = %self.config.peer.name, reason = %ended, unanswered = cut.unanswered, "disconnected");
        let last = if sayable { &ended } else { &Ended::Lost };
        writing.farewell(last, Duration::from_secs(1)).await;
        ended
    }
}

fn greeting(config: &LinkConfig, introduction: bytes::Bytes) -> Greeting {
    let number = |limit: usize| u32::try_from(limit).unwrap_or(u32::MAX);
    Greeting {
        key: config.me.public(),
        name: config.name.clone(),
        incarnation: config.incarnation,
        frame_bytes: number(config.limits.frame_bytes),
        window_frames: number(config.limits.window_frames),
        window_bytes: number(config.limits.window_bytes),
        introduction,
    }
}

type Halves = (
    Box<dyn AsyncRead + Send + Unpin>,
    Box<dyn AsyncWrite + Send + Unpin>,
);

async fn secure(config: &LinkConfig, stream: Stream) -> Result<Halves, Ended> {
    match config.security {
        Security::Tls => {
            let client = tls::client(&config.me, config.peer.key);
            let client = client.map_err(|error| Ended::Own(Code::Unknown, error.to_string()))?;
            let connector = TlsConnector::from(client);
            let stream = connector.connect(tls::any_name(), stream).await?;
            let (reader, writer) = tokio::io::split(stream);
            Ok((Box::new(reader), Box::new(writer)))
        }
        Security::Insecure if stream.is_local() => {
            let (reader, writer) = tokio::io::split(stream);
            Ok((Box::new(reader), Box::new(writer)))
        }
        Security::Insecure => Err(Ended::Own(
            Code::Unknown,
            "plaintext links reach loopback addresses only: use TLS".to_owned(),
        )),
    }
}

/// Hands out answers until the connection ends.
async fn read<R: AsyncRead + Unpin>(runner: &Runner, reading: &mut Reading<R>) -> Ended {
    loop {
        let unit = match reading.next().await {
            Ok(unit) => unit,
            Err(ended) => return ended,
        };
        match unit {
            Control::Answers { id, answers } => match runner.gate.answer(id, answers) {
                Ok(since) => {
                    let took = runner.config.clock.mono() - since;
                    runner.metrics.answered.observe(took.as_secs_f64());
                    if runner.closing.is_cancelled() {
                        runner.gate.work.notify_one();
                    }
                }
                Err(ended) => return ended,
            },
            Control::Introduce(new) => runner.state.send_modify(|state| {
                if let LinkState::Connected { introduction, .. } = state {
                    *introduction = new;
                }
            }),
            Control::Pong(_) => {}
            Control::Bye(code, words) => return Ended::Peer(code, words),
            _ => return Ended::protocol("a unit that only the dialing side may send"),
        }
    }
}

/// Writes frames, introductions and signs of life until the connection ends.
async fn write<W: AsyncWrite + Unpin>(
    runner: &Runner,
    writing: &mut Writing<W>,
    introduction: watch::Receiver<bytes::Bytes>,
) -> Ended {
    let mut writer = Writer {
        runner,
        writing,
        introduction,
        buffer: Vec::with_capacity(WRITE),
        batch: Vec::with_capacity(BATCH),
        pings: 0,
    };
    match writer.run().await {
        Ok(ended) | Err(ended) => ended,
    }
}

struct Writer<'a, W> {
    runner: &'a Runner,
    writing: &'a mut Writing<W>,
    introduction: watch::Receiver<bytes::Bytes>,
    buffer: Vec<u8>,
    batch: Vec<Unwritten>,
    pings: u64,
}

impl<W: AsyncWrite + Unpin> Writer<'_, W> {
    async fn run(&mut self) -> Result<Ended, Ended> {
        let mut introduced = true;
        let mut ping = Box::pin(clock::sleep(self.runner.config.limits.ping));
        loop {
            if self.runner.closing.is_cancelled() {
                self.runner.gate.close_intake();
            }
            // Frames first, then the introduction: what was changed before a frame was sent is then seen.
            self.runner.gate.take(&mut self.batch, BATCH);
            introduced &= self.introduce();
            if !self.batch.is_empty() {
                self.write_batch().await?;
                continue;
            }
            if !self.buffer.is_empty() {
                self.write_out().await?;
                self.writing.flush().await?;
                continue;
            }
            if self.runner.closing.is_cancelled() {
                return Ok(self.close().await);
            }
            tokio::select! {
                biased;
                () = self.runner.gate.work.notified() => {}
                changed = self.introduction.changed(), if introduced => {
                    // A change is seen again by `introduce`; a sender that is gone changes nothing more.
                    introduced = changed.is_ok();
                    self.introduction.mark_changed();
                }
                () = &mut ping => {
                    ping = Box::pin(clock::sleep(self.runner.config.limits.ping));
                    self.pings += 1;
                    control::encode(&Control::Ping(self.pings), &mut self.buffer);
                }
                () = self.runner.closing.cancelled() => {}
            }
        }
    }

    /// Says who our agents are, if that changed; `false` once it can not change any more.
    fn introduce(&mut self) -> bool {
        match self.introduction.has_changed() {
            Ok(true) => {
                let new = self.introduction.borrow_and_update().clone();
                control::encode(&Control::Introduce(new), &mut self.buffer);
                true
            }
            Ok(false) => true,
            Err(_) => false,
        }
    }

    async fn write_batch(&mut self) -> Result<(), Ended> {
        for unwritten in std::mem::take(&mut self.batch) {
            let Unwritten {
                id,
                count,
                durable,
                frame,
            } = unwritten;
            control::encode_data_head(id, count, durable.as_ref(), frame.len(), &mut self.buffer);
            if frame.len() <= COPY_MAX {
                self.buffer.extend_from_slice(&frame);
            } else {
                self.write_out().await?;
                self.writing.write(&frame).await?;
            }
            if self.buffer.len() >= WRITE {
                self.write_out().await?;
            }
            self.runner.metrics.frames.inc();
            self.runner.metrics.bytes.inc_by(frame.len() as u64);
        }
        Ok(())
    }

    async fn write_out(&mut self) -> Result<(), Ended> {
        self.writing.write(&self.buffer).await?;
        self.buffer.clear();
        Ok(())
    }

    /// Waits for the answers that are on their way.
    async fn close(&mut self) -> Ended {
        let gate = &self.runner.gate;
        let quiet = async {
            while !gate.is_quiet() {
                gate.work.notified().await;
            }
        };
        let _late = clock::timeout(self.runner.config.limits.drain, quiet).await;
        Ended::Own(Code::Closing, "the link is closed".to_owned())
    }
}
