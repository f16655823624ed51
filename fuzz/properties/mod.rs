//! Owns what must be true of any input at all, one property for each way in.
//!
//! Never: knows who makes the input up. The fuzz targets and `tests/any_input.rs` do.

pub mod config;
pub mod fixture;
pub mod http;
pub mod id;
pub mod listing;
pub mod token;
