//! What the cases of observing and streaming share: bounded waits, and an observer that remembers.

use std::{
    sync::{Arc, Once},
    time::Duration,
};

use parking_lot::Mutex;
use volary_flow::{
    Envelope, RunConfig,
    observe::{FlowEvent, Observer},
};
use volary_kernel::{Tenant, TraceId, clock};

/// Begins the message of a panic that a test wants.
pub const WANTED: &str = "wanted by a test";

/// So many milliseconds.
pub const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

pub fn tenant(name: &str) -> Tenant {
    name.parse().unwrap()
}

/// A payload of a tenant.
pub fn of<T>(name: &str, payload: T) -> Envelope<T> {
    Envelope::new(payload).tenant(tenant(name))
}

/// What `future` yields; it fails the test rather than hang it.
pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match clock::timeout(Duration::from_secs(600), future).await {
        Ok(output) => output,
        Err(_) => panic!("it hangs: {what}"),
    }
}

/// Waits until `done`, which is asked each millisecond.
pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let asked = async {
        while !done() {
            clock::sleep(ms(1)).await;
        }
    };
    soon(what, asked).await;
}

/// Keeps panics that tests want out of their output.
pub fn hush() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !volary_kernel::task::panic_text(panic.payload()).starts_with(WANTED) {
                before(panic);
            }
        }));
    });
}

/// Remembers what happened.
#[derive(Default)]
pub struct Seen(Mutex<Vec<FlowEvent>>);

impl Observer for Seen {
    fn observe(&self, events: &[FlowEvent]) {
        self.0.lock().extend_from_slice(events);
    }
}

impl Seen {
    /// An observer, and a configuration that has it.
    pub fn config() -> (Arc<Self>, RunConfig) {
        let seen = Arc::new(Self::default());
        let config = RunConfig {
            observers: vec![seen.clone()],
            ..RunConfig::default()
        };
        (seen, config)
    }

    /// What was seen of a trace, once its end was.
    pub async fn whole(&self, trace: TraceId) -> Vec<FlowEvent> {
        let of = || {
            let events = self.0.lock();
            let mine = events.iter().filter(|event| event.trace_id == trace);
            mine.cloned().collect::<Vec<_>>()
        };
        let ended = |event: &FlowEvent| event.kind.as_str() == "trace_end";
        until("the end of a trace, as an event", || of().iter().any(ended)).await;
        of()
    }
}
