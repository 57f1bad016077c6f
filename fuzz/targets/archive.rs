//! See `volary_fuzz::archive`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| volary_fuzz::archive(input));
