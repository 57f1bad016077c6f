//! Who may open a database and who may commit to it: locked files beside it, free after any death.
//!
//! | file | held | by |
//! |---|---|---|
//! | `.lock` | while the store is open | the one opener, or (shared) all of them together |
//! | `.turn` | around one commit and its signed head | shared only: whoever commits |
//! | `.queues` | while the store is open | shared only: the one opener that runs the queues |

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use rustix::fs::{FlockOperation, flock};

use super::{config::Sharing, schema::beside};
use crate::error::StoreError;

/// Time between two tries at a lock that another process has: from the first to the last.
const TRY_EVERY: [Duration; 2] = [Duration::from_micros(100), Duration::from_millis(2)];

/// Bytes of what a holder writes into a lock file.
const SIGNED: usize = 24;

/// A file that exists to be locked.
struct LockFile {
    file: File,
    path: PathBuf,
}

impl LockFile {
    fn open(path: PathBuf) -> Result<Self, StoreError> {
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
        Ok(Self { file, path })
    }

    /// Whether the lock was got.
    fn lock(&self, how: FlockOperation) -> Result<bool, StoreError> {
        match flock(&self.file, how) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(StoreError::io(
                "locking the database",
                io::Error::from(error),
            )),
        }
    }

    /// Opens and locks. `None` if somebody has it: then with what they wrote into it.
    fn open_locked(path: &Path, how: FlockOperation) -> Result<Result<Self, Holder>, StoreError> {
        loop {
            let this = Self::open(path.into())?;
            if !this.lock(how)? {
                return Ok(Err(this.holder()));
            }
            // The last holder may have removed the file between our open and our lock.
            if this.is_there() {
                return Ok(Ok(this));
            }
        }
    }

    fn is_there(&self) -> bool {
        let same = |(mine, there): (std::fs::Metadata, std::fs::Metadata)| {
            (mine.dev(), mine.ino()) == (there.dev(), there.ino())
        };
        self.file
            .metadata()
            .and_then(|mine| Ok((mine, std::fs::metadata(&self.path)?)))
            .is_ok_and(same)
    }

    /// Says who holds it. For people; a full disk must not keep a node from opening.
    fn sign(&self, sharing: Sharing) {
        let text = format!("{} {}\n", std::process::id(), sharing.word());
        // In place and of one length, so that a reader sees a whole line.
        let _ = self
            .file
            .write_all_at(format!("{text:>SIGNED$}").as_bytes(), 0);
    }

    fn holder(&self) -> Holder {
        let mut bytes = [0; SIGNED];
        let read = self.file.read_at(&mut bytes, 0).unwrap_or(0);
        let text = String::from_utf8_lossy(&bytes[..read]);
        let mut words = text.split_whitespace();
        Holder {
            pid: words.next().and_then(|word| word.parse().ok()),
            shared: words.next() == Some(Sharing::Shared.word()),
        }
    }

    /// Removes it while it is still locked: whoever opened it meanwhile sees that it is gone, and opens anew.
    fn remove(&self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Who holds a lock.
struct Holder {
    pid: Option<u32>,
    shared: bool,
}

/// Waits without a clock: `tries` grows the pause.
fn pause(tries: u32) -> Duration {
    let [first, last] = TRY_EVERY;
    let pause = first.saturating_mul(1 << tries.min(8)).min(last);
    // Nobody else knows of it, so only the time ends the wait.
    Condvar::new().wait_for(&mut Mutex::new(()).lock(), pause);
    pause
}

/// The right to have a database open.
pub(super) struct Lock {
    file: LockFile,
    database: PathBuf,
    sharing: Sharing,
}

impl Lock {
    pub(super) fn take(
        database: &Path,
        sharing: Sharing,
        busy: Duration,
    ) -> Result<Self, StoreError> {
        let path = beside(database, ".lock");
        let how = match sharing {
            Sharing::Exclusive => FlockOperation::NonBlockingLockExclusive,
            Sharing::Shared => FlockOperation::NonBlockingLockShared,
        };
        let (mut waited, mut tries) = (Duration::ZERO, 0);
        loop {
            match LockFile::open_locked(&path, how)? {
                Ok(file) => {
                    file.sign(sharing);
                    return Ok(Self {
                        file,
                        database: database.into(),
                        sharing,
                    });
                }
                // Shared openers exclude each other only while the last of them leaves.
                Err(holder) if sharing == Sharing::Shared && holder.shared && waited < busy => {
                    waited += pause(tries);
                    tries += 1;
                }
                Err(Holder { pid, shared }) => {
                    let path = database.into();
                    return Err(match (sharing, shared) {
                        (Sharing::Exclusive, true) | (Sharing::Shared, false) => {
                            StoreError::Mixed {
                                path,
                                pid,
                                wanted: sharing.word(),
                            }
                        }
                        _ => StoreError::InUse { path, pid },
                    });
                }
            }
        }
    }

    /// Whether nobody else has the database open; nobody can open it from now on.
    pub(super) fn is_last(&self) -> bool {
        self.sharing == Sharing::Exclusive
            || matches!(
                self.file.lock(FlockOperation::NonBlockingLockExclusive),
                Ok(true)
            )
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.is_last() {
            if self.sharing == Sharing::Shared {
                let _ = std::fs::remove_file(beside(&self.database, ".turn"));
            }
            self.file.remove();
        }
    }
}

/// The turn to commit, of a database that several processes share.
pub(super) struct Turn {
    file: LockFile,
    database: PathBuf,
    busy: Duration,
    held: bool,
}

impl Turn {
    /// Only by one who holds the [`Lock`]: the file stays while anybody does.
    pub(super) fn open(database: &Path, busy: Duration) -> Result<Self, StoreError> {
        Ok(Self {
            file: LockFile::open(beside(database, ".turn"))?,
            database: database.into(),
            busy,
            held: false,
        })
    }

    /// Waits for the turn; nothing if it is held already.
    pub(super) fn take(&mut self) -> Result<(), StoreError> {
        let (mut waited, mut tries) = (Duration::ZERO, 0);
        while !self.held {
            if self.file.lock(FlockOperation::NonBlockingLockExclusive)? {
                self.file.sign(Sharing::Shared);
                self.held = true;
            } else if waited >= self.busy {
                return Err(StoreError::Busy {
                    path: self.database.clone(),
                    pid: self.file.holder().pid,
                    waited,
                });
            } else {
                waited += pause(tries);
                tries += 1;
            }
        }
        Ok(())
    }

    /// Lets others have it.
    pub(super) fn leave(&mut self) {
        if std::mem::take(&mut self.held)
            && let Err(error) = self.file.lock(FlockOperation::Unlock)
        {
            tracing::error!(%error, "giving up the turn to commit");
        }
    }
}

/// The right to run the queues of a shared database.
pub(super) struct QueuesLock(LockFile);

impl QueuesLock {
    pub(super) fn take(database: &Path) -> Result<Self, StoreError> {
        let path = beside(database, ".queues");
        match LockFile::open_locked(&path, FlockOperation::NonBlockingLockExclusive)? {
            Ok(file) => {
                file.sign(Sharing::Shared);
                Ok(Self(file))
            }
            Err(holder) => Err(StoreError::QueuesInUse {
                path: database.into(),
                pid: holder.pid,
            }),
        }
    }
}

impl Drop for QueuesLock {
    fn drop(&mut self) {
        self.0.remove();
    }
}
