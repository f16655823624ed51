//! Owns the running server as agents and operators see it, from outside: real processes,
//! sockets, files and signals.
//!
//! Never: looks inside; what cannot be seen from outside is tested where it lives.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

#[path = "serve/agents.rs"]
mod agents;
#[path = "serve/audit.rs"]
mod audit;
#[path = "serve/deletion.rs"]
mod deletion;
#[path = "serve/hostile.rs"]
mod hostile;
#[path = "serve/idle.rs"]
mod idle;
#[path = "serve/keys.rs"]
mod keys;
#[path = "serve/lifetime.rs"]
mod lifetime;
#[path = "serve/lists.rs"]
mod lists;
#[path = "serve/missing.rs"]
mod missing;
#[path = "serve/monitor.rs"]
mod monitor;
#[path = "serve/network.rs"]
mod network;
#[path = "serve/operators.rs"]
mod operators;
#[path = "serve/probes.rs"]
mod probes;
#[path = "serve/registration.rs"]
mod registration;
#[path = "serve/reports.rs"]
mod reports;
#[path = "serve/retention.rs"]
mod retention;
#[path = "serve/strangers.rs"]
mod strangers;
