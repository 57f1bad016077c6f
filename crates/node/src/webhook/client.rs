//! One HTTPS request to one target, over a connection of its own.
//!
//! The name is looked up once, every address is judged, and the connection goes to an address that was judged: an answer
//! of the name server that changes in between changes nothing.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
};
use tokio_rustls::TlsConnector;
use volary_deploy::spec::model::OutboundSpec;
use volary_messaging::webhook::{Outgoing, SendProblem, Sending, is_public};

/// Bytes of an answer that are read; nobody looks at them, but a connection that is cut in the middle of them looks like a
/// failure to the other side.
const ANSWER_MAX: usize = 64 << 10;

struct Poster {
    host: String,
    port: u16,
    path: String,
    allow_private: bool,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

/// How requests of a target are made.
///
/// # Errors
/// What is wrong with its certificates or its host, in words.
pub(super) fn sending(spec: &OutboundSpec) -> Result<Sending, String> {
    let tls = spec.tls.then(|| tls(spec)).transpose()?;
    let poster = Arc::new(Poster {
        host: spec.host.clone(),
        port: spec.port,
        path: spec.path.clone(),
        allow_private: spec.allow_private,
        tls,
    });
    Ok(Arc::new(move |request| {
        let poster = poster.clone();
        async move { poster.post(request).await }.boxed()
    }))
}

fn tls(spec: &OutboundSpec) -> Result<(TlsConnector, ServerName<'static>), String> {
    let mut roots = RootCertStore::empty();
    match &spec.ca_file {
        Some(path) => {
            let shown = path.display();
            let certificates =
                CertificateDer::pem_file_iter(path).map_err(|error| format!("{shown}: {error}"))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|error| format!("{shown}: {error}"))?;
                roots
                    .add(certificate)
                    .map_err(|error| format!("{shown}: {error}"))?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
        }
    }
    if roots.is_empty() {
        return Err(
            "no certificates to believe: install the machine's (ca-certificates), or give `caFile`"
                .to_owned(),
        );
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(spec.host.clone()).map_err(|error| error.to_string())?;
    Ok((TlsConnector::from(Arc::new(config)), name))
}

fn passing(error: impl ToString) -> SendProblem {
    SendProblem::Passing(error.to_string())
}

impl Poster {
    async fn post(&self, outgoing: Outgoing) -> Result<(u16, Option<String>), SendProblem> {
        let request = self.request(outgoing)?;
        let stream = self.connect().await?;
        match &self.tls {
            None => exchange(stream, request).await,
            Some((connector, name)) => {
                let stream = connector.connect(name.clone(), stream).await;
                exchange(stream.map_err(passing)?, request).await
            }
        }
    }

    fn request(&self, outgoing: Outgoing) -> Result<Request<Full<Bytes>>, SendProblem> {
        let host = match self.host.parse::<IpAddr>() {
            Ok(IpAddr::V6(address)) => format!("[{address}]:{}", self.port),
            _ => format!("{}:{}", self.host, self.port),
        };
        let mut request = Request::post(&self.path).header(header::HOST, host).header(
            header::USER_AGENT,
            concat!("volary/", env!("CARGO_PKG_VERSION")),
        );
        for (name, value) in outgoing.headers {
            request = request.header(name, value);
        }
        // The text of the error could show a header's value.
        request
            .body(Full::new(outgoing.body))
            .map_err(|_| SendProblem::Refused("a header can not be sent".to_owned()))
    }

    async fn connect(&self) -> Result<TcpStream, SendProblem> {
        let found: Vec<SocketAddr> = match self.host.parse::<IpAddr>() {
            Ok(address) => vec![SocketAddr::new(address, self.port)],
            Err(_) => lookup_host((self.host.as_str(), self.port))
                .await
                .map_err(passing)?
                .collect(),
        };
        let allowed = |address: &&SocketAddr| self.allow_private || is_public(address.ip());
        let mut last = match found.first() {
            None => passing(format_args!("`{}` has no address", self.host)),
            Some(address) => SendProblem::Refused(format!(
                "`{}` is at {}, which is not on the public internet; `allowPrivate` would allow it",
                self.host,
                address.ip()
            )),
        };
        for address in found.iter().filter(allowed) {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = passing(format_args!("{address}: {error}")),
            }
        }
        Err(last)
    }
}

/// Sends one request and reads the answer's head, and its body to the end or the bound. Redirects are not followed.
async fn exchange<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    request: Request<Full<Bytes>>,
) -> Result<(u16, Option<String>), SendProblem> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(passing)?;
    let asked = async move {
        let answer = sender.send_request(request).await.map_err(passing)?;
        let retry_after = answer.headers().get(header::RETRY_AFTER);
        let retry_after = retry_after.and_then(|value| value.to_str().ok().map(str::to_owned));
        let status = answer.status().as_u16();
        let _nobody_looks = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
        Ok((status, retry_after))
    };
    let mut asked = std::pin::pin!(asked);
    tokio::select! {
        biased;
        answered = &mut asked => answered,
        // The connection may end in the moment in which the answer is complete.
        _ended = connection => asked.await,
    }
}
