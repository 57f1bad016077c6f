//! Links on a simulated network: delays, lost packets, partitions, held traffic and crashes, from a seed. The same seed
//! gives the same history, event for event and millisecond for millisecond. Nothing waits in real time: the simulation runs
//! its hosts on runtimes that are `start_paused`.

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Write,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use parking_lot::Mutex;
use tokio::sync::watch;
use turmoil::Sim;
use volary_kernel::{clock, id::Tenant};
use volary_messaging::{
    Admission, IdentityRegistry,
    transport::tcp::{
        Incoming, Link, LinkError, ListenConfig, Listener, ListenerConfig, Net, PeerBook,
        Reception, Security, Stream, TcpLimits,
    },
};

use crate::support::{Side, numbers};

const PORT: u16 = 7000;
/// Frames that are sent in one history.
const FRAMES: u32 = 200;
/// Frames on their way at once.
const WINDOW: usize = 8;

/// Splitmix64: a sequence of numbers from a seed.
struct Seeded(u64);

impl Seeded {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// What happens to the network, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Partition,
    Repair,
    Hold,
    Release,
    Crash,
    Bounce,
}

fn plan(seed: u64) -> Vec<(Duration, Fault)> {
    let mut random = Seeded(seed);
    let mut at = Duration::ZERO;
    let mut plan = Vec::new();
    for _ in 0..6 {
        let mut later = |limit| {
            at += Duration::from_millis(100 + random.below(limit));
            at
        };
        let (begin, end) = (later(3000), later(2500));
        let (fault, mended) = match random.below(3) {
            0 => (Fault::Partition, Fault::Repair),
            1 => (Fault::Hold, Fault::Release),
            _ => (Fault::Crash, Fault::Bounce),
        };
        plan.extend([(begin, fault), (end, mended)]);
    }
    plan
}

fn limits() -> TcpLimits {
    TcpLimits {
        idle: Duration::from_secs(4),
        ping: Duration::from_secs(1),
        handshake_time: Duration::from_secs(2),
        stall: Duration::from_secs(2),
        drain: Duration::from_millis(200),
        ..TcpLimits::default()
    }
}

/// The simulated network, as one of its hosts sees it.
fn simulated() -> Net {
    Net::custom(
        |address| async move {
            let stream = turmoil::net::TcpStream::connect(address).await?;
            let remote = stream.peer_addr()?;
            Ok(Stream::new(stream, Some(remote)))
        },
        |address| async move {
            let listener = Arc::new(turmoil::net::TcpListener::bind(address).await?);
            let bound = listener.local_addr()?;
            Ok(Incoming::new(bound, move || {
                let listener = listener.clone();
                async move {
                    let (stream, remote) = listener.accept().await?;
                    Ok(Stream::new(stream, Some(remote)))
                }
            }))
        },
    )
}

/// Everything that happened, in order.
#[derive(Clone, Default)]
struct History(Arc<Mutex<String>>);

impl History {
    fn note(&self, what: std::fmt::Arguments<'_>) {
        let at = turmoil::sim_elapsed().unwrap_or_default().as_millis();
        writeln!(self.0.lock(), "{at} {what}").unwrap();
    }

    /// The numbers behind a word, in order.
    fn all(&self, word: &str) -> Vec<u32> {
        let text = self.0.lock();
        let lines = text.lines().map(|line| line.split(' ').skip(1));
        lines
            .filter_map(|mut words| (words.next()? == word).then(|| words.next()?.parse().ok())?)
            .collect()
    }
}

async fn server(me: Side, from: Side, history: History) -> turmoil::Result {
    history.note(format_args!("server-starts 0"));
    let registry = IdentityRegistry::in_memory();
    let (id, key) = (from.agent.id(), from.agent.public());
    registry
        .register(id, key, from.name.clone(), Tenant::default())
        .await?;
    let arrived = history.clone();
    let config = ListenerConfig {
        listen: ListenConfig {
            address: format!("{}:{PORT}", IpAddr::from([0, 0, 0, 0])),
            limits: limits(),
            security: Security::Tls,
        },
        me: me.node.clone(),
        name: me.name.clone(),
        incarnation: 1,
        peers: PeerBook::new([from.spec()])?,
        reception: Reception {
            trust: Arc::new(move |_| registry.clone()),
            introduced: Arc::new(|_, _| async { Ok(()) }.boxed()),
            arrived: Arc::new(move |arrival| {
                let history = arrived.clone();
                async move {
                    let all = numbers(&arrival);
                    for number in &all {
                        history.note(format_args!("arrived {number}"));
                    }
                    vec![Admission::Delivered; all.len()]
                }
                .boxed()
            }),
            rejected: Arc::new(|_| async {}.boxed()),
            introduction: watch::channel(Bytes::new()).1,
        },
        net: simulated(),
        clock: clock::SystemClock::shared(),
        tasks: me.tasks.clone(),
        metrics: me.metrics.clone(),
    };
    let _listener = Listener::bind(config).await?;
    std::future::pending().await
}

async fn sender(me: Side, to: Side, seed: u64, history: History) -> turmoil::Result {
    let mut config = me.link(&to, format!("server:{PORT}"));
    let random = Mutex::new(Seeded(seed ^ 0x5eed));
    config.random = Arc::new(move || random.lock().below(1 << 32) as f64 / (1u64 << 32) as f64);
    (config.net, config.limits) = (simulated(), limits());
    config.reconnect.max = Duration::from_secs(1);
    let link = Link::new(config);
    let mut sending = FuturesUnordered::new();
    let mut pace = Seeded(seed ^ 0xface);
    for number in 0..FRAMES {
        let (link, frame) = (link.clone(), me.frame([number]));
        sending.push(async move { (number, link.send(frame).await) }.boxed());
        clock::sleep(Duration::from_millis(pace.below(100))).await;
        while let Some(Some(ended)) = sending.next().now_or_never() {
            note(&history, ended);
        }
        while sending.len() >= WINDOW
            && let Some(ended) = sending.next().await
        {
            note(&history, ended);
        }
    }
    while let Some(ended) = sending.next().await {
        note(&history, ended);
    }
    // Whatever was, in the end it is connected.
    link.connected().await?;
    let last = link.send(me.frame([FRAMES])).await;
    note(&history, (FRAMES, last));
    Ok(())
}

fn note(history: &History, (number, ended): (u32, Result<Vec<Admission>, LinkError>)) {
    let word = match ended {
        Ok(answers) if answers == [Admission::Delivered] => "delivered",
        Err(LinkError::Down) => "unknown",
        Err(LinkError::NotConnected) => "unsent",
        other => panic!("{other:?}"),
    };
    history.note(format_args!("{word} {number}"));
}

fn strike(sim: &mut Sim<'_>, fault: Fault, history: &History) {
    match fault {
        Fault::Partition => sim.partition("client", "server"),
        Fault::Repair => sim.repair("client", "server"),
        Fault::Hold => sim.hold("client", "server"),
        Fault::Release => sim.release("client", "server"),
        Fault::Crash => sim.crash("server"),
        Fault::Bounce => sim.bounce("server"),
    }
    history
        .0
        .lock()
        .push_str(&format!("{} {fault:?}\n", sim.elapsed().as_millis()));
}

fn history_of(seed: u64) -> History {
    let history = History::default();
    let (from, to) = (Side::new("client"), Side::new("server"));
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .simulation_duration(Duration::from_secs(300))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(40))
        .tcp_capacity(1024)
        .build();
    let (me, other, log) = (to.clone(), from.clone(), history.clone());
    sim.host("server", move || {
        // Each life has its own supervisor: that of a crashed one died with it.
        let me = Side {
            tasks: volary_kernel::task::Supervisor::new(),
            ..me.clone()
        };
        server(me, other.clone(), log.clone())
    });
    sim.client("client", sender(from, to, seed, history.clone()));
    let mut plan = plan(seed).into_iter().peekable();
    loop {
        while let Some((_, fault)) = plan.next_if(|(at, _)| *at <= sim.elapsed()) {
            strike(&mut sim, fault, &history);
        }
        if sim.step().unwrap() {
            return history;
        }
    }
}

fn check(seed: u64, history: &History) {
    let (arrived, delivered) = (history.all("arrived"), history.all("delivered"));
    let (unknown, unsent) = (history.all("unknown"), history.all("unsent"));
    let told = delivered.len() + unknown.len() + unsent.len();
    assert_eq!(
        told,
        FRAMES as usize + 1,
        "seed {seed}: every frame ends once"
    );
    let mut once = HashMap::new();
    for number in &arrived {
        *once.entry(*number).or_insert(0) += 1;
    }
    assert!(
        once.values().all(|times| *times == 1),
        "seed {seed}: none arrives twice"
    );
    let arrived_set: BTreeSet<u32> = arrived.iter().copied().collect();
    assert!(
        delivered.iter().all(|number| arrived_set.contains(number)),
        "seed {seed}: what was answered arrived"
    );
    assert!(
        unsent.iter().all(|number| !arrived_set.contains(number)),
        "seed {seed}: what was not sent did not arrive"
    );
    assert!(
        arrived.is_sorted(),
        "seed {seed}: one sender's frames keep their order"
    );
    assert_eq!(
        delivered.last(),
        Some(&FRAMES),
        "seed {seed}: in the end it is connected"
    );
}

fn seeds() -> u64 {
    if crate::hostile::full() { 200 } else { 12 }
}

/// `VOLARY_TEST_FULL=1`: 200 seeds instead of 12.
#[test]
fn whatever_the_network_does_every_frame_ends_once_and_what_is_answered_arrived() {
    let mut cut = 0;
    for seed in 0..seeds() {
        let history = history_of(seed);
        check(seed, &history);
        cut += history.all("unknown").len();
    }
    assert!(cut > 0, "no seed cut anything: the faults do nothing");
}

#[test]
fn the_same_seed_gives_the_same_history() {
    for seed in [1, 2, 3, 4] {
        let (one, other) = (history_of(seed), history_of(seed));
        let (one, other) = (one.0.lock().clone(), other.0.lock().clone());
        assert_eq!(one, other, "seed {seed}");
        assert!(one.lines().count() > FRAMES as usize);
    }
    let (one, other) = (history_of(1), history_of(2));
    assert_ne!(*one.0.lock(), *other.0.lock());
}
