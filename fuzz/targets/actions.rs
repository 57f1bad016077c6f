//! See `volary_fuzz::actions`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| volary_fuzz::actions(input));
