//! The loads: who emits, and who waits for which answers.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::future::Future;
use std::time::Duration;

use serde_json::json;
use volary_flow::{Envelope, Meta};
use volary_kernel::Tenant;
use volary_kernel::clock::{Clock as _, SystemClock};

use crate::Failure;
use crate::bus::background;

/// Answers that the one producer waits for at most, before it emits more.
pub const WINDOW: usize = 256;
/// Traces at once, each of whom emits when it has its answer.
pub const TRACES: usize = 1_000;

/// What takes envelopes and answers each of them.
pub trait Service: Clone + Send + 'static {
    /// Who waits for an answer.
    type Pending: Send;

    /// Hands one over; waits while there is no room.
    fn emit(&self, envelope: Envelope<u64>) -> impl Future<Output = Self::Pending> + Send;

    /// Waits for the answer, with which the trace has ended.
    fn answer(pending: Self::Pending) -> impl Future<Output = ()> + Send;
}

/// Makes full envelopes: each has a trace of its own; tenant and facts are shared.
#[derive(Clone)]
pub struct Envelopes {
    tenant: Tenant,
    meta: Meta,
}

impl Envelopes {
    pub fn new() -> Self {
        let facts = BTreeMap::from([("request".to_owned(), json!("bench"))]);
        Self {
            tenant: Tenant::default(),
            meta: facts.into(),
        }
    }

    pub fn of(tenant: Tenant) -> Self {
        Self {
            tenant,
            ..Self::new()
        }
    }

    pub fn make(&self, number: u64) -> Envelope<u64> {
        let mut envelope = Envelope::new(number);
        envelope.headers.tenant = self.tenant.clone();
        envelope.meta = self.meta.clone();
        envelope
    }
}

/// A way of loading a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// One task emits, up to [`WINDOW`] answers ahead.
    Producer,
    /// [`TRACES`] tasks, each with one trace at a time.
    Traces,
}

impl Load {
    pub const ALL: [Self; 2] = [Self::Producer, Self::Traces];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Producer => "producer",
            Self::Traces => "traces",
        }
    }

    /// Answers per second.
    pub async fn run(self, service: impl Service, time: Duration) -> Result<f64, Failure> {
        let start = SystemClock.mono();
        let answers = match self {
            Self::Producer => background(produce(service, time)).await?,
            Self::Traces => trace(service, time).await?,
        };
        Ok(answers as f64 / (SystemClock.mono() - start).as_secs_f64())
    }
}

/// Emits until the time is over, and waits for the rest.
async fn produce<S: Service>(service: S, time: Duration) -> u64 {
    let (envelopes, start) = (Envelopes::new(), SystemClock.mono());
    let mut waiting = VecDeque::with_capacity(WINDOW);
    let mut number = 0;
    // The clock is read once in a window: everybody pays for it alike, and little.
    while number % WINDOW as u64 != 0 || SystemClock.mono() - start < time {
        if waiting.len() == WINDOW
            && let Some(oldest) = waiting.pop_front()
        {
            S::answer(oldest).await;
        }
        waiting.push_back(service.emit(envelopes.make(number)).await);
        number += 1;
    }
    for pending in waiting {
        S::answer(pending).await;
    }
    number
}

/// Lets many tasks emit until the time is over.
async fn trace<S: Service>(service: S, time: Duration) -> Result<u64, Failure> {
    let start = SystemClock.mono();
    let tasks: Vec<_> = (0..TRACES)
        .map(|_| {
            let (service, envelopes) = (service.clone(), Envelopes::new());
            background(async move {
                let mut number = 0;
                while number % 8 != 0 || SystemClock.mono() - start < time {
                    S::answer(service.emit(envelopes.make(number)).await).await;
                    number += 1;
                }
                number
            })
        })
        .collect();
    let mut answers = 0;
    for task in tasks {
        answers += task.await?;
    }
    Ok(answers)
}
