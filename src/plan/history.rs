//! Owns which changes of a sandbox get an audit entry, and how it reads.
//!
//! Never: words for what operators do with hosts (`store` brings those with each command).
//!
//! What a user wishes is audited once, when the wish is accepted. That it came true is an
//! event and no entry; that it did not, or that something happened which nobody wished, is
//! an entry of the system's.

use crate::model::event::{AuditAction, AuditStatus};
use crate::model::operation::OperationKind;
use crate::model::policy::Policy;
use crate::model::sandbox::{Reason, SandboxStatus};

/// The audit entry of a wish that was accepted.
pub const fn audit_of_wish(kind: OperationKind) -> (AuditAction, AuditStatus) {
    match kind {
        OperationKind::Create => (AuditAction::Create, AuditStatus::Success),
        OperationKind::Pause => (AuditAction::Pause, AuditStatus::Success),
        OperationKind::Resume => (AuditAction::Resume, AuditStatus::Success),
        OperationKind::Destroy => (AuditAction::Destroy, AuditStatus::Warning),
        OperationKind::Snapshot => (AuditAction::Snapshot, AuditStatus::Success),
    }
}

/// The audit entry of a transition that no user wished at this moment, if it gets one.
/// Of the monitor's own, strict policy knows only the pause of a running sandbox.
pub fn audit_of_transition(
    from: SandboxStatus,
    to: SandboxStatus,
    reason: &Reason,
    policy: &Policy,
) -> Option<(AuditAction, AuditStatus)> {
    let finding = Finding::of(reason);
    if policy.is_strict() && !finding.told_by_agent {
        let paused_while_running = from == SandboxStatus::Running && to == SandboxStatus::Paused;
        return paused_while_running.then_some((AuditAction::Pause, AuditStatus::Info));
    }
    // Falling silent is audited once, for the host.
    if *reason == Reason::HostUnreachable || is_wish_come_true(from, to) {
        return None;
    }
    if finding.failed {
        return Some((AuditAction::Error, AuditStatus::Error));
    }
    match to {
        SandboxStatus::Paused => Some((AuditAction::Pause, AuditStatus::Info)),
        SandboxStatus::Stopped if *reason == Reason::Reported => {
            Some((AuditAction::Destroy, AuditStatus::Warning))
        }
        SandboxStatus::Stopped => Some((AuditAction::Vanish, AuditStatus::Warning)),
        SandboxStatus::Error => Some((AuditAction::Error, AuditStatus::Error)),
        SandboxStatus::Running if from == SandboxStatus::Missing => {
            Some((AuditAction::Restore, AuditStatus::Success))
        }
        SandboxStatus::Running => Some((AuditAction::Adopt, AuditStatus::Warning)),
        SandboxStatus::Pending
        | SandboxStatus::Starting
        | SandboxStatus::Pausing
        | SandboxStatus::Resuming
        | SandboxStatus::Stopping
        | SandboxStatus::Missing
        | SandboxStatus::Hibernated => None,
    }
}

/// Whether a transition tells that something failed: an operation, or the sandbox itself.
pub fn is_failure(to: Option<SandboxStatus>, reason: &Reason) -> bool {
    to == Some(SandboxStatus::Error) || Finding::of(reason).failed
}

/// Whether a transient status ends as whoever began it wished.
fn is_wish_come_true(from: SandboxStatus, to: SandboxStatus) -> bool {
    match from {
        SandboxStatus::Starting | SandboxStatus::Resuming => to == SandboxStatus::Running,
        SandboxStatus::Pausing => to == SandboxStatus::Paused,
        SandboxStatus::Stopping => to == SandboxStatus::Stopped,
        SandboxStatus::Pending
        | SandboxStatus::Running
        | SandboxStatus::Paused
        | SandboxStatus::Stopped
        | SandboxStatus::Missing
        | SandboxStatus::Error
        | SandboxStatus::Hibernated => false,
    }
}

/// What a reason says of how a wish ended.
struct Finding {
    /// The agent itself said so, to an operation or unasked.
    told_by_agent: bool,
    /// The wish failed.
    failed: bool,
}

impl Finding {
    const fn of(reason: &Reason) -> Finding {
        let (told_by_agent, failed) = match reason {
            Reason::OperationFailed | Reason::SnapshotGone | Reason::ListedError => (true, true),
            Reason::OperationSucceeded | Reason::Reported | Reason::Snapshotted => (true, false),
            Reason::NotStarted | Reason::NotResumed => (false, true),
            Reason::HostUnreachable
            | Reason::HeartbeatReceived
            | Reason::Vanished
            | Reason::Restored
            | Reason::AutoPaused
            | Reason::ListedPaused
            | Reason::PresumedPaused
            | Reason::Adopted
            | Reason::ListedRunning
            | Reason::PauseFinished
            | Reason::DestroyFinished
            | Reason::Requested
            | Reason::HostDeleted
            | Reason::PlacedElsewhere
            | Reason::Other(_) => (false, false),
        };
        Finding { told_by_agent, failed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    /// Every transition that the table and operations make, with its reason.
    const TRANSITIONS: [(SandboxStatus, SandboxStatus, Reason); 25] = {
        use SandboxStatus as S;
        [
            (S::Running, S::Missing, Reason::HostUnreachable),
            (S::Running, S::Paused, Reason::AutoPaused),
            (S::Running, S::Paused, Reason::PresumedPaused),
            (S::Running, S::Stopped, Reason::Vanished),
            (S::Running, S::Stopped, Reason::Reported),
            (S::Missing, S::Running, Reason::Restored),
            (S::Missing, S::Paused, Reason::PresumedPaused),
            (S::Paused, S::Running, Reason::Adopted),
            (S::Stopped, S::Running, Reason::Adopted),
            (S::Starting, S::Running, Reason::OperationSucceeded),
            (S::Starting, S::Running, Reason::ListedRunning),
            (S::Starting, S::Paused, Reason::AutoPaused),
            (S::Starting, S::Error, Reason::OperationFailed),
            (S::Starting, S::Error, Reason::NotStarted),
            (S::Resuming, S::Running, Reason::Reported),
            (S::Resuming, S::Paused, Reason::NotResumed),
            (S::Resuming, S::Paused, Reason::OperationFailed),
            (S::Resuming, S::Stopped, Reason::SnapshotGone),
            (S::Pausing, S::Paused, Reason::OperationSucceeded),
            (S::Pausing, S::Paused, Reason::ListedPaused),
            (S::Pausing, S::Paused, Reason::PauseFinished),
            (S::Pausing, S::Running, Reason::OperationFailed),
            (S::Pausing, S::Error, Reason::OperationFailed),
            (S::Stopping, S::Stopped, Reason::OperationSucceeded),
            (S::Stopping, S::Stopped, Reason::DestroyFinished),
        ]
    };

    #[test]
    fn every_transition() {
        let mut seen = String::new();
        for (from, to, reason) in &TRANSITIONS {
            let said = |policy: &Policy| match audit_of_transition(*from, *to, reason, policy) {
                Some((action, status)) => format!("{action} ({status})"),
                None => "-".to_owned(),
            };
            let (default, strict) = (said(&Policy::default()), said(&Policy::strict()));
            let _ = writeln!(seen, "{from} -> {to}, {reason}: {default}; strict: {strict}");
        }
        expect_test::expect_file!["golden/audit.txt"].assert_eq(&seen);
    }
}
