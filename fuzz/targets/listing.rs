//! Hands what the fuzzer makes up to the property in `properties/listing.rs`.
#![no_main]

#[path = "../properties/listing.rs"]
mod property;

libfuzzer_sys::fuzz_target!(|data: &[u8]| property::holds(data));
