//! What the tests of flows share: tenants, bounded waits, an observer that remembers, dice.

use std::{
    sync::{Arc, Once},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::Notify;
use volary_flow::{
    Envelope, RunConfig,
    observe::{FlowEvent, Observer},
};
use volary_kernel::{Tenant, TraceId, clock, task::Supervisor};

/// A millisecond.
pub const MS: Duration = Duration::from_millis(1);

/// Longer than anything in a test takes on its paused clock: what is waited for so long hangs.
pub const HANGS: Duration = Duration::from_secs(60);

/// So many milliseconds.
pub const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

pub fn tenant(name: &str) -> Tenant {
    name.parse().expect("it is a name")
}

/// A payload of a tenant.
pub fn of<T>(name: &str, payload: T) -> Envelope<T> {
    Envelope::new(payload).tenant(tenant(name))
}

/// The trace of a number.
pub fn trace(number: u64) -> TraceId {
    let id = u128::from(number) + 1;
    TraceId::from_bytes(id.to_be_bytes()).expect("it is not zero")
}

/// What `future` yields; it fails the test rather than hang it.
pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match clock::timeout(HANGS, future).await {
        Ok(output) => output,
        Err(_) => panic!("it hangs: {what}"),
    }
}

/// Waits until `done`, which is asked each millisecond.
pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let asked = async {
        while !done() {
            clock::sleep(MS).await;
        }
    };
    soon(what, asked).await;
}

/// A configuration of its own supervisor.
pub fn config() -> RunConfig {
    RunConfig {
        supervisor: Supervisor::new(),
        ..RunConfig::default()
    }
}

/// Remembers what happened.
#[derive(Default)]
pub struct Seen {
    events: Mutex<Vec<FlowEvent>>,
    more: Notify,
}

impl Observer for Seen {
    fn observe(&self, events: &[FlowEvent]) {
        self.events.lock().extend_from_slice(events);
        self.more.notify_waiters();
    }
}

impl Seen {
    /// An observer, and a configuration that has it.
    pub fn config() -> (Arc<Self>, RunConfig) {
        let seen = Arc::new(Self::default());
        let mut config = config();
        config.observers.push(seen.clone());
        (seen, config)
    }

    /// What was seen of a trace so far.
    pub fn of(&self, trace: TraceId) -> Vec<FlowEvent> {
        let events = self.events.lock();
        events
            .iter()
            .filter(|event| event.trace_id == trace)
            .cloned()
            .collect()
    }

    /// The names of what was seen of a trace so far.
    pub fn names(&self, trace: TraceId) -> Vec<&'static str> {
        let events = self.of(trace);
        events.iter().map(|event| event.kind.as_str()).collect()
    }

    /// How often something was seen, of whatever trace.
    pub fn count(&self, name: &str) -> usize {
        let events = self.events.lock();
        let same = events.iter().filter(|event| event.kind.as_str() == name);
        same.count()
    }

    /// Waits until something was seen so often.
    pub async fn wait(&self, name: &str, times: usize) {
        let what = format!("{name}, {times} times");
        until(&what, || self.count(name) >= times).await;
    }

    /// Waits until a trace ended and its end was told of; returns all names of it.
    pub async fn whole(&self, trace: TraceId) -> Vec<&'static str> {
        until("the end of a trace, as an event", || {
            self.names(trace).contains(&"trace_end")
        })
        .await;
        self.names(trace)
    }
}

/// Whether the full size of the tests is asked for: `VOLARY_TEST_FULL=1`.
#[expect(
    clippy::disallowed_methods,
    reason = "tests may be asked for their full size"
)]
pub fn is_full() -> bool {
    std::env::var_os("VOLARY_TEST_FULL").is_some_and(|value| value == "1")
}

/// Begins the message of a panic that a test wants.
pub const WANTED: &str = "on purpose";

/// Keeps panics that tests want out of their output.
pub fn hush() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let text = volary_kernel::task::panic_text(panic.payload());
            if !text.starts_with(WANTED) {
                before(panic);
            }
        }));
    });
}

/// Numbers that look random and are the same each time.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// From 0, below `end`.
    pub const fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// From `start`, up to `end`.
    pub const fn within(&mut self, start: u64, end: u64) -> u64 {
        start + self.below(end - start + 1)
    }

    /// True so many times of a hundred.
    pub const fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Copy>(&mut self, among: &[T]) -> T {
        let at = self.below(among.len() as u64);
        among[usize::try_from(at).unwrap_or_default()]
    }
}

/// One number of several, in their order.
pub fn hash(parts: &[u64]) -> u64 {
    let add = |sum: u64, part: &u64| mix(sum.rotate_left(7) ^ mix(part.wrapping_add(1)));
    parts.iter().fold(0x51ed_270b, add)
}

const fn mix(number: u64) -> u64 {
    let a = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let b = (a ^ (a >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    b ^ (b >> 31)
}
