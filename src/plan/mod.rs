//! Owns every decision: pure functions from what the database and the host say to what
//! shall change and why.
//!
//! Never: asks a clock, logs, does I/O, returns a `Result`. Time and policy are arguments.
//! Called by `store` inside the writer's transaction and by `engine`'s scheduler.

pub mod history;
pub mod liveness;
pub mod notify;
pub mod observation;
pub mod operation;
pub mod placement;
pub mod reconcile;
pub mod report;
pub mod schedule;
