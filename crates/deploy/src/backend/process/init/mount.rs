//! The replica's view of the file system: what it must not see is covered, what is its own is put in place.
//!
//! Order matters. Sources of binds are taken hold of first, while everything is visible; then the machine is
//! made read-only where asked; then `/dev` and `/proc` are made anew; then hidden directories are covered by
//! empty ones in memory, and last the replica's own directory and binds are put into them.

use std::ffi::CString;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid, Mode, Uid};
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags};

use super::super::sys;
use super::super::wire::{Plan, View, WireBind, WirePrivate};
use super::{At, StepError};

/// Bound of the empty directory that covers a hidden one, bytes: it holds mount points only.
const COVER_SIZE: u64 = 1 << 20;
/// Bound of a private `/dev/shm`, bytes: as containers have it.
const SHM_SIZE: u64 = 64 << 20;
/// What a read-only root leaves to write in, in memory.
const OWN_TMP: &str = "/tmp";
/// Parts of `/proc` through which a root process could change the machine.
const PROC_READ_ONLY: [&str; 5] = [
    "/proc/sys",
    "/proc/sysrq-trigger",
    "/proc/irq",
    "/proc/bus",
    "/proc/fs",
];

const BASE: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// Sets the file system of this mount namespace up; without one, only writes the replica's own files.
pub(super) fn arrange(plan: &Plan) -> Result<(), StepError> {
    let previous = rustix::process::umask(Mode::empty());
    if plan.view == View::Mounts {
        arrange_mounts(plan)?;
    } else if let Some(private) = &plan.private {
        make_private_dir(private)?;
        write_files(private)?;
    }
    let _own = rustix::process::umask(previous);
    Ok(())
}

fn arrange_mounts(plan: &Plan) -> Result<(), StepError> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).at(|| "private mounts".to_owned())?;
    let binds = plan
        .binds
        .iter()
        .map(take_hold)
        .collect::<Result<Vec<_>, _>>()?;
    make_read_only(plan)?;
    if let Some(devices) = &plan.devices {
        fresh_dev(devices).at(|| "fresh /dev".to_owned())?;
    }
    fresh_proc(plan.devices.is_some())?;
    for file in &plan.masked {
        rustix::mount::mount_bind("/dev/null", file).at(|| format!("mask {}", file.display()))?;
    }
    for hidden in &plan.hide {
        if plan.read_only_root && hidden.starts_with(OWN_TMP) {
            // Covered with all of `/tmp` already; it is made anew there as a place for the replica's own.
            make_parents(&hidden.join("x")).at(|| format!("make {}", hidden.display()))?;
        }
        memory_dir(hidden, COVER_SIZE, "mode=0755").at(|| format!("hide {}", hidden.display()))?;
    }
    if let Some(private) = &plan.private {
        make_private_dir(private)?;
        let owner = format!("mode=0700,uid={},gid={}", private.uid, private.gid);
        memory_dir(&private.dir, private.size, &owner)
            .at(|| format!("own directory {}", private.dir.display()))?;
        write_files(private)?;
    }
    let mut covers = plan.hide.clone();
    covers.extend(plan.read_only_root.then(|| OWN_TMP.into()));
    for (bind, tree) in plan.binds.iter().zip(binds) {
        put(bind, tree, &covers)?;
    }
    for hidden in &plan.hide {
        sys::set_read_only(hidden, false).at(|| format!("seal {}", hidden.display()))?;
    }
    Ok(())
}

fn memory_dir(at: &Path, size: u64, options: &str) -> io::Result<()> {
    let data = CString::new(format!("size={size},nr_inodes=4096,{options}"))?;
    Ok(rustix::mount::mount(
        "tmpfs",
        at,
        "tmpfs",
        BASE,
        data.as_c_str(),
    )?)
}

// ---- read-only ------------------------------------------------------------------------------------------

fn make_read_only(plan: &Plan) -> Result<(), StepError> {
    if plan.read_only_root {
        sys::set_read_only(Path::new("/"), true).at(|| "read-only root".to_owned())?;
        return memory_dir(Path::new(OWN_TMP), SHM_SIZE, "mode=1777").at(|| "own /tmp".to_owned());
    }
    for path in &plan.read_only {
        protect(path).at(|| format!("read-only {}", path.display()))?;
    }
    Ok(())
}

fn protect(path: &Path) -> io::Result<()> {
    rustix::mount::mount_bind_recursive(path, path)?;
    sys::set_read_only(path, true)
}

// ---- /dev and /proc -------------------------------------------------------------------------------------

/// A `/dev` with copies of the named nodes only: no disk, no memory, nobody else's terminal.
fn fresh_dev(devices: &[PathBuf]) -> io::Result<()> {
    let nodes: Vec<_> = devices
        .iter()
        .filter_map(|path| fs::metadata(path).ok().map(|found| (path, found)))
        .filter(|(_, found)| found.file_type().is_char_device())
        .collect();
    let data = CString::new("size=1m,mode=0755")?;
    rustix::mount::mount(
        "tmpfs",
        "/dev",
        "tmpfs",
        MountFlags::NOSUID,
        data.as_c_str(),
    )?;
    for (path, found) in nodes {
        make_parents(path)?;
        let mode = Mode::from_raw_mode(found.mode() & 0o777);
        rustix::fs::mknodat(
            CWD,
            path,
            rustix::fs::FileType::CharacterDevice,
            mode,
            found.rdev(),
        )?;
        let owner = (
            Some(Uid::from_raw(found.uid())),
            Some(Gid::from_raw(found.gid())),
        );
        rustix::fs::chownat(CWD, path, owner.0, owner.1, AtFlags::empty())?;
    }
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
        ("/dev/ptmx", "pts/ptmx"),
    ] {
        std::os::unix::fs::symlink(target, link)?;
    }
    fs::create_dir("/dev/shm")?;
    memory_dir(Path::new("/dev/shm"), SHM_SIZE, "mode=1777")?;
    fs::create_dir("/dev/pts")?;
    let options = c"newinstance,ptmxmode=0666,mode=0620";
    rustix::mount::mount(
        "devpts",
        "/dev/pts",
        "devpts",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        options,
    )?;
    Ok(())
}

/// A `/proc` that shows this PID namespace only; for a root replica also one that cannot steer the kernel.
fn fresh_proc(root: bool) -> Result<(), StepError> {
    let flags = BASE | MountFlags::NOEXEC;
    rustix::mount::mount("proc", "/proc", "proc", flags, None).at(|| "fresh /proc".to_owned())?;
    if !root {
        return Ok(());
    }
    for path in PROC_READ_ONLY
        .map(Path::new)
        .into_iter()
        .filter(|path| path.exists())
    {
        protect(path).at(|| format!("read-only {}", path.display()))?;
    }
    Ok(())
}

// ---- the replica's own places ---------------------------------------------------------------------------

fn make_private_dir(private: &WirePrivate) -> Result<(), StepError> {
    (|| {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&private.dir)?;
        open_way(&private.dir)?;
        chown(&private.dir, private)
    })()
    .at(|| format!("own directory {}", private.dir.display()))
}

/// Directories made on the way in a covering directory must be passable for another user.
fn open_way(dir: &Path) -> io::Result<()> {
    for parent in dir.ancestors().skip(1) {
        let found = fs::symlink_metadata(parent)?;
        let mine = found.uid() == rustix::process::getuid().as_raw();
        if !mine || found.mode() & 0o777 != 0o700 {
            break;
        }
        fs::set_permissions(parent, fs::Permissions::from_mode(0o711))?;
    }
    Ok(())
}

fn write_files(private: &WirePrivate) -> Result<(), StepError> {
    for file in &private.files {
        let path = private.dir.join(&file.name);
        (|| {
            let mut to = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&path)?;
            to.write_all(&file.content)?;
            to.set_permissions(fs::Permissions::from_mode(file.mode))?;
            chown(&path, private)
        })()
        .at(|| format!("own file {}", path.display()))?;
    }
    Ok(())
}

fn chown(path: &Path, private: &WirePrivate) -> io::Result<()> {
    let found = fs::symlink_metadata(path)?;
    if (found.uid(), found.gid()) == (private.uid, private.gid) {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(private.uid), Gid::from_raw(private.gid));
    Ok(rustix::fs::chownat(
        CWD,
        path,
        Some(uid),
        Some(gid),
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

/// A detached copy of the mount tree at the source.
fn take_hold(bind: &WireBind) -> Result<OwnedFd, StepError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    rustix::mount::open_tree(CWD, &bind.source, flags)
        .at(|| format!("bind source {}", bind.source.display()))
}

fn put(bind: &WireBind, tree: OwnedFd, covers: &[PathBuf]) -> Result<(), StepError> {
    (|| {
        // Only inside covering directories may a mount point be made: the machine's own tree stays as it is.
        if covers.iter().any(|cover| bind.target.starts_with(cover)) && !bind.target.exists() {
            make_mount_point(&bind.target, &tree)?;
        }
        let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(&tree, "", CWD, &bind.target, empty)?;
        if bind.writable {
            Ok(())
        } else {
            sys::set_read_only(&bind.target, true)
        }
    })()
    .at(|| format!("bind {}", bind.target.display()))
}

fn make_mount_point(target: &Path, tree: &OwnedFd) -> io::Result<()> {
    make_parents(target)?;
    let found = rustix::fs::fstat(tree)?;
    if rustix::fs::FileType::from_raw_mode(found.st_mode) == rustix::fs::FileType::Directory {
        return fs::create_dir(target);
    }
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(target)
        .map(drop)
}

fn make_parents(path: &Path) -> io::Result<()> {
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    DirBuilder::new().recursive(true).mode(0o755).create(parent)
}
