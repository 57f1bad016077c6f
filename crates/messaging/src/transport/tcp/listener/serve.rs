//! One accepted connection: handshake, greeting, frames, farewell.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{Notify, watch},
};
use tokio_rustls::TlsAcceptor;
use volary_kernel::{
    clock::{self, Mono},
    sign::{PUBLIC_KEY_LEN, PublicKey},
};

use super::{
    Inner, Rejected,
    lanes::{Lane, Lanes, refuse},
    receive::Handler,
    table::Place,
};
use crate::transport::tcp::{
    PeerSpec, Stream,
    control::{self, Code, Control, Durable, Greeting},
    tls,
    wire::{Ended, Reading, WRITE, Writing},
};

/// Bytes of answers that may wait to be written before nothing more is read.
const ANSWERS_MAX: usize = 1024 * 1024;

type Reader = Reading<Box<dyn AsyncRead + Send + Unpin>>;
type Writer = Writing<Box<dyn AsyncWrite + Send + Unpin>>;

/// Serves one connection until it ends.
pub(super) async fn serve(inner: Arc<Inner>, stream: Stream, place: Place) {
    let limit = inner.config.listen.limits.handshake_time;
    let remote = stream.remote();
    let greeted = tokio::select! {
        biased;
        greeted = clock::timeout(limit, greet(&inner, stream, &place)) => greeted,
        code = place.stop.told() => {
            let reason = match code {
                Code::TooMany => "handshaking",
                other => other.label(),
            };
            inner.turn_away(remote, reason, "others needed the place".to_owned());
            return;
        }
    };
    match greeted {
        Ok(Ok(connection)) => {
            inner.metrics.accepted.inc();
            connection.run(&inner, place).await;
        }
        Ok(Err(Refused { reason, words })) => {
            tracing::debug!(reason, words, "connection refused");
            inner.turn_away(remote, reason, words);
        }
        Err(_) => {
            inner.turn_away(remote, "too_slow", "it did not greet in time".to_owned());
        }
    }
}

/// Why a connection did not come about: a word for the counter, and words for the log.
struct Refused {
    reason: &'static str,
    words: String,
}

impl From<Ended> for Refused {
    fn from(ended: Ended) -> Self {
        Self {
            reason: ended.label(),
            words: ended.to_string(),
        }
    }
}

/// A connection whose peer has greeted and was let in.
struct Connection {
    peer: PeerSpec,
    reader: Reader,
    writer: Writer,
    introduction: watch::Receiver<Bytes>,
}

async fn greet(inner: &Arc<Inner>, stream: Stream, place: &Place) -> Result<Connection, Refused> {
    let config = &inner.config;
    let limits = &config.listen.limits;
    let stream = Watched {
        io: stream,
        spoke: place.spoke.clone(),
    };
    let (reader, writer, shown) = secure(inner, stream).await?;
    let (mut reader, mut writer): (Reader, Writer) =
        (Reading::new(reader, limits), Writing::new(writer, limits));
    let Control::Hello(hello) = reader.next().await? else {
        let ended = Ended::protocol("the connection does not begin with a greeting");
        writer.farewell(&ended, FAREWELL).await;
        return Err(ended.into());
    };
    match let_in(inner, &hello, shown, place).await {
        Ok(peer) => {
            let mut introduction = config.reception.introduction.clone();
            let own = greeting(inner, introduction.borrow_and_update().clone());
            writer.send(&Control::HelloAck(own)).await?;
            Ok(Connection {
                peer,
                reader,
                writer,
                introduction,
            })
        }
        Err((code, words)) => {
            let _unsaid = writer.send(&Control::Refuse(code, words.clone())).await;
            writer.farewell(&Ended::Lost, FAREWELL).await;
            Err(Refused {
                reason: code.label(),
                words,
            })
        }
    }
}

/// How long saying good-bye may take.
const FAREWELL: Duration = Duration::from_secs(1);

type Halves = (
    Box<dyn AsyncRead + Send + Unpin>,
    Box<dyn AsyncWrite + Send + Unpin>,
    Option<PublicKey>,
);

/// The stream after the TLS handshake, with the key that was shown in it.
async fn secure(inner: &Inner, stream: Watched) -> Result<Halves, Refused> {
    let Some(config) = &inner.tls else {
        let (reader, writer) = tokio::io::split(stream);
        return Ok((Box::new(reader), Box::new(writer), None));
    };
    let accepted = TlsAcceptor::from(config.clone()).accept(stream).await;
    let stream = accepted.map_err(|error| Refused {
        reason: match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => "lost",
            _ => "tls",
        },
        words: error.to_string(),
    })?;
    let shown = tls::peer_key(stream.get_ref().1);
    let (reader, writer) = tokio::io::split(stream);
    Ok((Box::new(reader), Box::new(writer), shown))
}

/// Decides whether the peer that greets may stay.
async fn let_in(
    inner: &Inner,
    hello: &Greeting,
    shown: Option<PublicKey>,
    place: &Place,
) -> Result<PeerSpec, (Code, String)> {
    let config = &inner.config;
    if inner.tls.is_some() && shown != Some(hello.key) {
        let words = "the greeting names another key than TLS showed".to_owned();
        return Err((Code::Unknown, words));
    }
    let peer = config.peers.by_key(&hello.key);
    let peer = peer.ok_or_else(|| (Code::Unknown, format!("key {} is not a peer", hello.key)))?;
    let since = config.clock.wall();
    let admitted = inner.table.admit(place, &peer, hello, since);
    admitted.map_err(|code| (code, "too many connections from this peer".to_owned()))?;
    introduce(inner, &peer, hello.introduction.clone())
        .await
        .map_err(|words| (Code::Introduction, words))?;
    Ok(peer)
}

/// Hands an introduction on; a panic is a refusal.
async fn introduce(inner: &Inner, peer: &PeerSpec, introduction: Bytes) -> Result<(), String> {
    let taking = (inner.config.reception.introduced)(peer.clone(), introduction);
    match std::panic::AssertUnwindSafe(taking).catch_unwind().await {
        Ok(taken) => taken,
        Err(_) => Err("the receiver failed to take the introduction".to_owned()),
    }
}

fn greeting(inner: &Inner, introduction: Bytes) -> Greeting {
    let number = |limit: usize| u32::try_from(limit).unwrap_or(u32::MAX);
    let limits = &inner.config.listen.limits;
    Greeting {
        key: inner.config.me.public(),
        name: inner.config.name.clone(),
        incarnation: inner.config.incarnation,
        frame_bytes: number(limits.frame_bytes),
        window_frames: number(limits.window_frames),
        window_bytes: number(limits.window_bytes),
        introduction,
    }
}

// --- carrying ----------------------------------------------------------------------------------

/// Answers go out after this many frames even while more are there to be read: a peer whose window is full can then go on
/// while the rest is taken in.
const FRAMES_PER_WRITE: usize = 8;

/// What waits to be written.
#[derive(Default)]
struct Outbox {
    state: Mutex<Unwritten>,
    /// All of it was written.
    emptied: Notify,
}

#[derive(Default)]
struct Unwritten {
    buffer: Vec<u8>,
    /// Bytes were taken out and are not sent off yet.
    writing: bool,
}

impl Outbox {
    fn put(&self, control: &Control) {
        control::encode(control, &mut self.state.lock().buffer);
    }

    /// Waits until there is something in it. Nobody is woken: what fills it is polled before whoever waits here, by the same
    /// task. A wake of a task by itself costs a turn of the scheduler, which is most of an idle round trip.
    async fn filled(&self) {
        std::future::poll_fn(|_| match self.has_more() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }

    fn is_full(&self) -> bool {
        self.state.lock().buffer.len() >= ANSWERS_MAX
    }

    fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.buffer.is_empty() && !state.writing
    }

    /// Takes out what is there, into an empty buffer.
    fn take(&self, bytes: &mut Vec<u8>) {
        let mut state = self.state.lock();
        std::mem::swap(&mut state.buffer, bytes);
        state.writing = !bytes.is_empty();
    }

    /// Whether nothing came while the last bytes were written; flushed is then as good as idle.
    fn has_more(&self) -> bool {
        !self.state.lock().buffer.is_empty()
    }

    fn written(&self) {
        self.state.lock().writing = false;
        self.emptied.notify_one();
    }
}

/// Shortest time between two warnings about refused frames of one connection.
const WARN: Duration = Duration::from_secs(60);
/// Where refused frames are told, one after the other: no key is all zeros.
const REFUSED: Lane = [0; PUBLIC_KEY_LEN];

/// Reads and takes in frames.
struct Intake<'a> {
    inner: &'a Inner,
    peer: PeerSpec,
    handler: Handler,
    lanes: Lanes,
    last: u64,
    warned: Option<Mono>,
    outbox: &'a Outbox,
}

impl Connection {
    async fn run(self, inner: &Arc<Inner>, place: Place) {
        let Self {
            peer,
            mut reader,
            mut writer,
            introduction,
        } = self;
        let limits = &inner.config.listen.limits;
        tracing::info!(peer = %peer.name, "a peer connected");
        let outbox = Outbox::default();
        let mut intake = Intake {
            inner,
            handler: Handler::new(&inner.config.reception, inner.opaque.clone()),
            peer,
            lanes: Lanes::default(),
            last: 0,
            warned: None,
            outbox: &outbox,
        };
        let ended = {
            let write = write(&mut writer, &outbox, introduction);
            tokio::pin!(write);
            let (ended, writable) = tokio::select! {
                biased;
                ended = intake.run(&mut reader, write.as_mut()) => ended,
                code = place.stop.told() => (Ended::Own(code, stopped(code).to_owned()), true),
            };
            // What was taken in is finished, whoever hears of it; who is told good-bye gets its answers first.
            let answer = writable && matches!(ended, Ended::Own(..));
            let finish = async {
                let finished = intake.finish();
                tokio::pin!(finished);
                if answer {
                    tokio::select! {
                        biased;
                        () = &mut finished => {}
                        _broken = &mut write => return finished.await,
                    }
                    while !outbox.is_idle() {
                        tokio::select! {
                            biased;
                            () = outbox.emptied.notified() => {}
                            _broken = &mut write => return,
                        }
                    }
                } else {
                    finished.await;
                }
            };
            if clock::timeout(limits.drain, finish).await.is_err() {
                tracing::warn!(
                    reason = ended.label(),
                    "frames or their answers were cut off"
                );
            }
            ended
        };
        tracing::info!(peer = %intake.peer.name, reason = %ended, "a peer disconnected");
        inner.metrics.ended.with(&["listener", ended.label()]).inc();
        let unsaid = Ended::Lost;
        let last = if outbox.is_idle() { &ended } else { &unsaid };
        writer.farewell(last, FAREWELL).await;
        drop(place);
    }
}

fn stopped(code: Code) -> &'static str {
    match code {
        Code::Closing => "this node is closing",
        Code::Unknown => "the key is not a peer's any more",
        Code::Replaced => "the peer has started again",
        _ => "the connection was ended",
    }
}

impl Intake<'_> {
    /// Takes in frames and lets `write` send their answers, until either ends; says why, and whether answers can still go.
    async fn run(
        &mut self,
        reader: &mut Reader,
        mut write: Pin<&mut (impl Future<Output = Ended> + Send)>,
    ) -> (Ended, bool) {
        let mut changes = self.inner.config.peers.changes();
        // It may have been removed while it was let in.
        changes.mark_changed();
        let mut taken = 0;
        loop {
            while let Some((id, answers)) = self.lanes.next_answers() {
                self.outbox.put(&Control::Answers { id, answers });
            }
            if taken >= FRAMES_PER_WRITE {
                taken = 0;
                if let Poll::Ready(ended) = futures_util::poll!(write.as_mut()) {
                    return (ended, false);
                }
            }
            let limits = &self.inner.config.listen.limits;
            let room = self.lanes.frames() < limits.window_frames
                && self.lanes.bytes() < limits.window_bytes
                && !self.outbox.is_full();
            // What fills the outbox first, then what empties it: see `Outbox::filled`.
            tokio::select! {
                biased;
                () = self.lanes.progress() => {}
                unit = reader.next(), if room => {
                    taken += 1;
                    let took = match unit {
                        Ok(unit) => self.take(unit).await,
                        Err(ended) => Err(ended),
                    };
                    if let Err(ended) = took {
                        return (ended, true);
                    }
                }
                () = self.outbox.emptied.notified(), if !room => {}
                _changed = changes.changed() => match self.inner.config.peers.by_key(&self.peer.key) {
                    Some(peer) => self.peer = peer,
                    None => return (Ended::Own(Code::Unknown, stopped(Code::Unknown).to_owned()), true),
                },
                ended = &mut write => return (ended, false),
            }
        }
    }

    async fn take(&mut self, unit: Control) -> Result<(), Ended> {
        match unit {
            Control::Data {
                id,
                count,
                durable,
                frame,
            } => self.data(id, count.into(), durable, frame),
            Control::Introduce(introduction) => {
                // Frames before it are judged by the one before.
                let result = introduce(self.inner, &self.peer, introduction).await;
                result.map_err(|words| Ended::Own(Code::Introduction, words))
            }
            Control::Ping(number) => {
                self.outbox.put(&Control::Pong(number));
                Ok(())
            }
            Control::Bye(code, words) => Err(Ended::Peer(code, words)),
            _ => Err(Ended::protocol(
                "a unit that only the accepting side may send, or a second greeting",
            )),
        }
    }

    fn data(
        &mut self,
        id: u64,
        count: usize,
        durable: Option<Durable>,
        frame: Bytes,
    ) -> Result<(), Ended> {
        if id != self.last + 1 {
            let problem = format!("frame {id} after frame {}", self.last);
            return Err(Ended::protocol(problem));
        }
        self.last = id;
        let bytes = frame.len();
        let metrics = &self.inner.metrics;
        metrics.bytes.inc_by(bytes as u64);
        match self.handler.open(&self.peer, count, durable, frame) {
            Ok((lane, work)) => {
                metrics.taken.inc();
                self.lanes.begin(id, count, bytes, lane, work);
            }
            Err((reason, problem)) => {
                metrics.frames.with(&["received", reason]).inc();
                self.reject(id, bytes, (count, reason, problem));
            }
        }
        Ok(())
    }

    /// Answers a frame that is refused, when somebody was told of it.
    fn reject(
        &mut self,
        id: u64,
        bytes: usize,
        (count, reason, problem): (usize, &'static str, String),
    ) {
        let now = self.inner.config.clock.mono();
        if self.warned.is_none_or(|last| now - last >= WARN) {
            self.warned = Some(now);
            tracing::warn!(peer = %self.peer.name, reason, problem, "frame refused");
        }
        let told = self.inner.config.reception.rejected.clone();
        let rejected = Rejected {
            peer: self.peer.clone(),
            count,
            reason,
            problem: problem.clone(),
        };
        let work = async move {
            told(rejected).await;
            refuse(count, problem)
        };
        self.lanes.begin(id, count, bytes, REFUSED, Box::pin(work));
    }

    /// Ends what was taken in.
    async fn finish(&mut self) {
        while self.lanes.frames() > 0 {
            while let Some((id, answers)) = self.lanes.next_answers() {
                self.outbox.put(&Control::Answers { id, answers });
            }
            if self.lanes.frames() > 0 {
                self.lanes.progress().await;
            }
        }
    }
}

/// Writes what is in the outbox and what is new of our introduction; flushes when nothing more is there.
async fn write(
    writer: &mut Writer,
    outbox: &Outbox,
    mut introduction: watch::Receiver<Bytes>,
) -> Ended {
    let mut bytes = Vec::with_capacity(WRITE);
    let mut introduced = true;
    loop {
        outbox.take(&mut bytes);
        if bytes.is_empty() {
            tokio::select! {
                biased;
                () = outbox.filled() => {}
                changed = introduction.changed(), if introduced => {
                    introduced = changed.is_ok();
                    if introduced {
                        let new = introduction.borrow_and_update().clone();
                        outbox.put(&Control::Introduce(new));
                    }
                }
            }
            continue;
        }
        if let Err(ended) = writer.write(&bytes).await {
            return ended;
        }
        bytes.clear();
        if !outbox.has_more() {
            if let Err(ended) = writer.flush().await {
                return ended;
            }
            outbox.written();
        }
    }
}

/// Notices the first byte of the other side.
struct Watched {
    io: Stream,
    spoke: Arc<AtomicBool>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, into);
        if into.filled().len() > before && !self.spoke.load(Ordering::Relaxed) {
            self.spoke.store(true, Ordering::Relaxed);
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
