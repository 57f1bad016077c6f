//! The system calls that neither the standard library nor rustix offers, and descriptor passing over
//! datagram sockets. All `unsafe` of the process backend is here.

use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// Descriptors one datagram may carry.
pub(crate) const MAX_FDS: usize = 5;

/// One received datagram.
#[derive(Debug, Default)]
pub(crate) struct Datagram {
    /// Zero means that the peer is gone.
    pub(crate) len: usize,
    pub(crate) fds: Vec<OwnedFd>,
    /// Process id of the sender as seen by the receiver, when the receiver asked for credentials.
    pub(crate) sender: Option<i32>,
}

/// Two connected ends of a datagram socket with message boundaries, closed on exec.
pub(crate) fn datagram_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Sends one datagram with descriptors; a gone peer is an error, never a signal.
pub(crate) fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    rustix::net::sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Receives one datagram. Blocks unless the socket is non-blocking.
pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Datagram> {
    let mut space =
        [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS), ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(
            &socket,
            &mut [IoSliceMut::new(buffer)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    let mut datagram = Datagram {
        len: got.bytes,
        ..Datagram::default()
    };
    for message in control.drain() {
        match message {
            RecvAncillaryMessage::ScmRights(fds) => datagram.fds.extend(fds),
            RecvAncillaryMessage::ScmCredentials(from) => {
                datagram.sender = Some(from.pid.as_raw_pid());
            }
            _ => {}
        }
    }
    Ok(datagram)
}

/// An anonymous file holding `bytes`, rewound.
pub(crate) fn memory_file(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}

/// Reads a memory file to its end.
pub(crate) fn read_memory_file(fd: OwnedFd) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::from(fd).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Which side of [`clone_process`] returned.
pub(crate) enum Cloned {
    /// In the new process.
    Child,
    /// In the caller: id of the new process and, if asked for, a descriptor of it.
    Parent(i32, Option<OwnedFd>),
}

/// The namespaces a new process gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Namespaces {
    pub(crate) pid: bool,
    pub(crate) mount: bool,
    pub(crate) user: bool,
}

impl Namespaces {
    /// None: an ordinary child.
    pub(crate) const NONE: Self = Self {
        pid: false,
        mount: false,
        user: false,
    };

    fn flags(self) -> u64 {
        let bit = |on: bool, flag: libc::c_int| if on { flag as u64 } else { 0 };
        bit(self.pid, libc::CLONE_NEWPID)
            | bit(self.mount, libc::CLONE_NEWNS)
            | bit(self.user, libc::CLONE_NEWUSER)
    }

    pub(crate) fn to_byte(self) -> u8 {
        u8::from(self.pid) | u8::from(self.mount) << 1 | u8::from(self.user) << 2
    }

    pub(crate) fn from_byte(byte: u8) -> Self {
        Self {
            pid: byte & 1 != 0,
            mount: byte & 2 != 0,
            user: byte & 4 != 0,
        }
    }
}

/// Forks the calling process into new namespaces. Only for a process with a single thread, so that the
/// child may go on using the allocator.
pub(crate) fn clone_process(namespaces: Namespaces, want_pidfd: bool) -> io::Result<Cloned> {
    #[repr(C)]
    #[derive(Default)]
    struct CloneArgs {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
    }
    let mut pidfd: libc::c_int = -1;
    let wanted = if want_pidfd {
        libc::CLONE_PIDFD as u64
    } else {
        0
    };
    let mut args = CloneArgs {
        flags: namespaces.flags() | wanted,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    // SAFETY: the arguments are a valid structure of the size given; without CLONE_VM the child gets a
    // copy of this address space like after fork, and the caller has one thread, so no lock is held.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    match result {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child),
        pid => {
            // SAFETY: with CLONE_PIDFD the kernel stored a descriptor that nobody else owns.
            let pidfd = (pidfd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(pidfd) });
            Ok(Cloned::Parent(i32::try_from(pid).unwrap_or(-1), pidfd))
        }
    }
}

/// Ends the process at once, running no destructor.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: takes no pointers and does not return.
    unsafe { libc::_exit(code) }
}

/// Closes every descriptor from `first` on.
pub(crate) fn close_from(first: RawFd) {
    let first = libc::c_uint::try_from(first).unwrap_or(0);
    // SAFETY: closes numbers only; the callers own nothing at or above `first`.
    unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            libc::c_uint::MAX,
            0 as libc::c_uint,
        )
    };
}

/// Makes `target` a copy of `fd` that survives exec, and leaves `fd` open.
pub(crate) fn duplicate_onto(fd: RawFd, target: RawFd, close_on_exec: bool) -> io::Result<()> {
    if fd == target {
        // dup2(n, n) would keep close-on-exec as it is.
        let flags = if close_on_exec { libc::FD_CLOEXEC } else { 0 };
        // SAFETY: sets flags of an open descriptor.
        return check(unsafe { libc::fcntl(fd, libc::F_SETFD, flags) }).map(drop);
    }
    let flags = if close_on_exec { libc::O_CLOEXEC } else { 0 };
    // SAFETY: replaces a descriptor number that the caller set aside for it.
    check(unsafe { libc::dup3(fd, target, flags) }).map(drop)
}

/// A copy of `fd` whose number is at least `least`, closed on exec.
pub(crate) fn duplicate_above(fd: RawFd, least: RawFd) -> io::Result<RawFd> {
    // SAFETY: only creates a descriptor.
    check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, least) })
}

/// Takes ownership of a descriptor number.
///
/// The caller must own `fd` and use the number no more.
pub(crate) fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: stated by the caller's contract; used in the init for numbers it placed itself.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Blocks all signals and returns a descriptor that becomes readable when a child changes state.
pub(crate) fn child_events() -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is initialised by sigfillset before it is read, and lives through the calls.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        check(libc::sigprocmask(
            libc::SIG_SETMASK,
            set.as_ptr(),
            std::ptr::null_mut(),
        ))?;
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
        let fd = check(libc::signalfd(
            -1,
            set.as_ptr(),
            libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
        ))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Every signal to its default action and none blocked, as a program expects at its start.
pub(crate) fn reset_signals() {
    for signal in 1..=64 {
        set_signal(signal, libc::SIG_DFL);
    }
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is initialised by sigemptyset before it is read.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut());
    }
}

/// Sets a signal's action to `SIG_DFL` or `SIG_IGN`; signals that allow neither are left.
pub(crate) fn set_signal(signal: i32, action: libc::sighandler_t) {
    // SAFETY: both actions are constants of the system; no handler function is installed.
    unsafe { libc::signal(signal, action) };
}

/// Reaps one child without waiting: its id and wait status.
pub(crate) fn reap() -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: `status` is a valid place for the result.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) };
    (pid > 0).then_some((pid, status))
}

/// Sends a signal by id; a negative id is a process group.
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: takes no pointers.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Makes the mount tree at `path` read-only, recursively if asked.
pub(crate) fn set_read_only(path: &Path, recursive: bool) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    #[repr(C)]
    struct MountAttr {
        set: u64,
        clear: u64,
        propagation: u64,
        userns: u64,
    }
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let mut attr = MountAttr {
        set: libc::MOUNT_ATTR_RDONLY,
        clear: 0,
        propagation: 0,
        userns: 0,
    };
    let flags = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: path and attributes are valid for the call, the size is the structure's.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            flags,
            &raw mut attr,
            size_of::<MountAttr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Keeps only the capabilities in `keep`, in every set including the bounding one. Call before the user
/// changes for the bounding set and again after it for the others.
pub(crate) fn drop_bounding(keep: u64) {
    for capability in 0..64 {
        if keep & (1 << capability) == 0 {
            // SAFETY: takes numbers only; unknown capabilities are refused, which is what is wanted.
            unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability as libc::c_ulong, 0, 0, 0) };
        }
    }
}

/// Reduces permitted and effective capabilities to `keep` and empties the inheritable and ambient sets.
pub(crate) fn limit_capabilities(keep: u64) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    // Version 3: 64 capabilities in two words.
    let mut header = Header {
        version: 0x2008_0522,
        pid: 0,
    };
    let mut data = [Data::default(); 2];
    // SAFETY: header and the two data words are what version 3 asks for.
    let got = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
    if got != 0 {
        return Err(io::Error::last_os_error());
    }
    for (word, data) in data.iter_mut().enumerate() {
        let keep = u32::try_from(keep >> (32 * word) & u64::from(u32::MAX)).unwrap_or(0);
        data.permitted &= keep;
        data.effective = data.permitted;
        data.inheritable = 0;
    }
    // SAFETY: as above.
    let set = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) };
    if set == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Becomes another user with no supplementary groups.
pub(crate) fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: takes numbers and an empty list; the process has one thread.
    unsafe {
        check(libc::setgroups(0, std::ptr::null()))?;
        check(libc::setresgid(gid, gid, gid))?;
        check(libc::setresuid(uid, uid, uid))?;
    }
    Ok(())
}

/// Sets a resource limit of the calling process.
pub(crate) fn limit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: `limit` is valid for the call.
    check(unsafe { libc::setrlimit(resource, &raw const limit) }).map(drop)
}

/// The calling process's limit of open files, soft and hard.
pub(crate) fn open_files_limit() -> (u64, u64) {
    let mut limit = libc::rlimit {
        rlim_cur: 1024,
        rlim_max: 4096,
    };
    // SAFETY: `limit` is a valid place for the result; on failure the defaults above stay.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    (limit.rlim_cur, limit.rlim_max)
}

/// Replaces the program. Returns only on failure.
pub(crate) fn execute(
    program: &std::ffi::CStr,
    argv: &[std::ffi::CString],
    env: &[std::ffi::CString],
) -> io::Error {
    let pointers = |texts: &[std::ffi::CString]| {
        texts
            .iter()
            .map(|text| text.as_ptr())
            .chain([std::ptr::null()])
            .collect::<Vec<_>>()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both lists end with a null pointer and their texts outlive the call.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// The number of a descriptor that must be passed to the calls above.
pub(crate) fn raw(fd: &OwnedFd) -> RawFd {
    fd.as_raw_fd()
}

/// Landlock version of the running kernel; `None` if it has none or it is switched off.
pub(crate) fn landlock_version() -> Option<u32> {
    const VERSION: libc::c_uint = 1;
    // SAFETY: with the version flag, attributes are a null pointer of size 0.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0_usize,
            VERSION,
        )
    };
    u32::try_from(version).ok().filter(|version| *version > 0)
}

/// Registers a descriptor with the runtime; for the node only.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor stays open and the same until it is dropped with its registration.
    Ok(unsafe { tokio::io::unix::AsyncFd::register(fd) }?)
}
