//! Key files: PKCS#8, readable by their owner only, replaced whole.
//!
//! A key file that others can read is refused, not repaired: the key may be known already, and only a person can decide
//! to keep it. Key files are read once at start; the key then lives in memory only.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use volary_kernel::{
    clock::Timestamp,
    file::write_atomic,
    sign::{SignError, SigningKey},
};
use zeroize::Zeroizing;

use super::{Identity, Succession};

/// Permission bits of a key file.
const MODE: u32 = 0o600;
/// Largest key file that is read; an Ed25519 key in PKCS#8 has 48 to 83 bytes.
const KEY_FILE_MAX: u64 = 4096;

/// Why a key file can not be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// There is no such file.
    #[error("{}: no key file", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// Others may read or write it.
    #[error("{}: key file has mode {mode:04o}, so others can reach it; a key file must be 0600", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It belongs to another user.
    #[error("{}: key file belongs to user {owner}, not to the user of this process", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The owner's user id.
        owner: u32,
    },
    /// It is no regular file, or too large for a key.
    #[error("{}: not a key file", path.display())]
    NotAKey {
        /// The file.
        path: PathBuf,
    },
    /// Its content is no Ed25519 key in PKCS#8.
    #[error("{}: {problem}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with the key.
        problem: SignError,
    },
    /// Reading or writing failed.
    #[error("{}: {problem}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        problem: io::Error,
    },
}

impl Identity {
    /// Reads the identity from a key file.
    ///
    /// # Errors
    /// [`KeyFileError`]; a file that others can reach is [`KeyFileError::Exposed`], whatever it holds.
    pub fn load(path: &Path) -> Result<Self, KeyFileError> {
        let bytes = read_private(path)?;
        SigningKey::from_pkcs8(&bytes)
            .map(Self::from_key)
            .map_err(|problem| KeyFileError::Key {
                path: path.to_owned(),
                problem,
            })
    }

    /// Reads the identity from a key file, or makes one and writes it there if there is no file.
    ///
    /// # Errors
    /// [`KeyFileError`] other than [`KeyFileError::Missing`]; a damaged file is never replaced.
    pub fn load_or_generate(path: &Path) -> Result<Self, KeyFileError> {
        match Self::load(path) {
            Err(KeyFileError::Missing { .. }) => {
                let identity = Self::generate().map_err(|problem| KeyFileError::Key {
                    path: path.to_owned(),
                    problem,
                })?;
                identity.save(path)?;
                Ok(identity)
            }
            loaded => loaded,
        }
    }

    /// Writes the key to `path` with mode 0600, as a whole, durable on return. Replaces what was there.
    ///
    /// # Errors
    /// [`KeyFileError::Io`], [`KeyFileError::Key`].
    pub fn save(&self, path: &Path) -> Result<(), KeyFileError> {
        let bytes = self.key().to_pkcs8().map_err(|problem| KeyFileError::Key {
            path: path.to_owned(),
            problem,
        })?;
        write_atomic(path, &bytes, MODE).map_err(|problem| KeyFileError::Io {
            path: path.to_owned(),
            problem,
        })
    }

    /// The identities that were in `path` before, as [`Identity::rotate`] kept them beside it: those of them that can still be
    /// loaded. They are believed no longer; what was said under them can be proven with them.
    ///
    /// # Errors
    /// [`KeyFileError::Io`] when the folder can not be read.
    pub fn former(path: &Path) -> Result<Vec<Self>, KeyFileError> {
        let fail = |problem| KeyFileError::Io {
            path: path.to_owned(),
            problem,
        };
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        let is_former = |kept: &Path| {
            let kept = kept.file_name().unwrap_or_default().as_encoded_bytes();
            let rest = kept.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(b".") && rest.ends_with(b".old"))
        };
        let mut former = Vec::new();
        let folder = path.parent().unwrap_or(Path::new("."));
        for entry in fs::read_dir(folder).map_err(fail)? {
            let kept = entry.map_err(fail)?.path();
            if is_former(&kept) {
                former.extend(Self::load(&kept));
            }
        }
        Ok(former)
    }

    /// Replaces the identity in `path` by a new one. The old key stays beside it as `PATH.<first 16 of its id>.old`, so
    /// that a crash in between loses no key; remove it once every peer has the statement that is returned.
    ///
    /// # Errors
    /// [`KeyFileError`]; the file then still holds the old key.
    pub fn rotate(path: &Path, at: Timestamp) -> Result<(Self, Succession), KeyFileError> {
        let old = Self::load(path)?;
        let new = Self::generate().map_err(|problem| KeyFileError::Key {
            path: path.to_owned(),
            problem,
        })?;
        let mut kept = path.as_os_str().to_owned();
        kept.push(format!(".{}.old", &old.id().to_string()[..16]));
        old.save(Path::new(&kept))?;
        new.save(path)?;
        let statement = old.hand_over(&new, at);
        Ok((new, statement))
    }
}

/// Reads a file that only this user can reach; checks the opened file, not the path, so that nobody can swap it.
fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    let fail = |problem: io::Error| match problem.kind() {
        io::ErrorKind::NotFound => KeyFileError::Missing {
            path: path.to_owned(),
        },
        _ => KeyFileError::Io {
            path: path.to_owned(),
            problem,
        },
    };
    // Non-blocking, so that a FIFO in the key's place can not hang the start.
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nonblocking)
        .open(path)
        .map_err(fail)?;
    let meta: fs::Metadata = file.metadata().map_err(fail)?;
    if !meta.is_file() || meta.len() > KEY_FILE_MAX {
        return Err(KeyFileError::NotAKey {
            path: path.to_owned(),
        });
    }
    let mode = meta.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    let user = rustix::process::geteuid();
    if meta.uid() != user.as_raw() && !user.is_root() {
        return Err(KeyFileError::Foreign {
            path: path.to_owned(),
            owner: meta.uid(),
        });
    }
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(KEY_FILE_MAX)
        .read_to_end(&mut bytes)
        .map_err(fail)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_on_first_use_kept_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.key");
        let made = Identity::load_or_generate(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(Identity::load_or_generate(&path).unwrap().id(), made.id());
    }

    #[test]
    fn a_key_file_that_others_can_read_is_refused_and_the_error_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.key");
        Identity::generate().unwrap().save(&path).unwrap();
        for mode in [0o640, 0o604, 0o620] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = Identity::load(&path).unwrap_err().to_string();
            assert!(
                error.contains(&format!("{mode:04o}")) && error.contains("0600"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_damaged_key_file_is_an_error_and_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.key");
        write_atomic(&path, b"junk", MODE).unwrap();
        assert!(matches!(
            Identity::load_or_generate(&path),
            Err(KeyFileError::Key { .. })
        ));
        assert_eq!(fs::read(&path).unwrap(), b"junk");
        assert!(matches!(
            Identity::load(folder.path()),
            Err(KeyFileError::NotAKey { .. })
        ));
        assert!(matches!(
            Identity::load(&path.with_extension("none")),
            Err(KeyFileError::Missing { .. })
        ));
    }

    #[test]
    fn rotation_keeps_the_old_key_and_tells_who_follows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.key");
        let old = Identity::load_or_generate(&path).unwrap();
        let (new, statement) = Identity::rotate(&path, Timestamp::from_micros(1)).unwrap();
        assert_ne!(new.id(), old.id());
        assert_eq!(Identity::load(&path).unwrap().id(), new.id());
        assert_eq!(
            (statement.old(), statement.new_key()),
            (&old.public(), &new.public())
        );
        statement.verify().unwrap();
        let kept = folder
            .path()
            .join(format!("agent.key.{}.old", &old.id().to_string()[..16]));
        assert_eq!(Identity::load(&kept).unwrap().id(), old.id());
        // A second one leaves two; what is no key is not among them.
        Identity::rotate(&path, Timestamp::from_micros(2)).unwrap();
        fs::write(folder.path().join("agent.key.junk.old"), "junk").unwrap();
        let mut former: Vec<_> = Identity::former(&path).unwrap();
        former.sort_by_key(|one| one.id() != old.id());
        let ids: Vec<_> = former.iter().map(Identity::id).collect();
        assert_eq!(ids, [old.id(), new.id()]);
    }
}
