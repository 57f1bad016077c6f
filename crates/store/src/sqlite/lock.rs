//! One writer per database: a locked file beside it, gone after a clean close, free after any death.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

use crate::error::StoreError;

/// The right to write to a database.
pub(super) struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    pub(super) fn take(database: &Path) -> Result<Self, StoreError> {
        let path = path_of(database);
        loop {
            let options = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .clone();
            let file = options
                .open(&path)
                .map_err(|error| StoreError::io("opening the lock file", error))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(in_use(database, file)),
                Err(error) => {
                    return Err(StoreError::io(
                        "locking the database",
                        io::Error::from(error),
                    ));
                }
            }
            // The last holder may have removed the file between our open and our lock.
            if is_at(&file, &path) {
                let mut this = Self { file, path };
                // For people; a full disk must not keep a node from opening.
                let _ = this.sign();
                return Ok(this);
            }
        }
    }

    fn sign(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        writeln!(self.file, "{}", std::process::id())
    }
}

fn path_of(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(".lock");
    path.into()
}

fn is_at(file: &File, path: &Path) -> bool {
    let same = |(mine, there): (std::fs::Metadata, std::fs::Metadata)| {
        (mine.dev(), mine.ino()) == (there.dev(), there.ino())
    };
    file.metadata()
        .and_then(|mine| Ok((mine, std::fs::metadata(path)?)))
        .is_ok_and(same)
}

fn in_use(database: &Path, mut file: File) -> StoreError {
    let mut text = String::new();
    let pid = file
        .read_to_string(&mut text)
        .ok()
        .and_then(|_| text.trim().parse().ok());
    StoreError::InUse {
        path: database.into(),
        pid,
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Removed while it is still locked: whoever opened it meanwhile sees that it is gone, and opens anew.
        let _ = std::fs::remove_file(&self.path);
    }
}
