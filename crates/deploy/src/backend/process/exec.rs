//! A further command inside a running replica: for probes and for people.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::AsyncWriteExt;
use volary_kernel::clock;

use super::super::report::{BackendError, ExecOutcome, Exit, Observed};
use super::super::spec::ExecRequest;
use super::Inner;
use super::replica::Replica;
use super::run::read_bounded;
use super::wire::Order;
use super::{launcher, namespace, sys};

/// Kills the command when nobody waits for it any more.
struct Guard<'a> {
    replica: &'a Replica,
    id: u32,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if self.replica.commands.lock().forget(self.id) {
            let _may_have_ended = self.replica.namespace.order(Order::KillExec(self.id), &[]);
        }
    }
}

/// Runs a command and waits for it.
pub(super) async fn exec(
    inner: &Inner,
    replica: &Replica,
    request: ExecRequest,
) -> Result<ExecOutcome, BackendError> {
    let id = &replica.spec.id;
    if !matches!(replica.observed(), Observed::Running { .. }) {
        return Err(BackendError::NotRunning {
            replica: id.clone(),
        });
    }
    let io = |error: std::io::Error| BackendError::io(format!("command in `{id}`"), &error);
    let invalid = |why| BackendError::Invalid {
        replica: id.clone(),
        why,
    };
    let program = &replica.spec.program;
    let controls = inner.cgroups.controls();
    let command = inner
        .ground
        .command(id, program, &request.argv, &controls, &mut Vec::new())
        .map_err(invalid)?;
    let (their_stdin, stdin) = launcher::pipe().map_err(io)?;
    let (stdout, their_stdout) = launcher::pipe().map_err(io)?;
    let (stderr, their_stderr) = launcher::pipe().map_err(io)?;
    let memory =
        sys::memory_file("plan", &zeroize::Zeroizing::new(command.encode())).map_err(io)?;
    let (number, ended) = replica.commands.lock().add();
    let guard = Guard {
        replica,
        id: number,
    };
    let fds = [&memory, &their_stdin, &their_stdout, &their_stderr].map(|fd| fd.as_fd());
    replica
        .namespace
        .order(Order::Exec(number), &fds)
        .map_err(io)?;
    drop((memory, their_stdin, their_stdout, their_stderr));
    let mut stdin = namespace::sender(stdin).map_err(io)?;
    let stdout = namespace::receiver(stdout).map_err(io)?;
    let stderr = namespace::receiver(stderr).map_err(io)?;
    let cut = AtomicBool::new(false);
    let over = || cut.store(true, Ordering::Relaxed);
    // Children of the command may keep its streams open: its own end is what counts.
    let output = async {
        let feed = async {
            let _nobody_reads = stdin.write_all(&request.stdin).await;
            drop(stdin);
        };
        tokio::join!(
            feed,
            read_bounded(stdout, request.max_output / 2, over),
            read_bounded(stderr, request.max_output / 2, over)
        )
    };
    let finished = clock::timeout(request.timeout, async { tokio::join!(output, ended) }).await;
    drop(guard);
    let Ok((((), stdout, stderr), ended)) = finished else {
        return Ok(ExecOutcome {
            exit: None,
            stdout: Default::default(),
            stderr: Default::default(),
            truncated: false,
        });
    };
    let exit = match ended {
        Ok(Ok(exit)) => exit,
        Ok(Err(errno)) => return Err(io(std::io::Error::from_raw_os_error(errno))),
        Err(_) => Exit::Lost,
    };
    Ok(ExecOutcome {
        exit: Some(exit),
        stdout,
        stderr,
        truncated: cut.into_inner(),
    })
}
