//! Owns every thread and channel, and the order in which they start and stop.
//!
//! Never: decides (`plan`), writes (`store`), speaks a protocol (`agent`, `http`, `api`).

mod calls;
pub mod check;
mod deliver;
mod erasures;
mod https;
pub mod monitor;
mod notify;
pub mod operations;
mod pool;
mod probes;
mod scheduler;
pub mod serve;
mod start;
pub mod systemd;

pub use check::{CheckOptions, CheckReport, Done, check};
pub use https::HttpsError;
pub use serve::{Running, StartError, client_config_of, serve};
