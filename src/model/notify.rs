//! Owns the vocabulary of notifications: what is announced, in which phase, how grave.
//!
//! Never: decides what is announced (`plan::notify` does), or to whom (`config`).

use super::vocabulary;

vocabulary! {
    /// What a notification is about.
    NotifyKind, "notification kind", {
        /// A host fell silent.
        HostDown = "host_down",
        /// A host beats, but its probes fail.
        HostDegraded = "host_degraded",
        /// Most hosts fell silent together; verdicts are held.
        MassGuard = "mass_guard",
        /// A host lost most of its sandboxes at once; held for another look.
        MassVanish = "mass_vanish",
        /// Sandboxes run that should not exist.
        Zombies = "zombies",
        /// Operations failed, or sandboxes did.
        OperationFailed = "operation_failed",
    }
}

vocabulary! {
    /// Where in the life of a problem a notification stands.
    Phase, "notification state", {
        /// It began.
        Open = "open",
        /// It goes on.
        Reminder = "reminder",
        /// It is over.
        Resolved = "resolved",
    }
}

vocabulary! {
    /// How grave it is.
    Severity, "severity", {
        /// Nothing to do.
        Info = "info",
        /// Look at it today.
        Warning = "warning",
        /// Look at it now.
        Critical = "critical",
    }
}

impl NotifyKind {
    /// Whether it happened and is over, so that nothing can end it.
    pub const fn is_passing(self) -> bool {
        match self {
            NotifyKind::OperationFailed => true,
            NotifyKind::HostDown
            | NotifyKind::HostDegraded
            | NotifyKind::MassGuard
            | NotifyKind::MassVanish
            | NotifyKind::Zombies => false,
        }
    }

    /// How grave it is while it lasts.
    pub const fn severity(self) -> Severity {
        match self {
            NotifyKind::HostDown | NotifyKind::MassGuard | NotifyKind::MassVanish => {
                Severity::Critical
            }
            NotifyKind::HostDegraded | NotifyKind::Zombies | NotifyKind::OperationFailed => {
                Severity::Warning
            }
        }
    }
}
