//! Damage on purpose.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};

/// Turns over every bit of one byte of a file, and tells what it was.
///
/// # Errors
/// When the file cannot be opened for writing or ends before the offset.
pub fn flip_byte(file: &Path, offset: u64) -> io::Result<u8> {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(file)?;
    let mut byte = [0u8];
    file.read_exact_at(&mut byte, offset)?;
    file.write_all_at(&[!byte[0]], offset)?;
    file.sync_all()?;
    Ok(byte[0])
}

/// A small file system in memory, mounted for one test and unmounted when dropped: a disk that can be filled.
#[derive(Debug)]
pub struct SmallDisk {
    root: PathBuf,
}

impl SmallDisk {
    /// Mounts a tmpfs of that many bytes on an existing, empty folder.
    ///
    /// # Errors
    /// Mounting takes root; anybody else gets [`io::ErrorKind::PermissionDenied`] and should say that the test was not run.
    pub fn mount(root: &Path, bytes: u64) -> io::Result<Self> {
        let options = std::ffi::CString::new(format!("size={bytes},mode=0700"))?;
        rustix::mount::mount(
            "tmpfs",
            root,
            "tmpfs",
            MountFlags::NOSUID | MountFlags::NODEV,
            options.as_c_str(),
        )?;
        Ok(Self {
            root: root.to_owned(),
        })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Writes a file of zeros until the disk has only about `leave` bytes left, and tells where it is. Removing it makes
    /// room again.
    ///
    /// # Errors
    /// When the disk cannot be asked for its room or the file cannot be written.
    pub fn fill(&self, leave: u64) -> io::Result<PathBuf> {
        let path = self.root.join("filler");
        let room = rustix::fs::statvfs(&self.root)?;
        let bytes = (room.f_bavail * room.f_frsize).saturating_sub(leave);
        let file = std::fs::File::create(&path)?;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes.max(1))?;
        Ok(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that still holds a file there must not keep the test from ending.
        let _ = rustix::mount::unmount(&self.root, UnmountFlags::DETACH);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_flipped_twice_is_as_before() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), b"abc").expect("it is writable");
        assert_eq!(flip_byte(file.path(), 1).expect("it has three bytes"), b'b');
        assert_ne!(std::fs::read(file.path()).expect("it is readable"), b"abc");
        flip_byte(file.path(), 1).expect("it has three bytes");
        assert_eq!(std::fs::read(file.path()).expect("it is readable"), b"abc");
        assert!(
            flip_byte(file.path(), 3).is_err(),
            "there is no fourth byte"
        );
    }

    #[test]
    fn a_filled_disk_refuses_and_takes_again_after_room_is_made() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let disk = match SmallDisk::mount(dir.path(), 1 << 20) {
            Ok(disk) => disk,
            Err(error) => {
                assert!(
                    !rustix::process::geteuid().is_root(),
                    "root may mount: {error}"
                );
                return;
            }
        };
        let filler = disk.fill(0).expect("it can be filled");
        let file = disk.root().join("late");
        assert!(std::fs::write(&file, [1u8; 8192]).is_err());
        std::fs::remove_file(filler).expect("the filler is ours");
        std::fs::write(&file, [1u8; 8192]).expect("there is room again");
    }
}
