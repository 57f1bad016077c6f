//! `volary up -d`: the same command again in the background, waited for until all is ready.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use volary::ops::api::{DownRequest, HealthDocument, HealthStatus};
use volary_kernel::clock;

use super::{Plan, WAIT, announce, progress::Progress};
use crate::{
    client::Node,
    codes,
    error::{CliError, Outcome},
    exit::Exit,
};

/// How often to look how far the node is.
const LOOK: Duration = Duration::from_millis(50);

/// How long a fleet that was not ready in time may take to stop again.
const GIVE_UP: Duration = Duration::from_secs(30);

/// Most of the log that is shown when the node ended at once.
const TAIL: u64 = 16 << 10;

/// Starts the node, waits, and returns when all is ready.
pub fn run(plan: &Plan<'_>) -> Outcome {
    let (mut log, begin) = open_log(&plan.log_file())?;
    let mut child = spawn(plan, &log)?;
    let runtime = runtime()?;
    let limit = plan.arguments.wait_timeout.unwrap_or(WAIT);
    let mut missing = Vec::new();
    match runtime.block_on(clock::timeout(limit, wait(plan, &mut child, &mut missing))) {
        Ok(Ok(node)) => {
            announce(plan.context, &node, &plan.spec, true)?;
            Ok(Exit::Ok)
        }
        Ok(Err(Ended::Child(status))) => Err(ended(plan, status, &mut log, begin)),
        Ok(Err(Ended::Error(error))) => Err(error),
        Err(late) => {
            let mut what = "the fleet is not ready".to_owned();
            if !missing.is_empty() {
                what = format!("{what}: {}", missing.join("; "));
            }
            let error = CliError::new(codes::NOT_READY, what).because(&late);
            runtime.block_on(give_up(plan, &mut child));
            Err(error)
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| {
            CliError::new(codes::SYSTEM, "cannot start the async runtime").because(&error)
        })
}

/// What of a running node is not ready, in words; empty when everything is.
///
/// # Errors
/// When it does not answer.
pub fn waiting(node: &Node) -> Result<Vec<String>, CliError> {
    let document = runtime()?.block_on(node.health("/ready"))?;
    Ok(not_ready(&document))
}

fn not_ready(document: &HealthDocument) -> Vec<String> {
    if document.status == HealthStatus::Ready {
        return Vec::new();
    }
    let failing = document.checks.iter().filter(|check| !check.ok);
    failing
        .map(|check| {
            let reason = check.reason.as_deref().unwrap_or("not ready");
            crate::ui::tame(&format!("{}: {reason}", check.name))
        })
        .collect()
}

fn open_log(path: &Path) -> Result<(File, u64), CliError> {
    let open = || {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .read(true)
            .mode(0o600)
            .open(path)?;
        let end = file.seek(SeekFrom::End(0))?;
        Ok::<_, std::io::Error>((file, end))
    };
    open().map_err(|error| {
        CliError::new(codes::STATE, format!("cannot open {}", path.display())).because(&error)
    })
}

fn spawn(plan: &Plan<'_>, log: &File) -> Result<Child, CliError> {
    let refused = |error: std::io::Error| {
        CliError::new(codes::SYSTEM, "cannot start the node").because(&error)
    };
    let own = std::env::current_exe().map_err(refused)?;
    let (out, err) = (
        log.try_clone().map_err(refused)?,
        log.try_clone().map_err(refused)?,
    );
    let mut command = Command::new(own);
    command
        .args(arguments(plan))
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err);
    // A folder that may be unmounted or removed is not kept busy by a process in the background.
    command.current_dir("/").spawn().map_err(refused)
}

/// The same command, with every path absolute.
fn arguments(plan: &Plan<'_>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec![
        "up".into(),
        plan.fleet.clone().into(),
        "--background".into(),
    ];
    arguments.extend([
        "--color".into(),
        "never".into(),
        "--state".into(),
        plan.state.clone().into(),
    ]);
    if let Some(address) = plan.arguments.ops {
        arguments.extend(["--ops".into(), address.to_string().into()]);
    }
    if plan.arguments.insecure {
        arguments.push("--insecure".into());
    }
    arguments
}

enum Ended {
    Child(ExitStatus),
    Error(CliError),
}

/// Until the child's node is ready, or the child has ended. Meanwhile `missing` tells what is not.
async fn wait(
    plan: &Plan<'_>,
    child: &mut Child,
    missing: &mut Vec<String>,
) -> Result<Node, Ended> {
    let mut progress = Progress::new(plan.context.ui);
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Err(Ended::Child(status));
        }
        let node = Node::running_on(&plan.state).map_err(Ended::Error)?;
        if let Some(node) = node.filter(|node| node.pid() == child.id()) {
            // It may not answer yet, and then its next answer counts.
            if let Ok(replicas) = node.replicas().await {
                progress.show(&replicas);
            }
            if let Ok(document) = node.health("/ready").await {
                if document.status == HealthStatus::Ready {
                    return Ok(node);
                }
                *missing = not_ready(&document);
            }
        }
        clock::sleep(LOOK).await;
    }
}

/// Leaves nothing behind: asks the node to drain, and ends it if it does not.
async fn give_up(plan: &Plan<'_>, child: &mut Child) {
    plan.context.ui.say("stopping it again");
    if let Ok(Some(node)) = Node::running_on(&plan.state) {
        let _asked = node.down(&DownRequest::default()).await;
    }
    let gone = async {
        while !matches!(child.try_wait(), Ok(Some(_))) {
            clock::sleep(LOOK).await;
        }
    };
    if clock::timeout(GIVE_UP, gone).await.is_err() {
        let _gone_meanwhile = child.kill();
        let _reaped = child.wait();
    }
}

/// The child's own words and exit code.
fn ended(plan: &Plan<'_>, status: ExitStatus, log: &mut File, begin: u64) -> CliError {
    let said = said(log, begin);
    if !said.is_empty() {
        plan.context.ui.say(said.trim_end());
    }
    let exit = match status.code() {
        Some(65) => Exit::BadData,
        Some(69) => Exit::Unavailable,
        Some(75) => Exit::RetryLater,
        Some(77) => Exit::Denied,
        _ => Exit::Failure,
    };
    let message = format!("the node ended before it was ready ({status})");
    let hint = format!("its whole log is {}", plan.log_file().display());
    CliError::foreign(codes::DETACHED.id, message, Some(hint), exit)
}

/// What the child wrote for people since `begin`; its log lines are JSON and stay where they are.
fn said(log: &mut File, begin: u64) -> String {
    let mut bytes = Vec::new();
    let read = log
        .seek(SeekFrom::Start(begin))
        .and_then(|_| log.take(TAIL).read_to_end(&mut bytes));
    if read.is_err() {
        return String::new();
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    text.lines()
        .filter(|line| !line.starts_with('{'))
        .collect::<Vec<_>>()
        .join("\n")
}
