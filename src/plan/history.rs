//! Owns which decisions of the monitor get an audit entry, and how it reads.
//!
//! Never: words for what users do (`api` brings those).

use crate::model::event::{AuditAction, AuditStatus};
use crate::model::policy::Policy;
use crate::model::sandbox::{Reason, SandboxStatus};

/// The audit entry of a transition that the monitor made, if it gets one. Strict policy
/// knows only the pause of a running sandbox.
pub fn audit_of_transition(
    from: SandboxStatus,
    to: SandboxStatus,
    reason: &Reason,
    policy: &Policy,
) -> Option<(AuditAction, AuditStatus)> {
    if policy.is_strict() {
        let paused_while_running = from == SandboxStatus::Running && to == SandboxStatus::Paused;
        return paused_while_running.then_some((AuditAction::Pause, AuditStatus::Info));
    }
    // Falling silent is audited once, for the host.
    if *reason == Reason::HostUnreachable {
        return None;
    }
    if *reason == Reason::OperationFailed {
        return Some((AuditAction::Error, AuditStatus::Error));
    }
    match to {
        SandboxStatus::Paused => Some((AuditAction::Pause, AuditStatus::Info)),
        SandboxStatus::Stopped if from == SandboxStatus::Stopping => {
            Some((AuditAction::Destroy, AuditStatus::Warning))
        }
        SandboxStatus::Stopped => Some((AuditAction::Vanish, AuditStatus::Warning)),
        SandboxStatus::Error => Some((AuditAction::Error, AuditStatus::Error)),
        SandboxStatus::Running => Some(running(from)),
        SandboxStatus::Pending
        | SandboxStatus::Starting
        | SandboxStatus::Pausing
        | SandboxStatus::Resuming
        | SandboxStatus::Stopping
        | SandboxStatus::Missing
        | SandboxStatus::Hibernated => None,
    }
}

fn running(from: SandboxStatus) -> (AuditAction, AuditStatus) {
    match from {
        SandboxStatus::Starting => (AuditAction::Create, AuditStatus::Success),
        SandboxStatus::Resuming => (AuditAction::Resume, AuditStatus::Success),
        SandboxStatus::Missing => (AuditAction::Restore, AuditStatus::Success),
        SandboxStatus::Pending
        | SandboxStatus::Running
        | SandboxStatus::Pausing
        | SandboxStatus::Paused
        | SandboxStatus::Stopping
        | SandboxStatus::Stopped
        | SandboxStatus::Error
        | SandboxStatus::Hibernated => (AuditAction::Adopt, AuditStatus::Warning),
    }
}
