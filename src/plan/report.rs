//! Owns what an agent's own report means for a sandbox.
//!
//! Never: takes a report for more than it is. Reports may be late, and an observation that
//! shows a sandbox running outranks what was said before; so every report about a known
//! sandbox is followed by a probe.

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
        /// A pause failed; the sandbox may still run.
        PauseFailed = "sandbox.pause_failed",
        /// A resume failed; the snapshot is still there.
        ResumeFailed = "sandbox.resume_failed",
        /// The sandbox failed by itself.
        Error = "sandbox.error",
    }
}

/// What follows, beside a probe of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    Probe,
    /// An auto-pause notice goes into the inbox.
    Notice,
    /// The row changes.
    Move(SandboxStatus),
}

/// What a report means for a sandbox in this status; `ended_by_user`: a user has had it
/// destroyed, which no report undoes.
pub fn effect(kind: ReportKind, status: SandboxStatus, ended_by_user: bool) -> Effect {
    use Effect::{Move, Notice, Probe};
    use SandboxStatus as S;
    match (kind, status) {
        (_, S::Pending | S::Hibernated) => Probe,

        (ReportKind::AutoPaused, S::Stopped) if ended_by_user => Probe,
        (ReportKind::AutoPaused, S::Paused) => Probe,
        (
            ReportKind::AutoPaused,
            S::Starting
            | S::Running
            | S::Pausing
            | S::Resuming
            | S::Stopping
            | S::Missing
            | S::Stopped
            | S::Error,
        ) => Notice,

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
        ) => Move(S::Stopped),

        (ReportKind::Started, S::Starting) | (ReportKind::Resumed, S::Resuming) => Move(S::Running),
        (ReportKind::Paused, S::Pausing) => Move(S::Paused),
        (ReportKind::Failed, S::Starting) => Move(S::Error),
        (ReportKind::Failed | ReportKind::ResumeFailed, S::Resuming) => Move(S::Paused),
        (
            ReportKind::Error,
            S::Starting | S::Running | S::Pausing | S::Paused | S::Resuming | S::Missing,
        ) => Move(S::Error),

        // It does not fit what we know: the next observation decides.
        (
            ReportKind::Stopped
            | ReportKind::Started
            | ReportKind::Resumed
            | ReportKind::Paused
            | ReportKind::Failed
            | ReportKind::PauseFailed
            | ReportKind::ResumeFailed
            | ReportKind::Error,
            S::Starting
            | S::Running
            | S::Pausing
            | S::Paused
            | S::Resuming
            | S::Stopping
            | S::Missing
            | S::Stopped
            | S::Error,
        ) => Probe,
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
                if status == SandboxStatus::Stopped {
                    let ended = effect(kind, status, true);
                    let _ = writeln!(seen, "{kind} while {status} by a user: {ended:?}");
                    assert_eq!(ended, Effect::Probe, "no report undoes a user's destroy");
                }
            }
        }
        expect_test::expect_file!["golden/reports.txt"].assert_eq(&seen);
    }
}
