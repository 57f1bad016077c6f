//! The client's errors say what the caller can do about them.

#![expect(clippy::unwrap_used, reason = "a test whose setup fails has failed")]

mod common;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use common::start;
use volary_kernel::{
    secret::Secret,
    task::{Supervisor, TaskKind},
};
use volary_ops::client::{Client, ClientError, Patience};

/// A listener that answers its one caller with `answer` and closes, or never when there is none.
fn impostor(tasks: &Supervisor, answer: Option<&'static str>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let speak = move || {
        let (mut stream, _) = listener.accept()?;
        match answer {
            Some(answer) => {
                let _request = stream.read(&mut [0; 4096])?;
                stream.write_all(answer.as_bytes())?;
            }
            None => while stream.read(&mut [0; 4096])? > 0 {},
        }
        Ok(())
    };
    tasks
        .spawn_thread(TaskKind::new("impostor"), speak)
        .unwrap();
    address
}

fn quick() -> Patience {
    Patience {
        answer: Duration::from_millis(100),
        silence: Duration::from_millis(100),
        ..Patience::default()
    }
}

#[tokio::test]
async fn nobody_there_is_unreachable_and_worth_another_try() {
    let gone = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    for client in [
        Client::tcp(gone),
        Client::unix(folder.path().join("no.sock")),
    ] {
        let error = client.text("/health").await.unwrap_err();
        assert!(
            matches!(error, ClientError::Unreachable { .. }) && error.is_transient(),
            "{error:?}"
        );
        assert!(
            error.to_string().contains(&client.endpoint().to_string()),
            "{error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_carries_code_and_hint_and_not_the_token() {
    let ops = start(|_| {});
    let wrong = Client::tcp(ops.address()).token(Secret::new("vop_wrong-token"));
    let error = wrong.text("/v1/who").await.unwrap_err();
    assert!(
        matches!(error, ClientError::Unauthorised { status: 401, .. }),
        "{error:?}"
    );
    assert_eq!(error.code(), Some("V6002"));
    assert!(error.hint().unwrap().contains("token file") && !error.is_transient());
    assert!(!format!("{error:?} {error} {wrong:?}").contains("wrong-token"));
    let error = ops
        .operator()
        .get::<()>("/v1/things/7", &serde_json::json!({"text": "bird"}))
        .await
        .unwrap_err();
    assert_eq!(
        (error.status(), error.to_string().as_str()),
        (Some(404), "there is no bird (V6015)")
    );
}

#[tokio::test]
async fn silence_is_a_time_out_and_strangers_are_told_from_nodes() {
    let tasks = Supervisor::new();
    let silent = Client::tcp(impostor(&tasks, None)).patience(quick());
    let error = silent.text("/").await.unwrap_err();
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error:?}");
    let check = async |answer, expected: &str| {
        let patience = Patience {
            answer_bytes: 10,
            ..Patience::default()
        };
        let stranger = Client::tcp(impostor(&tasks, Some(answer))).patience(patience);
        let error = stranger
            .get::<serde_json::Value>("/", &())
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        "the answer does not fit",
    )
    .await;
    check(
        "HTTP/1.1 502 Bad\r\nContent-Length: 2\r\n\r\nhi",
        "without an error document",
    )
    .await;
    check(
        "HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n\"123456789\"",
        "over 10 bytes",
    )
    .await;
    check("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n\"12", "broke").await;
    check("SSH-2.0-OpenSSH_9\r\n", "broke").await;
    let stream = "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\ndata: 1\n\n";
    let mut events = Client::tcp(impostor(&tasks, Some(stream)))
        .events("/", &(), None)
        .await
        .unwrap();
    assert_eq!(events.next().await.unwrap().unwrap().data, "1");
    assert!(matches!(
        events.next().await,
        Err(ClientError::Broken { .. })
    ));
    assert_eq!(tasks.drain(common::LONG).await.failures, 0);
}
