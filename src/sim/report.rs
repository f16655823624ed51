//! Owns what an agent reports to the control plane on its own account.
//!
//! Never: sends it (`heartbeat` and `pulse` do). Made by `host`.

use crate::model::id::SandboxId;
use crate::model::vocabulary;
use std::time::{Duration, Instant};

/// Times that a report is sent before the agent gives up; fixed in the agents.
pub(super) const TRIES_MAX: u32 = 3;

vocabulary! {
    /// What an agent reports, by its name on the wire.
    ReportEvent, "report", {
        /// It paused an idle sandbox, or one that ran when it lost its control plane.
        AutoPaused = "sandbox.auto_paused",
        /// It destroyed a sandbox that it could not pause.
        Stopped = "sandbox.stopped",
        /// A microVM is gone or of no use.
        Error = "sandbox.error",
        /// A pause that was asked for has failed.
        PauseFailed = "sandbox.pause_failed",
        /// A resume that was asked for has failed.
        ResumeFailed = "sandbox.resume_failed",
    }
}

/// One report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What has happened.
    pub event: ReportEvent,
    /// To which sandbox.
    pub sandbox: SandboxId,
    /// When by the agent's clock, unix seconds.
    pub at_unix: i64,
    /// Why; empty when there is nothing to say.
    pub error: String,
    /// From when it may be sent.
    pub(super) due: Instant,
}

/// How long a real agent waits before it sends a report again that was not accepted so many
/// times.
pub(super) fn pause_after(tries: u32) -> Duration {
    Duration::from_millis(500) * tries
}
