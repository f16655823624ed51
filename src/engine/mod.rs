//! Owns every thread and channel, and the order in which they start and stop.
//!
//! Never: decides (`plan`), writes (`store`), speaks a protocol (`agent`, `http`, `api`).

pub mod check;
pub mod monitor;
pub mod scheduler;
mod workers;

pub use check::{CheckOptions, CheckReport, check};
