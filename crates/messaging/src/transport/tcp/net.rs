//! How sockets are had: the machine's own, or what a test gives in their place.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connected stream of bytes.
pub struct Stream {
    io: Box<dyn Io>,
    remote: Option<SocketAddr>,
}

impl Stream {
    /// A stream; `remote` is who is at the other end, absent if it never leaves this process.
    pub fn new(
        io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        remote: Option<SocketAddr>,
    ) -> Self {
        Self {
            io: Box::new(io),
            remote,
        }
    }

    /// Who is at the other end.
    pub const fn remote(&self) -> Option<SocketAddr> {
        self.remote
    }

    /// Whether the bytes stay on this machine.
    pub(super) fn is_local(&self) -> bool {
        self.remote.is_none_or(|remote| remote.ip().is_loopback())
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stream({:?})", self.remote)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, into)
    }
}

impl AsyncWrite for Stream {
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

/// Accepts streams.
type Accept = Arc<dyn Fn() -> BoxFuture<'static, io::Result<Stream>> + Send + Sync>;
/// Connects to an address.
type Dial = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Stream>> + Send + Sync>;
/// Binds an address.
type Listen = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Incoming>> + Send + Sync>;

/// A bound address.
#[derive(Clone)]
pub struct Incoming {
    address: SocketAddr,
    accept: Accept,
}

impl Incoming {
    /// Streams that arrive at `address`, one per call of `accept`.
    pub fn new<F>(address: SocketAddr, accept: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<Stream>> + Send + 'static,
    {
        Self {
            address,
            accept: Arc::new(move || Box::pin(accept())),
        }
    }

    /// Where it is bound.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn accept(&self) -> BoxFuture<'static, io::Result<Stream>> {
        (self.accept)()
    }
}

/// A way to dial and to listen. Clones share it.
#[derive(Clone)]
pub struct Net {
    dial: Dial,
    listen: Listen,
}

impl std::fmt::Debug for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Net")
    }
}

impl Default for Net {
    fn default() -> Self {
        Self::tokio()
    }
}

impl Net {
    /// The machine's sockets, without delay for small writes.
    pub fn tokio() -> Self {
        Self::custom(tcp_dial, tcp_listen)
    }

    /// Anything else: a simulated network, pipes in memory.
    pub fn custom<D, L>(
        dial: impl Fn(String) -> D + Send + Sync + 'static,
        listen: impl Fn(String) -> L + Send + Sync + 'static,
    ) -> Self
    where
        D: Future<Output = io::Result<Stream>> + Send + 'static,
        L: Future<Output = io::Result<Incoming>> + Send + 'static,
    {
        Self {
            dial: Arc::new(move |address| Box::pin(dial(address))),
            listen: Arc::new(move |address| Box::pin(listen(address))),
        }
    }

    /// Connects to `host:port`.
    ///
    /// # Errors
    /// Whatever the network says.
    pub async fn dial(&self, address: &str) -> io::Result<Stream> {
        (self.dial)(address.to_owned()).await
    }

    /// Binds `host:port`.
    ///
    /// # Errors
    /// Whatever the network says.
    pub async fn listen(&self, address: &str) -> io::Result<Incoming> {
        (self.listen)(address.to_owned()).await
    }
}

async fn tcp_dial(address: String) -> io::Result<Stream> {
    let stream = tokio::net::TcpStream::connect(&address).await?;
    stream.set_nodelay(true)?;
    let remote = stream.peer_addr()?;
    Ok(Stream::new(stream, Some(remote)))
}

async fn tcp_listen(address: String) -> io::Result<Incoming> {
    let listener = Arc::new(tokio::net::TcpListener::bind(&address).await?);
    let bound = listener.local_addr()?;
    Ok(Incoming::new(bound, move || {
        let listener = listener.clone();
        async move {
            let (stream, remote) = listener.accept().await?;
            stream.set_nodelay(true)?;
            Ok(Stream::new(stream, Some(remote)))
        }
    }))
}
