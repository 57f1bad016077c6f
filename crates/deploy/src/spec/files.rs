//! The one place where manifests and what they name are read.

use std::{
    fs,
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Component, Path, PathBuf},
};

/// Longest file that is read: manifests are written by people, and 1 MiB is far beyond what a person writes.
pub const FILE_MAX: u64 = 1 << 20;

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A file that may not be executed.
    File,
    /// A file that may be executed.
    Executable,
    /// A folder.
    Folder,
    /// Something else, such as a socket.
    Other,
}

/// How manifests reach the file system. Tests put a table in its place.
pub struct Files<'a> {
    /// Reads a file, at most [`FILE_MAX`] + 1 bytes of it.
    pub read: &'a dyn Fn(&Path) -> io::Result<Vec<u8>>,
    /// Looks what is at a path; `None` if nothing is.
    pub find: &'a dyn Fn(&Path) -> Option<Found>,
    /// The path without what depends on the working directory.
    pub absolute: &'a dyn Fn(&Path) -> PathBuf,
    /// Names in a folder, sorted; nothing if it cannot be read.
    pub list: &'a dyn Fn(&Path) -> Vec<String>,
}

impl Files<'static> {
    /// The machine's file system.
    pub fn disk() -> Self {
        Self {
            read: &read,
            find: &find,
            absolute: &absolute,
            list: &list,
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?
        .take(FILE_MAX + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn find(path: &Path) -> Option<Found> {
    let metadata = fs::metadata(path).ok()?;
    Some(match metadata.is_file() {
        true if metadata.permissions().mode() & 0o111 != 0 => Found::Executable,
        true => Found::File,
        false if metadata.is_dir() => Found::Folder,
        false => Found::Other,
    })
}

/// The folder of a manifest that is named without one is the current one.
fn absolute(path: &Path) -> PathBuf {
    let named = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    std::path::absolute(named).unwrap_or_else(|_| path.to_path_buf())
}

/// Most names that a listing returns: it only feeds a hint.
const LIST_MAX: usize = 1000;

fn list(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path)
        .into_iter()
        .flatten()
        .take(LIST_MAX)
        .flatten();
    let mut names: Vec<_> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// `path` as seen from `base`, without `.` parts; `..` stays, since it may cross a symbolic link.
pub(crate) fn join(base: &Path, path: impl AsRef<Path>) -> PathBuf {
    let joined: PathBuf = base
        .join(path)
        .components()
        .filter(|part| !matches!(part, Component::CurDir))
        .collect();
    if joined.as_os_str().is_empty() {
        PathBuf::from(".")
    } else {
        joined
    }
}
