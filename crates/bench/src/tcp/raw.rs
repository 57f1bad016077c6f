//! What TLS itself takes: length-prefixed messages by `tokio-util`, written and read, and nothing else.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tokio_util::codec::{Framed, LengthDelimitedCodec};
use volary_kernel::clock::{Clock as _, SystemClock};
use volary_kernel::sign::SigningKey;

use super::{BATCH, MESSAGE, Trips};
use crate::Failure;

static BODY: [u8; MESSAGE] = [7; MESSAGE];

type Near = Framed<client::TlsStream<TcpStream>, LengthDelimitedCodec>;
type Far = Framed<server::TlsStream<TcpStream>, LengthDelimitedCodec>;

/// Believes everybody: only the bytes are measured, and handshakes are over by then.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

async fn connect() -> Result<(Near, Far), Failure> {
    let key = SigningKey::generate()?;
    let pkcs8 = key.to_pkcs8()?;
    let spki = [
        &[
            0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
        ][..],
        &key.public().to_bytes(),
    ]
    .concat();
    let key = aws_lc_rs::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8.as_slice()))?;
    let certified = Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], key));
    let server = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(certified)));
    let client = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let near = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from("raw").map_err(std::io::Error::other)?;
        TlsConnector::from(Arc::new(client))
            .connect(name, stream)
            .await
    };
    let far = async {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        TlsAcceptor::from(Arc::new(server)).accept(stream).await
    };
    let (near, far) = tokio::try_join!(near, far)?;
    let codec = LengthDelimitedCodec::new;
    let mut near = Framed::new(near, codec());
    // The flush comes after a batch, not when a buffer of 8 KiB is full.
    near.set_backpressure_boundary(BATCH * (MESSAGE + 4));
    Ok((near, Framed::new(far, codec())))
}

pub async fn one_way(batches: usize) -> Result<Duration, Failure> {
    let (mut near, mut far) = connect().await?;
    let start = SystemClock.mono();
    let received = crate::bus::background(async move {
        for _ in 0..batches * BATCH {
            match far.next().await {
                Some(message) => std::hint::black_box(message?),
                None => return Err("the connection ended".into()),
            };
        }
        Ok::<_, Failure>(())
    });
    for _ in 0..batches {
        for _ in 0..BATCH {
            near.feed(Bytes::from_static(&BODY)).await?;
        }
        SinkExt::<Bytes>::flush(&mut near).await?;
    }
    received.await??;
    Ok(SystemClock.mono() - start)
}

pub async fn round_trips(trips: usize) -> Result<f64, Failure> {
    let (mut near, mut far) = connect().await?;
    let _echo = crate::bus::background(async move {
        while let Some(Ok(message)) = far.next().await {
            if far.send(message.freeze()).await.is_err() {
                break;
            }
        }
    });
    let mut took = Trips::new(trips);
    for _ in 0..trips {
        let start = Trips::start();
        near.send(Bytes::from_static(&BODY)).await?;
        let answer = near.next().await.ok_or("the connection ended")?;
        std::hint::black_box(answer?);
        took.end(start);
    }
    took.middle()
}
