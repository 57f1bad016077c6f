//! See `volary_fuzz::message`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| volary_fuzz::message(input));
