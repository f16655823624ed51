//! Roost: a control plane for a handful of machines that run sandboxes. Owns the list of
//! rooms.
//!
//! Never: holds code of its own. Layers import downwards only: `cli → engine → api →
//! store | agent | http → plan → model`, with `clock`, `config`,
//! `figures`, `files` and `logging` beside them.
//! `tests/tidy.rs` keeps the rule.

pub mod agent;
pub mod api;
pub mod cli;
pub mod clock;
pub mod config;
pub mod engine;
pub mod figures;
pub mod files;
pub mod http;
pub mod logging;
pub mod model;
pub mod plan;
pub mod sim;
pub mod store;
