//! Randomness from the operating system, kept out of the modules that decide.
//!
//! Ids and jitter draw from a small store of random bytes per thread, because one system call per id would cost more than
//! the message that carries it. Keys do not: they ask the operating system directly (see [`crate::sign`]).

use std::cell::RefCell;

/// Bytes fetched by one system call.
const POOL: usize = 512;

struct Pool {
    bytes: [u8; POOL],
    used: usize,
}

thread_local! {
    static POOL_OF_THREAD: RefCell<Pool> = const { RefCell::new(Pool { bytes: [0; POOL], used: POOL }) };
}

/// Random bytes for ids; `N` is at most [`POOL`]. Every byte is given out once.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    POOL_OF_THREAD.with_borrow_mut(|pool| {
        if pool.used + N > POOL {
            getrandom::fill(&mut pool.bytes)
                .expect("the operating system's random source is always there on Linux");
            pool.used = 0;
        }
        let given = &mut pool.bytes[pool.used..pool.used + N];
        pool.used += N;
        let mut bytes = [0; N];
        bytes.swap_with_slice(given);
        bytes
    })
}

/// A random number in `0.0..1.0`, such as [`crate::retry::Backoff::delay`] takes for its jitter.
pub fn random_unit() -> f64 {
    f64::from(u32::from_ne_bytes(random_bytes())) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_bytes_are_given_twice_across_refills_and_threads() {
        let draw = || (0..200).map(|_| random_bytes::<16>()).collect::<Vec<_>>();
        let other = std::thread::spawn(draw);
        let mut seen: HashSet<[u8; 16]> = draw().into_iter().collect();
        seen.extend(other.join().expect("the thread only draws"));
        assert_eq!(seen.len(), 400);
    }
}
