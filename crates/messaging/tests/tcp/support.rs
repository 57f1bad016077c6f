//! Two ends of a link for tests, over the machine's sockets or over pipes in memory.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use volary_kernel::{
    clock::{Clock, SystemClock, timeout},
    id::{Name, Tenant},
    metric::Metrics,
    task::Supervisor,
};
use volary_messaging::{
    Admission, Identity, IdentityRegistry, Message, Sender, Topic,
    frame::seal,
    transport::tcp::{
        Arrival, Incoming, Link, LinkConfig, ListenConfig, Listener, ListenerConfig, Net, Outgoing,
        PeerBook, PeerSpec, Reception, Security, Stream, TcpLimits,
    },
};

/// Longest wait for something that must happen.
pub const SOON: Duration = Duration::from_secs(10);

pub fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub async fn soon<F: Future>(future: F) -> F::Output {
    timeout(SOON, future).await.expect("it happens soon")
}

/// One side: a node with one agent of the same name.
/// Who brought refused frames, how many messages, why.
pub type Rejected = Arc<Mutex<Vec<(Name, usize, &'static str)>>>;

#[derive(Clone)]
pub struct Side {
    pub name: Name,
    pub node: Identity,
    pub agent: Identity,
    pub metrics: Metrics,
    pub tasks: Supervisor,
    /// What its listener said of frames that it refused.
    pub rejected: Rejected,
}

impl Side {
    pub fn new(text: &str) -> Self {
        Self {
            name: name(text),
            node: Identity::generate().unwrap(),
            agent: Identity::generate().unwrap(),
            metrics: Metrics::default(),
            tasks: Supervisor::new(),
            rejected: Arc::default(),
        }
    }

    pub fn spec(&self) -> PeerSpec {
        PeerSpec::new(self.name.clone(), self.node.public())
    }

    pub fn message(&self, number: u32) -> Message {
        let sender = Sender::new(self.agent.id(), self.name.clone(), Tenant::default());
        let draft = Message::builder(sender).topic("work".parse::<Topic>().unwrap());
        draft
            .json(&number)
            .unwrap()
            .build(SystemClock.wall())
            .unwrap()
    }

    /// A frame of these messages.
    pub fn frame(&self, numbers: impl IntoIterator<Item = u32>) -> Outgoing {
        let messages: Vec<Message> = numbers.into_iter().map(|n| self.message(n)).collect();
        Outgoing {
            frame: seal(&self.agent, &messages).unwrap(),
            count: messages.len(),
            durable: None,
            connection: None,
        }
    }

    pub fn link(&self, to: &Side, address: impl ToString) -> LinkConfig {
        let spec = to.spec().at(address.to_string());
        LinkConfig {
            metrics: self.metrics.clone(),
            random: Arc::new(|| 0.5),
            ..LinkConfig::new(
                self.node.clone(),
                self.name.clone(),
                spec,
                self.tasks.clone(),
            )
        }
    }

    /// The value of a line of the metrics text; 0 if it is not there.
    pub fn count(&self, series: &str) -> u64 {
        let text = self.metrics.encode_text();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0, |value| value.parse().unwrap())
    }
}

/// Refused connections of this reason.
pub fn refused(reason: &str) -> String {
    format!("volary_tcp_connections_refused_total{{reason=\"{reason}\"}}")
}

/// Ended connections, as the listener saw it.
pub fn ended(reason: &str) -> String {
    format!("volary_tcp_connections_ended_total{{side=\"listener\",reason=\"{reason}\"}}")
}

pub fn frames(result: &str) -> String {
    format!("volary_tcp_frames_total{{way=\"received\",result=\"{result}\"}}")
}

/// What a receiver answers.
pub type Answerer = Arc<dyn Fn(Arrival) -> BoxFuture<'static, Vec<Admission>> + Send + Sync>;

/// The numbers of a frame's messages.
pub fn numbers(arrival: &Arrival) -> Vec<u32> {
    let messages = arrival.frame.messages().iter();
    messages
        .map(|message| message.payload().parse_json().unwrap())
        .collect()
}

/// A listener that believes the agents of `peers` and answers by `answer`.
pub async fn listen(
    me: &Side,
    peers: &[&Side],
    limits: TcpLimits,
    net: Net,
    answer: Answerer,
) -> (Listener, PeerBook) {
    let config = listen_config(me, peers, limits, net, answer).await;
    let book = config.peers.clone();
    (Listener::bind(config).await.unwrap(), book)
}

pub async fn listen_config(
    me: &Side,
    peers: &[&Side],
    limits: TcpLimits,
    net: Net,
    answer: Answerer,
) -> ListenerConfig {
    let registry = IdentityRegistry::in_memory();
    for peer in peers {
        registry
            .register(
                peer.agent.id(),
                peer.agent.public(),
                peer.name.clone(),
                Tenant::default(),
            )
            .await
            .unwrap();
    }
    let rejected = me.rejected.clone();
    ListenerConfig {
        listen: ListenConfig {
            address: "127.0.0.1:0".to_owned(),
            limits,
            security: Security::Tls,
        },
        me: me.node.clone(),
        name: me.name.clone(),
        incarnation: 1,
        peers: PeerBook::new(peers.iter().map(|peer| peer.spec())).unwrap(),
        reception: Reception {
            trust: Arc::new(move |_| registry.clone()),
            introduced: Arc::new(|_, _| async { Ok(()) }.boxed()),
            arrived: answer,
            rejected: Arc::new(move |frame| {
                let what = (frame.peer.name, frame.count, frame.reason);
                rejected.lock().push(what);
                async {}.boxed()
            }),
            introduction: watch::channel(Bytes::from_static(b"we are here")).1,
        },
        net,
        clock: SystemClock::shared(),
        tasks: me.tasks.clone(),
        metrics: me.metrics.clone(),
    }
}

/// Answers `Delivered` and hands the numbers on.
pub fn deliver() -> (Answerer, mpsc::Receiver<Vec<u32>>) {
    let (sender, receiver) = mpsc::channel(100_000);
    let answer: Answerer = Arc::new(move |arrival| {
        let sender = sender.clone();
        async move {
            let numbers = numbers(&arrival);
            let answers = vec![Admission::Delivered; numbers.len()];
            let _nobody_listens = sender.try_send(numbers);
            answers
        }
        .boxed()
    });
    (answer, receiver)
}

/// A good link to `listener`, connected.
pub async fn connect(from: &Side, to: &Side, listener: &Listener, net: &Net) -> Link {
    let mut config = from.link(to, listener.address());
    config.net = net.clone();
    let link = Link::new(config);
    soon(link.connected()).await.unwrap();
    link
}

/// Pipes in memory with the addresses of a machine that has only one.
pub fn pipes() -> Net {
    type Waiting = mpsc::Sender<Stream>;
    let bound: Arc<Mutex<HashMap<String, Waiting>>> = Arc::default();
    let (dialing, ports) = (bound.clone(), AtomicU16::new(1000));
    Net::custom(
        move |address| {
            let waiting = dialing.lock().get(&address).cloned();
            async move {
                let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
                let waiting = waiting.ok_or_else(refused)?;
                let (near, far) = tokio::io::duplex(64 * 1024);
                waiting
                    .send(Stream::new(far, None))
                    .await
                    .map_err(|_| refused())?;
                Ok(Stream::new(near, None))
            }
        },
        move |_| {
            let port = ports.fetch_add(1, Ordering::Relaxed);
            let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
            let (sender, receiver) = mpsc::channel(16);
            bound.lock().insert(address.to_string(), sender);
            let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
            async move {
                Ok(Incoming::new(address, move || {
                    let receiver = receiver.clone();
                    async move {
                        let stream = receiver.lock().await.recv().await;
                        stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))
                    }
                }))
            }
        },
    )
}
