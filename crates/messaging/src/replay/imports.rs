//! Imported archives: a folder of their own, apart from the node's journal. Each is a copy, byte for byte, that was verified
//! when it came in, can only be read, and is named by its content, so a later change of it is found when it is opened.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, BufReader, Read, Seek as _, Write},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use volary_store::journal::{ArchiveReader, ArchiveTrust, ExportError, ExportSummary};

use super::{Recording, ReplayError};

/// Most imported archives of one folder.
pub const IMPORTS_MAX: usize = 256;
/// Largest archive that is imported, in bytes: 8 GiB, eight times the default size of a journal.
pub const IMPORT_BYTES_MAX: u64 = 8 << 30;

const SUFFIX: &str = ".journal";
/// Hex digits of the content's hash in a name.
const DIGITS: usize = 32;
const NAME_MAX: usize = 128;

/// Why an archive is not imported or found.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It is not what was written, or not signed by the trusted key.
    #[error(transparent)]
    Archive(#[from] ExportError),
    /// There is no import of this name.
    #[error("there is no imported archive `{0}`")]
    Unknown(String),
    /// The imported copy was changed.
    #[error("the imported archive `{0}` is not what was imported")]
    Changed(String),
    /// Larger than [`IMPORT_BYTES_MAX`].
    #[error("the archive is larger than {IMPORT_BYTES_MAX} bytes")]
    TooLarge,
    /// There are [`IMPORTS_MAX`] already.
    #[error("there are {IMPORTS_MAX} imported archives already; remove some")]
    TooMany,
    /// A file could not be read or written.
    #[error("{path}: {problem}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        problem: io::Error,
    },
}

/// An archive that was taken in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// By which it is found: whose it is, and the hash of its content.
    pub name: String,
    /// What it holds.
    pub summary: ExportSummary,
    /// Whether it was there already.
    pub was_there: bool,
}

/// A folder of imported archives.
#[derive(Debug, Clone)]
pub struct Imports {
    folder: PathBuf,
}

impl Imports {
    /// The imports in `folder`, which is made (for its owner alone) when something is imported.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
        }
    }

    /// Takes a copy of an archive in, if it is whole and signed by who is trusted. Nothing is left of one that is not.
    /// Blocks.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn import(&self, from: &Path, trust: ArchiveTrust) -> Result<Imported, ImportError> {
        let source = File::open(from).map_err(at(from))?;
        fs::create_dir_all(&self.folder).map_err(at(&self.folder))?;
        let private = Permissions::from_mode(0o700);
        fs::set_permissions(&self.folder, private).map_err(at(&self.folder))?;
        let temp = self.folder.join(format!(".import-{}", std::process::id()));
        // What a killed import left.
        let _gone = fs::remove_file(&temp);
        let taken = self.take(source, &temp, trust);
        if taken.is_err() {
            let _gone = fs::remove_file(&temp);
        }
        taken
    }

    fn take(
        &self,
        source: File,
        temp: &Path,
        trust: ArchiveTrust,
    ) -> Result<Imported, ImportError> {
        let mut options = OpenOptions::new();
        options.write(true).read(true).create_new(true).mode(0o600);
        let mut copy = options.open(temp).map_err(at(temp))?;
        let mut source = source.take(IMPORT_BYTES_MAX + 1);
        let bytes = io::copy(&mut source, &mut copy).map_err(at(temp))?;
        if bytes > IMPORT_BYTES_MAX {
            return Err(ImportError::TooLarge);
        }
        copy.flush().map_err(at(temp))?;
        // The copy is what is verified, so nobody can change it in between.
        copy.rewind().map_err(at(temp))?;
        let summary = ArchiveReader::open(BufReader::new(&copy), trust)?.verify()?;
        copy.rewind().map_err(at(temp))?;
        let name = format!(
            "{}-{}",
            summary.node,
            content_hash(&copy).map_err(at(temp))?
        );
        let path = self.path(&name);
        let was_there = path.exists();
        if was_there {
            let _same = fs::remove_file(temp);
        } else {
            if self.list()?.len() >= IMPORTS_MAX {
                return Err(ImportError::TooMany);
            }
            copy.set_permissions(Permissions::from_mode(0o400))
                .map_err(at(temp))?;
            copy.sync_all().map_err(at(temp))?;
            fs::rename(temp, &path).map_err(at(&path))?;
            let folder = File::open(&self.folder).map_err(at(&self.folder))?;
            folder.sync_all().map_err(at(&self.folder))?;
        }
        Ok(Imported {
            name,
            summary,
            was_there,
        })
    }

    /// Names of the imported archives, sorted.
    ///
    /// # Errors
    /// [`ImportError::Io`].
    pub fn list(&self) -> Result<Vec<String>, ImportError> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(at(&self.folder)(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(at(&self.folder))?;
            if let Some(name) = entry.file_name().to_str()
                && let Some(name) = name.strip_suffix(SUFFIX)
            {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// An imported archive, verified again: its content is still what its name says.
    ///
    /// # Errors
    /// [`ReplayError::Import`].
    pub async fn open(&self, name: &str) -> Result<Recording, ReplayError> {
        let path = self.check(name)?;
        let name = name.to_owned();
        let checked = path.clone();
        let same = tokio::task::spawn_blocking(move || {
            let file = File::open(&checked).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => ImportError::Unknown(name.clone()),
                _ => at(&checked)(error),
            })?;
            let hash = content_hash(&file).map_err(at(&checked))?;
            if name.ends_with(&format!("-{hash}")) {
                Ok(())
            } else {
                Err(ImportError::Changed(name))
            }
        });
        same.await
            .map_err(|error| ReplayError::Reader(error.to_string()))??;
        // Whose key is good was decided at the import.
        Ok(Recording::archive(&path, ArchiveTrust::Stated).await?.0)
    }

    /// The path of an import, if a text can be the name of one.
    fn check(&self, name: &str) -> Result<PathBuf, ImportError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let fits = name.len() <= NAME_MAX && name.chars().all(plain) && !name.starts_with('.');
        if fits {
            Ok(self.path(name))
        } else {
            Err(ImportError::Unknown(name.chars().take(NAME_MAX).collect()))
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}{SUFFIX}"))
    }
}

fn at(path: &Path) -> impl Fn(io::Error) -> ImportError {
    let path = path.display().to_string();
    move |problem| ImportError::Io {
        path: path.clone(),
        problem,
    }
}

fn content_hash(mut file: &File) -> io::Result<String> {
    let mut hash = blake3::Hasher::new();
    io::copy(&mut file, &mut hash)?;
    let mut hex = hash.finalize().to_hex().to_string();
    hex.truncate(DIGITS);
    Ok(hex)
}
