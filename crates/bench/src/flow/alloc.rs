//! The system's allocator, which counts live bytes while it is asked to.
//!
//! While nobody asks, a call costs one load of a flag that nobody writes.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

static ON: AtomicBool = AtomicBool::new(false);
static LIVE: AtomicI64 = AtomicI64::new(0);

/// The allocator of this program.
pub struct Counting;

/// Counts from here on, until dropped; one at a time.
pub struct Count(());

impl Count {
    pub fn start() -> Self {
        LIVE.store(0, Ordering::SeqCst);
        ON.store(true, Ordering::SeqCst);
        Self(())
    }

    /// Bytes allocated and not freed since the start, as asked for; less than nothing where older ones were freed.
    pub fn live(&self) -> i64 {
        LIVE.load(Ordering::SeqCst)
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        ON.store(false, Ordering::SeqCst);
    }
}

fn count(more: usize, less: usize) {
    if ON.load(Ordering::Relaxed) {
        // No allocation is larger than the half of the address space.
        LIVE.fetch_add(more as i64 - less as i64, Ordering::Relaxed);
    }
}

// SAFETY: every call is handed on to the system's allocator unchanged, whose promises hold then; counting neither
// allocates nor panics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller keeps the contract of this method, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size, layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_counted_and_what_is_freed_is_not() {
        const MANY: usize = 64 << 20;
        let count = Count::start();
        let held = vec![1_u8; MANY];
        // Other tests allocate meanwhile, but not that much.
        assert!(count.live() > (MANY / 2) as i64);
        drop(std::hint::black_box(held));
        assert!(count.live() < (MANY / 2) as i64);
    }
}
