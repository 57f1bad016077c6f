//! Looking at files below one directory, never through a symbolic link and never outside it.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{self, AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};
use volary_kernel::Timestamp;

use super::table::{Seen, Stamp};
use crate::{
    page::{ContentHash, reason},
    path,
};

/// A stamp counts only this long after the file's last change: the coarsest file systems keep times in steps of 2 s.
const TRUST_AFTER_NANOS: i64 = 2_000_000_000;
const READ_CHUNK: usize = 64 * 1024;

/// An open root directory.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    dir: OwnedFd,
    id: (u64, u64),
    /// Whether the kernel resolves a whole path without links by itself (Linux 5.6, not behind every seccomp filter).
    openat2: bool,
}

/// What one look found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// What is there.
    pub seen: Seen,
    /// Whether it stayed the same while it was looked at.
    pub steady: bool,
    /// Its length in bytes.
    pub bytes: u64,
}

impl Look {
    const fn gone(reason: &'static str, bytes: u64) -> Self {
        Self {
            seen: Seen::Gone(reason),
            steady: true,
            bytes,
        }
    }
}

/// One name in a directory.
#[derive(Debug)]
pub struct Item {
    /// Its page path.
    pub path: String,
    /// Whether it is a directory.
    pub directory: bool,
    /// A regular file's outer signs.
    pub stamp: Option<Stamp>,
}

impl Root {
    /// Opens `path`, which may itself be a link.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = fs::openat(CWD, path, flags, Mode::empty())?;
        let id = identity(&fs::fstat(&dir)?);
        let openat2 = open_beneath(&dir, OsStr::new("."), flags).is_ok();
        Ok(Self {
            path: path.to_owned(),
            dir,
            id,
            openat2,
        })
    }

    /// Whether the path still leads to the directory that was opened.
    pub fn is_current(&self) -> bool {
        fs::stat(&self.path).is_ok_and(|stat| identity(&stat) == self.id)
    }

    /// The file path of a page.
    pub fn file(&self, page_path: &str) -> PathBuf {
        if page_path.is_empty() {
            self.path.clone()
        } else {
            self.path.join(path::file_path(page_path))
        }
    }

    /// The page path of a file path, if it lies below the root; empty for the root itself.
    pub fn page_path(&self, file: &Path) -> Option<String> {
        let relative = file.strip_prefix(&self.path).ok()?;
        if relative.as_os_str().is_empty() {
            Some(String::new())
        } else {
            path::page_path(relative)
        }
    }

    fn resolve(&self, page_path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let file = path::file_path(page_path);
        let name = if page_path.is_empty() {
            OsStr::new(".")
        } else {
            file.as_os_str()
        };
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if self.openat2 {
            open_beneath(&self.dir, name, flags)
        } else {
            open_stepwise(&self.dir, Path::new(name), flags)
        }
    }

    /// Whether a directory is at this page path.
    pub fn is_directory(&self, page_path: &str) -> bool {
        self.resolve(page_path, OFlags::PATH | OFlags::DIRECTORY)
            .is_ok()
    }

    /// What the directory at `page_path` holds. Links and devices are left out.
    ///
    /// # Errors
    /// What the operating system said; `NotFound` also when something else took the directory's place.
    pub fn list(&self, page_path: &str, now: Timestamp) -> io::Result<Vec<Item>> {
        let fd = match self.resolve(page_path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Err(Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => {
                return Err(io::ErrorKind::NotFound.into());
            }
            other => other?,
        };
        let mut items = Vec::new();
        let mut entries = Dir::read_from(&fd)?;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let kind = entry.file_type();
            if !matches!(
                kind,
                FileType::Directory | FileType::RegularFile | FileType::Unknown
            ) {
                continue;
            }
            let Ok(stat) = fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            let kind = FileType::from_raw_mode(stat.st_mode);
            let mut path = page_path.to_owned();
            if !path.is_empty() {
                path.push('/');
            }
            path::push_name(&mut path, OsStr::from_bytes(name.to_bytes()));
            match kind {
                FileType::Directory => items.push(Item {
                    path,
                    directory: true,
                    stamp: None,
                }),
                FileType::RegularFile => {
                    items.push(Item {
                        path,
                        directory: false,
                        stamp: Some(stamp(&stat, now)),
                    });
                }
                _ => {}
            }
        }
        Ok(items)
    }

    /// Looks at one page's file, reading it unless `known` proves that its content is the same.
    ///
    /// # Errors
    /// What the operating system said, other than that nothing is there.
    pub fn look(
        &self,
        page_path: &str,
        known: Option<&Stamp>,
        limit: u64,
        now: Timestamp,
        buffer: &mut Vec<u8>,
    ) -> io::Result<Look> {
        // A look without opening first: opening a device or a pipe can have effects.
        let stat = match self
            .resolve(page_path, OFlags::PATH)
            .and_then(|fd| fs::fstat(&fd))
        {
            Ok(stat) => stat,
            Err(errno) => return absent(errno),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(Look::gone(reason::NOT_A_FILE, 0));
        }
        let before = stamp(&stat, now);
        if known.is_some_and(|known| known.proves_same(&before)) {
            return Ok(Look {
                seen: Seen::Same,
                steady: true,
                bytes: before.size,
            });
        }
        if before.size > limit {
            return Ok(Look::gone(reason::TOO_LARGE, before.size));
        }
        let fd = match self.resolve(
            page_path,
            OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY,
        ) {
            Ok(fd) => fd,
            Err(errno) => return absent(errno),
        };
        read(File::from(fd), limit, now, buffer)
    }
}

fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

fn absent(errno: Errno) -> io::Result<Look> {
    match errno {
        Errno::NOENT | Errno::NOTDIR => Ok(Look::gone(reason::DELETED, 0)),
        Errno::LOOP | Errno::XDEV | Errno::NXIO => Ok(Look::gone(reason::NOT_A_FILE, 0)),
        other => Err(other.into()),
    }
}

fn read(mut file: File, limit: u64, now: Timestamp, buffer: &mut Vec<u8>) -> io::Result<Look> {
    let stat = fs::fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(Look::gone(reason::NOT_A_FILE, 0));
    }
    let before = stamp(&stat, now);
    buffer.resize(READ_CHUNK, 0);
    let (mut hasher, mut total) = (blake3::Hasher::new(), 0u64);
    loop {
        let count = match file.read(buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&buffer[..count]);
        total += count as u64;
        if total > limit {
            return Ok(Look::gone(reason::TOO_LARGE, total));
        }
    }
    let after = stamp(&fs::fstat(&file)?, now);
    let hash = ContentHash::from_bytes(*hasher.finalize().as_bytes());
    let steady = before == after && total == before.size;
    Ok(Look {
        seen: Seen::File {
            hash,
            stamp: Stamp {
                trusted: steady && before.trusted,
                ..after
            },
        },
        steady,
        bytes: total,
    })
}

fn stamp(stat: &Stat, now: Timestamp) -> Stamp {
    let nanos = |seconds: i64, rest: u64| {
        seconds
            .saturating_mul(1_000_000_000)
            .saturating_add_unsigned(rest)
    };
    let modified = nanos(stat.st_mtime, stat.st_mtime_nsec);
    let changed = nanos(stat.st_ctime, stat.st_ctime_nsec);
    let age = now
        .as_micros()
        .saturating_mul(1000)
        .saturating_sub(modified.max(changed));
    Stamp {
        size: u64::try_from(stat.st_size).unwrap_or(0),
        modified,
        changed,
        inode: stat.st_ino,
        trusted: age > TRUST_AFTER_NANOS,
    }
}

fn open_beneath(dir: &OwnedFd, name: &OsStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    loop {
        // EAGAIN: something was renamed meanwhile and the kernel could not be sure.
        match fs::openat2(dir, name, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

/// The same where the kernel does not offer it: one step at a time, none of them through a link.
fn open_stepwise(dir: &OwnedFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let mut at = fs::openat(
        dir,
        c".",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut parts = path.iter().peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return fs::openat(&at, part, flags, Mode::empty());
        }
        let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        at = fs::openat(&at, part, step, Mode::empty())?;
    }
    Err(Errno::NOENT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::symlink};

    const LATER: Timestamp = Timestamp::from_micros(4_000_000_000_000_000);
    const EARLY: Timestamp = Timestamp::from_micros(0);

    fn tree() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/a"), "x").unwrap();
        symlink("d", dir.path().join("link")).unwrap();
        symlink("/etc/hostname", dir.path().join("out")).unwrap();
        symlink(".", dir.path().join("loop")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        (dir, root)
    }

    fn look(root: &Root, path: &str) -> Seen {
        root.look(path, None, 1000, LATER, &mut Vec::new())
            .unwrap()
            .seen
    }

    /// Every behaviour with both ways to resolve a path.
    fn both(check: impl Fn(&tempfile::TempDir, &Root)) {
        let (dir, mut root) = tree();
        check(&dir, &root);
        root.openat2 = false;
        check(&dir, &root);
    }

    #[test]
    fn a_file_is_hashed() {
        both(|_, root| {
            assert!(
                matches!(look(root, "d/a"), Seen::File { hash, .. } if hash == ContentHash::of(b"x"))
            )
        });
    }

    #[test]
    fn nothing_is_seen_through_links() {
        both(|_, root| {
            for path in ["link/a", "out", "link", "loop/d/a", "loop/loop/d/a"] {
                assert!(matches!(look(root, path), Seen::Gone(_)), "{path}");
            }
            assert!(root.list("link", LATER).is_err());
            let mut names: Vec<_> = root
                .list("", LATER)
                .unwrap()
                .into_iter()
                .map(|item| item.path)
                .collect();
            names.sort();
            assert_eq!(names, ["d"]);
        });
    }

    #[test]
    fn pipes_and_directories_are_no_pages_and_do_not_block() {
        both(|dir, root| {
            let pipe = dir.path().join("pipe");
            let _may_exist = rustix::fs::mkfifoat(CWD, &pipe, Mode::RWXU);
            assert_eq!(look(root, "pipe"), Seen::Gone(reason::NOT_A_FILE));
            assert_eq!(look(root, "d"), Seen::Gone(reason::NOT_A_FILE));
            assert_eq!(look(root, "d/none"), Seen::Gone(reason::DELETED));
            assert_eq!(look(root, "d/a/none"), Seen::Gone(reason::DELETED));
        });
    }

    #[test]
    fn a_recent_file_is_not_proved_same_by_its_stamp() {
        let (_dir, root) = tree();
        let stamp_at = |now| match root
            .look("d/a", None, 1000, now, &mut Vec::new())
            .unwrap()
            .seen
        {
            Seen::File { stamp, .. } => stamp,
            other => panic!("{other:?}"),
        };
        let (racy, old) = (stamp_at(EARLY), stamp_at(LATER));
        assert!(!racy.trusted);
        assert!(matches!(
            root.look("d/a", Some(&racy), 1000, LATER, &mut Vec::new())
                .unwrap()
                .seen,
            Seen::File { .. }
        ));
        assert_eq!(
            root.look("d/a", Some(&old), 1000, LATER, &mut Vec::new())
                .unwrap()
                .seen,
            Seen::Same
        );
    }

    #[test]
    fn a_file_over_the_bound_is_reported_with_its_size() {
        let (dir, root) = tree();
        fs::write(dir.path().join("big"), vec![0; 1001]).unwrap();
        let look = root
            .look("big", None, 1000, LATER, &mut Vec::new())
            .unwrap();
        assert_eq!(
            (look.seen, look.bytes),
            (Seen::Gone(reason::TOO_LARGE), 1001)
        );
    }

    #[test]
    fn a_replaced_root_is_no_longer_current() {
        let (dir, root) = tree();
        assert!(root.is_current());
        let moved = dir.path().with_extension("moved");
        fs::rename(dir.path(), &moved).unwrap();
        assert!(!root.is_current());
        fs::create_dir(dir.path()).unwrap();
        assert!(!root.is_current());
        fs::remove_dir_all(moved).unwrap();
    }
}
