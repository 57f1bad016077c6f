//! One handler run: input in, bounded output back, errors to the log, and nothing left when it returns.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use volary_kernel::clock;

use super::super::report::{BackendError, Exit, HandlerExit, HandlerOutcome};
use super::super::spec::HandlerRun;
use super::Inner;
use super::namespace::{self, Input, Namespace, Streams};
use super::replica::{End, launch_error};
use super::wire::Report;
use crate::log::{self, LogSink, Stream};

/// Read from the handler at once, bytes.
const CHUNK: usize = 64 << 10;
/// Longest the kernel may take to end a killed run before it is left to the drop of its handle.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// Runs a handler; every failure is an outcome.
pub(super) async fn run(inner: &Inner, run: HandlerRun) -> HandlerOutcome {
    let started = inner.shared.clock.mono();
    let (exit, stdout) = match attempt(inner, &run).await {
        Ok(ended) => ended,
        Err(error) => (HandlerExit::SpawnFailed(error.to_string()), Bytes::new()),
    };
    HandlerOutcome {
        exit,
        stdout,
        duration: inner.shared.clock.mono() - started,
    }
}

async fn attempt(inner: &Inner, run: &HandlerRun) -> Result<(HandlerExit, Bytes), BackendError> {
    let HandlerRun { id, program, .. } = run;
    let namespaces = inner.namespaces(id, program.isolation)?;
    let group = inner.group(id, &program.limits)?;
    let controls = inner.cgroups.controls();
    let planned = inner
        .ground
        .plan(id, program, &controls, group.entrances())?;
    let end = End {
        kills: group.oom_kills(),
        group,
    };
    let launched = namespace::launch(
        &inner.launcher,
        namespaces,
        &planned.plan,
        Input::Bytes(&run.stdin),
    )
    .await;
    let (namespace, streams) = launched.map_err(|error| launch_error(id, &error))?;
    let log = inner.logs.writer(&id.to_string(), program.log);
    let errors = LogSink::new(log.clone(), Stream::Stderr);
    let (ended, stdout) = drive(&namespace, streams, errors, run).await;
    let exit = match ended {
        Ended::TimedOut => HandlerExit::TimedOut,
        Ended::TooLarge => HandlerExit::OutputTooLarge,
        Ended::With(status) => match end.exit(status) {
            Exit::Code(code) => HandlerExit::Exited(code),
            Exit::Signal(signal) => HandlerExit::Signaled(signal),
            Exit::OutOfMemory { limit } => HandlerExit::OutOfMemory(limit),
            Exit::Lost => HandlerExit::Lost,
        },
    };
    if !matches!(exit, HandlerExit::Exited(0)) {
        let remark = format!("handler run ended: {exit}");
        let _refused_by_disk = tokio::task::spawn_blocking(move || log.remark(&remark)).await;
    }
    Ok((exit, stdout))
}

enum Ended {
    TimedOut,
    TooLarge,
    With(Option<i32>),
}

/// Reads until nothing of the run is left.
async fn drive(
    namespace: &Namespace,
    streams: Streams,
    errors: LogSink,
    run: &HandlerRun,
) -> (Ended, Bytes) {
    let too_large = AtomicBool::new(false);
    let Streams { stdout, stderr } = streams;
    let output = read_bounded(stdout, run.max_output, || {
        too_large.store(true, Ordering::Relaxed);
        namespace.kill();
    });
    let gone = until_gone(namespace);
    let work = async {
        let (status, output, _errors) = tokio::join!(gone, output, log::pump(stderr, errors));
        (status, output)
    };
    tokio::pin!(work);
    let (timed_out, (status, output)) = match clock::timeout(run.timeout, &mut work).await {
        Ok(ended) => (false, ended),
        Err(_) => {
            namespace.kill();
            let ended = clock::timeout(KILL_LIMIT, &mut work).await;
            (true, ended.unwrap_or((None, Bytes::new())))
        }
    };
    let ended = if timed_out {
        Ended::TimedOut
    } else if too_large.load(Ordering::Relaxed) {
        Ended::TooLarge
    } else {
        Ended::With(status)
    };
    (ended, output)
}

async fn until_gone(namespace: &Namespace) -> Option<i32> {
    let mut ended = None;
    while let Some((report, _sender)) = namespace.next_report().await {
        if let Report::Exited(status) = report {
            ended = Some(status);
        }
    }
    namespace.gone().await;
    ended
}

/// Reads to the end, keeping at most `bound` bytes; calls `over` once there are more.
pub(super) async fn read_bounded(mut from: pipe::Receiver, bound: usize, over: impl Fn()) -> Bytes {
    let mut kept = Vec::new();
    let mut chunk = vec![0; CHUNK];
    let mut told = false;
    while let Ok(got @ 1..) = from.read(&mut chunk).await {
        let room = (bound - kept.len()).min(got);
        kept.extend_from_slice(&chunk[..room]);
        if got > room && !told {
            told = true;
            over();
        }
    }
    kept.into()
}
