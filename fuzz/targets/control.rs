//! See `volary_fuzz::control`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| volary_fuzz::control(input));
