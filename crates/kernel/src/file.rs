//! Files that are never half written, and files that only their owner may read.

use std::{
    fs::{File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Suffix of the temporary file that [`write_atomic`] makes; a sweep may remove files that end so.
pub const TEMP_SUFFIX: &str = ".volary-tmp";

/// Replaces `path` by `bytes` as a whole: readers see the old content or the new, a crash leaves one of them.
///
/// The new file has permission bits `mode`. Durable on return (file and folder are synced).
///
/// # Errors
/// Any I/O error, with the path in its text.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let context =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}{TEMP_SUFFIX}", crate::id::Uid::generate()));
    let temporary = PathBuf::from(temporary);
    let written =
        write_new(&temporary, bytes, mode).and_then(|()| std::fs::rename(&temporary, path));
    if let Err(error) = written {
        let _already_gone = std::fs::remove_file(&temporary);
        return Err(context(error));
    }
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(context)
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    // The process's umask may have taken bits away.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes `path` and its parents, only for their owner (0700), and tightens it if it was there with other bits.
///
/// # Errors
/// Any I/O error, with the path in its text.
pub fn create_private_dir(path: &Path) -> io::Result<()> {
    let context =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    std::fs::create_dir_all(path).map_err(context)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_with_its_mode_and_no_leftovers() {
        let folder =
            std::env::temp_dir().join(format!("volary-file-{}", crate::id::Uid::generate()));
        create_private_dir(&folder).unwrap();
        let path = folder.join("token");
        write_atomic(&path, b"one", 0o600).unwrap();
        write_atomic(&path, b"two", 0o400).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o400
        );
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        let missing = write_atomic(&folder.join("no/such"), b"", 0o600).unwrap_err();
        assert!(missing.to_string().contains("no/such"), "{missing}");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
