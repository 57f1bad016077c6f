//! See `volary_fuzz::introduction`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| volary_fuzz::introduction(input));
