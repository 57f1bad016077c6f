//! The node's side of the starter: one permanent thread that owns it.
//!
//! The thread exists because a parent-death signal fires when the *thread* that made the child ends. It starts
//! the starter, asks it for inits one after another, and starts a new one should it ever vanish.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tokio::sync::{mpsc, oneshot};

use super::sys::{self, Namespaces};

/// How to run this program as the starter of replicas: its `main` must call
/// [`init_main`](super::init_main) first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitCommand {
    /// The program; `/proc/self/exe` is robust against an upgrade on disk.
    pub program: PathBuf,
    /// Its arguments, by custom `__init`.
    pub args: Vec<String>,
}

impl InitCommand {
    /// This very program with the argument `__init`.
    pub fn this_program() -> Self {
        Self {
            program: "/proc/self/exe".into(),
            args: vec!["__init".to_owned()],
        }
    }
}

/// Starts waiting at once; more wait in the callers. Each takes well under a millisecond.
const WAITING: usize = 64;

/// A new init: its process id on the machine and a descriptor of it.
pub(crate) type NewInit = (u32, OwnedFd);

struct Request {
    namespaces: Namespaces,
    fds: [OwnedFd; 5],
    reply: oneshot::Sender<io::Result<NewInit>>,
}

/// Cheap to clone; the thread and its starter end with the last clone.
#[derive(Clone)]
pub(crate) struct Launcher {
    requests: mpsc::Sender<Request>,
}

impl Launcher {
    pub(crate) fn start(init: InitCommand) -> io::Result<Self> {
        let (requests, mut queue) = mpsc::channel::<Request>(WAITING);
        std::thread::Builder::new()
            .name("volary-launcher".to_owned())
            .spawn(move || {
                let mut starter: Option<Starter> = None;
                while let Some(request) = queue.blocking_recv() {
                    let answer = serve(&mut starter, &init, request.namespaces, &request.fds);
                    let _caller_may_be_gone = request.reply.send(answer);
                }
                if let Some(mut starter) = starter {
                    starter.end();
                }
            })?;
        Ok(Self { requests })
    }

    /// Makes an init; it gets control socket, plan, standard input, output and error, in this order.
    pub(crate) async fn launch(
        &self,
        namespaces: Namespaces,
        fds: [OwnedFd; 5],
    ) -> io::Result<NewInit> {
        let (reply, answer) = oneshot::channel();
        let request = Request {
            namespaces,
            fds,
            reply,
        };
        let gone = || io::Error::other("the launcher thread has ended");
        self.requests.send(request).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

fn serve(
    starter: &mut Option<Starter>,
    init: &InitCommand,
    namespaces: Namespaces,
    fds: &[OwnedFd; 5],
) -> io::Result<NewInit> {
    for _attempt in 0..2 {
        let current = match starter {
            Some(current) => current,
            None => starter.insert(Starter::start(init)?),
        };
        match current.ask(namespaces, fds) {
            Ok(answer) => return answer,
            // It vanished (killed from outside): its inits are gone too. Try once with a new one.
            Err(_) => {
                current.end();
                *starter = None;
            }
        }
    }
    Err(io::Error::other(
        "the starter of replicas does not stay alive",
    ))
}

struct Starter {
    process: Child,
    socket: OwnedFd,
}

impl Starter {
    fn start(init: &InitCommand) -> io::Result<Self> {
        let (socket, theirs) = sys::datagram_pair()?;
        let process = Command::new(&init.program)
            .args(&init.args)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { process, socket })
    }

    /// The outer error means that the starter is gone, the inner that it could not make an init.
    fn ask(&self, namespaces: Namespaces, fds: &[OwnedFd; 5]) -> io::Result<io::Result<NewInit>> {
        let borrowed = fds.each_ref().map(AsFd::as_fd);
        sys::send(&self.socket, &[namespaces.to_byte()], &borrowed)?;
        let mut answer = [0; 4];
        let datagram = sys::receive(&self.socket, &mut answer)?;
        if datagram.len != answer.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let number = i32::from_le_bytes(answer);
        Ok(
            match (u32::try_from(number), datagram.fds.into_iter().next()) {
                (Ok(pid), Some(pidfd)) => Ok((pid, pidfd)),
                _ => Err(io::Error::from_raw_os_error(-number)),
            },
        )
    }

    fn end(&mut self) {
        let _may_have_ended = self.process.kill();
        let _reaped = self.process.wait();
    }
}

/// Both ends of a pipe, closed on exec: read end, write end.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = io::pipe()?;
    Ok((read.into(), write.into()))
}

/// `/dev/null` for reading.
pub(crate) fn null() -> io::Result<OwnedFd> {
    Ok(std::fs::File::open("/dev/null")?.into())
}
