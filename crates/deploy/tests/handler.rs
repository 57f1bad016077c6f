//! One process per message: every way a handler can misbehave has a bounded, visible outcome.

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::Fixture;
use volary_deploy::backend::{
    Backend, HandlerExit, HandlerOutcome, HandlerRun, Isolation, ProgramSpec,
};
use volary_kernel::clock;
use volary_kernel::secret::Secret;
use volary_kernel::testing::eventually;

/// Generous: the machine may be busy with other tests.
const SOON: Duration = Duration::from_secs(25);

async fn run(fixture: &Fixture, program: ProgramSpec, stdin: impl Into<Bytes>) -> HandlerOutcome {
    let run = HandlerRun::new(fixture.id("h", 0), program, stdin);
    clock::timeout(SOON, fixture.backend.run_handler(run))
        .await
        .expect("a bounded run")
}

/// Whether a process with these words in its arguments lives.
fn alive(words: &str) -> bool {
    let mut pgrep = std::process::Command::new("pgrep");
    pgrep
        .args(["-f", words])
        .output()
        .expect("pgrep")
        .status
        .success()
}

#[tokio::test]
async fn input_goes_in_and_output_comes_back() {
    let fixture = Fixture::new().await;
    let outcome = run(&fixture, fixture.sh("cat; echo done >&2"), "hello\n").await;
    assert!(outcome.is_ack(), "{outcome:?}");
    assert_eq!(&outcome.stdout[..], b"hello\n");
    assert_eq!(fixture.log("h", 0).await, "done\n");
}

#[tokio::test]
async fn exit_one_is_told_and_noted_in_the_log() {
    let fixture = Fixture::new().await;
    let outcome = run(&fixture, fixture.sh("echo '{\"send\":1}'; exit 1"), "").await;
    assert_eq!(outcome.exit, HandlerExit::Exited(1));
    assert_eq!(outcome.lines().count(), 1);
    assert!(
        fixture
            .log("h", 0)
            .await
            .contains("handler run ended: exit code 1")
    );
}

#[tokio::test]
async fn a_hang_is_killed_at_the_timeout_with_all_it_started() {
    let fixture = Fixture::new().await;
    let script =
        "setsid sleep 987601 & (setsid setsid sleep 987602 &) ; trap '' TERM; sleep 987603";
    let mut hang = HandlerRun::new(fixture.id("h", 0), fixture.sh(script), "");
    hang.timeout = Duration::from_millis(300);
    let outcome = clock::timeout(SOON, fixture.backend.run_handler(hang))
        .await
        .unwrap();
    assert_eq!(outcome.exit, HandlerExit::TimedOut);
    assert!(
        outcome.duration < Duration::from_secs(2),
        "{:?}",
        outcome.duration
    );
    assert!(!alive("sleep 98760[123]"));
}

#[tokio::test]
async fn children_that_would_outlive_it_end_with_it() {
    let fixture = Fixture::new().await;
    let script = "setsid sleep 987611 & (setsid setsid sleep 987612 &) ; echo ok";
    let outcome = run(&fixture, fixture.sh(script), "").await;
    assert!(outcome.is_ack());
    assert_eq!(&outcome.stdout[..], b"ok\n");
    assert!(!alive("sleep 98761[12]"));
}

#[tokio::test]
async fn children_end_with_it_without_namespaces_too() {
    let fixture = Fixture::new().await;
    let mut program = fixture.sh("setsid sleep 987621 & (setsid setsid sleep 987622 &) ; echo ok");
    program.isolation = Isolation::None;
    let outcome = run(&fixture, program, "").await;
    assert!(outcome.is_ack(), "{outcome:?}");
    assert!(!alive("sleep 98762[12]"));
}

#[tokio::test]
async fn a_hundred_megabytes_of_output_are_cut_at_the_bound() {
    let fixture = Fixture::new().await;
    let outcome = run(&fixture, fixture.sh("head -c 100000000 /dev/zero"), "").await;
    assert_eq!(outcome.exit, HandlerExit::OutputTooLarge);
    assert_eq!(outcome.stdout.len(), 1 << 20);
}

#[tokio::test]
async fn a_hundred_megabytes_of_errors_leave_a_bounded_log() {
    let fixture = Fixture::new().await;
    let mut program = fixture
        .sh("yes xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx | head -c 100000000 >&2; echo ok");
    program.log.max_file = 1 << 20;
    // Too little for it on the slowest machine.
    program.log.rate = 1 << 20;
    let outcome = run(&fixture, program, "").await;
    assert!(outcome.is_ack(), "{outcome:?}");
    let logs = std::fs::read_dir(fixture.state().join("logs"))
        .unwrap()
        .flatten();
    let sizes: Vec<u64> = logs.map(|entry| entry.metadata().unwrap().len()).collect();
    assert!(
        sizes.len() <= 3 && sizes.iter().sum::<u64>() <= 3 << 20,
        "{sizes:?}"
    );
    let dropped = fixture.metrics.encode_text();
    let dropped = dropped
        .lines()
        .find(|line| line.starts_with("volary_replica_log_dropped_bytes_total"));
    assert!(!dropped.unwrap().ends_with(" 0"), "{dropped:?}");
}

#[tokio::test]
async fn garbage_and_binary_output_come_back_byte_for_byte() {
    let fixture = Fixture::new().await;
    let outcome = run(
        &fixture,
        fixture.sh(r"printf '\000\377\n{not json\n\n'"),
        "",
    )
    .await;
    assert_eq!(&outcome.stdout[..], b"\0\xff\n{not json\n\n");
    assert_eq!(outcome.lines().count(), 2);
}

#[tokio::test]
async fn input_that_is_not_wanted_is_no_error() {
    let fixture = Fixture::new().await;
    let outcome = run(
        &fixture,
        fixture.sh("exec 0<&-; echo ok"),
        vec![b'x'; 4 << 20],
    )
    .await;
    assert!(outcome.is_ack(), "{outcome:?}");
}

#[tokio::test]
async fn huge_input_and_output_do_not_wait_for_each_other() {
    let fixture = Fixture::new().await;
    let input: Bytes = vec![b'x'; 8 << 20].into();
    let mut echo = HandlerRun::new(fixture.id("h", 0), fixture.program(["cat"]), input.clone());
    echo.max_output = 8 << 20;
    let outcome = clock::timeout(SOON, fixture.backend.run_handler(echo))
        .await
        .unwrap();
    assert!(outcome.is_ack());
    assert_eq!(outcome.stdout, input);
}

#[tokio::test]
async fn a_program_that_is_missing_or_may_not_run_is_said_so() {
    let fixture = Fixture::new().await;
    for (program, words) in [
        ("/no/such/program", "No such file"),
        ("no-such-program", "no-such-program: No such file"),
        ("/etc/passwd", "Permission denied"),
    ] {
        let outcome = run(&fixture, fixture.program([program]), "").await;
        let HandlerExit::SpawnFailed(why) = outcome.exit else {
            panic!("{:?}", outcome.exit)
        };
        assert!(why.contains(words), "{why}");
    }
}

#[tokio::test]
async fn a_dropped_run_is_ended() {
    let fixture = Fixture::new().await;
    let hang = HandlerRun::new(fixture.id("h", 0), fixture.sh("sleep 987631"), "");
    let dropped = clock::timeout(
        Duration::from_millis(200),
        fixture.backend.run_handler(hang),
    )
    .await;
    assert!(dropped.is_err());
    assert!(eventually(Duration::from_secs(2), || !alive("sleep 98763[1]")).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_runs_at_once_do_not_mix() {
    let fixture = Fixture::new().await;
    let runs = (0..40).map(|number| {
        let run = HandlerRun::new(
            fixture.id("h", number % 4),
            fixture.sh("cat"),
            number.to_string(),
        );
        fixture.backend.run_handler(run)
    });
    let outcomes = futures_util::future::join_all(runs).await;
    for (number, outcome) in outcomes.iter().enumerate() {
        assert!(outcome.is_ack(), "{outcome:?}");
        assert_eq!(outcome.stdout, number.to_string());
    }
}

#[tokio::test]
async fn a_secret_in_the_error_output_is_redacted_in_the_log_and_absent_from_arguments() {
    let fixture = Fixture::new().await;
    let secret = Secret::new("canary-92f1b7");
    fixture.redactor.add(&secret).unwrap();
    let script = "printf canary- >&2; printf '92f1b7\n' >&2; tr '\\0' ' ' </proc/self/cmdline; cat /proc/1/cmdline";
    let mut program = fixture.sh(&script.replace("canary-", "\"${KEY%92f1b7}\""));
    program.env.insert(
        "KEY".to_owned(),
        volary_deploy::backend::EnvValue::Secret(secret),
    );
    let outcome = run(&fixture, program, "").await;
    assert!(!String::from_utf8_lossy(&outcome.stdout).contains("canary-92f1b7"));
    assert_eq!(fixture.log("h", 0).await, "[redacted]\n");
}
