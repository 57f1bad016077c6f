//! Two nodes in two network namespaces talk over TLS, while the cable between them is cut and each of them is killed.
//!
//! The durable topic loses nothing, and each message counts once at a sink that deduplicates by key; of the topic that is
//! sent at most once, each message is accounted for.

#![expect(
    clippy::print_stdout,
    reason = "a long test tells whoever runs it how far it is"
)]

mod agent;
mod wires;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use serde_json::Value;
use volary_testkit::process::{eventually, kill9};

use self::{
    agent::TestAgent,
    wires::{Cut, End, Wires},
};
use crate::support::{Agent, Fleet, PATIENCE, full};

/// Messages of one batch of the sender.
const BATCH: u64 = 250;
/// Messages of one batch that is sent at most once: a few frames, so that some of it is on the wire when it is cut.
const ONCE_BATCH: u64 = 100;

/// Hands out its token, which nobody else can see, and idles.
const IDLER: &str = "cat \"$VOLARY_TOKEN_FILE\" > ../token.new && mv ../token.new ../token\ntrap 'exit 0' TERM\n\
                     while :; do sleep 1; done\n";

/// How much there is to do.
struct Size {
    durable: u64,
    once: u64,
    /// How long all of it may take.
    limit: Duration,
}

fn size() -> Size {
    if full() {
        Size {
            durable: 900_000,
            once: 100_000,
            limit: Duration::from_secs(3600),
        }
    } else {
        Size {
            durable: 4_000,
            once: 1_000,
            limit: Duration::from_secs(120),
        }
    }
}

fn fleet(name: &'static str, agent: &str, wires: &Wires, end: End) -> Fleet {
    let spec = "command: [sh, ./run.sh]\ntopics: [work, load]\nstopGracePeriod: 1s\n\
                delivery: {timeout: 5s, maxAttempts: 1000}\n";
    let silent = "command: [sh, ./run.sh]\nstopGracePeriod: 1s\n";
    let spec = if agent == "sink" { spec } else { silent };
    let agents = [Agent {
        name: agent,
        spec,
        script: IDLER,
    }];
    let mut fleet = Fleet::named(name, &agents, "");
    fleet.netns = Some(wires.namespace(end));
    fleet
}

fn entry(fleet: &Fleet, address: &str) -> String {
    fleet
        .run(&[
            "identity",
            "peer",
            "fleet",
            "--address",
            &format!("{address}:7400"),
        ])
        .ok()
        .stdout
        .lines()
        .map(|line| format!("    {line}\n"))
        .collect()
}

fn meet(fleet: &Fleet, name: &str, agent: &str, peer: &str) {
    // Short, so that a link that hears nothing is given up soon.
    let messaging = format!(
        "messaging:\n  listen: 0.0.0.0:7400\n  peers:\n{peer}  atMostOnce: [load]\n  limits: {{idle: 4s, stall: 3s}}\n  \
         inbox: {{maxItems: 2000000, maxBytes: 1GiB}}\nretention: {{maxAge: 1d, maxBytes: 16GiB}}\n"
    );
    fleet.manifest(name, &[agent], &messaging);
}

/// What the sender knows.
#[derive(Default)]
struct Sent {
    /// Numbers that the node said it has.
    accepted: BTreeSet<u64>,
    /// Numbers that were sent at most once and whose fate the node counts.
    once: u64,
    /// Of those, by the sender's account: they have arrived, were turned back, were given up or never answered.
    account: [u64; 3],
}

/// What the sink has seen.
#[derive(Default)]
struct Seen {
    /// Keys by number, of the durable topic.
    work: HashMap<u64, HashSet<String>>,
    /// Keys of the other.
    load: HashSet<String>,
    /// Deliveries, repeats too.
    deliveries: u64,
}

struct World<'a> {
    west: &'a Fleet,
    east: &'a Fleet,
    wires: &'a Wires,
    size: Size,
    sent: Mutex<Sent>,
    seen: Mutex<Seen>,
    /// Held for reading by whoever sends at most once, for writing while the sender's account is closed.
    account: RwLock<()>,
    durable_done: AtomicBool,
    once_done: AtomicBool,
    over: AtomicBool,
    chance: AtomicU64,
}

impl World<'_> {
    /// The next of a sequence of numbers that look random.
    fn chance(&self, below: u64) -> u64 {
        let step = |x: u64| {
            x.wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407)
        };
        let last = self
            .chance
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |x| Some(step(x)));
        (last.unwrap_or_default() >> 33) % below
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Sends durable messages until all are accepted. A number whose batch was not answered is never sent again: nobody
    /// knows whether it is on its way.
    fn send_durable(&self) {
        let mut agent = TestAgent::new(self.west);
        let (mut next, mut again) = (0, Vec::new());
        loop {
            let accepted = self.sent.lock().accepted.len() as u64;
            if accepted >= self.size.durable || self.is_over() {
                break;
            }
            let mut numbers: Vec<u64> = std::mem::take(&mut again);
            while (numbers.len() as u64) < BATCH.min(self.size.durable - accepted) {
                numbers.push(next);
                next += 1;
            }
            let Some(answers) = agent.post("work", &numbers) else {
                continue;
            };
            let mut sent = self.sent.lock();
            for (n, answer) in numbers.iter().zip(&answers) {
                match answer.as_str() {
                    "queued" => drop(sent.accepted.insert(*n)),
                    // The outbox is full: not accepted, so it may be sent again.
                    "refused" => again.push(*n),
                    other => panic!("{other}"),
                }
            }
            drop(sent);
            if !again.is_empty() {
                pause(100);
            }
        }
        self.durable_done.store(true, Ordering::Relaxed);
    }

    fn send_once(&self) {
        let mut agent = TestAgent::new(self.west);
        let mut next = 0;
        while next < self.size.once && !self.is_over() {
            let open = self.account.read();
            let numbers: Vec<u64> = (next..next + ONCE_BATCH).collect();
            if let Some(answers) = agent.post("load", &numbers) {
                assert!(answers.iter().all(|answer| answer == "sent"), "{answers:?}");
                next += ONCE_BATCH;
                self.sent.lock().once += ONCE_BATCH;
            }
            drop(open);
            pause(if full() { 5 } else { 50 });
        }
        self.once_done.store(true, Ordering::Relaxed);
    }

    fn receive(&self) {
        let mut agent = TestAgent::new(self.east);
        while !self.is_over() {
            let items = agent.receive();
            if items.is_empty() {
                continue;
            }
            let claims: Vec<String> = items.iter().map(|item| item.0.clone()).collect();
            let mut seen = self.seen.lock();
            for (_, key, topic, n) in items {
                seen.deliveries += 1;
                match topic.as_str() {
                    "work" => drop(seen.work.entry(n).or_default().insert(key)),
                    _ => drop(seen.load.insert(key)),
                }
            }
            drop(seen);
            agent.ack(&claims);
        }
    }

    /// The sender's account of its present life, once nothing of it is on its way.
    fn close_account(&self) {
        let counts = || -> Option<[u64; 4]> {
            let output = self
                .west
                .run(&["identity", "peers", "--json", "-C", "fleet"]);
            let peers: Value = serde_json::from_str(&output.stdout).ok()?;
            let once = &peers["peers"][0]["once"];
            let count = |key: &str| once[key].as_u64();
            Some([
                count("offered")?,
                count("delivered")?,
                count("refused")?,
                count("dropped")?,
            ])
        };
        let mut last = None;
        let closed = eventually(PATIENCE, || {
            last = counts();
            last.is_some_and(|[offered, rest @ ..]| offered == rest.iter().sum::<u64>())
        });
        assert!(
            closed,
            "offered is not delivered + refused + dropped: {last:?}\n{}",
            self.west.node_log()
        );
        let [_, parts @ ..] = last.unwrap_or_default();
        let mut sent = self.sent.lock();
        sent.account
            .iter_mut()
            .zip(parts)
            .for_each(|(sum, part)| *sum += part);
    }

    /// One misfortune after the other, until all is sent.
    fn trouble(&self) -> [u32; 5] {
        let mut happened = [0; 5];
        let cuts = [Cut::Down, Cut::BlackHole, Cut::Reset];
        // Each of them happens, in whatever order.
        for round in 0_u32.. {
            let all_sent =
                self.durable_done.load(Ordering::Relaxed) && self.once_done.load(Ordering::Relaxed);
            if self.is_over() || (all_sent && happened.iter().all(|count| *count > 0)) {
                break;
            }
            pause(if full() {
                2_000 + self.chance(8_000)
            } else {
                200 + self.chance(400)
            });
            let which = match happened.iter().position(|count| *count == 0) {
                Some(first) if round % 2 == 0 => first,
                _ => usize::try_from(self.chance(5)).unwrap(),
            };
            happened[which] += 1;
            println!("{}", self.progress(which));
            match which {
                0..=2 => {
                    self.wires.cut(cuts[which]);
                    pause(300 + self.chance(if full() { 6_000 } else { 1_200 }));
                    self.wires.mend(cuts[which]);
                }
                3 => {
                    kill9(self.east.pid());
                    self.up(self.east);
                }
                _ => {
                    let _nothing_is_sent_once = self.account.write();
                    self.close_account();
                    kill9(self.west.pid());
                    self.up(self.west);
                }
            }
        }
        happened
    }

    /// Where it stands, for who watches a long run.
    fn progress(&self, next: usize) -> String {
        let (sent, seen) = (self.sent.lock(), self.seen.lock());
        let what = ["down", "black hole", "reset", "kill east", "kill west"][next];
        let now = volary_kernel::Clock::wall(&volary_kernel::SystemClock);
        format!(
            "{now} accepted {} seen {} once {} seen {}, then {what}",
            sent.accepted.len(),
            seen.work.len(),
            sent.once,
            seen.load.len()
        )
    }

    /// Starts a node that was killed, and looks at what it left first.
    fn up(&self, fleet: &Fleet) {
        let gone = eventually(PATIENCE, || fleet.env.survivors().is_empty());
        assert!(gone, "{}", fleet.env.survivors_shown());
        fleet.up();
    }

    /// Waits until the sink has all that was accepted.
    fn settle(&self) -> bool {
        eventually(self.size.limit, || {
            let (sent, seen) = (self.sent.lock(), self.seen.lock());
            // The counts first: whoever receives needs the lock, and a million lookups take their time.
            seen.work.len() >= sent.accepted.len()
                && sent.accepted.iter().all(|n| seen.work.contains_key(n))
        })
    }
}

fn pause(millis: u64) {
    let _always_passes = eventually(Duration::from_millis(millis), || false);
}

#[test]
fn cuts_and_kills_lose_nothing_durable_and_everything_else_is_accounted_for() {
    let wires = Wires::new();
    let west = fleet("west", "source", &wires, End::West);
    let east = fleet("east", "sink", &wires, End::East);
    let to_east = entry(&east, wires.address(End::East));
    meet(
        &east,
        "east",
        "sink",
        &entry(&west, wires.address(End::West)),
    );
    meet(&west, "west", "source", &to_east);
    east.up();
    west.up();
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let world = World {
        west: &west,
        east: &east,
        wires: &wires,
        size: size(),
        sent: Mutex::default(),
        seen: Mutex::default(),
        account: RwLock::default(),
        durable_done: AtomicBool::new(false),
        once_done: AtomicBool::new(false),
        over: AtomicBool::new(false),
        chance: AtomicU64::new(seed),
    };
    let introduced = eventually(PATIENCE, || {
        let output = west.run(&["identity", "peers", "--json", "-C", "fleet"]);
        serde_json::from_str::<Value>(&output.stdout)
            .is_ok_and(|peers| peers["peers"][0]["agents"].as_u64() > Some(0))
    });
    assert!(introduced, "{}", west.node_log());
    let (happened, settled) = std::thread::scope(|scope| {
        let over = Over(&world.over);
        scope.spawn(|| world.send_durable());
        scope.spawn(|| world.send_once());
        scope.spawn(|| world.receive());
        let happened = world.trouble();
        let settled = world.settle();
        world.close_account();
        drop(over);
        (happened, settled)
    });
    judge(&world, happened, settled);
    for fleet in [&west, &east] {
        fleet.down();
        let (good, report) = fleet.verify();
        assert!(good, "{report}");
    }
}

/// Ends the others when the test fails too, so that its scope can end.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn judge(world: &World<'_>, happened: [u32; 5], settled: bool) {
    let (sent, seen) = (world.sent.lock(), world.seen.lock());
    let lost = sent.accepted.iter().filter(|n| !seen.work.contains_key(n));
    let lost: Vec<_> = lost.take(20).collect();
    println!(
        "{} durable accepted, {} seen, {} deliveries; at most once {} sent, account [delivered, refused, dropped] {:?}, {} \
         seen; cuts down {}, black hole {}, reset {}; kills east {}, west {}",
        sent.accepted.len(),
        seen.work.len(),
        seen.deliveries,
        sent.once,
        sent.account,
        seen.load.len(),
        happened[0],
        happened[1],
        happened[2],
        happened[3],
        happened[4],
    );
    assert!(
        settled && lost.is_empty(),
        "lost: {lost:?}\n{}\n{}",
        world.west.node_log(),
        world.east.node_log()
    );
    let twice: Vec<_> = seen
        .work
        .iter()
        .filter(|(_, keys)| keys.len() > 1)
        .take(20)
        .collect();
    assert!(twice.is_empty(), "an effect counts twice: {twice:?}");
    let [delivered, refused, dropped] = sent.account;
    assert_eq!(sent.once, delivered + refused + dropped);
    let arrived = seen.load.len() as u64;
    assert!(
        (delivered..=delivered + dropped).contains(&arrived),
        "{arrived} have arrived, {delivered} were delivered and {dropped} dropped"
    );
    assert!(
        delivered > 0,
        "nothing that was sent at most once has arrived"
    );
}
