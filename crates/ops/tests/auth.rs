//! Who may do what: every surface with every kind of token, and names that are not ours.

mod common;

use std::os::unix::fs::PermissionsExt as _;

use common::{get, name, peer, raw, raw_unix, start, status};
use volary_ops::client::{Client, ClientError};

#[tokio::test(flavor = "multi_thread")]
async fn each_surface_opens_to_its_own_token_only() {
    let ops = start(|_| {});
    let (address, socket) = (ops.address(), ops.handle.socket().unwrap().to_owned());
    let operator = format!(
        "Authorization: Bearer {}",
        ops.handle.operator_token().expose()
    );
    let link = format!("Authorization: Bearer {}", ops.link_token("a-0").expose());
    let revoked = format!("Authorization: Bearer {}", ops.link_token("a-1").expose());
    assert!(ops.handle.links().revoke(&peer("a-1")));
    let unknown = "Authorization: Bearer vop_0000";
    // Route, headers, status over TCP, status over the socket.
    let cases: [(&str, &[&str], u16, u16); 14] = [
        ("/v1/who", &[], 401, 401),
        ("/v1/who", &[&operator], 200, 403),
        ("/v1/who", &[&link], 403, 200),
        ("/v1/who", &[&revoked], 401, 401),
        ("/v1/who", &[unknown], 401, 401),
        ("/v1/who", &["Authorization: Basic abc"], 401, 401),
        ("/v1/nowhere", &[], 401, 401),
        ("/v1/nowhere", &[&operator], 404, 403),
        ("/v1/nowhere", &[&link], 403, 404),
        ("/events", &[&link], 403, 404),
        ("/health", &[], 200, 200),
        ("/ready", &[unknown], 200, 200),
        ("/metrics", &[], 200, 401),
        ("//health", &[], 401, 401),
    ];
    for (path, headers, tcp, unix) in cases {
        let request = get(path, headers);
        let (over_tcp, over_socket) = (raw(address, &request), raw_unix(&socket, &request));
        assert_eq!(
            (status(&over_tcp), status(&over_socket)),
            (tcp, unix),
            "{path} {headers:?}"
        );
        for answer in [over_tcp, over_socket] {
            assert!(
                status(&answer) < 400 || answer.contains("\"hint\":"),
                "{answer}"
            );
            assert!(
                !answer.contains("vop_") && !answer.contains("vlk_"),
                "a token is echoed: {answer}"
            );
        }
    }
    assert_eq!(
        ops.metric("volary_http_refusals_total{surface=\"link\",reason=\"wrong_kind\"}"),
        2.0
    );
    assert_eq!(
        ops.metric("volary_http_refusals_total{surface=\"operator\",reason=\"missing\"}"),
        3.0
    );
    assert!(ops.stop().await.aborted.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_token_speaks_for_its_replica() {
    let ops = start(|_| {});
    let who = ops.link("a-7").text("/v1/who").await.unwrap();
    assert!(
        who.contains("agent: a") && who.contains("replica: a-7"),
        "{who}"
    );
    let refused = Client::tcp(ops.address())
        .token(ops.link_token("a-7"))
        .text("/v1/who")
        .await
        .unwrap_err();
    assert!(
        matches!(&refused, ClientError::Unauthorised { status: 403, .. }),
        "{refused:?}"
    );
    assert_eq!(refused.code(), Some("V6003"));
    assert_eq!(name("a"), peer("a-7").agent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_in_the_url_opens_get_on_tcp_only_and_reaches_no_handler() {
    let ops = start(|_| {});
    let token = ops.handle.operator_token().expose().to_owned();
    let seen = raw(
        ops.address(),
        &get(&format!("/v1/uri?a=1&token={token}&b=2"), &[]),
    );
    assert!(seen.contains("/v1/uri?a=1&b=2"), "{seen}");
    let seen = raw(
        ops.address(),
        &get("/v1/uri", &[&format!("Authorization: Bearer {token}")]),
    );
    assert!(
        status(&seen) == 200 && !seen.contains("authorization"),
        "{seen}"
    );
    let post = format!(
        "POST /v1/echo?token={token} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    );
    assert_eq!(status(&raw(ops.address(), &post)), 401);
    let link = ops.link_token("a-0").expose().to_owned();
    assert_eq!(
        status(&raw_unix(
            ops.handle.socket().unwrap(),
            &get(&format!("/v1/who?token={link}"), &[])
        )),
        401
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_not_ours_is_refused_even_with_a_token() {
    let ops = start(|config| {
        config.tcp.as_mut().unwrap().allowed_hosts = vec!["ops.example".to_owned()];
    });
    let token = format!(
        "Authorization: Bearer {}",
        ops.handle.operator_token().expose()
    );
    let ask = |line: &str, host: &str| {
        let request = format!("GET {line} HTTP/1.1\r\n{host}Connection: close\r\n{token}\r\n\r\n");
        status(&raw(ops.address(), &request))
    };
    assert_eq!(ask("/v1/who", "Host: ops.example:80\r\n"), 200);
    assert_eq!(ask("/v1/who", &format!("Host: {}\r\n", ops.address())), 200);
    assert_eq!(ask("/v1/who", "Host: evil.example\r\n"), 421);
    assert_eq!(ask("/health", "Host: evil.example\r\n"), 421);
    assert_eq!(ask("/v1/who", ""), 421);
    assert_eq!(
        ask("http://evil.example/v1/who", "Host: localhost\r\n"),
        421
    );
    assert_eq!(
        ask("/v1/who", "Host: localhost\r\nHost: evil.example\r\n"),
        421
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_files_of_the_server_are_private_and_the_socket_goes_with_it() {
    let ops = start(|_| {});
    let mode =
        |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&ops.folder.path().join("operator.token")), 0o600);
    assert_eq!(mode(ops.handle.socket().unwrap()), 0o600);
    assert!(ops.stop().await.aborted.is_empty());
    assert!(!ops.handle.socket().unwrap().exists());
    assert!(ops.folder.path().join("operator.token").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_declared_secret_leaves_in_no_answer() {
    let ops = start(|_| {});
    ops.redactor
        .add(&volary_kernel::secret::Secret::new("canary-4711"))
        .unwrap();
    ops.append("page.changed", r#"{"v":1,"text":"canary-4711"}"#)
        .await;
    let _latch = ops.readiness.latch("store");
    ops.readiness.latch("disk").set_not_ready("canary-4711");
    let token = format!(
        "Authorization: Bearer {}",
        ops.handle.operator_token().expose()
    );
    for path in [
        "/v1/things/1?text=canary-4711",
        "/v1/events",
        "/v1/uri?x=canary-4711",
        "/ready",
        "/v1/things/canary-4711",
    ] {
        let answer = raw(ops.address(), &get(path, &[&token]));
        assert!(!answer.contains("canary-4711"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_route_takes_strangers_small_bodies_and_nothing_else_opens_with_it() {
    let ops = start(|_| {});
    let post = |path: &str, body: &str, more: &str| {
        let length = body.len();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n{more}\r\n{body}"
        );
        raw(ops.address(), &request)
    };
    let answer = post("/v1/knock/a", "who's there", "");
    assert!(answer.ends_with("Stranger 11"), "{answer}");
    // Whoever shows a token is a stranger there, too: the route asks for other proof.
    let token = format!(
        "Authorization: Bearer {}\r\n",
        ops.handle.operator_token().expose()
    );
    let answer = post("/v1/knock/a", "", &token);
    assert!(answer.ends_with("Stranger 0"), "{answer}");
    assert_eq!(status(&post("/v1/knock/a", &"x".repeat(65), "")), 413);
    for path in [
        "/v1/knock",
        "/v1/knock/",
        "/v1/knock/a/b",
        "/v1/knock/../echo",
        "/v1/echo",
    ] {
        assert_eq!(status(&post(path, "", "")), 401, "{path}");
    }
    assert_eq!(status(&raw(ops.address(), &get("/v1/knock/a", &[]))), 401);
    let socket = ops.handle.socket().unwrap();
    let knock = "POST /v1/knock/a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(status(&raw_unix(socket, knock)), 401);
}
