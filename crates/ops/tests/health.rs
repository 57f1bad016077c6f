//! `/health` and `/ready` tell the truth: at start, with a wedged runtime, under load, and while stopping.

mod common;

use std::{
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use common::{LONG, get, raw, start, status};
use volary_kernel::{
    task::{Supervisor, TaskKind},
    testing::eventually,
};
use volary_ops::api::HealthStatus;

#[tokio::test(flavor = "multi_thread")]
async fn readiness_is_503_until_every_latch_is_set() {
    let ops = start(|_| {});
    let latch = ops.readiness.latch("store");
    let (ready, document) = ops.operator().probe("/ready").await.unwrap();
    assert_eq!((ready, document.status), (false, HealthStatus::NotReady));
    assert_eq!(document.checks[0].reason.as_deref(), Some("starting"));
    latch.set_ready();
    assert!(ops.operator().probe("/ready").await.unwrap().0);
    let (healthy, document) = ops.operator().probe("/health").await.unwrap();
    assert!(
        healthy && document.checks.iter().any(|check| check.name == "runtime"),
        "{document:?}"
    );
}

#[test]
fn health_turns_503_within_5_s_when_the_main_runtime_is_wedged_and_back_when_it_is_not() {
    let main = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let entered = main.enter();
    let ops = start(|_| {});
    let (blocked, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Barrier::new(3)));
    let wedge = Supervisor::new();
    drop(entered);
    let watcher = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let probe = |path: &str| status(&raw(ops.address(), &get(path, &[])));
    assert_eq!(probe("/health"), 200);
    // 10,000 entries wait, 200 requests come: none of it may hold the answer up.
    main.block_on(async {
        for _ in 0..10_000 {
            ops.append("dispatch.enqueued", r#"{"v":1}"#).await;
        }
        for _ in 0..2 {
            let (blocked, gate) = (blocked.clone(), gate.clone());
            wedge.spawn(TaskKind::new("wedge"), async move {
                blocked.fetch_add(1, Ordering::SeqCst);
                gate.wait();
                Ok(())
            });
        }
    });
    watcher.block_on(async {
        assert!(eventually(LONG, || blocked.load(Ordering::SeqCst) == 2).await);
        let load = Supervisor::new();
        for _ in 0..200 {
            let client = ops.operator();
            load.spawn(TaskKind::new("load"), async move {
                let error = client.text("/v1/who").await.unwrap_err();
                assert_eq!(error.code(), Some("V6010"), "{error}");
                Ok(())
            });
        }
        assert!(
            eventually(Duration::from_secs(5), || probe("/health") == 503).await,
            "still healthy after 5 s"
        );
        let document = raw(ops.address(), &get("/health", &[]));
        assert!(
            document.contains("\"name\":\"runtime\",\"ok\":false"),
            "{document}"
        );
        assert_eq!(probe("/metrics"), 200);
        assert_eq!(
            load.drain(LONG).await,
            volary_kernel::task::DrainReport::default()
        );
        gate.wait();
        assert!(
            eventually(Duration::from_secs(5), || probe("/health") == 200).await,
            "not healthy again"
        );
        let _ = ops.operator().text("/v1/who").await.unwrap();
    });
    assert!(main.block_on(ops.stop()).aborted.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_that_fell_silent_is_named() {
    let ops = start(|_| {});
    let heartbeat = ops.readiness.heartbeat("dispatcher", Duration::ZERO);
    let document = raw(ops.address(), &get("/health", &[]));
    assert_eq!(status(&document), 503);
    assert!(
        document.contains("dispatcher") && document.contains("silent for"),
        "{document}"
    );
    heartbeat.retire();
    assert_eq!(status(&raw(ops.address(), &get("/health", &[]))), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_lets_an_open_request_finish_and_says_not_ready_meanwhile() {
    let ops = start(|_| {});
    // A connection that is open already is answered to its end.
    let (client, section) = (ops.operator(), ops.section.clone());
    let open = Supervisor::new();
    open.spawn(TaskKind::new("open"), async move {
        let done: String = client.post("/v1/wait", &()).await?;
        assert_eq!(done, "done");
        Ok(())
    });
    assert!(eventually(LONG, || section.begun.load(Ordering::SeqCst) == 1).await);
    let (report, ()) = tokio::join!(ops.stop(), async {
        assert!(
            eventually(LONG, || std::net::TcpStream::connect(ops.address())
                .is_err())
            .await
        );
        section.release.notify_one();
    });
    assert!(report.aborted.is_empty(), "{report:?}");
    assert_eq!(open.drain(LONG).await.failures, 0);
    assert_eq!(section.finished.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_poll_learns_of_the_stop_and_does_not_hold_it_up() {
    let ops = start(|_| {});
    let poll = ops.link("a-0");
    let open = Supervisor::new();
    open.spawn(TaskKind::new("poll"), async move {
        let nothing: String = poll.get("/v1/poll", &()).await?;
        assert_eq!(nothing, "nothing");
        Ok(())
    });
    let connected = || ops.metric("volary_http_connections{surface=\"link\"}") == 1.0;
    assert!(eventually(LONG, connected).await);
    let (clock, begun) = (
        volary_kernel::SystemClock,
        volary_kernel::Clock::mono(&volary_kernel::SystemClock),
    );
    assert!(ops.stop().await.aborted.is_empty());
    let took = volary_kernel::Clock::mono(&clock) - begun;
    assert!(took < Duration::from_secs(4), "the stop took {took:?}");
    assert_eq!(open.drain(LONG).await.failures, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_outlives_the_drain_is_cut_and_the_server_is_gone() {
    let ops = start(|config| config.drain = Duration::from_millis(100));
    let (client, section) = (ops.operator(), ops.section.clone());
    let open = Supervisor::new();
    open.spawn(TaskKind::new("open"), async move {
        let cut = client.get::<String>("/v1/wait", &()).await;
        assert!(cut.is_err(), "{cut:?}");
        Ok(())
    });
    assert!(eventually(LONG, || section.begun.load(Ordering::SeqCst) == 1).await);
    assert!(ops.stop().await.aborted.is_empty());
    assert_eq!(open.drain(LONG).await.failures, 0);
    assert_eq!(section.dropped.load(Ordering::SeqCst), 1);
    assert!(std::net::TcpStream::connect(ops.address()).is_err());
}
