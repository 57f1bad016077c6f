//! Ctrl-C and SIGTERM: the first asks for a drain, the second ends the process at once. Whatever the process had
//! started dies with it, as after any other sudden end.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use volary_kernel::task::{Supervisor, TaskKind};

use crate::{exit::Exit, ui::Ui};

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Ctrl-C.
    Interrupt,
    /// SIGTERM, or the terminal has gone.
    Terminate,
}

impl Asked {
    /// Exit code after a clean drain: supervisors send SIGTERM and take 0 for a good end, shells know 130 as Ctrl-C.
    pub const fn drained(self) -> Exit {
        match self {
            Self::Interrupt => Exit::Interrupted,
            Self::Terminate => Exit::Ok,
        }
    }

    const fn cut_short(self) -> Exit {
        match self {
            Self::Interrupt => Exit::Interrupted,
            Self::Terminate => Exit::Terminated,
        }
    }
}

/// The signals of this process, listened to from now on.
#[derive(Debug)]
pub struct Signals(tokio::sync::watch::Receiver<Option<Asked>>);

impl Signals {
    /// Begins to listen, on a task of its own: output that blocks must not keep a second Ctrl-C from working.
    ///
    /// # Errors
    /// When the system refuses the handlers.
    pub fn listen(tasks: &Supervisor, ui: Ui) -> io::Result<Self> {
        let (first, receiver) = tokio::sync::watch::channel(None);
        let mut sources = Sources {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        };
        tasks.spawn(TaskKind::new("signals").abort(), async move {
            first.send_replace(Some(sources.next().await));
            let asked = sources.next().await;
            ui.say("stopping at once");
            end(asked.cut_short())
        });
        Ok(Self(receiver))
    }

    /// Resolves with the first signal. Cancel-safe.
    pub async fn first(&mut self) -> Asked {
        match self.0.wait_for(Option::is_some).await.map(|asked| *asked) {
            Ok(Some(asked)) => asked,
            _ => std::future::pending().await,
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the second signal ends the program, whatever it is doing"
)]
fn end(exit: Exit) -> ! {
    std::process::exit(exit.code().into())
}

struct Sources {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Sources {
    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.interrupt.recv() => Asked::Interrupt,
            _ = self.terminate.recv() => Asked::Terminate,
            _ = self.hangup.recv() => Asked::Terminate,
        }
    }
}
