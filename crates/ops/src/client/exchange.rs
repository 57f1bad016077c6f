//! One request and its answer on a connection of their own, driven by whoever awaits the answer.

use std::{future::Future, pin::Pin};

use axum::http::{Request, Response, StatusCode};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use volary_kernel::clock;

use super::{ClientError, Endpoint, Patience};

type Connection = Pin<Box<dyn Future<Output = ()> + Send>>;

/// An answer whose head is there.
pub(super) struct Exchange {
    endpoint: String,
    patience: Patience,
    response: Response<Incoming>,
    connection: Option<Connection>,
}

impl Exchange {
    /// Connects, sends, and waits for the head of the answer.
    pub(super) async fn open(
        endpoint: &Endpoint,
        patience: Patience,
        request: Request<Full<Bytes>>,
    ) -> Result<Self, ClientError> {
        match endpoint {
            Endpoint::Tcp(address) => {
                let stream = connect(endpoint, patience, TcpStream::connect(*address)).await?;
                let _only_slower = stream.set_nodelay(true);
                Self::begin(endpoint, patience, stream, request).await
            }
            Endpoint::Unix(path) => {
                let stream = connect(endpoint, patience, UnixStream::connect(path)).await?;
                Self::begin(endpoint, patience, stream, request).await
            }
        }
    }

    async fn begin(
        endpoint: &Endpoint,
        patience: Patience,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        request: Request<Full<Bytes>>,
    ) -> Result<Self, ClientError> {
        let endpoint = endpoint.to_string();
        let broken = |cause: hyper::Error| ClientError::Broken {
            endpoint: endpoint.clone(),
            cause: cause.to_string(),
        };
        let answered = clock::timeout(patience.answer, async {
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            let mut connection: Option<Connection> = Some(Box::pin(async {
                // A failure shows in the answer or in its body.
                let _ended = connection.await;
            }));
            let response = driven(&mut connection, sender.send_request(request)).await?;
            Ok((response, connection))
        });
        let answered = answered.await.map_err(|elapsed| ClientError::TimedOut {
            endpoint: endpoint.clone(),
            elapsed,
        })?;
        let (response, connection) = answered.map_err(broken)?;
        Ok(Self {
            endpoint,
            patience,
            response,
            connection,
        })
    }

    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// The next piece of the body; none at its end. Cancel-safe.
    pub(super) async fn piece(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            match driven(&mut self.connection, self.response.body_mut().frame()).await {
                None => return Ok(None),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Ok(Some(data)),
                    _ => {}
                },
                Some(Err(error)) => {
                    let cause = error.to_string();
                    return Err(ClientError::Broken {
                        endpoint: self.endpoint.clone(),
                        cause,
                    });
                }
            }
        }
    }

    /// The next piece, within the patience for a silent stream. Cancel-safe.
    pub(super) async fn piece_in_time(&mut self) -> Result<Option<Bytes>, ClientError> {
        let (endpoint, limit) = (self.endpoint.clone(), self.patience.silence);
        let piece = clock::timeout(limit, self.piece()).await;
        piece.map_err(|elapsed| ClientError::TimedOut { endpoint, elapsed })?
    }

    /// The whole body.
    pub(super) async fn collect(&mut self) -> Result<Bytes, ClientError> {
        let (endpoint, patience) = (self.endpoint.clone(), self.patience);
        let whole = clock::timeout(patience.answer, async {
            let mut whole = BytesMut::new();
            while let Some(piece) = self.piece().await? {
                if whole.len() + piece.len() > patience.answer_bytes {
                    let limit = patience.answer_bytes;
                    return Err(ClientError::Protocol(format!(
                        "the answer is over {limit} bytes"
                    )));
                }
                whole.extend_from_slice(&piece);
            }
            Ok(whole.freeze())
        });
        whole
            .await
            .map_err(|elapsed| ClientError::TimedOut { endpoint, elapsed })?
    }
}

async fn connect<S>(
    endpoint: &Endpoint,
    patience: Patience,
    connect: impl Future<Output = std::io::Result<S>>,
) -> Result<S, ClientError> {
    let unreachable = |cause: String| ClientError::Unreachable {
        endpoint: endpoint.to_string(),
        cause,
    };
    match clock::timeout(patience.connect, connect).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(unreachable(error.to_string())),
        Err(elapsed) => Err(unreachable(elapsed.to_string())),
    }
}

/// Awaits `output` while the connection runs beside it; a connection that ends leaves `output` to say how.
async fn driven<T>(connection: &mut Option<Connection>, output: impl Future<Output = T>) -> T {
    let mut output = std::pin::pin!(output);
    if let Some(running) = connection {
        tokio::select! {
            biased;
            output = &mut output => return output,
            () = running => *connection = None,
        }
    }
    output.await
}
