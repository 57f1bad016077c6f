//! Clients that are slow, many, large or gone cost what they may cost and no more.

mod common;

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::atomic::Ordering,
    time::Duration,
};

use common::{LONG, Running, get, raw, start, status};
use volary_kernel::{
    task::{Supervisor, TaskKind},
    testing::eventually,
};
use volary_ops::client::ClientError;

fn authorised(ops: &Running) -> String {
    format!(
        "Authorization: Bearer {}",
        ops.handle.operator_token().expose()
    )
}

fn post(ops: &Running, path: &str, headers: &str, body: &str) -> String {
    let token = authorised(ops);
    raw(
        ops.address(),
        &format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{token}\r\n{headers}\r\n{body}"
        ),
    )
}

fn closed(ops: &Running, reason: &str) -> f64 {
    ops.metric(&format!(
        "volary_http_connections_closed_total{{surface=\"operator\",reason=\"{reason}\"}}"
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_dribbles_in_is_cut() {
    let ops = start(|config| config.limits.head = Duration::from_millis(200));
    let mut slow = TcpStream::connect(ops.address()).unwrap();
    slow.write_all(b"GET /health HTTP/1.1\r\n").unwrap();
    // Each look sends another byte: it is the whole head that counts, not the last sign of life.
    let cut = eventually(LONG, || {
        slow.write_all(b"x").is_err() || closed(&ops, "slow_head") == 1.0
    })
    .await;
    assert!(cut);
    assert!(eventually(LONG, || closed(&ops, "slow_head") == 1.0).await);
    assert_eq!(status(&raw(ops.address(), &get("/health", &[]))), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_is_too_large_is_refused() {
    let ops = start(|_| {});
    let answer = raw(
        ops.address(),
        &get("/health", &[&format!("X-Long: {}", "x".repeat(64 << 10))]),
    );
    assert_eq!(status(&answer), 431);
    let many = vec!["X-A: 1"; 100];
    assert_eq!(status(&raw(ops.address(), &get("/health", &many))), 431);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_stays_idle_is_closed() {
    let ops = start(|config| config.limits.idle = Duration::from_millis(100));
    let mut idle = TcpStream::connect(ops.address()).unwrap();
    idle.set_read_timeout(Some(LONG)).unwrap();
    assert_eq!(idle.read(&mut [0]).unwrap(), 0);
    assert!(eventually(LONG, || closed(&ops, "idle") == 1.0).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_the_limit_is_refused_said_or_unsaid() {
    let ops = start(|config| config.limits.body_bytes = 1000);
    let said = post(&ops, "/v1/echo", "Content-Length: 1001\r\n", "");
    assert!(status(&said) == 413 && said.contains("V6008"), "{said}");
    let chunk = "x".repeat(1001);
    let unsaid = post(
        &ops,
        "/v1/echo",
        "Transfer-Encoding: chunked\r\n",
        &format!("3e9\r\n{chunk}\r\n0\r\n\r\n"),
    );
    assert!(
        status(&unsaid) == 413 && unsaid.contains("V6008"),
        "{unsaid}"
    );
    let fits = format!("{{\"text\":\"{}\"}}", "x".repeat(900));
    let fits = post(
        &ops,
        "/v1/echo",
        &format!("Content-Length: {}\r\n", fits.len()),
        &fits,
    );
    assert_eq!(status(&fits), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_arrive_is_408_and_bodies_together_are_bounded() {
    let ops = start(|config| {
        config.limits.body = Duration::from_millis(300);
        config.limits.all_bodies_bytes = 1000;
    });
    let mut half = TcpStream::connect(ops.address()).unwrap();
    let token = authorised(&ops);
    let head = format!(
        "POST /v1/echo HTTP/1.1\r\nHost: localhost\r\n{token}\r\nContent-Length: 800\r\n\r\n"
    );
    half.write_all(head.as_bytes()).unwrap();
    half.set_read_timeout(Some(LONG)).unwrap();
    let full = || {
        post(
            &ops,
            "/v1/echo",
            "Content-Length: 300\r\n",
            &format!("{{\"text\":\"{}\"}}", "x".repeat(289)),
        )
    };
    // While the first holds 800 of 1,000 bytes the second finds no room.
    let mut refused = String::new();
    assert!(
        eventually(LONG, || {
            refused = full();
            status(&refused) == 503
        })
        .await
    );
    assert!(
        refused.contains("V6009") && refused.to_lowercase().contains("retry-after"),
        "{refused}"
    );
    let mut answer = [0; 12];
    half.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408");
    assert!(eventually(LONG, || status(&full()) == 200).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_idle_connections_hold_nobody_up() {
    let ops = start(|_| {});
    let idle: Vec<TcpStream> = (0..1000)
        .map(|_| TcpStream::connect(ops.address()).unwrap())
        .collect();
    let open = "volary_http_connections{surface=\"operator\"}";
    assert!(
        eventually(LONG, || ops.metric(open) >= 1000.0).await,
        "{}",
        ops.metric(open)
    );
    assert!(ops.operator().probe("/health").await.unwrap().0);
    let _ = ops.operator().text("/v1/who").await.unwrap();
    drop(idle);
    assert!(
        eventually(LONG, || ops.metric(open) < 10.0).await,
        "{}",
        ops.metric(open)
    );
    assert!(ops.stop().await.aborted.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_bound_health_still_answers_and_everything_else_is_503() {
    let ops = start(|config| {
        config.limits.connections = 3;
        config.limits.spare_connections = 1;
    });
    let taken: Vec<TcpStream> = (0..3)
        .map(|_| TcpStream::connect(ops.address()).unwrap())
        .collect();
    assert!(
        eventually(LONG, || ops
            .metric("volary_http_connections{surface=\"operator\"}")
            == 3.0)
        .await
    );
    assert!(
        eventually(LONG, || {
            let answer = raw(ops.address(), &get("/health", &[]));
            !answer.is_empty() && status(&answer) == 200
        })
        .await
    );
    let mut refused = String::new();
    assert!(
        eventually(LONG, || {
            refused = raw(ops.address(), &get("/v1/who", &[&authorised(&ops)]));
            !refused.is_empty()
        })
        .await
    );
    assert!(
        status(&refused) == 503 && refused.contains("V6009"),
        "{refused}"
    );
    // The spare one is taken too: the next is turned away without an answer, and counted.
    let _spare = TcpStream::connect(ops.address()).unwrap();
    assert!(
        eventually(LONG, || {
            let _turned_away = raw(ops.address(), &get("/health", &[]));
            closed(&ops, "too_many") >= 1.0
        })
        .await
    );
    drop(taken);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stops_reading_is_cut_and_counted() {
    let ops = start(|config| config.limits.write_stall = Duration::from_millis(300));
    let mut stuck = TcpStream::connect(ops.address()).unwrap();
    stuck
        .write_all(get("/v1/flood", &[&authorised(&ops)]).as_bytes())
        .unwrap();
    let stalled = || closed(&ops, "write_stall");
    assert!(eventually(LONG, || stalled() == 1.0).await);
    let ended = || {
        ["slow_client", "client_gone"].map(|reason| {
            ops.metric(&format!(
                "volary_http_streams_ended_total{{reason=\"{reason}\"}}"
            ))
        })
    };
    assert!(
        eventually(LONG, || ended().iter().sum::<f64>() == 1.0).await,
        "{:?}",
        ended()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_ends_with_its_client_and_a_change_does_not() {
    let ops = start(|_| {});
    let count = |counter: &std::sync::atomic::AtomicUsize| counter.load(Ordering::SeqCst);
    for (method, begun) in [("GET", 1), ("POST", 2)] {
        let mut client = TcpStream::connect(ops.address()).unwrap();
        let token = authorised(&ops);
        let request = format!(
            "{method} /v1/wait HTTP/1.1\r\nHost: localhost\r\n{token}\r\nContent-Length: 0\r\n\r\n"
        );
        client.write_all(request.as_bytes()).unwrap();
        assert!(eventually(LONG, || count(&ops.section.begun) == begun).await);
        drop(client);
        if method == "GET" {
            assert!(eventually(LONG, || count(&ops.section.dropped) == 1).await);
            assert_eq!(count(&ops.section.finished), 0);
        }
    }
    assert!(
        eventually(LONG, || ops
            .metric("volary_http_connections{surface=\"operator\"}")
            == 0.0)
        .await
    );
    ops.section.release.notify_one();
    assert!(eventually(LONG, || count(&ops.section.finished) == 1).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_whose_clients_left_still_count_against_who_asked() {
    let ops = start(|config| config.limits.replica_requests = 2);
    let token = format!("Authorization: Bearer {}", ops.link_token("a-0").expose());
    let ask = |token: &str| {
        let mut client =
            std::os::unix::net::UnixStream::connect(ops.handle.socket().unwrap()).unwrap();
        let request = format!("POST /v1/wait HTTP/1.1\r\n{token}\r\nContent-Length: 0\r\n\r\n");
        client.write_all(request.as_bytes()).unwrap();
        client
    };
    for begun in 1..=2 {
        let client = ask(&token);
        assert!(eventually(LONG, || ops.section.begun.load(Ordering::SeqCst) == begun).await);
        drop(client);
    }
    assert!(
        eventually(LONG, || ops
            .metric("volary_http_connections{surface=\"link\"}")
            == 0.0)
        .await
    );
    let mut third = ask(&token);
    third.set_read_timeout(Some(LONG)).unwrap();
    let mut answer = [0; 12];
    third.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 429");
    ops.section.release.notify_waiters();
    assert!(eventually(LONG, || ops.section.finished.load(Ordering::SeqCst) == 2).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_replica_cannot_crowd_out_another() {
    let ops = start(|config| config.limits.replica_requests = 3);
    let (greedy, modest) = (ops.link("a-0"), ops.link("a-1"));
    let open = Supervisor::new();
    for _ in 0..3 {
        let greedy = greedy.clone();
        open.spawn(TaskKind::new("greedy"), async move {
            let _done: String = greedy.get("/v1/wait", &()).await?;
            Ok(())
        });
    }
    assert!(eventually(LONG, || ops.section.begun.load(Ordering::SeqCst) == 3).await);
    let refused = greedy.text("/v1/who").await.unwrap_err();
    assert_eq!(
        (refused.status(), refused.code()),
        (Some(429), Some("V6019")),
        "{refused}"
    );
    assert!(refused.is_transient());
    let _ = modest.text("/v1/who").await.unwrap();
    ops.section.release.notify_waiters();
    assert_eq!(open.drain(LONG).await.failures, 0);
    let _ = greedy.text("/v1/who").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_costs_its_own_request_and_tells_nothing() {
    let ops = start(|_| {});
    let error = ops.operator().text("/v1/boom").await.unwrap_err();
    assert!(
        matches!(&error, ClientError::Api { status: 500, code, .. } if code == "V6012"),
        "{error:?}"
    );
    assert!(!format!("{error:?}").contains("secret words"), "{error:?}");
    assert_eq!(
        ops.metric("volary_http_handler_panics_total{surface=\"operator\"}"),
        1.0
    );
    let _ = ops.operator().text("/v1/who").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_takes_too_long_is_504() {
    let ops = start(|config| config.limits.request = Duration::from_millis(50));
    let error = ops
        .operator()
        .get::<String>("/v1/wait", &())
        .await
        .unwrap_err();
    assert_eq!(
        (error.status(), error.code()),
        (Some(504), Some("V6011")),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_fails_is_broken_not_short() {
    let ops = start(|_| {});
    let whole = async {
        let mut lines = ops.operator().lines("/v1/broken", &()).await?;
        while lines.next().await?.is_some() {}
        Ok(())
    };
    let error: ClientError = whole.await.unwrap_err();
    assert!(matches!(error, ClientError::Broken { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused_with_its_place() {
    let ops = start(|_| {});
    let check = |answer: String, expected: u16, words: &str| {
        assert!(
            status(&answer) == expected && answer.contains(words),
            "{answer}"
        );
        assert!(answer.contains("\"error\":{\"code\":\"V6"), "{answer}");
    };
    let body = |text: &str| {
        post(
            &ops,
            "/v1/echo",
            &format!("Content-Length: {}\r\n", text.len()),
            text,
        )
    };
    check(
        body(r#"{"txet":"a"}"#),
        400,
        "unknown field `txet`, expected `text` at line 1 column 7",
    );
    check(body(""), 400, "missing field `text`");
    check(body("{"), 400, "line 1 column 1");
    let token = authorised(&ops);
    check(
        raw(ops.address(), &get("/v1/things/1?nope=1", &[&token])),
        400,
        "nope",
    );
    check(
        raw(ops.address(), &get("/v1/nowhere", &[&token])),
        404,
        "V6006",
    );
    check(
        raw(ops.address(), &get("/v1/echo", &[&token])),
        405,
        "V6007",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_at_once_are_all_answered() {
    let ops = start(|_| {});
    let clients = Supervisor::new();
    for n in 0..200 {
        let client = if n % 2 == 0 {
            ops.operator()
        } else {
            ops.link(&format!("a-{n}"))
        };
        clients.spawn(TaskKind::new("client"), async move {
            for _ in 0..10 {
                let echo: serde_json::Value = client
                    .post("/v1/echo", &serde_json::json!({"text": "x"}))
                    .await?;
                assert_eq!(echo["text"], "x");
            }
            Ok(())
        });
    }
    assert_eq!(
        clients.drain(LONG).await,
        volary_kernel::task::DrainReport::default()
    );
    assert_eq!(
        ops.metric("volary_http_requests_total{surface=\"link\",class=\"2xx\"}"),
        1000.0
    );
}
