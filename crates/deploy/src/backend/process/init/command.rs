//! Runs a program inside the namespace: limits, user, capabilities, directory, then exec.

use std::ffi::{CString, OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::super::sys::{self, Cloned, Namespaces};
use super::super::wire::WireCommand;
use super::StepError;

/// Steps of a child before its program runs, in order; the number travels when one fails.
const STEPS: [&str; 6] = [
    "standard streams",
    "resource limits",
    "user",
    "capabilities",
    "working directory",
    "program",
];

/// Texts in the form that exec wants, made before the fork.
struct Prepared {
    /// Files to try, in order of the search path.
    programs: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<CString>,
}

/// Forks and executes. Returns the process id once the program runs. `announce` is called in the child just
/// before the program replaces it.
pub(super) fn start(
    command: &WireCommand,
    streams: Option<[RawFd; 3]>,
    announce: impl FnOnce(),
) -> Result<i32, StepError> {
    let prepared = Prepared::new(command).map_err(|error| fail("program", command, error))?;
    let (mut told, tell) = io::pipe().map_err(|error| fail("pipe", command, error))?;
    match sys::clone_process(Namespaces::NONE, false) {
        Err(error) => Err(fail("fork", command, error)),
        Ok(Cloned::Child) => {
            let (step, error) = become_program(command, &prepared, streams, announce);
            let errno = error.raw_os_error().unwrap_or(libc::EINVAL).to_le_bytes();
            let _parent_may_be_gone =
                (&tell).write_all(&[step, errno[0], errno[1], errno[2], errno[3]]);
            sys::exit(127)
        }
        Ok(Cloned::Parent(pid, _)) => {
            drop(tell);
            let mut answer = [0; 5];
            match told.read_exact(&mut answer) {
                Ok(()) => {
                    let errno = [answer[1], answer[2], answer[3], answer[4]];
                    let error = io::Error::from_raw_os_error(i32::from_le_bytes(errno));
                    Err(fail(
                        STEPS.get(usize::from(answer[0])).unwrap_or(&"program"),
                        command,
                        error,
                    ))
                }
                // Exec closed the pipe without a word: the program runs.
                Err(_) => Ok(pid),
            }
        }
    }
}

fn fail(step: &str, command: &WireCommand, error: io::Error) -> StepError {
    let step = match step {
        "program" => {
            format!(
                "program {}",
                command.argv.first().cloned().unwrap_or_default().display()
            )
        }
        "working directory" => format!("working directory {}", command.cwd.display()),
        other => other.to_owned(),
    };
    StepError { step, error }
}

/// The child's way to its program; returns only the step that failed and why.
fn become_program(
    command: &WireCommand,
    prepared: &Prepared,
    streams: Option<[RawFd; 3]>,
    announce: impl FnOnce(),
) -> (u8, io::Error) {
    let result = (|| {
        place_streams(streams).map_err(|error| (0, error))?;
        let _leads_a_session = rustix::process::setsid();
        let _previous = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        for limit in &command.limits {
            sys::limit(limit.resource, limit.soft, limit.hard).map_err(|error| (1, error))?;
        }
        if command.confine {
            sys::drop_bounding(command.capabilities);
        }
        if let Some((uid, gid)) = command.user {
            sys::become_user(uid, gid).map_err(|error| (2, error))?;
        }
        if command.confine {
            sys::limit_capabilities(command.capabilities).map_err(|error| (3, error))?;
        }
        std::env::set_current_dir(&command.cwd).map_err(|error| (4, error))?;
        sys::reset_signals();
        announce();
        Err((5, prepared.execute()))
    })();
    match result {
        Ok(never) => never,
        Err(failure) => failure,
    }
}

fn place_streams(streams: Option<[RawFd; 3]>) -> io::Result<()> {
    let Some(streams) = streams else {
        return Ok(());
    };
    for (target, source) in (0..).zip(streams) {
        sys::duplicate_onto(source, target, false)?;
    }
    Ok(())
}

impl Prepared {
    fn new(command: &WireCommand) -> io::Result<Self> {
        let program = command.argv.first().ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self {
            programs: texts(&candidates(program, &command.env))?,
            argv: texts(&command.argv)?,
            env: texts(&command.env)?,
        })
    }

    /// Tries each candidate like a shell does: a file that may not be run is remembered, a missing one not.
    fn execute(&self) -> io::Error {
        let mut refused = None;
        let mut last = io::Error::from_raw_os_error(libc::ENOENT);
        for program in &self.programs {
            last = sys::execute(program, &self.argv, &self.env);
            match last.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR) => {}
                Some(libc::EACCES) => refused = Some(libc::EACCES),
                _ => return last,
            }
        }
        refused.map_or(last, io::Error::from_raw_os_error)
    }
}

fn texts(from: &[OsString]) -> io::Result<Vec<CString>> {
    from.iter()
        .map(|text| Ok(CString::new(text.as_bytes())?))
        .collect()
}

/// A name with a slash is a path; any other is looked up in the `PATH` of the replica.
fn candidates(program: &OsStr, env: &[OsString]) -> Vec<OsString> {
    if program.as_bytes().contains(&b'/') {
        return vec![program.to_owned()];
    }
    let path = env
        .iter()
        .find_map(|entry| entry.as_bytes().strip_prefix(b"PATH="))
        .unwrap_or_default();
    path.split(|byte| *byte == b':')
        .map(|directory| {
            let directory = if directory.is_empty() {
                b"."
            } else {
                directory
            };
            OsString::from_vec([directory, b"/", program.as_bytes()].concat())
        })
        .collect()
}
