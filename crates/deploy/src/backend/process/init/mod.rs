//! The program's other life: the small processes that hold replicas. Entered by [`init_main`], which the
//! command-line program calls before anything else when its first argument is `__init`.
//!
//! ```text
//! node ──(permanent thread)── starter ──clone: pid, mount [, user] namespace──▶ init (pid 1) ──▶ main process
//!   │                            │ ends with the node: parent-death signal,      │ ends with the starter: signal;
//!   │                            │ end of file on its socket                     │ with the node: end of file
//!   └────────────── control socket, one per replica: life line, orders, reports ─┘
//! ```
//!
//! The starter is this program, executed once, with one thread and a small heap; each init is a fork of it, so
//! a hundred inits share its pages and a start costs no program load. It never sees a plan (plans hold secrets):
//! it passes descriptors on. When an init ends, the kernel ends everything in its PID namespace; that is the
//! whole of "no orphans". Without namespaces (`isolation: none`) the init adopts and kills what it finds.
//!
//! Nothing here may use tokio, start a thread or read the environment.

mod command;
mod guardian;
mod lockdown;
mod mount;
mod pid1;
mod starter;

use std::io;

pub use starter::init_main;

/// A step of the set-up that failed; the node shows both parts.
#[derive(Debug)]
struct StepError {
    step: String,
    error: io::Error,
}

/// Names the step an error belongs to.
trait At<T> {
    fn at(self, step: impl FnOnce() -> String) -> Result<T, StepError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, step: impl FnOnce() -> String) -> Result<T, StepError> {
        self.map_err(|error| StepError {
            step: step(),
            error: error.into(),
        })
    }
}
