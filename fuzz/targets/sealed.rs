//! See `volary_fuzz::sealed`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| volary_fuzz::sealed(input));
