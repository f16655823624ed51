//! Owns what an agent's own report means for a sandbox.
//!
//! Never: takes a report for more than it is: agents may be late, and a listing that
//! shows a sandbox running outranks what was said before.

use crate::model::sandbox::SandboxStatus;
use crate::model::vocabulary;

vocabulary! {
    /// What agents report.
    ReportKind, "sandbox event", {
        /// Paused by the agent itself.
        AutoPaused = "sandbox.auto_paused",
        /// Gone.
        Stopped = "sandbox.stopped",
        /// A create is done.
        Started = "sandbox.started",
        /// A resume is done.
        Resumed = "sandbox.resumed",
        /// A pause is done.
        Paused = "sandbox.paused",
        /// A create, pause or resume failed.
        Failed = "sandbox.failed",
    }
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    Ignore,
    /// The announcement goes into the inbox, and the host is looked at.
    Note,
    /// The host is looked at.
    Look,
    /// The row changes.
    Move(SandboxStatus),
}

/// What a report means for a sandbox in this status. `late`: it is older than the status.
pub fn effect(kind: ReportKind, status: SandboxStatus, late: bool) -> Effect {
    use SandboxStatus as S;
    if late {
        return Effect::Ignore;
    }
    match (kind, status) {
        (_, S::Stopped | S::Pending | S::Hibernated) => Effect::Ignore,

        (ReportKind::AutoPaused, S::Paused | S::Error) => Effect::Ignore,
        (
            ReportKind::AutoPaused,
            S::Starting | S::Running | S::Pausing | S::Resuming | S::Stopping | S::Missing,
        ) => Effect::Note,

        (
            ReportKind::Stopped,
            S::Starting
            | S::Running
            | S::Pausing
            | S::Paused
            | S::Resuming
            | S::Stopping
            | S::Missing
            | S::Error,
        ) => Effect::Move(S::Stopped),

        (ReportKind::Started, S::Starting) | (ReportKind::Resumed, S::Resuming) => {
            Effect::Move(S::Running)
        }
        (ReportKind::Paused, S::Pausing) => Effect::Move(S::Paused),
        (ReportKind::Failed, S::Starting) => Effect::Move(S::Error),
        (ReportKind::Failed, S::Resuming) => Effect::Move(S::Paused),

        // It does not fit what we know: a look tells.
        (
            ReportKind::Started,
            S::Running | S::Pausing | S::Paused | S::Resuming | S::Stopping | S::Missing | S::Error,
        )
        | (
            ReportKind::Resumed,
            S::Starting | S::Running | S::Pausing | S::Paused | S::Stopping | S::Missing | S::Error,
        )
        | (
            ReportKind::Paused,
            S::Starting
            | S::Running
            | S::Paused
            | S::Resuming
            | S::Stopping
            | S::Missing
            | S::Error,
        )
        | (
            ReportKind::Failed,
            S::Running | S::Pausing | S::Paused | S::Stopping | S::Missing | S::Error,
        ) => Effect::Look,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    #[test]
    fn every_report_in_every_status() {
        let mut seen = String::new();
        for &kind in ReportKind::ALL {
            for &status in SandboxStatus::ALL {
                let _ = writeln!(seen, "{kind} while {status}: {:?}", effect(kind, status, false));
                assert_eq!(effect(kind, status, true), Effect::Ignore, "late");
            }
        }
        expect_test::expect_file!["golden/reports.txt"].assert_eq(&seen);
    }
}
