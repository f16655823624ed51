//! Owns simulated hosts: agents that speak the real wire over real sockets, with the habits
//! of the real ones, and with faults that are switched while they run.
//!
//! Never: looks into a database, decides what the control plane decides, imports `engine`,
//! `api` or `cli`. Called by `cli` (`agent-sim`, `demo`), tests and benches.
//!
//! Nothing here shares a table or a rule with the rooms it is there to try: what a
//! simulated host has is the truth that the control plane is measured against.

mod agent;
mod answer;
mod calls;
mod door;
mod fault;
mod fixture;
mod fleet;
mod heartbeat;
mod host;
mod listing;
mod pulse;
mod refusal;
mod report;
mod sandbox;
mod template;
mod tls;
mod wait;

pub use fault::{AnswerFault, Faults, HeartbeatFault, ReportFault};
pub use fleet::{FleetOptions, Initially, SimFleet};
pub use heartbeat::{
    Beat, Beater, BeaterOptions, Credentials, HEARTBEAT_TIMEOUT, RegisterError, Reported,
};
pub use host::{Habits, SimHost};
pub use pulse::Heartbeats;
pub use report::{Report, ReportEvent};
pub use sandbox::SimState;
pub use tls::{Callers, Certificates};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A thread that panicked leaves what it guarded as it was between two of its steps; a
/// simulation goes on with that.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
