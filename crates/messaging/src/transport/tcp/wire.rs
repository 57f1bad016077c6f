//! Reading and writing units of the control stream on one connection: exact, bounded, and never waiting for ever.

use std::{io, pin::Pin, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use volary_kernel::clock;

use super::{
    TcpLimits,
    control::{self, Code, Control},
};
use crate::codec::DecodeError;

/// Bytes that are asked for at once.
const READ: usize = 64 * 1024;
/// Units up to this size are copied out of the read buffer, so that what is kept of a message holds on to little more
/// than its own frame; larger ones take their part of the buffer with them.
const COPY_MAX: usize = 64 * 1024;
/// A unit may take a second for each of these bytes, beside the stall limit.
const SLOWEST: usize = 64 * 1024;
/// Bytes that are gathered before they are written, unless nothing more is to be written.
pub(super) const WRITE: usize = 64 * 1024;

/// How a connection ended, or did not come about.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("the peer closed the connection")]
    Lost,
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    #[error("the peer said: {1} ({label})", label = .0.label())]
    Peer(Code, String),
    #[error("{1}")]
    Own(Code, String),
    #[error("the peer did not take what was sent to it")]
    StalledWrite,
    #[error("the peer stopped in the middle of a frame")]
    StalledRead,
}

impl Ended {
    pub(super) fn protocol(problem: impl ToString) -> Self {
        Self::Own(Code::Protocol, problem.to_string())
    }

    /// A short, closed word for metric labels.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Io(_) => "failed",
            Self::Peer(Code::Closing, _) => "peer_closing",
            Self::Peer(..) => "peer_refused",
            Self::Own(code, _) => code.label(),
            Self::StalledWrite => "stalled_write",
            Self::StalledRead => "stalled_read",
        }
    }
}

impl From<DecodeError> for Ended {
    fn from(error: DecodeError) -> Self {
        Self::protocol(error)
    }
}

type Timer = Pin<Box<dyn Future<Output = ()> + Send>>;

fn timer(after: Duration) -> Timer {
    Box::pin(clock::sleep(after))
}

/// What is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    /// A first byte.
    Anything,
    /// The length of a unit that has begun.
    Length,
    /// The rest of a unit.
    Rest,
}

/// The reading half.
pub(super) struct Reading<R> {
    io: R,
    buffer: BytesMut,
    frame_bytes: usize,
    idle: Duration,
    stall: Duration,
    /// Set while bytes are waited for; kept when a call is dropped, so that being asked again gives no more time.
    waiting: Option<(For, Timer)>,
}

impl<R: AsyncRead + Unpin> Reading<R> {
    pub(super) fn new(io: R, limits: &TcpLimits) -> Self {
        Self {
            io,
            buffer: BytesMut::new(),
            frame_bytes: limits.frame_bytes,
            idle: limits.idle,
            stall: limits.stall,
            waiting: None,
        }
    }

    /// The next unit, if all of it is here already.
    pub(super) fn ready(&mut self) -> Result<Option<Control>, Ended> {
        match control::unit_len(&self.buffer, self.frame_bytes)? {
            Some(length) if length <= self.buffer.len() => {
                self.waiting = None;
                let unit = self.take(length);
                Ok(Some(control::decode(&unit, self.frame_bytes)?))
            }
            _ => Ok(None),
        }
    }

    fn take(&mut self, length: usize) -> Bytes {
        if length > COPY_MAX {
            return self.buffer.split_to(length).freeze();
        }
        let unit = Bytes::copy_from_slice(&self.buffer[..length]);
        self.buffer.advance(length);
        unit
    }

    /// Waits for the next unit. Cancel-safe: nothing is lost, and the time limits go on.
    pub(super) async fn next(&mut self) -> Result<Control, Ended> {
        loop {
            if let Some(unit) = self.ready()? {
                return Ok(unit);
            }
            self.fill().await?;
        }
    }

    /// Waits for more bytes.
    async fn fill(&mut self) -> Result<(), Ended> {
        let length = control::unit_len(&self.buffer, self.frame_bytes)?;
        let wanted = match (self.buffer.is_empty(), length) {
            (true, _) => For::Anything,
            (false, None) => For::Length,
            (false, Some(_)) => For::Rest,
        };
        if !matches!(&self.waiting, Some((waited, _)) if *waited == wanted) {
            let limit = match wanted {
                For::Anything => self.idle,
                For::Length => self.stall,
                For::Rest => {
                    let slow = length.unwrap_or(0) / SLOWEST;
                    self.stall + Duration::from_secs(slow as u64)
                }
            };
            self.waiting = Some((wanted, timer(limit)));
        }
        // Grows with what comes, not with what is announced.
        self.buffer.reserve(READ);
        let Some((_, timer)) = &mut self.waiting else {
            return Ok(());
        };
        let read = tokio::select! {
            biased;
            read = self.io.read_buf(&mut self.buffer) => read,
            () = timer => {
                return Err(match wanted {
                    For::Anything => Ended::Own(Code::Idle, "nothing was heard for too long".to_owned()),
                    For::Length | For::Rest => Ended::StalledRead,
                });
            }
        };
        match read {
            Ok(0) => Err(Ended::Lost),
            Ok(_) => Ok(()),
            // A TLS peer that went without saying so.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Ended::Lost),
            Err(error) => Err(error.into()),
        }
    }
}

/// The writing half.
pub(super) struct Writing<W> {
    io: W,
    stall: Duration,
}

impl<W: AsyncWrite + Unpin> Writing<W> {
    pub(super) fn new(io: W, limits: &TcpLimits) -> Self {
        Self {
            io,
            stall: limits.stall,
        }
    }

    /// Writes all of `bytes`. Dropped before it returned, the connection is of no more use.
    pub(super) async fn write(&mut self, mut bytes: &[u8]) -> Result<(), Ended> {
        while !bytes.is_empty() {
            match clock::timeout(self.stall, self.io.write(bytes)).await {
                Err(_) => return Err(Ended::StalledWrite),
                Ok(Ok(0)) => return Err(Ended::Lost),
                Ok(written) => bytes = &bytes[written?..],
            }
        }
        Ok(())
    }

    /// Sends off what was written.
    pub(super) async fn flush(&mut self) -> Result<(), Ended> {
        match clock::timeout(self.stall, self.io.flush()).await {
            Err(_) => Err(Ended::StalledWrite),
            Ok(flushed) => Ok(flushed?),
        }
    }

    /// Writes one unit and sends it off.
    pub(super) async fn send(&mut self, control: &Control) -> Result<(), Ended> {
        let mut bytes = Vec::new();
        control::encode(control, &mut bytes);
        self.write(&bytes).await?;
        self.flush().await
    }

    /// Says why the connection ends if there is something to say, and closes it, within `limit`; what can not be said
    /// is not.
    pub(super) async fn farewell(&mut self, ended: &Ended, limit: Duration) {
        let say = async {
            if let Ended::Own(code, words) = ended {
                let _unsaid = self.send(&Control::Bye(*code, words.clone())).await;
            }
            let _open = self.io.shutdown().await;
        };
        let _late = clock::timeout(limit, say).await;
    }
}
