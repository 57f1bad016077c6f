//! Our link and listener.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio::sync::watch;
use volary_kernel::clock::{Clock as _, SystemClock};
use volary_kernel::id::Name;
use volary_kernel::metric::Metrics;
use volary_kernel::task::Supervisor;
use volary_messaging::frame::seal;
use volary_messaging::transport::tcp::{
    Link, LinkConfig, ListenConfig, Listener, ListenerConfig, Net, Outgoing, PeerBook, PeerSpec,
    Reception,
};
use volary_messaging::{Admission, Identity, IdentityRegistry, Message};

use super::{BATCH, MESSAGE, Trips};
use crate::Failure;

/// Frames on their way at once: the link's window.
const WINDOW: usize = 64;

static BODY: [u8; MESSAGE] = [7; MESSAGE];

struct Ends {
    link: Link,
    agent: Identity,
    _listener: Listener,
}

/// Both ends in one process, connected.
async fn connect(opaque: bool) -> Result<Ends, Failure> {
    let (near, far, agent) = (
        Identity::generate()?,
        Identity::generate()?,
        Identity::generate()?,
    );
    let (near_name, far_name): (Name, Name) = ("near".parse()?, "far".parse()?);
    let registry = IdentityRegistry::in_memory();
    registry
        .register(
            agent.id(),
            agent.public(),
            "sender".parse()?,
            Default::default(),
        )
        .await?;
    let config = ListenerConfig {
        listen: ListenConfig::new("127.0.0.1:0"),
        me: far.clone(),
        name: far_name.clone(),
        incarnation: 1,
        peers: PeerBook::new([PeerSpec::new(near_name.clone(), near.public())])?,
        reception: Reception {
            trust: Arc::new(move |_| registry.clone()),
            introduced: Arc::new(|_, _| async { Ok(()) }.boxed()),
            arrived: Arc::new(|arrival| {
                let messages = arrival.frame.into_messages();
                let answers = vec![Admission::Delivered; messages.len()];
                std::hint::black_box(messages);
                async { answers }.boxed()
            }),
            rejected: Arc::new(|_| async {}.boxed()),
            introduction: watch::channel(Bytes::new()).1,
        },
        net: Net::tokio(),
        clock: SystemClock::shared(),
        tasks: Supervisor::new(),
        metrics: Metrics::default(),
    };
    let listener = if opaque {
        let split = |arrival: volary_messaging::transport::tcp::OpaqueArrival| {
            let mut frame = arrival.frame;
            let mut answers = Vec::with_capacity(arrival.count);
            while frame.has_remaining() {
                let length = frame.get_u32() as usize;
                std::hint::black_box(frame.split_to(length));
                answers.push(Admission::Delivered);
            }
            async { answers }.boxed()
        };
        Listener::bind_opaque(config, Arc::new(split)).await?
    } else {
        Listener::bind(config).await?
    };
    let peer = PeerSpec::new(far_name, far.public()).at(listener.address().to_string());
    let link = Link::new(LinkConfig::new(near, near_name, peer, Supervisor::new()));
    link.connected().await?;
    Ok(Ends {
        link,
        agent,
        _listener: listener,
    })
}

/// Keeps the window full of what `make` makes, until `batches` are answered.
async fn pump(
    link: &Link,
    batches: usize,
    mut make: impl FnMut() -> Result<Outgoing, Failure>,
) -> Result<Duration, Failure> {
    let start = SystemClock.mono();
    let mut flying = FuturesUnordered::new();
    let mut made = 0;
    while made < batches || !flying.is_empty() {
        while made < batches && flying.len() < WINDOW {
            let mut send = Box::pin(link.send(make()?));
            made += 1;
            // On its way at once: it needs an answer, not another turn.
            match (&mut send).now_or_never() {
                Some(answers) => check(&answers?)?,
                None => flying.push(send),
            }
        }
        if let Some(answers) = flying.next().await {
            check(&answers?)?;
        }
    }
    Ok(SystemClock.mono() - start)
}

fn check(answers: &[Admission]) -> Result<(), Failure> {
    match answers.iter().all(|answer| *answer == Admission::Delivered) {
        true => Ok(()),
        false => Err(format!("answered {answers:?}").into()),
    }
}

fn opaque(messages: usize) -> Outgoing {
    let mut frame = BytesMut::with_capacity(messages * (4 + MESSAGE));
    for _ in 0..messages {
        frame.put_u32(MESSAGE as u32);
        frame.put_slice(&BODY);
    }
    Outgoing {
        frame: frame.freeze(),
        count: messages,
        durable: None,
        connection: None,
    }
}

pub async fn unsealed(batches: usize) -> Result<Duration, Failure> {
    let ends = connect(true).await?;
    pump(&ends.link, batches, || Ok(opaque(BATCH))).await
}

fn sealed_frame(agent: &Identity, messages: &[Message]) -> Result<Outgoing, Failure> {
    Ok(Outgoing {
        frame: seal(agent, messages)?,
        count: messages.len(),
        durable: None,
        connection: None,
    })
}

pub async fn sealed(batches: usize) -> Result<Duration, Failure> {
    let ends = connect(false).await?;
    let messages = crate::sign::messages(ends.agent.id())?;
    pump(&ends.link, batches, || sealed_frame(&ends.agent, &messages)).await
}

pub async fn round_trips(trips: usize) -> Result<f64, Failure> {
    let ends = connect(true).await?;
    let mut took = Trips::new(trips);
    for _ in 0..trips {
        let start = Trips::start();
        check(&ends.link.send(opaque(1)).await?)?;
        took.end(start);
    }
    took.middle()
}

pub async fn sealed_round_trips(trips: usize) -> Result<f64, Failure> {
    let ends = connect(false).await?;
    let messages = crate::sign::messages(ends.agent.id())?;
    let mut took = Trips::new(trips);
    for _ in 0..trips {
        let start = Trips::start();
        let frame = sealed_frame(&ends.agent, &messages[..1])?;
        check(&ends.link.send(frame).await?)?;
        took.end(start);
    }
    took.middle()
}
