//! `bus.hooks4`: messages through the local bus of one node with four hooks, from the sender's call until the receiver has
//! counted them, on a runtime of two workers.
//!
//! Everybody carries the same body and waits when the receiver's queue of 1,024 is full (ractor, which has no bound, does
//! not). See [`peers`] for what each promises.

mod ours;
mod peers;

use std::future::Future;

use volary_kernel::clock::{Clock as _, SystemClock};

use crate::figure::Figure;
use crate::rounds::interleaved;
use crate::{Failure, Plan};

/// Places in every bounded queue.
pub const CAPACITY: usize = 1024;

/// The body of every message: 150 bytes.
pub static BODY: [u8; 150] = [7; 150];

pub fn measure(plan: &Plan) -> Result<Vec<Figure>, Failure> {
    let messages = if plan.quick { 300_000 } else { 2_000_000 };
    let [ours, kameo, ractor, tokio] = interleaved([
        &mut || rate(messages, ours::local_bus),
        &mut || rate(messages, peers::kameo_tell),
        &mut || rate(messages, peers::ractor_cast),
        &mut || rate(messages, peers::tokio_channel),
    ])?;
    let figure = Figure::rate("bus.hooks4", "msg/s", 1.0, &ours)
        .limit(&tokio)
        .against_peer(&kameo)
        .with("ractor", crate::figure::rounded(ractor.median()));
    Ok(vec![figure])
}

/// Messages per second of one run on a fresh runtime.
fn rate<F: Future<Output = ()> + Send + 'static>(
    messages: u64,
    run: impl FnOnce(u64) -> F,
) -> Result<f64, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let task = run(messages);
    runtime.block_on(async move {
        let start = SystemClock.mono();
        background(task).await?;
        let passed = SystemClock.mono() - start;
        Ok(messages as f64 / passed.as_secs_f64())
    })
}

/// A task on a worker of the runtime.
#[expect(
    clippy::disallowed_methods,
    reason = "what is measured beside ours has no supervisor, and needs none"
)]
pub fn background<F: Future<Output: Send> + Send + 'static>(
    task: F,
) -> tokio::task::JoinHandle<F::Output> {
    tokio::spawn(task)
}
