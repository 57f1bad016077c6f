//! Randomness from the operating system, kept out of the modules that decide.

/// A random number in `0.0..1.0`, such as [`crate::retry::Backoff::delay`] takes for its jitter.
pub fn random_unit() -> f64 {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes)
        .expect("the operating system's random source is always there on Linux");
    f64::from(u32::from_ne_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
}
