//! The starter: takes requests with descriptors from the node and forks an init for each.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::process::Signal;

use super::super::sys::{self, Cloned, Namespaces};
use super::pid1::{self, Handles};

/// Runs this process as the starter of replicas until the node is gone. Call it first in `main`, before a
/// thread is started or anything is allocated at length, when the first argument says so.
///
/// The process expects a datagram socket from its node as standard input and ends when that is closed.
pub fn init_main() -> ! {
    let _ignored = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    // A terminal's Ctrl-C is for the node, which drains; these processes end with it.
    let _already_leader = rustix::process::setsid();
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGPIPE] {
        sys::set_signal(signal, libc::SIG_IGN);
    }
    // Ended inits are reaped by the kernel: the node watches them by descriptor.
    sys::set_signal(libc::SIGCHLD, libc::SIG_IGN);
    let _cosmetic = rustix::thread::set_name(c"volary-starter");
    let _stays = rustix::process::chdir("/");
    let owner = (
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    let socket = sys::adopt(0);
    while let Ok(Some((namespaces, fds))) = next_request(&socket) {
        if serve(&socket, namespaces, fds, owner).is_err() {
            break;
        }
    }
    sys::exit(0)
}

/// The next request; `None` when the node is gone.
fn next_request(socket: &OwnedFd) -> io::Result<Option<(Namespaces, Vec<OwnedFd>)>> {
    let mut buffer = [0; 16];
    let datagram = sys::receive(socket, &mut buffer)?;
    Ok((datagram.len > 0).then(|| (Namespaces::from_byte(buffer[0]), datagram.fds)))
}

/// Forks an init and answers with its id and a descriptor, or with the error number negated.
fn serve(
    socket: &OwnedFd,
    namespaces: Namespaces,
    fds: Vec<OwnedFd>,
    owner: (u32, u32),
) -> io::Result<()> {
    let Ok(fds) = <[OwnedFd; 5]>::try_from(fds) else {
        return sys::send(socket, &(-libc::EINVAL).to_le_bytes(), &[]);
    };
    match sys::clone_process(namespaces, true) {
        Ok(Cloned::Child) => pid1::run(Handles(fds), namespaces, owner),
        Ok(Cloned::Parent(pid, Some(pidfd))) => {
            sys::send(socket, &pid.to_le_bytes(), &[pidfd.as_fd()])
        }
        Ok(Cloned::Parent(_, None)) => sys::send(socket, &(-libc::ENOSYS).to_le_bytes(), &[]),
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            sys::send(socket, &(-errno).to_le_bytes(), &[])
        }
    }
}
