//! That memory returns to where it was: in a process of its own, with an allocator that counts.
//!
//! 20,000 traces; a million with `VOLARY_TEST_FULL=1`.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicIsize, Ordering},
};

use volary_flow::{Context, EmitError, FlowBuilder, Limits, NodeError, graph::RunningFlow};
use volary_kernel::clock;

use crate::support::{config, is_full, ms, of, tenant, trace, until};

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "each test binary uses a part of it")]
mod support;

/// Bytes that are allocated.
static LIVE: AtomicIsize = AtomicIsize::new(0);

struct Counting;

fn count(bytes: usize, sign: isize) {
    LIVE.fetch_add(
        sign * isize::try_from(bytes).unwrap_or(isize::MAX),
        Ordering::Relaxed,
    );
}

// SAFETY: every call goes to the system's allocator with the arguments it came with; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: the caller keeps the contract of `alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(layout.size(), -1);
        // SAFETY: the caller keeps the contract of `dealloc`, and what we gave out came from the same allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Traces with every kind of end, 200 at once; each is read, or expires.
async fn wave(flow: &RunningFlow<u64, u64>, numbers: std::ops::Range<u64>) {
    let all = numbers.map(|n| async move {
        let name = ["ann", "bob", "cid"][usize::try_from(n % 3).unwrap_or(0)];
        let id = trace(n);
        let envelope = of(name, n).trace(id).priority((n % 4) as u8);
        let envelope = match n % 11 {
            3 => envelope.deadline(ms(2)),
            _ => envelope,
        };
        let mut handle = match flow.emit(envelope).await {
            Ok(handle) => handle,
            Err(EmitError::DeadlineExceeded) => return,
            Err(error) => panic!("{error}"),
        };
        match n % 11 {
            0 => drop(flow.cancel(id, &tenant(name))),
            1 => return,
            2 => {
                let _gave_up = clock::timeout(ms(1), handle.next()).await;
            }
            _ => {}
        }
        let _any = handle.outcome().await;
    });
    futures_util::future::join_all(all).await;
}

async fn settle(flow: &RunningFlow<u64, u64>) -> isize {
    until("rest", || flow.depths().traces == 0).await;
    clock::sleep(ms(10_000)).await;
    LIVE.load(Ordering::Relaxed)
}

#[tokio::test(start_paused = true)]
async fn memory_returns_to_its_start() {
    let mut b = FlowBuilder::<u64, u64>::new("memory");
    let split = b.node("split", |n: u64, context: Context| async move {
        if n % 11 == 5 {
            context.chunk("piece").await?;
        }
        Ok(n)
    });
    let one = b.node("one", |n: u64, context: Context| async move {
        if n % 11 == 4 && context.attempt() == 1 {
            return Err(NodeError::retryable("once"));
        }
        Ok(n)
    });
    b.policy(
        one,
        volary_flow::policy::NodePolicy {
            max_retries: 1,
            concurrency: 4,
            ..Default::default()
        },
    );
    let two = b.node("two", |n: u64, _: Context| async move {
        if n % 11 == 6 {
            return Err(NodeError::permanent("never"));
        }
        if n.is_multiple_of(2) {
            clock::sleep(ms(1)).await;
        }
        Ok(n)
    });
    let join = b.join_all("join");
    let last = b.node("last", |all: Vec<u64>, _: Context| async move {
        Ok(all.len() as u64)
    });
    b.connect(split, one).connect(split, two).connect(one, join);
    b.connect(two, join).connect(join, last);
    b.ingress(split).egress(last);
    let mut settings = config();
    settings.limits = Limits {
        result_ttl: ms(1_000),
        ..Limits::default()
    };
    let flow = b.build().expect("it is a good graph").start(settings);
    let waves: u64 = if is_full() { 5_000 } else { 100 };
    // Pools, maps and queues grow to what 200 traces at once need.
    for at in 0..25 {
        wave(&flow, at * 200..(at + 1) * 200).await;
    }
    let before = settle(&flow).await;
    for at in 25..25 + waves {
        wave(&flow, at * 200..(at + 1) * 200).await;
    }
    let after = settle(&flow).await;
    let grown = after - before;
    assert!(
        grown.abs() < 64 * 1_024,
        "{grown} bytes after {} traces",
        waves * 200
    );
}
