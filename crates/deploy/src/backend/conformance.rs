//! What every [`Backend`] must do, as functions that panic with what went wrong. Each takes a fresh name.
//!
//! The programs use `/bin/sh`, which every image of a test has.

use std::time::Duration;

use bytes::Bytes;
use volary_kernel::clock;
use volary_kernel::id::Name;

use super::{
    Backend, BackendError, ExecRequest, Exit, HandlerExit, HandlerRun, Observed, ProgramSpec,
    ReplicaId, ReplicaSpec,
};
use crate::log::LogQuery;

/// Longest any wait of the suite may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Grace for programs that obey at once.
const GRACE: Duration = Duration::from_secs(5);

/// Runs the whole suite, one part after another.
pub async fn all(backend: &dyn Backend) {
    started_means_running_and_a_name_runs_once(backend).await;
    an_exit_is_reported_and_the_name_can_start_again(backend).await;
    stop_asks_before_it_kills(backend).await;
    stop_kills_who_does_not_listen(backend).await;
    a_failed_start_leaves_nothing(backend).await;
    output_is_logged_by_stream(backend).await;
    a_command_runs_inside(backend).await;
    a_handler_run_has_one_outcome(backend).await;
    unknown_names_are_refused(backend).await;
}

fn id(name: &str) -> ReplicaId {
    ReplicaId::new(Name::new(name).expect("names of the suite are valid"), 0)
}

fn sh(name: &str, script: &str) -> ReplicaSpec {
    ReplicaSpec::new(id(name), ProgramSpec::new(["/bin/sh", "-c", script], "/"))
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match clock::timeout(LIMIT, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} took more than {LIMIT:?}"),
    }
}

async fn started_means_running_and_a_name_runs_once(backend: &dyn Backend) {
    let spec = sh("c-once", "exec sleep 1000");
    let started = within("start", backend.start(&spec))
        .await
        .expect("a start");
    assert!(matches!(
        backend.observe(&spec.id).await,
        Ok(Observed::Running { .. })
    ));
    let again = backend.start(&spec).await;
    assert!(
        matches!(again, Err(BackendError::AlreadyRunning { .. })),
        "{again:?}"
    );
    let stats = backend.stats(&spec.id).await.expect("figures");
    assert!(stats.processes >= 1 && stats.memory_bytes > 0, "{stats:?}");
    assert!(started.warnings.is_empty(), "{:?}", started.warnings);
    within("stop", backend.stop(&spec.id, GRACE))
        .await
        .expect("a stop");
}

async fn an_exit_is_reported_and_the_name_can_start_again(backend: &dyn Backend) {
    for code in [3, 0] {
        let spec = sh("c-exit", &format!("exit {code}"));
        within("start", backend.start(&spec))
            .await
            .expect("a start");
        assert_eq!(
            within("wait", backend.wait(&spec.id)).await,
            Ok(Exit::Code(code))
        );
        // It stays: asking again, and stopping what has ended, say the same.
        assert_eq!(backend.wait(&spec.id).await, Ok(Exit::Code(code)));
        assert_eq!(backend.stop(&spec.id, GRACE).await, Ok(Exit::Code(code)));
        assert!(matches!(
            backend.stats(&spec.id).await,
            Err(BackendError::NotRunning { .. })
        ));
    }
}

async fn stop_asks_before_it_kills(backend: &dyn Backend) {
    let script = "trap 'echo asked; exit 7' TERM; echo up; while :; do sleep 0.01; done";
    let spec = sh("c-ask", script);
    within("start", backend.start(&spec))
        .await
        .expect("a start");
    within("output", first_line(backend, &spec.id)).await;
    assert_eq!(
        within("stop", backend.stop(&spec.id, GRACE)).await,
        Ok(Exit::Code(7))
    );
}

async fn stop_kills_who_does_not_listen(backend: &dyn Backend) {
    let spec = sh(
        "c-deaf",
        "trap '' TERM; echo up; while :; do sleep 1000; done",
    );
    within("start", backend.start(&spec))
        .await
        .expect("a start");
    within("output", first_line(backend, &spec.id)).await;
    let exit = within("stop", backend.stop(&spec.id, Duration::from_millis(50))).await;
    assert!(matches!(exit, Ok(Exit::Lost | Exit::Signal(9))), "{exit:?}");
}

async fn a_failed_start_leaves_nothing(backend: &dyn Backend) {
    let mut spec = sh("c-missing", "true");
    spec.program.argv = vec!["/no/such/program".to_owned()];
    let failed = within("start", backend.start(&spec)).await;
    assert!(
        matches!(failed, Err(BackendError::Start { .. })),
        "{failed:?}"
    );
    assert!(matches!(
        backend.observe(&spec.id).await,
        Err(BackendError::Unknown { .. })
    ));
}

async fn output_is_logged_by_stream(backend: &dyn Backend) {
    let spec = sh("c-log", "echo out; echo err >&2; printf unfinished");
    within("start", backend.start(&spec))
        .await
        .expect("a start");
    within("wait", backend.wait(&spec.id))
        .await
        .expect("an exit");
    let mut reader = backend
        .logs(&spec.id, LogQuery::default())
        .await
        .expect("a log");
    let mut lines = Vec::new();
    while let Some(line) = reader.next().await.expect("a readable log") {
        lines.push(format!("{} {}", line.stream.as_str(), line.text));
    }
    lines.sort();
    assert_eq!(lines, ["stderr err", "stdout out", "stdout unfinished"]);
    let query = LogQuery {
        tail: Some(1),
        follow: false,
    };
    let mut tail = backend.logs(&spec.id, query).await.expect("a log");
    assert!(tail.next().await.expect("a readable log").is_some());
    assert!(tail.next().await.expect("a readable log").is_none());
}

async fn a_command_runs_inside(backend: &dyn Backend) {
    let mut spec = sh("c-exec", "echo up; exec sleep 1000");
    spec.program.env.insert("INSIDE".to_owned(), "yes".into());
    within("start", backend.start(&spec))
        .await
        .expect("a start");
    let mut request =
        ExecRequest::new(["/bin/sh", "-c", "cat; echo $INSIDE; echo bad >&2; exit 4"]);
    request.stdin = Bytes::from_static(b"in\n");
    let outcome = within("exec", backend.exec(&spec.id, request))
        .await
        .expect("an outcome");
    assert_eq!(outcome.exit, Some(Exit::Code(4)));
    assert_eq!(
        (&outcome.stdout[..], &outcome.stderr[..]),
        (&b"in\nyes\n"[..], &b"bad\n"[..])
    );
    let mut hang = ExecRequest::new(["/bin/sh", "-c", "sleep 1000"]);
    hang.timeout = Duration::from_millis(50);
    let outcome = within("exec", backend.exec(&spec.id, hang))
        .await
        .expect("an outcome");
    assert_eq!(outcome.exit, None);
    assert!(matches!(
        backend.observe(&spec.id).await,
        Ok(Observed::Running { .. })
    ));
    within("stop", backend.stop(&spec.id, GRACE))
        .await
        .expect("a stop");
    let late = backend.exec(&spec.id, ExecRequest::new(["true"])).await;
    assert!(
        matches!(late, Err(BackendError::NotRunning { .. })),
        "{late:?}"
    );
}

async fn a_handler_run_has_one_outcome(backend: &dyn Backend) {
    for (script, exit) in [
        ("cat", HandlerExit::Exited(0)),
        ("exit 9", HandlerExit::Exited(9)),
        ("kill -SEGV $$", HandlerExit::Signaled(11)),
        ("sleep 1000", HandlerExit::TimedOut),
        ("cat /dev/zero", HandlerExit::OutputTooLarge),
    ] {
        let program = ProgramSpec::new(["/bin/sh", "-c", script], "/");
        let mut run = HandlerRun::new(id("c-handler"), program, "in");
        if exit == HandlerExit::TimedOut {
            run.timeout = Duration::from_millis(100);
        }
        let outcome = within(script, backend.run_handler(run)).await;
        assert_eq!(outcome.exit, exit, "{script}");
        assert_eq!(outcome.is_ack(), exit == HandlerExit::Exited(0));
        if outcome.is_ack() {
            assert_eq!(&outcome.stdout[..], b"in");
        }
    }
    let program = ProgramSpec::new(["/no/such/program"], "/");
    let outcome = within(
        "run",
        backend.run_handler(HandlerRun::new(id("c-handler"), program, "")),
    )
    .await;
    assert!(
        matches!(outcome.exit, HandlerExit::SpawnFailed(_)),
        "{outcome:?}"
    );
}

async fn unknown_names_are_refused(backend: &dyn Backend) {
    let nobody = id("c-nobody");
    let unknown = |error: BackendError| matches!(error, BackendError::Unknown { .. });
    assert!(backend.observe(&nobody).await.is_err_and(unknown));
    assert!(backend.stop(&nobody, GRACE).await.is_err_and(unknown));
    assert!(backend.logs(&nobody, LogQuery::default()).await.is_err());
}

async fn first_line(backend: &dyn Backend, id: &ReplicaId) {
    loop {
        let query = LogQuery {
            tail: None,
            follow: true,
        };
        if let Ok(mut reader) = backend.logs(id, query).await
            && reader.next().await.is_ok_and(|line| line.is_some())
        {
            return;
        }
        clock::sleep(Duration::from_millis(2)).await;
    }
}
