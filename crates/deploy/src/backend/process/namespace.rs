//! One running namespace as the node holds it: life line, reports, orders, and its certain end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use volary_kernel::clock;

use super::launcher::{self, Launcher};
use super::sys::{self, Namespaces};
use super::wire::{MAX_MESSAGE, Order, Plan, Report, View};

/// Longest a set-up may take before it is given up.
const SETUP_LIMIT: Duration = Duration::from_secs(10);

/// A namespace with a running program. Dropping it ends everything in it.
pub(crate) struct Namespace {
    control: AsyncFd<OwnedFd>,
    pidfd: AsyncFd<OwnedFd>,
    view: View,
    /// Process id of the init on the machine.
    pub(crate) init: u32,
    /// Process id of the main process on the machine.
    pub(crate) main: Option<u32>,
}

/// The node's ends of the standard streams.
pub(crate) struct Streams {
    pub(crate) stdout: pipe::Receiver,
    pub(crate) stderr: pipe::Receiver,
}

/// What standard input is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input<'a> {
    Null,
    /// A file in memory with these bytes, whole before the program starts: a program whose node is killed in the middle
    /// must not take half a document for the whole one, as it would from a pipe.
    Bytes(&'a [u8]),
}

/// Why there is no namespace.
#[derive(Debug)]
pub(crate) enum LaunchError {
    /// The kernel does not give these namespaces to this process.
    NoNamespace(io::Error),
    /// A step of the set-up failed.
    Step { step: String, error: io::Error },
}

impl LaunchError {
    fn node(error: io::Error) -> Self {
        Self::Step {
            step: "start of the init".to_owned(),
            error,
        }
    }
}

/// Starts a plan and waits until its program runs.
pub(crate) async fn launch(
    launcher: &Launcher,
    namespaces: Namespaces,
    plan: &Plan,
    input: Input<'_>,
) -> Result<(Namespace, Streams), LaunchError> {
    let (control, theirs) = sys::datagram_pair().map_err(LaunchError::node)?;
    rustix::net::sockopt::set_socket_passcred(&control, true)
        .and_then(|()| rustix::io::ioctl_fionbio(&control, true))
        .map_err(|error| LaunchError::node(error.into()))?;
    let (streams, [stdin, stdout, stderr]) = streams(input).map_err(LaunchError::node)?;
    let encoded = zeroize::Zeroizing::new(plan.encode());
    let memory = sys::memory_file("plan", &encoded).map_err(LaunchError::node)?;
    let (init, pidfd) = launcher
        .launch(namespaces, [theirs, memory, stdin, stdout, stderr])
        .await
        .map_err(|error| {
            if namespaces == Namespaces::NONE {
                LaunchError::node(error)
            } else {
                LaunchError::NoNamespace(error)
            }
        })?;
    let mut namespace = Namespace {
        control: sys::watch(control).map_err(LaunchError::node)?,
        pidfd: sys::watch(pidfd).map_err(LaunchError::node)?,
        view: plan.view,
        init,
        main: None,
    };
    namespace.until_running().await?;
    Ok((namespace, streams))
}

type TheirStreams = [OwnedFd; 3];

fn streams(input: Input<'_>) -> io::Result<(Streams, TheirStreams)> {
    let their_stdin = match input {
        Input::Null => launcher::null()?,
        Input::Bytes(bytes) => sys::memory_file("stdin", bytes)?,
    };
    let (stdout, their_stdout) = launcher::pipe()?;
    let (stderr, their_stderr) = launcher::pipe()?;
    let streams = Streams {
        stdout: receiver(stdout)?,
        stderr: receiver(stderr)?,
    };
    Ok((streams, [their_stdin, their_stdout, their_stderr]))
}

pub(crate) fn receiver(fd: OwnedFd) -> io::Result<pipe::Receiver> {
    pipe::Receiver::from_owned_fd(fd)
}

pub(crate) fn sender(fd: OwnedFd) -> io::Result<pipe::Sender> {
    pipe::Sender::from_owned_fd(fd)
}

impl Namespace {
    async fn until_running(&mut self) -> Result<(), LaunchError> {
        let limit = clock::timeout(SETUP_LIMIT, async {
            loop {
                match self.next_report().await {
                    Some((Report::Starting, sender)) => {
                        self.main = sender.and_then(|pid| u32::try_from(pid).ok());
                    }
                    Some((Report::Running, _)) => return Ok(()),
                    Some((Report::Failed { step, errno }, _)) => {
                        let error = io::Error::from_raw_os_error(errno);
                        return Err(LaunchError::Step { step, error });
                    }
                    Some(_) => {}
                    None => return Err(LaunchError::node(io::ErrorKind::UnexpectedEof.into())),
                }
            }
        });
        limit
            .await
            .unwrap_or_else(|_| Err(LaunchError::node(io::ErrorKind::TimedOut.into())))
    }

    /// The next report with its sender's process id; `None` when the init is gone. Cancel-safe.
    pub(crate) async fn next_report(&self) -> Option<(Report, Option<i32>)> {
        loop {
            let mut ready = self.control.readable().await.ok()?;
            let mut buffer = [0; MAX_MESSAGE];
            match ready.try_io(|socket| sys::receive(socket.as_fd(), &mut buffer)) {
                Err(_not_ready) => {}
                Ok(Ok(datagram)) if datagram.len > 0 => {
                    if let Ok(report) = Report::decode(&buffer[..datagram.len]) {
                        return Some((report, datagram.sender));
                    }
                }
                Ok(_) => return None,
            }
        }
    }

    /// Sends an order with descriptors.
    pub(crate) fn order(&self, order: Order, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        sys::send(self.control.as_fd(), &order.encode(), fds)
    }

    /// Waits until the init, and with it the whole namespace, is gone. Cancel-safe.
    pub(crate) async fn gone(&self) {
        let _registration_failed = self.pidfd.readable().await;
    }

    /// Ends everything in it, now.
    pub(crate) fn kill(&self) {
        if self.view == View::Host {
            // Its init must live on to kill what it adopted: cut its life line instead.
            let _gone = rustix::net::shutdown(&self.control, rustix::net::Shutdown::Both);
        } else {
            let _gone = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.kill();
    }
}
