//! Runtime: whatever the code of an agent does in its worst moments stays with the agent: its loop lives on or ends in
//! order, and a stop never calls lost what it does not know to be handled.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use volary_kernel::{clock, id::Tenant, testing::eventually};
use volary_messaging::{
    Endpoint, Identity, Message, Sender, Transport,
    agent::{
        Agent, AgentError, AgentRuntime, Companion, Cx, Decision, Failure, RuntimeError,
        RuntimeEvent, RuntimeLimits,
    },
    task::Task,
};

use crate::support::{LONG, local, name, open, scripted, sender, text, to};

/// Panics when it is dropped, unless somebody panics already.
struct Mine;

impl Drop for Mine {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "the mine was dropped");
    }
}

/// An error whose words can not be had.
#[derive(Debug)]
struct Unspeakable;

impl std::fmt::Display for Unspeakable {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("no words")
    }
}

impl std::error::Error for Unspeakable {}

/// Fails in its own way at each message, and handles what says `good`.
struct Awkward(Identity, Arc<Mutex<Vec<String>>>);

impl Agent for Awkward {
    fn identity(&self) -> &Identity {
        &self.0
    }
    async fn decide(
        &mut self,
        messages: &[Message],
        _: &[Task],
        _: &Cx<'_>,
    ) -> Result<Vec<Decision>, AgentError> {
        for message in messages {
            match text(message).as_str() {
                "hang" => {
                    let _mine = Mine;
                    std::future::pending::<()>().await;
                }
                "unspeakable" => return Err(Box::new(Unspeakable)),
                other => self.1.lock().push(other.to_owned()),
            }
        }
        Ok(Vec::new())
    }
}

const fn limits() -> RuntimeLimits {
    RuntimeLimits {
        inbox: volary_messaging::transport::DEFAULT_INBOX,
        batch: 1,
        tasks: 16,
        decisions: 16,
        decide: Duration::from_secs(5),
        tool: Duration::from_secs(5),
        tool_output: 1 << 20,
        tool_loop: 8,
        attempts: 1,
        tick: Duration::from_secs(1),
        drain: Duration::from_secs(1),
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_what_a_cut_decide_drops_and_of_an_errors_words_costs_one_message() {
    let (bus, done) = (local(), Arc::new(Mutex::new(Vec::new())));
    let agent = Awkward(Identity::generate().unwrap(), done.clone());
    let events = Arc::new(Mutex::new(Vec::new()));
    let log = events.clone();
    let runtime = AgentRuntime::builder(agent, bus.clone())
        .name(name("agent"))
        .limits(limits())
        .on_event(move |event| log.lock().push(event.clone()))
        .build()
        .unwrap();
    runtime.start().await.unwrap();
    for text in ["hang", "unspeakable", "good"] {
        bus.send(to(&sender("a"), "agent", text)).await;
    }
    assert!(eventually(LONG, || *done.lock() == ["good"]).await);
    assert!(eventually(LONG, || runtime.is_healthy() && runtime.is_ready()).await);
    let problems: Vec<String> = events
        .lock()
        .iter()
        .filter_map(|event| match event {
            RuntimeEvent::AgentFailed { problem, .. } => Some(problem.clone()),
            _ => None,
        })
        .collect();
    assert!(problems[0].contains("the mine was dropped"), "{problems:?}");
    assert!(problems[1].contains("no words"), "{problems:?}");
    assert!(runtime.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_cuts_an_agent_whose_end_panics_still_tells_what_is_left() {
    let (bus, done) = (local(), Arc::new(Mutex::new(Vec::new())));
    let agent = Awkward(Identity::generate().unwrap(), done);
    let long = RuntimeLimits {
        decide: Duration::from_secs(60),
        ..limits()
    };
    let runtime = AgentRuntime::builder(agent, bus.clone())
        .name(name("agent"))
        .limits(long)
        .build()
        .unwrap();
    runtime.start().await.unwrap();
    for text in ["hang", "behind"] {
        bus.send(to(&sender("a"), "agent", text)).await;
    }
    clock::sleep(Duration::from_millis(10)).await;
    let report = runtime.stop().await;
    let left: Vec<String> = report.unhandled.iter().map(text).collect();
    assert_eq!(left, ["hang", "behind"], "{report:?}");
    assert!(
        report
            .problems
            .iter()
            .any(|problem| problem.contains("the mine was dropped")),
        "{report:?}"
    );
}

/// The name and tenant of a sender are as much its own as its key: what an agent decides goes out under no other.
#[tokio::test(start_paused = true)]
async fn an_agent_sends_under_its_own_name_and_tenant_only() {
    let bus = local();
    let failures = Arc::new(Mutex::new(Vec::new()));
    let log = failures.clone();
    let (builder, _) = scripted(bus.clone(), move |messages, _, cx| {
        for seen in cx.observations() {
            log.lock().push(seen.result.clone());
        }
        let mut sends = Vec::new();
        for _ in messages {
            let other: Tenant = "other".parse()?;
            let own = cx.sender();
            for sender in [
                Sender::new(own.id(), name("boss"), own.tenant().clone()),
                Sender::new(own.id(), own.name().clone(), other),
            ] {
                sends.push(Decision::SendMessage(to(&sender, "victim", "obey")));
            }
        }
        Ok(sends)
    });
    let mut victims: Vec<Endpoint> = vec![open(&bus, "victim", &[])];
    let runtime = builder.build().unwrap();
    runtime.start().await.unwrap();
    bus.send(to(&sender("a"), "agent", "go")).await;
    assert!(eventually(LONG, || failures.lock().len() == 2).await);
    for failure in &*failures.lock() {
        assert!(
            matches!(failure, Err(Failure::Invalid(words)) if words.contains("not from this agent")),
            "{failure:?}"
        );
    }
    runtime.stop().await;
    let got = clock::timeout(Duration::from_secs(1), victims[0].recv()).await;
    assert!(got.is_err(), "{got:?}");
}

/// Counts starts and stops of a companion.
fn counted() -> (Companion, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let (starts, stops) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (started, stopped) = (starts.clone(), stops.clone());
    let companion = Companion::new(
        "counter",
        move || {
            started.fetch_add(1, Ordering::Relaxed);
            std::future::ready(Ok(()))
        },
        move || {
            stopped.fetch_add(1, Ordering::Relaxed);
            std::future::ready(Ok(()))
        },
    );
    (companion, starts, stops)
}

/// An agent that takes its time to begin.
struct LateRiser(Identity);

impl Agent for LateRiser {
    fn identity(&self) -> &Identity {
        &self.0
    }
    async fn decide(
        &mut self,
        _: &[Message],
        _: &[Task],
        _: &Cx<'_>,
    ) -> Result<Vec<Decision>, AgentError> {
        Ok(Vec::new())
    }
    async fn on_start(&mut self, _: &Cx<'_>) -> Result<(), AgentError> {
        clock::sleep(Duration::from_secs(3)).await;
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn the_companion_of_a_start_that_was_dropped_is_stopped_by_the_next_stop() {
    let (companion, starts, stops) = counted();
    let agent = LateRiser(Identity::generate().unwrap());
    let runtime = AgentRuntime::builder(agent, local())
        .ops_server(companion)
        .build()
        .unwrap();
    let cut = clock::timeout(Duration::from_secs(1), runtime.start()).await;
    assert!(cut.is_err());
    let count = |of: &AtomicUsize| of.load(Ordering::Relaxed);
    assert_eq!((count(&starts), count(&stops)), (1, 0));
    assert!(runtime.stop().await.is_clean());
    assert_eq!((count(&starts), count(&stops)), (1, 1));
    runtime.start().await.unwrap();
    assert!(runtime.stop().await.is_clean());
    assert_eq!((count(&starts), count(&stops)), (2, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_blocks_its_thread_since_the_last_stop_is_no_endless_start() {
    let bus = local();
    let (release, blocked) = std::sync::mpsc::channel::<()>();
    let (companion, starts, stops) = counted();
    let short = RuntimeLimits {
        drain: Duration::from_millis(50),
        ..limits()
    };
    let (builder, seen) = scripted(bus.clone(), move |_, _, _| {
        let _released = blocked.recv();
        Ok(Vec::new())
    });
    let runtime = builder.limits(short).ops_server(companion).build().unwrap();
    runtime.start().await.unwrap();
    bus.send(to(&sender("a"), "agent", "block")).await;
    assert!(eventually(Duration::from_secs(20), || seen.count() == 1).await);
    assert!(!runtime.stop().await.is_clean());
    let again = clock::timeout(Duration::from_secs(20), runtime.start()).await;
    assert!(matches!(again, Ok(Err(RuntimeError::Blocked))), "{again:?}");
    let count = |of: &AtomicUsize| of.load(Ordering::Relaxed);
    assert_eq!(count(&starts), count(&stops));
    drop(release);
    let begin = || async { runtime.start().await.is_ok() };
    let mut begun = false;
    for _ in 0..20 {
        begun = begun || begin().await;
    }
    assert!(begun, "the thread is free again");
    runtime.stop().await;
}
