//! Hands what the fuzzer makes up to the property in `properties/token.rs`.
#![no_main]

#[path = "../properties/token.rs"]
mod property;

libfuzzer_sys::fuzz_target!(|data: &[u8]| property::holds(data));
