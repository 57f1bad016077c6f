//! `flow.stream`: chunks from a node to whoever reads its trace, in order and with back-pressure.
//!
//! Peer: the same pieces, numbered by hand, over a bounded channel of as many places. Bar: half of it; what PenguiFlow did
//! stands beside.

use std::time::Duration;

use tokio::sync::mpsc;
use volary_flow::graph::{Flow, FlowBuilder};
use volary_flow::stream::StreamChunk;
use volary_flow::{Context, Item, Meta, NodeError};
use volary_kernel::TraceId;
use volary_kernel::clock::{Clock as _, SystemClock};

use super::hand::CAPACITY;
use super::load::Envelopes;
use super::ours;
use super::recorded::STREAM;
use crate::bus::background;
use crate::figure::{Figure, rounded};
use crate::rounds::interleaved;
use crate::{Failure, Plan};

/// Ratio to a bare channel.
const BAR: f64 = 0.5;
/// A piece, as long as some words of a model.
const TEXT: &str = "some words ";

pub fn measure(plan: &Plan) -> Result<Vec<Figure>, Failure> {
    let chunks = if plan.quick { 100_000 } else { 1_000_000 };
    let [ours, peer] = interleaved([&mut || our_rate(chunks), &mut || channel_rate(chunks)])?;
    let figure = Figure::rate("flow.stream", "chunk/s", BAR, &ours).against_peer(&peer);
    let times = rounded(ours.median() / STREAM);
    Ok(vec![figure.with("penguiflow_times", times)])
}

async fn speak(chunks: u64, context: Context) -> Result<u64, NodeError> {
    for _ in 0..chunks {
        context.chunk(TEXT).await?;
    }
    Ok(chunks)
}

fn flow() -> Result<Flow<u64, u64>, Failure> {
    let mut builder = FlowBuilder::<u64, u64>::new("stream");
    let node = builder.node("speak", speak);
    builder.ingress(node);
    builder.egress(node);
    Ok(builder.build()?)
}

fn our_rate(chunks: u64) -> Result<f64, Failure> {
    let flow = flow()?;
    crate::store::runtime()?.block_on(async {
        let running = flow.start(ours::observed(true).0);
        let emitting = running.clone();
        let start = SystemClock.mono();
        let read = background(async move {
            let emitted = emitting.emit(Envelopes::new().make(chunks)).await;
            let mut handle = emitted.map_err(Failure::from)?;
            let mut next = 0;
            while let Some(item) = handle.next().await {
                if let Item::Chunk(chunk) = item {
                    check(&chunk, &mut next)?;
                }
            }
            Ok::<u64, Failure>(next)
        });
        let read = read.await??;
        let passed = SystemClock.mono() - start;
        ours::stop(&running).await?;
        rate(read, chunks, passed)
    })
}

fn channel_rate(chunks: u64) -> Result<f64, Failure> {
    crate::store::runtime()?.block_on(async {
        let start = SystemClock.mono();
        let (sender, mut receiver) = mpsc::channel(CAPACITY);
        background(async move {
            let trace = TraceId::generate();
            for seq in 0..chunks {
                let chunk = StreamChunk {
                    stream_id: trace.to_string(),
                    seq,
                    text: TEXT.to_owned(),
                    done: false,
                    meta: Meta::default(),
                };
                if sender.send(chunk).await.is_err() {
                    return;
                }
            }
        });
        let read = background(async move {
            let mut next = 0;
            while let Some(chunk) = receiver.recv().await {
                check(&chunk, &mut next)?;
            }
            Ok::<u64, Failure>(next)
        });
        let read = read.await??;
        rate(read, chunks, SystemClock.mono() - start)
    })
}

/// The next piece, and no other.
fn check(chunk: &StreamChunk, next: &mut u64) -> Result<(), Failure> {
    if chunk.seq != *next || chunk.text != TEXT {
        return Err(format!("piece {} came where {next} was due", chunk.seq).into());
    }
    *next += 1;
    Ok(())
}

fn rate(read: u64, sent: u64, passed: Duration) -> Result<f64, Failure> {
    if read != sent {
        return Err(format!("{read} of {sent} pieces arrived").into());
    }
    Ok(read as f64 / passed.as_secs_f64())
}
