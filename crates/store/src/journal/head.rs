//! The signed head beside the database: how far the journal had come when the last commit was acknowledged.
//!
//! A file of two slots, written in turn, each with a counter and a checksum: a torn write leaves the older one. It is
//! written after each group commit and before the acknowledgement, without a sync of its own: after a crash of the
//! process it is exact; after a power cut it may be older than the database, which is harmless, but never newer.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use volary_kernel::{
    clock::Timestamp,
    id::Name,
    sign::{PublicKey, SIGNATURE_LEN, Signature, SigningKey},
};

use crate::entry::Seq;

const MAGIC: &[u8; 8] = b"VOLHEAD1";
const DOMAIN: &[u8] = b"volary journal head v1\0";
const CUT_DOMAIN: &[u8] = b"volary journal cut v1\0";
/// Distance of the slots: no page of a file system holds both.
const STRIDE: u64 = 4096;
const SLOT: usize = 512;
/// Magic, counter, and the length of what is signed.
const FRONT: usize = 18;
const CHECKSUM: usize = 8;

/// Where retention has cut the journal: the last entry removed, and the chain there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// The last entry removed; `Seq(0)` if none was.
    pub seq: Seq,
    /// The chain after it.
    pub hash: [u8; 32],
}

impl Cut {
    /// The bytes whose signature makes a cut believable.
    pub(crate) fn message(&self, node: &str) -> Vec<u8> {
        let mut bytes = CUT_DOMAIN.to_vec();
        bytes.extend_from_slice(&self.seq.0.to_le_bytes());
        bytes.extend_from_slice(&self.hash);
        bytes.extend_from_slice(node.as_bytes());
        bytes
    }
}

/// How far a journal has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Whose journal.
    pub node: Name,
    /// The last entry.
    pub seq: Seq,
    /// The chain after it.
    pub hash: [u8; 32],
    /// What retention has removed.
    pub cut: Cut,
    /// The last commit, of whatever kind.
    pub version: u64,
    /// When it was signed.
    pub at: Timestamp,
}

impl Head {
    fn encode(&self, counter: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&counter.to_le_bytes());
        for number in [self.seq.0, self.cut.seq.0, self.version] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.at.as_micros().to_le_bytes());
        bytes.extend_from_slice(&self.hash);
        bytes.extend_from_slice(&self.cut.hash);
        bytes.extend_from_slice(self.node.as_str().as_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<(u64, Self)> {
        let (numbers, rest) = bytes.split_at_checked(40)?;
        let number = |index: usize| {
            let part = numbers.get(index * 8..index * 8 + 8)?;
            Some(u64::from_le_bytes(part.try_into().ok()?))
        };
        let (hash, rest) = rest.split_first_chunk::<32>()?;
        let (cut, node) = rest.split_first_chunk::<32>()?;
        let head = Self {
            node: Name::new(std::str::from_utf8(node).ok()?).ok()?,
            seq: Seq(number(1)?),
            hash: *hash,
            cut: Cut {
                seq: Seq(number(2)?),
                hash: *cut,
            },
            version: number(3)?,
            at: Timestamp::from_micros(number(4)?.cast_signed()),
        };
        Some((number(0)?, head))
    }
}

fn message(signed: &[u8]) -> Vec<u8> {
    [DOMAIN, signed].concat()
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM] {
    let hash = blake3::hash(bytes);
    *hash.as_bytes().first_chunk().expect("a hash has 32 bytes")
}

/// Where the head of the database at `database` is.
pub(crate) fn path_of(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(".head");
    path.into()
}

/// Why no head could be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeadError {
    #[error("the signed head is missing")]
    Missing,
    #[error("neither slot of the signed head is whole")]
    Damaged,
    #[error("the signed head was not signed with this node's key")]
    Forged,
    #[error("the signed head cannot be read: {0}")]
    Io(String),
}

/// A head that waits for its signature.
pub(crate) struct Draft {
    counter: u64,
    signed: Vec<u8>,
}

impl Draft {
    /// The bytes to sign.
    pub(crate) fn message(&self) -> Vec<u8> {
        message(&self.signed)
    }
}

/// A head file that is being written.
pub(crate) struct HeadFile {
    file: File,
    counter: u64,
}

impl HeadFile {
    /// Makes the file, on disk with its directory, with `head` in it. Replaces what is there.
    pub(crate) fn create(path: &Path, head: &Head, key: &SigningKey) -> io::Result<Self> {
        let options = || {
            OpenOptions::new()
                .read(true)
                .write(true)
                .mode(0o600)
                .clone()
        };
        let file = options().create(true).truncate(true).open(path)?;
        // Allocated in full now, so that a full disk cannot stop a later write.
        file.write_all_at(&vec![0; STRIDE as usize + SLOT], 0)?;
        let mut this = Self { file, counter: 0 };
        this.write(head, key)?;
        this.file.sync_all()?;
        if let Some(parent) = path.parent() {
            let parent = if parent.as_os_str().is_empty() {
                Path::new(".")
            } else {
                parent
            };
            File::open(parent)?.sync_all()?;
        }
        Ok(this)
    }

    /// Opens the file for writing, and says what it holds.
    pub(crate) fn open(path: &Path, key: &PublicKey) -> Result<(Self, Head), HeadError> {
        let (counter, head) = read_slots(path, key)?;
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.map_err(|error| HeadError::Io(error.to_string()))?;
        Ok((Self { file, counter }, head))
    }

    /// Signs `head` and writes it over the older slot.
    pub(crate) fn write(&mut self, head: &Head, key: &SigningKey) -> io::Result<()> {
        let draft = self.draft(head);
        let signature = key.sign(&draft.message());
        self.write_signed(&draft, &signature)
    }

    /// What must be signed so that `head` can be written next.
    pub(crate) fn draft(&self, head: &Head) -> Draft {
        let counter = self.counter + 1;
        Draft {
            counter,
            signed: head.encode(counter),
        }
    }

    /// Writes a signed head over the older slot.
    pub(crate) fn write_signed(&mut self, draft: &Draft, signature: &Signature) -> io::Result<()> {
        self.counter = draft.counter;
        let mut slot = Vec::with_capacity(SLOT);
        slot.extend_from_slice(MAGIC);
        slot.extend_from_slice(&draft.counter.to_le_bytes());
        slot.extend_from_slice(&(draft.signed.len() as u16).to_le_bytes());
        slot.extend_from_slice(&draft.signed);
        slot.extend_from_slice(signature);
        slot.resize(SLOT - CHECKSUM, 0);
        slot.extend_from_slice(&checksum(&slot));
        self.file.write_all_at(&slot, self.counter % 2 * STRIDE)
    }

    /// Learns what another process that shares the file wrote last.
    pub(crate) fn refresh(&mut self) -> io::Result<()> {
        let counter = [0, STRIDE].into_iter().filter_map(|at| {
            let mut slot = [0; SLOT];
            self.file.read_exact_at(&mut slot, at).ok()?;
            Head::decode(&parse(&slot)?.0).map(|(counter, _)| counter)
        });
        self.counter = counter.max().ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, HeadError::Damaged.to_string())
        })?;
        Ok(())
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

/// The head in the file at `path`.
pub(crate) fn read(path: &Path, key: &PublicKey) -> Result<Head, HeadError> {
    read_slots(path, key).map(|(_, head)| head)
}

fn read_slots(path: &Path, key: &PublicKey) -> Result<(u64, Head), HeadError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(HeadError::Missing),
        Err(error) => return Err(HeadError::Io(error.to_string())),
    };
    let whole = [0, STRIDE].into_iter().filter_map(|at| {
        let mut slot = [0; SLOT];
        file.seek(SeekFrom::Start(at)).ok()?;
        file.read_exact(&mut slot).ok()?;
        parse(&slot)
    });
    let (signed, signature) = whole
        .max_by_key(|(signed, _)| Head::decode(signed).map(|(counter, _)| counter))
        .ok_or(HeadError::Damaged)?;
    key.verify_strict(&message(&signed), &signature)
        .map_err(|_| HeadError::Forged)?;
    Head::decode(&signed).ok_or(HeadError::Damaged)
}

/// What a slot holds, if its checksum fits.
fn parse(slot: &[u8; SLOT]) -> Option<(Vec<u8>, Signature)> {
    let (content, sum) = slot.split_at(SLOT - CHECKSUM);
    let rest = content.strip_prefix(MAGIC)?;
    if sum != checksum(content) {
        return None;
    }
    let length = u16::from_le_bytes(rest.get(8..10)?.try_into().ok()?) as usize;
    let signed = content.get(FRONT..FRONT + length)?;
    let signature = content.get(FRONT + length..FRONT + length + SIGNATURE_LEN)?;
    Some((signed.to_vec(), signature.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(seq: u64) -> Head {
        let cut = Cut {
            seq: Seq(1),
            hash: [1; 32],
        };
        let node = Name::new("a".repeat(63)).unwrap();
        Head {
            node,
            seq: Seq(seq),
            hash: [9; 32],
            cut,
            version: 7,
            at: Timestamp::from_micros(-5),
        }
    }

    #[test]
    fn the_last_whole_slot_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.head");
        let key = SigningKey::generate().unwrap();
        assert_eq!(read(&path, &key.public()), Err(HeadError::Missing));
        let mut file = HeadFile::create(&path, &head(1), &key).unwrap();
        for seq in 2..5 {
            file.write(&head(seq), &key).unwrap();
            assert_eq!(read(&path, &key.public()), Ok(head(seq)));
        }
        let (mut file, found) = HeadFile::open(&path, &key.public()).unwrap();
        assert_eq!(found, head(4));
        file.write(&head(5), &key).unwrap();
        assert_eq!(read(&path, &key.public()), Ok(head(5)));
        // The slot of 5 is torn: 4 is left.
        let slot = if file.counter % 2 == 0 { 0 } else { STRIDE };
        file.file.write_all_at(b"torn", slot + 40).unwrap();
        assert_eq!(read(&path, &key.public()), Ok(head(4)));
        file.file.write_all_at(b"torn", STRIDE - slot + 40).unwrap();
        assert_eq!(read(&path, &key.public()), Err(HeadError::Damaged));
    }

    #[test]
    fn a_head_of_another_key_is_forged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.head");
        let (key, other) = (
            SigningKey::generate().unwrap(),
            SigningKey::generate().unwrap(),
        );
        HeadFile::create(&path, &head(1), &other).unwrap();
        assert_eq!(read(&path, &key.public()), Err(HeadError::Forged));
    }
}
