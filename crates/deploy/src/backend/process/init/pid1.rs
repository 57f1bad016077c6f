//! The init of one replica: sets the namespace up, starts the main process, reaps, obeys, reports, and ends
//! with the main process or with the node, whichever is first.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::event::{PollFd, PollFlags};
use rustix::process::{DumpableBehavior, Signal};

use super::super::sys::{self, Namespaces};
use super::super::wire::{MAX_MESSAGE, Order, Plan, Report, View, WireCommand};
use super::{At, StepError, command, guardian, lockdown, mount};

/// Descriptor number of the control socket in an init.
const CONTROL: i32 = 3;
/// Descriptor number of the plan, until it is read.
const PLAN: i32 = 4;
/// Exit code of an init whose set-up failed; the report tells why.
const EXIT_SETUP: i32 = 125;

/// What the starter passes on: control socket, plan, standard input, output and error.
pub(super) struct Handles(pub(super) [OwnedFd; 5]);

struct Init {
    control: OwnedFd,
    children: OwnedFd,
    view: View,
    main: i32,
    /// Further commands by process id.
    commands: BTreeMap<i32, u32>,
}

/// Runs as an init; never returns.
pub(super) fn run(handles: Handles, namespaces: Namespaces, owner: (u32, u32)) -> ! {
    let result = place(handles).at(|| "descriptors".to_owned());
    let control = sys::adopt(CONTROL);
    let failure = match result.and_then(|()| prepare(namespaces, owner)) {
        Ok((plan, children)) => match begin(control, children, plan) {
            Ok(init) => init.serve(),
            Err((control, failure)) => (control, failure),
        },
        Err(failure) => (control, failure),
    };
    let (control, failure) = failure;
    let errno = failure.error.raw_os_error().unwrap_or(libc::EIO);
    let _node_may_be_gone = sys::send(
        &control,
        &Report::Failed {
            step: failure.step,
            errno,
        }
        .encode(),
        &[],
    );
    sys::exit(EXIT_SETUP)
}

/// Puts the descriptors at their fixed numbers and closes every other one, the starter's socket included.
fn place(handles: Handles) -> io::Result<()> {
    let Handles([control, plan, stdin, stdout, stderr]) = handles;
    let sources = [&stdin, &stdout, &stderr, &control, &plan];
    let mut above = [0; 5];
    for (slot, source) in above.iter_mut().zip(sources) {
        *slot = sys::duplicate_above(sys::raw(source), 64)?;
    }
    // From here on, numbers are owned by position: the originals are closed with everything else.
    std::mem::forget([control, plan, stdin, stdout, stderr]);
    for (target, source) in (0..).zip(above) {
        sys::duplicate_onto(source, target, target >= CONTROL)?;
    }
    sys::close_from(PLAN + 1);
    Ok(())
}

/// Everything up to the point where commands can be run.
fn prepare(namespaces: Namespaces, (uid, gid): (u32, u32)) -> Result<(Plan, OwnedFd), StepError> {
    let _early = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    if namespaces.user {
        map_owner(uid, gid).at(|| "user namespace".to_owned())?;
    }
    let bytes = sys::read_memory_file(sys::adopt(PLAN)).at(|| "plan".to_owned())?;
    let plan = Plan::decode(&bytes)
        .map_err(io::Error::other)
        .at(|| "plan".to_owned())?;
    if let Ok(label) = CString::new(plan.label.as_bytes()) {
        let _cosmetic = rustix::thread::set_name(&label);
    }
    for procs in &plan.cgroups {
        std::fs::write(procs, "0").at(|| format!("cgroup {}", procs.display()))?;
    }
    mount::arrange(&plan)?;
    if plan.view != View::Host {
        lockdown::enter(&plan)?;
    }
    sys::set_signal(libc::SIGCHLD, libc::SIG_DFL);
    let children = sys::child_events().at(|| "signals".to_owned())?;
    let _unreadable = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    // Last, because changed credentials clear it. Without namespaces the init must outlive a killed node
    // for as long as it takes to kill its own descendants, so there the socket alone tells.
    let signal = (plan.view != View::Host).then_some(Signal::KILL);
    rustix::process::set_parent_process_death_signal(signal)
        .at(|| "parent-death signal".to_owned())?;
    if plan.view == View::Host {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .at(|| "subreaper".to_owned())?;
    }
    Ok((plan, children))
}

/// Maps the owner to itself in the new user namespace.
fn map_owner(uid: u32, gid: u32) -> io::Result<()> {
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}

/// Starts the main process and lets go of its standard streams. A probe ends here.
fn begin(control: OwnedFd, children: OwnedFd, plan: Plan) -> Result<Init, (OwnedFd, StepError)> {
    let started = (|| {
        if node_is_gone(&control) {
            sys::exit(EXIT_SETUP);
        }
        let Some(command) = &plan.command else {
            let _node_may_be_gone = sys::send(&control, &Report::Running.encode(), &[]);
            sys::exit(0);
        };
        let main = command::start(command, None, || {
            let _node_may_be_gone = sys::send(&control, &Report::Starting.encode(), &[]);
        })?;
        release_streams().at(|| "standard streams".to_owned())?;
        let _node_may_be_gone = sys::send(&control, &Report::Running.encode(), &[]);
        Ok(main)
    })();
    match started {
        Ok(main) => Ok(Init {
            control,
            children,
            view: plan.view,
            main,
            commands: BTreeMap::new(),
        }),
        Err(failure) => Err((control, failure)),
    }
}

/// Whether the life line was cut before the parent-death signal was in force.
fn node_is_gone(control: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(control, PollFlags::IN)];
    let now = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let _nothing_ready = rustix::event::poll(&mut fds, Some(&now));
    fds[0].revents().intersects(PollFlags::HUP)
}

/// Replaces the standard streams by `/dev/null`, so that their readers see the end when the replica ends.
fn release_streams() -> io::Result<()> {
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    let null = OwnedFd::from(null);
    for stream in 0..CONTROL {
        sys::duplicate_onto(sys::raw(&null), stream, false)?;
    }
    Ok(())
}

// ---- serving --------------------------------------------------------------------------------------------

impl Init {
    fn serve(mut self) -> ! {
        loop {
            let mut fds = [
                PollFd::new(&self.control, PollFlags::IN),
                PollFd::new(&self.children, PollFlags::IN),
            ];
            let _interrupted = rustix::event::poll(&mut fds, None);
            let (orders, events) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
            if events {
                self.reap();
            }
            if orders {
                self.obey();
            }
        }
    }

    fn reap(&mut self) {
        let mut event = [0; 128];
        while matches!(rustix::io::read(&self.children, &mut event), Ok(got) if got > 0) {}
        while let Some((pid, status)) = sys::reap() {
            if pid == self.main {
                self.report(&Report::Exited(status));
                self.end(0);
            }
            if let Some(id) = self.commands.remove(&pid) {
                self.report(&Report::ExecExited { id, status });
            }
        }
    }

    fn obey(&mut self) {
        let mut buffer = [0; MAX_MESSAGE];
        let Ok(datagram) = sys::receive(&self.control, &mut buffer) else {
            self.end(EXIT_SETUP)
        };
        if datagram.len == 0 {
            self.end(EXIT_SETUP);
        }
        match Order::decode(&buffer[..datagram.len]) {
            Ok(Order::Signal(signal)) => {
                let _may_have_ended = sys::kill(self.main, signal);
            }
            Ok(Order::Exec(id)) => self.exec(id, datagram.fds),
            Ok(Order::KillExec(id)) => {
                let found = self.commands.iter().find(|(_, known)| **known == id);
                if let Some((pid, _)) = found {
                    // Each command leads a session, so its group is its id.
                    let _may_have_ended = sys::kill(-pid, libc::SIGKILL);
                }
            }
            Err(_) => {}
        }
    }

    fn exec(&mut self, id: u32, fds: Vec<OwnedFd>) {
        let started = <[OwnedFd; 4]>::try_from(fds)
            .map_err(|_| libc::EINVAL)
            .and_then(|[plan, stdin, stdout, stderr]| {
                let errno = |error: io::Error| error.raw_os_error().unwrap_or(libc::EINVAL);
                let bytes = sys::read_memory_file(plan).map_err(errno)?;
                let command = WireCommand::decode(&bytes).map_err(|_| libc::EINVAL)?;
                let streams = [sys::raw(&stdin), sys::raw(&stdout), sys::raw(&stderr)];
                command::start(&command, Some(streams), || {}).map_err(|failed| errno(failed.error))
            });
        match started {
            Ok(pid) => {
                self.commands.insert(pid, id);
            }
            Err(errno) => self.report(&Report::ExecFailed { id, errno }),
        }
    }

    fn report(&self, report: &Report) {
        let _node_may_be_gone = sys::send(&self.control, &report.encode(), &[]);
    }

    /// Ends the init, and with it everything in its namespace.
    fn end(&self, code: i32) -> ! {
        if self.view == View::Host {
            guardian::kill_descendants();
        }
        sys::exit(code)
    }
}
