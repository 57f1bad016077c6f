//! Room: the store's size bound, the free-disk watermark, and a reserve for those who give room back.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rusqlite::Connection;
use rustix::fs::{FallocateFlags, fallocate, statvfs};

use super::config::Retention;
use crate::error::{FullWhat, StoreError};

/// Groups between two looks at the database's size.
const LOOK_EVERY: u32 = 32;

/// What room there is.
pub(super) struct Space {
    directory: PathBuf,
    reserve: PathBuf,
    reserve_bytes: u64,
    min_free: u64,
    max_bytes: u64,
    used: u64,
    free: u64,
    /// Bytes handed to the database since it was last measured.
    unmeasured: u64,
    groups: u32,
    /// Removing entries until there is room again.
    pub trimming: bool,
}

impl Space {
    pub(super) fn new(
        database: &Path,
        min_free: u64,
        reserve_bytes: u64,
        retention: &Retention,
    ) -> Self {
        let parent = database
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let mut reserve = database.as_os_str().to_owned();
        reserve.push(".reserve");
        Self {
            directory: parent.unwrap_or(Path::new(".")).into(),
            reserve: reserve.into(),
            reserve_bytes,
            min_free,
            max_bytes: retention.max_bytes,
            used: 0,
            free: u64::MAX,
            unmeasured: 0,
            groups: 0,
            trimming: false,
        }
    }

    /// Notes what a group wrote.
    pub(super) const fn wrote(&mut self, bytes: u64) {
        self.unmeasured = self.unmeasured.saturating_add(bytes);
    }

    /// Measures the database if that is due, and whether entries should be removed.
    pub(super) fn look(&mut self, conn: &Connection) -> rusqlite::Result<bool> {
        self.groups += 1;
        let due =
            self.groups >= LOOK_EVERY || self.unmeasured > self.max_bytes / 64 || self.trimming;
        if due || self.used >= self.max_bytes {
            self.measure(conn)?;
        }
        Ok(self.trimming)
    }

    pub(super) fn measure(&mut self, conn: &Connection) -> rusqlite::Result<()> {
        let pragma = |name: &str| {
            let mut statement = conn.prepare_cached(&format!("PRAGMA {name}"))?;
            statement
                .query_row([], |row| row.get::<_, i64>(0))
                .map(i64::cast_unsigned)
        };
        let pages = pragma("page_count")?.saturating_sub(pragma("freelist_count")?);
        self.used = pages.saturating_mul(pragma("page_size")?);
        (self.groups, self.unmeasured) = (0, 0);
        // Begins at nine tenths of the bound and goes on to eight.
        let share = if self.trimming { 8 } else { 9 };
        self.trimming = self.used > self.max_bytes / 10 * share;
        Ok(())
    }

    /// Why new work is refused, if it is.
    pub(super) fn refusal(&mut self) -> Option<StoreError> {
        // Where it cannot be asked, the disk itself will tell.
        self.free = statvfs(&self.directory)
            .map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
        if self.free < self.min_free {
            return Some(StoreError::Full {
                what: FullWhat::DiskSpace,
                used: self.free,
                limit: self.min_free,
            });
        }
        let over = self.used >= self.max_bytes;
        over.then_some(StoreError::Full {
            what: FullWhat::StoreBytes,
            used: self.used,
            limit: self.max_bytes,
        })
    }

    /// The error for a file that could not grow.
    pub(super) fn disk_full(&self) -> StoreError {
        let free =
            statvfs(&self.directory).map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
        StoreError::Full {
            what: FullWhat::Disk,
            used: free,
            limit: self.min_free,
        }
    }

    /// Gives the reserve to the disk; whether there was one.
    pub(super) fn release_reserve(&self) -> bool {
        std::fs::remove_file(&self.reserve).is_ok()
    }

    /// Sets the reserve aside again when there is room for it beside the watermark.
    pub(super) fn keep_reserve(&self) {
        if self.reserve_bytes == 0 || self.reserve.exists() {
            return;
        }
        let free =
            statvfs(&self.directory).map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
        if free
            < self
                .min_free
                .saturating_add(self.reserve_bytes.saturating_mul(2))
        {
            return;
        }
        let allocate =
            |file: File| fallocate(&file, FallocateFlags::empty(), 0, self.reserve_bytes);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&self.reserve);
        if file.is_ok_and(|file| allocate(file).is_err()) {
            self.release_reserve();
        }
    }
}
