//! See `volary_fuzz::descriptor`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| volary_fuzz::descriptor(input));
