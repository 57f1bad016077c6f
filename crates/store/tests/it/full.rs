//! A full disk: new work is turned away with a clear error, acks go through, and it recovers.

use std::{path::Path, sync::Arc};

use volary_kernel::sign::SigningKey;
use volary_store::{
    Batch, Expect, FullWhat, Key, Seq, SqliteConfig, SqliteStore, Store as _, StoreError,
    journal::verify,
};

use crate::common::{Bench, batch, config_at, write};

/// A small file system of its own, gone when dropped.
struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    /// `None` where this process may not mount.
    fn mount(bytes: u64) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let flags = rustix::mount::MountFlags::empty();
        let options = std::ffi::CString::new(format!("size={bytes}")).unwrap();
        rustix::mount::mount(
            "tmpfs",
            dir.path(),
            "tmpfs",
            flags,
            Some(options.as_c_str()),
        )
        .ok()?;
        Some(Self { dir })
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.dir.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

fn intake(key: &str, value: &str) -> Batch {
    let mut tx = batch(key, value);
    tx.intake();
    tx
}

/// Takes in work until it is refused; how much was taken.
async fn fill(store: &SqliteStore) -> (u64, StoreError) {
    let big = "x".repeat(20_000);
    let mut taken = 0;
    loop {
        match store
            .commit(intake(&format!("work/{taken:08}"), &big))
            .await
        {
            Ok(_) => taken += 1,
            Err(error) => return (taken, error),
        }
        assert!(taken < 100_000, "it never gets full");
    }
}

#[tokio::test]
async fn below_the_watermark_intake_is_refused_and_recovers() {
    let bench = Bench::new();
    let config = SqliteConfig {
        min_free_disk: u64::MAX,
        ..bench.config()
    };
    let store = bench.open_with(config).await.unwrap();
    let end = store.commit(intake("a", "x")).await;
    assert!(
        matches!(
            end,
            Err(StoreError::Full {
                what: FullWhat::DiskSpace,
                limit: u64::MAX,
                ..
            })
        ),
        "{end:?}"
    );
    write(&store, "a", "x")
        .await
        .expect("what is not intake goes through");
    store.close().await;
}

#[tokio::test]
async fn on_a_full_disk_intake_stops_acks_go_through_and_space_brings_it_back() {
    // Where mounting is not allowed, the watermark test above has to do.
    let Some(disk) = SmallDisk::mount(24 << 20) else {
        return;
    };
    let database = disk.path().join("volary.db");
    let key = Arc::new(SigningKey::generate().unwrap());
    let config = SqliteConfig {
        min_free_disk: 0,
        reserve: 4 << 20,
        ..config_at(&database, key.clone())
    };
    let ballast = disk.path().join("ballast");
    std::fs::write(&ballast, vec![0; 8 << 20]).unwrap();
    let store = SqliteStore::open(config.clone(), volary_kernel::SystemClock::shared())
        .await
        .unwrap();
    let (taken, error) = fill(&store).await;
    assert!(taken > 10, "{taken}");
    assert!(
        matches!(
            error,
            StoreError::Full {
                what: FullWhat::Disk,
                ..
            }
        ),
        "{error}"
    );
    for index in 0..taken.min(50) {
        let mut tx = Batch::new();
        tx.delete(Key::new(format!("work/{index:08}")).unwrap(), Expect::Any);
        tx.append(crate::common::entry("{}"));
        store
            .commit(tx)
            .await
            .unwrap_or_else(|error| panic!("ack {index} goes through: {error}"));
    }
    let acked = *store.head().borrow();
    std::fs::remove_file(&ballast).unwrap();
    store
        .commit(intake("after", "x"))
        .await
        .expect("space is there, and it goes on by itself");
    assert_eq!(*store.head().borrow(), Seq(acked.0 + 1));
    store.close().await;
    let report = verify(&database, &key.public()).unwrap();
    assert!(
        report.is_ok() && report.last == Some(Seq(acked.0 + 1)),
        "{report:?}"
    );
    let store = SqliteStore::open(config, volary_kernel::SystemClock::shared())
        .await
        .unwrap();
    assert!(
        store
            .get(&Key::new(format!("work/{:08}", taken - 1)).unwrap())
            .await
            .unwrap()
            .is_some()
    );
    store.close().await;
}
