//! Randomness from the operating system, kept out of the modules that decide.
//!
//! Ids and jitter draw from a generator per thread that the operating system seeds again and again (ChaCha, as in
//! [`rand::rng`]): one system call per id would cost more than the message that carries it. Keys do not: they ask the
//! operating system directly (see [`crate::sign`]).

use rand::Rng as _;

/// Random bytes for ids.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::rng().fill_bytes(&mut bytes);
    bytes
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
    fn no_bytes_are_drawn_twice_across_threads() {
        let draw = || (0..200).map(|_| random_bytes::<16>()).collect::<Vec<_>>();
        let other = std::thread::spawn(draw);
        let mut seen: HashSet<[u8; 16]> = draw().into_iter().collect();
        seen.extend(other.join().expect("the thread only draws"));
        assert_eq!(seen.len(), 400);
    }
}
