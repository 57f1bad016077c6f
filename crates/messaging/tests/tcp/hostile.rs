//! Peers that mean harm: each is refused and counted, and a good peer on the same listener notices nothing.

use std::{sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::{
        AlwaysResolvesClientRawPublicKeys,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    sign::CertifiedKey,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use volary_kernel::{
    clock::{Clock, SystemClock},
    testing::eventually,
};
use volary_messaging::{
    Admission, Identity, Refusal,
    transport::tcp::{
        Link, LinkState, Listener, Net, TcpLimits,
        control::{self, Code, Control, Greeting},
    },
};

use crate::support::{
    Answerer, SOON, Side, connect, deliver, ended, frames, listen, name, refused, soon,
};

/// A listener with a good peer on it, and somebody else.
struct Scene {
    good: Side,
    server: Side,
    bad: Side,
    listener: Listener,
    link: Link,
}

/// Limits short enough to wait for.
fn tight() -> TcpLimits {
    TcpLimits {
        handshake_time: Duration::from_millis(300),
        stall: Duration::from_millis(300),
        drain: Duration::from_millis(300),
        ..TcpLimits::default()
    }
}

impl Scene {
    async fn new(limits: TcpLimits, knows_bad: bool) -> Self {
        let (answer, _) = deliver();
        Self::answering(limits, knows_bad, answer).await
    }

    async fn answering(limits: TcpLimits, knows_bad: bool, answer: Answerer) -> Self {
        let (good, server, bad) = (Side::new("good"), Side::new("server"), Side::new("bad"));
        let peers: &[&Side] = if knows_bad { &[&good, &bad] } else { &[&good] };
        let (listener, _) = listen(&server, peers, limits, Net::tokio(), answer).await;
        let link = connect(&good, &server, &listener, &Net::tokio()).await;
        Self {
            good,
            server,
            bad,
            listener,
            link,
        }
    }

    /// The good peer is on its first connection, and is answered.
    async fn good_is_unharmed(&self) {
        let answers = soon(self.link.send(self.good.frame([1]))).await;
        assert_eq!(answers, Ok(vec![Admission::Delivered]));
        assert_eq!(self.good.count("volary_tcp_frames_unanswered_total"), 0);
        assert!(matches!(
            &*self.link.state().borrow(),
            LinkState::Connected { .. }
        ));
    }

    async fn counted(&self, series: &str, at_least: u64) {
        let enough = eventually(SOON, || self.server.count(series) >= at_least).await;
        assert!(enough, "{series}: {}", self.server.metrics.encode_text());
    }

    async fn tcp(&self) -> TcpStream {
        TcpStream::connect(self.listener.address()).await.unwrap()
    }

    /// A TLS connection that shows this key.
    async fn tls(&self, identity: &Identity) -> TlsStream<TcpStream> {
        let stream = TlsConnector::from(client(identity, &identity.public().to_bytes()));
        let name = ServerName::try_from("volary").unwrap();
        stream.connect(name, self.tcp().await).await.unwrap()
    }

    /// The bad peer, greeted.
    async fn greeted(&self) -> TlsStream<TcpStream> {
        let mut stream = self.tls(&self.bad.node).await;
        say(&mut stream, &Control::Hello(greeting(&self.bad))).await;
        let answer = hear(&mut stream).await;
        assert!(matches!(answer, Some(Control::HelloAck(_))), "{answer:?}");
        stream
    }
}

fn greeting(side: &Side) -> Greeting {
    Greeting {
        key: side.node.public(),
        name: name("bad"),
        incarnation: 1,
        frame_bytes: 1 << 20,
        window_frames: 64,
        window_bytes: 1 << 20,
        introduction: Bytes::new(),
    }
}

fn bytes_of(control: &Control) -> Vec<u8> {
    let mut bytes = Vec::new();
    control::encode(control, &mut bytes);
    bytes
}

async fn say(stream: &mut TlsStream<TcpStream>, control: &Control) {
    stream.write_all(&bytes_of(control)).await.unwrap();
    stream.flush().await.unwrap();
}

/// The next unit; `None` if the connection ended.
async fn hear(stream: &mut TlsStream<TcpStream>) -> Option<Control> {
    soon(async {
        let mut bytes = BytesMut::new();
        loop {
            if let Some(length) = control::unit_len(&bytes, 1 << 24).unwrap()
                && bytes.len() >= length
            {
                return Some(control::decode(&bytes.split_to(length).freeze(), 1 << 24).unwrap());
            }
            // One at a time, so that nothing of the next unit is taken.
            match stream.read_u8().await {
                Ok(byte) => bytes.extend_from_slice(&[byte]),
                Err(_) => return None,
            }
        }
    })
    .await
}

fn data(side: &Side, id: u64, number: u32) -> Control {
    let outgoing = side.frame([number]);
    Control::Data {
        id,
        count: 1,
        durable: None,
        frame: outgoing.frame,
    }
}

/// Believes every server: it is the server's refusal that is tested.
#[derive(Debug)]
struct Anybody {
    raw: bool,
}

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
        self.raw
    }
}

fn builder(
    versions: &[&'static rustls::SupportedProtocolVersion],
    raw: bool,
) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody { raw }))
}

/// Signs with `identity` and shows `shown` as its key.
fn client(identity: &Identity, shown: &[u8; 32]) -> Arc<ClientConfig> {
    let pkcs8 = identity.signing_key().to_pkcs8().unwrap();
    let key = PrivatePkcs8KeyDer::from(pkcs8.as_slice());
    let key = rustls::crypto::aws_lc_rs::sign::any_eddsa_type(&key).unwrap();
    let spki = [&hex::decode("302a300506032b6570032100").unwrap()[..], shown].concat();
    let certified = CertifiedKey::new(vec![CertificateDer::from(spki)], key);
    let resolver = AlwaysResolvesClientRawPublicKeys::new(Arc::new(certified));
    let mut config =
        builder(&[&rustls::version::TLS13], true).with_client_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![b"volary/1".to_vec()];
    Arc::new(config)
}

/// Whether the server let us through the handshake: what it refuses, we see at the first read.
async fn is_let_in(stream: TcpStream, config: Arc<ClientConfig>) -> bool {
    let name = ServerName::try_from("volary").unwrap();
    let Ok(mut stream) = soon(TlsConnector::from(config).connect(name, stream)).await else {
        return false;
    };
    !matches!(soon(stream.read_u8()).await, Err(error) if error.kind() != std::io::ErrorKind::UnexpectedEof)
}

#[tokio::test]
async fn a_key_that_is_no_peers_is_refused() {
    let scene = Scene::new(tight(), false).await;
    let stranger = client(&scene.bad.node, &scene.bad.node.public().to_bytes());
    assert!(!is_let_in(scene.tcp().await, stranger).await);
    scene.counted(&refused("tls"), 1).await;
    scene.good_is_unharmed().await;
}

#[tokio::test]
async fn a_stolen_public_key_without_its_private_key_is_refused() {
    let scene = Scene::new(tight(), false).await;
    let thief = client(&scene.bad.node, &scene.good.node.public().to_bytes());
    assert!(!is_let_in(scene.tcp().await, thief).await);
    scene.counted(&refused("tls"), 1).await;
    scene.good_is_unharmed().await;
}

#[tokio::test]
async fn a_server_with_another_key_is_not_talked_to() {
    let scene = Scene::new(tight(), true).await;
    let mut config = scene
        .bad
        .link(&Side::new("expected"), scene.listener.address());
    config.give_up = Some(1);
    let link = Link::new(config);
    assert!(soon(link.connected()).await.is_err());
    assert!(
        scene
            .bad
            .count("volary_tcp_dials_failed_total{reason=\"failed\"}")
            >= 1
    );
    scene.good_is_unharmed().await;
}

#[tokio::test]
async fn a_greeting_with_another_key_than_tls_showed_is_refused() {
    let scene = Scene::new(tight(), true).await;
    let mut stream = scene.tls(&scene.bad.node).await;
    say(&mut stream, &Control::Hello(greeting(&scene.good))).await;
    let answer = hear(&mut stream).await;
    assert!(
        matches!(answer, Some(Control::Refuse(Code::Unknown, _))),
        "{answer:?}"
    );
    scene.counted(&refused("unknown"), 1).await;
    scene.good_is_unharmed().await;
}

#[tokio::test]
async fn a_client_with_a_certificate_in_place_of_a_raw_key_is_refused() {
    let scene = Scene::new(tight(), false).await;
    let der = |text: &str| BASE64_STANDARD.decode(text).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der(KEY)));
    let config = builder(&[&rustls::version::TLS13], false)
        .with_client_auth_cert(vec![CertificateDer::from(der(CERTIFICATE))], key)
        .unwrap();
    assert!(!is_let_in(scene.tcp().await, Arc::new(config)).await);
    scene.counted(&refused("tls"), 1).await;
    scene.good_is_unharmed().await;
}

/// A certificate that its own Ed25519 key signed, for `CN=intruder`; and that key.
const CERTIFICATE: &str = "MIIBPDCB76ADAgECAhQLf6hYgcgkIiMCyRPI2hZBOnPsLDAFBgMrZXAwEzERMA8GA1UEAwwIaW50cnVkZXIwIBcNMjYxMTIxMTMwOTM1WhgPMjEyNjEwMjgxMzA5MzVaMBMxETAPBgNVBAMMCGludHJ1ZGVyMCowBQYDK2VwAyEAY/cfOYWWwei2lhJn1FQQX029AtwTeA1cCbTJmOyiL9+jUzBRMB0GA1UdDgQWBBSgwl6PbCTAVnMO65jj9RIbnHU9ljAfBgNVHSMEGDAWgBSgwl6PbCTAVnMO65jj9RIbnHU9ljAPBgNVHRMBAf8EBTADAQH/MAUGAytlcANBAGQt+pwtCyOPaKBlBGQEgyqnetvRGJeBDng9GMUJj1kPu6d4DvuN5SK0kaQyyCILsxe67OhQZNiPQYCpGqROfg4=";
const KEY: &str = "MC4CAQAwBQYDK2VwBCIEIIncRcJy07tGXl5FJyFuEDAge8y6hldG8ERxcHhaYdqK";

#[tokio::test]
async fn a_client_that_shows_no_key_at_all_is_refused() {
    let scene = Scene::new(tight(), false).await;
    let config = builder(&[&rustls::version::TLS13], true).with_no_client_auth();
    assert!(!is_let_in(scene.tcp().await, Arc::new(config)).await);
    scene.counted(&refused("tls"), 1).await;
    scene.good_is_unharmed().await;
}

#[tokio::test]
async fn a_client_that_speaks_only_tls_1_2_is_refused() {
    let scene = Scene::new(tight(), false).await;
    let config = builder(&[&rustls::version::TLS12], false).with_no_client_auth();
    assert!(!is_let_in(scene.tcp().await, Arc::new(config)).await);
    scene.counted(&refused("tls"), 1).await;
    scene.good_is_unharmed().await;
}

#[tokio::test]
async fn bytes_that_are_no_tls_end_their_own_connection() {
    let scene = Scene::new(tight(), false).await;
    for bytes in [&[0xff; 64][..], b"GET / HTTP/1.1\r\n\r\n", &[0, 0xa8, 0, 0]] {
        let mut stream = scene.tcp().await;
        stream.write_all(bytes).await.unwrap();
        let mut rest = Vec::new();
        // Whether by an end or a reset, it ends.
        let _reset = soon(stream.read_to_end(&mut rest)).await;
    }
    assert!(
        eventually(SOON, || {
            scene.server.count(&refused("tls")) + scene.server.count(&refused("too_slow")) == 3
        })
        .await
    );
    scene.good_is_unharmed().await;
}

/// D12 (tcp): a malformed frame does not lose later ones.
#[tokio::test]
async fn a_bad_frame_costs_itself_and_not_those_behind_it() {
    let scene = Scene::new(tight(), true).await;
    let mut stream = scene.greeted().await;
    let whole = scene.bad.frame([1]).frame;
    let mut flipped = whole.to_vec();
    *flipped.last_mut().unwrap() ^= 1;
    let mut resigned = whole.to_vec();
    resigned[40] ^= 1;
    let foreign = Side::new("bad").frame([1]).frame;
    let cases: [(Vec<u8>, &str); 5] = [
        (whole[..whole.len() - 3].to_vec(), "undecodable"),
        (Vec::new(), "undecodable"),
        (flipped, "bad_signature"),
        (resigned, "bad_signature"),
        (foreign.to_vec(), "unknown_sender"),
    ];
    let mut id = 0;
    for (frame, reason) in cases {
        id += 1;
        let before = scene.server.count(&frames(reason));
        let bad = Control::Data {
            id,
            count: 1,
            durable: None,
            frame: frame.into(),
        };
        say(&mut stream, &bad).await;
        match hear(&mut stream).await {
            Some(Control::Answers { id: found, answers }) => {
                assert_eq!(found, id);
                assert!(
                    matches!(answers[..], [Admission::Refused(Refusal::Invalid { .. })]),
                    "{answers:?}"
                );
            }
            other => panic!("{reason}: {other:?}"),
        }
        assert_eq!(scene.server.count(&frames(reason)), before + 1, "{reason}");
        let told = scene.server.rejected.lock().pop();
        assert_eq!(told, Some((scene.bad.name.clone(), 1, reason)));
        id += 1;
        say(&mut stream, &data(&scene.bad, id, 7)).await;
        let answers = vec![Admission::Delivered];
        assert_eq!(
            hear(&mut stream).await,
            Some(Control::Answers { id, answers })
        );
    }
    assert_eq!(*scene.server.rejected.lock(), []);
    scene.good_is_unharmed().await;
}

/// D10 (tcp): a header, and everything else, may come byte by byte.
#[tokio::test]
async fn a_unit_that_comes_byte_by_byte_is_read() {
    let scene = Scene::new(TcpLimits::default(), true).await;
    let mut stream = scene.greeted().await;
    for byte in bytes_of(&data(&scene.bad, 1, 1)) {
        stream.write_all(&[byte]).await.unwrap();
        stream.flush().await.unwrap();
    }
    let answers = vec![Admission::Delivered];
    assert_eq!(
        hear(&mut stream).await,
        Some(Control::Answers { id: 1, answers })
    );
}

#[tokio::test]
async fn every_flipped_bit_of_a_frame_is_refused() {
    let scene = Scene::new(tight(), true).await;
    let mut stream = scene.greeted().await;
    let whole = scene.bad.frame([1]).frame;
    let step = if full() { 1 } else { 37 };
    let flips: Vec<usize> = (0..whole.len() * 8).step_by(step).collect();
    for (index, bit) in flips.iter().enumerate() {
        let mut frame = whole.to_vec();
        frame[bit / 8] ^= 1 << (bit % 8);
        let bad = Control::Data {
            id: index as u64 + 1,
            count: 1,
            durable: None,
            frame: frame.into(),
        };
        say(&mut stream, &bad).await;
        match hear(&mut stream).await {
            Some(Control::Answers { answers, .. }) => {
                assert!(
                    matches!(answers[..], [Admission::Refused(_)]),
                    "bit {bit}: {answers:?}"
                );
            }
            other => panic!("bit {bit}: {other:?}"),
        }
    }
    scene.good_is_unharmed().await;
}

#[expect(
    clippy::disallowed_methods,
    reason = "the size of the test is the tester's choice"
)]
pub fn full() -> bool {
    std::env::var_os("VOLARY_TEST_FULL").is_some_and(|value| value == "1")
}

#[tokio::test]
async fn a_frame_above_the_limit_ends_the_connection_before_it_is_read() {
    let limits = TcpLimits {
        frame_bytes: 4096,
        ..tight()
    };
    let scene = Scene::new(limits, true).await;
    for length in [11 << 20, u32::MAX] {
        let mut stream = scene.greeted().await;
        stream.write_all(&length.to_be_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        let answer = hear(&mut stream).await;
        assert!(
            matches!(answer, Some(Control::Bye(Code::Protocol, _))),
            "{answer:?}"
        );
    }
    scene.counted(&ended("protocol"), 2).await;
    scene.good_is_unharmed().await;
}

#[tokio::test]
async fn a_broken_control_stream_ends_the_connection_with_words() {
    let scene = Scene::new(tight(), true).await;
    let mut kind = bytes_of(&Control::Ping(1));
    kind[5] = 77;
    let mut version = bytes_of(&Control::Ping(1));
    version[4] = 9;
    let answers = vec![Admission::Delivered];
    let cases = [
        kind,
        version,
        bytes_of(&Control::Answers { id: 1, answers }),
        bytes_of(&data(&scene.bad, 5, 1)),
        bytes_of(&Control::Hello(greeting(&scene.bad))),
    ];
    let count = cases.len() as u64;
    for case in cases {
        let mut stream = scene.greeted().await;
        stream.write_all(&case).await.unwrap();
        stream.flush().await.unwrap();
        let answer = hear(&mut stream).await;
        assert!(
            matches!(answer, Some(Control::Bye(Code::Protocol, _))),
            "{answer:?}"
        );
    }
    scene.counted(&ended("protocol"), count).await;
    scene.good_is_unharmed().await;
}

#[tokio::test]
async fn a_peer_that_floods_greetings_is_refused_past_its_connections() {
    let scene = Scene::new(tight(), true).await;
    let mut held = Vec::new();
    for _ in 0..TcpLimits::default().per_peer {
        held.push(scene.greeted().await);
    }
    for _ in 0..20 {
        let mut stream = scene.tls(&scene.bad.node).await;
        say(&mut stream, &Control::Hello(greeting(&scene.bad))).await;
        let answer = hear(&mut stream).await;
        assert!(
            matches!(answer, Some(Control::Refuse(Code::TooMany, _))),
            "{answer:?}"
        );
    }
    scene.counted(&refused("too_many"), 20).await;
    assert_eq!(scene.listener.connections().len(), 5);
    let flood = bytes_of(&Control::Hello(greeting(&scene.bad))).repeat(1000);
    let _cut = held[0].write_all(&flood).await;
    scene.counted(&ended("protocol"), 1).await;
    scene.good_is_unharmed().await;
}

/// Sends `bytes` one by one, slowly, until the other side cuts; how long that took.
async fn dribble(
    stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin),
    bytes: &[u8],
) -> Duration {
    let start = SystemClock.mono();
    let mut heard = [0; 1024];
    for byte in bytes.iter().cycle() {
        if stream.write_all(&[*byte]).await.is_err() || stream.flush().await.is_err() {
            break;
        }
        let pause =
            volary_kernel::clock::timeout(Duration::from_millis(20), stream.read(&mut heard));
        if let Ok(Ok(0) | Err(_)) = pause.await {
            break;
        }
        assert!(SystemClock.mono() - start < SOON, "it is never cut");
    }
    SystemClock.mono() - start
}

#[tokio::test]
async fn who_sends_one_byte_and_waits_does_not_keep_others_out() {
    let limits = TcpLimits {
        handshaking: 2,
        // They are not cut by time in this test.
        handshake_time: Duration::from_secs(60),
        ..tight()
    };
    let scene = Scene::new(limits, true).await;
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut stream = scene.tcp().await;
        stream.write_all(&[22]).await.unwrap();
        held.push(stream);
    }
    scene.counted(&refused("handshaking"), 6).await;
    let _greeted = soon(scene.greeted()).await;
    scene.good_is_unharmed().await;
}

#[tokio::test]
async fn a_peer_that_begins_anew_again_and_again_takes_nobodys_place() {
    // What is being taken in keeps its connection for as long as draining may take.
    let answer: Answerer = Arc::new(|_| std::future::pending().boxed());
    let limits = TcpLimits {
        per_peer: 1,
        drain: Duration::from_secs(60),
        ..TcpLimits::default()
    };
    let (server, bad) = (Side::new("server"), Side::new("bad"));
    let (listener, _) = listen(&server, &[&bad], limits, Net::tokio(), answer).await;
    let tls = async || {
        let stream = TcpStream::connect(listener.address()).await.unwrap();
        let client = client(&bad.node, &bad.node.public().to_bytes());
        let name = ServerName::try_from("volary").unwrap();
        let connector = TlsConnector::from(client);
        connector.connect(name, stream).await.unwrap()
    };
    let mut held = Vec::new();
    for incarnation in 1..=5 {
        let mut stream = tls().await;
        let hello = Greeting {
            incarnation,
            ..greeting(&bad)
        };
        say(&mut stream, &Control::Hello(hello)).await;
        let answer = hear(&mut stream).await;
        if incarnation > 3 {
            let refused = matches!(answer, Some(Control::Refuse(Code::TooMany, _)));
            assert!(refused, "{incarnation}: {answer:?}");
            continue;
        }
        assert!(matches!(answer, Some(Control::HelloAck(_))), "{answer:?}");
        say(&mut stream, &data(&bad, 1, 1)).await;
        held.push(stream);
        let frames = eventually(SOON, || {
            server.count("volary_tcp_frames_total{way=\"received\",result=\"ok\"}") >= incarnation
        });
        assert!(frames.await, "{}", server.metrics.encode_text());
    }
}

#[tokio::test]
async fn who_is_slow_in_the_tls_handshake_is_cut() {
    let scene = Scene::new(tight(), true).await;
    // The beginning of a ClientHello of 512 bytes.
    let hello = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[0; 400]].concat();
    let took = dribble(&mut scene.tcp().await, &hello).await;
    assert!(took < Duration::from_secs(5), "{took:?}");
    scene.counted(&refused("too_slow"), 1).await;
    scene.good_is_unharmed().await;
}

#[tokio::test]
async fn who_is_slow_in_the_greeting_is_cut() {
    let scene = Scene::new(tight(), true).await;
    let mut greeting = greeting(&scene.bad);
    greeting.introduction = vec![0; 5000].into();
    let mut stream = scene.tls(&scene.bad.node).await;
    let took = dribble(&mut stream, &bytes_of(&Control::Hello(greeting))).await;
    assert!(took < Duration::from_secs(5), "{took:?}");
    scene.counted(&refused("too_slow"), 1).await;
    scene.good_is_unharmed().await;
}

#[tokio::test]
async fn who_is_slow_in_a_frame_is_cut() {
    let scene = Scene::new(tight(), true).await;
    let mut stream = scene.greeted().await;
    let took = dribble(&mut stream, &bytes_of(&data(&scene.bad, 1, 1))).await;
    assert!(took < Duration::from_secs(5), "{took:?}");
    scene.counted(&ended("stalled_read"), 1).await;
    scene.good_is_unharmed().await;
}

#[tokio::test]
async fn who_never_reads_its_answers_is_cut_and_its_answers_stay_bounded() {
    let scene = Scene::new(tight(), true).await;
    let mut stream = scene.greeted().await;
    let pings = bytes_of(&Control::Ping(7)).repeat(4096);
    let flood = async {
        while stream.write_all(&pings).await.is_ok() && stream.flush().await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    soon(flood).await;
    scene.counted(&ended("stalled_write"), 1).await;
    scene.good_is_unharmed().await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_is_closed_after_the_idle_time() {
    let net = crate::support::pipes();
    let (good, server) = (Side::new("good"), Side::new("server"));
    let (answer, _) = deliver();
    let (listener, _) = listen(&server, &[&good], TcpLimits::default(), net.clone(), answer).await;
    let mut config = good.link(&server, listener.address());
    // It never asks for a sign of life.
    (config.net, config.limits.ping) = (net, Duration::from_secs(7200));
    config.limits.idle = Duration::from_secs(7201);
    let link = Link::new(config);
    link.connected().await.unwrap();
    let start = SystemClock.mono();
    let mut state = link.state();
    let gone = |state: &LinkState| !matches!(state, LinkState::Connected { .. });
    state.wait_for(gone).await.unwrap();
    let silent = SystemClock.mono() - start;
    assert!(silent >= TcpLimits::default().idle && silent < TcpLimits::default().idle * 2);
    assert_eq!(server.count(&ended("idle")), 1);
}

#[tokio::test]
async fn a_stuck_receiver_of_one_peer_does_not_hold_up_another() {
    let answer: Answerer = Arc::new(|arrival| {
        if arrival.peer.name.as_str() == "bad" {
            return std::future::pending().boxed();
        }
        async { vec![Admission::Delivered] }.boxed()
    });
    let scene = Scene::answering(tight(), true, answer).await;
    let mut stream = scene.greeted().await;
    for id in 1..=200 {
        let unit = bytes_of(&data(&scene.bad, id, 1));
        let write = volary_kernel::clock::timeout(Duration::from_millis(50), async {
            stream.write_all(&unit).await?;
            stream.flush().await
        });
        // At some point nothing more is taken.
        if write.await.is_err() {
            break;
        }
    }
    scene.good_is_unharmed().await;
    assert!(
        scene.server.count(&frames("ok")) <= 64 + 1,
        "the window bounds what is taken"
    );
}

/// Quick: 1,000 connections; `VOLARY_TEST_FULL=1`: 10,000.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_connections_are_refused_and_a_good_peer_is_served() {
    let wanted: usize = if full() { 10_000 } else { 1_000 };
    let need = 2 * wanted as u64 + 500;
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if limit.current.is_some_and(|current| current < need) {
        limit.current = limit
            .maximum
            .map_or(Some(need), |maximum| Some(maximum.min(need)));
        rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    }
    let limits = TcpLimits {
        handshake_time: Duration::from_secs(30),
        ..TcpLimits::default()
    };
    let scene = Scene::new(limits, true).await;
    let mut idle = Vec::with_capacity(wanted);
    let mut slowest = Duration::ZERO;
    for number in 0..wanted {
        idle.push(scene.tcp().await);
        if number % 100 == 0 {
            let start = SystemClock.mono();
            scene.good_is_unharmed().await;
            slowest = slowest.max(SystemClock.mono() - start);
        }
    }
    let bound = (limits.handshaking + 1) as u64;
    scene
        .counted(&refused("handshaking"), wanted as u64 - bound)
        .await;
    assert!(scene.server.count("volary_tcp_connections") <= bound);
    // Somebody new with good intentions still gets in, past all who wait.
    let late = connect(&scene.bad, &scene.server, &scene.listener, &Net::tokio()).await;
    let answers = soon(late.send(scene.bad.frame([2]))).await;
    assert_eq!(answers, Ok(vec![Admission::Delivered]));
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    scene.good_is_unharmed().await;
}

#[tokio::test]
async fn a_replayed_frame_does_nothing_and_gets_its_first_answer() {
    replay::run().await;
}

/// The same bytes again on the wire, to an instance that delivers at most once.
mod replay {
    use volary_messaging::{
        EndpointSpec, Transport,
        discovery::{Descriptor, Introduction, SignedDescriptor},
        transport::tcp::{PeerSpec, Tcp, TcpConfig},
    };

    use super::*;

    pub async fn run() {
        let (bad, me) = (Side::new("bad"), Identity::generate().unwrap());
        let config = TcpConfig::new(me, name("me"))
            .listen("127.0.0.1:0")
            .peer(PeerSpec::new(name("bad"), bad.node.public()));
        let tcp = Tcp::bind(config).await.unwrap();
        let spec = EndpointSpec::new(
            Default::default(),
            name("inbox"),
            vec!["work".parse().unwrap()],
        );
        let mut inbox = tcp.open(spec).unwrap();
        let mut greeting = greeting(&bad);
        let now = SystemClock.wall();
        let descriptor = Descriptor {
            tenant: Default::default(),
            name: bad.name.clone(),
            key: bad.agent.public(),
            topics: Vec::new(),
            capabilities: Vec::new(),
            pools: Vec::new(),
            issued_at: now,
            expires_at: now + Duration::from_secs(60),
            succession: None,
        };
        let signed = SignedDescriptor::sign(descriptor, &bad.agent).unwrap();
        greeting.introduction = Introduction::new(vec![signed]).unwrap().encode();
        let frame = bad.frame([1]).frame;
        // On the same connection, and on another one later.
        for connection in 0..2 {
            let stream = TcpStream::connect(tcp.address().unwrap()).await.unwrap();
            let connector = TlsConnector::from(client(&bad.node, &bad.node.public().to_bytes()));
            let server = ServerName::try_from("volary").unwrap();
            let mut stream = connector.connect(server, stream).await.unwrap();
            say(&mut stream, &Control::Hello(greeting.clone())).await;
            assert!(matches!(
                hear(&mut stream).await,
                Some(Control::HelloAck(_))
            ));
            for id in 1..=3 {
                let again = Control::Data {
                    id,
                    count: 1,
                    durable: None,
                    frame: frame.clone(),
                };
                say(&mut stream, &again).await;
                let answers = vec![Admission::Delivered];
                let heard = hear(&mut stream).await;
                assert_eq!(
                    heard,
                    Some(Control::Answers { id, answers }),
                    "{connection}"
                );
            }
        }
        assert!(inbox.recv().await.is_some());
        assert_eq!(inbox.stats().items, 0, "it was delivered once");
    }
}
